/* Fusing: which parameter a module changes, and when it is changed. */
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/keymap.h"
#include "engine/lora.h"
#include "kernels/param.h"

/* ---- names ---- */

/* A parameter that can be changed, by its layer's name with underscores. */
typedef struct place {
    char *layer;
    const ts_param *param;
} place;

typedef struct places {
    place *items;
    size_t count;
} places;

static void places_free(places *p) {
    for (size_t i = 0; i < p->count; i++) free(p->items[i].layer);
    free(p->items);
}

static int in_order(const void *a, const void *b) {
    return strcmp(((const place *)a)->layer, ((const place *)b)->layer);
}

static void flatten(char *name) {
    for (char *s = name; *s; s++)
        if (*s == '.') *s = '_';
}

static const char bias_end[] = ".bias";

/* Where the layer's name ends of what is called so, with ".bias" behind it or not. */
static size_t layer_bytes(const char *name) {
    const size_t n = strlen(name), k = sizeof bias_end - 1;
    return n > k && !strcmp(name + n - k, bias_end) ? n - k : n;
}

/* Of a parameter. NULL: no memory. */
static char *flat_layer(const char *name) {
    static const char end[] = ".weight";
    const size_t n = strlen(name), k = sizeof end - 1;
    const size_t layer = n > k && !strcmp(name + n - k, end) ? n - k : layer_bytes(name);
    char *flat = ts_strndup(name, layer), *with = NULL;
    if (flat) flatten(flat);
    if (!flat || layer_bytes(name) == n) return flat;
    with = ts_format("%s%s", flat, bias_end);
    free(flat);
    return with;
}

/* transformers 5 leaves this out of CLIPTextModel's names, LoRA files and older models do not. */
static const char *without_text_model(ts_lora_part part, const char *layer) {
    static const char prefix[] = "text_model_";
    const size_t n = sizeof prefix - 1;
    return part != TS_LORA_UNET && !strncmp(layer, prefix, n) ? layer + n : layer;
}

static ts_code list_places(const ts_weights *w, ts_lora_part part, places *ret, ts_error *e) {
    const size_t all = ts_weights_count(w);
    ret->items = ts_array0(place, all);
    if (!ret->items) return ts_fail(e, TS_ENOMEM, "fusing a LoRA");
    for (size_t i = 0; i < all; i++) {
        const ts_param *p = ts_weights_at(w, i);
        char *flat = flat_layer(p->name);
        if (!flat) return ts_fail(e, TS_ENOMEM, "fusing a LoRA");
        const char *bare = without_text_model(part, flat);
        memmove(flat, bare, strlen(bare) + 1);
        ret->items[ret->count++] = (place){flat, p};
    }
    if (ret->count) qsort(ret->items, ret->count, sizeof *ret->items, in_order);
    return TS_OK;
}

static const ts_param *find_place(const places *p, const char *layer) {
    place key = {.layer = (char *)(uintptr_t)layer};
    const place *found = p->count ? bsearch(&key, p->items, p->count, sizeof key, in_order) : NULL;
    return found ? found->param : NULL;
}

/* XL's published files name the U-Net's layers as the LDM layout does, with underscores for dots. An
 * underscore beside a digit is a dot there, or inside what the map passes on as it is. */
static const ts_param *find_ldm(const places *p, const char *layer, int layers) {
    char key[TS_KEY_BYTES], name[TS_KEY_BYTES];
    const size_t n = layer_bytes(layer);
    if (n + sizeof bias_end > sizeof key) return NULL;
    for (size_t i = 0; i < n; i++) {
        bool digit = (i > 0 && layer[i - 1] >= '0' && layer[i - 1] <= '9') ||
                     (layer[i + 1] >= '0' && layer[i + 1] <= '9');
        key[i] = layer[i] == '_' && digit ? '.' : layer[i];
    }
    key[n] = '.';
    key[n + 1] = 0;
    if (!ts_keymap_unet(key, layers, name)) return NULL;
    name[strlen(name) - 1] = 0; /* the dot, which every answer keeps */
    flatten(name);
    if (!layer[n]) return find_place(p, name);
    return strlen(name) + sizeof bias_end > sizeof name ? NULL : find_place(p, strcat(name, bias_end));
}

/* ---- changes ---- */

typedef struct change {
    const ts_param *param;
    const ts_lora_module *module;
    double scale;
    size_t file;
} change;

