/* Element types of tensors, and conversion of one value. */
#ifndef TS_BASE_DTYPE_H
#define TS_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Computation is in the first two; in files there are all of them. F8: with four bits of exponent, without infinities
 * (E4M3FN), or with five. */
typedef enum ts_dtype { TS_F32, TS_BF16, TS_F16, TS_F64, TS_F8_E4M3, TS_F8_E5M2, TS_DTYPE_COUNT } ts_dtype;

static inline size_t ts_dtype_size(ts_dtype t) {
    return t == TS_F32 ? 4 : t == TS_BF16 || t == TS_F16 ? 2 : t == TS_F64 ? 8 : 1;
}
static inline const char *ts_dtype_name(ts_dtype t) {
    static const char *const names[] = {"f32", "bf16", "f16", "f64", "f8_e4m3", "f8_e5m2"};
    return (int)t >= 0 && t < TS_DTYPE_COUNT ? names[t] : "?";
}

static inline float ts_bf16_to_f32(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest, ties to even; a NaN stays a NaN. */
static inline uint16_t ts_f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

#endif
