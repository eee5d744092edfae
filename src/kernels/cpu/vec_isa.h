/* Names of the instance that is being compiled; the build defines TS_ISA as plain, avx2, avx512, bf16 or amx.
 */
#ifndef TS_KERNELS_CPU_VEC_ISA_H
#define TS_KERNELS_CPU_VEC_ISA_H

#include "kernels/cpu/vec.h"

#ifndef TS_ISA
#define TS_ISA plain
#endif

#define TS_ISA_PASTE(name, isa)  name##_##isa
#define TS_ISA_EXPAND(name, isa) TS_ISA_PASTE(name, isa)
#define TS_ISA_NAME(name)        TS_ISA_EXPAND(name, TS_ISA)
#define TS_ISA_QUOTE(isa)        #isa
#define TS_ISA_QUOTED(isa)       TS_ISA_QUOTE(isa)
#define TS_ISA_STRING            TS_ISA_QUOTED(TS_ISA)

extern const int TS_ISA_NAME(ts_attend_block);
void TS_ISA_NAME(ts_attend)(const ts_attend *a);
size_t TS_ISA_NAME(ts_attend_scratch)(int d, int queries, int keys, ts_dtype dtype);

void TS_ISA_NAME(ts_convert)(ts_dtype from, const void *src, ts_dtype to, void *dst, size_t n);

void TS_ISA_NAME(ts_winograd_spread)(const ts_tile *t, int c, float *v, size_t plane);
void TS_ISA_NAME(ts_winograd_gather)(const float *m, size_t plane, int c, const float *bias,
                                     const ts_tile *t);

/* bf16 with AMX; see ts_vec. */
void ts_attend_tiles(const ts_attend *a);
size_t ts_attend_tiles_scratch(int d, int queries, int keys);

#endif
