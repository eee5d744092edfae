/* Runs a compiled program, op by op, and does its exchanges. (CPU memory; ranks share the address space.) */
#include "engine/program_internal.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "engine/moments.h"

typedef struct run {
    ts_program *p;
    ts_transport *transport;
    int rank;
    ts_evaluation ev;
} run;

static ts_code wait_for(run *r, int peer, int x, unsigned evaluation) {
    uint64_t t0 = ts_now_ns();
    ts_code rc = r->transport->ops->wait(r->transport, r->rank, peer, x, evaluation);
    r->p->wait_ns += ts_now_ns() - t0;
    return rc;
}

static ts_code post(run *r, int peer, int x, const void *source, size_t pitch) {
    const ts_slot *s = &r->p->b->exchanges[x].to[peer];
    r->p->sent_bytes += (uint64_t)s->runs * s->run_bytes;
    return r->transport->ops->post(r->transport, r->rank, peer, x, r->ev.number, source, pitch);
}

static char *slot_at(const run *r, int x, int peer, unsigned evaluation) {
    return r->p->inbox + r->p->b->exchanges[x].from[peer].offset[evaluation & 1];
}

/* A kernel's operands, where the arena is now. */
static ts_args args_of(const ts_program *p, const item *it) {
    ts_args args = {.scratch = ts_arena_memory(p->arena) + p->scratch};
    for (int k = 0; k < 3; k++)
        if (it->in[k] >= 0) args.in[k] = program_address(p, it->in[k], it->in_start[k]);
    if (it->out >= 0) args.out = program_address(p, it->out, it->out_start);
    return args;
}

/* ---- halo ---- */

static size_t pitch_bytes(const value *v) {
    return v->view.pitch * ts_dtype_size(v->view.dtype);
}
static size_t row_bytes(const value *v) {
    return (size_t)v->view.w * (size_t)v->view.c * ts_dtype_size(v->view.dtype);
}

static ts_code halo_post(run *r, const item *it) {
    /* Nobody reads the rows that an asynchronous last evaluation would leave behind. */
    if (!it->fresh && !r->ev.fresh && !r->ev.next_displaced) return TS_OK;
    const value *v = &r->p->b->values[it->in[0]];
    const char *first = program_address(r->p, it->in[0], VIEW_ROWS);
    const char *last = first + (size_t)(v->view.h - 1) * row_bytes(v);
    const ts_exchange *ex = &r->p->b->exchanges[it->exchange];
    int me = r->p->b->build.patch, n = r->p->b->build.rows.n;
    ts_code rc = TS_OK;
    if (me + 1 < n && ex->to[me + 1].runs) rc = post(r, me + 1, it->exchange, last, pitch_bytes(v));
    if (!rc && me > 0 && ex->to[me - 1].runs) rc = post(r, me - 1, it->exchange, first, pitch_bytes(v));
    return rc;
}

/* One halo row of every image: from the neighbour's slot, or zeros where the picture (or, in naive mode, the
 * patch) ends. */
static ts_code halo_row(run *r, const item *it, int peer, char *to) {
    const value *v = &r->p->b->values[it->in[0]];
    size_t bytes = row_bytes(v);
    const char *from = NULL;
    if (it->exchange >= 0 && peer >= 0 && peer < r->p->b->build.rows.n) {
        unsigned wanted = it->fresh || r->ev.fresh ? r->ev.number : r->ev.number - 1;
        ts_code rc = wait_for(r, peer, it->exchange, wanted);
        if (rc) return rc;
        from = slot_at(r, it->exchange, peer, wanted);
    }
    for (int i = 0; i < v->view.b; i++, to += pitch_bytes(v)) {
        if (from)
            memcpy(to, from + (size_t)i * bytes, bytes);
        else
            memset(to, 0, bytes);
    }
    return TS_OK;
}

