/* Elementwise ops and norms over rows of channels. Each function is written once with the dtype as a constant
 * and instantiated for float32 and bf16; TS_IVDEP says that y is x itself or apart from it. */
#include "kernels/cpu/vec.h"

#include <math.h>
#include "kernels/cpu/vec_isa.h"
#include "kernels/cpu/vec_math.h"

/* Two instances of a body, by the dtype of its rows. */
#define BY_DTYPE(rows, call_f32, call_bf16)                                                                  \
    do {                                                                                                     \
        if ((rows)->dtype == TS_F32)                                                                         \
            call_f32;                                                                                        \
        else                                                                                                 \
            call_bf16;                                                                                       \
    } while (0)

TS_INLINE const void *row_in(const void *base, size_t token, size_t ld, ts_dtype t) {
    return (const char *)base + token * ld * (t == TS_F32 ? 4 : 2);
}
TS_INLINE void *row_out(void *base, size_t token, size_t ld, ts_dtype t) {
    return (char *)base + token * ld * (t == TS_F32 ? 4 : 2);
}

/* Four rows at a time: the sums in double are loaded and stored once for them. */
TS_INLINE void stats_rows(const ts_rows *rows, size_t t0, int n, const float *add, double *restrict sum,
                          double *restrict square, ts_dtype t) {
    const void *x0 = row_in(rows->x, t0, rows->ldx, t),
               *x1 = n > 1 ? row_in(rows->x, t0 + 1, rows->ldx, t) : x0;
    const void *x2 = n > 2 ? row_in(rows->x, t0 + 2, rows->ldx, t) : x0;
    const void *x3 = n > 3 ? row_in(rows->x, t0 + 3, rows->ldx, t) : x0;
    for (size_t i = 0; i < (size_t)rows->c; i++) {
        double a = add ? (double)add[i] : 0, s, q, v;
        v = (double)ts_get(x0, i, t) + a, s = v, q = v * v;
        if (n > 1) v = (double)ts_get(x1, i, t) + a, s += v, q += v * v;
        if (n > 2) v = (double)ts_get(x2, i, t) + a, s += v, q += v * v;
        if (n > 3) v = (double)ts_get(x3, i, t) + a, s += v, q += v * v;
        sum[i] += s;
        square[i] += q;
    }
}

TS_INLINE void stats_as(const ts_rows *rows, const float *add, double *sum, double *square, ts_dtype t) {
    size_t i = 0;
    if (add)
        for (; i + 4 <= rows->tokens; i += 4) stats_rows(rows, i, 4, add, sum, square, t);
    else
        for (; i + 4 <= rows->tokens; i += 4) stats_rows(rows, i, 4, NULL, sum, square, t);
    for (; i < rows->tokens; i++) stats_rows(rows, i, 1, add, sum, square, t);
}

static void stats(const ts_rows *rows, const float *add, double *sum, double *square) {
    BY_DTYPE(rows, stats_as(rows, add, sum, square, TS_F32), stats_as(rows, add, sum, square, TS_BF16));
}

TS_INLINE void affine_as(const ts_rows *rows, const float *add, const float *scale, const float *shift,
                         bool silu, ts_dtype t) {
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, t);
        void *y = row_out(rows->y, k, rows->ldy, t);
        TS_IVDEP
        for (size_t i = 0; i < (size_t)rows->c; i++) {
            float v = (ts_get(x, i, t) + add[i]) * scale[i] + shift[i];
            ts_put(y, i, t, silu ? ts_silu(v) : v);
        }
    }
}

static void affine(const ts_rows *rows, const float *add, const float *scale, const float *shift, bool silu) {
    if (silu)
        BY_DTYPE(rows, affine_as(rows, add, scale, shift, true, TS_F32),
                 affine_as(rows, add, scale, shift, true, TS_BF16));
    else
        BY_DTYPE(rows, affine_as(rows, add, scale, shift, false, TS_F32),
                 affine_as(rows, add, scale, shift, false, TS_BF16));
}

/* Sums over a row in LANES separate double sums, so that they run as vectors. */
enum { LANES = 16 };

TS_INLINE double row_sum(const void *x, size_t c, double mean, bool square, ts_dtype t) {
    double lane[LANES] = {0}, all = 0;
    size_t i = 0;
    for (; i + LANES <= c; i += LANES)
        for (size_t j = 0; j < LANES; j++) {
            double v = (double)ts_get(x, i + j, t) - mean;
            lane[j] += square ? v * v : v;
        }
    for (; i < c; i++) {
        double v = (double)ts_get(x, i, t) - mean;
        all += square ? v * v : v;
    }
    for (size_t j = 0; j < LANES; j++) all += lane[j];
    return all;
}

