#include "engine/weights.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "base/json.h"

#define INDEX_BYTES    ((size_t)64 << 20)
#define SHARDS_MAXIMUM 256

typedef struct join {
    struct join *next;
    const ts_param *a, *b;
    ts_param param;
} join;

/* A tensor that is there and not read. */
typedef struct unread {
    char *name;
    const char *type;
} unread;

struct ts_weights {
    char *path;
    ts_weights *base; /* of a layer */
    bool owns_base;
    ts_tensors **files;
    size_t file_count, file_capacity;
    const ts_tensors *leans_on; /* NULL: nobody */
    void **kept;
    size_t kept_count, kept_capacity;
    ts_param *params; /* sealed: in order of name */
    size_t count, capacity, elements, source_bytes;
    unread *unread;
    size_t unread_count, unread_capacity;
    pthread_mutex_t lock; /* guards joins */
    join *joins;
};

ts_code ts_weights_new(const char *path, ts_weights **ret, ts_error *e) {
    ts_weights *w = ts_new0(ts_weights);
    if (w) pthread_mutex_init(&w->lock, NULL);
    if (!w || !(w->path = ts_strdup(path))) {
        ts_weights_free(w);
        return ts_fail(e, TS_ENOMEM, "weights of %s", path);
    }
    *ret = w;
    return TS_OK;
}

ts_code ts_weights_over(ts_weights *base, ts_weights **ret, ts_error *e) {
    ts_weights *w = NULL;
    ts_code rc = ts_weights_new(base->path, &w, e);
    if (rc) return rc;
    w->base = base;
    *ret = w;
    return TS_OK;
}

void ts_weights_adopt_base(ts_weights *w) {
    w->owns_base = true;
}

/* p's name is copied. */
static ts_code add_param(ts_weights *w, const ts_param *p, ts_error *e) {
    char *name = ts_strdup(p->name);
    if (!name || !ts_grow(&w->params, &w->capacity, w->count + 1, sizeof *w->params)) {
        free(name);
        return ts_fail(e, TS_ENOMEM, "weights of %s", w->path);
    }
    w->params[w->count] = *p;
    w->params[w->count++].name = name;
    return TS_OK;
}

ts_code ts_weights_add(ts_weights *w, const char *name, const ts_file_tensor *t, ts_error *e) {
    w->elements += ts_file_tensor_elements(t);
    if (t->rank > 4) return TS_OK;
    ts_param p = {.name = name, .rank = t->rank, .dtype = t->dtype, .data = t->data};
    for (int k = 0; k < t->rank; k++) p.shape[k] = t->shape[k];
    if (p.rank == 4 && p.shape[2] == 1 && p.shape[3] == 1) p.rank = 2;
    return add_param(w, &p, e);
}

ts_code ts_weights_add_unread(ts_weights *w, const char *name, const char *type, ts_error *e) {
    char *copy = ts_strdup(name);
    if (!copy || !ts_grow(&w->unread, &w->unread_capacity, w->unread_count + 1, sizeof *w->unread)) {
        free(copy);
        return ts_fail(e, TS_ENOMEM, "weights of %s", w->path);
    }
    w->unread[w->unread_count++] = (unread){copy, type};
    return TS_OK;
}

const char *ts_weights_unread(const ts_weights *w, const char *name) {
    for (size_t i = 0; i < w->unread_count; i++)
        if (strcmp(w->unread[i].name, name) == 0) return w->unread[i].type;
    return w->base ? ts_weights_unread(w->base, name) : NULL;
}

const char *ts_weights_unread_at(const ts_weights *w, size_t i, const char **ret_type) {
    if (i >= w->unread_count) return NULL;
    *ret_type = w->unread[i].type;
    return w->unread[i].name;
}

ts_code ts_weights_add_made(ts_weights *w, const ts_param *like,
                            ts_code (*make)(const void *source, float *ret, ts_error *e), void *source,
                            size_t bytes, ts_error *e) {
    ts_code rc = ts_weights_keep(w, source, e);
    if (rc) return rc;
    ts_param p = *like;
    p.data = NULL;
    p.make = make;
    p.source = source;
    w->source_bytes += bytes;
    return add_param(w, &p, e);
}

ts_code ts_weights_keep(ts_weights *w, void *bytes, ts_error *e) {
    if (!ts_grow(&w->kept, &w->kept_capacity, w->kept_count + 1, sizeof *w->kept)) {
        free(bytes);
        return ts_fail(e, TS_ENOMEM, "weights of %s", w->path);
    }
    w->kept[w->kept_count++] = bytes;
    return TS_OK;
}

static int in_order(const void *a, const void *b) {
    return strcmp(((const ts_param *)a)->name, ((const ts_param *)b)->name);
}

ts_code ts_weights_seal(ts_weights *w, ts_error *e) {
    if (w->count) qsort(w->params, w->count, sizeof *w->params, in_order);
    for (size_t i = 1; i < w->count; i++)
        if (strcmp(w->params[i - 1].name, w->params[i].name) == 0)
            return ts_fail(e, TS_EFORMAT, "%s: tensor %.200s comes twice", w->path, w->params[i].name);
    return TS_OK;
}

