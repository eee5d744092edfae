/* What a tensor's key in a LoRA file says. */
#include "engine/lora_key.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"

/* Before the layer's name. The U-Net's own names come without anything in the oldest files. */
static const struct {
    const char *text;
    ts_lora_part part;
    bool of_layer; /* is a part of the layer's name */
} prefixes[] = {
    {"lora_unet_", TS_LORA_UNET, false},
    {"lora_te_", TS_LORA_TEXT, false},
    {"lora_te1_", TS_LORA_TEXT, false},
    {"lora_te2_", TS_LORA_TEXT_2, false},
    {"lycoris_", TS_LORA_UNET, false}, /* LyCORIS' own wrapper */
    {"unet.", TS_LORA_UNET, false},
    {"diffusion_model.", TS_LORA_UNET, false},                  /* ComfyUI's */
    {"text_encoders.clip_l.transformer.", TS_LORA_TEXT, false}, /* what it extracts */
    {"text_encoders.clip_h.transformer.", TS_LORA_TEXT, false},
    {"text_encoders.clip_g.transformer.", TS_LORA_TEXT_2, false},
    {"text_encoder.", TS_LORA_TEXT, false},
    {"text_encoder_2.", TS_LORA_TEXT_2, false},
    {"down_blocks.", TS_LORA_UNET, true},
    {"mid_block.", TS_LORA_UNET, true},
    {"up_blocks.", TS_LORA_UNET, true},
};

/* Before the layer's name in an adapter of PEFT's own, which says nowhere what it is for. */
static const char adapter[] = "base_model.model.";
static const char *const adapter_text[] = {"text_model.", "encoder.layers."};

static const struct {
    const char *text;
    ts_lora_role role;
    ts_lora_kind kind;
    int matrix;
    bool of_bias;
} endings[] = {
    {".lora_down.weight", TS_LORA_B},
    {".lora_up.weight", TS_LORA_A},
    {".lora_mid.weight", TS_LORA_CORE},
    {".lora_A.weight", TS_LORA_B},
    {".lora_B.weight", TS_LORA_A},
    {".lora_A.default.weight", TS_LORA_B}, /* a model's own state, with the name of PEFT's adapter */
    {".lora_B.default.weight", TS_LORA_A},
    {".lora_linear_layer.down.weight", TS_LORA_B},
    {".lora_linear_layer.up.weight", TS_LORA_A},
    {".lora.down.weight", TS_LORA_B},
    {".lora.up.weight", TS_LORA_A},
    {"_lora.down.weight", TS_LORA_B},
    {"_lora.up.weight", TS_LORA_A},
    {".hada_w1_a", TS_LORA_A, TS_LORA_HADAMARD, 0},
    {".hada_w1_b", TS_LORA_B, TS_LORA_HADAMARD, 0},
    {".hada_t1", TS_LORA_CORE, TS_LORA_HADAMARD, 0},
    {".hada_w2_a", TS_LORA_A, TS_LORA_HADAMARD, 1},
    {".hada_w2_b", TS_LORA_B, TS_LORA_HADAMARD, 1},
    {".hada_t2", TS_LORA_CORE, TS_LORA_HADAMARD, 1},
    {".lokr_w1", TS_LORA_WHOLE, TS_LORA_KRONECKER, 0},
    {".lokr_w1_a", TS_LORA_A, TS_LORA_KRONECKER, 0},
    {".lokr_w1_b", TS_LORA_B, TS_LORA_KRONECKER, 0},
    {".lokr_w2", TS_LORA_WHOLE, TS_LORA_KRONECKER, 1},
    {".lokr_w2_a", TS_LORA_A, TS_LORA_KRONECKER, 1},
    {".lokr_w2_b", TS_LORA_B, TS_LORA_KRONECKER, 1},
    {".lokr_t2", TS_LORA_CORE, TS_LORA_KRONECKER, 1},
    {".diff", TS_LORA_WHOLE, TS_LORA_DIFFERENCE},
    {".w_norm", TS_LORA_WHOLE, TS_LORA_DIFFERENCE},
    {".diff_b", TS_LORA_WHOLE, TS_LORA_DIFFERENCE, 0, true},
    {".b_norm", TS_LORA_WHOLE, TS_LORA_DIFFERENCE, 0, true},
    {".lora_magnitude_vector", TS_LORA_MAGNITUDE},
    {".lora_magnitude_vector.weight", TS_LORA_MAGNITUDE},
    {".lora_magnitude_vector.default.weight", TS_LORA_MAGNITUDE},
    {".dora_scale", TS_LORA_SCALE},
    {".alpha", TS_LORA_ALPHA},
};

/* Parts of keys that tell another kind of change, which looks like ours otherwise. */
static const struct {
    const char *text, *kind;
} refused[] = {
    {"oft_", "OFT"},
    {".lora_B.bias", "a LoRA with a bias"},
    {".lora_up.bias", "a LoRA with a bias"},
    {".on_input", "IA3"},
    {".a1.weight", "GLoRA"},
    {".b1.weight", "GLoRA"},
    {".set_weight", "a layer in whole"},
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

static bool begins_with(const char *text, const char *with) {
    return !strncmp(text, with, strlen(with));
}

/* What is behind all that stands before the layer's name; NULL: it begins with nothing that is known. */
static const char *find_part(const char *key, ts_lora_key *ret) {
    ret->adapter = begins_with(key, adapter);
    if (ret->adapter) {
        key += sizeof adapter - 1;
        ret->part = TS_LORA_UNET;
        for (size_t i = 0; i < sizeof adapter_text / sizeof *adapter_text; i++)
            if (begins_with(key, adapter_text[i])) ret->part = TS_LORA_TEXT;
        return key;
    }
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        if (!begins_with(key, prefixes[i].text)) continue;
        ret->part = prefixes[i].part;
        return prefixes[i].of_layer ? key : key + strlen(prefixes[i].text);
    }
    return NULL;
}

ts_code ts_lora_key_read(const char *key, ts_lora_key *ret, ts_error *e) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (strstr(key, refused[i].text))
            return ts_fail(e, TS_EUNSUPPORTED, "%.200s: %s is not offered", key, refused[i].kind);
    size_t i = 0, n = strlen(key);
    const char *layer = find_part(key, ret);
    const size_t count = sizeof endings / sizeof *endings;
    while (i < count && !ends_with(key, n, endings[i].text)) i++;
    if (!layer || i == count) return ts_fail(e, TS_EFORMAT, "%.200s is no key of a LoRA", key);
    const char *end = key + n - strlen(endings[i].text);
    if (layer >= end) return ts_fail(e, TS_EFORMAT, "%.200s names no layer", key);
    ret->role = endings[i].role;
    ret->kind = endings[i].kind;
    ret->matrix = endings[i].matrix;
    ret->name = layer;
    ret->name_bytes = (size_t)(end - layer);
    ret->layer = layer_of(layer, ret->name_bytes, ret->part);
    if (ret->layer && endings[i].of_bias) {
        char *flat = ret->layer;
        ret->layer = ts_format("%s.bias", flat);
        free(flat);
    }
    return ret->layer ? TS_OK : ts_fail(e, TS_ENOMEM, "reading a LoRA");
}
