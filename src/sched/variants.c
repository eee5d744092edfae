/* Models with LoRA files: made by the thread that needs one first, shared by all groups, kept within a
 * budget. */
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "sched/sched_internal.h"

/* Takes it out of the list, if it is there, so that it can be put at the front. */
static ts_variant *take_out(ts_sched *s, const ts_model *base, const ts_shape *shape) {
    ts_variant **at = &s->variants, *v;
    while ((v = *at) && (v->base != base || !ts_shape_same_loras(&v->shape, shape))) at = &v->next;
    if (v) *at = v->next;
    return v;
}

static void put_in(ts_sched *s, ts_variant *v) {
    v->next = s->variants;
    s->variants = v;
}

/* Programs go before the parameters that they were made of. */
static void free_variant(ts_sched *s, ts_variant *v) {
    for (int g = 0; v->model && g < s->group_count; g++) ts_group_forget(s->workers[g].group, v->model);
    ts_model_free(v->model);
    free(v);
}

static ts_code read_stamps(const ts_lora_use *uses, int n, uint64_t ret[TS_MAX_LORAS], ts_error *e) {
    ts_code rc = TS_OK;
    for (int i = 0; i < n && !rc; i++) rc = ts_lora_stamp(uses[i].path, &ret[i], e);
    return rc;
}

/* A file may be replaced between the request and now, and now as well: the stamps of the shape become those
 * of what was read, so that it is used for nothing else. */
static ts_code vary(ts_model *base, const ts_lora_use *uses, ts_shape *shape, ts_model **ret, ts_error *e) {
    enum { TRIES = 3 };
    uint64_t before[TS_MAX_LORAS], after[TS_MAX_LORAS];
    const int n = shape->lora_count;
    for (int i = 0; i < TRIES; i++) {
        ts_model *made = NULL;
        ts_code rc = read_stamps(uses, n, before, e);
        if (!rc) rc = ts_model_vary(base, uses, (size_t)n, &made, e);
        if (!rc) rc = read_stamps(uses, n, after, e);
        if (!rc && !memcmp(before, after, (size_t)n * sizeof *before)) {
            for (int k = 0; k < n; k++) shape->loras[k].stamp = after[k];
            *ret = made;
            return TS_OK;
        }
        ts_model_free(made);
        if (rc) return rc;
    }
    return ts_fail(e, TS_EIO, "a LoRA file is being replaced again and again");
}

/* Messages go to the client. */
static void hide_folder(const char *folder, ts_error *e) {
    size_t n = strlen(folder);
    while (n && folder[n - 1] == '/') n--;
    ts_error_hide_folder(e, folder, (int)n);
}

static ts_code make(const ts_sched *s, ts_model *base, ts_shape *shape, ts_model **ret, ts_error *e) {
    ts_lora_use uses[TS_MAX_LORAS] = {0};
    ts_code rc = TS_OK;
    for (int i = 0; i < shape->lora_count && !rc; i++) {
        uses[i] =
            (ts_lora_use){ts_lora_find(s->config.lora_folder, shape->loras[i].name), shape->loras[i].scale};
        if (!uses[i].path) rc = ts_fail(e, TS_ENOMEM, "there is no memory for the request");
    }
    if (!rc) rc = vary(base, uses, shape, ret, e);
    ts_lora_uses_free(uses);
    if (rc) hide_folder(s->config.lora_folder, e);
    /* What is wrong with a file is wrong with the request that names it. */
    if (rc != TS_ENOTFOUND && rc != TS_EFORMAT && rc != TS_EUNSUPPORTED) return rc;
    e->code = rc = rc == TS_EFORMAT ? TS_EINVAL : rc;
    strcpy(e->param, "loras");
    return rc;
}

ts_code ts_variant_take_locked(ts_sched *s, ts_model *base, const ts_shape *shape, ts_variant **ret,
                               ts_error *e) {
    ts_variant *v;
    while ((v = take_out(s, base, shape)) && !v->model) {
        put_in(s, v);
        pthread_cond_wait(&s->made, &s->lock);
    }
    if (!v) {
        v = ts_new0(ts_variant);
        if (!v) return ts_fail(e, TS_ENOMEM, "there is no memory for the request");
        v->base = base;
        v->shape = *shape;
        v->users = 1;
        put_in(s, v);
        ts_model *model = NULL;
        ts_shape made_of = *shape;
        pthread_mutex_unlock(&s->lock);
        ts_code rc = make(s, base, &made_of, &model, e);
        pthread_mutex_lock(&s->lock);
        take_out(s, base, shape);
        pthread_cond_broadcast(&s->made);
        if (rc) {
            free(v);
            return rc;
        }
        v->model = model;
        v->shape = made_of;
        v->users = 0;
    }
    v->users++;
    put_in(s, v);
    *ret = v;
    return TS_OK;
}

/* Takes out what nobody runs on and is beyond the budget. */
static ts_variant *trim_locked(ts_sched *s) {
    ts_variant *gone = NULL;
    size_t bytes = 0;
    for (ts_variant **at = &s->variants, *v; (v = *at);) {
        if (v->users || (bytes += v->bytes) <= s->config.lora_bytes) {
            at = &v->next;
            continue;
        }
        bytes -= v->bytes;
        *at = v->next;
        v->next = gone;
        gone = v;
    }
    return gone;
}

void ts_variant_give_locked(ts_sched *s, ts_variant *v) {
    pthread_mutex_unlock(&s->lock);
    size_t bytes = ts_model_variant_bytes(v->model);
    pthread_mutex_lock(&s->lock);
    v->bytes = bytes;
    v->users--;
    ts_variant *gone = trim_locked(s);
    pthread_mutex_unlock(&s->lock);
    for (ts_variant *next; gone; gone = next) {
        next = gone->next;
        free_variant(s, gone);
    }
    pthread_mutex_lock(&s->lock);
}

void ts_variants_free(ts_sched *s) {
    for (ts_variant *v = s->variants, *next; v; v = next) {
        next = v->next;
        free_variant(s, v);
    }
    s->variants = NULL;
}
