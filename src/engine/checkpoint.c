#include "engine/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/checkpoint_internal.h"
#include "engine/data.h"
#include "engine/keymap.h"

#define BESIDE_BYTES ((size_t)1 << 20)
static const ts_json_limits beside_limits = {.depth = 8, .values = 20000};

/* ---- which model it is ---- */

static const struct {
    const char *sign; /* a key that only this kind has */
    const char *prefix[2];
    bool openclip[2];
} kinds[] = {
    [CHECKPOINT_SD1] = {"cond_stage_model.transformer.", {"cond_stage_model.transformer."}, {false}},
    [CHECKPOINT_SD2] = {"cond_stage_model.model.", {"cond_stage_model.model."}, {true}},
    [CHECKPOINT_XL] = {"conditioner.embedders.1.model.",
                       {"conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."},
                       {false, true}},
};

/* Of XL's refiner too, whose U-Net takes more than a text. */
#define SGM_TEXT "conditioner.embedders.0.model."

const char *checkpoint_text_prefix(const ts_checkpoint *c, int encoder) {
    return c->sgm ? SGM_TEXT : kinds[c->kind].prefix[encoder];
}
bool checkpoint_text_is_openclip(checkpoint_kind kind, int encoder) {
    return kinds[kind].openclip[encoder];
}

static bool any_key(const ts_tensors *s, const char *prefix) {
    /* In order of name: the first one that is not before the prefix has it, if any has. */
    size_t low = 0, high = ts_tensors_count(s);
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(ts_tensors_at(s, mid)->name, prefix) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low < ts_tensors_count(s) && strncmp(ts_tensors_at(s, low)->name, prefix, strlen(prefix)) == 0;
}

/* What is not read looks as if it were not there. */
static const ts_file_other *unread_below(const ts_checkpoint *c, const char *prefix) {
    const ts_file_other *other;
    for (size_t i = 0; (other = ts_tensors_other(c->file, i)); i++)
        if (strncmp(other->name, prefix, strlen(prefix)) == 0) break;
    return other;
}

/* Nothing below the prefix can be read: why. */
static ts_code lacks(const ts_checkpoint *c, const char *prefix, const char *what, ts_error *e) {
    const ts_file_other *other = unread_below(c, prefix);
    if (other) return ts_error_context(e, ts_tensors_unread(e, other->name, other->type), "%s", c->path);
    return ts_fail(e, TS_EFORMAT, "%s: there is no %s (%s*)", c->path, what, prefix);
}

/* What is none of ours, though its names are. */
static ts_code check_foreign(const ts_checkpoint *c, ts_error *e) {
    static const char *const alone[] = {"input_blocks.", "down_blocks."};
    for (int i = 0; i < 2; i++)
        if (any_key(c->file, alone[i]))
            return ts_fail(e, TS_EUNSUPPORTED, "%s is a U-Net alone, without the other parts of a model",
                           c->path);
    ts_code rc = ts_tensors_check_scales(c->file, e);
    return rc ? ts_error_context(e, rc, "%s", c->path) : TS_OK;
}

static ts_code recognise(ts_checkpoint *c, ts_error *e) {
    ts_code rc = check_foreign(c, e);
    if (rc) return rc;
    if (!any_key(c->file, CHECKPOINT_UNET) || unread_below(c, CHECKPOINT_UNET))
        return lacks(c, CHECKPOINT_UNET, "U-Net", e);
    c->vae = any_key(c->file, CHECKPOINT_VAE "decoder.conv_in.");
    for (int k = CHECKPOINT_XL; k >= CHECKPOINT_SD1; k--)
        if (any_key(c->file, kinds[k].sign)) {
            c->kind = (checkpoint_kind)k;
            return TS_OK;
        }
    if (any_key(c->file, SGM_TEXT)) {
        if (any_key(c->file, CHECKPOINT_UNET "label_emb."))
            return ts_fail(e, TS_EUNSUPPORTED, "%s is an XL refiner, which is not offered", c->path);
        c->kind = CHECKPOINT_SD2;
        c->sgm = true;
        return TS_OK;
    }
    for (int k = CHECKPOINT_XL; k >= CHECKPOINT_SD1; k--)
        if (unread_below(c, kinds[k].sign)) return lacks(c, kinds[k].sign, "text encoder", e);
    return ts_fail(e, TS_EFORMAT, "%s: there is no text encoder (%s*, %s* or %s*)", c->path, kinds[0].sign,
                   kinds[1].sign, kinds[2].sign);
}

