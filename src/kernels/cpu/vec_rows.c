/* Elementwise ops and norms over rows of channels, a vector at a time; a row's last vector may be a part.
 * Each function is written once with the dtype as a constant and instantiated for float32 and bf16. */
#include "kernels/cpu/vec_math.h"

#include "kernels/cpu/vec_isa.h"

/* Two instances of a body, by the dtype of its rows. */
#define BY_DTYPE(rows, call_f32, call_bf16)                                                                  \
    do {                                                                                                     \
        if ((rows)->dtype == TS_F32)                                                                         \
            call_f32;                                                                                        \
        else                                                                                                 \
            call_bf16;                                                                                       \
    } while (0)

/* Runs the body for i = 0, LANES, ...; n is the number of elements there: the constant LANES but at the end.
 */
#define EACH_VECTOR(count, ...)                                                                              \
    do {                                                                                                     \
        size_t i = 0;                                                                                        \
        for (; i + LANES <= (count); i += LANES) {                                                           \
            const size_t n = LANES;                                                                          \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
        if (i < (count)) {                                                                                   \
            const size_t n = (count)-i;                                                                      \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
    } while (0)

TS_INLINE const void *row_in(const void *base, size_t token, size_t ld, ts_dtype t) {
    return (const char *)base + token * ld * (t == TS_F32 ? 4 : 2);
}
TS_INLINE void *row_out(void *base, size_t token, size_t ld, ts_dtype t) {
    return (char *)base + token * ld * (t == TS_F32 ? 4 : 2);
}

/* ------------------------------------------------------------------------------------------------ GroupNorm
 */

TS_INLINE void accumulate(double *to, size_t n, vdd v) {
    vdd old = {{0}, {0}};
    memcpy(&old, to, n * sizeof *to);
    old.low += v.low, old.high += v.high;
    memcpy(to, &old, n * sizeof *to);
}

/* `count` rows (a constant) from row k on: the sums in memory are visited once for all of them. In double. */
TS_INLINE void stats_rows(const ts_rows *rows, size_t k, size_t count, const float *add, double *sum,
                          double *square, ts_dtype t) {
    EACH_VECTOR((size_t)rows->c, {
        vdd a = {{0}, {0}}, s = a, q = a;
        if (add) a = widen(get(add, i, n, TS_F32));
        TS_UNROLL(4)
        for (size_t j = 0; j < count; j++) {
            vdd v = widen(get(row_in(rows->x, k + j, rows->ldx, t), i, n, t));
            v.low += a.low, v.high += a.high;
            s.low += v.low, s.high += v.high;
            q.low += v.low * v.low, q.high += v.high * v.high;
        }
        accumulate(sum + i, n, s);
        accumulate(square + i, n, q);
    });
}

TS_INLINE void stats_as(const ts_rows *rows, const float *add, double *sum, double *square, ts_dtype t) {
    size_t k = 0;
    for (; k + 4 <= rows->tokens; k += 4) stats_rows(rows, k, 4, add, sum, square, t);
    for (; k < rows->tokens; k++) stats_rows(rows, k, 1, add, sum, square, t);
}

static void stats(const ts_rows *rows, const float *add, double *sum, double *square) {
    BY_DTYPE(rows, stats_as(rows, add, sum, square, TS_F32), stats_as(rows, add, sum, square, TS_BF16));
}

TS_INLINE void affine_as(const ts_rows *rows, const float *add, const float *scale, const float *shift,
                         bool silu, ts_dtype t) {
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, t);
        void *y = row_out(rows->y, k, rows->ldy, t);
        EACH_VECTOR((size_t)rows->c, {
            vf v = (get(x, i, n, t) + get(add, i, n, TS_F32)) * get(scale, i, n, TS_F32) +
                   get(shift, i, n, TS_F32);
            put(y, i, n, t, silu ? silu_vf(v, t == TS_BF16) : v);
        });
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

/* ------------------------------------------------------------------------------------------------ LayerNorm
 */

TS_INLINE void layer_norm_as(const ts_rows *rows, const float *weight, const float *bias, float eps,
                             ts_dtype t) {
    size_t c = (size_t)rows->c;
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, t);
        void *y = row_out(rows->y, k, rows->ldy, t);
        vdd wide = {{0}, {0}};
        vf sum = {0}, square = {0};
        EACH_VECTOR(c, {
            vf v = get(x, i, n, t);
            vdd w = widen(v);
            if (t == TS_BF16)
                sum += v; /* float32 is enough for it */
            else
                wide.low += w.low, wide.high += w.high;
        });
        double mean = (t == TS_BF16 ? (double)lane_sum(sum) : lane_sum_d(wide)) / (double)c;
        /* The mean in two floats: what the first drops matters where it is large against the deviation. */
        vf high = splat((float)mean), low = splat((float)(mean - (double)(float)mean));
        EACH_VECTOR(c, {
            vf v = get(x, i, n, t) - high - low;
            if (n < LANES)
                for (size_t j = n; j < LANES; j++) v[j] = 0;
            square += v * v;
        });
        float variance = lane_sum(square) / (float)c;
        vf factor = splat((float)(1 / sqrt((double)variance + (double)eps)));
        EACH_VECTOR(c, {
            vf v = (get(x, i, n, t) - high - low) * factor;
            if (weight) v *= get(weight, i, n, TS_F32);
            if (bias) v += get(bias, i, n, TS_F32);
            put(y, i, n, t, v);
        });
    }
}