TS_INLINE void layer_norm_as(const ts_rows *rows, const float *weight, const float *bias, float eps,
                             ts_dtype t) {
    size_t c = (size_t)rows->c;
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, t);
        void *y = row_out(rows->y, k, rows->ldy, t);
        double mean = row_sum(x, c, 0, false, t) / (double)c;
        float factor = (float)(1 / sqrt(row_sum(x, c, mean, true, t) / (double)c + (double)eps));
        /* The mean in two floats: what the first drops matters where it is large against the deviation. */
        float high = (float)mean, low = (float)(mean - (double)high);
        if (weight && bias) TS_IVDEP
        for (size_t i = 0; i < c; i++)
            ts_put(y, i, t, (ts_get(x, i, t) - high - low) * factor * weight[i] + bias[i]);
        else for (size_t i = 0; i < c; i++)
            ts_put(y, i, t,
                   (ts_get(x, i, t) - high - low) * factor * (weight ? weight[i] : 1) + (bias ? bias[i] : 0));
    }
}

static void layer_norm(const ts_rows *rows, const float *weight, const float *bias, float eps) {
    BY_DTYPE(rows, layer_norm_as(rows, weight, bias, eps, TS_F32),
             layer_norm_as(rows, weight, bias, eps, TS_BF16));
}

TS_INLINE void activation_as(const ts_rows *rows, ts_act act, ts_dtype t) {
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, t);
        void *y = row_out(rows->y, k, rows->ldy, t);
        TS_IVDEP
        for (size_t i = 0; i < (size_t)rows->c; i++) {
            float v = ts_get(x, i, t);
            ts_put(y, i, t,
                   act == TS_ACT_SILU   ? ts_silu(v)
                   : act == TS_ACT_GELU ? ts_gelu(v)
                                        : ts_quick_gelu(v));
        }
    }
}

TS_INLINE void copy_as(const ts_rows *rows, float scale, ts_dtype from, ts_dtype to) {
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, from);
        void *y = row_out(rows->y, k, rows->ldy, to);
        TS_IVDEP
        for (size_t i = 0; i < (size_t)rows->c; i++) ts_put(y, i, to, scale * ts_get(x, i, from));
    }
}

static void copy(const ts_rows *rows, ts_dtype to, float scale) {
    if (to == TS_F32)
        BY_DTYPE(rows, copy_as(rows, scale, TS_F32, TS_F32), copy_as(rows, scale, TS_BF16, TS_F32));
    else
        BY_DTYPE(rows, copy_as(rows, scale, TS_F32, TS_BF16), copy_as(rows, scale, TS_BF16, TS_BF16));
}

static void activation(const ts_rows *rows, ts_act act) {
    switch (act) {
    case TS_ACT_NONE: copy(rows, rows->dtype, 1); break;
    case TS_ACT_SILU:
        BY_DTYPE(rows, activation_as(rows, TS_ACT_SILU, TS_F32), activation_as(rows, TS_ACT_SILU, TS_BF16));
        break;
    case TS_ACT_GELU:
        BY_DTYPE(rows, activation_as(rows, TS_ACT_GELU, TS_F32), activation_as(rows, TS_ACT_GELU, TS_BF16));
        break;
    case TS_ACT_QUICK_GELU:
        BY_DTYPE(rows, activation_as(rows, TS_ACT_QUICK_GELU, TS_F32),
                 activation_as(rows, TS_ACT_QUICK_GELU, TS_BF16));
        break;
    }
}

TS_INLINE void geglu_as(const ts_rows *rows, ts_dtype t) {
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, t);
        void *y = row_out(rows->y, k, rows->ldy, t);
        TS_IVDEP
        for (size_t i = 0; i < (size_t)rows->c; i++)
            ts_put(y, i, t, ts_get(x, i, t) * ts_gelu(ts_get(x, (size_t)rows->c + i, t)));
    }
}

static void geglu(const ts_rows *rows) {
    BY_DTYPE(rows, geglu_as(rows, TS_F32), geglu_as(rows, TS_BF16));
}

TS_INLINE void add_as(const ts_rows *rows, ts_dtype t) {
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, t), *r = row_in(rows->r, k, rows->ldr, t);
        void *y = row_out(rows->y, k, rows->ldy, t);
        TS_IVDEP
        for (size_t i = 0; i < (size_t)rows->c; i++) ts_put(y, i, t, ts_get(x, i, t) + ts_get(r, i, t));
    }
}

static void add(const ts_rows *rows) {
    BY_DTYPE(rows, add_as(rows, TS_F32), add_as(rows, TS_BF16));
}

const ts_vec TS_ISA_NAME(ts_vec) = {
    .name = TS_ISA_STRING,
    .fast_bf16 = TS_ISA_BF16,
    .stats = stats,
    .affine = affine,
    .layer_norm = layer_norm,
    .activation = activation,
    .geglu = geglu,
    .add = add,
    .copy = copy,
    .attend = TS_ISA_NAME(ts_attend),
    .attend_scratch = TS_ISA_NAME(ts_attend_scratch),
};
