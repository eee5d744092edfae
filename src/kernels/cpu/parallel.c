#include "kernels/cpu/parallel.h"

#ifdef TS_HAVE_ONEDNN
#include <omp.h>
#endif

int ts_parallel_parts(int threads, size_t n, size_t grain) {
#ifdef TS_HAVE_ONEDNN
    size_t most = grain ? (n + grain - 1) / grain : n;
    return most < (size_t)threads ? (most ? (int)most : 1) : threads;
#else
    (void)threads, (void)n, (void)grain;
    return 1;
#endif
}

void ts_parallel_for(int threads, size_t n, size_t grain,
                     void (*fn)(void *arg, int part, size_t begin, size_t end), void *arg) {
    int parts = ts_parallel_parts(threads, n, grain);
    if (n == 0) return;
    if (parts == 1) {
        fn(arg, 0, 0, n);
        return;
    }
#ifdef TS_HAVE_ONEDNN
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int i = 0; i < parts; i++)
        fn(arg, i, n * (size_t)i / (size_t)parts, n * ((size_t)i + 1) / (size_t)parts);
#endif
}

int ts_parallel_set(int threads) {
#ifdef TS_HAVE_ONEDNN
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    return before;
#else
    return threads;
#endif
}
