/* POST /v1/images/generations: one generation from its body to its last byte.
 *
 * A generation is shared between the loop, which owns it, and the scheduler's threads, which write `shared`
 * under the server's `events` lock and post it to the mailbox (once, until the loop has taken it: there is
 * one slot for the newest step, never a queue). Three things keep it alive, counted on the loop: the
 * scheduler until its END has been taken, every picture that is being encoded, and the exchange until its
 * end. */
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/base64.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/png.h"
#include "engine/infotext.h"
#include "server/answer.h"
#include "server/reply.h"
#include "server/server_internal.h"

#define MAX_PICTURES 10
#define FLUSH_MS     50 /* a stream is told of steps twenty times a second at most */
/* Base64 of ten of the largest pictures would be gigabytes; a picture's pixels are bounded by the limits. */
#define ANSWER_BYTES ((size_t)2 << 30)

typedef struct picture {
    ts_generation *g;
    uv_work_t work;
    unsigned char *rgb;
    ts_error error;
    ts_answer_picture answer; /* base64 is NULL until it is encoded */
    char *png;                /* for Accept: image/png, instead of base64 */
    size_t png_size;
    bool ready, told;
} picture;

/* What the scheduler's threads write. */
typedef struct shared {
    bool posted;
    int position; /* -1: not yet known, or already started */
    int step, total;
    double eta_s;
    bool ended;
    ts_error error;
    struct {
        bool there;
        unsigned char *rgb;
        ts_error error;
        ts_job_stats stats;
    } pictures[MAX_PICTURES];
} shared;

struct ts_generation {
    ts_message message; /* first: what the mailbox holds */
    ts_server *server;
    ts_generation *next, *previous;
    int references;
    shared shared;

    /* The loop's. */
    ts_images_request r;
    ts_answer answer;
    ts_exchange *x;                        /* NULL once the answer has left or the client has */
    bool png, streams, ended, done, stale; /* stale: news that the stream has not been woken for */
    int position, told_position, step, told_step, total;
    double eta_s;
    ts_error error;
    picture pictures[MAX_PICTURES];
    ts_buffer out; /* of the stream */
    size_t out_at;
    uint64_t spoke_ns; /* last time that the stream said something */
};

/* ---- life ---- */

static ts_generation *generation_new(ts_server *s, ts_exchange *x) {
    ts_generation *g = ts_new0(ts_generation);
    if (!g) return NULL;
    g->server = s;
    g->x = x;
    g->position = g->told_position = g->shared.position = -1;
    g->eta_s = -1;
    g->spoke_ns = ts_now_ns();
    ts_buffer_init(&g->out, ANSWER_BYTES);
    for (int i = 0; i < MAX_PICTURES; i++) {
        g->pictures[i].g = g;
        g->pictures[i].work.data = &g->pictures[i];
        g->pictures[i].answer.index = i;
    }
    g->next = s->generations;
    if (g->next) g->next->previous = g;
    s->generations = g;
    s->generation_count++;
    g->references = 1;
    return g;
}

static void release(ts_generation *g) {
    if (--g->references) return;
    ts_server *s = g->server;
    if (g->previous)
        g->previous->next = g->next;
    else
        s->generations = g->next;
    if (g->next) g->next->previous = g->previous;
    s->generation_count--;
    for (int i = 0; i < MAX_PICTURES; i++) {
        free(g->shared.pictures[i].rgb);
        free(g->pictures[i].rgb);
        free((char *)(uintptr_t)g->pictures[i].answer.base64);
        free(g->pictures[i].png);
    }
    ts_buffer_free(&g->out);
    ts_images_request_free(&g->r);
    free(g);
}

static uint64_t token_of(ts_generation *g) {
    return (uint64_t)(uintptr_t)g;
}

/* ---- the scheduler's threads ---- */

