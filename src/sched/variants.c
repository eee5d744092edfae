/* Models with LoRA files: made by the thread that needs one first, shared by all groups, kept within a
 * budget. */
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "sched/sched_internal.h"

static ts_variant *find(const ts_sched *s, const ts_model *base, const ts_shape *shape) {
    ts_variant *v = s->variants;
    while (v && (v->base != base || !ts_shape_same_loras(&v->shape, shape))) v = v->next;
    return v;
}

/* So that it can go, or be put at the front. */
static void unlink_variant(ts_sched *s, const ts_variant *v) {
    ts_variant **at = &s->variants;
    while (*at != v) at = &(*at)->next;
    *at = v->next;
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

static ts_code read_stamps(const ts_lora_use *uses, ts_shape *shape, ts_error *e) {
    ts_code rc = TS_OK;
    for (int i = 0; i < shape->lora_count && !rc; i++)
        rc = ts_lora_stamp(uses[i].path, &shape->loras[i].stamp, e);
    return rc;
}

static ts_code find_files(const ts_sched *s, const ts_shape *shape, ts_lora_use uses[TS_MAX_LORAS],
                          ts_error *e) {
    for (int i = 0; i < shape->lora_count; i++) {
        uses[i] =
            (ts_lora_use){ts_lora_find(s->config.lora_folder, shape->loras[i].name), shape->loras[i].scale};
        if (!uses[i].path) return ts_fail(e, TS_ENOMEM, "there is no memory for the request");
    }
    return TS_OK;
}

/* What is wrong with a file is wrong with the request that names it, and messages go to the client. */
static ts_code blame(const ts_sched *s, ts_code rc, ts_error *e) {
    const char *folder = s->config.lora_folder;
    size_t n = strlen(folder);
    while (n && folder[n - 1] == '/') n--;
    ts_error_hide_folder(e, folder, (int)n);
    if (rc != TS_ENOTFOUND && rc != TS_EFORMAT && rc != TS_EUNSUPPORTED) return rc;
    e->code = rc == TS_EFORMAT ? TS_EINVAL : rc;
    strcpy(e->param, "loras");
    return e->code;
}

/* The shape with the stamps that the files have now: one may have been replaced since the request came. */
static ts_code stamp_now(const ts_sched *s, ts_shape *shape, ts_error *e) {
    ts_lora_use uses[TS_MAX_LORAS] = {0};
    ts_code rc = find_files(s, shape, uses, e);
    if (!rc) rc = read_stamps(uses, shape, e);
    ts_lora_uses_free(uses);
    return rc ? blame(s, rc, e) : TS_OK;
}

/* A file may be replaced while it is read, too: the stamps of the shape become those of what was. */
static ts_code vary(ts_model *base, const ts_lora_use *uses, ts_shape *shape, ts_model **ret, ts_error *e) {
    enum { TRIES = 3 };
    for (int i = 0; i < TRIES; i++) {
        ts_model *made = NULL;
        ts_shape after = *shape;
        ts_code rc = read_stamps(uses, shape, e);
        if (!rc) rc = ts_model_vary(base, uses, (size_t)shape->lora_count, &made, e);
        if (!rc) rc = read_stamps(uses, &after, e);
        if (!rc && ts_shape_same_loras(shape, &after)) {
            *ret = made;
            return TS_OK;
        }
        ts_model_free(made);
        if (rc) return rc;
    }
    return ts_fail(e, TS_EIO, "a LoRA file is being replaced again and again");
}

static ts_code make(const ts_sched *s, ts_model *base, ts_shape *shape, ts_model **ret, ts_error *e) {
    ts_lora_use uses[TS_MAX_LORAS] = {0};
    ts_code rc = find_files(s, shape, uses, e);
    if (!rc) rc = vary(base, uses, shape, ret, e);
    ts_lora_uses_free(uses);
    return rc ? blame(s, rc, e) : TS_OK;
}

ts_code ts_variant_take_locked(ts_sched *s, ts_model *base, const ts_shape *asked, ts_variant **ret,
                               ts_error *e) {
    ts_shape shape = *asked;
    pthread_mutex_unlock(&s->lock);
    ts_code rc = stamp_now(s, &shape, e);
    pthread_mutex_lock(&s->lock);
    if (rc) return rc;
    ts_variant *v;
    while ((v = find(s, base, &shape)) && !v->model) pthread_cond_wait(&s->made, &s->lock);
    if (v) {
        unlink_variant(s, v);
        v->users++;
    } else {
        v = ts_new0(ts_variant);
        if (!v) return ts_fail(e, TS_ENOMEM, "there is no memory for the request");
        v->base = base;
        v->shape = shape;
        v->users = 1;
        put_in(s, v); /* others wait for it instead of making their own */
        ts_model *model = NULL;
        pthread_mutex_unlock(&s->lock);
        rc = make(s, base, &shape, &model, e);
        pthread_mutex_lock(&s->lock);
        unlink_variant(s, v);
        pthread_cond_broadcast(&s->made);
        if (rc) {
            free(v);
            return rc;
        }
        v->model = model;
        v->shape = shape;
    }
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
