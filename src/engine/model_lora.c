/* LoRA files and models: fused for good, or as a variant that shares all that is unchanged. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "engine/lora.h"
#include "engine/model.h"

static ts_weights **weights_of(ts_model *m, ts_lora_part part) {
    return part == TS_LORA_UNET ? &m->unet_weights : &m->text[part - TS_LORA_TEXT].weights;
}

static bool has_part(const ts_model *m, ts_lora_part part) {
    return part == TS_LORA_UNET || (int)(part - TS_LORA_TEXT) < m->text_count;
}

static ts_code layer_part(ts_model *m, const ts_lora_scaled *loras, size_t n, ts_lora_part part,
                          ts_weights **ret, ts_error *e) {
    const ts_lora_module *first = NULL;
    const char *path = "";
    for (size_t i = 0; i < n && !first; i++) {
        path = ts_lora_path(loras[i].lora);
        for (size_t k = 0; k < ts_lora_count(loras[i].lora) && !first; k++)
            if (ts_lora_at(loras[i].lora, k)->part == part) first = ts_lora_at(loras[i].lora, k);
    }
    if (!first) return TS_OK;
    if (!has_part(m, part))
        return ts_fail(e, TS_EFORMAT, "%s: %.200s: the model has no such text encoder", path, first->key);
    ts_weights *base = *weights_of(m, part), *over = NULL;
    ts_code rc = ts_weights_over(base, &over, e);
    if (!rc) rc = ts_lora_fuse(loras, n, part, m->unet.layers[0], base, over, e);
    if (!rc) rc = ts_weights_seal(over, e);
    if (rc)
        ts_weights_free(over);
    else
        *ret = over;
    return rc;
}

/* ret[part]: the layer over m's weights, NULL where nothing changes. */
static ts_code layer_all(ts_model *m, const ts_lora_use *uses, size_t n, ts_weights *ret[TS_LORA_PARTS],
                         ts_error *e) {
    ts_lora_scaled *scaled = ts_array0(ts_lora_scaled, n);
    ts_lora **loras = ts_array0(ts_lora *, n);
    ts_code rc = scaled && loras ? TS_OK : ts_fail(e, TS_ENOMEM, "fusing a LoRA");
    for (size_t i = 0; i < n && !rc; i++) {
        rc = ts_lora_open(uses[i].path, &loras[i], e);
        scaled[i] = (ts_lora_scaled){loras[i], uses[i].scale};
    }
    for (int part = 0; part < TS_LORA_PARTS && !rc; part++)
        rc = layer_part(m, scaled, n, (ts_lora_part)part, &ret[part], e);
    for (size_t i = 0; i < n && !rc; i++) rc = ts_lora_check(loras[i], e);
    if (!rc) rc = ts_model_check(m, e);
    ts_model_rest(m);
    for (size_t i = 0; loras && i < n; i++) ts_lora_free(loras[i]);
    free(loras);
    free(scaled);
    for (int part = 0; part < TS_LORA_PARTS && rc; part++) ts_weights_free(ret[part]);
    return rc;
}

static ts_code parse(const char *text, ts_lora_use *ret, ts_error *e) {
    const char *colon = strrchr(text, ':');
    char *end = NULL;
    double scale = 1;
    size_t n = strlen(text);
    /* What stands behind the last colon is a part of the name where it is no number. */
    if (colon && colon[1] && colon[1] != ' ') scale = strtod(colon + 1, &end);
    if (end && !*end)
        n = (size_t)(colon - text);
    else
        scale = 1;
    if (!n || !(fabs(scale) <= TS_LORA_MAX_SCALE))
        return ts_fail(e, TS_EINVAL, "%.200s: FILE or FILE:SCALE is wanted, the scale at most %g", text,
                       TS_LORA_MAX_SCALE);
    char *path = ts_strndup(text, n);
    if (!path) return ts_fail(e, TS_ENOMEM, "a LoRA");
    *ret = (ts_lora_use){path, scale};
    return TS_OK;
}

ts_code ts_lora_uses_parse(const char *const *texts, size_t n, ts_lora_use ret[TS_MAX_LORAS], ts_error *e) {
    memset(ret, 0, TS_MAX_LORAS * sizeof *ret);
    if (n > TS_MAX_LORAS) return ts_fail(e, TS_EINVAL, "%d LoRAs at most, not %zu", TS_MAX_LORAS, n);
    ts_code rc = TS_OK;
    for (size_t i = 0; i < n && !rc; i++) rc = parse(texts[i], &ret[i], e);
    return rc;
}

