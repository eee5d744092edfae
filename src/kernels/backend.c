#include "kernels/backend.h"

#include <string.h>

static const ts_backend *const backends[] = {
    &ts_backend_cpu,
    &ts_backend_ref,
#ifdef TS_HAVE_CUDA
    &ts_backend_cuda,
#endif
};

const ts_backend *ts_backend_find(const char *name) {
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++)
        if (strcmp(backends[i]->name, name) == 0) return backends[i];
    return NULL;
}
