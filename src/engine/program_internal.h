/* A compiled program's inside. Private to program*.c. */
#ifndef TS_ENGINE_PROGRAM_INTERNAL_H
#define TS_ENGINE_PROGRAM_INTERNAL_H

#include "engine/builder_internal.h"
#include "engine/program.h"

struct ts_program {
    ts_builder *b; /* values, items and exchanges, now with places */
    ts_arena *arena;   /* of the device */
    char *inbox;
    size_t arena_bytes, inbox_bytes;
    size_t scratch; /* where it lies in the arena: behind the tensors */
    double flops_once, flops_fresh, flops_displaced;
    uint64_t wait_ns, sent_bytes;
    uint64_t *item_ns; /* by item, since the reset */
    uint64_t *item_runs;
};

/* Where a tensor's own first row lies, or the halo row above it, while the arena keeps its size. */
static inline char *program_address(const ts_program *p, int id, int start) {
    const value *v = &p->b->values[id];
    size_t row = v->padded && start == VIEW_ROWS
                     ? (size_t)v->view.w * (size_t)v->view.c * ts_dtype_size(v->view.dtype)
                     : 0;
    return ts_arena_memory(p->arena) + v->offset + row;
}

#endif
