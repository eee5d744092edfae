#include "kernels/gemm.h"

#ifdef TS_HAVE_ONEDNN
#include <dnnl.h>

ts_code ts_gemm_add(float *y, size_t m, size_t n, const float *a, size_t k, const float *b) {
    dnnl_dim_t rows = (dnnl_dim_t)m, columns = (dnnl_dim_t)n, depth = (dnnl_dim_t)k;
    dnnl_status_t st = dnnl_sgemm('N', 'N', rows, columns, depth, 1, a, depth, b, columns, 1, y, columns);
    return st == dnnl_success ? TS_OK : TS_ENOMEM; /* its arguments are right */
}
#else

/* Columns at a time: what is summed stays in the first-level cache. */
enum { COLUMNS = 256 };

ts_code ts_gemm_add(float *y, size_t m, size_t n, const float *a, size_t k, const float *b) {
    for (size_t at = 0; at < n; at += COLUMNS) {
        const size_t some = n - at < COLUMNS ? n - at : COLUMNS;
        for (size_t j = 0; j < k; j++)
            for (size_t i = 0; i < m; i++) {
                const float factor = a[i * k + j], *restrict from = b + j * n + at;
                float *restrict to = y + i * n + at;
                for (size_t c = 0; c < some; c++) to[c] += factor * from[c];
            }
    }
    return TS_OK;
}
#endif
