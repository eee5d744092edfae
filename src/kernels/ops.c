/* The table of ops: shape rules, work and traffic of each kind. */
#include "kernels/op.h"

#include <stdio.h>
#include <string.h>
#include "base/alloc.h"
#include "kernels/param.h"

/* No picture comes near this; it keeps every product of three dimensions far from overflow. */
#define MAX_DIM (1 << 24)

static ts_code bad(const ts_op *op, ts_error *e, const char *what) {
    return ts_fail_param(e, TS_EINVAL, op->name ? op->name : "", "%s: %s", ts_op_kind_name(op->kind), what);
}

/* "the weight is 320 x 4, not 640 x 4" */
static ts_code bad_shape(const ts_op *op, ts_error *e, const char *what, const ts_param *p, int rank,
                         const int64_t *wanted) {
    char text[2][80] = {"", ""};
    for (int k = 0; k < 2; k++)
        for (int i = 0, n = 0; i < (k ? rank : p->rank) && n < 60; i++)
            n += snprintf(text[k] + n, sizeof text[k] - (size_t)n, "%s%lld", i ? " x " : "",
                          (long long)(k ? wanted[i] : p->shape[i]));
    return ts_fail_param(e, TS_EINVAL, op->name ? op->name : "", "%s: the %s is %s, not %s",
                         ts_op_kind_name(op->kind), what, text[0], text[1]);
}

static bool present(const ts_view *v) {
    return v->c != 0;
}

static ts_code check_view(const ts_op *op, const ts_view *v, ts_error *e) {
    if (v->b < 1 || v->h < 1 || v->w < 1 || v->c < 1 || v->b > MAX_DIM || v->h > MAX_DIM || v->w > MAX_DIM ||
        v->c > MAX_DIM)
        return bad(op, e, "a dimension is out of range");
    if ((int)v->dtype < 0 || v->dtype >= TS_DTYPE_COUNT) return bad(op, e, "unknown dtype");
    size_t run, all, bytes;
    if (!ts_mul_size(ts_view_tokens(v), v->ld, &run) || !ts_mul_size(v->pitch, (size_t)v->b, &all) ||
        !ts_mul_size(all, 8, &bytes) || bytes > PTRDIFF_MAX)
        return bad(op, e, "a tensor is too large");
    if (v->ld < (size_t)v->c) return bad(op, e, "ld is smaller than the channels");
    if (v->b > 1 && v->pitch < run) return bad(op, e, "pitch is smaller than an image");
    return TS_OK;
}

static bool same_size(const ts_view *a, const ts_view *b) {
    return a->b == b->b && a->h == b->h && a->w == b->w && a->c == b->c;
}
static bool same(const ts_view *a, const ts_view *b) {
    return same_size(a, b) && a->dtype == b->dtype;
}

static ts_code check_vector(const ts_op *op, ts_error *e, const char *what, const ts_param *p, int n) {
    const int64_t wanted = n;
    return !p || (p->rank == 1 && p->shape[0] == n) ? TS_OK : bad_shape(op, e, what, p, 1, &wanted);
}

/* [rows][columns] and k x k behind it; a 1x1 convolution may come as a matrix and the reverse. */
static bool is_matrix(const ts_param *p, int rows, int columns, int k) {
    if (p->rank != 4 && !(p->rank == 2 && k == 1)) return false;
    for (int i = 2; i < p->rank; i++)
        if (p->shape[i] != k) return false;
    return p->shape[0] == rows && p->shape[1] == columns;
}

static ts_code check_product(const ts_op *op, int k, ts_error *e) {
    const ts_view *x = &op->in[0], *r = &op->in[1], *y = &op->out;
    if (y->dtype != x->dtype && y->dtype != TS_F32)
        return bad(op, e, "the output is neither like x nor float32");
    if (present(r) && !same(r, y)) return bad(op, e, "the residual differs from the output");
    if (!op->weight) return bad(op, e, "there is no weight");
    if (!is_matrix(op->weight, y->c, x->c, k))
        return bad_shape(op, e, "weight", op->weight, k == 1 ? 2 : 4, (const int64_t[]){y->c, x->c, k, k});
    return check_vector(op, e, "bias", op->bias, y->c);
}

static ts_code check_conv2d(const ts_op *op, ts_error *e) {
    const ts_view *x = &op->in[0], *y = &op->out;
    int k = op->conv.kernel, stride = op->conv.stride, left = op->conv.pad_left, right = op->conv.pad_right;
    if (k != 1 && k != 3) return bad(op, e, "the kernel is neither 1 nor 3");
    if (stride != 1 && stride != 2) return bad(op, e, "the stride is neither 1 nor 2");
    if (left < 0 || left >= k || right < 0 || right >= k) return bad(op, e, "the padding is out of range");
    if (x->b != y->b || (int64_t)x->h != (int64_t)(y->h - 1) * stride + k)
        return bad(op, e, "the rows do not fit");
    if (x->w + left + right < k || (x->w + left + right - k) / stride + 1 != y->w)
        return bad(op, e, "the columns do not fit");
    return check_product(op, k, e);
}

