/* Attention a query at a time: the keys of one head, transposed, and the values are brought to float32 once
 * for all queries of an image; then one row of scores, its softmax, and the weighted sum. */
#include "kernels/ref/ref.h"

#include <math.h>
#include "base/alloc.h"

enum { CHUNK = 64 };

static int head_of(const ts_op *op) {
    return op->out.c / op->attention.heads;
}

/* keys [d][n], values [n][d], scores [n], q [d], a float32 part [d] and the double sum [d] of the result. */
static size_t attention_scratch(const ts_op *op) {
    size_t d = (size_t)head_of(op), floats;
    if (!ts_mul_size((size_t)op->attention.max_tokens, 2 * d + 1, &floats)) return SIZE_MAX;
    return ts_add_size(floats, 5 * d + 2, &floats) ? floats : SIZE_MAX;
}

static int gather(const ts_op *op, const ts_args *args, int image, int head, float *keys, float *values,
                  float *row) {
    int d = head_of(op), n = 0;
    for (int s = 0; s < args->segment_count; s++) {
        const ts_segment *g = &args->segments[s];
        for (int t = 0; t < g->tokens; t++, n++) {
            size_t at = (size_t)image * g->pitch + (size_t)t * g->ld + (size_t)(head * d);
            ts_ref_load(g->k, op->in[0].dtype, at, d, row);
            for (int i = 0; i < d; i++)
                keys[(size_t)i * (size_t)op->attention.max_tokens + (size_t)n] = row[i];
            ts_ref_load(g->v, op->in[0].dtype, at, d, values + (size_t)n * (size_t)d);
        }
    }
    return n;
}

/* score = softmax(scale q k^T) without the division; returns the sum of the exponentials. */
static double softmax(float *restrict score, int n, float scale) {
    float top = -INFINITY;
    double sum = 0;
    for (int j = 0; j < n; j++) {
        score[j] *= scale;
        if (score[j] > top || isnan(score[j])) top = score[j];
    }
    for (int j = 0; j < n; j++) {
        score[j] = expf(score[j] - top);
        sum += (double)score[j];
    }
    return sum;
}

static void attention(const ts_ref_kernel *k, const ts_args *args) {
    const ts_op *op = &k->op;
    const ts_view *x = &op->in[0], *y = &op->out;
    int d = head_of(op), most = op->attention.max_tokens;
    double *out = args->scratch;
    float *q = (float *)(out + d), *part = q + d, *score = part + d, *keys = score + most;
    float *values = keys + (size_t)most * (size_t)d;
    for (int b = 0; b < x->b; b++)
        for (int head = 0; head < op->attention.heads; head++) {
            int all = gather(op, args, b, head, keys, values, q);
            for (size_t t = 0; t < ts_view_tokens(x); t++) {
                int n = op->attention.causal && t + 1 < (size_t)all ? (int)t + 1 : all;
                ts_ref_load(args->in[0], x->dtype, ts_view_at(x, b, t) + (size_t)(head * d), d, q);
                memset(score, 0, (size_t)n * sizeof *score);
                for (int i = 0; i < d; i++)
                    for (int j = 0; j < n; j++) score[j] += q[i] * keys[(size_t)i * (size_t)most + (size_t)j];
                double sum = softmax(score, n, op->scale);
                memset(out, 0, (size_t)d * sizeof *out);
                for (int j0 = 0; j0 < n; j0 += CHUNK) {
                    memset(part, 0, (size_t)d * sizeof *part);
                    for (int j = j0; j < n && j < j0 + CHUNK; j++)
                        for (int i = 0; i < d; i++)
                            part[i] += score[j] * values[(size_t)j * (size_t)d + (size_t)i];
                    for (int i = 0; i < d; i++) out[i] += (double)part[i];
                }
                /* Without any key there is nothing to attend to: zero. */
                for (int i = 0; i < d; i++) q[i] = n ? (float)(out[i] / sum) : 0;
                ts_ref_save(args->out, y->dtype, ts_view_at(y, b, t) + (size_t)(head * d), d, q);
            }
        }
}

const ts_ref_impl ts_ref_attention = {attention, attention_scratch};
