/* Reading: from tensors to modules. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/alloc.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/engine.h"
#include "engine/lora_key.h"

static const ts_json_limits metadata_limits = {.depth = 4, .values = 200000};

#define PEFT_ALPHA   8                 /* of an adapter whose configuration does not say */
#define CONFIG_BYTES ((size_t)1 << 20) /* of an adapter, at most */

const char *const ts_lora_stems[] = {"adapter_model", "pytorch_lora_weights", NULL};

/* A tensor of the file and what its key says. */
typedef struct entry {
    ts_lora_key is;
    const char *key;
    const ts_file_tensor *tensor; /* or NULL: */
    const ts_file_other *other;   /* an alpha of another type */
} entry;

struct ts_lora {
    char *path;
    ts_tensors *file;
    entry *entries; /* own the layers' names */
    size_t entry_count;
    ts_lora_module *modules;
    const ts_lora_key **keys; /* by module, of one of its tensors */
    size_t count;
    bool adapter; /* of PEFT's own; then all keys are */
};

static int compare_layers(const entry *x, const entry *y) {
    const ts_lora_part p = x->is.part, q = y->is.part;
    return p != q ? (p > q) - (p < q) : strcmp(x->is.layer, y->is.layer);
}

static int in_order(const void *a, const void *b) {
    const entry *x = a, *y = b;
    int order = compare_layers(x, y);
    if (!order) order = (x->is.matrix > y->is.matrix) - (x->is.matrix < y->is.matrix);
    return order ? order : (x->is.role > y->is.role) - (x->is.role < y->is.role);
}

static bool is_same(const entry *x, const entry *y) {
    return x->is.role == y->is.role && x->is.matrix == y->is.matrix;
}

static ts_code read_keys(ts_lora *l, ts_error *e) {
    const size_t tensors = ts_tensors_count(l->file);
    size_t others = 0;
    while (ts_tensors_other(l->file, others)) others++;
    l->entries = ts_array0(entry, tensors + others);
    if (!l->entries) return ts_fail(e, TS_ENOMEM, "reading a LoRA");
    if (tensors + others == 0) return ts_fail(e, TS_EFORMAT, "there is nothing in it");
    ts_code rc = TS_OK;
    for (size_t i = 0; i < tensors + others && !rc; i++) {
        /* Embeddings that a trainer has put beside the LoRA: whoever wants them has them in their own folder.
         */
        static const char bundle[] = "bundle_emb.";
        entry *to = &l->entries[l->entry_count];
        *to = (entry){0};
        if (i < tensors)
            to->tensor = ts_tensors_at(l->file, i);
        else
            to->other = ts_tensors_other(l->file, i - tensors);
        to->key = to->tensor ? to->tensor->name : to->other->name;
        if (!strncmp(to->key, bundle, sizeof bundle - 1)) continue;
        rc = ts_lora_key_read(to->key, &to->is, e);
        if (rc) break;
        if (l->entry_count++ == 0) l->adapter = to->is.adapter;
        if (to->is.adapter != l->adapter)
            rc =
                ts_fail(e, TS_EFORMAT, "%.100s and %.100s are not of one layout", l->entries[0].key, to->key);
        else if (to->other && to->is.role != TS_LORA_ALPHA)
            rc = ts_fail(e, TS_EUNSUPPORTED, "%.200s is of type %s, which is not offered", to->key,
                         to->other->type);
    }
    if (!rc && !l->entry_count) rc = ts_fail(e, TS_EFORMAT, "there is no LoRA in it");
    if (!rc) qsort(l->entries, l->entry_count, sizeof *l->entries, in_order);
    return rc;
}

/* ---- modules ---- */

