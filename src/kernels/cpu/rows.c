/* Our own kernels over a whole op: each splits its tokens over the threads and calls the vector table. */
#include "kernels/cpu/cpu.h"

#include <math.h>
#include "base/alloc.h"
#include "kernels/cpu/parallel.h"
#include "kernels/param.h"

/* Fewer bytes than this are not worth waking another thread for. */
#define GRAIN_BYTES 32768u

typedef struct job {
    const ts_cpu_kernel *k;
    const ts_args *args;
    int image;
} job;

static const void *at(const void *base, const ts_view *v, size_t element) {
    return (const char *)base + element * ts_dtype_size(v->dtype);
}
static void *at_out(void *base, const ts_view *v, size_t element) {
    return (char *)base + element * ts_dtype_size(v->dtype);
}

static size_t grain_of(const ts_view *v) {
    size_t row = (size_t)v->c * ts_dtype_size(v->dtype);
    return row < GRAIN_BYTES ? GRAIN_BYTES / row : 1;
}

/* Tokens [begin, end) counted over all images, as runs within one image: calls fn for each. */
static void each_run(const ts_cpu_kernel *k, const ts_args *args, size_t begin, size_t end,
                     void (*fn)(const ts_cpu_kernel *k, const ts_rows *rows)) {
    const ts_view *x = &k->op.in[0], *r = &k->op.in[1], *y = &k->op.out;
    size_t tokens = ts_view_tokens(y);
    while (begin < end) {
        size_t image = begin / tokens, t = begin % tokens,
               n = tokens - t < end - begin ? tokens - t : end - begin;
        ts_rows rows = {.x = at(args->in[0], x, image * x->pitch + t * x->ld),
                        .y = at_out(args->out, y, image * y->pitch + t * y->ld),
                        .tokens = n,
                        .ldx = x->ld,
                        .ldy = y->ld,
                        .c = y->c,
                        .dtype = x->dtype};
        if (r->c) {
            rows.r = at(args->in[1], r, image * r->pitch + t * r->ld);
            rows.ldr = r->ld;
        }
        fn(k, &rows);
        begin += n;
    }
}

static void layer_norm_rows(const ts_cpu_kernel *k, const ts_rows *rows) {
    k->vec->layer_norm(rows, k->weight, k->bias, k->op.norm.eps);
}
static void activation_rows(const ts_cpu_kernel *k, const ts_rows *rows) {
    k->vec->activation(rows, k->op.act);
}
static void geglu_rows(const ts_cpu_kernel *k, const ts_rows *rows) {
    k->vec->geglu(rows);
}
static void add_rows(const ts_cpu_kernel *k, const ts_rows *rows) {
    k->vec->add(rows);
}
static void copy_rows(const ts_cpu_kernel *k, const ts_rows *rows) {
    k->vec->copy(rows, k->op.out.dtype, k->op.scale);
}

static void rows_part(void *arg, int part, size_t begin, size_t end) {
    static void (*const by_kind[TS_OP_COUNT])(const ts_cpu_kernel *k, const ts_rows *rows) = {
        [TS_OP_LAYER_NORM] = layer_norm_rows,
        [TS_OP_ACTIVATION] = activation_rows,
        [TS_OP_GEGLU] = geglu_rows,
        [TS_OP_ADD] = add_rows,
        [TS_OP_COPY] = copy_rows,
    };
    const job *j = arg;
    (void)part;
    each_run(j->k, j->args, begin, end, by_kind[j->k->op.kind]);
}

static ts_code run_rows(const ts_kernel *kernel, const ts_args *args) {
    const ts_cpu_kernel *k = (const ts_cpu_kernel *)kernel;
    job j = {k, args, 0};
    ts_parallel_for(k->threads, (size_t)k->op.out.b * ts_view_tokens(&k->op.out), grain_of(&k->op.out),
                    rows_part, &j);
    return TS_OK;
}

/* ---------------------------------------------------------------------------------------------- GroupNorm */

/* The term that is added to every token of an image, as float32. */
static void broadcast_term(const ts_op *op, const ts_args *args, int image, float *ret) {
    const ts_view *r = &op->in[1];
    for (int i = 0; i < op->in[0].c; i++)
        ret[i] = r->c == 0 ? 0
                 : r->dtype == TS_F32
                     ? ((const float *)args->in[1])[(size_t)image * r->pitch + (size_t)i]
                     : ts_bf16_to_f32(((const uint16_t *)args->in[1])[(size_t)image * r->pitch + (size_t)i]);
}

