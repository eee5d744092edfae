/* Element types to each other. Everything is loaded and stored through memcpy, and the loops have no
 * branches, for the compiler's vectoriser. */
#include "kernels/cpu/vec_isa.h"

#include <string.h>

static inline uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint16_t load16(const unsigned char *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* Three results and a choice, instead of branches (after Giesen's float_to_half_fast3_rtne). Below 2^-14
 * the sum with 0.5 leaves the mantissa in units of 2^-24, rounded by the addition itself. */
static inline uint16_t to_half(float f) {
    uint32_t u = bits_of(f), sign = u & 0x80000000u, a = u ^ sign;
    uint32_t special = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t small = bits_of(float_of(a) + 0.5f) - 0x3f000000u;
    uint32_t normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
    uint32_t h = a >= 0x47800000u ? special : a < 0x38800000u ? small : normal;
    return (uint16_t)(h | sign >> 16);
}

/* The exponents of the two types differ by 112, which a multiplication sets right for subnormals too. */
static inline float from_half(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, a = h & 0x7fffu;
    uint32_t u = bits_of(float_of(a << 13) * 0x1p112f);
    u |= a >= 0x7c00u ? 0x7f800000u : 0u;
    return float_of(u | sign);
}

/* Like from_half: the exponents differ by 120. Without infinities; all ones is no number. */
static inline float from_e4m3(unsigned char b) {
    uint32_t sign = (uint32_t)(b & 0x80u) << 24, a = b & 0x7fu;
    uint32_t u = bits_of(float_of(a << 20) * 0x1p120f);
    u |= a == 0x7fu ? 0x7fc00000u : 0u;
    return float_of(u | sign);
}

static inline float from_double(const unsigned char *p) {
    double d;
    memcpy(&d, p, sizeof d);
    return (float)d;
}

static inline uint16_t to_bfloat(float f) {
    uint32_t u = bits_of(f);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

static void widen(ts_dtype from, const unsigned char *restrict src, float *restrict dst, size_t n) {
    if (from == TS_F32)
        memcpy(dst, src, n * sizeof *dst);
    else if (from == TS_BF16)
        for (size_t i = 0; i < n; i++) dst[i] = float_of((uint32_t)load16(src + 2 * i) << 16);
    else if (from == TS_F16)
        for (size_t i = 0; i < n; i++) dst[i] = from_half(load16(src + 2 * i));
    else if (from == TS_F64)
        for (size_t i = 0; i < n; i++) dst[i] = from_double(src + 8 * i);
    else if (from == TS_F8_E4M3)
        for (size_t i = 0; i < n; i++) dst[i] = from_e4m3(src[i]);
    else /* the upper half of a float16 */
        for (size_t i = 0; i < n; i++) dst[i] = from_half((uint16_t)(src[i] << 8));
}

static void narrow(const float *restrict src, ts_dtype to, unsigned char *restrict dst, size_t n) {
    if (to == TS_F32)
        memcpy(dst, src, n * sizeof *src);
    else
        for (size_t i = 0; i < n; i++) {
            uint16_t h = to == TS_BF16 ? to_bfloat(src[i]) : to_half(src[i]);
            memcpy(dst + 2 * i, &h, sizeof h);
        }
}

void TS_ISA_NAME(ts_convert)(ts_dtype from, const void *src, ts_dtype to, void *dst, size_t n) {
    const unsigned char *s = src;
    unsigned char *d = dst;
    /* Through a block of floats that stays in the first-level cache. */
    float block[1024];
    for (size_t i = 0; i < n;) {
        size_t m = n - i < 1024 ? n - i : 1024;
        widen(from, s + i * ts_dtype_size(from), block, m);
        narrow(block, to, d + i * ts_dtype_size(to), m);
        i += m;
    }
}
