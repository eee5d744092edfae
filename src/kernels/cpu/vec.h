/* Our own kernels, compiled once for each instruction set: one table of functions each, chosen at run time.
 *
 * They work on a run of tokens and one thread; cpu/ops.c splits the work. Pointers are those of the first
 * element; strides are in elements. y may be x (or r) where the layouts agree. */
#ifndef TS_KERNELS_CPU_VEC_H
#define TS_KERNELS_CPU_VEC_H

#include "kernels/op.h"

/* `tokens` rows of c channels. */
typedef struct ts_rows {
    const void *x, *r;
    void *y;
    size_t tokens, ldx, ldr, ldy;
    int c;
    ts_dtype dtype; /* of x and r, and of y but for copy */
} ts_rows;

enum { TS_ATTEND_ALIGN = 64 }; /* of its scratch */

/* Queries [begin, end) of one head of one image against all keys of the segments. */
typedef struct ts_attend {
    const void *q; /* of query 0, of this head */
    void *y;
    size_t ldq, ldy;
    const ts_segment *segments;
    int segment_count;
    size_t image, first; /* image; this head's first channel in the keys */
    int d, begin, end;
    float scale;
    bool causal;
    ts_dtype dtype;
    void *scratch; /* attend_scratch bytes, TS_ATTEND_ALIGN aligned */
} ts_attend;

enum { TS_WINOGRAD_IN = 6, TS_WINOGRAD_OUT = 4, TS_WINOGRAD_PLANES = TS_WINOGRAD_IN * TS_WINOGRAD_IN };

/* Where a tile of F(4x4, 3x3) lies in its image: x is its input's first pixel that is there, in rows that
 * lie `row` elements apart, of which the first `rows` and the columns [left, right) are there. For the outputs
 * y, r (NULL: none) is what is added. */
typedef struct ts_tile {
    const float *x, *r;
    float *y;
    size_t row, ld, row_r, ld_r;
    int rows, left, right;
} ts_tile;

typedef struct ts_vec {
    const char *name;
    bool fast_bf16; /* the products of attention run in bf16 */

    /* sum[i] += x + add, square[i] += (x + add)^2 over the rows, for each channel; add may be NULL */
    void (*stats)(const ts_rows *rows, const float *add, double *sum, double *square);
    /* y = (x + add) * scale + shift, all by channel; then SiLU */
    void (*affine)(const ts_rows *rows, const float *add, const float *scale, const float *shift, bool silu);
    /* weight and bias may be NULL */
    void (*layer_norm)(const ts_rows *rows, const float *weight, const float *bias, float eps);
    void (*activation)(const ts_rows *rows, ts_act act);
    void (*geglu)(const ts_rows *rows); /* c: of y */
    void (*add)(const ts_rows *rows);
    void (*copy)(const ts_rows *rows, ts_dtype to, float scale);
    /* kernels/convert.h, of two different types */
    void (*convert)(ts_dtype from, const void *src, ts_dtype to, void *dst, size_t n);
    /* A tile's c channels, a multiple of 16, to its place in each of TS_WINOGRAD_PLANES planes, and back. */
    void (*winograd_spread)(const ts_tile *t, int c, float *v, size_t plane);
    void (*winograd_gather)(const float *m, size_t plane, int c, const float *bias, const ts_tile *t);
    void (*attend)(const ts_attend *a);
    const int *attend_block; /* queries that are computed together: ranges are best multiples of it */
    /* Bytes for at most `queries` queries and `keys` keys of d channels. */
    size_t (*attend_scratch)(int d, int queries, int keys, ts_dtype dtype);
} ts_vec;

/* The best table for this processor. */
const ts_vec *ts_vec_best(void);

enum { TS_VEC_TABLES = 5 };

/* All tables that this processor can run, best last; for the tests. Returns how many. */
int ts_vec_all(const ts_vec *ret[TS_VEC_TABLES]);

#ifdef __x86_64__
/* The one for AVX512-BF16 and AMX; kerncheck runs it on processors without AMX too, instruction by
 * instruction. */
extern const ts_vec ts_vec_amx;
#endif

#endif