ts_code ts_weights_hold(ts_weights *w, ts_tensors *file, ts_error *e) {
    if (!ts_grow(&w->files, &w->file_capacity, w->file_count + 1, sizeof(ts_tensors *))) {
        ts_tensors_free(file);
        return ts_fail(e, TS_ENOMEM, "weights of %s", w->path);
    }
    w->files[w->file_count++] = file;
    return TS_OK;
}

static ts_code add_file(ts_weights *w, const char *path, ts_error *e) {
    ts_tensors *s = NULL;
    ts_code rc = ts_tensors_open(path, &s, e);
    if (!rc) rc = ts_weights_hold(w, s, e);
    if (rc) return rc;
    if ((rc = ts_tensors_check_scales(s, e))) return ts_error_context(e, rc, "%s", path);
    for (size_t i = 0; !rc && i < ts_tensors_count(s); i++) {
        const ts_file_tensor *t = ts_tensors_at(s, i);
        rc = ts_weights_add(w, t->name, t, e);
    }
    const ts_file_other *other;
    for (size_t i = 0; !rc && (other = ts_tensors_other(s, i)); i++)
        rc = ts_weights_add_unread(w, other->name, other->type, e);
    return rc;
}

/* A shard lies beside its index: a name, never a way to somewhere else. */
static bool is_shard_name(const char *name) {
    size_t stem;
    return name[0] != '.' && !strchr(name, '/') && ts_path_extension(name, ts_tensors_extensions, &stem) >= 0;
}

static bool listed(char **names, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0) return true;
    return false;
}

/* {"weight_map": {tensor: shard, ...}}: each shard once, and all that is in it. */
static ts_code add_shards(ts_weights *w, const char *folder, const cJSON *index, ts_error *e) {
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(index, "weight_map"), *v;
    if (!cJSON_IsObject(map)) return ts_fail_param(e, TS_EFORMAT, "weight_map", "there is no weight_map");
    char **names = ts_array0(char *, SHARDS_MAXIMUM);
    size_t n = 0;
    ts_code rc = names ? TS_OK : ts_fail(e, TS_ENOMEM, "the shards of %s", folder);
    cJSON_ArrayForEach(v, map) {
        if (rc) break;
        if (!cJSON_IsString(v) || !is_shard_name(v->valuestring))
            rc = ts_fail_param(e, TS_EFORMAT, "weight_map", "weight_map: %.100s is in no file of this folder",
                               v->string);
        else if (listed(names, n, v->valuestring))
            continue;
        else if (n == SHARDS_MAXIMUM)
            rc =
                ts_fail_param(e, TS_EFORMAT, "weight_map", "weight_map: more than %d shards", SHARDS_MAXIMUM);
        else {
            names[n++] = v->valuestring;
            char *path = ts_path_join(folder, v->valuestring);
            rc = path ? add_file(w, path, e) : ts_fail(e, TS_ENOMEM, "the shards of %s", folder);
            free(path);
        }
    }
    free(names);
    return rc;
}

/* The names that a component's weights go by: what writes them puts the variant where %s stands, "" for none.
 * Of an index there are two spellings. */
static const struct {
    const char *format;
    bool index;
} forms[] = {
    {"diffusion_pytorch_model%s.safetensors", false},
    {"model%s.safetensors", false},
    {"diffusion_pytorch_model.safetensors.index%s.json", true},
    {"model.safetensors.index%s.json", true},
    {"diffusion_pytorch_model%s.safetensors.index.json", true},
    {"model%s.safetensors.index.json", true},
    /* What was published before safetensors was usual. */
    {"diffusion_pytorch_model%s.bin", false},
    {"pytorch_model%s.bin", false},
    {"diffusion_pytorch_model.bin.index%s.json", true},
    {"pytorch_model.bin.index%s.json", true},
};
static const char *const variants[] = {"", ".fp16", ".bf16", ".fp32"};

static ts_code add_form(ts_weights *w, const char *folder, const char *path, bool is_index, ts_error *e) {
    if (!is_index) return add_file(w, path, e);
    cJSON *index = NULL;
    ts_code rc = ts_json_file(path, INDEX_BYTES, (ts_json_limits){.depth = 4, .values = 1000000}, &index, e);
    if (rc) return rc;
    rc = add_shards(w, folder, index, e);
    cJSON_Delete(index);
    return rc ? ts_error_context(e, rc, "%s", path) : TS_OK;
}

static ts_code open_folder(ts_weights *w, const char *folder, ts_error *e) {
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        for (size_t k = 0; k < sizeof forms / sizeof *forms; k++) {
            char name[80];
            /* The formats are the literals above, each with one %s. */
            const char *gap = strstr(forms[k].format, "%s");
            snprintf(name, sizeof name, "%.*s%s%s", (int)(gap - forms[k].format), forms[k].format,
                     variants[i], gap + 2);
            char *path = ts_path_join(folder, name);
            if (!path) return ts_fail(e, TS_ENOMEM, "weights of %s", folder);
            if (ts_file_exists(path)) {
                free(w->path);
                w->path = path;
                return add_form(w, folder, path, forms[k].index, e);
            }
            free(path);
        }
    return ts_fail(e, TS_ENOTFOUND,
                   "%s holds neither diffusion_pytorch_model.safetensors nor model.safetensors, nor a .bin",
                   folder);
}

