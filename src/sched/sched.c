/* The scheduler's face to the server: start, submit, cancel, drain, figures, stop. */
#include "sched/sched.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "sched/sched_internal.h"

#define MAX_PICTURES 10 /* of one request */

static void join_and_destroy(ts_sched *s) {
    for (int i = 0; i < s->threads; i++) pthread_join(s->workers[i].thread, NULL);
    ts_variants_free(s);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->made);
    pthread_mutex_destroy(&s->lock);
    free(s->workers);
    free(s->models);
    free(s);
}

static bool init_locks(ts_sched *s) {
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr)) return false;
    /* The clock of ts_now_ns: a step of the wall clock must not hold a batch back. */
    bool ok = !pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) && !pthread_cond_init(&s->work, &attr);
    pthread_condattr_destroy(&attr);
    if (!ok) return false;
    pthread_cond_init(&s->made, NULL);
    if (!pthread_mutex_init(&s->lock, NULL)) return true;
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->made);
    return false;
}

static ts_code check_config(const ts_sched_config *c, int models, int groups, ts_error *e) {
    if (c->max_queue < 1) return ts_fail_param(e, TS_EINVAL, "max_queue", "max_queue must be at least 1");
    if (c->max_batch < 1 || c->max_batch > TS_MAX_BATCH)
        return ts_fail_param(e, TS_EINVAL, "max_batch", "max_batch must be 1..%d", TS_MAX_BATCH);
    if (c->max_wait_ms < 0)
        return ts_fail_param(e, TS_EINVAL, "max_wait_ms", "max_wait_ms must not be negative");
    if (models < 1) return ts_fail_param(e, TS_EINVAL, "models", "there is no model to serve");
    if (groups < 1 || groups > TS_MAX_GROUPS)
        return ts_fail_param(e, TS_EINVAL, "groups", "there must be 1..%d groups of devices", TS_MAX_GROUPS);
    return TS_OK;
}

ts_code ts_sched_new(const ts_sched_config *config, ts_model *const *models, int model_count,
                     ts_group *const *groups, int group_count, ts_sched **ret, ts_error *e) {
    ts_code rc = check_config(config, model_count, group_count, e);
    if (rc) return rc;
    ts_sched *s = ts_new0(ts_sched);
    if (!s) return ts_fail(e, TS_ENOMEM, "the scheduler");
    s->config = *config;
    s->models = ts_array0(ts_model *, (size_t)model_count);
    s->workers = ts_array0(ts_worker, (size_t)group_count);
    if (!s->models || !s->workers || !init_locks(s)) {
        free(s->models);
        free(s->workers);
        free(s);
        return ts_fail(e, TS_ENOMEM, "the scheduler");
    }
    memcpy(s->models, models, (size_t)model_count * sizeof *models);
    s->model_count = model_count;
    s->group_count = group_count;
    for (int i = 0; i < group_count; i++) {
        s->workers[i].sched = s;
        s->workers[i].group = groups[i];
        s->workers[i].index = i;
    }
    for (int i = 0; i < group_count; i++) {
        int err = pthread_create(&s->workers[i].thread, NULL, ts_worker_main, &s->workers[i]);
        if (err) {
            ts_fail_errno(e, TS_ENOMEM, err, "starting the thread of group %d", i);
            ts_sched_free(s);
            return TS_ENOMEM;
        }
        s->threads++;
    }
    *ret = s;
    return TS_OK;
}

/* The groups that can run the request; none is the largest group's error. */
static ts_code find_groups(const ts_sched *s, const ts_request *request, uint64_t *ret, ts_error *e) {
    uint64_t able = 0;
    int largest = 0;
    ts_code rc = TS_OK;
    for (int g = 0; g < s->group_count; g++) {
        const ts_group *group = s->workers[g].group;
        ts_error why = {0};
        ts_code no = ts_group_check(group, s->models[request->model], &request->shape, &why);
        if (!no)
            able |= (uint64_t)1 << g;
        else if (ts_group_size(group) > largest) {
            largest = ts_group_size(group);
            rc = no;
            if (e) *e = why;
        }
    }
    if (!able) return rc ? rc : ts_fail(e, TS_EINTERNAL, "no group can run this");
    if (e) *e = (ts_error){0};
    *ret = able;
    return TS_OK;
}