static ts_code check_linear(const ts_op *op, ts_error *e) {
    const ts_view *x = &op->in[0], *y = &op->out;
    if (x->b != y->b || x->h != y->h || x->w != y->w) return bad(op, e, "the tokens differ");
    return check_product(op, 1, e);
}

static ts_code check_groups(const ts_op *op, ts_error *e) {
    const ts_view *x = &op->in[0], *r = &op->in[1];
    if (op->norm.groups < 1 || x->c % op->norm.groups)
        return bad(op, e, "the groups do not divide the channels");
    if (present(r) && (r->b != x->b || r->h != 1 || r->w != 1 || r->c != x->c || r->dtype != x->dtype))
        return bad(op, e, "the broadcast term is not [b][c]");
    return TS_OK;
}

static ts_code check_affine(const ts_op *op, ts_error *e) {
    int c = op->in[0].c;
    if (!same(&op->in[0], &op->out)) return bad(op, e, "the output differs from x");
    if (!(op->norm.eps >= 0)) return bad(op, e, "eps is negative");
    ts_code rc = check_vector(op, e, "weight", op->weight, c);
    return rc ? rc : check_vector(op, e, "bias", op->bias, c);
}

static ts_code check_group_norm(const ts_op *op, ts_error *e) {
    if (op->act != TS_ACT_NONE && op->act != TS_ACT_SILU) return bad(op, e, "the activation is not SiLU");
    ts_code rc = check_groups(op, e);
    return rc ? rc : check_affine(op, e);
}

static ts_code check_attention(const ts_op *op, ts_error *e) {
    int heads = op->attention.heads;
    if (!same(&op->in[0], &op->out)) return bad(op, e, "the output differs from the queries");
    if (heads < 1 || op->out.c % heads) return bad(op, e, "the heads do not divide the channels");
    if (op->attention.max_tokens < 1) return bad(op, e, "max_tokens is not positive");
    if (!(op->scale > 0)) return bad(op, e, "the scale is not positive");
    return TS_OK;
}

static ts_code check_activation(const ts_op *op, ts_error *e) {
    if ((int)op->act < 0 || op->act > TS_ACT_QUICK_GELU) return bad(op, e, "unknown activation");
    return same(&op->in[0], &op->out) ? TS_OK : bad(op, e, "the output differs from x");
}

static ts_code check_geglu(const ts_op *op, ts_error *e) {
    ts_view half = op->in[0];
    half.c = op->out.c;
    return op->in[0].c == 2 * op->out.c && same(&half, &op->out) ? TS_OK
                                                                 : bad(op, e, "x is not two halves of y");
}

static ts_code check_add(const ts_op *op, ts_error *e) {
    return same(&op->in[0], &op->out) && same(&op->in[1], &op->out) ? TS_OK : bad(op, e, "the shapes differ");
}

static ts_code check_concat(const ts_op *op, ts_error *e) {
    ts_view x = op->in[0], r = op->in[1];
    if (!present(&r) || x.c + r.c != op->out.c) return bad(op, e, "the channels do not add up");
    x.c = r.c = op->out.c;
    return same(&x, &op->out) && same(&r, &op->out) ? TS_OK : bad(op, e, "the shapes differ");
}

static ts_code check_upsample(const ts_op *op, ts_error *e) {
    const ts_view *x = &op->in[0], *y = &op->out;
    int rows = x->h - 2, out_rows = y->h - 2;
    if (x->b != y->b || x->c != y->c || x->dtype != y->dtype) return bad(op, e, "the shapes differ");
    if (rows < 1 || (out_rows != 2 * rows && out_rows != 2 * rows - 1))
        return bad(op, e, "the rows do not fit");
    if (y->w != 2 * x->w && y->w != 2 * x->w - 1) return bad(op, e, "the columns do not fit");
    return TS_OK;
}

static ts_code check_time_embed(const ts_op *op, ts_error *e) {
    const ts_view *x = &op->in[0], *y = &op->out;
    if (op->time.dim < 2 || (int64_t)x->c * op->time.dim != y->c)
        return bad(op, e, "the channels are not n * dim");
    if (x->dtype != TS_F32 || x->b != y->b || ts_view_tokens(x) != 1 || ts_view_tokens(y) != 1)
        return bad(op, e, "x is not float32 [b][n]");
    if (!(op->time.max_period > 0) || !((float)(op->time.dim / 2) > op->time.downscale_freq_shift))
        return bad(op, e, "the frequencies are not defined");
    return TS_OK;
}

