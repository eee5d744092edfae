/* The layers: what each records, and which exchanges it needs in a picture of several patches (design: the
 * table in docs/ARCHITECTURE.md; PCPP arXiv 2412.02962, DistriFusion arXiv 2402.19481). */
#include "engine/builder_record.h"

#include <math.h>

static ts_view view_of(const ts_builder *b, ts_buf x) {
    return x.id < 0 ? (ts_view){0} : b->values[x.id].view;
}

/* An item for a kernel whose operands are whole tensors of this patch. */
static item *kernel_item(ts_builder *b, ts_op_kind kind, ts_scope s, ts_buf x0, ts_buf x1, ts_buf x2,
                         ts_buf out) {
    item *it = builder_item(b, ITEM_KERNEL, s, x0, x1, x2, out);
    if (!it) return NULL;
    it->op.kind = kind;
    it->op.in[0] = view_of(b, x0);
    it->op.in[1] = view_of(b, x1);
    it->op.in[2] = view_of(b, x2);
    it->op.out = view_of(b, out);
    return it;
}

/* ---- halo rows ---- */

/* Makes sure that the rows around x are there before the next item reads them. */
static void need_halo(ts_builder *b, ts_scope s, ts_buf x, bool above, bool below, bool fresh) {
    if (b->code) return;
    value *v = value_of(b, x);
    v->padded = true;
    if (v->halo_ready) return;
    v->halo_ready = above && below;
    int exchange = -1;
    if (builder_divided(b, x)) {
        exchange = builder_exchange(b, TS_EXCHANGE_HALO);
        if (exchange < 0) return;
        ts_exchange *ex = &b->exchanges[exchange];
        int i = b->build.patch, n = b->build.rows.n;
        ts_slot row = {.runs = b->build.batch,
                       .run_bytes = (size_t)x.w * (size_t)x.c * ts_dtype_size(v->view.dtype)};
        if (above && i > 0) ex->from[i - 1] = row;
        if (above && i + 1 < n) ex->to[i + 1] = row;
        if (below && i + 1 < n) ex->from[i + 1] = row;
        if (below && i > 0) ex->to[i - 1] = row;
        item *post = builder_item(b, ITEM_HALO_POST, s, x, TS_NO_BUF, TS_NO_BUF, TS_NO_BUF);
        if (!post) return;
        post->exchange = exchange;
        post->above = above;
        post->below = below;
        post->fresh = fresh;
    }
    item *take = builder_item(b, ITEM_HALO_TAKE, s, x, TS_NO_BUF, TS_NO_BUF, TS_NO_BUF);
    if (!take) return;
    take->exchange = exchange;
    take->above = above;
    take->below = below;
    take->fresh = fresh;
}

/* ---- convolutions and matrix products ---- */

ts_buf ts_conv3x3(ts_builder *b, ts_scope s, ts_buf x, int channels, ts_buf residual, int flags) {
    if (b->code) return TS_NO_BUF;
    const ts_param *w = builder_param(b, s, "weight");
    need_halo(b, s, x, true, true, flags & TS_CONV_FRESH);
    ts_buf y = builder_value(b, value_of(b, x)->rows, x.w, channels,
                             flags & TS_CONV_F32_OUT ? TS_F32 : b->build.dtype);
    item *it = kernel_item(b, TS_OP_CONV2D, s, x, residual, TS_NO_BUF, y);
    if (!it) return TS_NO_BUF;
    it->op.weight = w;
    it->op.bias = builder_param(b, s, "bias");
    it->op.conv.kernel = 3;
    it->op.conv.stride = 1;
    it->op.conv.pad_left = it->op.conv.pad_right = 1;
    it->op.in[0].h = x.h + 2;
    it->in_start[0] = VIEW_HALO;
    return y;
}

/* Stride two reads one row more than it halves: the one above where the padding is all around (the row below
 * only where the picture ends), the one below where it is at the end. */