static void write_event(shared *h, const ts_event *event) {
    switch (event->kind) {
    case TS_EVENT_QUEUED: h->position = event->position; break;
    case TS_EVENT_STARTED: h->total = event->total; break;
    case TS_EVENT_STEP:
        h->step = event->step;
        h->total = event->total;
        h->eta_s = event->eta_s;
        break;
    case TS_EVENT_PICTURE: {
        if (event->index < 0 || event->index >= MAX_PICTURES) break;
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

static ts_code describe(const picture *p, char **ret) {
    const ts_generation *g = p->g;
    const ts_request *r = &g->r.request;
    ts_job job = {.shape = r->shape, .count = 1, .stats = p->answer.stats};
    ts_picture made = {.params = r->params};
    made.params.seed += (uint64_t)p->answer.index;
    return ts_infotext(g->answer.model, &job, &made, ret);
}

static void encode(uv_work_t *work) {
    picture *p = work->data;
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
    picture *p = work->data;
    ts_generation *g = p->g;
    if (status && !p->error.code) ts_fail(&p->error, TS_ECANCELLED, "encoding was cancelled");
    p->ready = true;
    if (p->error.code && !g->error.code) g->error = p->error;
    advance(g, true);
    release(g);
}

static void begin_encoding(picture *p) {
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
        picture *p = &g->pictures[0];
        ts_exchange_reply(x, 200, "image/png", p->png, p->png_size, headers, 1);
        p->png = NULL;
    } else {
        ts_answer_picture pictures[MAX_PICTURES];
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

/* Writes what is new into the stream's buffer; false when there is nothing. */
static ts_code compose(ts_generation *g) {
    ts_code rc = TS_OK;
    bool started = g->step > 0;
    if (g->r.progress && !started && g->position >= 0 && g->position != g->told_position) {
        rc = ts_answer_queued(&g->out, g->position);
        g->told_position = g->position;
    }
    if (!rc && g->r.progress && g->step > g->told_step) {
        rc = ts_answer_progress(&g->out, g->step, g->total, g->eta_s);
        g->told_step = g->step;
    }
    for (int i = 0; i < g->r.request.n && !rc; i++) {
        picture *p = &g->pictures[i];
        if (!p->ready || p->told || !p->answer.base64) continue;
        rc = ts_answer_completed(&g->out, &g->answer, &p->answer);
        p->told = true;
        free((char *)(uintptr_t)p->answer.base64);
        p->answer.base64 = NULL;
    }
    if (!rc && all_ready(g)) {
        g->done = true;
        if (g->error.code) rc = ts_answer_failed(&g->out, &g->error);
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
        if (compose(g)) return -2;
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
    shared *h = &g->shared;
    bool arrived[MAX_PICTURES] = {false};
    pthread_mutex_lock(&g->server->events);
    h->posted = false;
    bool moved = g->position != h->position;
    g->position = h->position;
    g->step = h->step;
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
    if (ended) release(g);
}

void ts_images_take_events(ts_server *s) {
    ts_message *m = ts_mailbox_take_all(s->mailbox);
    for (ts_message *next; m; m = next) {
        next = m->next;
        take((ts_generation *)(void *)m);
    }
}

static void on_end(void *arg, bool gone) {
    ts_generation *g = arg;
    ts_server *s = g->server;
    g->x = NULL;
    if (gone && !g->ended && !g->r.finish) {
        ts_log(TS_LOG_DEBUG, "a client left; its pictures are cancelled");
        ts_sched_cancel(s->sched, token_of(g));
    }
    release(g);
}

void ts_images_cancel_all(ts_server *s) {
    for (ts_generation *g = s->generations; g; g = g->next) {
        if (g->ended) continue;
        if (!g->error.code)
            ts_fail(&g->error, TS_ESHUTDOWN, "the server stopped before the picture was made");
        ts_sched_cancel(s->sched, token_of(g));
    }
}

/* ---- the request ---- */

static bool is_json(const char *type) {
    static const char wanted[] = "application/json";
    size_t n = sizeof wanted - 1;
    return !strncasecmp(type, wanted, n) && (!type[n] || strchr("; \t", type[n]));
}

/* The weight that an Accept header gives to a type that it names; -1 when it does not. (RFC 9110, 12.5.1) */
static double weight(const char *accept, const char *type) {
    size_t n = strlen(type);
    for (const char *s = accept; *s;) {
        s += strspn(s, ", \t");
        size_t length = strcspn(s, ",");
        if (!strncasecmp(s, type, n) && (length == n || strchr("; \t", s[n]))) {
            const char *q = memmem(s, length, "q=", 2);
            return q ? strtod(q + 2, NULL) : 1;
        }
        s += length;
    }
    return -1;
}

/* Only for those who ask for it by name and like it better than JSON. */
static bool wants_png(const char *accept) {
    double png = weight(accept, "image/png"), json = weight(accept, "application/json");
    return png > 0 && png > json;
}

static ts_code read_request(ts_generation *g, ts_error *e) {
    ts_server *s = g->server;
    if (s->state == TS_STATE_LOADING) return ts_fail(e, TS_ELOADING, "the models are being loaded");
    if (s->state == TS_STATE_DRAINING) return ts_fail(e, TS_ESHUTDOWN, "the server is stopping");
    const char *type = ts_exchange_header(g->x, "content-type"), *accept = ts_exchange_header(g->x, "accept");
    if (type && !is_json(type))
        return ts_fail_param(e, TS_EMEDIATYPE, "", "the content-type must be application/json");
    size_t size;
    const char *body = ts_exchange_body(g->x, &size);
    const ts_request_context context = {.config = s->config,
                                        .setup = &s->setup,
                                        .models = s->models,
                                        .model_count = s->model_count,
                                        .group = s->groups[0]};
    ts_code rc = ts_images_request_read(&context, body, size, &g->r, e);
    if (rc) return rc;
    g->streams = g->r.stream;
    g->png = accept && wants_png(accept);
    if (g->png && g->streams)
        return ts_fail_param(e, TS_EINVAL, "stream",
                             "a stream cannot be the picture itself: Accept is image/png");
    if (g->png && g->r.request.n > 1)
        return ts_fail_param(e, TS_EINVAL, "n", "n must be 1 when the answer is the picture itself");
    g->answer =
        (ts_answer){.r = &g->r, .model = s->models[g->r.request.model], .created = (int64_t)time(NULL)};
    rc = ts_model_count_tokens(g->answer.model, g->r.request.params.prompt, &g->answer.prompt_tokens, e);
    return rc;
}

/* The engine speaks of width and height; the client may have said size. */
static void rename_param(const ts_generation *g, ts_error *e) {
    bool side = !strcmp(e->param, "width") || !strcmp(e->param, "height");
    if (side && !cJSON_HasObjectItem(g->r.json, "width")) strcpy(e->param, "size");
}

static void refuse(ts_generation *g, ts_error *e) {
    char after[16];
    ts_header headers[1];
    size_t n = 0;
    if (e->code == TS_EFULL) {
        snprintf(after, sizeof after, "%d", ts_sched_retry_after(g->server->sched));
        headers[n++] = (ts_header){"retry-after", after};
    }
    ts_reply_error_headers(g->x, e, headers, n);
    release(g);
}

void ts_images_handle(void *server, ts_exchange *x) {
    ts_server *s = server;
    ts_error e = {0};
    ts_generation *g = generation_new(s, x);
    if (!g) {
        ts_fail(&e, TS_ENOMEM, "there is no memory for the request");
        ts_reply_error(x, &e);
        return;
    }
    ts_code rc = read_request(g, &e);
    if (!rc) {
        const ts_shape *shape = &g->r.request.shape;
        ts_exchange_note(x, "%d of %dx%d, %d steps, %s", g->r.request.n, shape->width, shape->height,
                         shape->steps, ts_mode_name(shape->parallel.mode));
        g->r.request.token = token_of(g);
        g->references++; /* the scheduler's, which may already send events */
        rc = ts_sched_submit(s->sched, &g->r.request, &e);
        if (rc) {
            g->references--;
            rename_param(g, &e);
        }
    }
    if (rc) {
        refuse(g, &e);
        return;
    }
    ts_exchange_on_end(x, on_end, g);
    if (!g->streams) return;
    /* The first place is told whatever happens next; submitting has written it. */
    pthread_mutex_lock(&s->events);
    g->position = g->shared.position;
    pthread_mutex_unlock(&s->events);
    ts_exchange_stream(x, "text/event-stream; charset=utf-8", read_stream, g);
}
