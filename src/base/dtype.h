/* Element types of tensors, and conversion of one value. */
#ifndef TS_BASE_DTYPE_H
#define TS_BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum ts_dtype { TS_F32, TS_BF16, TS_F16, TS_DTYPE_COUNT } ts_dtype;

static inline size_t ts_dtype_size(ts_dtype t) { return t == TS_F32 ? 4 : 2; }
static inline const char *ts_dtype_name(ts_dtype t) {
    return t == TS_F32 ? "f32" : t == TS_BF16 ? "bf16" : t == TS_F16 ? "f16" : "?";
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
