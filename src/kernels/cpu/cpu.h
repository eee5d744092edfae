/* The fast CPU backend: oneDNN for the products, our own vectorised kernels for the rest (cpu/vec.h), the
 * reference for what is left. TS_EUNSUPPORTED from a preparer means "not this one": the next one of the op's
 * kind is asked, the reference last. */
#ifndef TS_KERNELS_CPU_CPU_H
#define TS_KERNELS_CPU_CPU_H

#include "kernels/backend.h"
#include "kernels/cpu/vec.h"

typedef struct ts_cpu_device {
    ts_device base;
    const ts_vec *vec;
} ts_cpu_device;

typedef struct ts_cpu_kernel {
    ts_kernel base;
    ts_op op;
    int threads;
    const ts_vec *vec;
    const float *weight, *bias; /* of the norms; the bias of Winograd's convolutions too */
} ts_cpu_kernel;

/* Norms, elementwise ops, moves and attention. */
ts_code ts_cpu_prepare_rows(const ts_cpu_device *device, ts_store *store, const ts_op *op, ts_kernel **ret,
                            ts_error *e);

/* Copies tokens from one view to another of the same size and dtype. */
void ts_cpu_move(int threads, const ts_view *from, const void *in, const ts_view *to, void *out);

#ifdef TS_HAVE_ONEDNN
/* CONV2D and LINEAR through oneDNN. */
ts_code ts_cpu_prepare_product(const ts_cpu_device *device, ts_store *store, const ts_op *op, ts_kernel **ret,
                               ts_error *e);

/* CONV2D in float32, 3x3 with stride 1, where Winograd's algorithm is faster. */
ts_code ts_cpu_prepare_winograd(const ts_cpu_device *device, ts_store *store, const ts_op *op,
                                ts_kernel **ret, ts_error *e);
#endif

#endif
