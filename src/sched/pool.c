/* The engine pool: one thread a group takes batches, runs them and tells what became of each picture.
 *
 * Pictures end when their run has returned, so that their events carry the figures of the whole run, which
 * nobody writes any more. Cancelled ones have ended long before: they no longer have a ticket here. */
#include <math.h>
#include <stdlib.h>
#include "base/clock.h"
#include "sched/sched_internal.h"

/* Weight of the newest value in smoothed figures: follows a change of load within a few batches. */
#define SMOOTHING 0.3

static void smooth(double *value, double newest) {
    if (!isfinite(newest) || newest < 0) return;
    *value = *value > 0 ? (1 - SMOOTHING) * *value + SMOOTHING * newest : newest;
}

static double pixels(const ts_worker *w) {
    return (double)w->job.shape.width * w->job.shape.height * w->count;
}

/* The first evaluation of a job also pays for compiling and for the text, so the pace is taken after it. */
static double eta(const ts_worker *w, int step, int total, uint64_t now) {
    double pace =
        step > 1 ? ts_seconds(now - w->first_step_ns) / (step - 1) : ts_seconds(now - w->started_ns);
    return pace * (total - step) + w->sched->decode_pixel_s * pixels(w);
}

static void on_step(void *arg, int step, int total) {
    ts_worker *w = arg;
    ts_sched *s = w->sched;
    uint64_t now = ts_now_ns();
    pthread_mutex_lock(&s->lock);
    if (step == 1) w->first_step_ns = now;
    ts_event event = {.kind = TS_EVENT_STEP, .step = step, .total = total, .eta_s = eta(w, step, total, now)};
    for (int i = 0; i < w->count; i++) {
        ts_ticket *t = w->seats[i].ticket;
        if (!t) continue; /* cancelled */
        bool told = false;
        for (int k = 0; k < i; k++) told |= w->seats[k].ticket == t;
        if (!told) ts_emit_locked(s, t, event);
    }
    pthread_mutex_unlock(&s->lock);
}

static void end_seat(ts_worker *w, int i, const ts_job_stats *stats) {
    ts_seat *seat = &w->seats[i];
    ts_ticket *t = seat->ticket;
    ts_error error = w->pictures[i].error;
    seat->ticket = NULL;
    ts_ticket_end_picture_locked(w->sched, t,
                                 (ts_event){.index = seat->index,
                                            .error = &error,
                                            .rgb = seat->rgb ? &seat->rgb : NULL,
                                            .stats = stats,
                                            .batch = w->count});
    free(seat->rgb);
    seat->rgb = NULL;
}

static void on_picture(void *arg, ts_picture *picture) {
    ts_worker *w = arg;
    ts_seat *seat = picture->arg;
    pthread_mutex_lock(&w->sched->lock);
    if (!seat->done) {
        seat->done = true;
        if (picture->error.code == TS_OK) {
            seat->rgb = picture->rgb;
            picture->rgb = NULL;
        }
    }
    pthread_mutex_unlock(&w->sched->lock);
}

static void start_locked(ts_worker *w) {
    ts_sched *s = w->sched;
    for (int i = 0; i < w->count; i++) {
        ts_ticket *t = w->seats[i].ticket;
        if (t->started) continue;
        t->started = true;
        ts_emit_locked(s, t, (ts_event){.kind = TS_EVENT_STARTED, .total = t->shape.steps, .eta_s = -1});
    }
    ts_queue_tell_positions_locked(s);
    w->job.on_step = on_step;
    w->job.on_picture = on_picture;
    w->started_ns = w->first_step_ns = ts_now_ns();
}

static void finish_locked(ts_worker *w, ts_code rc, const ts_error *run_error) {
    ts_sched *s = w->sched;
    const ts_job_stats *stats = &w->job.stats;
    double seconds = ts_seconds(ts_now_ns() - w->started_ns);
    int ranks = stats->ranks > 0 && stats->ranks <= TS_MAX_RANKS ? stats->ranks : 0;
    s->stats.batches += stats->evaluations > 0; /* else it never ran */
    s->stats.evaluations += (uint64_t)(stats->evaluations > 0 ? stats->evaluations : 0);
    s->stats.synchronous += (uint64_t)(stats->synchronous > 0 ? stats->synchronous : 0);
    s->stats.busy_s += seconds * ranks;
    for (int r = 0; r < ranks; r++) s->stats.wait_s += stats->wait_s[r];
    if (!rc) {
        smooth(&s->picture_s, seconds / w->count);
        smooth(&s->decode_pixel_s, stats->decode_s / pixels(w));
    }
    for (int i = 0; i < w->count; i++) {
        if (!w->seats[i].ticket) continue;
        /* A picture that did not come back, or came back good from a run that has no pixels for it, has
         * failed. */
        ts_error *error = &w->pictures[i].error;
        if (!w->seats[i].done && rc)
            *error = *run_error;
        else if (!w->seats[i].done || (error->code == TS_OK && !w->seats[i].rgb))
            ts_fail(error, TS_EINTERNAL, "the engine returned without the picture");
        end_seat(w, i, stats);
    }
    for (int i = 0; i < w->count; i++) {
        free(w->seats[i].rgb);
        ts_ticket_release(w->seats[i].held);
    }
    w->count = 0;
}

static void wait_until(ts_sched *s, uint64_t until) {
    if (until == UINT64_MAX) {
        pthread_cond_wait(&s->work, &s->lock);
        return;
    }
    struct timespec t = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    pthread_cond_timedwait(&s->work, &s->lock, &t);
}

void *ts_worker_main(void *worker) {
    ts_worker *w = worker;
    ts_sched *s = w->sched;
    pthread_mutex_lock(&s->lock);
    while (!s->stopping) {
        uint64_t until;
        if (!ts_batch_take_locked(s, w, ts_now_ns(), &until)) {
            wait_until(s, until);
            continue;
        }
        ts_model *model = s->models[w->seats[0].ticket->model];
        ts_variant *variant = NULL;
        ts_error error = {0};
        ts_code rc = TS_OK;
        start_locked(w);
        if (w->job.shape.lora_count) rc = ts_variant_take_locked(s, model, &w->job.shape, &variant, &error);
        if (variant) model = variant->model;
        if (!rc) {
            pthread_mutex_unlock(&s->lock);
            rc = ts_group_run(w->group, model, &w->job, &error);
            pthread_mutex_lock(&s->lock);
        }
        if (rc && !error.code) ts_fail(&error, rc, "%s", ts_code_sentence(rc));
        finish_locked(w, rc, &error);
        if (variant) ts_variant_give_locked(s, variant);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}