/* ---- opening ---- */

/* The words of NAME.json. */
static const char *const words[] = {"unet",      "vae",       "text_encoder", "text_encoder_2",
                                    "scheduler", "tokenizer", "tokenizer_2"};
enum { WORDS = sizeof words / sizeof *words };

static bool is_word(const char *key) {
    for (int i = 0; i < WORDS; i++)
        if (strcmp(key, words[i]) == 0) return true;
    return false;
}

/* Whether the file beside it is ours: it says one of our words, or nothing but objects. Others keep notes on
 * a checkpoint under the same name: AUTOMATIC1111 texts and numbers, the name of an autoencoder among them;
 * SD.Next what Civitai's server says. */
static bool is_ours(const cJSON *beside) {
    const cJSON *v;
    bool objects = true;
    if (!cJSON_IsObject(beside)) return true;
    cJSON_ArrayForEach(v, beside) {
        const bool note = !strcmp(v->string, "vae") && cJSON_IsString(v);
        if (is_word(v->string) && !note) return true;
        objects = objects && cJSON_IsObject(v);
    }
    return objects;
}

/* Whether what could not be read says one of our words; if not it is somebody else's notes, which may be
 * larger or stranger than ours are. */
static bool may_be_ours(const char *path) {
    char *text = malloc(BESIDE_BYTES), quoted[32];
    FILE *f = text ? fopen(path, "rb") : NULL;
    const size_t n = f ? fread(text, 1, BESIDE_BYTES, f) : 0;
    bool found = !f || ferror(f);
    for (int i = 0; i < WORDS && !found; i++) {
        snprintf(quoted, sizeof quoted, "\"%s\"", words[i]);
        found = memmem(text, n, quoted, strlen(quoted)) != NULL;
    }
    if (f) fclose(f);
    free(text);
    return found;
}

/* In ours a word that is none of its own is a mistake. */
static ts_code check_beside(const cJSON *beside, const char *path, ts_error *e) {
    if (!cJSON_IsObject(beside)) return ts_fail(e, TS_EFORMAT, "%s is not an object", path);
    const cJSON *v;
    cJSON_ArrayForEach(v, beside) {
        if (!is_word(v->string))
            return ts_fail(
                e, TS_EFORMAT,
                "%s: there is no %.64s: unet, vae, text_encoder, text_encoder_2, scheduler, tokenizer "
                "and tokenizer_2 can be said",
                path, v->string);
    }
    return TS_OK;
}

static ts_code read_beside(ts_checkpoint *c, ts_error *e) {
    size_t n;
    ts_path_extension(c->path, ts_tensors_extensions, &n);
    char *path = c->beside_path = ts_format("%.*s.json", (int)n, c->path);
    if (!path) return ts_fail(e, TS_ENOMEM, "opening %s", c->path);
    ts_code rc = TS_OK;
    if (ts_file_exists(path)) rc = ts_json_python_file(path, BESIDE_BYTES, beside_limits, &c->beside, e);
    if ((rc == TS_EINVAL || rc == TS_EFORMAT || rc == TS_ETOOLARGE) && !may_be_ours(path)) {
        if (e) *e = (ts_error){0};
        return TS_OK;
    }
    if (!rc && c->beside && is_ours(c->beside)) return check_beside(c->beside, path, e);
    cJSON_Delete(c->beside);
    c->beside = NULL;
    return rc;
}

const char *ts_checkpoint_config_path(const ts_checkpoint *c, const char *component) {
    return cJSON_GetObjectItemCaseSensitive(c->beside, component) ? c->beside_path : c->path;
}

