/* Random ops: odd shapes, gaps between pixels and images, extreme values, aliases, uneven segments. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "kerncheck.h"

static uint64_t state;

static uint64_t next(void) { /* splitmix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static int pick(int low, int high) {
    return low + (int)(next() % (uint64_t)(high - low + 1));
}
static bool chance(int percent) {
    return pick(0, 99) < percent;
}
static float uniform(void) {
    return (float)(next() >> 40) * 0x1p-23f - 1;
}
static float normal(void) { /* near enough */
    return uniform() + uniform() + uniform();
}

enum { ORDINARY, LARGE, TINY, ZERO, MIXED, SHIFTED, KINDS };
static const char *const value_names[KINDS] = {"ordinary", "large", "tiny", "zero", "mixed", "shifted"};

static float value(int kind) {
    switch (kind) {
    case LARGE: return normal() * 1e5f;
    case TINY: return normal() * 1e-20f;
    case ZERO: return 0;
    case MIXED: return normal() * powf(10, (float)pick(-4, 4));
    case SHIFTED: return normal() + 30;
    default: return normal();
    }
}

static void *must(void *p) {
    if (!p) abort();
    return p;
}

static void put(void *base, ts_dtype t, size_t i, float v) {
    if (t == TS_F32)
        ((float *)base)[i] = v;
    else
        ((uint16_t *)base)[i] = ts_f32_to_bf16(v);
}

static kc_tensor make(ts_view v, int kind, float factor) {
    kc_tensor t = {.view = v};
    if (v.c == 0) return t;
    t.bytes = 2 * KC_GUARD + v.pitch * (size_t)v.b * ts_dtype_size(v.dtype);
    t.memory = must(ts_alloc_aligned(t.bytes));
    memset(t.memory, 0xff, t.bytes); /* NaN in both types */
    for (int b = 0; b < v.b; b++)
        for (size_t k = 0; k < ts_view_tokens(&v); k++)
            for (int i = 0; i < v.c; i++)
                put(kc_at(&t), v.dtype, (size_t)b * v.pitch + k * v.ld + (size_t)i, value(kind) * factor);
    return t;
}

kc_tensor kc_tensor_make(ts_view view, float magnitude) {
    return make(view, ORDINARY, magnitude);
}

/* Half of the views are dense, the others have a gap between pixels, images or both. */
static ts_view view(int b, int h, int w, int c, ts_dtype dtype) {
    ts_view v = ts_view_dense(b, h, w, c, dtype);
    if (chance(25)) v.ld += (size_t)pick(1, 40);
    v.pitch = ts_view_tokens(&v) * v.ld;
    if (chance(25)) v.pitch += (size_t)pick(1, 99);
    return v;
}

/* A bf16 product rounds its weights, the reference does not: they are given values that need no rounding. */
static bool exact_bf16;

static ts_param *param(ts_param *p, void **data, int rank, int a, int b, int k, int kind, float factor) {
    *p = (ts_param){.name = "param", .rank = rank, .shape = {a, b, k, k}, .dtype = (ts_dtype)pick(0, 1)};
    size_t n = 1;
    for (int i = 0; i < rank; i++) n *= (size_t)p->shape[i];
    *data = must(malloc(n * 4));
    for (size_t i = 0; i < n; i++) {
        float v = value(kind) * factor;
        put(*data, p->dtype, i, exact_bf16 ? ts_bf16_to_f32(ts_f32_to_bf16(v)) : v);
    }
    p->data = *data;
    return p;
}

static int channels(void) {
    static const int usual[] = {4, 8, 16, 32, 64, 96, 128, 320};
    return chance(50) ? usual[pick(0, 7)] : pick(1, 70);
}

