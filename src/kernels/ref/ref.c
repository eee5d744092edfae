#include "kernels/ref/ref.h"

#include "base/alloc.h"
#include "kernels/param.h"

static const ts_ref_impl *const impls[TS_OP_COUNT] = {
    [TS_OP_CONV2D] = &ts_ref_product,
    [TS_OP_LINEAR] = &ts_ref_product,
    [TS_OP_GROUP_STATS] = &ts_ref_group_stats,
    [TS_OP_GROUP_NORM] = &ts_ref_group_norm,
    [TS_OP_LAYER_NORM] = &ts_ref_layer_norm,
    [TS_OP_ATTENTION] = &ts_ref_attention,
    [TS_OP_ACTIVATION] = &ts_ref_activation,
    [TS_OP_GEGLU] = &ts_ref_geglu,
    [TS_OP_ADD] = &ts_ref_add,
    [TS_OP_CONCAT] = &ts_ref_concat,
    [TS_OP_UPSAMPLE] = &ts_ref_upsample,
    [TS_OP_TIME_EMBED] = &ts_ref_time_embed,
    [TS_OP_EMBED] = &ts_ref_embed,
    [TS_OP_COPY] = &ts_ref_copy,
};

void ts_ref_load(const void *base, ts_dtype dtype, size_t at, int n, float *ret) {
    if (dtype == TS_F32) {
        memcpy(ret, (const float *)base + at, (size_t)n * sizeof *ret);
    } else {
        const uint16_t *from = (const uint16_t *)base + at;
        for (int i = 0; i < n; i++) ret[i] = ts_bf16_to_f32(from[i]);
    }
}

void ts_ref_save(void *base, ts_dtype dtype, size_t at, int n, const float *from) {
    if (dtype == TS_F32) {
        memcpy((float *)base + at, from, (size_t)n * sizeof *from);
    } else {
        uint16_t *to = (uint16_t *)base + at;
        for (int i = 0; i < n; i++) to[i] = ts_f32_to_bf16(from[i]);
    }
}

static ts_code run(const ts_kernel *kernel, const ts_args *args) {
    const ts_ref_kernel *k = (const ts_ref_kernel *)kernel;
    if (k->op.kind == TS_OP_ATTENTION) {
        int64_t keys = 0;
        for (int i = 0; i < args->segment_count; i++) keys += args->segments[i].tokens;
        if (keys > k->op.attention.max_tokens) return TS_EDEVICE; /* the scratch would not hold them */
    }
    impls[k->op.kind]->run(k, args);
    return TS_OK;
}

static void free_kernel(ts_kernel *kernel) {
    free(kernel);
}

static bool computes(const ts_view *v) {
    return v->c == 0 || v->dtype == TS_F32 || v->dtype == TS_BF16;
}

ts_code ts_ref_prepare(ts_device *device, ts_store *store, const ts_op *op, ts_kernel **ret, ts_error *e) {
    (void)device;
    ts_code rc = ts_op_check(op, e);
    if (rc) return rc;
    if (!computes(&op->in[0]) || !computes(&op->in[1]) ||
        (op->kind != TS_OP_GROUP_STATS && !computes(&op->out)))
        return ts_fail(e, TS_EINVAL, "%s: only float32 and bfloat16 run on the CPU",
                       op->name ? op->name : "");
    const ts_ref_impl *impl = impls[op->kind];
    ts_ref_kernel *k = ts_new0(ts_ref_kernel);
    if (!k) return ts_fail(e, TS_ENOMEM, "a kernel");
    k->op = *op;
    k->base.name = ts_backend_ref.name;
    k->base.run = run;
    k->base.free = free_kernel;
    size_t floats = impl->scratch ? impl->scratch(op) : 0;
    if (!ts_mul_size(floats, sizeof(float), &k->base.scratch)) {
        rc = ts_fail(e, TS_EINVAL, "%s: too large for its scratch memory", op->name ? op->name : "");
        goto fail;
    }
    rc = impl == &ts_ref_product ? ts_ref_pack(store, op, &k->weight, e)
                                 : ts_param_f32(store, op->weight, &k->weight, e);
    if (rc) goto fail;
    rc = ts_param_f32(store, op->bias, &k->bias, e);
    if (rc) goto fail;
    *ret = &k->base;
    return TS_OK;
fail:
    free(k);
    return rc;
}

static bool prefers(ts_dtype dtype) {
    (void)dtype;
    return false;
}
static bool supports(ts_dtype dtype) {
    return dtype == TS_F32 || dtype == TS_BF16;
}

static ts_code open_device(int index, int threads, ts_device **ret, ts_error *e) {
    ts_device *d = ts_new0(ts_device);
    if (!d) return ts_fail(e, TS_ENOMEM, "a device");
    *d = (ts_device){&ts_backend_ref, index, threads};
    *ret = d;
    return TS_OK;
}
static void close_device(ts_device *device) {
    free(device);
}
static void thread_begin(const ts_device *device) {
    (void)device;
}

static void *alloc_memory(ts_device *device, size_t bytes) {
    (void)device;
    return ts_alloc_aligned(bytes);
}
static void release_memory(ts_device *device, void *memory) {
    (void)device;
    free(memory);
}
static ts_code copy_memory(ts_device *device, void *to, const void *from, size_t bytes) {
    (void)device;
    if (bytes) memcpy(to, from, bytes);
    return TS_OK;
}

const ts_backend ts_backend_ref = {
    .name = "ref",
    .prefers = prefers,
    .supports = supports,
    .open = open_device,
    .close = close_device,
    .thread_begin = thread_begin,
    .alloc = alloc_memory,
    .release = release_memory,
    .upload = copy_memory,
    .download = copy_memory,
    .prepare = ts_ref_prepare,
};