static ts_code halo_take(run *r, const item *it) {
    const value *v = &r->p->b->values[it->in[0]];
    char *above = program_address(r->p, it->in[0], VIEW_HALO);
    char *below = above + (size_t)(v->view.h + 1) * row_bytes(v);
    int me = r->p->b->build.patch;
    ts_code rc = halo_row(r, it, it->above ? me - 1 : -1, above);
    if (!rc) rc = halo_row(r, it, it->below ? me + 1 : -1, below);
    return rc;
}

/* ---- GroupNorm statistics ---- */

static double pixels_of(const ts_program *p, const value *v, int patch) {
    int rows = v->rows.n > 1 ? ts_rows_of(&v->rows, patch) : ts_rows_height(&v->rows);
    (void)p;
    return (double)rows * v->view.w;
}

static ts_code group_stats(run *r, const item *it) {
    ts_program *p = r->p;
    const ts_build *build = &p->b->build;
    const value *v = &p->b->values[it->in[0]];
    const bool alone = v->rows.n == 1 || build->naive;
    const int self = alone ? 0 : build->patch, n = alone ? 1 : build->rows.n;
    const int groups = it->op.norm.groups;
    const double per_pixel = (double)(v->view.c / groups);
    ts_args args = args_of(p, it);
    args.out = slot_at(r, it->exchange, self, r->ev.number);
    ts_code rc = it->kernel->run(it->kernel, &args);
    if (rc) return rc;

    ts_group_norm_mode mode = r->ev.fresh ? TS_GROUP_NORM_SYNC : build->group_norm;
    ts_moments m = {.batch = build->batch, .groups = groups, .own = args.out};
    m.own_count = per_pixel * pixels_of(p, v, alone ? build->patch : self);
    if (n > 1) {
        bool wanted =
            mode == TS_GROUP_NORM_SYNC || (r->ev.next_displaced && build->group_norm != TS_GROUP_NORM_LOCAL);
        for (int j = 0; wanted && j < n && !rc; j++)
            if (j != self) rc = post(r, j, it->exchange, args.out, 0);
        unsigned read = mode == TS_GROUP_NORM_SYNC ? r->ev.number : r->ev.number - 1;
        for (int j = 0; mode != TS_GROUP_NORM_LOCAL && j < n && !rc; j++) {
            if (j == self) continue;
            rc = wait_for(r, j, it->exchange, read);
            m.other[m.others] = (const double *)(const void *)slot_at(r, it->exchange, j, read);
            m.other_count[m.others++] = per_pixel * pixels_of(p, v, j);
        }
        if (rc) return rc;
        if (mode == TS_GROUP_NORM_CORRECTED)
            m.own_before = (const double *)(const void *)slot_at(r, it->exchange, self, read);
    }
    ts_moments_merge(&m, (double *)(void *)program_address(p, it->out, VIEW_ROWS));
    return TS_OK;
}

/* ---- attention ---- */

static ts_code tokens_post(run *r, const item *it) {
    const value *v = &r->p->b->values[it->kv];
    const ts_build *build = &r->p->b->build;
    const char *own = program_address(r->p, it->kv, VIEW_ROWS);
    const size_t token = (size_t)v->view.c * ts_dtype_size(v->view.dtype);
    const long first = (long)v->rows.bound[build->patch] * v->view.w;
    for (int which = 0; which < 2; which++) {
        int x = which ? it->exchange : it->gather;
        if (x < 0 || !(which ? r->ev.next_displaced : r->ev.fresh)) continue;
        for (int j = 0; j < build->rows.n; j++) {
            const ts_slot *s = &r->p->b->exchanges[x].to[j];
            if (!s->runs) continue;
            ts_code rc = post(r, j, x, own + (size_t)(s->first_token - first) * token, pitch_bytes(v));
            if (rc) return rc;
        }
    }
    return TS_OK;
}

