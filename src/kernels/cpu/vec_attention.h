/* What the attention kernels share: places in the scratch, and queries that become lanes and rows again.
 *
 * Both kernels hold a number for each of LANES queries in a vector. A word is four bytes: a float32, or a
 * pair of bf16 of adjacent channels. Only for the files that are compiled once for each instruction set. */
#ifndef TS_KERNELS_CPU_VEC_ATTENTION_H
#define TS_KERNELS_CPU_VEC_ATTENTION_H

#include "kernels/cpu/vec_math.h"

#include <string.h>
#include "kernels/cpu/vec.h"

/* Scores carry log2(e), so that their softmax is in powers of two. */
#define LOG2_E 1.44269504f

TS_INLINE int round_up(int n, int to) {
    return (n + to - 1) / to * to;
}

/* The offset of the next part of a scratch, of so many bytes. */
TS_INLINE size_t place(size_t *at, size_t bytes) {
    size_t here = *at;
    *at += (bytes + TS_ATTEND_ALIGN - 1) / TS_ATTEND_ALIGN * TS_ATTEND_ALIGN;
    return here;
}

TS_INLINE int64_t all_keys(const ts_attend *a) {
    int64_t all = 0;
    for (int s = 0; s < a->segment_count; s++) all += a->segments[s].tokens;
    return all;
}

#if defined(__AVX512F__)
#define LANE_NUMBERS                                                                                         \
    { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 }
#elif defined(__AVX__)
#define LANE_NUMBERS                                                                                         \
    { 0, 1, 2, 3, 4, 5, 6, 7 }
#else
#define LANE_NUMBERS                                                                                         \
    { 0, 1, 2, 3 }
#endif

/* Exchanges the off-diagonal blocks of h by h words (Eklundh 1972). */
TS_INLINE void exchange(vf r[LANES], int h) {
    const vi lane = LANE_NUMBERS, odd = (lane & h) != 0;
    const vi upper = ((lane - h + LANES) & odd) | (lane & ~odd),
             lower = ((lane + LANES) & odd) | ((lane + h) & ~odd);
    for (int i = 0; i < LANES; i++) {
        if (i & h) continue;
        vf a = r[i], b = r[i + h];
#ifdef __clang__
        for (int j = 0; j < LANES; j++) {
            r[i][j] = upper[j] < LANES ? a[upper[j]] : b[upper[j] - LANES];
            r[i + h][j] = lower[j] < LANES ? a[lower[j]] : b[lower[j] - LANES];
        }
#else
        r[i] = __builtin_shuffle(a, b, upper);
        r[i + h] = __builtin_shuffle(a, b, lower);
#endif
    }
}

TS_INLINE void transpose(vf r[LANES]) {
    if (LANES > 8) exchange(r, 8);
    if (LANES > 4) exchange(r, 4);
    exchange(r, 2);
    exchange(r, 1);
}

/* Words [w, w + LANES) of a query, zeros beyond its end. */
TS_INLINE vf query_words(const ts_attend *a, int query, int w, bool pairs) {
    size_t at = (size_t)query * a->ldq;
    if (!pairs) return get(a->q, at + (size_t)w, (size_t)(a->d - w < LANES ? a->d - w : LANES), a->dtype);
    int left = a->d - 2 * w;
    vf words = {0};
    if (left > 0)
        memcpy(&words, (const uint16_t *)a->q + at + 2 * w,
               (size_t)(left < 2 * LANES ? left : 2 * LANES) * 2);
    return words;
}

/* n queries from `first` on as [steps][block] words; queries that do not exist, and words beyond their end,
 * are zeros. */
TS_INLINE void pack_queries(const ts_attend *a, int first, int n, int steps, int block, bool pairs,
                            float *query) {
    for (int w = 0; w < steps; w += LANES)
        for (int q = 0; q < block; q += LANES) {
            vf r[LANES];
            for (int i = 0; i < LANES; i++)
                r[i] = q + i < n ? query_words(a, first + q + i, w, pairs) : (vf){0};
            transpose(r);
            for (int i = 0; i < LANES && w + i < steps; i++) store(query + (w + i) * block + q, r[i]);
        }
}

/* The sums [d][block], divided by the queries' totals, as rows of y. */
TS_INLINE void write_queries(const ts_attend *a, int first, int n, int block, const float *sums,
                             const float *total) {
    for (int q = 0; q < n; q += LANES) {
        vf factor = 1.0f / load(total + q);
        for (int c = 0; c < a->d; c += LANES) {
            size_t some = (size_t)(a->d - c < LANES ? a->d - c : LANES);
            vf r[LANES];
            for (int i = 0; i < LANES; i++)
                r[i] = c + i < a->d ? load(sums + (size_t)(c + i) * (size_t)block + (size_t)q) * factor
                                    : (vf){0};
            transpose(r);
            for (int i = 0; i < LANES && q + i < n; i++)
                put(a->y, (size_t)(first + q + i) * a->ldy + (size_t)c, some, a->dtype, r[i]);
        }
    }
}

#if TS_ISA_BF16
/* Two rows of numbers as pairs of bf16: (even, odd) of the same lane. */
TS_INLINE vf pair_up(vf even, vf odd) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                                23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    return (vf)_mm512_permutexvar_epi16(interleave, (__m512i)both);
}
#endif

#endif
