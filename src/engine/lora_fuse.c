/* Fusing: which parameter a module changes, and W' = W + sum of factor * up * down. */
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/keymap.h"
#include "engine/lora.h"
#include "kernels/gemm.h"
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

/* transformers 5 leaves this out of CLIPTextModel's names, LoRA files and older models do not. */
static const char *without_text_model(ts_lora_part part, const char *layer) {
    static const char prefix[] = "text_model_";
    const size_t n = sizeof prefix - 1;
    return part != TS_LORA_UNET && !strncmp(layer, prefix, n) ? layer + n : layer;
}

static ts_code list_places(const ts_weights *w, ts_lora_part part, places *ret, ts_error *e) {
    static const char end[] = ".weight";
    const size_t all = ts_weights_count(w), k = sizeof end - 1;
    ret->items = ts_array0(place, all);
    if (!ret->items) return ts_fail(e, TS_ENOMEM, "fusing a LoRA");
    for (size_t i = 0; i < all; i++) {
        const ts_param *p = ts_weights_at(w, i);
        size_t n = strlen(p->name);
        if (n <= k || strcmp(p->name + n - k, end) != 0 || p->rank < 2) continue;
        char *flat = ts_strndup(p->name, n - k);
        if (!flat) return ts_fail(e, TS_ENOMEM, "fusing a LoRA");
        flatten(flat);
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
    size_t n = strlen(layer);
    if (n + 2 > sizeof key) return NULL;
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
    return find_place(p, name);
}

/* ---- changes ---- */

typedef struct change {
    const ts_param *param;
    const ts_lora_module *module;
    double factor;
    size_t file;
} change;

static int by_param(const void *a, const void *b) {
    const change *x = a, *y = b;
    uintptr_t p = (uintptr_t)x->param, q = (uintptr_t)y->param;
    if (p != q) return p < q ? -1 : 1;
    return (x->file > y->file) - (x->file < y->file);
}

/* down's columns are the parameter's: of a 3x3 convolution [cin][3][3]. */
static bool fits(const ts_lora_module *m, const ts_param *p) {
    const ts_file_tensor *down = m->down;
    int64_t kernel[2] = {p->rank == 4 ? p->shape[2] : 1, p->rank == 4 ? p->shape[3] : 1};
    return (p->rank == 2 || p->rank == 4) && m->up->shape[0] == p->shape[0] &&
           down->shape[1] == p->shape[1] && (down->rank == 4 ? down->shape[2] : 1) == kernel[0] &&
           (down->rank == 4 ? down->shape[3] : 1) == kernel[1];
}

static ts_code list_changes(const ts_lora_scaled *loras, size_t n, ts_lora_part part, int layers,
                            const places *p, change *ret, size_t *ret_count, ts_error *e) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < ts_lora_count(loras[i].lora); k++) {
            const ts_lora_module *m = ts_lora_at(loras[i].lora, k);
            if (m->part != part) continue;
            const ts_param *param = find_place(p, without_text_model(part, m->layer));
            if (!param && part == TS_LORA_UNET) param = find_ldm(p, m->layer, layers);
            if (!param)
                return ts_fail(e, TS_EFORMAT, "%s: %.200s: the model has no such layer",
                               ts_lora_path(loras[i].lora), m->key);
            if (!fits(m, param))
                return ts_fail(e, TS_EFORMAT, "%s: %.200s: its shape is not that of the model's %.100s",
                               ts_lora_path(loras[i].lora), m->key, param->name);
            ret[count++] =
                (change){.param = param, .module = m, .factor = loras[i].scale * m->factor, .file = i};
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

typedef struct term {
    double factor;
    ts_file_tensor up, down; /* [cout][rank], [rank][n] */
} term;

/* What a changed parameter is made of. The terms' elements lie behind them, as they are in the files, which
 * may go. */
typedef struct fused {
    const ts_param *base;
    size_t count;
    term terms[];
} fused;

static ts_file_tensor copy_tensor(const ts_file_tensor *t, char **at) {
    ts_file_tensor copy = *t;
    copy.name = NULL;
    copy.data = memcpy(*at, t->data, t->bytes);
    *at += t->bytes;
    return copy;
}

static float *widen(const ts_file_tensor *t, double factor) {
    size_t n = ts_file_tensor_elements(t);
    float *ret = ts_array0(float, n);
    if (!ret) return NULL;
    ts_file_tensor_to_f32(t, ret);
    for (size_t i = 0; factor != 1 && i < n; i++) ret[i] = (float)((double)ret[i] * factor);
    return ret;
}

/* y[rows][n] += factor * up * down. */
static ts_code add_term(const term *t, size_t rows, size_t n, float *y, ts_error *e) {
    float *up = widen(&t->up, t->factor), *down = widen(&t->down, 1);
    ts_code rc = up && down ? ts_gemm_add(y, rows, n, up, (size_t)t->down.shape[0], down) : TS_ENOMEM;
    free(up);
    free(down);
    return rc ? ts_fail(e, rc, "fusing a LoRA") : TS_OK;
}

static ts_code make_fused(const void *source, float *ret, ts_error *e) {
    const fused *f = source;
    const size_t all = ts_param_count(f->base), rows = (size_t)f->base->shape[0];
    ts_code rc = ts_param_load(f->base, TS_F32, ret, e);
    for (size_t i = 0; i < f->count && !rc; i++) rc = add_term(&f->terms[i], rows, all / rows, ret, e);
    return rc;
}

/* All changes of one parameter. */
static ts_code fuse_param(const change *c, size_t count, ts_weights *over, ts_error *e) {
    size_t bytes = sizeof(fused) + count * sizeof(term);
    for (size_t i = 0; i < count; i++)
        bytes += c[i].module->up->bytes + c[i].module->down->bytes; /* less than the files */
    fused *f = malloc(bytes);
    if (!f) return ts_fail(e, TS_ENOMEM, "fusing a LoRA");
    f->base = c->param;
    f->count = count;
    char *at = (char *)(f->terms + count);
    for (size_t i = 0; i < count; i++) {
        f->terms[i].factor = c[i].factor;
        f->terms[i].up = copy_tensor(c[i].module->up, &at);
        f->terms[i].down = copy_tensor(c[i].module->down, &at);
    }
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