static ts_buf halve(ts_builder *b, ts_scope s, ts_buf x, int channels, bool end) {
    if (b->code) return TS_NO_BUF;
    const ts_param *w = builder_param(b, s, "weight");
    need_halo(b, s, x, !end, end, false);
    ts_buf y = builder_value(b, ts_rows_halve(value_of(b, x)->rows), (x.w + 1) / 2, channels, b->build.dtype);
    item *it = kernel_item(b, TS_OP_CONV2D, s, x, TS_NO_BUF, TS_NO_BUF, y);
    if (!it) return TS_NO_BUF;
    it->op.weight = w;
    it->op.bias = builder_param(b, s, "bias");
    it->op.conv.kernel = 3;
    it->op.conv.stride = 2;
    it->op.conv.pad_left = !end;
    it->op.conv.pad_right = end ? 1 : x.w % 2;
    it->op.in[0].h = 2 * y.h + 1;
    it->in_start[0] = end ? VIEW_ROWS : VIEW_HALO;
    return y;
}

ts_buf ts_conv3x3_down(ts_builder *b, ts_scope s, ts_buf x, int channels) {
    return halve(b, s, x, channels, false);
}

ts_buf ts_conv3x3_down_end(ts_builder *b, ts_scope s, ts_buf x, int channels) {
    if (x.h % 2 || x.w % 2) ts_builder_fail(b, TS_EINVAL, "%s: %d x %d is not even", s.path, x.h, x.w);
    return halve(b, s, x, channels, true);
}

static ts_buf matrix(ts_builder *b, ts_scope s, const ts_param *w, const ts_param *bias, ts_buf x,
                     int channels, ts_buf residual) {
    if (b->code) return TS_NO_BUF;
    ts_buf y = builder_value(b, value_of(b, x)->rows, x.w, channels, b->build.dtype);
    item *it = kernel_item(b, TS_OP_LINEAR, s, x, residual, TS_NO_BUF, y);
    if (!it) return TS_NO_BUF;
    it->op.weight = w;
    it->op.bias = bias;
    return y;
}

static ts_buf linear(ts_builder *b, ts_scope s, ts_buf x, int channels, ts_buf residual, bool biased) {
    const ts_param *w = builder_param(b, s, "weight"), *bias = biased ? builder_param(b, s, "bias") : NULL;
    return matrix(b, s, w, bias, x, channels, residual);
}

ts_buf ts_linear(ts_builder *b, ts_scope s, ts_buf x, int channels, ts_buf residual) {
    return linear(b, s, x, channels, residual, true);
}

ts_buf ts_linear_unbiased(ts_builder *b, ts_scope s, ts_buf x, int channels, ts_buf residual) {
    return linear(b, s, x, channels, residual, false);
}

/* Keys and values in one product, so that one run of memory holds what a token sends. */
static ts_buf keys_values(ts_builder *b, ts_scope s, ts_qkv names, ts_buf x, int channels) {
    ts_scope k = ts_sub(s, "%s", names.k), v = ts_sub(s, "%s", names.v);
    const ts_param *wk = builder_param(b, k, "weight"), *wv = builder_param(b, v, "weight"), *w = NULL;
    const ts_param *bk = names.biased ? builder_param(b, k, "bias") : NULL,
                   *bv = names.biased ? builder_param(b, v, "bias") : NULL, *bias = NULL;
    if (b->code) return TS_NO_BUF;
    b->code = ts_weights_join(b->weights, wk, wv, &w, &b->error);
    if (!b->code && bk) b->code = ts_weights_join(b->weights, bk, bv, &bias, &b->error);
    return matrix(b, k, w, bias, x, 2 * channels, TS_NO_BUF);
}

/* ---- normalisation ---- */

