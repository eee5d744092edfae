/* The fast CPU backend. */
#include "kernels/backend.h"

#include "base/alloc.h"
#include "kernels/ref/ref.h"

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
    *d = (ts_device){&ts_backend_cpu, index, threads};
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
    .prepare = ts_ref_prepare,
};
