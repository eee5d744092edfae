/* A compiled program's inside. Private to program*.c. */
#ifndef TS_ENGINE_PROGRAM_INTERNAL_H
#define TS_ENGINE_PROGRAM_INTERNAL_H

#include "engine/builder_internal.h"
#include "engine/program.h"

struct ts_program {
    ts_builder *b; /* values, items and exchanges, now with places */
    ts_device *device;
    char *arena, *inbox, *scratch;
    size_t arena_bytes, inbox_bytes, scratch_bytes;
    double flops_once, flops_fresh, flops_displaced;
    uint64_t wait_ns, sent_bytes;
    uint64_t *item_ns; /* by item, since the reset */
    uint64_t *item_runs;
};

/* Where a tensor's own first row lies, and the halo row above it. */
static inline char *program_address(const ts_program *p, int id, int start) {
    const value *v = &p->b->values[id];
    size_t row = v->padded && start == VIEW_ROWS
                     ? (size_t)v->view.w * (size_t)v->view.c * ts_dtype_size(v->view.dtype)
                     : 0;
    return p->arena + v->offset + row;
}

#endif
