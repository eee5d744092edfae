/* The memory that the programs of one device share.
 *
 * A device runs one program at a time, and what a program leaves in its tensors is read before the next one runs; so the
 * tensors of all lie in the same memory, as large as the largest program's. What outlives a program's run (what peers have
 * sent) is in its inbox.
 *
 * Not thread-safe: the device's own thread, or another while that one is idle. */
#ifndef TS_ENGINE_ARENA_H
#define TS_ENGINE_ARENA_H

#include "kernels/backend.h"

typedef struct ts_arena ts_arena;

/* The device must outlive it. */
ts_code ts_arena_new(ts_device *device, ts_arena **ret, ts_error *e);
void ts_arena_free(ts_arena *a); /* NULL is fine */

ts_device *ts_arena_device(const ts_arena *a);
char *ts_arena_memory(const ts_arena *a); /* TS_ALIGN aligned; moves when the size changes */
size_t ts_arena_bytes(const ts_arena *a);

/* At least `bytes`. TS_ENOMEM: as before. Else what was in it is lost, if it had to grow. */
ts_code ts_arena_grow(ts_arena *a, size_t bytes, ts_error *e);

/* At most `bytes`, if there is memory to do it; what was in it is lost, if it was larger. */
void ts_arena_shrink(ts_arena *a, size_t bytes);

#endif
