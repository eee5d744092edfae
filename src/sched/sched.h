/* The scheduler: a bounded queue of requests, the batcher, and the engine pool.
 *
 * A request asks for 1..10 pictures. The batcher takes waiting pictures of one model and equal ts_shape, of
 * however many requests, oldest first, up to max_batch of them or until the oldest has waited max_wait_ms; a
 * free group of the pool takes the oldest batch. A batch is bound to no request: one request's failure or
 * cancellation touches only its own pictures. Waiting for company never delays anybody else: a lone picture
 * starts at once when one of another shape waits behind it, or when the scheduler is draining.
 *
 * A request may name LoRA files (shape.loras): it runs on a variant of its model that has them, made by the group's
 * thread before the first job that asks for it and kept, least recently used first out, within lora_bytes. Making one
 * delays its own batch alone, and what goes wrong fails only that.
 *
 * Every accepted request ends with exactly one TS_EVENT_END, after exactly one TS_EVENT_PICTURE for each of
 * its pictures, also those that failed, were cancelled or never ran. Events come through `on_event` on threads
 * of the groups, and on the caller's within ts_sched_submit, _cancel and _free. The scheduler's lock is held,
 * which orders them: on_event must not block and must not call into the scheduler (post to a mailbox). */
#ifndef TS_SCHED_SCHED_H
#define TS_SCHED_SCHED_H

#include "engine/engine.h"

typedef struct ts_sched ts_sched;
typedef struct ts_event ts_event;

typedef struct ts_sched_config {
    int max_queue;   /* waiting pictures; beyond it submit says TS_EFULL */
    int max_batch;   /* 1..TS_MAX_BATCH */
    int max_wait_ms; /* how long a lone picture waits for company while a group is free; 0: not at all */
    const char *lora_folder; /* NAME.safetensors of shape.loras; NULL: none can be named. Outlives the scheduler */
    size_t lora_bytes;       /* what variants may hold that no job runs on; those in use come on top */
    void (*on_event)(void *arg, const ts_event *event);
    void *arg;
} ts_sched_config;

/* What a client asks for. What params points to is copied by ts_sched_submit. */
typedef struct ts_request {
    int model; /* index into the models of ts_sched_new */
    ts_shape shape;
    ts_picture_params params; /* picture k uses seed + k */
    int n;
    uint64_t token; /* the caller's, unlike any that has not ended; comes back in every event */
} ts_request;

typedef enum ts_event_kind {
    TS_EVENT_QUEUED,  /* position changed: pictures ahead of the first that waits */
    TS_EVENT_STARTED, /* the first picture runs */
    TS_EVENT_STEP,    /* step of total of the pictures that run; eta_s */
    TS_EVENT_PICTURE, /* picture `index` is there, or failed: error */
    TS_EVENT_END      /* all pictures have ended; error is the first failure or TS_OK */
} ts_event_kind;

struct ts_event {
    ts_event_kind kind;
    uint64_t token;
    int position;
    int index; /* of the picture in its request */
    int step, total;
    double eta_s; /* to the end of what runs; < 0 unknown */
    const ts_error *error; /* PICTURE, END: code TS_OK when all went well; valid during the call */
    unsigned char **rgb; /* PICTURE: [height][width][3]; take it by setting it to NULL, then free() it */
    const ts_job_stats *stats; /* PICTURE, END: of the job that made it, complete; NULL if cancelled */
    int batch; /* PICTURE: pictures in its batch */
};

/* Figures since the start, for metrics. */
typedef struct ts_sched_stats {
    uint64_t accepted, refused, completed, failed, cancelled; /* requests */
    uint64_t pictures, batches;                               /* finished pictures; batches run */
    uint64_t evaluations, synchronous;                        /* of the U-Net */
    double busy_s, wait_s; /* device seconds of running jobs; of those, waiting for peers */
    int waiting, running, groups, groups_busy; /* pictures; now */
    int variants; /* kept now */
} ts_sched_stats;

/* Starts one thread a group. Groups and models stay the caller's and must outlive the scheduler. */
ts_code ts_sched_new(const ts_sched_config *config, ts_model *const *models, int model_count,
                     ts_group *const *groups, int group_count, ts_sched **ret, ts_error *e);

/* Any thread. TS_OK: the request will end with TS_EVENT_END. Otherwise no event comes: TS_EINVAL (param names
 * the field), TS_EFULL, TS_ESHUTDOWN, TS_ENOMEM. */
ts_code ts_sched_submit(ts_sched *sched, const ts_request *request, ts_error *e);

/* Any thread. Ends the request before it returns: waiting pictures never run, running ones are no longer heard
 * of, and their devices are free within one evaluation where nobody else shares the batch. A token that is
 * unknown or has ended is ignored. */
void ts_sched_cancel(ts_sched *sched, uint64_t token);

/* Any thread. Seconds until a picture submitted now might start; a guess for retry-after, at least 1. */
int ts_sched_retry_after(ts_sched *sched);
void ts_sched_get_stats(ts_sched *sched, ts_sched_stats *ret);

/* Any thread: refuses what comes from now on (TS_ESHUTDOWN); what is waiting or running goes on. */
void ts_sched_drain(ts_sched *sched);
bool ts_sched_idle(ts_sched *sched); /* nothing waits or runs */

/* Cancels what is left, ends it with its events, joins the threads. NULL is fine. */
void ts_sched_free(ts_sched *sched);

#endif
