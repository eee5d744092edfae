/* Which waiting pictures run together, and when. */
#include "base/clock.h"
#include "sched/sched_internal.h"

static bool waits(const ts_ticket *t) {
    return t->next < t->n;
}

static bool able(const ts_ticket *t, const ts_worker *w) {
    return t->able >> w->index & 1;
}

static bool together(const ts_ticket *a, const ts_ticket *b) {
    return a->model == b->model && ts_shape_equal(&a->shape, &b->shape);
}

static void take(ts_worker *w, ts_ticket *t) {
    int i = w->count++, index = t->next++;
    t->holders++;
    w->seats[i] = (ts_seat){.ticket = t, .held = t, .index = index};
    w->pictures[i] = (ts_picture){.params = t->params, .arg = &w->seats[i]};
    w->pictures[i].params.seed += (uint64_t)index;
}

/* The oldest picture that this group can run leads; whatever fits goes with it. Waiting for company is worth
 * it only while it costs nobody else: with a picture of another shape behind the leader, with no more
 * requests to come, or with a full batch, the leader goes at once. */
bool ts_batch_take_locked(ts_sched *s, ts_worker *w, uint64_t now, uint64_t *ret_until) {
    ts_ticket *leader = NULL;
    int fits = 0;
    bool others = false;
    for (ts_ticket *t = s->oldest; t; t = t->younger) {
        if (!waits(t) || !able(t, w)) continue;
        if (!leader) leader = t;
        if (together(leader, t))
            fits += t->n - t->next;
        else
            others = true;
    }
    *ret_until = UINT64_MAX;
    if (!leader) return false;
    uint64_t until = leader->arrived_ns + (uint64_t)s->config.max_wait_ms * 1000000u;
    if (fits < s->config.max_batch && !others && !s->draining && now < until) {
        *ret_until = until;
        return false;
    }

    w->count = 0;
    for (ts_ticket *t = leader; t && w->count < s->config.max_batch; t = t->younger)
        if (together(leader, t))
            while (waits(t) && w->count < s->config.max_batch) take(w, t);
    s->stats.waiting -= w->count;
    w->job = (ts_job){.shape = leader->shape, .pictures = w->pictures, .count = w->count, .arg = w};
    return true;
}