static ts_segment segment(const char *keys, int tokens, int c2, size_t pitch, ts_dtype dtype) {
    return (ts_segment){.k = keys,
                        .v = keys + (size_t)c2 / 2 * ts_dtype_size(dtype),
                        .tokens = tokens,
                        .ld = (size_t)c2,
                        .pitch = pitch};
}

static ts_code attention(run *r, const item *it) {
    ts_program *p = r->p;
    const value *v = &p->b->values[it->kv];
    const ts_build *build = &p->b->build;
    ts_segment segments[TS_MAX_RANKS];
    int count = 0, x = r->ev.fresh ? it->gather : it->exchange;
    unsigned wanted = r->ev.fresh ? r->ev.number : r->ev.number - 1;
    int n = it->gather >= 0 ? build->rows.n : 1, self = n > 1 ? build->patch : 0;
    for (int j = 0; j < n; j++) {
        if (j == self) {
            segments[count++] = segment(program_address(p, it->kv, VIEW_ROWS), v->view.h * v->view.w,
                                        v->view.c, v->view.pitch, v->view.dtype);
            continue;
        }
        if (x < 0) continue;
        const ts_slot *s = &p->b->exchanges[x].from[j];
        if (!s->runs) continue;
        ts_code rc = wait_for(r, j, x, wanted);
        if (rc) return rc;
        segments[count++] = segment(slot_at(r, x, j, wanted), s->tokens, v->view.c,
                                    s->run_bytes / ts_dtype_size(v->view.dtype), v->view.dtype);
    }
    ts_args args = args_of(p, it);
    args.segments = segments;
    args.segment_count = count;
    return it->kernel->run(it->kernel, &args);
}

/* ---- the list ---- */

static ts_code kernel(run *r, const item *it) {
    ts_args args = args_of(r->p, it);
    return it->kernel->run(it->kernel, &args);
}

static ts_code run_item(run *r, const item *it) {
    switch (it->kind) {
    case ITEM_KERNEL: return kernel(r, it);
    case ITEM_HALO_POST: return halo_post(r, it);
    case ITEM_HALO_TAKE: return halo_take(r, it);
    case ITEM_STATS: return group_stats(r, it);
    case ITEM_TOKENS_POST: return tokens_post(r, it);
    case ITEM_ATTENTION: return attention(r, it);
    }
    return TS_EINTERNAL;
}

static ts_code run_items(run *r, bool once, ts_error *e) {
    ts_program *p = r->p;
    for (size_t i = 0; i < p->b->item_count; i++) {
        const item *it = &p->b->items[i];
        if (it->once != once) continue;
        uint64_t t0 = ts_now_ns();
        ts_code rc = run_item(r, it);
        if (rc) return ts_fail(e, rc, "%s: %s", it->op.name, ts_code_sentence(rc));
        p->item_ns[i] += ts_now_ns() - t0;
        p->item_runs[i]++;
    }
    return TS_OK;
}

ts_code ts_program_run_once(ts_program *p, ts_error *e) {
    run r = {.p = p, .ev = {.number = 1, .fresh = true}};
    return run_items(&r, true, e);
}

ts_code ts_program_run(ts_program *p, ts_transport *transport, int rank, ts_evaluation evaluation,
                       ts_error *e) {
    run r = {.p = p, .transport = transport, .rank = rank, .ev = evaluation};
    return run_items(&r, false, e);
}

/* ---- other images ---- */

void ts_program_adopt(ts_program *p, const ts_program *from, const int *image) {
    ts_assert(p->b->exchange_count == from->b->exchange_count);
    for (size_t x = 0; x < p->b->exchange_count; x++) {
        const ts_exchange *to_ex = &p->b->exchanges[x], *from_ex = &from->b->exchanges[x];
        if (to_ex->kind == TS_EXCHANGE_GATHER) continue; /* nothing of it outlives its evaluation */
        for (int j = 0; j < TS_MAX_RANKS; j++) {
            const ts_slot *s = &to_ex->from[j];
            if (!s->runs) continue;
            const size_t bytes = (size_t)s->runs * s->run_bytes / (size_t)p->b->build.batch; /* of an image */
            for (int parity = 0; parity < 2; parity++)
                for (int k = 0; k < p->b->build.batch; k++)
                    if (image[k] != TS_NO_IMAGE)
                        memcpy(p->inbox + s->offset[parity] + (size_t)k * bytes,
                               from->inbox + from_ex->from[j].offset[parity] + (size_t)image[k] * bytes,
                               bytes);
        }
    }
}

