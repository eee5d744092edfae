#include "server/generation.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/base64.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/png.h"
#include "engine/infotext.h"
#include "server/reply.h"

#define FLUSH_MS 50 /* a stream is told of steps twenty times a second at most */
/* Base64 of ten of the largest pictures would be gigabytes; a picture's pixels are bounded by the limits. */
#define ANSWER_BYTES ((size_t)2 << 30)

/* ---- life ---- */

void ts_generation_release(ts_generation *g) {
    if (--g->references) return;
    ts_server *s = g->server;
    if (g->previous)
        g->previous->next = g->next;
    else
        s->generations = g->next;
    if (g->next) g->next->previous = g->previous;
    s->generation_count--;
    for (int i = 0; i < TS_GENERATION_PICTURES; i++) {
        free(g->shared.pictures[i].rgb);
        free(g->pictures[i].rgb);
        free((char *)(uintptr_t)g->pictures[i].answer.base64);
        free(g->pictures[i].png);
    }
    ts_buffer_free(&g->out);
    ts_images_request_free(&g->r);
    ts_source_free(&g->source);
    free(g);
}

static uint64_t token_of(ts_generation *g) {
    return (uint64_t)(uintptr_t)g;
}

static void on_end(void *arg, bool gone) {
    ts_generation *g = arg;
    ts_server *s = g->server;
    g->x = NULL;
    if (gone && !g->ended && !g->r.finish) {
        ts_log(TS_LOG_DEBUG, "a client left; its pictures are cancelled");
        if (g->submitted) ts_sched_cancel(s->sched, token_of(g));
        if (g->edit) ts_images_drop_edit(g);
    }
    ts_generation_release(g);
}

ts_generation *ts_generation_new(ts_server *s, ts_exchange *x) {
    ts_generation *g = ts_new0(ts_generation);
    if (!g) return NULL;
    g->server = s;
    g->x = x;
    g->position = g->told_position = g->shared.position = -1;
    g->eta_s = -1;
    g->spoke_ns = ts_now_ns();
    ts_buffer_init(&g->out, ANSWER_BYTES);
    for (int i = 0; i < TS_GENERATION_PICTURES; i++) {
        g->pictures[i].g = g;
        g->pictures[i].work.data = &g->pictures[i];
        g->pictures[i].answer.index = i;
    }
    g->next = s->generations;
    if (g->next) g->next->previous = g;
    s->generations = g;
    s->generation_count++;
    g->references = 1; /* the exchange's */
    ts_exchange_on_end(x, on_end, g);
    return g;
}

/* ---- the scheduler's threads ---- */

static void write_event(ts_generation_news *h, const ts_event *event) {
    switch (event->kind) {
    case TS_EVENT_QUEUED: h->position = event->position; break;
    case TS_EVENT_STARTED: h->total = event->total; break;
    case TS_EVENT_STEP:
        h->step = event->step;
        h->steps_heard++;
        h->total = event->total;
        h->eta_s = event->eta_s;
        break;
    case TS_EVENT_PICTURE: {
        if (event->index < 0 || event->index >= TS_GENERATION_PICTURES) break;
        h->pictures[event->index].there = true;
        if (event->error) h->pictures[event->index].error = *event->error;
        if (event->stats) h->pictures[event->index].stats = *event->stats;
        if (event->rgb) {
            h->pictures[event->index].rgb = *event->rgb;
            *event->rgb = NULL;
        }
        break;
    }
    case TS_EVENT_END:
        h->ended = true;
        if (event->error) h->error = *event->error;
        break;
    }
}

void ts_images_on_event(void *server, const ts_event *event) {
    ts_server *s = server;
    ts_generation *g = (ts_generation *)(uintptr_t)event->token;
    atomic_store_explicit(&s->last_event_ns, ts_now_ns(), memory_order_relaxed);
    pthread_mutex_lock(&s->events);
    write_event(&g->shared, event);
    bool post = !g->shared.posted;
    g->shared.posted = true;
    pthread_mutex_unlock(&s->events);
    /* Cannot be full: a generation is in it once, and its room is all of memory. */
    if (post) ts_assert(ts_mailbox_post(s->mailbox, &g->message) == TS_OK);
}

/* ---- encoding, on a thread of the loop's pool ---- */

static ts_code describe(const ts_generation_picture *p, char **ret) {
    const ts_generation *g = p->g;
    const ts_request *r = &g->r.request;
    ts_job job = {.shape = r->shape, .count = 1, .stats = p->answer.stats};
    ts_picture made = {.params = r->params};
    made.params.seed += (uint64_t)p->answer.index;
    return ts_infotext(g->answer.model, &job, &made, ret);
}

