/* Reading: from keys to modules. */
#include "engine/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/json.h"

static const ts_json_limits metadata_limits = {.depth = 4, .values = 200000};

typedef enum role { DOWN, UP, ALPHA } role;

/* A tensor of the file and what its key says. */
typedef struct entry {
    ts_lora_part part;
    char *layer;
    role role;
    const char *key;
    const ts_file_tensor *tensor; /* or NULL: */
    const ts_file_other *other;   /* an alpha of another type */
} entry;

struct ts_lora {
    char *path;
    ts_safetensors *file;
    entry *entries; /* own the layers' names */
    size_t entry_count;
    ts_lora_module *modules;
    size_t count;
};

/* ---- keys ---- */

static const struct {
    const char *text;
    ts_lora_part part;
} prefixes[] = {
    {"lora_unet_", TS_LORA_UNET},        {"lora_te_", TS_LORA_TEXT},     {"lora_te1_", TS_LORA_TEXT},
    {"lora_te2_", TS_LORA_TEXT_2},       {"unet.", TS_LORA_UNET},        {"text_encoder.", TS_LORA_TEXT},
    {"text_encoder_2.", TS_LORA_TEXT_2}, {"down_blocks.", TS_LORA_UNET}, {"mid_block.", TS_LORA_UNET},
    {"up_blocks.", TS_LORA_UNET},
};

static const struct {
    const char *text;
    role role;
} endings[] = {
    {".lora_down.weight", DOWN},
    {".lora_up.weight", UP},
    {".lora_A.weight", DOWN},
    {".lora_B.weight", UP},
    {".lora_linear_layer.down.weight", DOWN},
    {".lora_linear_layer.up.weight", UP},
    {".lora.down.weight", DOWN},
    {".lora.up.weight", UP},
    {"_lora.down.weight", DOWN},
    {"_lora.up.weight", UP},
    {".alpha", ALPHA},
};

/* Parts of keys that tell another kind of change, which looks like ours otherwise. */
static const struct {
    const char *text, *kind;
} refused[] = {
    {"dora_scale", "DoRA"},
    {"lora_magnitude_vector", "DoRA"},
    {"hada_w", "LoHa"},
    {"lokr_w", "LoKr"},
    {"lora_mid", "a LoRA in Tucker form"},
    {"oft_", "OFT"},
    {".lora_B.bias", "a LoRA with a bias"},
    {".lora_up.bias", "a LoRA with a bias"},
    {".diff", "a whole difference"},
};

/* Layers that the oldest files of diffusers call otherwise. */
static const struct {
    const char *end, *is;
    bool text; /* of the text encoders, else of the U-Net */
} renamed[] = {
    {"_to_out", "_to_out_0", false}, {"_to_q", "_q_proj", true},     {"_to_k", "_k_proj", true},
    {"_to_v", "_v_proj", true},      {"_to_out", "_out_proj", true},
};

static bool ends_with(const char *text, size_t n, const char *end) {
    size_t k = strlen(end);
    return n > k && !memcmp(text + n - k, end, k);
}

/* The n bytes at `name` with underscores for dots, in today's words. NULL when memory runs out. */
static char *layer_of(const char *name, size_t n, ts_lora_part part) {
    static const char processor[] = "_processor_";
    char *flat = ts_strndup(name, n), *inside;
    if (!flat) return NULL;
    for (char *s = flat; *s; s++)
        if (*s == '.') *s = '_';
    if ((inside = strstr(flat, processor)))
        memmove(inside + 1, inside + sizeof processor - 1, strlen(inside + sizeof processor - 1) + 1);
    n = strlen(flat);
    for (size_t i = 0; i < sizeof renamed / sizeof *renamed; i++) {
        if (renamed[i].text != (part != TS_LORA_UNET) || !ends_with(flat, n, renamed[i].end)) continue;
        char *other = ts_format("%.*s%s", (int)(n - strlen(renamed[i].end)), flat, renamed[i].is);
        free(flat);
        return other;
    }
    return flat;
}

static ts_code read_key(const char *key, entry *ret, ts_error *e) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (strstr(key, refused[i].text))
            return ts_fail(e, TS_EUNSUPPORTED, "%.200s: %s is not offered", key, refused[i].kind);
    size_t p = 0, s = 0, n = strlen(key);
    const size_t ps = sizeof prefixes / sizeof *prefixes, ss = sizeof endings / sizeof *endings;
    while (p < ps && strncmp(key, prefixes[p].text, strlen(prefixes[p].text)) != 0) p++;
    while (s < ss && !ends_with(key, n, endings[s].text)) s++;
    if (p == ps || s == ss) return ts_fail(e, TS_EFORMAT, "%.200s is no key of a LoRA", key);
    /* The U-Net's own names come without a prefix in the oldest files. */
    bool bare = ends_with(prefixes[p].text, strlen(prefixes[p].text), "blocks.") ||
                !strcmp(prefixes[p].text, "mid_block.");
    size_t from = bare ? 0 : strlen(prefixes[p].text), to = n - strlen(endings[s].text);
    if (from >= to) return ts_fail(e, TS_EFORMAT, "%.200s names no layer", key);
    ret->part = prefixes[p].part;
    ret->role = endings[s].role;
    ret->key = key;
    ret->layer = layer_of(key + from, to - from, ret->part);
    return ret->layer ? TS_OK : ts_fail(e, TS_ENOMEM, "reading a LoRA");
}