/* Scratch: the broadcast term, then a pair of double sums by channel for each part. */
static void stats_part(void *arg, int part, size_t begin, size_t end) {
    const job *j = arg;
    const ts_view *x = &j->k->op.in[0];
    size_t c = (size_t)x->c;
    double *sums = (double *)j->args->scratch + (size_t)part * 2 * c;
    const float *add = (const float *)((const double *)j->args->scratch + (size_t)j->k->threads * 2 * c);
    ts_rows rows = {.x = at(j->args->in[0], x, (size_t)j->image * x->pitch + begin * x->ld),
                    .tokens = end - begin,
                    .ldx = x->ld,
                    .c = x->c,
                    .dtype = x->dtype};
    memset(sums, 0, 2 * c * sizeof *sums);
    j->k->vec->stats(&rows, j->k->op.in[1].c ? add : NULL, sums, sums + c);
}

static ts_code run_group_stats(const ts_kernel *kernel, const ts_args *args) {
    const ts_cpu_kernel *k = (const ts_cpu_kernel *)kernel;
    const ts_view *x = &k->op.in[0];
    size_t c = (size_t)x->c, groups = (size_t)k->op.norm.groups, width = c / groups,
           tokens = ts_view_tokens(x);
    double *sums = args->scratch, *ret = args->out;
    int parts = ts_parallel_parts(k->threads, tokens, grain_of(x));
    for (int b = 0; b < x->b; b++) {
        job j = {k, args, b};
        broadcast_term(&k->op, args, b, (float *)(sums + (size_t)k->threads * 2 * c));
        ts_parallel_for(k->threads, tokens, grain_of(x), stats_part, &j);
        for (size_t g = 0; g < groups; g++) {
            double s = 0, q = 0;
            for (int p = 0; p < parts; p++)
                for (size_t i = g * width; i < (g + 1) * width; i++) {
                    s += sums[(size_t)p * 2 * c + i];
                    q += sums[(size_t)p * 2 * c + c + i];
                }
            ret[((size_t)b * groups + g) * 2] = s;
            ret[((size_t)b * groups + g) * 2 + 1] = q;
        }
    }
    return TS_OK;
}

/* Scratch: add, scale and shift of every channel. */
static void norm_part(void *arg, int part, size_t begin, size_t end) {
    const job *j = arg;
    const ts_view *x = &j->k->op.in[0], *y = &j->k->op.out;
    const float *add = j->args->scratch;
    ts_rows rows = {.x = at(j->args->in[0], x, (size_t)j->image * x->pitch + begin * x->ld),
                    .y = at_out(j->args->out, y, (size_t)j->image * y->pitch + begin * y->ld),
                    .tokens = end - begin,
                    .ldx = x->ld,
                    .ldy = y->ld,
                    .c = x->c,
                    .dtype = x->dtype};
    (void)part;
    j->k->vec->affine(&rows, add, add + x->c, add + 2 * (size_t)x->c, j->k->op.act == TS_ACT_SILU);
}

static ts_code run_group_norm(const ts_kernel *kernel, const ts_args *args) {
    const ts_cpu_kernel *k = (const ts_cpu_kernel *)kernel;
    const ts_view *x = &k->op.in[0];
    int c = x->c, groups = k->op.norm.groups, width = c / groups;
    const double *stats = args->in[2];
    float *add = args->scratch, *scale = add + c, *shift = scale + c;
    for (int b = 0; b < x->b; b++) {
        job j = {k, args, b};
        broadcast_term(&k->op, args, b, add);
        for (int i = 0; i < c; i++) {
            const double *s = stats + ((size_t)b * (size_t)groups + (size_t)(i / width)) * 2;
            double factor = 1 / sqrt(s[1] + (double)k->op.norm.eps);
            add[i] = (float)((double)add[i] - s[0]);
            scale[i] = (float)(k->weight ? factor * (double)k->weight[i] : factor);
            shift[i] = k->bias ? k->bias[i] : 0;
        }
        ts_parallel_for(k->threads, ts_view_tokens(x), grain_of(x), norm_part, &j);
    }
    return TS_OK;
}

/* -------------------------------------------------------------------------------------------------- moves */

typedef struct move_job {
    const ts_view *from, *to;
    const void *in;
    void *out;
} move_job;