ts_buf ts_group_norm(ts_builder *b, ts_scope s, ts_buf x, ts_buf add, int groups, double eps, ts_act act) {
    if (b->code) return TS_NO_BUF;
    if (groups <= 0 || x.c % groups) {
        ts_builder_fail(b, TS_EFORMAT, "%s: %d channels are not divisible into %d groups", s.path, x.c,
                        groups);
        return TS_NO_BUF;
    }
    const ts_param *w = builder_param(b, s, "weight"), *bias = builder_param(b, s, "bias");
    /* Sums lie in the own slot of the exchange, by parity, because a later evaluation compares with them. */
    int exchange = builder_exchange(b, TS_EXCHANGE_STATS);
    if (exchange < 0) return TS_NO_BUF;
    ts_exchange *ex = &b->exchanges[exchange];
    ts_slot sums = {.runs = 1, .run_bytes = (size_t)b->build.batch * (size_t)groups * 2 * sizeof(double)};
    int n = builder_divided(b, x) ? b->build.rows.n : 1, self = n > 1 ? b->build.patch : 0;
    for (int j = 0; j < n; j++) {
        ex->from[j] = sums;
        if (j != self) ex->to[j] = sums;
    }
    /* A double is two float32 elements as far as memory goes. */
    ts_buf moments = builder_value(b, builder_undivided(1), 1, 4 * groups, TS_F32);
    item *it = builder_item(b, ITEM_STATS, s, x, add, TS_NO_BUF, moments);
    if (!it) return TS_NO_BUF;
    it->exchange = exchange;
    it->op.kind = TS_OP_GROUP_STATS;
    it->op.in[0] = view_of(b, x);
    it->op.in[1] = view_of(b, add);
    it->op.out = ts_view_dense(b->build.batch, 1, 1, 2 * groups, TS_F32);
    it->op.norm.groups = groups;

    ts_buf y = builder_value(b, value_of(b, x)->rows, x.w, x.c, b->build.dtype);
    it = kernel_item(b, TS_OP_GROUP_NORM, s, x, add, moments, y);
    if (!it) return TS_NO_BUF;
    it->op.in[2] = ts_view_dense(b->build.batch, 1, 1, 2 * groups, TS_F32);
    it->op.weight = w;
    it->op.bias = bias;
    it->op.act = act;
    it->op.norm.groups = groups;
    it->op.norm.eps = (float)eps;
    return y;
}

ts_buf ts_layer_norm(ts_builder *b, ts_scope s, ts_buf x, double eps) {
    if (b->code) return TS_NO_BUF;
    const ts_param *w = builder_param(b, s, "weight"), *bias = builder_param(b, s, "bias");
    if (b->code) return TS_NO_BUF;
    ts_buf y = builder_value(b, value_of(b, x)->rows, x.w, x.c, b->build.dtype);
    item *it = kernel_item(b, TS_OP_LAYER_NORM, s, x, TS_NO_BUF, TS_NO_BUF, y);
    if (!it) return TS_NO_BUF;
    it->op.weight = w;
    it->op.bias = bias;
    it->op.norm.eps = (float)eps;
    return y;
}

/* ---- attention ---- */

static ts_slot token_slot(const ts_builder *b, ts_span span, size_t token_bytes) {
    long n = span.end - span.begin;
    return (ts_slot){.runs = n > 0 ? b->build.batch : 0,
                     .run_bytes = (size_t)n * token_bytes,
                     .first_token = span.begin,
                     .tokens = (int)n};
}

