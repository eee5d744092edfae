/* The CUDA backend: devices and memory, and the table of ops that kernels fill in. The table is empty, so a
 * program cannot be compiled for a GPU: prepare says which op is missing. Not yet run on a GPU. */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include "base/alloc.h"
#include "kernels/backend.h"

typedef struct cuda_device {
    ts_device base;
    int ordinal; /* CUDA's number of the GPU */
} cuda_device;

typedef ts_code (*prepare_fn)(ts_device *device, ts_store *store, const ts_op *op, ts_kernel **ret,
                              ts_error *e);

/* One row a kind; NULL: there is no kernel. */
static const prepare_fn table[TS_OP_COUNT] = {NULL};

static int select_device(const ts_device *device) {
    return cudaSetDevice(((const cuda_device *)device)->ordinal) == cudaSuccess;
}

static bool either(ts_dtype dtype) {
    return dtype == TS_F32 || dtype == TS_BF16;
}
static bool prefers(ts_dtype dtype) {
    return dtype == TS_BF16;
}

static ts_code cuda_open(int index, int threads, ts_device **ret, ts_error *e) {
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) return ts_fail(e, TS_EDEVICE, "CUDA: %s", cudaGetErrorString(status));
    if (index >= count) return ts_fail(e, TS_EINVAL, "CUDA: there are %d GPUs, no number %d", count, index);
    cuda_device *d = ts_new0(cuda_device);
    if (!d) return ts_fail(e, TS_ENOMEM, "opening GPU %d", index);
    d->base = (ts_device){.backend = &ts_backend_cuda, .index = index, .threads = threads};
    d->ordinal = index;
    *ret = &d->base;
    return TS_OK;
}

static void cuda_close(ts_device *device) {
    free(device);
}
static void cuda_thread_begin(const ts_device *device) {
    (void)select_device(device);
}

static void *cuda_alloc(ts_device *device, size_t bytes) {
    void *memory = NULL;
    return select_device(device) && cudaMalloc(&memory, bytes ? bytes : 1) == cudaSuccess ? memory : NULL;
}

static void cuda_release(ts_device *device, void *memory) {
    if (select_device(device)) cudaFree(memory);
}

static ts_code cuda_upload(ts_device *device, void *to, const void *from, size_t bytes) {
    return select_device(device) && cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice) == cudaSuccess
               ? TS_OK
               : TS_EDEVICE;
}

static ts_code cuda_download(ts_device *device, void *to, const void *from, size_t bytes) {
    return select_device(device) && cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost) == cudaSuccess
               ? TS_OK
               : TS_EDEVICE;
}

static ts_code cuda_prepare(ts_device *device, ts_store *store, const ts_op *op, ts_kernel **ret,
                            ts_error *e) {
    ts_code rc = ts_op_check(op, e);
    if (rc) return rc;
    if (!table[op->kind])
        return ts_fail(e, TS_EUNSUPPORTED, "CUDA: there is no kernel for %s", ts_op_kind_name(op->kind));
    return table[op->kind](device, store, op, ret, e);
}

const ts_backend ts_backend_cuda = {
    .name = "cuda",
    .prefers = prefers,
    .supports = either,
    .open = cuda_open,
    .close = cuda_close,
    .thread_begin = cuda_thread_begin,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .upload = cuda_upload,
    .download = cuda_download,
    .prepare = cuda_prepare,
};