static void make_product(kc_case *c, ts_dtype t, int kind) {
    ts_op *op = &c->op;
    int b = pick(1, 3), cin = channels(), cout = channels(), k = 1, h = pick(1, 9),
        w = chance(10) ? 1 : pick(1, 19);
    int xh = h, xw = w;
    exact_bf16 = t == TS_BF16;
    if (op->kind == TS_OP_CONV2D) {
        int stride = chance(30) ? 2 : 1, left, right;
        k = chance(80) ? 3 : 1;
        left = k == 3 ? pick(0, 1) : 0, right = k == 3 ? pick(0, 1) : 0;
        if (stride == 1 && k == 3 && chance(80)) left = right = 1;
        if (stride == 1 && k == 3 && chance(30)) { /* what Winograd's algorithm takes */
            static const int wide[] = {64, 80, 96, 128};
            xw = pick(32, 45), cin = wide[pick(0, 3)], cout = wide[pick(0, 3)];
            if (chance(20)) h = pick(24, 40), b = pick(2, 3); /* more tiles than one run of it has */
        }
        op->conv.kernel = k, op->conv.stride = stride, op->conv.pad_left = left, op->conv.pad_right = right;
        if (xw + left + right < k) xw = k;
        xh = (h - 1) * stride + k;
        w = (xw + left + right - k) / stride + 1;
    } else if (chance(20)) {
        b = h = w = xh = xw = 1;
    }
    ts_dtype yt = chance(20) ? TS_F32 : t;
    op->in[0] = view(b, xh, xw, cin, t);
    op->out = view(b, h, w, cout, yt);
    op->weight = param(&c->weight, &c->weight_data, op->kind == TS_OP_CONV2D ? 4 : 2, cout, cin, k,
                       chance(10) ? MIXED : ORDINARY, 1 / sqrtf((float)(cin * k * k)));
    exact_bf16 = false;
    if (chance(70))
        op->bias = param(&c->bias, &c->bias_data, 1, cout, 0, 0, kind == LARGE ? LARGE : ORDINARY, 1);
    if (chance(40)) {
        op->in[1] = chance(50) ? op->out : view(b, h, w, cout, yt);
        if (op->in[1].ld == op->out.ld && op->in[1].pitch == op->out.pitch && chance(60)) c->alias = 1;
    }
}

static void make_norm(kc_case *c, ts_dtype t) {
    ts_op *op = &c->op;
    bool group = op->kind != TS_OP_LAYER_NORM;
    int groups = group ? pick(1, 8) : 1, width = pick(1, 20), n = groups * width;
    op->in[0] = view(pick(1, 3), pick(1, 12), pick(1, 12), n, t);
    op->out = view(op->in[0].b, op->in[0].h, op->in[0].w, n, t);
    op->norm.groups = groups;
    op->norm.eps = 1e-5f;
    if (group && chance(40)) op->in[1] = view(op->in[0].b, 1, 1, n, t);
    if (op->kind == TS_OP_GROUP_STATS) {
        /* Doubles; a float32 view of the same bytes. */
        op->out = ts_view_dense(op->in[0].b, 1, 1, groups * 4, TS_F32);
        return;
    }
    if (chance(80)) op->weight = param(&c->weight, &c->weight_data, 1, n, 0, 0, ORDINARY, 1);
    if (chance(80)) op->bias = param(&c->bias, &c->bias_data, 1, n, 0, 0, ORDINARY, 1);
    if (group) {
        op->in[2] = ts_view_dense(op->in[0].b, 1, 1, groups * 4, TS_F32);
        op->act = chance(50) ? TS_ACT_SILU : TS_ACT_NONE;
    }
    if (chance(30)) op->out = op->in[0], c->alias = 0;
}