ts_code ts_checkpoint_open(const char *path, ts_checkpoint **ret, ts_error *e) {
    ts_checkpoint *c = ts_new0(ts_checkpoint);
    if (!c) return ts_fail(e, TS_ENOMEM, "opening %s", path);
    const char *slash = strrchr(path, '/');
    c->path = ts_strdup(path);
    c->folder = slash ? ts_strndup(path, slash == path ? 1 : (size_t)(slash - path)) : ts_strdup(".");
    ts_code rc = c->path && c->folder ? TS_OK : ts_fail(e, TS_ENOMEM, "opening %s", path);
    if (!rc) rc = ts_tensors_open(path, &c->file, e);
    if (!rc) rc = recognise(c, e);
    if (!rc) rc = read_beside(c, e);
    if (!rc) rc = checkpoint_configure(c, e);
    if (rc) {
        ts_checkpoint_free(c);
        return rc;
    }
    *ret = c;
    return TS_OK;
}

void ts_checkpoint_free(ts_checkpoint *c) {
    if (!c) return;
    cJSON_Delete(c->config);
    cJSON_Delete(c->beside);
    ts_tensors_free(c->file);
    free(c->beside_path);
    free(c->folder);
    free(c->path);
    free(c);
}

ts_code ts_checkpoint_check(const ts_checkpoint *c, ts_error *e) {
    return ts_tensors_check(c->file, e);
}

bool ts_checkpoint_is_xl(const ts_checkpoint *c) {
    return c->kind == CHECKPOINT_XL;
}

ts_code ts_checkpoint_check_vae(const ts_checkpoint *c, ts_error *e) {
    return c->vae ? TS_OK : lacks(c, CHECKPOINT_VAE, "autoencoder", e);
}

const cJSON *ts_checkpoint_config(const ts_checkpoint *c, const char *component) {
    return cJSON_GetObjectItemCaseSensitive(c->config, component);
}

/* ---- weights ---- */

/* The three projections lie one below the other: a third of the rows each. */
static ts_code add_thirds(ts_weights *w, char *name, const ts_file_tensor *t, ts_error *e) {
    char *which = strchr(name, '?');
    if (t->rank < 1 || t->shape[0] % 3)
        return ts_fail(e, TS_EFORMAT, "tensor %.200s is not three projections", t->name);
    ts_code rc = TS_OK;
    for (int i = 0; i < 3 && !rc; i++) {
        ts_file_tensor part = *t;
        part.shape[0] /= 3;
        part.bytes /= 3;
        part.data = (const char *)t->data + (size_t)i * part.bytes;
        *which = "qkv"[i];
        rc = ts_weights_add(w, name, &part, e);
    }
    return rc;
}

/* OpenCLIP multiplies by its projection from the right; ours, as transformers', from the left. */
static ts_code add_transposed(ts_weights *w, const char *name, const ts_file_tensor *t, ts_error *e) {
    if (t->rank != 2) return ts_fail(e, TS_EFORMAT, "tensor %.200s is not a matrix", t->name);
    const size_t rows = (size_t)t->shape[0], columns = (size_t)t->shape[1], size = ts_dtype_size(t->dtype);
    char *bytes = malloc(t->bytes ? t->bytes : 1);
    if (!bytes) return ts_fail(e, TS_ENOMEM, "turning %.200s round", t->name);
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < columns; k++)
            memcpy(bytes + (k * rows + i) * size, (const char *)t->data + (i * columns + k) * size, size);
    ts_code rc = ts_weights_keep(w, bytes, e);
    if (rc) return rc;
    ts_file_tensor turned = *t;
    turned.data = bytes;
    turned.shape[0] = t->shape[1];
    turned.shape[1] = t->shape[0];
    return ts_weights_add(w, name, &turned, e);
}

typedef enum component { UNET, VAE, TEXT, TEXT_2 } component;
static const char *const component_names[] = {"unet", "vae", "text_encoder", "text_encoder_2"};