/* ---- looking inside ---- */

void *ts_program_tensor(const ts_program *p, const char *name, ts_view *ret_view) {
    for (size_t i = 0; i < p->b->value_count; i++) {
        const value *v = &p->b->values[i];
        if (!v->name || strcmp(v->name, name) != 0) continue;
        if (ret_view) *ret_view = v->view;
        return program_address(p, (int)i, VIEW_ROWS);
    }
    return NULL;
}

char *ts_program_inbox(const ts_program *p) {
    return p->inbox;
}

const ts_exchange *ts_program_exchanges(const ts_program *p, int *ret_count) {
    *ret_count = (int)p->b->exchange_count;
    return p->b->exchanges;
}

/* What an op's kernel and its machine code take: U-Net and decoder of SD 1.5, some 600 ops, take 12 MB. */
#define KERNEL_BYTES ((size_t)20 << 10)

void ts_program_get_stats(const ts_program *p, ts_program_stats *ret) {
    *ret = (ts_program_stats){.arena_bytes = p->arena_bytes,
                              .inbox_bytes = p->inbox_bytes,
                              .kept_bytes = p->inbox_bytes + p->b->item_count * KERNEL_BYTES,
                              .flops_once = p->flops_once,
                              .flops_fresh = p->flops_fresh,
                              .flops_displaced = p->flops_displaced,
                              .wait_ns = p->wait_ns,
                              .sent_bytes = p->sent_bytes};
}

void ts_program_reset_stats(ts_program *p) {
    p->wait_ns = p->sent_bytes = 0;
    memset(p->item_ns, 0, p->b->item_count * sizeof *p->item_ns);
    memset(p->item_runs, 0, p->b->item_count * sizeof *p->item_runs);
}

typedef struct line {
    uint64_t ns;
    size_t i;
} line;

static int slower_first(const void *a, const void *b) {
    const line *x = a, *y = b;
    return x->ns < y->ns ? 1 : x->ns > y->ns ? -1 : x->i < y->i ? -1 : x->i > y->i;
}

static const char *item_label(const item *it) {
    switch (it->kind) {
    case ITEM_HALO_POST: return "halo_post";
    case ITEM_HALO_TAKE: return "halo_take";
    case ITEM_TOKENS_POST: return "tokens_post";
    default: return ts_op_kind_name(it->op.kind);
    }
}

ts_code ts_program_profile(const ts_program *p, ts_buffer *out) {
    size_t n = p->b->item_count;
    line *lines = ts_array0(line, n);
    if (!lines) return TS_ENOMEM;
    double all = 0;
    for (size_t i = 0; i < n; i++) {
        lines[i] = (line){p->item_ns[i], i};
        all += (double)p->item_ns[i];
    }
    qsort(lines, n, sizeof *lines, slower_first);
    ts_code rc = TS_OK;
    for (size_t k = 0; k < n && !rc && lines[k].ns; k++) {
        const item *it = &p->b->items[lines[k].i];
        double ns = (double)lines[k].ns, flops = it->flops_fresh * (double)p->item_runs[lines[k].i];
        rc = ts_buffer_printf(out, "%9.3f ms %5.1f%% %-12s %-24s %8.1f GFLOP/s  %s\n", ns * 1e-6,
                              all > 0 ? 100 * ns / all : 0, item_label(it),
                              it->kernel ? it->kernel->name : "-", flops / ns, it->op.name);
    }
    free(lines);
    return rc;
}