static void make_attention(kc_case *c, ts_dtype t, int kind) {
    static const int dims[] = {8, 16, 40, 64, 80, 160, 7, 33, 48, 1};
    ts_op *op = &c->op;
    int d = dims[pick(0, 9)], heads = pick(1, 3), b = pick(1, 2), keys = 0;
    op->attention.heads = heads;
    op->attention.causal = chance(20);
    c->segment_count = op->attention.causal ? 1 : pick(1, MAX_SEGMENTS);
    op->in[0] = view(b, pick(1, 8), pick(1, 12), d * heads, t);
    op->out = view(b, op->in[0].h, op->in[0].w, d * heads, t);
    op->scale = 1 / sqrtf((float)d);
    bool empty = chance(3);
    for (int s = 0; s < c->segment_count; s++) {
        int n = empty || (chance(15) && c->segment_count > 1) ? 0
                : chance(8)                                   ? pick(1000, 4000)
                                                              : pick(1, 300);
        ts_view v = view(b, 1, n ? n : 1, d * heads, t);
        c->keys[s] = make(v, kind == LARGE || kind == MIXED ? ORDINARY : kind, kind == LARGE ? 6 : 1);
        c->values[s] = make(v, kind == SHIFTED ? ORDINARY : kind, 1);
        c->segments[s] = (ts_segment){kc_at(&c->keys[s]), kc_at(&c->values[s]), n, v.ld, v.pitch};
        keys += n;
    }
    op->attention.max_tokens = keys + pick(0, 20) + 1;
}

static void make_simple(kc_case *c, ts_dtype t) {
    ts_op *op = &c->op;
    int b = pick(1, 3), h = pick(1, 9), w = pick(1, 9), n = channels();
    op->out = view(b, h, w, n, t);
    switch (op->kind) {
    case TS_OP_ACTIVATION:
    case TS_OP_COPY:
    case TS_OP_ADD:
        op->act = (ts_act)pick(TS_ACT_NONE, TS_ACT_QUICK_GELU);
        op->scale = chance(50) ? 1 : 0.18215f;
        op->in[0] = view(b, h, w, n, op->kind == TS_OP_COPY ? (ts_dtype)pick(0, 1) : t);
        if (op->kind == TS_OP_ADD) op->in[1] = view(b, h, w, n, t);
        if (op->kind != TS_OP_COPY && chance(40)) {
            c->alias = op->kind == TS_OP_ADD ? pick(0, 1) : 0;
            op->out = op->in[c->alias];
        }
        break;
    case TS_OP_GEGLU: op->in[0] = view(b, h, w, 2 * n, t); break;
    case TS_OP_CONCAT: {
        int other = channels();
        op->in[0] = view(b, h, w, n, t);
        op->in[1] = view(b, h, w, other, t);
        op->out = view(b, h, w, n + other, t);
        break;
    }
    case TS_OP_UPSAMPLE:
        op->in[0] = view(b, h + 2, w, n, t);
        op->out = view(b, 2 * h - (chance(30) ? 1 : 0) + 2, 2 * w - (chance(30) ? 1 : 0), n, t);
        break;
    case TS_OP_TIME_EMBED:
        op->time.dim = pick(4, 40);
        op->time.flip_sin_to_cos = chance(50);
        op->time.downscale_freq_shift = chance(50) ? 1 : 0;
        op->time.max_period = 10000;
        n = pick(1, 6);
        op->in[0] = view(b, 1, 1, n, TS_F32);
        op->out = view(b, 1, 1, n * op->time.dim, t);
        break;
    default: /* EMBED */
        op->in[0] = view(b, 1, h * w, 1, TS_F32);
        op->out = view(b, 1, h * w, n, t);
        op->weight = param(&c->weight, &c->weight_data, 2, 50, n, 0, ORDINARY, 1);
        if (chance(70)) op->bias = param(&c->bias, &c->bias_data, 2, h * w + 3, n, 0, ORDINARY, 1);
        break;
    }
}

/* Means and variances that fit the values more or less. */
static void fill_stats(kc_case *c, int kind) {
    const ts_view *v = &c->in[2].view;
    for (int i = 0; i < v->b * v->c / 4; i++) {
        double magnitude = kind == LARGE ? 1e5 : kind == TINY ? 1e-20 : kind == ZERO ? 0 : 1;
        double stats[2] = {(double)uniform() * 0.3 * magnitude + (kind == SHIFTED ? 30 : 0),
                           fabs((double)normal()) * magnitude * magnitude};
        memcpy((char *)kc_at(&c->in[2]) + (size_t)i * sizeof stats, stats, sizeof stats);
    }
}

