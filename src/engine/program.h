/* A program: one rank's share of a model as a flat list of ops over tensors with fixed places in its device's arena.
 *
 * Compiling places every tensor, reserves the inbox, and prepares every kernel; running allocates nothing.
 * A program belongs to the thread of its rank. What it exchanges goes through a ts_transport; what it
 * receives lies in its inbox (engine/transport.h). */
#ifndef TS_ENGINE_PROGRAM_H
#define TS_ENGINE_PROGRAM_H

#include "base/buffer.h"
#include "engine/arena.h"
#include "engine/builder.h"
#include "engine/transport.h"
#include "kernels/backend.h"

typedef struct ts_program ts_program;

/* Takes the builder over, also on failure. Makes the arena large enough, which ends what other programs hold there. Arena
 * and store must outlive the program. */
ts_code ts_program_compile(ts_builder *b, ts_arena *arena, ts_store *store, ts_program **ret, ts_error *e);
void ts_program_free(ts_program *p); /* NULL is fine */

/* The memory of an input or output, dense, in the arena: good until another program of the device is compiled or
 * runs, or the arena shrinks (ts_plan_get). ret_view may be NULL. NULL: no such name. */
void *ts_program_tensor(const ts_program *p, const char *name, ts_view *ret_view);

/* For ts_transport attach. */
char *ts_program_inbox(const ts_program *p);
const ts_exchange *ts_program_exchanges(const ts_program *p, int *ret_count);

/* One evaluation. number counts from 1 within a job. fresh: everything from peers is of this evaluation
 * (synchronous). next_displaced: another, asynchronous evaluation follows and wants this one's results. */
typedef struct ts_evaluation {
    unsigned number;
    bool fresh, next_displaced;
} ts_evaluation;

/* The ops that run once a job: text keys and values and the like. */
ts_code ts_program_run_once(ts_program *p, ts_error *e);

/* All others. transport NULL: no peers. TS_ECANCELLED when the transport was aborted, TS_EDEVICE,
 * TS_ENOMEM. */
ts_code ts_program_run(ts_program *p, ts_transport *transport, int rank, ts_evaluation evaluation, ts_error *e);

/* Goes on where `from` stopped, with other images: image k of p is image[k] of from, or TS_NO_IMAGE for one that was not
 * there; then the next evaluation must be fresh, unless nothing is exchanged. Both were built from the same model for the
 * same rows and patch; what peers have sent is taken over. Neither is running. */
#define TS_NO_IMAGE (-1)
void ts_program_adopt(ts_program *p, const ts_program *from, const int *image);

/* Figures. Waiting and sending add up until they are reset. */
typedef struct ts_program_stats {
    size_t arena_bytes, inbox_bytes;
    size_t kept_bytes; /* about what it holds beside the arena as long as it is there: inbox, kernels */
    double flops_once, flops_fresh, flops_displaced; /* of one run */
    uint64_t wait_ns, sent_bytes;
} ts_program_stats;
void ts_program_get_stats(const ts_program *p, ts_program_stats *ret);
void ts_program_reset_stats(ts_program *p);

/* Appends one line an op, slowest first: milliseconds since the reset, share, kind, kernel, GFLOP/s, name. */
ts_code ts_program_profile(const ts_program *p, ts_buffer *out);

#endif