static int by_param(const void *a, const void *b) {
    const change *x = a, *y = b;
    uintptr_t p = (uintptr_t)x->param, q = (uintptr_t)y->param;
    if (p != q) return p < q ? -1 : 1;
    return (x->file > y->file) - (x->file < y->file);
}

static bool is_magnitude_of_rows(const ts_lora_module *m, const ts_param *p) {
    const ts_file_tensor *t = m->magnitude;
    if ((int64_t)ts_file_tensor_elements(t) != p->shape[0]) return false;
    return !m->interpolated || t->shape[0] == p->shape[0]; /* [1][cin] is LyCORIS' other one */
}

static bool fits_magnitude(const ts_lora_module *m, const ts_param *p) {
    const ts_file_tensor *t = m->magnitude;
    if (!t || (p->rank > 1 && is_magnitude_of_rows(m, p))) return true;
    return p->rank > 1 && m->interpolated && t->rank > 1 && t->shape[0] == 1 &&
           (int64_t)ts_file_tensor_elements(t) == p->shape[1];
}

/* The module's D has the shape of the parameter: of a 3x3 convolution [cout][cin][3][3]. */
static bool fits(const ts_lora_module *m, const ts_param *p) {
    const int64_t kernel = p->rank == 4 ? p->shape[2] : 1;
    const bool vector = m->kind == TS_LORA_DIFFERENCE && m->matrix[0].whole->rank == 1;
    if (p->rank == 4 && p->shape[3] != kernel) return false;
    return (p->rank == 1) == vector && p->rank != 3 && m->rows == p->shape[0] &&
           m->rows * m->columns == (int64_t)ts_param_count(p) && (!m->kernel || m->kernel == kernel) &&
           fits_magnitude(m, p);
}

static bool begins_with(const char *text, const char *with) {
    return !strncmp(text, with, strlen(with));
}

/* Whether the file names blocks of the U-Net as diffusers does. */
static bool names_blocks(const ts_lora *l) {
    static const char *const blocks[] = {"down_blocks_", "mid_block_", "up_blocks_"};
    for (size_t i = 0; i < ts_lora_count(l); i++)
        for (int k = 0; k < 3; k++)
            if (ts_lora_at(l, i)->part == TS_LORA_UNET && begins_with(ts_lora_at(l, i)->layer, blocks[k]))
                return true;
    return false;
}

/* What a file may hold and nobody applies (lora.h). others: the file names blocks as diffusers does. */
static bool is_dropped(const ts_lora_module *m, bool others, const places *p) {
    static const char *const blocks[] = {"input_blocks_", "middle_block_", "output_blocks_"};
    if (m->part != TS_LORA_UNET) return !strcmp(m->layer, "text_projection") && !find_place(p, m->layer);
    for (int i = 0; i < 3 && others; i++)
        if (begins_with(m->layer, blocks[i])) return true;
    return false;
}

static ts_code list_changes(const ts_lora_scaled *loras, size_t n, ts_lora_part part, int layers,
                            const places *p, change *ret, size_t *ret_count, ts_error *e) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        const bool others = names_blocks(loras[i].lora);
        for (size_t k = 0; k < ts_lora_count(loras[i].lora); k++) {
            const ts_lora_module *m = ts_lora_at(loras[i].lora, k);
            if (m->part != part || is_dropped(m, others, p)) continue;
            const ts_param *param = find_place(p, without_text_model(part, m->layer));
            if (!param && part == TS_LORA_UNET) param = find_ldm(p, m->layer, layers);
            if (!param)
                return ts_fail(e, TS_EFORMAT, "%s: %.200s: the model has no such layer",
                               ts_lora_path(loras[i].lora), m->key);
            if (!fits(m, param))
                return ts_fail(e, TS_EFORMAT, "%s: %.200s: its shape is not that of the model's %.100s",
                               ts_lora_path(loras[i].lora), m->key, param->name);
            ret[count++] = (change){.param = param, .module = m, .scale = loras[i].scale, .file = i};
        }
    }
    if (count) qsort(ret, count, sizeof *ret, by_param);
    for (size_t i = 1; i < count; i++)
        if (ret[i].param == ret[i - 1].param && ret[i].file == ret[i - 1].file)
            return ts_fail(e, TS_EFORMAT, "%s: %.100s and %.100s change the same layer",
                           ts_lora_path(loras[ret[i].file].lora), ret[i - 1].module->key, ret[i].module->key);
    *ret_count = count;
    return TS_OK;
}

