/* Places tensors and inboxes, prepares kernels. */
#include "engine/program_internal.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "kernels/param.h"

/* ---- the arena ---- */

static size_t align_up(size_t n) {
    return (n + TS_ALIGN - 1) & ~(size_t)(TS_ALIGN - 1);
}

/* Bytes of a tensor with its halo rows, 0 when the size does not fit. Sets the pitch. */
static size_t place_bytes(value *v) {
    size_t rows = (size_t)v->view.h + (v->padded ? 2 : 0), n;
    if (!ts_mul_size(rows, (size_t)v->view.w, &n) || !ts_mul_size(n, (size_t)v->view.c, &n)) return 0;
    v->view.pitch = n;
    if (!ts_mul_size(n, (size_t)v->view.b, &n) || !ts_mul_size(n, ts_dtype_size(v->view.dtype), &n)) return 0;
    return align_up(n);
}

typedef struct place {
    int id, first, last;
    size_t bytes, offset;
} place;

static int larger_first(const void *a, const void *b) {
    const place *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x->id - y->id;
}

static int lower_first(const void *a, const void *b) {
    const place *x = *(const place *const *)a, *y = *(const place *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static bool same_place_fits(const value *a, const value *b) {
    const ts_view *x = &a->view, *y = &b->view;
    return !a->keep && !b->keep && a->padded == b->padded && x->b == y->b && x->h == y->h && x->w == y->w &&
           x->c == y->c && x->dtype == y->dtype;
}

/* A product adds to its residual where that lies, if nobody needs the residual any more: kernels then save a
 * copy. Tensors that share a place form a chain; places[] of the first one gets the life of all, those of the
 * others are marked by `first` < 0, and share[] says whose place they have. */
static void share_places(const ts_builder *b, place *places, int *share) {
    for (size_t i = 0; i < b->value_count; i++) share[i] = (int)i;
    for (size_t k = 0; k < b->item_count; k++) {
        const item *it = &b->items[k];
        const bool product = it->op.kind == TS_OP_CONV2D || it->op.kind == TS_OP_LINEAR;
        if (it->kind != ITEM_KERNEL || !product || it->in[1] < 0 || it->in[1] == it->in[0]) continue;
        place *head = &places[share[it->in[1]]], *out = &places[it->out];
        if (head->last != (int)k || !same_place_fits(&b->values[it->in[1]], &b->values[it->out])) continue;
        head->last = out->last;
        out->first = -1;
        share[it->out] = head->id;
    }
}

/* Largest tensors first, each at the lowest offset that no tensor living at the same time occupies. */
static ts_code place_values(ts_builder *b, size_t *ret_bytes, ts_error *e) {
    ts_code rc = TS_OK;
    size_t n = b->value_count, top = 0, placed = 0;
    place *places = ts_array0(place, n);
    place **busy = ts_array0(place *, n);
    int *share = ts_array0(int, n);
    if (!places || !busy || !share) {
        rc = ts_fail(e, TS_ENOMEM, "placing tensors");
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        value *v = &b->values[i];
        /* A tensor that nobody writes or reads lives for no time, at the beginning. */
        int first = v->first < 0 ? 0 : v->first;
        places[i] = (place){.id = (int)i, .first = first, .last = v->last, .bytes = place_bytes(v)};
        if (!places[i].bytes) {
            rc = ts_fail(e, TS_ETOOLARGE, "a tensor of %d x %d x %d x %d is too large", v->view.b, v->view.h,
                         v->view.w, v->view.c);
            goto done;
        }
        if (v->keep) {
            places[i].first = 0;
            places[i].last = (int)b->item_count;
        }
        if (places[i].last < places[i].first) places[i].last = places[i].first;
    }
    share_places(b, places, share);
    for (size_t i = 0; i < n; i++)
        if (places[i].first >= 0) places[placed++] = places[i];
    qsort(places, placed, sizeof *places, larger_first);
    for (size_t i = 0; i < placed; i++) {
        place *p = &places[i];
        size_t count = 0;
        for (size_t j = 0; j < i; j++)
            if (places[j].first <= p->last && p->first <= places[j].last) busy[count++] = &places[j];
        qsort(busy, count, sizeof *busy, lower_first);
        size_t at = 0;
        for (size_t j = 0; j < count; j++) {
            if (busy[j]->offset >= at && busy[j]->offset - at >= p->bytes) break;
            if (busy[j]->offset + busy[j]->bytes > at) at = busy[j]->offset + busy[j]->bytes;
        }
        p->offset = b->values[p->id].offset = at;
        if (at + p->bytes > top) top = at + p->bytes;
    }
    for (size_t i = 0; i < n; i++) b->values[i].offset = b->values[share[i]].offset;
    *ret_bytes = top;
done:
    free(places);
    free(busy);
    free(share);
    return rc;
}

/* ---- the inbox ---- */

static size_t place_slots(ts_exchange *ex, int parity, size_t at) {
    for (int j = 0; j < TS_MAX_RANKS; j++) {
        if (!ex->from[j].runs) continue;
        ex->from[j].offset[parity] = at;
        at += align_up((size_t)ex->from[j].runs * ex->from[j].run_bytes);
    }
    return at;
}

/* Every slot has its own place in both parities; only the gathers of all attention layers share two areas,
 * taken in turn: a rank posts layer L's tokens after it has received layer L-1's, which a peer posts after it
 * has read layer L-2's. */
static size_t place_inbox(ts_builder *b) {
    size_t at = 0, area[2] = {0, 0};
    int gathers = 0;
    for (size_t i = 0; i < b->exchange_count; i++) {
        ts_exchange *ex = &b->exchanges[i];
        if (ex->kind == TS_EXCHANGE_GATHER) {
            int turn = gathers++ % 2;
            size_t bytes = place_slots(ex, 0, 0);
            if (bytes > area[turn]) area[turn] = bytes;
        } else {
            at = place_slots(ex, 0, at);
            at = place_slots(ex, 1, at);
        }
    }
    gathers = 0;
    for (size_t i = 0; i < b->exchange_count; i++) {
        ts_exchange *ex = &b->exchanges[i];
        if (ex->kind != TS_EXCHANGE_GATHER) continue;
        size_t base = gathers++ % 2 ? at + area[0] : at;
        place_slots(ex, 0, base);
        place_slots(ex, 1, base);
    }
    return at + area[0] + area[1];
}

/* ---- kernels ---- */

static int window_tokens(const ts_exchange *ex, int own) {
    int tokens = own;
    for (int j = 0; j < TS_MAX_RANKS; j++) tokens += ex->from[j].runs ? ex->from[j].tokens : 0;
    return tokens;
}

static ts_code prepare(ts_program *p, ts_store *store, item *it, ts_error *e) {
    ts_builder *b = p->b;
    for (int k = 0; k < 3; k++) {
        if (it->in[k] < 0) continue;
        const value *v = &b->values[it->in[k]];
        /* The statistics' view is one of doubles, whose pitch is its own. */
        if (!(it->op.kind == TS_OP_GROUP_NORM && k == 2)) it->op.in[k].pitch = v->view.pitch;
    }
    if (it->out >= 0 && it->kind != ITEM_STATS) it->op.out.pitch = b->values[it->out].view.pitch;
    ts_device *device = ts_arena_device(p->arena);
    ts_code rc = device->backend->prepare(device, store, &it->op, &it->kernel, e);
    if (rc) return ts_error_context(e, rc, "%s", it->op.name);
    it->flops_fresh = it->flops_displaced = ts_op_flops(&it->op, 0);
    if (it->kind == ITEM_ATTENTION && it->gather >= 0) {
        int own = b->values[it->kv].view.h * b->values[it->kv].view.w;
        int keys = it->exchange >= 0 ? window_tokens(&b->exchanges[it->exchange], own) : own;
        if (b->build.displaced) it->flops_displaced = ts_op_flops(&it->op, keys);
    }
    if (it->once)
        p->flops_once += it->flops_fresh;
    else {
        p->flops_fresh += it->flops_fresh;
        p->flops_displaced += it->flops_displaced;
    }
    return TS_OK;
}

#define REST_BYTES ((size_t)256 << 20)

static size_t parameter_bytes(const ts_op *op) {
    return op->weight ? ts_param_bytes(op->weight) : 0;
}

ts_code ts_program_compile(ts_builder *b, ts_arena *arena, ts_store *store, ts_program **ret, ts_error *e) {
    if (!b) return ts_fail(e, TS_ENOMEM, "building a program");
    ts_code rc = b->code;
    ts_program *p = NULL;
    ts_device *device = ts_arena_device(arena);
    size_t scratch = 0, read = 0;
    if (rc) {
        if (e) *e = b->error;
        ts_builder_free(b);
        return rc;
    }
    p = ts_new0(ts_program);
    if (!p) {
        ts_builder_free(b);
        return ts_fail(e, TS_ENOMEM, "compiling a program");
    }
    p->b = b;
    p->arena = arena;
    p->item_ns = ts_array0(uint64_t, b->item_count);
    p->item_runs = ts_array0(uint64_t, b->item_count);
    if (!p->item_ns || !p->item_runs) {
        rc = ts_fail(e, TS_ENOMEM, "compiling a program");
        goto fail;
    }
    rc = place_values(b, &p->scratch, e);
    if (rc) goto fail;
    p->inbox_bytes = place_inbox(b);
    p->inbox = device->backend->alloc(device, p->inbox_bytes ? p->inbox_bytes : 1);
    if (!p->inbox) {
        rc = ts_fail(e, TS_ENOMEM, "an inbox of %zu MiB", p->inbox_bytes >> 20);
        goto fail;
    }
    for (size_t i = 0; i < b->item_count; i++) {
        if (!item_has_kernel(&b->items[i])) continue;
        rc = prepare(p, store, &b->items[i], e);
        if (rc) goto fail;
        /* What the store has is not needed in the file's pages, which would add up to the model's size. */
        read += parameter_bytes(&b->items[i].op);
        if (read > REST_BYTES) {
            ts_weights_rest(b->weights);
            read = 0;
        }
        if (b->items[i].kernel->scratch > scratch) scratch = b->items[i].kernel->scratch;
    }
    /* One scratch area, as large as the hungriest kernel's, serves all: they run one after another. */
    p->arena_bytes = p->scratch + align_up(scratch);
    rc = ts_arena_grow(arena, p->arena_bytes, e);
    if (rc) goto fail;
    *ret = p;
    return TS_OK;
fail:
    ts_program_free(p);
    return rc;
}

void ts_program_free(ts_program *p) {
    if (!p) return;
    for (size_t i = 0; i < p->b->item_count; i++) ts_kernel_free(p->b->items[i].kernel);
    ts_device *device = ts_arena_device(p->arena);
    if (p->inbox) device->backend->release(device, p->inbox);
    free(p->item_ns);
    free(p->item_runs);
    ts_builder_free(p->b);
    free(p);
}
