/* One generation, from its request to the last byte of its answer.
 *
 * It is shared between the loop, which owns it, and the scheduler's threads, which write `shared` under the
 * server's `events` lock and post it to the mailbox (once, until the loop has taken it: there is one slot for
 * the newest step, never a queue). What keeps it alive is counted on the loop: the exchange until its end,
 * the scheduler from submitting until its END has been taken, and every piece of work on a thread of the
 * loop's pool.
 *
 * Private to generation.c, which answers, and images.c, which takes requests. Loop thread. */
#ifndef TS_SERVER_GENERATION_H
#define TS_SERVER_GENERATION_H

#include "base/buffer.h"
#include "base/source.h"
#include "server/answer.h"
#include "server/server_internal.h"

#define TS_GENERATION_PICTURES 10

typedef struct ts_generation_picture {
    ts_generation *g;
    uv_work_t work;
    unsigned char *rgb;
    ts_error error;
    ts_answer_picture answer; /* base64 is NULL until it is encoded */
    char *png;                /* for Accept: image/png, instead of base64 */
    size_t png_size;
    bool ready, told;
} ts_generation_picture;

/* What the scheduler's threads write. */
typedef struct ts_generation_news {
    bool posted;
    int position; /* -1: not yet known, or already started */
    int step, total;
    unsigned steps_heard; /* how many times; a request's next batch begins with step 1 again */
    double eta_s;
    bool ended;
    ts_error error;
    struct {
        bool there;
        unsigned char *rgb;
        ts_error error;
        ts_job_stats stats;
    } pictures[TS_GENERATION_PICTURES];
} ts_generation_news;

struct ts_generation {
    ts_message message; /* first: what the mailbox holds */
    ts_server *server;
    ts_generation *next, *previous;
    int references;
    ts_generation_news shared;

    /* The loop's. */
    ts_images_request r;
    struct ts_edit *edit; /* that waits to be decoded, or NULL (images.c) */
    ts_source source;     /* of an edit, until the scheduler has a copy */
    ts_answer answer;
    ts_exchange *x;                        /* NULL once the answer has left or the client has */
    bool submitted; /* the scheduler has heard of it */
    bool png, streams, ended, done, stale; /* stale: news that the stream has not been woken for */
    int position, told_position, step, total;
    unsigned steps, told_steps; /* that were heard of, and those of them that the stream was told or spared */
    double eta_s;
    ts_error error;
    ts_generation_picture pictures[TS_GENERATION_PICTURES];
    ts_buffer out; /* of the stream */
    size_t out_at;
    uint64_t spoke_ns; /* last time that the stream said something */
};

/* For an exchange that has not been answered; its end releases the generation. NULL when memory ran out. */
ts_generation *ts_generation_new(ts_server *s, ts_exchange *x);
void ts_generation_release(ts_generation *g);

/* Hands the request to the scheduler; then the answer follows, at once where it is a stream. Otherwise
 * nothing has happened. TS_EFULL and the like as ts_sched_submit says. */
ts_code ts_generation_submit(ts_generation *g, ts_error *e);

/* images.c: of a generation whose client has left before its edit was decoded. */
void ts_images_drop_edit(ts_generation *g);

#endif
