/* Which of the tables this processor can run. */
#include "kernels/cpu/vec.h"

#include <pthread.h>

#ifdef TS_HAVE_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const ts_vec ts_vec_plain;
#ifdef TS_HAVE_X86
extern const ts_vec ts_vec_avx2, ts_vec_avx512, ts_vec_bf16;

/* True when the processor has AMX in bf16 and Linux (5.16 and later) lets this process use its tiles. */
static bool may_use_amx(void) {
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & AMX_BF16) || !(d & AMX_TILE)) return false;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

int ts_vec_all(const ts_vec *ret[TS_VEC_TABLES]) {
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
    if (!__builtin_cpu_supports("avx512bf16")) return n;
    ret[n++] = &ts_vec_bf16;
    if (may_use_amx()) ret[n++] = &ts_vec_amx;
#endif
    return n;
}

static const ts_vec *best;

static void choose(void) {
    const ts_vec *all[TS_VEC_TABLES];
    best = all[ts_vec_all(all) - 1];
}

const ts_vec *ts_vec_best(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, choose);
    return best;
}