static ts_code check_embed(const ts_op *op, ts_error *e) {
    const ts_view *x = &op->in[0], *y = &op->out;
    if (x->c != 1 || x->b != y->b || ts_view_tokens(x) != ts_view_tokens(y))
        return bad(op, e, "the tokens differ");
    const ts_view *r = &op->in[1];
    if (r->c &&
        (r->dtype != TS_F32 || r->b != y->b || r->c != y->c || ts_view_tokens(r) != ts_view_tokens(y)))
        return bad(op, e, "r is not float32 of y's shape");
    const ts_param *tables[] = {op->weight, op->bias};
    static const char *const names[] = {"table of tokens", "table of positions"};
    for (int i = 0; i < 2; i++) {
        const ts_param *p = tables[i];
        if (!p && i == 0) return bad(op, e, "there is no weight");
        const int64_t least = i ? (int64_t)ts_view_tokens(y) : 1;
        if (p && (p->rank != 2 || p->shape[1] != y->c || p->shape[0] < least))
            return bad_shape(op, e, names[i], p, 2,
                             (const int64_t[]){p->shape[0] < least ? least : p->shape[0], y->c});
    }
    return TS_OK;
}

static ts_code check_copy(const ts_op *op, ts_error *e) {
    return same_size(&op->in[0], &op->out) ? TS_OK : bad(op, e, "the shapes differ");
}

/* flops: by element of the output (of the input for GROUP_STATS); the products are counted by themselves. */
static const struct {
    const char *name;
    ts_code (*check)(const ts_op *op, ts_error *e);
    double flops;
} rules[TS_OP_COUNT] = {
    [TS_OP_CONV2D] = {"conv2d", check_conv2d, 0},
    [TS_OP_LINEAR] = {"linear", check_linear, 0},
    [TS_OP_GROUP_STATS] = {"group_stats", check_groups, 3},
    [TS_OP_GROUP_NORM] = {"group_norm", check_group_norm, 8},
    [TS_OP_LAYER_NORM] = {"layer_norm", check_affine, 8},
    [TS_OP_ATTENTION] = {"attention", check_attention, 0},
    [TS_OP_ACTIVATION] = {"activation", check_activation, 6},
    [TS_OP_GEGLU] = {"geglu", check_geglu, 8},
    [TS_OP_ADD] = {"add", check_add, 1},
    [TS_OP_CONCAT] = {"concat", check_concat, 0},
    [TS_OP_UPSAMPLE] = {"upsample", check_upsample, 0},
    [TS_OP_TIME_EMBED] = {"time_embed", check_time_embed, 4},
    [TS_OP_EMBED] = {"embed", check_embed, 1},
    [TS_OP_COPY] = {"copy", check_copy, 1},
};

const char *ts_op_kind_name(ts_op_kind kind) {
    return (unsigned)kind < TS_OP_COUNT ? rules[kind].name : "unknown op";
}

ts_code ts_op_check(const ts_op *op, ts_error *e) {
    if ((unsigned)op->kind >= TS_OP_COUNT) return bad(op, e, "there is no such op");
    ts_code rc = check_view(op, &op->in[0], e);
    if (rc) return rc;
    /* The statistics are doubles, dense by definition; their views say nothing that is used. */
    if (op->kind != TS_OP_GROUP_STATS && (rc = check_view(op, &op->out, e))) return rc;
    if (present(&op->in[1]) && (rc = check_view(op, &op->in[1], e))) return rc;
    const ts_param *params[] = {op->weight, op->bias};
    for (int i = 0; i < 2; i++)
        if (params[i] && (rc = ts_param_check(params[i], e))) return rc;
    return rules[op->kind].check(op, e);
}

static double elements(const ts_view *v) {
    return (double)v->b * (double)v->h * (double)v->w * (double)v->c;
}
static double view_bytes(const ts_view *v) {
    return elements(v) * (double)ts_dtype_size(v->dtype);
}

double ts_op_flops(const ts_op *op, int keys) {
    const ts_view *x = &op->in[0], *y = &op->out;
    if (keys == 0) keys = op->attention.max_tokens;
    switch (op->kind) {
    case TS_OP_CONV2D: return 2 * elements(y) * x->c * op->conv.kernel * op->conv.kernel;
    case TS_OP_LINEAR: return 2 * elements(y) * x->c;
    case TS_OP_ATTENTION: return 4 * elements(y) * keys;
    case TS_OP_GROUP_STATS: return rules[op->kind].flops * elements(x);
    default: return (unsigned)op->kind < TS_OP_COUNT ? rules[op->kind].flops * elements(y) : 0;
    }
}

double ts_op_bytes(const ts_op *op, int keys) {
    double bytes = view_bytes(&op->in[0]) + (present(&op->in[1]) ? view_bytes(&op->in[1]) : 0);
    if (keys == 0) keys = op->attention.max_tokens;
    double stats = (double)op->in[0].b * op->norm.groups * 2 * sizeof(double);
    bytes += op->kind == TS_OP_GROUP_STATS ? stats : view_bytes(&op->out);
    if (op->kind == TS_OP_GROUP_NORM) bytes += stats;
    if (op->kind == TS_OP_ATTENTION)
        bytes += 2.0 * op->out.b * op->out.c * keys * (double)ts_dtype_size(op->in[0].dtype);
    /* Of a table only the rows of the tokens are read. */
    if (op->kind == TS_OP_EMBED) return bytes + (op->bias ? 2 : 1) * view_bytes(&op->out);
    if (op->weight) bytes += (double)ts_param_bytes(op->weight);
    if (op->bias) bytes += (double)ts_param_bytes(op->bias);
    return bytes;
}