/* The name that a component's tensor has here, with a '?' where q, k and v stand; false: it has none. */
static bool name_of(const ts_checkpoint *c, component which, const char *key, char ret[TS_KEY_BYTES]) {
    if (which == UNET) return ts_keymap_unet(key, c->unet_layers, ret);
    if (which == VAE) return ts_keymap_vae(key, c->vae_levels, ret);
    if (checkpoint_text_is_openclip(c->kind, (int)(which - TEXT))) return ts_keymap_openclip(key, ret);
    return snprintf(ret, TS_KEY_BYTES, "%s", key) < TS_KEY_BYTES;
}

/* A tensor without a name is none of ours (a loss, an average) or of a layer that nobody would run. */
static ts_code check_nameless(const char *path, component which, const char *key, ts_error *e) {
    static const char *const ours[][3] = {[UNET] = {""},
                                          [VAE] = {"encoder.", "decoder."},
                                          [TEXT] = {"transformer.resblocks."},
                                          [TEXT_2] = {"transformer.resblocks."}};
    for (int i = 0; i < 3 && ours[which][i]; i++)
        if (strncmp(key, ours[which][i], strlen(ours[which][i])) == 0)
            return ts_fail(e, TS_EFORMAT,
                           "%s: %s: the tensor %.200s is of no layer that a model of its kind has", path,
                           component_names[which], key);
    return TS_OK;
}

static ts_code add_tensor(const ts_checkpoint *c, component which, ts_weights *w, const char *key,
                          const ts_file_tensor *t, ts_error *e) {
    char name[TS_KEY_BYTES];
    if (!name_of(c, which, key, name)) return check_nameless(c->path, which, key, e);
    if (strchr(name, '?')) return add_thirds(w, name, t, e);
    const bool openclip = which >= TEXT && checkpoint_text_is_openclip(c->kind, (int)(which - TEXT));
    if (openclip && strcmp(key, "text_projection") == 0) return add_transposed(w, name, t, e);
    return ts_weights_add(w, name, t, e);
}

static ts_code add_unread(const ts_checkpoint *c, component which, ts_weights *w, const char *key,
                          const char *type, ts_error *e) {
    char name[TS_KEY_BYTES];
    if (!name_of(c, which, key, name)) return TS_OK;
    char *place = strchr(name, '?');
    if (!place) return ts_weights_add_unread(w, name, type, e);
    ts_code rc = TS_OK;
    for (int i = 0; i < 3 && !rc; i++) {
        *place = "qkv"[i];
        rc = ts_weights_add_unread(w, name, type, e);
    }
    return rc;
}

ts_code ts_checkpoint_weights(const ts_checkpoint *c, const char *name, ts_weights **ret, ts_error *e) {
    component which = UNET;
    while (which <= TEXT_2 && strcmp(component_names[which], name) != 0) which++;
    ts_assert(which < TEXT_2 || (which == TEXT_2 && c->kind == CHECKPOINT_XL));
    const char *prefix = which == UNET  ? CHECKPOINT_UNET
                         : which == VAE ? CHECKPOINT_VAE
                                        : checkpoint_text_prefix(c, (int)(which - TEXT));
    const size_t n = strlen(prefix);
    ts_weights *w = NULL;
    ts_code rc = ts_weights_new(c->path, &w, e);
    if (rc) return rc;
    ts_weights_lean_on(w, c->file);
    for (size_t i = 0; !rc && i < ts_tensors_count(c->file); i++) {
        const ts_file_tensor *t = ts_tensors_at(c->file, i);
        if (strncmp(t->name, prefix, n) == 0) rc = add_tensor(c, which, w, t->name + n, t, e);
    }
    const ts_file_other *other;
    for (size_t i = 0; !rc && (other = ts_tensors_other(c->file, i)); i++)
        if (strncmp(other->name, prefix, n) == 0)
            rc = add_unread(c, which, w, other->name + n, other->type, e);
    if (!rc) rc = ts_weights_seal(w, e);
    if (rc) {
        ts_weights_free(w);
        return rc;
    }
    *ret = w;
    return TS_OK;
}