static ts_code read_alpha(const entry *from, double *ret, ts_error *e) {
    double alpha = NAN;
    float f;
    int64_t i;
    int32_t k;
    int16_t h;
    uint8_t b;
    if (from->tensor && ts_file_tensor_elements(from->tensor) == 1) {
        ts_file_tensor_to_f32(from->tensor, &f);
        alpha = (double)f;
    } else if (from->other && from->other->bytes == sizeof i && !strcmp(from->other->type, "I64")) {
        memcpy(&i, from->other->data, sizeof i);
        alpha = (double)i;
    } else if (from->other && from->other->bytes == sizeof k && !strcmp(from->other->type, "I32")) {
        memcpy(&k, from->other->data, sizeof k);
        alpha = (double)k;
    } else if (from->other && from->other->bytes == sizeof h && !strcmp(from->other->type, "I16")) {
        memcpy(&h, from->other->data, sizeof h);
        alpha = h;
    } else if (from->other && from->other->bytes == sizeof b && !strcmp(from->other->type, "U8")) {
        memcpy(&b, from->other->data, sizeof b);
        alpha = b;
    }
    if (!isfinite(alpha)) return ts_fail(e, TS_EFORMAT, "%.200s is not one number", from->key);
    *ret = alpha;
    return TS_OK;
}

/* Where the module keeps a tensor of that role; NULL for its alpha, which it keeps as a number. */
static const ts_file_tensor **slot(ts_lora_module *m, const ts_lora_key *is) {
    ts_lora_matrix *x = &m->matrix[is->matrix];
    switch (is->role) {
    case TS_LORA_WHOLE: return &x->whole;
    case TS_LORA_A: return &x->a;
    case TS_LORA_B: return &x->b;
    case TS_LORA_CORE: return &x->core;
    case TS_LORA_MAGNITUDE:
    case TS_LORA_SCALE: return &m->magnitude;
    case TS_LORA_ALPHA: break;
    }
    return NULL;
}

static bool is_in_matrix(const entry *en) {
    return en->is.role <= TS_LORA_CORE;
}

/* The n entries of one layer. The factor is the alpha for now, or not a number where no tensor says it. */
static ts_code read_module(const entry *of, size_t n, ts_lora_module *ret, ts_error *e) {
    const entry *first = NULL; /* that says the kind */
    *ret = (ts_lora_module){.part = of->is.part, .layer = of->is.layer, .key = of->key, .factor = NAN};
    for (size_t i = 0; i < n; i++) {
        const entry *en = &of[i];
        const ts_file_tensor **to = slot(ret, &en->is);
        if (i && is_same(en - 1, en))
            return ts_fail(e, TS_EFORMAT, "%.100s and %.100s are the same", en[-1].key, en->key);
        if (is_in_matrix(en) && first && first->is.kind != en->is.kind)
            return ts_fail(e, TS_EFORMAT, "%.100s and %.100s are of different kinds", first->key, en->key);
        if (is_in_matrix(en) && !first) first = en;
        if (to && *to) return ts_fail(e, TS_EFORMAT, "%.200s: there are two magnitudes", en->key);
        if (to) *to = en->tensor;
        if (en->is.role == TS_LORA_SCALE) ret->interpolated = true;
        ts_code rc = to ? TS_OK : read_alpha(en, &ret->factor, e);
        if (rc) return rc;
    }
    if (!first) return ts_fail(e, TS_EFORMAT, "%.200s: the layer's matrices are missing", of->key);
    ret->kind = first->is.kind;
    ret->key = first->key;
    return ts_lora_measure(ret, e);
}

static ts_code read_modules(ts_lora *l, ts_error *e) {
    l->modules = ts_array0(ts_lora_module, l->entry_count);
    l->keys = ts_array0(const ts_lora_key *, l->entry_count);
    if (!l->modules || !l->keys) return ts_fail(e, TS_ENOMEM, "reading a LoRA");
    for (size_t i = 0, n; i < l->entry_count; i += n) {
        const entry *first = &l->entries[i];
        for (n = 1; i + n < l->entry_count && !compare_layers(first, &first[n]);) n++;
        l->keys[l->count] = &first->is;
        ts_code rc = read_module(first, n, &l->modules[l->count], e);
        if (rc) return rc;
        l->count++;
    }
    return TS_OK;
}

/* In PyTorch's files tensors may be views of one storage, so that a small file holds any amount of them. Who
 * uses a LoRA copies its modules, which no trainer writes so. */