/* Exchanges of one layer's keys and values, and the item that posts them as soon as they are computed. */
static void exchange_tokens(ts_builder *b, ts_scope s, ts_buf kv, int *ret_gather, int *ret_window) {
    const ts_rows rows = value_of(b, kv)->rows;
    const int me = b->build.patch;
    const ts_span all = {0, (long)ts_rows_height(&rows) * kv.w};
    const ts_span own = ts_rows_share(&rows, kv.w, me, all);
    size_t token_bytes = (size_t)kv.c * ts_dtype_size(b->build.dtype);
    int gather = builder_exchange(b, TS_EXCHANGE_GATHER), window = -1;
    if (b->build.displaced) window = builder_exchange(b, TS_EXCHANGE_WINDOW);
    if (b->code) return;
    for (int j = 0; j < rows.n; j++) {
        if (j == me) continue;
        b->exchanges[gather].from[j] = token_slot(b, ts_rows_share(&rows, kv.w, j, all), token_bytes);
        b->exchanges[gather].to[j] = token_slot(b, own, token_bytes);
        if (window < 0) continue;
        ts_span mine = ts_rows_window(&rows, kv.w, me, b->build.partial);
        ts_span theirs = ts_rows_window(&rows, kv.w, j, b->build.partial);
        b->exchanges[window].from[j] = token_slot(b, ts_rows_share(&rows, kv.w, j, mine), token_bytes);
        b->exchanges[window].to[j] = token_slot(b, ts_rows_share(&rows, kv.w, me, theirs), token_bytes);
    }
    item *it = builder_item(b, ITEM_TOKENS_POST, s, TS_NO_BUF, TS_NO_BUF, TS_NO_BUF, TS_NO_BUF);
    if (!it) return;
    builder_touch_kv(b, it, kv);
    it->gather = *ret_gather = gather;
    it->exchange = *ret_window = window;
}

static ts_buf attend(ts_builder *b, ts_scope s, ts_buf q, ts_buf kv, int heads, bool causal, int gather,
                     int window) {
    if (b->code) return TS_NO_BUF;
    if (heads <= 0 || q.c % heads) {
        ts_builder_fail(b, TS_EFORMAT, "%s: %d channels are not divisible into %d heads", s.path, q.c, heads);
        return TS_NO_BUF;
    }
    ts_buf y = builder_value(b, value_of(b, q)->rows, q.w, q.c, b->build.dtype);
    item *it = kernel_item(b, TS_OP_ATTENTION, s, q, TS_NO_BUF, TS_NO_BUF, y);
    if (!it) return TS_NO_BUF;
    it->kind = ITEM_ATTENTION;
    it->gather = gather;
    it->exchange = window;
    it->op.scale = (float)(1.0 / sqrt((double)(q.c / heads)));
    it->op.attention.heads = heads;
    it->op.attention.causal = causal;
    it->op.attention.max_tokens = (gather >= 0 ? ts_rows_height(&value_of(b, kv)->rows) : kv.h) * kv.w;
    builder_touch_kv(b, it, kv);
    return y;
}

static ts_buf query(ts_builder *b, ts_scope s, ts_qkv names, ts_buf x, int channels) {
    return linear(b, ts_sub(s, "%s", names.q), x, channels, TS_NO_BUF, names.biased);
}

ts_buf ts_self_attention(ts_builder *b, ts_scope s, ts_qkv names, ts_buf x, int heads) {
    int gather = -1, window = -1;
    ts_buf kv = keys_values(b, s, names, x, x.c);
    if (builder_divided(b, x)) exchange_tokens(b, s, kv, &gather, &window);
    ts_buf q = query(b, s, names, x, x.c);
    return attend(b, s, q, kv, heads, false, gather, window);
}

ts_buf ts_cross_attention(ts_builder *b, ts_scope s, ts_qkv names, ts_buf x, ts_buf context, int heads) {
    bool once = b->once;
    b->once = true;
    ts_buf kv = keys_values(b, s, names, context, x.c);
    b->once = once;
    ts_buf q = query(b, s, names, x, x.c);
    return attend(b, s, q, kv, heads, false, -1, -1);
}

ts_buf ts_causal_attention(ts_builder *b, ts_scope s, ts_qkv names, ts_buf x, int heads) {
    ts_buf kv = keys_values(b, s, names, x, x.c);
    ts_buf q = query(b, s, names, x, x.c);
    return attend(b, s, q, kv, heads, true, -1, -1);
}

/* ---- elementwise and the rest ---- */

/* One input, an output of the same rows with c channels. */
static item *simple(ts_builder *b, ts_op_kind kind, ts_scope s, ts_buf x, ts_buf r, int c, ts_dtype dtype,
                    ts_buf *ret) {
    if (b->code) return NULL;
    *ret = builder_value(b, value_of(b, x)->rows, x.w, c, dtype);
    return kernel_item(b, kind, s, x, r, TS_NO_BUF, *ret);
}