static int compare_layers(const entry *x, const entry *y) {
    return x->part != y->part ? (x->part > y->part) - (x->part < y->part) : strcmp(x->layer, y->layer);
}

static int in_order(const void *a, const void *b) {
    const entry *x = a, *y = b;
    int order = compare_layers(x, y);
    return order ? order : (x->role > y->role) - (x->role < y->role);
}

static ts_code read_keys(ts_lora *l, ts_error *e) {
    const size_t tensors = ts_safetensors_count(l->file);
    size_t others = 0;
    while (ts_safetensors_other(l->file, others)) others++;
    l->entries = ts_array0(entry, tensors + others);
    if (!l->entries) return ts_fail(e, TS_ENOMEM, "reading a LoRA");
    if (tensors + others == 0) return ts_fail(e, TS_EFORMAT, "there is nothing in it");
    ts_code rc = TS_OK;
    for (size_t i = 0; i < tensors + others && !rc; i++) {
        entry *to = &l->entries[l->entry_count];
        if (i < tensors)
            to->tensor = ts_safetensors_at(l->file, i);
        else
            to->other = ts_safetensors_other(l->file, i - tensors);
        rc = read_key(to->tensor ? to->tensor->name : to->other->name, to, e);
        if (rc) break;
        l->entry_count++;
        if (to->other && to->role != ALPHA)
            rc = ts_fail(e, TS_EUNSUPPORTED, "%.200s is of type %s, which is not offered", to->key,
                         to->other->type);
    }
    if (!rc) qsort(l->entries, l->entry_count, sizeof *l->entries, in_order);
    return rc;
}

/* ---- modules ---- */

static ts_code read_alpha(const entry *from, double *ret, ts_error *e) {
    double alpha = NAN;
    float f;
    int64_t i;
    int32_t k;
    if (from->tensor && ts_file_tensor_elements(from->tensor) == 1) {
        ts_file_tensor_to_f32(from->tensor, &f);
        alpha = (double)f;
    } else if (from->other && from->other->bytes == sizeof i && !strcmp(from->other->type, "I64")) {
        memcpy(&i, from->other->data, sizeof i);
        alpha = (double)i;
    } else if (from->other && from->other->bytes == sizeof k && !strcmp(from->other->type, "I32")) {
        memcpy(&k, from->other->data, sizeof k);
        alpha = (double)k;
    } else if (from->other && from->other->bytes == sizeof alpha && !strcmp(from->other->type, "F64")) {
        memcpy(&alpha, from->other->data, sizeof alpha);
    }
    if (!isfinite(alpha)) return ts_fail(e, TS_EFORMAT, "%.200s is not one number", from->key);
    *ret = alpha;
    return TS_OK;
}

static bool is_matrix(const ts_file_tensor *t) {
    return (t->rank == 2 || (t->rank == 4 && t->shape[2] == t->shape[3])) && ts_file_tensor_elements(t) > 0;
}

static ts_code check_module(const ts_lora_module *m, ts_error *e) {
    if (!m->down || !m->up)
        return ts_fail(e, TS_EFORMAT, "%.200s: the layer's other matrix is missing", m->key);
    if (!is_matrix(m->down) || !is_matrix(m->up) || (m->up->rank == 4 && m->up->shape[2] != 1) ||
        m->up->shape[1] != m->down->shape[0])
        return ts_fail(e, TS_EFORMAT, "%.200s: the layer's two matrices do not fit together", m->key);
    return TS_OK;
}

/* Each module's factor is its alpha for now, or not a number where no tensor says it. */
static ts_code read_modules(ts_lora *l, ts_error *e) {
    l->modules = ts_array0(ts_lora_module, l->entry_count);
    if (!l->modules) return ts_fail(e, TS_ENOMEM, "reading a LoRA");
    for (size_t i = 0; i < l->entry_count;) {
        const entry *first = &l->entries[i];
        ts_lora_module *m = &l->modules[l->count++];
        *m = (ts_lora_module){.part = first->part, .layer = first->layer, .key = first->key, .factor = NAN};
        for (; i < l->entry_count && !compare_layers(first, &l->entries[i]); i++) {
            const entry *en = &l->entries[i];
            ts_code rc = TS_OK;
            if (en > first && en[-1].role == en->role)
                return ts_fail(e, TS_EFORMAT, "%.100s and %.100s are the same", en[-1].key, en->key);
            if (en->role == DOWN)
                m->down = en->tensor;
            else if (en->role == UP)
                m->up = en->tensor;
            else
                rc = read_alpha(en, &m->factor, e);
            if (rc) return rc;
        }
        ts_code rc = check_module(m, e);
        if (rc) return rc;
    }
    return TS_OK;
}

