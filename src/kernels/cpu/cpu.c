/* The fast CPU backend: devices, memory, and which kernel an op gets. */
#include "kernels/cpu/cpu.h"

#include "base/alloc.h"
#include "kernels/cpu/parallel.h"
#include "kernels/ref/ref.h"

static bool prefers(ts_dtype dtype) {
#ifdef TS_HAVE_ONEDNN
    if (dtype == TS_BF16) return ts_vec_best()->fast_bf16; /* oneDNN's bf16 products ask for the same */
#endif
    return dtype == TS_F32;
}

static bool supports(ts_dtype dtype) {
    return dtype == TS_F32 || dtype == TS_BF16;
}

static ts_code open_device(int index, int threads, ts_device **ret, ts_error *e) {
    if (threads < 1) return ts_fail(e, TS_EINVAL, "a CPU device needs a thread at least");
    ts_cpu_device *d = ts_new0(ts_cpu_device);
    if (!d) return ts_fail(e, TS_ENOMEM, "a device");
    d->base = (ts_device){&ts_backend_cpu, index, threads};
    d->vec = ts_vec_best();
    *ret = &d->base;
    return TS_OK;
}
static void close_device(ts_device *device) {
    free(device);
}

static void thread_begin(const ts_device *device) {
    ts_parallel_set(device->threads);
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

static ts_code prepare(ts_device *device, ts_store *store, const ts_op *op, ts_kernel **ret, ts_error *e) {
    const ts_cpu_device *d = (const ts_cpu_device *)device;
    ts_code rc = ts_op_check(op, e);
    if (rc) return rc;
    rc = TS_EUNSUPPORTED;
#ifdef TS_HAVE_ONEDNN
    if (op->kind == TS_OP_CONV2D) rc = ts_cpu_prepare_winograd(d, store, op, ret, e);
    if (rc == TS_EUNSUPPORTED && (op->kind == TS_OP_CONV2D || op->kind == TS_OP_LINEAR))
        rc = ts_cpu_prepare_product(d, store, op, ret, e);
#endif
    if (rc == TS_EUNSUPPORTED) rc = ts_cpu_prepare_rows(d, store, op, ret, e);
    return rc == TS_EUNSUPPORTED ? ts_ref_prepare(device, store, op, ret, e) : rc;
}

const ts_backend ts_backend_cpu = {
    .name = "cpu",
    .prefers = prefers,
    .supports = supports,
    .open = open_device,
    .close = close_device,
    .thread_begin = thread_begin,
    .alloc = alloc_memory,
    .release = release_memory,
    .upload = copy_memory,
    .download = copy_memory,
    .prepare = prepare,
};