ts_buf ts_activation(ts_builder *b, ts_scope s, ts_buf x, ts_act act) {
    ts_buf y = TS_NO_BUF;
    item *it = simple(b, TS_OP_ACTIVATION, s, x, TS_NO_BUF, x.c, b->build.dtype, &y);
    if (it) it->op.act = act;
    return y;
}

ts_buf ts_geglu(ts_builder *b, ts_scope s, ts_buf x) {
    ts_buf y = TS_NO_BUF;
    simple(b, TS_OP_GEGLU, s, x, TS_NO_BUF, x.c / 2, b->build.dtype, &y);
    return y;
}

ts_buf ts_add(ts_builder *b, ts_scope s, ts_buf x, ts_buf r) {
    ts_buf y = TS_NO_BUF;
    simple(b, TS_OP_ADD, s, x, r, x.c, b->build.dtype, &y);
    return y;
}

ts_buf ts_concat(ts_builder *b, ts_scope s, ts_buf x, ts_buf r) {
    ts_buf y = TS_NO_BUF;
    simple(b, TS_OP_CONCAT, s, x, r, x.c + r.c, b->build.dtype, &y);
    return y;
}

ts_buf ts_cast(ts_builder *b, ts_scope s, ts_buf x, ts_dtype dtype, float factor) {
    ts_buf y = TS_NO_BUF;
    item *it = simple(b, TS_OP_COPY, s, x, TS_NO_BUF, x.c, dtype, &y);
    if (it) it->op.scale = factor;
    return y;
}

ts_buf ts_upsample(ts_builder *b, ts_scope s, ts_buf x, int height, int w) {
    if (b->code) return TS_NO_BUF;
    /* The neighbours' rows are exchanged before they are doubled: half the bytes. */
    need_halo(b, s, x, true, true, false);
    if (b->code) return TS_NO_BUF;
    ts_buf y = builder_value(b, ts_rows_double(value_of(b, x)->rows, height), w, x.c, b->build.dtype);
    item *it = kernel_item(b, TS_OP_UPSAMPLE, s, x, TS_NO_BUF, TS_NO_BUF, y);
    if (!it) return TS_NO_BUF;
    value_of(b, y)->padded = value_of(b, y)->halo_ready = true;
    it->op.in[0].h = x.h + 2;
    it->op.out.h = y.h + 2;
    it->in_start[0] = it->out_start = VIEW_HALO;
    return y;
}

ts_buf ts_time_embed(ts_builder *b, ts_scope s, ts_buf scalars, int dim, bool flip_sin_to_cos, double shift) {
    ts_buf y = TS_NO_BUF;
    item *it = simple(b, TS_OP_TIME_EMBED, s, scalars, TS_NO_BUF, scalars.c * dim, b->build.dtype, &y);
    if (!it) return TS_NO_BUF;
    it->op.time.dim = dim;
    it->op.time.flip_sin_to_cos = flip_sin_to_cos;
    it->op.time.downscale_freq_shift = (float)shift;
    it->op.time.max_period = 10000.0f;
    return y;
}

ts_buf ts_embed(ts_builder *b, ts_scope tokens, ts_scope positions, int vocabulary, ts_buf ids, ts_buf own) {
    const ts_param *table = builder_param(b, tokens, "weight"),
                   *place = builder_param(b, positions, "weight");
    if (table && table->shape[0] != vocabulary)
        ts_builder_fail(b, TS_EFORMAT, "%s.weight has %lld rows, the vocabulary %d tokens", tokens.path,
                        (long long)table->shape[0], vocabulary);
    ts_buf y = TS_NO_BUF;
    item *it = simple(b, TS_OP_EMBED, tokens, ids, own, own.c, b->build.dtype, &y);
    if (!it) return TS_NO_BUF;
    it->op.weight = table;
    it->op.bias = place;
    return y;
}
