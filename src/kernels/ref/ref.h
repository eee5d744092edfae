/* The plain-C reference: every op in float32 and bfloat16, one thread, no instruction set assumed.
 *
 * Rows of channels are loaded to float32, computed and rounded once on the way out, so bf16 results are those
 * of exact inputs. Sums that grow with the input run in double, or in short float32 chunks added up in
 * double. */
#ifndef TS_KERNELS_REF_H
#define TS_KERNELS_REF_H

#include "kernels/backend.h"

typedef struct ts_ref_kernel {
    ts_kernel base;
    ts_op op;
    const float *weight, *bias; /* from the store; packed for the products */
} ts_ref_kernel;

/* One row of the table: what to run, what parameters to fetch, and how much scratch. */
typedef struct ts_ref_impl {
    void (*run)(const ts_ref_kernel *k, const ts_args *args);
    size_t (*scratch)(const ts_op *op); /* floats; SIZE_MAX: more than there can be */
} ts_ref_impl;

extern const ts_ref_impl ts_ref_product, ts_ref_group_stats, ts_ref_group_norm, ts_ref_layer_norm,
    ts_ref_attention, ts_ref_activation, ts_ref_geglu, ts_ref_add, ts_ref_concat, ts_ref_upsample,
    ts_ref_time_embed, ts_ref_embed, ts_ref_copy;

/* The weight of CONV2D or LINEAR as [tap][cout / block][cin][block], zeros behind the last cout. */
#define TS_REF_BLOCK 8
ts_code ts_ref_pack(ts_store *store, const ts_op *op, const float **ret, ts_error *e);

/* The reference's kernel, for backends that have none of their own. As ts_backend.prepare. */
ts_code ts_ref_prepare(ts_device *device, ts_store *store, const ts_op *op, ts_kernel **ret, ts_error *e);

/* Elements `at`.. of a tensor as float32, and back. */
void ts_ref_load(const void *base, ts_dtype dtype, size_t at, int n, float *ret);
void ts_ref_save(void *base, ts_dtype dtype, size_t at, int n, const float *from);

static inline size_t ts_view_at(const ts_view *v, int image, size_t token) {
    return (size_t)image * v->pitch + token * v->ld;
}

static inline float ts_ref_silu(float x) {
    return x / (1.0f + __builtin_expf(-x));
}

#endif