static ts_code check_bytes(const ts_lora *l, ts_error *e) {
    size_t left = ts_tensors_size(l->file);
    for (size_t i = 0; i < l->entry_count; i++) {
        const ts_file_tensor *t = l->entries[i].is.role == TS_LORA_ALPHA ? NULL : l->entries[i].tensor;
        if (t && t->bytes > left)
            return ts_fail(e, TS_EUNSUPPORTED, "%.200s: its modules' tensors share their bytes",
                           l->entries[i].key);
        if (t) left -= t->bytes;
    }
    return TS_OK;
}

/* ---- alphas that are told beside the tensors ---- */

/* PEFT's configuration: of an adapter as its own program writes it, in a file of one part; else in the
 * metadata, where the part's name stands before each key. */
static const cJSON *setting(const ts_lora *l, const cJSON *config, ts_lora_part part, const char *name) {
    static const char *const parts[] = {"unet", "text_encoder", "text_encoder_2"};
    char key[64];
    snprintf(key, sizeof key, "%s.%s", parts[part], name);
    return cJSON_GetObjectItemCaseSensitive(config, l->adapter ? name : key);
}

/* PEFT takes a pattern's key for a regular expression, which a layer's name, or its end behind a dot, has to
 * match. Those that are a plain name are understood, and the whole name behind "^", as diffusers writes it.
 */
static bool is_plain(const char *pattern) {
    pattern += *pattern == '^';
    return *pattern && strspn(pattern, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.") ==
                           strlen(pattern);
}

static bool names_layer(const char *pattern, const ts_lora_key *layer) {
    const bool whole = *pattern == '^';
    const size_t n = layer->name_bytes, k = strlen(pattern += whole);
    return k <= n && !memcmp(layer->name + n - k, pattern, k) &&
           (k == n || (!whole && layer->name[n - k - 1] == '.'));
}

static ts_code alpha_of(const ts_lora *l, const cJSON *config, const ts_lora_key *layer, double *ret,
                        ts_error *e) {
    const cJSON *v = setting(l, config, layer->part, "lora_alpha"), *p;
    cJSON_ArrayForEach(p, setting(l, config, layer->part, "alpha_pattern")) {
        if (!names_layer(p->string, layer)) continue;
        v = p;
        break;
    }
    if (!v || cJSON_IsNull(v)) return TS_OK;
    if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble))
        return ts_fail(e, TS_EFORMAT, "the alpha of %.200s is not a number", layer->layer);
    *ret = v->valuedouble;
    return TS_OK;
}

/* What makes another kind of change of the same tensors: PEFT's settings that must be null or false, */
static const char *const not_offered[] = {"use_qalora",   "use_bdlora",        "lora_bias",
                                          "kasa_config",  "monteclora_config", "velora_config",
                                          "arrow_config", "layer_replication"};
/* and beginnings that take away from the model's own weights what they put into the LoRA. */
static const char *const initial[] = {"pissa", "olora", "corda", "lora_ga", "loftq"};

static ts_code check_settings(const ts_lora *l, const cJSON *config, ts_lora_part part, ts_error *e) {
    for (size_t i = 0; i < sizeof not_offered / sizeof *not_offered; i++) {
        const cJSON *v = setting(l, config, part, not_offered[i]);
        if (v && !cJSON_IsNull(v) && !cJSON_IsFalse(v))
            return ts_fail(e, TS_EUNSUPPORTED, "%s is not offered", not_offered[i]);
    }
    const cJSON *rslora = setting(l, config, part, "use_rslora");
    if (rslora && !cJSON_IsNull(rslora) && !cJSON_IsBool(rslora))
        return ts_fail(e, TS_EFORMAT, "use_rslora is not true or false");
    const cJSON *init = setting(l, config, part, "init_lora_weights"), *patterns, *p;
    for (size_t i = 0; i < sizeof initial / sizeof *initial; i++)
        if (cJSON_IsString(init) && !strncmp(init->valuestring, initial[i], strlen(initial[i])))
            return ts_fail(e, TS_EUNSUPPORTED, "init_lora_weights of %s is not offered", initial[i]);
    patterns = setting(l, config, part, "alpha_pattern");
    if (patterns && !cJSON_IsObject(patterns) && !cJSON_IsNull(patterns))
        return ts_fail(e, TS_EFORMAT, "alpha_pattern is no object");
    cJSON_ArrayForEach(p, patterns) {
        if (!is_plain(p->string))
            return ts_fail(e, TS_EUNSUPPORTED, "alpha_pattern: %.100s is no plain name", p->string);
    }
    return TS_OK;
}

