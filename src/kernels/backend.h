/* Backends: the kinds of device there are, and how to use one.
 *
 * A backend is a table of functions. "ref" is the plain-C reference of every op, always built; "cpu" is the
 * fast one (oneDNN, our own vectorised kernels) and falls back to the reference op by op. A device is one
 * rank's share of the machine: a number of threads, or one GPU. */
#ifndef TS_KERNELS_BACKEND_H
#define TS_KERNELS_BACKEND_H

#include "kernels/op.h"
#include "kernels/store.h"

typedef struct ts_device ts_device;
typedef struct ts_backend ts_backend;

/* An op that is ready to run: its first members, followed by whatever the backend keeps. */
typedef struct ts_kernel ts_kernel;
struct ts_kernel {
    /* The thread that called thread_begin of the device. TS_OK, TS_EDEVICE; TS_ENOMEM for the host's. Never allocates
     * device memory. */
    ts_code (*run)(const ts_kernel *kernel, const ts_args *args);
    void (*free)(ts_kernel *kernel);
    size_t scratch; /* bytes that args->scratch must have */
    const char *name; /* of what computes it, for profiles and tests; "ref" is the plain-C reference */
};

struct ts_device {
    const ts_backend *backend;
    int index, threads;
};

struct ts_backend {
    const char *name;
    /* True when `dtype` runs faster than float32 on this machine (bf16: AMX or AVX512-BF16; GPUs). */
    bool (*prefers)(ts_dtype dtype);
    bool (*supports)(ts_dtype dtype); /* can it compute in that dtype at all */

    /* index: which device of its kind; threads: of the CPU, >= 1. */
    ts_code (*open)(int index, int threads, ts_device **ret, ts_error *e);
    void (*close)(ts_device *device);               /* NULL is fine */
    void (*thread_begin)(const ts_device *device);  /* once on the thread that will run kernels there */

    /* Device memory, TS_ALIGN aligned. */
    void *(*alloc)(ts_device *device, size_t bytes); /* NULL when there is no more */
    void (*release)(ts_device *device, void *memory);
    ts_code (*upload)(ts_device *device, void *to, const void *from, size_t bytes);
    ts_code (*download)(ts_device *device, void *to, const void *from, size_t bytes);

    /* Checks the op and makes it ready. Reordered parameters are kept in `store`, which is shared by all
     * devices with the same memory and outlives the kernel. Any thread; TS_EINVAL, TS_ENOMEM, TS_EDEVICE. */
    ts_code (*prepare)(ts_device *device, ts_store *store, const ts_op *op, ts_kernel **ret, ts_error *e);
};

extern const ts_backend ts_backend_ref;
extern const ts_backend ts_backend_cpu;
#ifdef TS_HAVE_CUDA
extern const ts_backend ts_backend_cuda;
#endif

/* "cpu", "ref", "cuda"; NULL for a name that is not built in. */
const ts_backend *ts_backend_find(const char *name);

static inline void ts_kernel_free(ts_kernel *kernel) {
    if (kernel) kernel->free(kernel);
}

#endif