static void fill_special(kc_case *c, int kind) {
    ts_view *x = &c->op.in[0];
    if (c->op.kind == TS_OP_GROUP_NORM) fill_stats(c, kind);
    if (c->op.kind != TS_OP_EMBED && c->op.kind != TS_OP_TIME_EMBED) return;
    for (int b = 0; b < x->b; b++)
        for (size_t k = 0; k < ts_view_tokens(x) * (size_t)x->c; k++) {
            size_t at = (size_t)b * x->pitch + k / (size_t)x->c * x->ld + k % (size_t)x->c;
            int32_t id = pick(0, 49);
            float time = (float)pick(0, 99900) / 100;
            if (c->op.kind == TS_OP_EMBED)
                memcpy((int32_t *)kc_at(&c->in[0]) + at, &id, sizeof id);
            else
                memcpy((float *)kc_at(&c->in[0]) + at, &time, sizeof time);
        }
}

/* float32: 1e-5 relative L2. A softmax of large scores magnifies their rounding by the scores' size. */
static double tolerance_of(const kc_case *c, int kind) {
    bool bf16 = c->op.in[0].dtype == TS_BF16 || c->op.out.dtype == TS_BF16;
    if (c->op.kind != TS_OP_ATTENTION) return 1e-5;
    double size = kind == LARGE     ? 1000
                  : kind == SHIFTED ? 900 * sqrt(c->op.out.c / c->op.attention.heads)
                                    : 20;
    return fmax(bf16 ? 8e-3 : 1e-5, 4e-7 * size);
}

void kc_case_make(kc_case *c, ts_op_kind kind, uint64_t seed) {
    memset(c, 0, sizeof *c);
    state = seed * 1000003u + (uint64_t)kind;
    next();
    ts_dtype t = chance(50) ? TS_F32 : TS_BF16;
    int values = chance(50) ? ORDINARY : pick(0, KINDS - 1);
    c->op.kind = kind;
    c->op.name = ts_op_kind_name(kind);
    c->alias = -1;
    switch (kind) {
    case TS_OP_CONV2D:
    case TS_OP_LINEAR: make_product(c, t, values); break;
    case TS_OP_GROUP_STATS:
    case TS_OP_GROUP_NORM:
    case TS_OP_LAYER_NORM: make_norm(c, t); break;
    case TS_OP_ATTENTION: make_attention(c, t, values); break;
    default: make_simple(c, t); break;
    }
    float factor = kind == TS_OP_ATTENTION && (values == LARGE || values == MIXED) ? 1e-5f : 1;
    if (kind == TS_OP_ATTENTION && values == MIXED) factor = 1e-4f;
    for (int i = 0; i < 3; i++)
        c->in[i] =
            make(c->op.in[i], values, kind == TS_OP_ATTENTION && values == LARGE ? 6 * factor : factor);
    fill_special(c, values);
    c->out = make(c->op.out, ZERO, 1);
    memset(c->out.memory, 0xee, c->out.bytes);
    c->tolerance = tolerance_of(c, values);
    snprintf(
        c->text, sizeof c->text,
        "%s %s->%s [%d %d %d %d]->[%d %d %d %d] ld %zu->%zu k%d s%d alias %d segments %d keys<%d, %s values",
        ts_op_kind_name(kind), ts_dtype_name(c->op.in[0].dtype), ts_dtype_name(c->op.out.dtype),
        c->op.in[0].b, c->op.in[0].h, c->op.in[0].w, c->op.in[0].c, c->op.out.b, c->op.out.h, c->op.out.w,
        c->op.out.c, c->op.in[0].ld, c->op.out.ld, c->op.conv.kernel, c->op.conv.stride, c->alias,
        c->segment_count, c->op.attention.max_tokens, value_names[values]);
}

void kc_case_free(kc_case *c) {
    for (int i = 0; i < 3; i++) free(c->in[i].memory);
    for (int i = 0; i < MAX_SEGMENTS; i++) free(c->keys[i].memory), free(c->values[i].memory);
    free(c->out.memory);
    free(c->weight_data);
    free(c->bias_data);
}