/* A file of an autoencoder alone, in which of its layouts, and the names that it has here. */
typedef struct vae_file {
    bool diffusers;
    const char *prefix;
    int levels;
} vae_file;

static bool vae_name_of(const vae_file *f, const char *key, char ret[TS_KEY_BYTES]) {
    const size_t n = strlen(f->prefix);
    if (f->diffusers) return snprintf(ret, TS_KEY_BYTES, "%s", key) < TS_KEY_BYTES;
    return strncmp(key, f->prefix, n) == 0 && ts_keymap_vae(key + n, f->levels, ret);
}

static ts_code add_vae(ts_weights *w, const ts_tensors *file, const vae_file *f, ts_error *e) {
    const size_t n = strlen(f->prefix);
    const ts_file_other *other;
    char name[TS_KEY_BYTES];
    ts_code rc = TS_OK;
    for (size_t i = 0; !rc && i < ts_tensors_count(file); i++) {
        const ts_file_tensor *t = ts_tensors_at(file, i);
        if (vae_name_of(f, t->name, name))
            rc = ts_weights_add(w, name, t, e);
        else if (strncmp(t->name, f->prefix, n) == 0)
            rc = check_nameless(ts_weights_path(w), VAE, t->name + n, e);
    }
    for (size_t i = 0; !rc && (other = ts_tensors_other(file, i)); i++)
        if (vae_name_of(f, other->name, name)) rc = ts_weights_add_unread(w, name, other->type, e);
    return rc;
}

ts_code ts_checkpoint_open_vae(const char *path, int levels, ts_weights **ret, ts_error *e) {
    static const char first[] = "decoder.conv_in.weight";
    ts_weights *w = NULL;
    ts_tensors *file = NULL;
    ts_code rc = ts_weights_new(path, &w, e);
    if (!rc) rc = ts_tensors_open(path, &file, e);
    if (!rc) rc = ts_weights_hold(w, file, e);
    if (rc) goto fail;
    const vae_file f = {.diffusers = any_key(file, "decoder.up_blocks."),
                        .prefix = any_key(file, CHECKPOINT_VAE) ? CHECKPOINT_VAE : "",
                        .levels = levels};
    rc = add_vae(w, file, &f, e);
    if (!rc) rc = ts_weights_seal(w, e);
    if (rc) goto fail;
    if (!ts_weights_find(w, first)) {
        const char *type = ts_weights_unread(w, first);
        rc = type ? ts_error_context(e, ts_tensors_unread(e, first, type), "%s", path)
                  : ts_fail(e, TS_EFORMAT, "%s holds no autoencoder: there is no %s", path, first);
        goto fail;
    }
    *ret = w;
    return TS_OK;
fail:
    ts_weights_free(w);
    return rc;
}

/* ---- tokenizers ---- */

ts_code ts_checkpoint_tokenizer(const ts_checkpoint *c, int encoder, ts_tokenizer **ret, ts_error *e) {
    static const char *const keys[] = {"tokenizer", "tokenizer_2"};
    const char *folder;
    ts_code rc = ts_json_string(c->beside, keys[encoder], NULL, &folder, e);
    if (rc) return ts_error_context(e, rc, "%s", c->beside_path);
    /* OpenCLIP pads with its token 0. */
    const char *pad = folder ? NULL : checkpoint_text_is_openclip(c->kind, encoder) ? "!" : "<|endoftext|>";
    char *path = !folder          ? ts_data_path("clip")
                 : *folder == '/' ? ts_strdup(folder)
                                  : ts_path_join(c->folder, folder);
    if (!path) return ts_fail(e, TS_ENOMEM, "the tokenizer of %s", c->path);
    rc = ts_tokenizer_open_padded(path, pad, ret, e);
    free(path);
    return rc ? ts_error_context(e, rc, "%s", keys[encoder]) : TS_OK;
}
