/* What the files of the scheduler share; nobody outside src/sched includes it.
 *
 * One mutex, `lock`, guards everything here but a running job, which belongs to its worker's group between
 * ts_group_run's call and return (its pictures' `cancelled` flags are atomic and may be set at any time).
 * Events are emitted with the lock held: that is what orders them for a request whose pictures run on several
 * groups, and why on_event must neither block nor call back. Functions named *_locked ask for the lock. */
#ifndef TS_SCHED_SCHED_INTERNAL_H
#define TS_SCHED_SCHED_INTERNAL_H

#include <pthread.h>
#include "sched/sched.h"

#define TS_MAX_GROUPS 64 /* bits of ts_ticket.able */

/* An accepted request. Its pictures are taken in order, so one index splits waiting from taken. */
typedef struct ts_ticket {
    struct ts_ticket *older, *younger;
    uint64_t token, arrived_ns;
    ts_shape shape;
    ts_picture_params params; /* what it points to is the ticket's */
    uint64_t able;            /* bit g: group g can run this shape */
    int model, n;
    int next;     /* pictures [next, n) wait */
    int left;     /* pictures whose end has not been told; at 0 the request has ended */
    int holders;  /* the queue, and every picture of a run that has not returned: the engine reads the strings
                   */
    int position; /* the last that was told; -1 none */
    bool started;
    ts_code cancel; /* TS_OK, or what its cancelled pictures end with */
    ts_error error; /* the first failure */
} ts_ticket;

typedef struct ts_seat {
    ts_ticket *ticket; /* NULL once this picture's end was told */
    ts_ticket *held;   /* the same, to the end of the run */
    int index;         /* in its request */
    bool done;         /* the engine gave it back */
    unsigned char *rgb;
} ts_seat;

/* A group of the pool, its thread, and the batch that it runs. */
typedef struct ts_worker {
    struct ts_sched *sched;
    ts_group *group;
    pthread_t thread;
    int index, count; /* count: pictures of the running batch, 0 when free */
    ts_seat seats[TS_MAX_BATCH];
    ts_picture pictures[TS_MAX_BATCH]; /* pictures[i].arg is &seats[i] */
    ts_job job;
    uint64_t started_ns, first_step_ns;
} ts_worker;

/* A model with LoRA files, most recently used first. */
typedef struct ts_variant {
    struct ts_variant *next;
    const ts_model *base;
    ts_shape shape;  /* only its loras count */
    ts_model *model; /* NULL while it is being made */
    int users;       /* jobs that run on it or wait for it to be made; 0: it may go */
    size_t bytes;    /* when it was last used */
} ts_variant;

struct ts_sched {
    ts_sched_config config;
    pthread_mutex_t lock;
    pthread_cond_t work; /* something to take, or a reason to stop waiting */
    ts_model **models;
    int model_count, group_count, threads; /* threads: workers that were started */
    ts_worker *workers;
    ts_ticket *oldest, *youngest; /* every request that has not ended, in order of arrival */
    ts_variant *variants;
    pthread_cond_t made; /* a variant, or it failed */
    bool draining, stopping;
    double picture_s;      /* smoothed seconds a picture of a batch; 0 unknown */
    double decode_pixel_s; /* smoothed seconds to decode one pixel; 0 unknown */
    ts_sched_stats stats;  /* running, groups and groups_busy are filled when asked for */
};

/* queue.c */
ts_code ts_ticket_new(const ts_request *request, uint64_t able, ts_ticket **ret);
void ts_ticket_release(ts_ticket *t); /* one holder less; the last one frees it. NULL is fine */
void ts_queue_push_locked(ts_sched *s, ts_ticket *t);
void ts_queue_tell_positions_locked(
    ts_sched *s); /* QUEUED to those whose place changed and that have not started */
void ts_emit_locked(ts_sched *s, const ts_ticket *t, ts_event event); /* fills in the token */

/* Tells the end of one picture, and with the last one the request's: t may be gone afterwards. */
void ts_ticket_end_picture_locked(ts_sched *s, ts_ticket *t, ts_event event);

/* Ends all of a request now: what waits, and what runs, which the engine is told and later gives back
 * unheard. t may be gone afterwards. */
void ts_ticket_cancel_locked(ts_sched *s, ts_ticket *t, ts_code why);

/* batcher.c: fills the worker's seats, pictures and job with the batch that it should run now and returns
 * true; else false, and *ret_until is when to ask again (ts_now_ns; UINT64_MAX: when `work` is signalled). */
bool ts_batch_take_locked(ts_sched *s, ts_worker *w, uint64_t now, uint64_t *ret_until);

/* variants.c. take: the variant that a job of the shape runs on, made where there is none; give: the job is
 * over, and what is beyond the budget goes. Both let go of the lock meanwhile. The errors carry "loras" as
 * param, but for those that are not the request's fault. */
ts_code ts_variant_take_locked(ts_sched *s, ts_model *base, const ts_shape *shape, ts_variant **ret,
                               ts_error *e);
void ts_variant_give_locked(ts_sched *s, ts_variant *v);
void ts_variants_free(ts_sched *s); /* no worker runs any more */

/* pool.c: the thread of a worker. */
void *ts_worker_main(void *worker);

#endif