static ts_code read_factors(ts_lora *l, const cJSON *config, ts_error *e) {
    if (config && !cJSON_IsObject(config)) return ts_fail(e, TS_EFORMAT, "it is no object");
    const cJSON *kind = l->adapter ? cJSON_GetObjectItemCaseSensitive(config, "peft_type") : NULL;
    if (kind && !(cJSON_IsString(kind) && !strcmp(kind->valuestring, "LORA")))
        return ts_fail(e, TS_EUNSUPPORTED, "a peft_type other than LORA is not offered");
    for (int part = 0; part < TS_LORA_PARTS; part++) {
        ts_code rc = check_settings(l, config, (ts_lora_part)part, e);
        if (rc) return rc;
    }
    for (size_t i = 0; i < l->count; i++) {
        ts_lora_module *m = &l->modules[i];
        const double rank = m->rank ? (double)m->rank : 1;
        if (!m->magnitude && cJSON_IsTrue(setting(l, config, m->part, "use_dora")))
            return ts_fail(e, TS_EFORMAT, "use_dora, and %.200s has no magnitude", m->key);
        if (!m->rank) m->factor = 1; /* an alpha means nothing */
        ts_code rc = isnan(m->factor) ? alpha_of(l, config, l->keys[i], &m->factor, e) : TS_OK;
        if (rc) return rc;
        if (isnan(m->factor)) m->factor = l->adapter ? PEFT_ALPHA : rank;
        m->factor /= cJSON_IsTrue(setting(l, config, m->part, "use_rslora")) ? sqrt(rank) : rank;
    }
    return TS_OK;
}

/* The text of the configuration that lies beside an adapter. */
static ts_code read_config(const char *lora, char **ret, ts_error *e) {
    char *path = ts_lora_config(lora);
    if (!path) return ts_fail(e, TS_ENOMEM, "reading a LoRA");
    ts_code rc = ts_read_file(path, CONFIG_BYTES, ret, NULL, e);
    if (rc == TS_ENOTFOUND)
        rc = ts_fail(e, TS_EFORMAT,
                     "an adapter of PEFT, whose alpha is in the %s beside it, which is not there",
                     TS_ADAPTER_CONFIG);
    free(path);
    return rc == TS_ETOOLARGE ? TS_EFORMAT : rc;
}

/* told: the configuration of an adapter, or NULL where it has to be found. */
static ts_code find_factors(ts_lora *l, const char *told, ts_error *e) {
    const char *name = l->adapter ? TS_ADAPTER_CONFIG : "lora_adapter_metadata";
    char *beside = NULL;
    cJSON *config = NULL;
    ts_code rc = l->adapter && !told ? read_config(l->path, &beside, e) : TS_OK;
    if (rc) return rc;
    const char *text = beside ? beside : l->adapter ? told : ts_tensors_metadata(l->file, name);
    if (text) rc = ts_json_parse(text, strlen(text), metadata_limits, &config, e);
    if (!rc) rc = read_factors(l, config, e);
    if (rc) rc = ts_error_context(e, rc == TS_EINVAL ? TS_EFORMAT : rc, "%s", name);
    cJSON_Delete(config);
    free(beside);
    return rc;
}

/* ---- files ---- */

/* The file is l's in any case. */
static ts_code read_file(const char *path, ts_tensors *file, const char *config, ts_lora **ret, ts_error *e) {
    ts_lora *l = ts_new0(ts_lora);
    if (!l) {
        ts_tensors_free(file);
        return ts_fail(e, TS_ENOMEM, "reading %s", path);
    }
    l->file = file;
    l->path = ts_strdup(path);
    ts_code rc = l->path ? read_keys(l, e) : ts_fail(e, TS_ENOMEM, "reading a LoRA");
    if (!rc) rc = read_modules(l, e);
    if (!rc) rc = check_bytes(l, e);
    if (!rc) rc = find_factors(l, config, e);
    if (rc) {
        ts_lora_free(l);
        return ts_error_context(e, rc, "%s", path);
    }
    *ret = l;
    return TS_OK;
}