ts_code ts_weights_open(const char *folder, ts_weights **ret, ts_error *e) {
    ts_weights *w = NULL;
    ts_code rc = ts_weights_new(folder, &w, e);
    if (rc) return rc;
    rc = open_folder(w, folder, e);
    if (!rc) rc = ts_weights_seal(w, e);
    if (rc) {
        ts_weights_free(w);
        return rc;
    }
    *ret = w;
    return TS_OK;
}

void ts_weights_free(ts_weights *w) {
    if (!w) return;
    for (join *j = w->joins, *next; j; j = next) {
        next = j->next;
        free(j);
    }
    pthread_mutex_destroy(&w->lock);
    for (size_t i = 0; i < w->count; i++) free((char *)(uintptr_t)w->params[i].name);
    for (size_t i = 0; i < w->unread_count; i++) free(w->unread[i].name);
    for (size_t i = 0; i < w->kept_count; i++) free(w->kept[i]);
    for (size_t i = 0; i < w->file_count; i++) ts_tensors_free(w->files[i]);
    if (w->owns_base) ts_weights_free(w->base);
    free(w->files);
    free(w->kept);
    free(w->params);
    free(w->unread);
    free(w->path);
    free(w);
}

static int by_name(const void *key, const void *item) {
    return strcmp(key, ((const ts_param *)item)->name);
}

const ts_param *ts_weights_find(const ts_weights *w, const char *name) {
    const ts_param *own = w->count ? bsearch(name, w->params, w->count, sizeof *w->params, by_name) : NULL;
    return own || !w->base ? own : ts_weights_find(w->base, name);
}

size_t ts_weights_count(const ts_weights *w) {
    return w->base ? ts_weights_count(w->base) : w->count;
}

/* A layer holds no name that its base lacks. */
const ts_param *ts_weights_at(const ts_weights *w, size_t i) {
    if (w->base) return ts_weights_find(w, ts_weights_at(w->base, i)->name);
    ts_assert(i < w->count);
    return &w->params[i];
}

static ts_code make_join(const ts_param *a, const ts_param *b, join **ret, ts_error *e) {
    if (a->parts[0] || b->parts[0] || a->rank != b->rank || a->rank < 1 || a->rank > 2 ||
        (a->rank == 2 && a->shape[1] != b->shape[1]))
        return ts_fail(e, TS_EFORMAT, "%s and %s do not fit together", a->name, b->name);
    join *j = ts_new0(join);
    if (!j) return ts_fail(e, TS_ENOMEM, "joining %s and %s", a->name, b->name);
    *j = (join){.a = a, .b = b};
    j->param = (ts_param){.name = a->name, .rank = a->rank, .dtype = a->dtype, .parts = {a, b}};
    memcpy(j->param.shape, a->shape, sizeof a->shape);
    j->param.shape[0] += b->shape[0];
    *ret = j;
    return TS_OK;
}

static bool is_own(const ts_weights *w, const void *param) {
    uintptr_t at = (uintptr_t)param;
    return at >= (uintptr_t)w->params && at < (uintptr_t)(w->params + w->count);
}

bool ts_weights_owns(ts_weights *w, const void *param) {
    bool own = is_own(w, param);
    pthread_mutex_lock(&w->lock);
    for (const join *j = w->joins; j && !own; j = j->next) own = &j->param == param;
    pthread_mutex_unlock(&w->lock);
    return own;
}

size_t ts_weights_source_bytes(const ts_weights *w) {
    return w->source_bytes;
}

ts_code ts_weights_join(ts_weights *w, const ts_param *a, const ts_param *b, const ts_param **ret,
                        ts_error *e) {
    ts_code rc = TS_OK;
    if (w->base && !is_own(w, a) && !is_own(w, b)) return ts_weights_join(w->base, a, b, ret, e);
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
    return w->base ? ts_weights_elements(w->base) : w->elements;
}
const char *ts_weights_path(const ts_weights *w) {
    return w->path;
}

void ts_weights_lean_on(ts_weights *w, const ts_tensors *file) {
    w->leans_on = file;
}

void ts_weights_rest(const ts_weights *w) {
    if (w->base) ts_weights_rest(w->base);
    if (w->leans_on) ts_tensors_rest(w->leans_on);
    for (size_t i = 0; i < w->file_count; i++) ts_tensors_rest(w->files[i]);
}

ts_code ts_weights_check(const ts_weights *w, ts_error *e) {
    ts_code rc = w->base ? ts_weights_check(w->base, e) : TS_OK;
    for (size_t i = 0; i < w->file_count && !rc; i++) rc = ts_tensors_check(w->files[i], e);
    return rc;
}