static void encode(uv_work_t *work) {
    ts_generation_picture *p = work->data;
    const ts_shape *shape = &p->g->r.request.shape;
    char *text = NULL, *png = NULL;
    size_t size = 0;
    ts_code rc = describe(p, &text);
    if (rc) ts_fail(&p->error, rc, "describing the picture");
    ts_png_text chunk = {.key = "parameters", .text = text};
    if (!rc) rc = ts_png_encode(p->rgb, shape->width, shape->height, &chunk, 1, &png, &size, &p->error);
    free(text);
    free(p->rgb);
    p->rgb = NULL;
    if (rc) return;
    if (p->g->png) {
        p->png = png;
        p->png_size = size;
        return;
    }
    p->answer.base64 = ts_base64(png, size, &p->answer.base64_size);
    free(png);
    if (!p->answer.base64) ts_fail(&p->error, TS_ENOMEM, "encoding the picture");
}

static void advance(ts_generation *g, bool at_once);

static void encoded(uv_work_t *work, int status) {
    ts_generation_picture *p = work->data;
    ts_generation *g = p->g;
    if (status && !p->error.code) ts_fail(&p->error, TS_ECANCELLED, "encoding was cancelled");
    p->ready = true;
    if (p->error.code && !g->error.code) g->error = p->error;
    advance(g, true);
    ts_generation_release(g);
}

static void begin_encoding(ts_generation_picture *p) {
    ts_generation *g = p->g;
    if (!p->rgb || !g->x) {
        /* It failed, or nobody is there to see it. */
        p->ready = true;
        free(p->rgb);
        p->rgb = NULL;
        return;
    }
    g->references++;
    if (uv_queue_work(&g->server->loop, &p->work, encode, encoded)) {
        ts_fail(&p->error, TS_EINTERNAL, "the picture could not be encoded");
        if (!g->error.code) g->error = p->error;
        p->ready = true;
        g->references--;
    }
}

/* ---- the answer ---- */

static bool all_ready(const ts_generation *g) {
    for (int i = 0; i < g->r.request.n; i++)
        if (!g->pictures[i].ready) return false;
    return g->ended;
}

static void reply(ts_generation *g) {
    ts_exchange *x = g->x;
    if (g->error.code) {
        ts_reply_error(x, &g->error);
    } else if (g->png) {
        char seed[24];
        snprintf(seed, sizeof seed, "%llu", (unsigned long long)g->r.request.params.seed);
        const ts_header headers[] = {{"x-tessera-seed", seed}};
        ts_generation_picture *p = &g->pictures[0];
        ts_exchange_reply(x, 200, "image/png", p->png, p->png_size, headers, 1);
        p->png = NULL;
    } else {
        ts_answer_picture pictures[TS_GENERATION_PICTURES];
        ts_buffer b;
        ts_buffer_init(&b, ANSWER_BYTES);
        for (int i = 0; i < g->r.request.n; i++) pictures[i] = g->pictures[i].answer;
        ts_code rc = ts_answer_json(&b, &g->answer, pictures, g->r.request.n);
        ts_reply_buffer(x, rc, "application/json", &b);
    }
}

static void on_flush(uv_timer_t *timer) {
    ts_images_flush(timer->data);
}

/* Something has changed: answers when all is there, or lets the stream know, of steps a little later. */
static void advance(ts_generation *g, bool at_once) {
    if (!g->x) return;
    if (g->streams) {
        uv_timer_t *flush = &g->server->flush;
        uint64_t ms = at_once ? 1 : FLUSH_MS;
        g->stale = true;
        if (!g->server->stopping && (!uv_is_active((uv_handle_t *)flush) || uv_timer_get_due_in(flush) > ms))
            uv_timer_start(flush, on_flush, ms, 0);
    } else if (all_ready(g) && !g->done) {
        g->done = true;
        reply(g);
    }
}

/* Writes what is new into the stream's buffer, which may be nothing. */
static ts_code compose(ts_generation *g) {
    ts_code rc = TS_OK;
    bool started = g->step > 0;
    if (g->r.progress && !started && g->position >= 0 && g->position != g->told_position) {
        rc = ts_answer_queued(&g->out, &g->answer, g->position);
        g->told_position = g->position;
    }
    if (!rc && g->r.progress && g->steps != g->told_steps) {
        rc = ts_answer_progress(&g->out, &g->answer, g->step, g->total, g->eta_s);
        g->told_steps = g->steps;
    }
    for (int i = 0; i < g->r.request.n && !rc; i++) {
        ts_generation_picture *p = &g->pictures[i];
        if (!p->ready || p->told || !p->answer.base64) continue;
        rc = ts_answer_completed(&g->out, &g->answer, &p->answer);
        p->told = true;
        free((char *)(uintptr_t)p->answer.base64);
        p->answer.base64 = NULL;
    }
    if (!rc && all_ready(g)) {
        g->done = true;
        if (g->error.code) {
            ts_reply_failed(g->x, &g->error);
            rc = ts_answer_failed(&g->out, &g->error);
        }
        if (!rc) rc = ts_answer_done(&g->out);
    }
    return rc;
}

