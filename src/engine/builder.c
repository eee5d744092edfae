/* The recording half of the builder: tensors, items, and where exchanges go. Layers are in builder_ops.c. */
#include "engine/builder_internal.h"
#include "engine/builder_record.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"

ts_scope ts_sub(ts_scope s, const char *format, ...) {
    char name[sizeof s.path];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    ts_scope r;
    /* A path that does not fit is cut off, and then no parameter has that name: an error, not an overflow. */
    snprintf(r.path, sizeof r.path, "%.*s%s%.*s", 80, s.path, s.path[0] ? "." : "", 38, name);
    return r;
}

ts_builder *ts_builder_new(const ts_build *build, ts_weights *weights) {
    ts_builder *b = ts_new0(ts_builder);
    if (!b) return NULL;
    b->build = *build;
    b->weights = weights;
    return b;
}

void ts_builder_free(ts_builder *b) {
    if (!b) return;
    for (size_t i = 0; i < b->item_count; i++) free((char *)(uintptr_t)b->items[i].op.name);
    free(b->items);
    free(b->values);
    free(b->exchanges);
    free(b);
}

const ts_build *ts_builder_build(const ts_builder *b) {
    return &b->build;
}

void ts_builder_fail(ts_builder *b, ts_code code, const char *format, ...) {
    if (b->code) return;
    char text[sizeof b->error.message];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    b->code = ts_fail(&b->error, code, "%s", text);
}

static void full_name(ts_scope s, const char *name, char ret[160]) {
    snprintf(ret, 160, "%s%s%s", s.path, name[0] ? "." : "", name);
}

static const ts_param *find(const ts_builder *b, ts_scope s, const char *name) {
    char full[160];
    full_name(s, name, full);
    return ts_weights_find(b->weights, full);
}

bool ts_builder_has(const ts_builder *b, ts_scope s, const char *name) {
    return find(b, s, name) != NULL;
}

const ts_param *builder_param(ts_builder *b, ts_scope s, const char *name) {
    const ts_param *p = find(b, s, name);
    if (p) return p;
    char full[160];
    full_name(s, name, full);
    const char *type = ts_weights_unread(b->weights, full);
    if (b->code) return NULL;
    if (type)
        b->code = ts_tensors_unread(&b->error, full, type);
    else
        ts_builder_fail(b, TS_EFORMAT, "there is no %s", full);
    return NULL;
}

ts_code ts_builder_check(const ts_builder *b, void (*each)(void *arg, const ts_param *p), void *arg,
                         ts_error *e) {
    if (b->code) {
        if (e) *e = b->error;
        return b->code;
    }
    for (size_t i = 0; i < b->item_count; i++) {
        const ts_op *op = &b->items[i].op;
        if (!item_has_kernel(&b->items[i])) continue;
        ts_code rc = ts_op_check(op, e);
        if (rc) return ts_error_context(e, rc == TS_EINVAL ? TS_EFORMAT : rc, "%s", op->name);
        if (op->weight) each(arg, op->weight);
        if (op->bias) each(arg, op->bias);
    }
    return TS_OK;
}

void ts_builder_once_begin(ts_builder *b) {
    b->once = true;
}
void ts_builder_once_end(ts_builder *b) {
    b->once = false;
}

ts_rows builder_undivided(int height) {
    return (ts_rows){.n = 1, .bound = {0, height}};
}

ts_buf builder_value(ts_builder *b, ts_rows rows, int w, int c, ts_dtype dtype) {
    if (b->code) return TS_NO_BUF;
    int h = rows.n > 1 ? ts_rows_of(&rows, b->build.patch) : ts_rows_height(&rows);
    if (h <= 0 || w <= 0 || c <= 0) {
        ts_builder_fail(b, TS_EINVAL, "a tensor of %d x %d x %d is not possible", h, w, c);
        return TS_NO_BUF;
    }
    if (!ts_grow(&b->values, &b->value_capacity, b->value_count + 1, sizeof *b->values)) {
        ts_builder_fail(b, TS_ENOMEM, "building a program");
        return TS_NO_BUF;
    }
    int id = (int)b->value_count++;
    b->values[id] = (value){.view = ts_view_dense(b->build.batch, h, w, c, dtype),
                            .rows = rows,
                            .keep = b->once,
                            .first = -1,
                            .last = -1};
    return (ts_buf){.id = id, .h = h, .w = w, .c = c};
}

static void touch(ts_builder *b, int id, int at, bool writes) {
    if (id < 0) return;
    value *v = &b->values[id];
    if (writes && v->first < 0) v->first = at;
    v->last = at;
}

item *builder_item(ts_builder *b, item_kind kind, ts_scope s, ts_buf x0, ts_buf x1, ts_buf x2, ts_buf out) {
    if (b->code) return NULL;
    char *name = ts_strdup(s.path);
    if (!name || !ts_grow(&b->items, &b->item_capacity, b->item_count + 1, sizeof *b->items)) {
        free(name);
        ts_builder_fail(b, TS_ENOMEM, "building a program");
        return NULL;
    }
    int at = (int)b->item_count++;
    item *it = &b->items[at];
    *it = (item){.kind = kind,
                 .once = b->once,
                 .op.name = name,
                 .in = {x0.id, x1.id, x2.id},
                 .out = out.id,
                 .exchange = -1,
                 .gather = -1,
                 .kv = -1};
    for (int i = 0; i < 3; i++) touch(b, it->in[i], at, false);
    touch(b, out.id, at, true);
    return it;
}

void builder_touch_kv(ts_builder *b, item *it, ts_buf kv) {
    it->kv = kv.id;
    touch(b, kv.id, (int)(it - b->items), false);
}

int builder_exchange(ts_builder *b, ts_exchange_kind kind) {
    if (b->code) return -1;
    if (!ts_grow(&b->exchanges, &b->exchange_capacity, b->exchange_count + 1, sizeof *b->exchanges)) {
        ts_builder_fail(b, TS_ENOMEM, "building a program");
        return -1;
    }
    b->exchanges[b->exchange_count] = (ts_exchange){.kind = kind};
    return (int)b->exchange_count++;
}

static ts_buf input(ts_builder *b, const char *name, ts_rows rows, int w, int c, ts_dtype dtype) {
    ts_buf x = builder_value(b, rows, w, c, dtype);
    if (x.id < 0) return x;
    value *v = value_of(b, x);
    v->keep = true;
    v->name = name;
    v->first = 0;
    return x;
}

ts_buf ts_input_picture(ts_builder *b, const char *name, int w, int c, ts_dtype dtype) {
    return input(b, name, b->build.rows, w, c, dtype);
}

ts_buf ts_input(ts_builder *b, const char *name, int w, int c, ts_dtype dtype) {
    return input(b, name, builder_undivided(1), w, c, dtype);
}

void ts_output(ts_builder *b, const char *name, ts_buf x) {
    if (b->code) return;
    value_of(b, x)->keep = true;
    value_of(b, x)->name = name;
}

int ts_buf_height(const ts_builder *b, ts_buf x) {
    return b->code ? 1 : ts_rows_height(&value_of(b, x)->rows);
}

/* True when x is divided among patches that talk to each other. */
bool builder_divided(const ts_builder *b, ts_buf x) {
    return !b->code && value_of(b, x)->rows.n > 1 && !b->build.naive;
}