/* ---- alphas that the metadata tells ---- */

/* "unet.lora_alpha" and the like: PEFT's configuration of each part, its keys behind the part's name. */
static const cJSON *setting(const cJSON *config, ts_lora_part part, const char *name) {
    static const char *const parts[] = {"unet", "text_encoder", "text_encoder_2"};
    char key[64];
    snprintf(key, sizeof key, "%s.%s", parts[part], name);
    return cJSON_GetObjectItemCaseSensitive(config, key);
}

/* A pattern's key names a layer or ends the names of several. */
static bool names_layer(const char *pattern, const char *layer) {
    size_t n = strlen(layer), k = strlen(pattern);
    if (!k || k > n || (k < n && layer[n - k - 1] != '_')) return false;
    for (size_t i = 0; i < k; i++)
        if ((pattern[i] == '.' ? '_' : pattern[i]) != layer[n - k + i]) return false;
    return true;
}

static ts_code alpha_of(const cJSON *config, const ts_lora_module *m, double *ret, ts_error *e) {
    const cJSON *v = setting(config, m->part, "lora_alpha"), *p;
    cJSON_ArrayForEach(p, setting(config, m->part, "alpha_pattern")) {
        if (!names_layer(p->string, m->layer)) continue;
        v = p;
        break;
    }
    if (!v || cJSON_IsNull(v)) return TS_OK;
    if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble))
        return ts_fail(e, TS_EFORMAT, "lora_adapter_metadata: the alpha of %.200s is not a number", m->layer);
    *ret = v->valuedouble;
    return TS_OK;
}

static ts_code find_factors(ts_lora *l, ts_error *e) {
    const char *text = ts_safetensors_metadata(l->file, "lora_adapter_metadata");
    cJSON *config = NULL;
    ts_code rc = text ? ts_json_parse(text, strlen(text), metadata_limits, &config, e) : TS_OK;
    if (rc) return ts_error_context(e, rc == TS_EINVAL ? TS_EFORMAT : rc, "lora_adapter_metadata");
    for (int part = 0; part < TS_LORA_PARTS && !rc; part++)
        if (cJSON_IsTrue(setting(config, (ts_lora_part)part, "use_dora")))
            rc = ts_fail(e, TS_EUNSUPPORTED, "lora_adapter_metadata: DoRA is not offered");
    for (size_t i = 0; i < l->count && !rc; i++) {
        ts_lora_module *m = &l->modules[i];
        const double rank = (double)m->down->shape[0];
        if (isnan(m->factor)) rc = alpha_of(config, m, &m->factor, e);
        if (isnan(m->factor)) m->factor = rank;
        m->factor /= cJSON_IsTrue(setting(config, m->part, "use_rslora")) ? sqrt(rank) : rank;
    }
    cJSON_Delete(config);
    return rc;
}

/* ---- files ---- */

/* The file is l's in any case. */
static ts_code read_file(const char *path, ts_safetensors *file, ts_lora **ret, ts_error *e) {
    ts_lora *l = ts_new0(ts_lora);
    if (!l) {
        ts_safetensors_free(file);
        return ts_fail(e, TS_ENOMEM, "reading %s", path);
    }
    l->file = file;
    l->path = ts_strdup(path);
    ts_code rc = l->path ? read_keys(l, e) : ts_fail(e, TS_ENOMEM, "reading a LoRA");
    if (!rc) rc = read_modules(l, e);
    if (!rc) rc = find_factors(l, e);
    if (rc) {
        ts_lora_free(l);
        return ts_error_context(e, rc, "%s", path);
    }
    *ret = l;
    return TS_OK;
}

ts_code ts_lora_open(const char *path, ts_lora **ret, ts_error *e) {
    ts_safetensors *file = NULL;
    ts_code rc = ts_safetensors_open(path, &file, e);
    return rc ? rc : read_file(path, file, ret, e);
}

ts_code ts_lora_parse(const char *path, const void *bytes, size_t size, ts_lora **ret, ts_error *e) {
    ts_safetensors *file = NULL;
    ts_code rc = ts_safetensors_parse(path, bytes, size, &file, e);
    return rc ? rc : read_file(path, file, ret, e);
}

ts_code ts_lora_check(const ts_lora *l, ts_error *e) {
    return ts_safetensors_check(l->file, e);
}

void ts_lora_free(ts_lora *l) {
    if (!l) return;
    for (size_t i = 0; i < l->entry_count; i++) free(l->entries[i].layer);
    free(l->entries);
    free(l->modules);
    free(l->path);
    ts_safetensors_free(l->file);
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