static ssize_t read_stream(void *arg, char *to, size_t room) {
    ts_generation *g = arg;
    if (g->out_at == g->out.size) {
        ts_buffer_free(&g->out);
        g->out_at = 0;
        if (g->done) return -1;
        g->stale = false;
        const ts_code rc = compose(g);
        if (rc) {
            ts_error e = {0};
            ts_fail(&e, rc, "the stream of events could not be written");
            ts_reply_failed(g->x, &e);
            return -2;
        }
        if (!g->out.size) return 0;
        g->spoke_ns = ts_now_ns();
    }
    size_t n = g->out.size - g->out_at < room ? g->out.size - g->out_at : room;
    memcpy(to, g->out.data + g->out_at, n);
    g->out_at += n;
    return (ssize_t)n;
}

void ts_images_flush(ts_server *s) {
    for (ts_generation *g = s->generations; g; g = g->next)
        if (g->stale && g->x) ts_exchange_wake(g->x);
}

void ts_images_ping(ts_server *s) {
    uint64_t now = ts_now_ns(), interval = (uint64_t)s->config->server.ping_interval * 1000000000u;
    for (ts_generation *g = s->generations; g; g = g->next) {
        if (!g->streams || !g->x || g->done || g->out.size || now - g->spoke_ns < interval) continue;
        /* A comment, which clients skip: proxies see life, and we see that the client has gone. */
        if (ts_buffer_append(&g->out, ": ping\n\n", 8)) continue;
        g->spoke_ns = now;
        ts_exchange_wake(g->x);
    }
}

/* ---- events on the loop ---- */

/* Moves what the scheduler's threads wrote to the loop's side. */
static void take(ts_generation *g) {
    ts_generation_news *h = &g->shared;
    bool arrived[TS_GENERATION_PICTURES] = {false};
    pthread_mutex_lock(&g->server->events);
    h->posted = false;
    bool moved = g->position != h->position;
    g->position = h->position;
    g->step = h->step;
    g->steps = h->steps_heard;
    g->total = h->total;
    g->eta_s = h->eta_s;
    for (int i = 0; i < g->r.request.n; i++) {
        if (!h->pictures[i].there) continue;
        h->pictures[i].there = false;
        arrived[i] = true;
        g->pictures[i].rgb = h->pictures[i].rgb;
        g->pictures[i].error = h->pictures[i].error;
        g->pictures[i].answer.stats = h->pictures[i].stats;
        h->pictures[i].rgb = NULL;
    }
    bool ended = h->ended && !g->ended;
    if (ended) {
        g->ended = true;
        if (h->error.code && !g->error.code) g->error = h->error;
    }
    pthread_mutex_unlock(&g->server->events);

    for (int i = 0; i < g->r.request.n; i++)
        if (arrived[i]) begin_encoding(&g->pictures[i]);
    advance(g, ended || moved);
    if (ended) ts_generation_release(g);
}

void ts_images_take_events(ts_server *s) {
    ts_message *m = ts_mailbox_take_all(s->mailbox);
    for (ts_message *next; m; m = next) {
        next = m->next;
        take((ts_generation *)(void *)m);
    }
}

void ts_images_cancel_all(ts_server *s) {
    for (ts_generation *g = s->generations; g; g = g->next) {
        if (g->ended) continue;
        if (!g->error.code)
            ts_fail(&g->error, TS_ESHUTDOWN, "the server stopped before the picture was made");
        if (g->submitted) ts_sched_cancel(s->sched, token_of(g));
    }
}

/* ---- to the scheduler ---- */

ts_code ts_generation_submit(ts_generation *g, ts_error *e) {
    ts_server *s = g->server;
    g->r.request.token = token_of(g);
    g->references++; /* the scheduler's, which may already send events */
    ts_code rc = ts_sched_submit(s->sched, &g->r.request, e);
    if (rc) {
        g->references--;
        return rc;
    }
    g->submitted = true;
    if (!g->r.stream || !g->x) return TS_OK;
    g->streams = true;
    /* The first place is told whatever happens next; submitting has written it. */
    pthread_mutex_lock(&s->events);
    g->position = g->shared.position;
    pthread_mutex_unlock(&s->events);
    ts_exchange_stream(g->x, "text/event-stream; charset=utf-8", read_stream, g);
    return TS_OK;
}
