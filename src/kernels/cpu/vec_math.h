/* Scalar functions that the compiler turns into vectors: no branches, no calls, no errno.
 * Only for the files that are compiled once for each instruction set. */
#ifndef TS_KERNELS_CPU_VEC_MATH_H
#define TS_KERNELS_CPU_VEC_MATH_H

#include "base/dtype.h"

#define TS_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define TS_IVDEP     TS_PRAGMA(clang loop vectorize(assume_safety))
#define TS_UNROLL(n) TS_PRAGMA(unroll)
#else
#define TS_IVDEP     TS_PRAGMA(GCC ivdep)
#define TS_UNROLL(n) TS_PRAGMA(GCC unroll n)
#endif

#define TS_INLINE static inline __attribute__((always_inline))

/* e^x within 2 ulp for x in [-87, 88] and clamped to that range; NaN stays NaN. n = round(x / ln 2) by adding
 * and taking away 1.5 * 2^23, the rest by a polynomial (Cephes expf), 2^n by its exponent bits. */
TS_INLINE float ts_exp(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

TS_INLINE float ts_silu(float x) {
    return x / (1.0f + ts_exp(-x));
}
TS_INLINE float ts_quick_gelu(float x) {
    return x / (1.0f + ts_exp(-1.702f * x));
}

/* x Phi(x) with erfc of Numerical Recipes (erfcc: relative error below 1.2e-7 everywhere). */
TS_INLINE float ts_gelu(float x) {
    float z = x < 0 ? x * -0.707106781f : x * 0.707106781f;
    float t = 1.0f / (1.0f + 0.5f * z);
    float p = 0.17087277f;
    p = p * t - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    float half = 0.5f * t * ts_exp(p - z * z);
    float tail = z > 13.0f ? 0.0f : x * half; /* not inf * 0 */
    return x < 0 ? tail : x - tail;
}

TS_INLINE float ts_get(const void *base, size_t i, ts_dtype dtype) {
    return dtype == TS_F32 ? ((const float *)base)[i] : ts_bf16_to_f32(((const uint16_t *)base)[i]);
}
TS_INLINE void ts_put(void *base, size_t i, ts_dtype dtype, float v) {
    if (dtype == TS_F32)
        ((float *)base)[i] = v;
    else {
        uint32_t u;
        memcpy(&u, &v, sizeof u);
        uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        ((uint16_t *)base)[i] = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
    }
}

#endif
