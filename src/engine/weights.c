#include "engine/weights.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "engine/safetensors.h"

typedef struct join {
    struct join *next;
    const ts_param *a, *b;
    ts_param param;
    void *bytes;
} join;

struct ts_weights {
    char *path;
    ts_safetensors *file;
    ts_param *params; /* in order of name, as in the file */
    size_t count, elements;
    pthread_mutex_t lock; /* guards joins */
    join *joins;
};

/* What the libraries call the file of a component, in the order in which they look for it. */
static const char *const file_names[] = {"diffusion_pytorch_model.safetensors", "model.safetensors",
                                         "diffusion_pytorch_model.fp16.safetensors",
                                         "model.fp16.safetensors"};

static ts_code open_file(ts_weights *w, const char *folder, ts_error *e) {
    for (size_t i = 0; i < sizeof file_names / sizeof *file_names; i++) {
        char *path = ts_path_join(folder, file_names[i]);
        if (!path) return ts_fail(e, TS_ENOMEM, "weights of %s", folder);
        if (ts_file_exists(path)) {
            w->path = path;
            return ts_safetensors_open(path, &w->file, e);
        }
        free(path);
    }
    return ts_fail(e, TS_ENOTFOUND, "%s holds neither %s nor %s", folder, file_names[0], file_names[1]);
}

ts_code ts_weights_open(const char *folder, ts_weights **ret, ts_error *e) {
    ts_weights *w = ts_new0(ts_weights);
    if (!w) return ts_fail(e, TS_ENOMEM, "weights of %s", folder);
    pthread_mutex_init(&w->lock, NULL);
    ts_code rc = open_file(w, folder, e);
    if (rc) goto fail;
    size_t n = ts_safetensors_count(w->file);
    w->params = ts_array0(ts_param, n);
    if (!w->params) {
        rc = ts_fail(e, TS_ENOMEM, "weights of %s", folder);
        goto fail;
    }
    for (size_t i = 0; i < n; i++) {
        const ts_file_tensor *t = ts_safetensors_at(w->file, i);
        w->elements += ts_file_tensor_elements(t);
        /* More dimensions than any layer's parameter: kept out, so that a layer that wants it says "missing".
         */
        if (t->rank > 4) continue;
        ts_param *p = &w->params[w->count++];
        *p = (ts_param){.name = t->name, .rank = t->rank, .dtype = t->dtype, .data = t->data};
        for (int k = 0; k < t->rank; k++) p->shape[k] = t->shape[k];
        if (p->rank == 4 && p->shape[2] == 1 && p->shape[3] == 1) p->rank = 2;
    }
    *ret = w;
    return TS_OK;
fail:
    ts_weights_free(w);
    return rc;
}

void ts_weights_free(ts_weights *w) {
    if (!w) return;
    for (join *j = w->joins, *next; j; j = next) {
        next = j->next;
        free(j->bytes);
        free(j);
    }
    pthread_mutex_destroy(&w->lock);
    ts_safetensors_free(w->file);
    free(w->params);
    free(w->path);
    free(w);
}

static int by_name(const void *key, const void *item) {
    return strcmp(key, ((const ts_param *)item)->name);
}

const ts_param *ts_weights_find(const ts_weights *w, const char *name) {
    return w->count ? bsearch(name, w->params, w->count, sizeof *w->params, by_name) : NULL;
}

static size_t param_bytes(const ts_param *p) {
    size_t n = ts_dtype_size(p->dtype);
    for (int i = 0; i < p->rank; i++) n *= (size_t)p->shape[i]; /* the file's check bounds the product */
    return n;
}

static ts_code make_join(const ts_param *a, const ts_param *b, join **ret, ts_error *e) {
    if (a->rank != b->rank || a->rank < 1 || a->rank > 2 || a->dtype != b->dtype ||
        (a->rank == 2 && a->shape[1] != b->shape[1]))
        return ts_fail(e, TS_EFORMAT, "%s and %s do not fit together", a->name, b->name);
    size_t na = param_bytes(a), nb = param_bytes(b);
    join *j = ts_new0(join);
    void *bytes = ts_alloc_aligned(na + nb);
    if (!j || !bytes) {
        free(j);
        free(bytes);
        return ts_fail(e, TS_ENOMEM, "joining %s and %s", a->name, b->name);
    }
    memcpy(bytes, a->data, na);
    memcpy((char *)bytes + na, b->data, nb);
    *j = (join){.a = a, .b = b, .bytes = bytes, .param = *a};
    j->param.data = bytes;
    j->param.shape[0] += b->shape[0];
    *ret = j;
    return TS_OK;
}

ts_code ts_weights_join(ts_weights *w, const ts_param *a, const ts_param *b, const ts_param **ret,
                        ts_error *e) {
    ts_code rc = TS_OK;
    pthread_mutex_lock(&w->lock);
    join *j = w->joins;
    while (j && (j->a != a || j->b != b)) j = j->next;
    if (!j) {
        rc = make_join(a, b, &j, e);
        if (!rc) {
            j->next = w->joins;
            w->joins = j;
        }
    }
    if (!rc) *ret = &j->param;
    pthread_mutex_unlock(&w->lock);
    return rc;
}

size_t ts_weights_elements(const ts_weights *w) {
    return w->elements;
}
const char *ts_weights_path(const ts_weights *w) {
    return w->path;
}