char *ts_lora_config(const char *path) {
    const char *slash = strrchr(path, '/');
    return ts_format("%.*s%s", slash ? (int)(slash + 1 - path) : 0, path, TS_ADAPTER_CONFIG);
}

static uint64_t stamp_of(const struct stat *st) {
    return (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec + (uint64_t)st->st_ino;
}

ts_code ts_lora_stamp(const char *path, uint64_t *ret, ts_error *e) {
    struct stat st;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (stat(path, &st)) return ts_fail_errno(e, ts_errno_code(errno), errno, "opening %s", name);
    if (!S_ISREG(st.st_mode)) return ts_fail(e, TS_ENOTFOUND, "%s is not a file", name);
    uint64_t stamp = stamp_of(&st);
    char *config = ts_lora_config(path); /* an adapter's alpha is in it */
    if (!config) return ts_fail(e, TS_ENOMEM, "there is no memory for a path");
    if (!stat(config, &st)) stamp += stamp_of(&st);
    free(config);
    *ret = stamp;
    return TS_OK;
}

/* Where the folder holds a file of tensors that is called so, whatever its extension; the first that there
 * could be where it holds none. NULL: no memory. */
static char *file_called(const char *folder, const char *name) {
    const char *extension = NULL;
    char *stem = ts_path_join(folder, name);
    for (const char *const *x = ts_tensors_extensions; stem && *x && !extension; x++) {
        char *path = ts_format("%s%s", stem, *x);
        if (path && ts_file_exists(path)) extension = *x;
        free(path);
    }
    char *path = stem ? ts_format("%s%s", stem, extension ? extension : ts_tensors_extensions[0]) : NULL;
    free(stem);
    return path;
}

/* The file of a LoRA that is a folder; where there is none, where the first could be. NULL: no memory. */
static char *file_inside(const char *folder) {
    char *path = NULL;
    for (const char *const *stem = ts_lora_stems; *stem; stem++) {
        char *next = file_called(folder, *stem);
        if (!next || !path || ts_file_exists(next)) {
            free(path);
            path = next;
        } else
            free(next);
        if (!path || ts_file_exists(path)) break;
    }
    return path;
}

char *ts_lora_find(const char *folder, const char *name) {
    char *path = file_called(folder, name);
    if (!path || ts_file_exists(path)) return path;
    char *own = ts_path_join(folder, name), *inside = own ? file_inside(own) : NULL;
    free(own);
    if (inside && !ts_file_exists(inside)) {
        free(inside);
        return path;
    }
    free(path);
    return inside;
}

ts_code ts_lora_open(const char *path, ts_lora **ret, ts_error *e) {
    ts_tensors *file = NULL;
    char *inside = file_inside(path);
    if (!inside) return ts_fail(e, TS_ENOMEM, "reading %s", path);
    const char *from = ts_file_exists(inside) ? inside : path;
    ts_code rc = ts_tensors_open(from, &file, e);
    if (!rc) rc = read_file(from, file, NULL, ret, e);
    free(inside);
    return rc;
}

ts_code ts_lora_parse(const char *path, const void *bytes, size_t size, const char *config, ts_lora **ret,
                      ts_error *e) {
    ts_tensors *file = NULL;
    ts_code rc = ts_tensors_parse(path, bytes, size, &file, e);
    return rc ? rc : read_file(path, file, config, ret, e);
}

ts_code ts_lora_check(const ts_lora *l, ts_error *e) {
    return ts_tensors_check(l->file, e);
}

void ts_lora_free(ts_lora *l) {
    if (!l) return;
    for (size_t i = 0; i < l->entry_count; i++) free(l->entries[i].is.layer);
    free(l->entries);
    free(l->modules);
    free(l->keys);
    free(l->path);
    ts_tensors_free(l->file);
    free(l);
}

const char *ts_lora_path(const ts_lora *l) {
    return l->path;
}

size_t ts_lora_count(const ts_lora *l) {
    return l->count;
}

const ts_lora_module *ts_lora_at(const ts_lora *l, size_t i) {
    ts_assert(i < l->count);
    return &l->modules[i];
}
