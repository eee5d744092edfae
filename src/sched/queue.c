/* Accepted requests: their list, their places, and how they end. */
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "sched/sched_internal.h"

static unsigned char *copy_pixels(const unsigned char *from, const ts_shape *shape, size_t channels) {
    const size_t n = (size_t)shape->width * (size_t)shape->height * channels;
    unsigned char *copy = from ? malloc(n) : NULL;
    if (copy) memcpy(copy, from, n);
    return copy;
}

/* On failure, too, ret is good for free_params. */
static ts_code copy_params(const ts_picture_params *from, const ts_shape *shape, ts_picture_params *ret) {
    *ret = *from;
    ret->prompt = ts_strdup(from->prompt);
    ret->negative = ts_strdup(from->negative);
    ret->image = copy_pixels(from->image, shape, 3);
    ret->mask = copy_pixels(from->mask, shape, 1);
    const bool all = ret->prompt && !from->negative == !ret->negative && !from->image == !ret->image &&
                     !from->mask == !ret->mask;
    return all ? TS_OK : TS_ENOMEM;
}

static void free_params(ts_picture_params *p) {
    free((char *)(uintptr_t)p->prompt);
    free((char *)(uintptr_t)p->negative);
    free((unsigned char *)(uintptr_t)p->image);
    free((unsigned char *)(uintptr_t)p->mask);
}

ts_code ts_ticket_new(const ts_request *request, uint64_t able, ts_ticket **ret) {
    ts_ticket *t = ts_new0(ts_ticket);
    if (!t) return TS_ENOMEM;
    t->holders = 1;
    if (copy_params(&request->params, &request->shape, &t->params)) {
        ts_ticket_release(t);
        return TS_ENOMEM;
    }
    t->token = request->token;
    t->arrived_ns = ts_now_ns();
    t->shape = request->shape;
    t->able = able;
    t->model = request->model;
    t->n = t->left = request->n;
    t->position = -1;
    *ret = t;
    return TS_OK;
}

void ts_ticket_release(ts_ticket *t) {
    if (!t || --t->holders) return;
    free_params(&t->params);
    free(t);
}

void ts_emit_locked(ts_sched *s, const ts_ticket *t, ts_event event) {
    event.token = t->token;
    s->config.on_event(s->config.arg, &event);
}

void ts_queue_push_locked(ts_sched *s, ts_ticket *t) {
    t->older = s->youngest;
    if (s->youngest)
        s->youngest->younger = t;
    else
        s->oldest = t;
    s->youngest = t;
    s->stats.waiting += t->n;
}

static void queue_remove(ts_sched *s, ts_ticket *t) {
    if (t->older)
        t->older->younger = t->younger;
    else
        s->oldest = t->younger;
    if (t->younger)
        t->younger->older = t->older;
    else
        s->youngest = t->older;
}

void ts_queue_tell_positions_locked(ts_sched *s) {
    int ahead = 0;
    for (ts_ticket *t = s->oldest; t; t = t->younger) {
        if (!t->started && t->next < t->n && t->position != ahead) {
            t->position = ahead;
            ts_emit_locked(s, t, (ts_event){.kind = TS_EVENT_QUEUED, .position = ahead, .eta_s = -1});
        }
        ahead += t->n - t->next;
    }
}

void ts_ticket_end_picture_locked(ts_sched *s, ts_ticket *t, ts_event event) {
    event.kind = TS_EVENT_PICTURE;
    event.eta_s = -1;
    ts_emit_locked(s, t, event);
    if (event.error->code == TS_OK)
        s->stats.pictures++;
    else if (t->error.code == TS_OK)
        t->error = *event.error;
    if (--t->left) return;

    ts_emit_locked(s, t,
                   (ts_event){.kind = TS_EVENT_END, .eta_s = -1, .error = &t->error, .stats = event.stats});
    if (t->error.code == TS_OK)
        s->stats.completed++;
    else if (t->cancel && t->error.code == t->cancel)
        s->stats.cancelled++;
    else
        s->stats.failed++;
    queue_remove(s, t);
    ts_ticket_release(t);
}

void ts_ticket_cancel_locked(ts_sched *s, ts_ticket *t, ts_code why) {
    ts_error error = {0};
    ts_fail(&error, why, "%s", why == TS_ESHUTDOWN ? "the server is stopping" : "the request was cancelled");
    int first = t->next, n = t->n;
    s->stats.waiting -= n - first;
    t->next = n;
    t->cancel = why;
    t->holders++; /* the last picture's end must not free it under the loops */
    for (int g = 0; g < s->group_count; g++) {
        ts_worker *w = &s->workers[g];
        for (int i = 0; i < w->count; i++) {
            if (w->seats[i].ticket != t) continue;
            atomic_store(&w->pictures[i].cancelled, true);
            w->seats[i].ticket = NULL;
            ts_event event = {.index = w->seats[i].index, .error = &error, .batch = w->count};
            ts_ticket_end_picture_locked(s, t, event);
        }
    }
    for (int i = first; i < n; i++)
        ts_ticket_end_picture_locked(s, t, (ts_event){.index = i, .error = &error});
    ts_ticket_release(t);
    ts_queue_tell_positions_locked(s);
}
