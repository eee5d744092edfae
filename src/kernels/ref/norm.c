/* GroupNorm in two halves (statistics, then the affine with SiLU) and LayerNorm. */
#include "kernels/ref/ref.h"

#include <math.h>

/* x, r as float32, and two sums in double for each channel. */
static size_t stats_scratch(const ts_op *op) {
    return (size_t)op->in[0].c * 6;
}

static void group_stats(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *r = &k->op.in[1];
    int c = x->c, groups = k->op.norm.groups, width = c / groups;
    double *sum = args->scratch, *square = sum + c, *ret = args->out;
    float *row = (float *)(square + c), *add = row + c;
    for (int b = 0; b < x->b; b++) {
        memset(sum, 0, (size_t)c * 2 * sizeof *sum);
        memset(add, 0, (size_t)c * sizeof *add);
        if (r->c) ts_ref_load(args->in[1], r->dtype, ts_view_at(r, b, 0), c, add);
        for (size_t t = 0; t < ts_view_tokens(x); t++) {
            ts_ref_load(args->in[0], x->dtype, ts_view_at(x, b, t), c, row);
            for (int i = 0; i < c; i++) {
                double v = (double)row[i] + (double)add[i];
                sum[i] += v;
                square[i] += v * v;
            }
        }
        for (int g = 0; g < groups; g++) {
            double s = 0, q = 0;
            for (int i = g * width; i < (g + 1) * width; i++) s += sum[i], q += square[i];
            ret[((size_t)b * (size_t)groups + (size_t)g) * 2] = s;
            ret[((size_t)b * (size_t)groups + (size_t)g) * 2 + 1] = q;
        }
    }
}

static size_t norm_scratch(const ts_op *op) {
    return (size_t)op->in[0].c * 4;
}

static void group_norm(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *r = &k->op.in[1], *y = &k->op.out;
    int c = x->c, groups = k->op.norm.groups, width = c / groups;
    const double *stats = args->in[2];
    float *row = args->scratch, *add = row + c, *scale = add + c, *shift = scale + c;
    for (int b = 0; b < x->b; b++) {
        memset(add, 0, (size_t)c * sizeof *add);
        if (r->c) ts_ref_load(args->in[1], r->dtype, ts_view_at(r, b, 0), c, add);
        for (int i = 0; i < c; i++) {
            const double *s = stats + ((size_t)b * (size_t)groups + (size_t)(i / width)) * 2;
            double factor = 1 / sqrt(s[1] + (double)k->op.norm.eps);
            add[i] = (float)((double)add[i] - s[0]);
            scale[i] = (float)(k->weight ? factor * (double)k->weight[i] : factor);
            shift[i] = k->bias ? k->bias[i] : 0;
        }
        for (size_t t = 0; t < ts_view_tokens(x); t++) {
            ts_ref_load(args->in[0], x->dtype, ts_view_at(x, b, t), c, row);
            for (int i = 0; i < c; i++) row[i] = (row[i] + add[i]) * scale[i] + shift[i];
            if (k->op.act == TS_ACT_SILU)
                for (int i = 0; i < c; i++) row[i] = ts_ref_silu(row[i]);
            ts_ref_save(args->out, y->dtype, ts_view_at(y, b, t), c, row);
        }
    }
}

static size_t row_scratch(const ts_op *op) {
    return (size_t)op->in[0].c;
}

static void layer_norm(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *y = &k->op.out;
    int c = x->c;
    float *row = args->scratch;
    for (int b = 0; b < x->b; b++)
        for (size_t t = 0; t < ts_view_tokens(x); t++) {
            double sum = 0, square = 0;
            ts_ref_load(args->in[0], x->dtype, ts_view_at(x, b, t), c, row);
            for (int i = 0; i < c; i++) sum += (double)row[i];
            double mean = sum / c;
            for (int i = 0; i < c; i++) square += ((double)row[i] - mean) * ((double)row[i] - mean);
            double factor = 1 / sqrt(square / c + (double)k->op.norm.eps);
            for (int i = 0; i < c; i++) {
                double v = ((double)row[i] - mean) * factor;
                row[i] =
                    (float)(v * (k->weight ? (double)k->weight[i] : 1) + (k->bias ? (double)k->bias[i] : 0));
            }
            ts_ref_save(args->out, y->dtype, ts_view_at(y, b, t), c, row);
        }
}

const ts_ref_impl ts_ref_group_stats = {group_stats, stats_scratch};
const ts_ref_impl ts_ref_group_norm = {group_norm, norm_scratch};
const ts_ref_impl ts_ref_layer_norm = {layer_norm, row_scratch};