static void move_part(void *arg, int part, size_t begin, size_t end) {
    const move_job *j = arg;
    const ts_view *x = j->from, *y = j->to;
    size_t tokens = ts_view_tokens(x), size = ts_dtype_size(x->dtype), c = (size_t)x->c;
    bool dense = x->ld == c && y->ld == c;
    (void)part;
    while (begin < end) {
        size_t image = begin / tokens, t = begin % tokens, n = dense ? tokens - t : 1;
        if (n > end - begin) n = end - begin;
        memcpy(at_out(j->out, y, image * y->pitch + t * y->ld), at(j->in, x, image * x->pitch + t * x->ld),
               n * c * size);
        begin += n;
    }
}

void ts_cpu_move(int threads, const ts_view *from, const void *in, const ts_view *to, void *out) {
    move_job j = {from, to, in, out};
    ts_parallel_for(threads, (size_t)from->b * ts_view_tokens(from), grain_of(from), move_part, &j);
}

static ts_code run_concat(const ts_kernel *kernel, const ts_args *args) {
    const ts_cpu_kernel *k = (const ts_cpu_kernel *)kernel;
    ts_view left = k->op.out, right = k->op.out;
    left.c = k->op.in[0].c, right.c = k->op.in[1].c;
    ts_cpu_move(k->threads, &k->op.in[0], args->in[0], &left, args->out);
    ts_cpu_move(k->threads, &k->op.in[1], args->in[1], &right, at_out(args->out, &right, (size_t)left.c));
    return TS_OK;
}

/* Rows of y of all images. */
static void upsample_part(void *arg, int part, size_t begin, size_t end) {
    const job *j = arg;
    const ts_view *x = &j->k->op.in[0], *y = &j->k->op.out;
    size_t bytes = (size_t)x->c * ts_dtype_size(x->dtype);
    (void)part;
    for (size_t i = begin; i < end; i++) {
        size_t image = i / (size_t)y->h, row = i % (size_t)y->h;
        size_t from = row == 0 ? 0 : row == (size_t)y->h - 1 ? (size_t)x->h - 1 : 1 + (row - 1) / 2;
        for (size_t w = 0; w < (size_t)y->w; w++)
            memcpy(at_out(j->args->out, y, image * y->pitch + (row * (size_t)y->w + w) * y->ld),
                   at(j->args->in[0], x, image * x->pitch + (from * (size_t)x->w + w / 2) * x->ld), bytes);
    }
}

static ts_code run_upsample(const ts_kernel *kernel, const ts_args *args) {
    const ts_cpu_kernel *k = (const ts_cpu_kernel *)kernel;
    const ts_view *y = &k->op.out;
    job j = {k, args, 0};
    size_t grain = grain_of(y) / (size_t)y->w;
    ts_parallel_for(k->threads, (size_t)y->b * (size_t)y->h, grain ? grain : 1, upsample_part, &j);
    return TS_OK;
}

/* ---------------------------------------------------------------------------------------------- attention */

/* Work items are blocks of queries, ordered by image, head and query; a thread takes a run of them, packs
 * each head's keys once, and has a scratch of its own. */
static size_t query_blocks(const ts_cpu_kernel *k) {
    size_t block = (size_t)*k->vec->attend_block;
    return (ts_view_tokens(&k->op.out) + block - 1) / block;
}
static size_t attention_items(const ts_cpu_kernel *k) {
    return (size_t)k->op.out.b * (size_t)k->op.attention.heads * query_blocks(k);
}

/* One thread does what takes about 20 microseconds; more is worth sharing. */
static size_t attention_grain(const ts_cpu_kernel *k) {
    double work = ts_op_flops(&k->op, 0) / (double)attention_items(k);
    double items = 4e6 / work;
    return items < 1 ? 1 : items > 1e6 ? 1000000 : (size_t)items;
}

static size_t attention_scratch(const ts_cpu_kernel *k) {
    size_t items = attention_items(k);
    size_t parts = (size_t)ts_parallel_parts(k->threads, items, attention_grain(k));
    size_t blocks = (items + parts - 1) / parts, all = query_blocks(k);
    size_t queries = (blocks < all ? blocks : all) * (size_t)*k->vec->attend_block;
    return k->vec->attend_scratch(k->op.out.c / k->op.attention.heads, (int)queries,
                                  k->op.attention.max_tokens, k->op.in[0].dtype);
}