static void layer_norm(const ts_rows *rows, const float *weight, const float *bias, float eps) {
    BY_DTYPE(rows, layer_norm_as(rows, weight, bias, eps, TS_F32),
             layer_norm_as(rows, weight, bias, eps, TS_BF16));
}

/* ---------------------------------------------------------------------------------------------- elementwise
 */

TS_INLINE void copy_as(const ts_rows *rows, float scale, ts_dtype from, ts_dtype to) {
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, from);
        void *y = row_out(rows->y, k, rows->ldy, to);
        EACH_VECTOR((size_t)rows->c, put(y, i, n, to, scale * get(x, i, n, from)));
    }
}

static void copy(const ts_rows *rows, ts_dtype to, float scale) {
    if (to == TS_F32)
        BY_DTYPE(rows, copy_as(rows, scale, TS_F32, TS_F32), copy_as(rows, scale, TS_BF16, TS_F32));
    else
        BY_DTYPE(rows, copy_as(rows, scale, TS_F32, TS_BF16), copy_as(rows, scale, TS_BF16, TS_BF16));
}

TS_INLINE void activation_as(const ts_rows *rows, ts_act act, ts_dtype t) {
    const bool rough = t == TS_BF16;
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, t);
        void *y = row_out(rows->y, k, rows->ldy, t);
        EACH_VECTOR((size_t)rows->c, {
            vf v = get(x, i, n, t);
            put(y, i, n, t,
                act == TS_ACT_SILU   ? silu_vf(v, rough)
                : act == TS_ACT_GELU ? gelu_vf(v, rough)
                                     : quick_gelu_vf(v, rough));
        });
    }
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
        EACH_VECTOR((size_t)rows->c, {
            vf gate = gelu_vf(get(x, (size_t)rows->c + i, n, t), t == TS_BF16);
            put(y, i, n, t, get(x, i, n, t) * gate);
        });
    }
}

static void geglu(const ts_rows *rows) {
    BY_DTYPE(rows, geglu_as(rows, TS_F32), geglu_as(rows, TS_BF16));
}

TS_INLINE void add_as(const ts_rows *rows, ts_dtype t) {
    for (size_t k = 0; k < rows->tokens; k++) {
        const void *x = row_in(rows->x, k, rows->ldx, t), *r = row_in(rows->r, k, rows->ldr, t);
        void *y = row_out(rows->y, k, rows->ldy, t);
        EACH_VECTOR((size_t)rows->c, put(y, i, n, t, get(x, i, n, t) + get(r, i, n, t)));
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
    .convert = TS_ISA_NAME(ts_convert),
    .winograd_spread = TS_ISA_NAME(ts_winograd_spread),
    .winograd_gather = TS_ISA_NAME(ts_winograd_gather),
    .attend_block = &TS_ISA_NAME(ts_attend_block),
    .attend = TS_ISA_NAME(ts_attend),
    .attend_scratch = TS_ISA_NAME(ts_attend_scratch),
};
