/* Vectors of float32 as wide as the instruction set that is being compiled, and the functions on them.
 *
 * GCC's vector types keep the code one for all; a few operations that they lack are intrinsics. `rough` asks
 * for what is enough where the result is rounded to bf16 (2e-3): about 1e-4. Only for the files that are
 * compiled once for each instruction set. */
#ifndef TS_KERNELS_CPU_VEC_MATH_H
#define TS_KERNELS_CPU_VEC_MATH_H

#include <math.h>
#include <stdbool.h>
#include "base/dtype.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define TS_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define TS_UNROLL(n) TS_PRAGMA(unroll)
#else
#define TS_UNROLL(n) TS_PRAGMA(GCC unroll n)
#endif
#define TS_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define TS_ISA_BF16 1
#else
#define TS_ISA_BF16 0
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));
typedef float vq __attribute__((vector_size(LANES * 2))); /* half a vector, and the same in double */
typedef double vd __attribute__((vector_size(LANES * 4)));
typedef float vf_any __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint16_t vh_any __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

TS_INLINE vf load(const void *p) {
    return *(const vf_any *)p;
}
TS_INLINE void store(void *p, vf v) {
    *(vf_any *)p = v;
}
TS_INLINE vf splat(float x) {
    return x - (vf){0};
}

/* a < b ? yes : no, by lane */
TS_INLINE vf where_less(vf a, vf b, vf yes, vf no) {
#if defined(__AVX512F__)
    __mmask16 mask = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
    return (vf)_mm512_mask_blend_ps(mask, (__m512)no, (__m512)yes);
#else
    vi mask = a < b;
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
#endif
}

/* The larger and the smaller; b where either is NaN. */
TS_INLINE vf larger(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
    return where_less(b, a, a, b);
#endif
}
TS_INLINE vf smaller(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_min_ps((__m128)a, (__m128)b);
#else
    return where_less(a, b, a, b);
#endif
}

TS_INLINE float lane_sum(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
#endif
}
TS_INLINE float lane_max(vf v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    float s = v[0];
    for (int i = 1; i < LANES; i++) s = v[i] > s ? v[i] : s;
    return s;
#endif
}
/* The lanes of a vector in double, as two halves. */
typedef struct vdd {
    vd low, high;
} vdd;
TS_INLINE vdd widen(vf v) {
    vq half[2];
    memcpy(half, &v, sizeof half);
    return (vdd){__builtin_convertvector(half[0], vd), __builtin_convertvector(half[1], vd)};
}
TS_INLINE double lane_sum_d(vdd v) {
    double s = 0;
    for (int i = 0; i < LANES / 2; i++) s += v.low[i] + v.high[i];
    return s;
}

/* ---------------------------------------------------------------------------------------- memory and bf16 */

TS_INLINE vf vf_from_bf16(const void *p) {
    return (vf)(__builtin_convertvector((vh) * (const vh_any *)p, vu) << 16);
}
TS_INLINE void vf_to_bf16(void *p, vf v) {
#if TS_ISA_BF16
    __m256bh half = _mm512_cvtneps_pbh((__m512)v); /* to nearest even; what is below 1e-38 becomes zero */
    memcpy(p, &half, sizeof half);
#else
    vu u = (vu)v, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = u >> 16 | 0x40u;
    vu is_nan = (vu)((u & 0x7fffffffu) > 0x7f800000u);
    *(vh_any *)p = __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), vh);
#endif
}

/* n <= LANES elements from the i-th on; what is beyond them is zero and is not touched. */
TS_INLINE vf get(const void *base, size_t i, size_t n, ts_dtype t) {
    const char *p = (const char *)base + i * (t == TS_F32 ? 4 : 2);
    char part[LANES * 4] = {0};
    if (n < LANES) {
        memcpy(part, p, n * (t == TS_F32 ? 4 : 2));
        p = part;
    }
    return t == TS_F32 ? load(p) : vf_from_bf16(p);
}
TS_INLINE void put(void *base, size_t i, size_t n, ts_dtype t, vf v) {
    char *p = (char *)base + i * (t == TS_F32 ? 4 : 2), part[LANES * 4], *to = n < LANES ? part : p;
    if (t == TS_F32)
        store(to, v);
    else
        vf_to_bf16(to, v);
    if (n < LANES) memcpy(p, part, n * (t == TS_F32 ? 4 : 2));
}

