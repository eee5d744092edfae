/* A product on the host, for what is computed once: parameters that are made of others. */
#ifndef TS_KERNELS_GEMM_H
#define TS_KERNELS_GEMM_H

#include <stddef.h>
#include "base/error.h"

/* y[m][n] += a[m][k] b[k][n], dense float32. On the threads that a backend has set for the calling one (while
 * it prepares a kernel: the device's). Any thread. TS_ENOMEM. */
ts_code ts_gemm_add(float *y, size_t m, size_t n, const float *a, size_t k, const float *b);

#endif
