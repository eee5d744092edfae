/* Intel AMX: eight tiles of 16 rows by 64 bytes, and their product in bf16 (Intel SDM, volume 2; "Advanced
 * Matrix Extensions", architecture reference 319433).
 *
 * GCC 12 does not know that its own intrinsics read memory, so that it may move stores behind them: these say
 * so. The tile's number is a literal. A thread has the tiles that the last ts_amx_begin on it configured. */
#ifndef TS_KERNELS_CPU_AMX_H
#define TS_KERNELS_CPU_AMX_H

#include <stdint.h>

/* Sixteen rows of sixteen words: float32, or pairs of bf16. */
enum { TS_TILE_ROWS = 16, TS_TILE_WORDS = 16 };

/* The operand of LDTILECFG. */
typedef struct ts_amx_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16]; /* by tile; there are eight */
    uint8_t rows[16];
} ts_amx_config;

static inline void ts_amx_load_config(const ts_amx_config *c) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*c) : "memory");
}

/* Makes all eight tiles whole. `before` holds what they were for others on this thread, for ts_amx_end. */
static inline void ts_amx_begin(ts_amx_config *before) {
    ts_amx_config whole = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        whole.row_bytes[i] = TS_TILE_WORDS * 4;
        whole.rows[i] = TS_TILE_ROWS;
    }
    __asm__ volatile("sttilecfg %0" : "=m"(*before) : : "memory");
    ts_amx_load_config(&whole);
}

static inline void ts_amx_end(const ts_amx_config *before) {
    ts_amx_load_config(before);
}

#define TS_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : : : "memory")

/* Rows lie `pitch` bytes apart. */
#define TS_TILE_LOAD(tile, from, pitch)                                                                      \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile                                                      \
                     :                                                                                       \
                     : "r"((const void *)(from)), "r"((int64_t)(pitch))                                      \
                     : "memory")
#define TS_TILE_STORE(tile, to, pitch)                                                                       \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)"                                                  \
                     :                                                                                       \
                     : "r"((void *)(to)), "r"((int64_t)(pitch))                                              \
                     : "memory")

/* sum[m][n] += left[m][2k] right[k][2n] + left[m][2k + 1] right[k][2n + 1]: float32 += bf16 * bf16. */
#define TS_TILE_PRODUCT(sum, left, right)                                                                    \
    __asm__ volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #sum : : : "memory")

#endif