void ts_lora_uses_free(ts_lora_use uses[TS_MAX_LORAS]) {
    for (int i = 0; i < TS_MAX_LORAS; i++) free((char *)(uintptr_t)uses[i].path);
}

/* The last part of the path's first n bytes; *ret_n: its length. */
static const char *last_part(const char *path, size_t n, size_t *ret_n) {
    while (n > 1 && path[n - 1] == '/') n--;
    size_t at = n;
    while (at && path[at - 1] != '/') at--;
    *ret_n = n - at;
    return path + at;
}

/* The file's name without its extension; where all such files are called so, its folder's. */
static void name_of(const char *path, char ret[TS_LORA_NAME_BYTES]) {
    size_t n;
    const char *name = last_part(path, strlen(path), &n);
    if (!name[n]) ts_path_extension(name, ts_tensors_extensions, &n);
    for (const char *const *stem = ts_lora_stems; *stem; stem++)
        if (n == strlen(*stem) && !memcmp(name, *stem, n) && name[n] == '.' && name > path) {
            name = last_part(path, (size_t)(name - path), &n);
            break;
        }
    snprintf(ret, TS_LORA_NAME_BYTES, "%.*s", (int)(n < TS_LORA_NAME_BYTES ? n : TS_LORA_NAME_BYTES - 1),
             name);
}

ts_code ts_model_fuse(ts_model *m, const ts_lora_use *loras, size_t n, ts_error *e) {
    ts_weights *over[TS_LORA_PARTS] = {NULL};
    if (!n) return TS_OK;
    ts_assert(!m->info.lora_count && n <= TS_MAX_LORAS);
    ts_code rc = layer_all(m, loras, n, over, e);
    for (int part = 0; part < TS_LORA_PARTS && !rc; part++) {
        if (!over[part]) continue;
        ts_weights_adopt_base(over[part]);
        *weights_of(m, (ts_lora_part)part) = over[part];
    }
    if (rc) return rc;
    for (size_t i = 0; i < n; i++) {
        name_of(loras[i].path, m->fused[i].name);
        m->fused[i].scale = loras[i].scale;
    }
    m->info.loras = m->fused;
    m->info.lora_count = (int)n;
    return TS_OK;
}

ts_code ts_model_vary(ts_model *m, const ts_lora_use *loras, size_t n, ts_model **ret, ts_error *e) {
    ts_assert(!m->base);
    ts_weights *over[TS_LORA_PARTS] = {NULL};
    ts_model *v = ts_new0(ts_model);
    ts_code rc = v ? layer_all(m, loras, n, over, e) : ts_fail(e, TS_ENOMEM, "fusing a LoRA");
    if (rc) {
        free(v);
        return rc;
    }
    *v = *m;
    v->base = m;
    for (int part = 0; part < TS_LORA_PARTS; part++)
        if (over[part]) *weights_of(v, (ts_lora_part)part) = over[part];
    *ret = v;
    return TS_OK;
}

const ts_model *ts_model_owner(const ts_model *m, const ts_weights *weights) {
    const ts_model *b = m->base;
    bool shared = b && (weights == b->unet_weights || weights == b->vae_weights);
    for (int i = 0; b && i < b->text_count; i++) shared |= weights == b->text[i].weights;
    return shared ? b : m;
}

static bool is_own(void *variant, const void *param) {
    ts_model *v = variant;
    for (int part = 0; part < TS_LORA_PARTS; part++) {
        if (!has_part(v, (ts_lora_part)part)) continue;
        ts_weights *w = *weights_of(v, (ts_lora_part)part);
        if (ts_model_owner(v, w) == v && ts_weights_owns(w, param)) return true;
    }
    return false;
}

size_t ts_model_variant_bytes(const ts_model *variant) {
    ts_model *v = (ts_model *)(uintptr_t)variant;
    size_t bytes = ts_store_bytes(v->store_cpu, is_own, v) + ts_store_bytes(v->store_ref, is_own, v);
    for (int part = 0; part < TS_LORA_PARTS; part++) {
        if (!has_part(v, (ts_lora_part)part)) continue;
        ts_weights *w = *weights_of(v, (ts_lora_part)part);
        if (ts_model_owner(v, w) == v) bytes += ts_weights_source_bytes(w);
    }
    return bytes;
}

void model_free_variant(ts_model *v) {
    ts_store_drop(v->store_cpu, is_own, v);
    ts_store_drop(v->store_ref, is_own, v);
    for (int part = 0; part < TS_LORA_PARTS; part++) {
        if (!has_part(v, (ts_lora_part)part)) continue;
        ts_weights *w = *weights_of(v, (ts_lora_part)part);
        if (ts_model_owner(v, w) == v) ts_weights_free(w);
    }
    free(v);
}