/* ---- parameters that are made when they are wanted ---- */

enum { MODULE_TENSORS = 9 };

/* A module whose tensors are copies, and the caller's scale. */
typedef struct term {
    ts_lora_module module;
    double scale;
    ts_file_tensor tensors[MODULE_TENSORS];
} term;

/* What a changed parameter is made of. The tensors' elements lie behind the terms, as they are in the files,
 * which may go. */
typedef struct fused {
    const ts_param *base;
    size_t count;
    term terms[];
} fused;

/* Where a module's tensors are, those that it has not among them. */
static void tensors_of(ts_lora_module *m, const ts_file_tensor **ret[MODULE_TENSORS]) {
    for (int i = 0; i < 2; i++) {
        ts_lora_matrix *x = &m->matrix[i];
        const ts_file_tensor **const each[] = {&x->whole, &x->a, &x->b, &x->core};
        memcpy(ret + 4 * i, each, sizeof each);
    }
    ret[8] = &m->magnitude;
}

static size_t module_bytes(const ts_lora_module *m) {
    ts_lora_module copy = *m;
    const ts_file_tensor **tensors[MODULE_TENSORS];
    size_t bytes = 0;
    tensors_of(&copy, tensors);
    for (int i = 0; i < MODULE_TENSORS; i++)
        if (*tensors[i]) bytes += (*tensors[i])->bytes;
    return bytes;
}

/* Their elements go to *at, which moves on. */
static void copy_module(const ts_lora_module *m, double scale, term *ret, char **at) {
    const ts_file_tensor **tensors[MODULE_TENSORS];
    ret->module = *m;
    ret->module.layer = ret->module.key = NULL;
    ret->scale = scale;
    tensors_of(&ret->module, tensors);
    for (int i = 0; i < MODULE_TENSORS; i++) {
        const ts_file_tensor *from = *tensors[i];
        if (!from) continue;
        ret->tensors[i] = *from;
        ret->tensors[i].name = NULL;
        ret->tensors[i].data = memcpy(*at, from->data, from->bytes);
        *tensors[i] = &ret->tensors[i];
        *at += from->bytes;
    }
}

static ts_code make_fused(const void *source, float *ret, ts_error *e) {
    const fused *f = source;
    ts_code rc = ts_param_load(f->base, TS_F32, ret, e);
    for (size_t i = 0; i < f->count && !rc; i++) {
        const ts_lora_module *m = &f->terms[i].module;
        rc = ts_lora_apply(m, f->terms[i].scale, m->magnitude && is_magnitude_of_rows(m, f->base), ret, e);
    }
    return rc;
}

/* All changes of one parameter. */
static ts_code fuse_param(const change *c, size_t count, ts_weights *over, ts_error *e) {
    size_t bytes = sizeof(fused) + count * sizeof(term);
    for (size_t i = 0; i < count; i++) bytes += module_bytes(c[i].module); /* less than the files */
    fused *f = calloc(1, bytes);
    if (!f) return ts_fail(e, TS_ENOMEM, "fusing a LoRA");
    f->base = c->param;
    f->count = count;
    char *at = (char *)(f->terms + count);
    for (size_t i = 0; i < count; i++) copy_module(c[i].module, c[i].scale, &f->terms[i], &at);
    return ts_weights_add_made(over, c->param, make_fused, f, bytes, e);
}

ts_code ts_lora_fuse(const ts_lora_scaled *loras, size_t n, ts_lora_part part, int layers,
                     const ts_weights *base, ts_weights *over, ts_error *e) {
    places p = {0};
    size_t all = 0, count = 0;
    for (size_t i = 0; i < n; i++) all += ts_lora_count(loras[i].lora);
    change *changes = ts_array0(change, all);
    ts_code rc = changes ? list_places(base, part, &p, e) : ts_fail(e, TS_ENOMEM, "fusing a LoRA");
    if (!rc) rc = list_changes(loras, n, part, layers, &p, changes, &count, e);
    for (size_t i = 0, k; i < count && !rc; i = k) {
        for (k = i + 1; k < count && changes[k].param == changes[i].param;) k++;
        rc = fuse_param(changes + i, k - i, over, e);
    }
    places_free(&p);
    free(changes);
    return rc;
}