static void attention_part(void *arg, int part, size_t begin, size_t end) {
    const job *j = arg;
    const ts_op *op = &j->k->op;
    const ts_view *x = &op->in[0], *y = &op->out;
    size_t blocks = query_blocks(j->k), heads = (size_t)op->attention.heads, d = (size_t)y->c / heads;
    size_t block = (size_t)*j->k->vec->attend_block;
    int tokens = (int)ts_view_tokens(x);
    while (begin < end) {
        size_t head = begin / blocks % heads, image = begin / blocks / heads, first = begin % blocks;
        size_t n = blocks - first < end - begin ? blocks - first : end - begin;
        ts_attend a = {
            .q = at(j->args->in[0], x, image * x->pitch + head * d),
            .y = at_out(j->args->out, y, image * y->pitch + head * d),
            .ldq = x->ld,
            .ldy = y->ld,
            .segments = j->args->segments,
            .segment_count = j->args->segment_count,
            .image = image,
            .first = head * d,
            .d = (int)d,
            .begin = (int)(first * block),
            .end = (int)((first + n) * block),
            .scale = op->scale,
            .causal = op->attention.causal,
            .dtype = x->dtype,
            .scratch = (char *)j->args->scratch + (size_t)part * attention_scratch(j->k),
        };
        if (a.end > tokens) a.end = tokens;
        j->k->vec->attend(&a);
        begin += n;
    }
}

static ts_code run_attention(const ts_kernel *kernel, const ts_args *args) {
    const ts_cpu_kernel *k = (const ts_cpu_kernel *)kernel;
    job j = {k, args, 0};
    int64_t keys = 0;
    for (int i = 0; i < args->segment_count; i++) keys += args->segments[i].tokens;
    if (keys > k->op.attention.max_tokens) return TS_EDEVICE; /* the scratch would not hold them */
    ts_parallel_for(k->threads, attention_items(k), attention_grain(k), attention_part, &j);
    return TS_OK;
}

/* ------------------------------------------------------------------------------------------------ prepare */

static void free_kernel(ts_kernel *kernel) {
    free(kernel);
}

/* Bytes of scratch; SIZE_MAX when they cannot be. */
static size_t scratch_of(const ts_cpu_kernel *k) {
    size_t c = (size_t)k->op.in[0].c, bytes;
    switch (k->op.kind) {
    case TS_OP_GROUP_STATS: return ((size_t)k->threads * 2 + 1) * c * sizeof(double);
    case TS_OP_GROUP_NORM: return 3 * c * sizeof(float);
    case TS_OP_ATTENTION:
        return ts_mul_size(attention_scratch(k), (size_t)k->threads, &bytes) ? bytes : SIZE_MAX;
    default: return 0;
    }
}

ts_code ts_cpu_prepare_rows(const ts_cpu_device *device, ts_store *store, const ts_op *op, ts_kernel **ret,
                            ts_error *e) {
    static ts_code (*const run[TS_OP_COUNT])(const ts_kernel *kernel, const ts_args *args) = {
        [TS_OP_GROUP_STATS] = run_group_stats,
        [TS_OP_GROUP_NORM] = run_group_norm,
        [TS_OP_LAYER_NORM] = run_rows,
        [TS_OP_ATTENTION] = run_attention,
        [TS_OP_ACTIVATION] = run_rows,
        [TS_OP_GEGLU] = run_rows,
        [TS_OP_ADD] = run_rows,
        [TS_OP_CONCAT] = run_concat,
        [TS_OP_UPSAMPLE] = run_upsample,
        [TS_OP_COPY] = run_rows,
    };
    ts_dtype t = op->in[0].dtype;
    if (!run[op->kind] || (t != TS_F32 && t != TS_BF16)) return TS_EUNSUPPORTED;
    if (op->kind != TS_OP_GROUP_STATS && op->out.dtype != TS_F32 && op->out.dtype != TS_BF16)
        return TS_EUNSUPPORTED;
    ts_cpu_kernel *k = ts_new0(ts_cpu_kernel);
    if (!k) return ts_fail(e, TS_ENOMEM, "a kernel");
    k->op = *op;
    k->threads = device->base.threads;
    k->vec = device->vec;
    k->base.name = device->vec->name;
    k->base.run = run[op->kind];
    k->base.free = free_kernel;
    ts_code rc = ts_param_f32(store, op->weight, &k->weight, e);
    if (rc == TS_OK) rc = ts_param_f32(store, op->bias, &k->bias, e);
    if (rc == TS_OK && (k->base.scratch = scratch_of(k)) == SIZE_MAX)
        rc = ts_fail(e, TS_EINVAL, "%s: too large for its scratch memory", op->name ? op->name : "");
    if (rc) {
        free(k);
        return rc;
    }
    *ret = &k->base;
    return TS_OK;
}
