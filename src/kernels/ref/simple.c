/* Ops that look at one token at a time: elementwise functions, moves, embeddings. */
#include "kernels/ref/ref.h"

#include <math.h>

static size_t two_rows(const ts_op *op) {
    return 2 * (size_t)op->in[0].c;
}
static size_t out_row(const ts_op *op) {
    return (size_t)op->out.c;
}
static size_t embed_rows(const ts_op *op) {
    return 2 * (size_t)op->out.c;
}

/* x Phi(x); erfc keeps the relative precision of the negative tail. */
static float gelu(float x) {
    return 0.5f * x * erfcf(x * -0.70710678118654752f);
}

static void activation(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *y = &k->op.out;
    float *row = args->scratch;
    for (int b = 0; b < x->b; b++)
        for (size_t t = 0; t < ts_view_tokens(x); t++) {
            ts_ref_load(args->in[0], x->dtype, ts_view_at(x, b, t), x->c, row);
            switch (k->op.act) {
            case TS_ACT_NONE: break;
            case TS_ACT_SILU:
                for (int i = 0; i < x->c; i++) row[i] = ts_ref_silu(row[i]);
                break;
            case TS_ACT_GELU:
                for (int i = 0; i < x->c; i++) row[i] = gelu(row[i]);
                break;
            case TS_ACT_QUICK_GELU:
                for (int i = 0; i < x->c; i++) row[i] = row[i] / (1.0f + expf(-1.702f * row[i]));
                break;
            }
            ts_ref_save(args->out, y->dtype, ts_view_at(y, b, t), y->c, row);
        }
}

static void geglu(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *y = &k->op.out;
    float *row = args->scratch, *gate = row + y->c;
    for (int b = 0; b < x->b; b++)
        for (size_t t = 0; t < ts_view_tokens(x); t++) {
            ts_ref_load(args->in[0], x->dtype, ts_view_at(x, b, t), x->c, row);
            for (int i = 0; i < y->c; i++) row[i] *= gelu(gate[i]);
            ts_ref_save(args->out, y->dtype, ts_view_at(y, b, t), y->c, row);
        }
}

static void add(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *r = &k->op.in[1], *y = &k->op.out;
    float *row = args->scratch, *other = row + x->c;
    for (int b = 0; b < x->b; b++)
        for (size_t t = 0; t < ts_view_tokens(x); t++) {
            ts_ref_load(args->in[0], x->dtype, ts_view_at(x, b, t), x->c, row);
            ts_ref_load(args->in[1], r->dtype, ts_view_at(r, b, t), x->c, other);
            for (int i = 0; i < x->c; i++) row[i] += other[i];
            ts_ref_save(args->out, y->dtype, ts_view_at(y, b, t), y->c, row);
        }
}

static void copy(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *y = &k->op.out;
    float *row = args->scratch;
    for (int b = 0; b < x->b; b++)
        for (size_t t = 0; t < ts_view_tokens(x); t++) {
            ts_ref_load(args->in[0], x->dtype, ts_view_at(x, b, t), x->c, row);
            for (int i = 0; i < x->c; i++) row[i] *= k->op.scale;
            ts_ref_save(args->out, y->dtype, ts_view_at(y, b, t), y->c, row);
        }
}

/* Pure moves: the bits as they are. */
static void move(void *out, size_t to_at, const ts_view *from, const void *in, size_t from_at) {
    size_t size = ts_dtype_size(from->dtype);
    memcpy((char *)out + to_at * size, (const char *)in + from_at * size, (size_t)from->c * size);
}

static void concat(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *r = &k->op.in[1], *y = &k->op.out;
    for (int b = 0; b < x->b; b++)
        for (size_t t = 0; t < ts_view_tokens(x); t++) {
            size_t at = ts_view_at(y, b, t);
            move(args->out, at, x, args->in[0], ts_view_at(x, b, t));
            move(args->out, at + (size_t)x->c, r, args->in[1], ts_view_at(r, b, t));
        }
}

static void upsample(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *y = &k->op.out;
    for (int b = 0; b < x->b; b++)
        for (int i = 0; i < y->h; i++) {
            int from = i == 0 ? 0 : i == y->h - 1 ? x->h - 1 : 1 + (i - 1) / 2;
            for (int j = 0; j < y->w; j++)
                move(args->out, ts_view_at(y, b, (size_t)i * (size_t)y->w + (size_t)j), x, args->in[0],
                     ts_view_at(x, b, (size_t)from * (size_t)x->w + (size_t)(j / 2)));
        }
}

/* Each step is rounded to float32 where PyTorch rounds: at t = 999 the argument's last bit shows. */
static void time_embed(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *y = &k->op.out;
    int dim = k->op.time.dim, half = dim / 2;
    float *row = args->scratch, log_period = (float)-log((double)k->op.time.max_period);
    for (int b = 0; b < x->b; b++) {
        const float *t = (const float *)args->in[0] + ts_view_at(x, b, 0);
        memset(row, 0, (size_t)y->c * sizeof *row); /* an odd dim ends in a zero */
        for (int n = 0; n < x->c; n++)
            for (int i = 0; i < half; i++) {
                float exponent = log_period * (float)i / ((float)half - k->op.time.downscale_freq_shift);
                float angle = t[n] * (float)exp((double)exponent);
                float *to = row + n * dim + i;
                to[k->op.time.flip_sin_to_cos ? half : 0] = (float)sin((double)angle);
                to[k->op.time.flip_sin_to_cos ? 0 : half] = (float)cos((double)angle);
            }
        ts_ref_save(args->out, y->dtype, ts_view_at(y, b, 0), y->c, row);
    }
}

static void embed(const ts_ref_kernel *k, const ts_args *args) {
    const ts_view *x = &k->op.in[0], *y = &k->op.out;
    size_t c = (size_t)y->c;
    float *row = args->scratch;
    for (int b = 0; b < x->b; b++)
        for (size_t t = 0; t < ts_view_tokens(y); t++) {
            const int32_t id = ((const int32_t *)args->in[0])[ts_view_at(x, b, t)];
            const float *token = id < 0 ? (const float *)args->in[1] + ts_view_at(&k->op.in[1], b, t)
                                        : k->weight + (size_t)id * c;
            const float *position = k->bias ? k->bias + t * c : NULL;
            for (size_t i = 0; i < c; i++) row[i] = token[i] + (position ? position[i] : 0);
            ts_ref_save(args->out, y->dtype, ts_view_at(y, b, t), y->c, row);
        }
}

const ts_ref_impl ts_ref_activation = {activation, two_rows};
const ts_ref_impl ts_ref_geglu = {geglu, two_rows};
const ts_ref_impl ts_ref_add = {add, two_rows};
const ts_ref_impl ts_ref_copy = {copy, out_row};
const ts_ref_impl ts_ref_concat = {concat, NULL};
const ts_ref_impl ts_ref_upsample = {upsample, NULL};
const ts_ref_impl ts_ref_time_embed = {time_embed, out_row};
const ts_ref_impl ts_ref_embed = {embed, embed_rows};