static ts_code check_request(const ts_sched *s, const ts_request *r, ts_error *e) {
    if (r->model < 0 || r->model >= s->model_count)
        return ts_fail_param(e, TS_EINVAL, "model", "there is no such model");
    if (!r->params.prompt) return ts_fail_param(e, TS_EINVAL, "prompt", "a prompt is required");
    if (r->n < 1 || r->n > MAX_PICTURES)
        return ts_fail_param(e, TS_EINVAL, "n", "n must be 1..%d", MAX_PICTURES);
    if (r->n > s->config.max_queue)
        return ts_fail_param(e, TS_EINVAL, "n", "the queue holds %d pictures in all", s->config.max_queue);
    if (r->shape.lora_count < 0 || r->shape.lora_count > TS_MAX_LORAS ||
        (r->shape.lora_count && !s->config.lora_folder))
        return ts_fail_param(e, TS_EINVAL, "loras", "no such LoRAs are offered");
    if (!isfinite(r->params.guidance_scale))
        return ts_fail_param(e, TS_EINVAL, "guidance_scale", "guidance_scale must be finite");
    if (!(r->params.guidance_rescale >= 0 && r->params.guidance_rescale <= 1))
        return ts_fail_param(e, TS_EINVAL, "guidance_rescale", "guidance_rescale must be 0 to 1");
    const ts_interval i = r->params.guidance_interval;
    if (!(i.from >= 0 && i.to <= 1 && (i.to == 0 || i.from < i.to)))
        return ts_fail_param(e, TS_EINVAL, "guidance_interval", "guidance_interval must lie within 0 and 1");
    return TS_OK;
}

ts_code ts_sched_submit(ts_sched *s, const ts_request *request, ts_error *e) {
    uint64_t able;
    ts_ticket *t;
    ts_code rc = check_request(s, request, e);
    if (!rc) rc = find_groups(s, request, &able, e);
    if (rc) return rc;
    if (ts_ticket_new(request, able, &t)) return ts_fail(e, TS_ENOMEM, "there is no memory for the request");

    pthread_mutex_lock(&s->lock);
    if (s->draining)
        rc = ts_fail(e, TS_ESHUTDOWN, "the server is stopping");
    else if (s->stats.waiting + t->n > s->config.max_queue)
        rc = ts_fail(e, TS_EFULL, "%d pictures are waiting; the queue holds %d", s->stats.waiting,
                     s->config.max_queue);
    if (rc) {
        s->stats.refused++;
    } else {
        s->stats.accepted++;
        ts_queue_push_locked(s, t);
        ts_queue_tell_positions_locked(s);
        pthread_cond_broadcast(&s->work);
        t = NULL;
    }
    pthread_mutex_unlock(&s->lock);
    ts_ticket_release(t);
    return rc;
}

void ts_sched_cancel(ts_sched *s, uint64_t token) {
    pthread_mutex_lock(&s->lock);
    ts_ticket *t = s->oldest;
    while (t && t->token != token) t = t->younger;
    if (t) ts_ticket_cancel_locked(s, t, TS_ECANCELLED);
    pthread_mutex_unlock(&s->lock);
}

static int running_locked(const ts_sched *s, int *ret_busy) {
    int running = 0, busy = 0;
    for (int g = 0; g < s->group_count; g++) {
        const ts_worker *w = &s->workers[g];
        busy += w->count > 0;
        for (int i = 0; i < w->count; i++) running += w->seats[i].ticket != NULL;
    }
    if (ret_busy) *ret_busy = busy;
    return running;
}

int ts_sched_retry_after(ts_sched *s) {
    pthread_mutex_lock(&s->lock);
    /* What runs is half done on average. */
    double pictures = s->stats.waiting + 0.5 * running_locked(s, NULL);
    double seconds = ceil(pictures * s->picture_s / s->group_count);
    pthread_mutex_unlock(&s->lock);
    return seconds < 1 ? 1 : seconds > INT_MAX ? INT_MAX : (int)seconds;
}

void ts_sched_get_stats(ts_sched *s, ts_sched_stats *ret) {
    pthread_mutex_lock(&s->lock);
    *ret = s->stats;
    ret->groups = s->group_count;
    ret->variants = 0;
    for (const ts_variant *v = s->variants; v; v = v->next) ret->variants++;
    ret->running = running_locked(s, &ret->groups_busy);
    pthread_mutex_unlock(&s->lock);
}

void ts_sched_drain(ts_sched *s) {
    pthread_mutex_lock(&s->lock);
    s->draining = true;
    pthread_cond_broadcast(&s->work); /* nobody waits for company that cannot come */
    pthread_mutex_unlock(&s->lock);
}

bool ts_sched_idle(ts_sched *s) {
    int busy;
    pthread_mutex_lock(&s->lock);
    running_locked(s, &busy);
    bool idle = !s->oldest && !busy;
    pthread_mutex_unlock(&s->lock);
    return idle;
}

void ts_sched_free(ts_sched *s) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->draining = s->stopping = true;
    for (ts_ticket *t = s->oldest, *younger; t; t = younger) {
        younger = t->younger;
        ts_ticket_cancel_locked(s, t, TS_ESHUTDOWN);
    }
    pthread_cond_broadcast(&s->work);
    pthread_mutex_unlock(&s->lock);
    join_and_destroy(s);
}
