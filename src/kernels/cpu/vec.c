/* Which of the tables this processor can run. */
#include "kernels/cpu/vec.h"

extern const ts_vec ts_vec_plain;
#ifdef TS_HAVE_X86
extern const ts_vec ts_vec_avx2, ts_vec_avx512, ts_vec_bf16;
#endif

int ts_vec_all(const ts_vec *ret[4]) {
    int n = 0;
    ret[n++] = &ts_vec_plain;
#ifdef TS_HAVE_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return n;
    ret[n++] = &ts_vec_avx2;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return n;
    ret[n++] = &ts_vec_avx512;
    if (__builtin_cpu_supports("avx512bf16")) ret[n++] = &ts_vec_bf16;
#endif
    return n;
}

const ts_vec *ts_vec_best(void) {
    const ts_vec *all[4];
    return all[ts_vec_all(all) - 1];
}