/* One value, for code that is not in a hurry. */
TS_INLINE float get_one(const void *base, size_t i, ts_dtype t) {
    return t == TS_F32 ? ((const float *)base)[i] : ts_bf16_to_f32(((const uint16_t *)base)[i]);
}

/* ---------------------------------------------------------------------------------------------- functions */

/* 2^n p for whole n. Below -126 (-149 with AVX-512) it is zero. */
TS_INLINE vf scale_by_power(vf p, vf n) {
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return (vf)((vi)(p * (vf)power) & (n >= -126.0f));
#endif
}

TS_INLINE vf nearest(vf x) { /* |x| < 2^22 */
#if defined(__AVX512F__)
    return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return (x + 12582912.0f) - 12582912.0f;
#endif
}

/* 2^x for x < 127; zero from -200 on. Minimax polynomials for the relative error on [-1/2, 1/2]: 2e-9, or 1e-4 where rough. */
TS_INLINE vf exp2_vf(vf x, bool rough) {
    x = larger(splat(-200.0f), x);
    vf n = nearest(x), r = x - n, p;
    if (rough) {
        p = 0.055008747f * r + 0.24221076f;
        p = p * r + 0.6932829f;
    } else {
        p = 1.5353354e-4f * r + 1.3398875e-3f;
        p = p * r + 9.6184378e-3f;
        p = p * r + 5.5503324e-2f;
        p = p * r + 0.24022648f;
        p = p * r + 0.69314718f;
    }
    return scale_by_power(p * r + 1.0f, n);
}

/* e^x, in [0, inf); NaN stays NaN. x = n ln 2 + r in two steps, then Cephes' polynomial. */
TS_INLINE vf exp_vf(vf x, bool rough) {
#if defined(__AVX512F__)
    x = smaller(splat(89.0f), larger(splat(-104.0f), x));
#else
    x = smaller(splat(88.0f), larger(splat(-104.0f), x));
#endif
    vf n = nearest(x * 1.44269504f), r = x - n * 0.693359375f, p;
    r = r + n * 2.12194440e-4f;
    if (rough) {
        p = 0.16662743f * r + 0.50394063f; /* minimax with 1 + r fixed: 1.2e-4 */
    } else {
        p = 1.9875691500e-4f * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
    }
    return scale_by_power(p * (r * r) + r + 1.0f, n);
}

TS_INLINE vf reciprocal(vf x, bool rough) {
#if defined(__AVX512F__)
    if (rough) return (vf)_mm512_rcp14_ps((__m512)x);
#else
    (void)rough;
#endif
    return 1.0f / x;
}

TS_INLINE vf silu_vf(vf x, bool rough) {
    vf e = 1.0f + exp_vf(-x, rough);
    return rough ? x * reciprocal(e, true) : x / e;
}
TS_INLINE vf quick_gelu_vf(vf x, bool rough) {
    vf e = 1.0f + exp_vf(-1.702f * x, rough);
    return rough ? x * reciprocal(e, true) : x / e;
}

/* x Phi(x) with erfc of Numerical Recipes (erfcc: relative error below 1.2e-7 everywhere). */
TS_INLINE vf gelu_vf(vf x, bool rough) {
    vf z = larger(x, -x) * 0.707106781f, t = reciprocal(1.0f + 0.5f * z, rough);
    vf p = 0.17087277f * t - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    vf tail = x * (0.5f * t * exp_vf(p - z * z, rough));
    tail = where_less(splat(13), z, splat(0), tail); /* not inf * 0 */
    return where_less(x, splat(0), tail, x - tail);
}

#endif
