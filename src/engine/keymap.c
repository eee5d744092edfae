#include "engine/keymap.h"

#include <stdio.h>
#include <string.h>

typedef struct pair {
    const char *from, *to;
} pair;

/* What is behind `prefix`, or NULL. */
static const char *after(const char *key, const char *prefix) {
    size_t n = strlen(prefix);
    return strncmp(key, prefix, n) == 0 ? key + n : NULL;
}

static bool put(char ret[TS_KEY_BYTES], const char *stem, const char *to, const char *rest) {
    size_t a = strlen(stem), b = strlen(to), c = strlen(rest);
    if (a + b + c >= TS_KEY_BYTES) return false;
    memcpy(ret, stem, a);
    memcpy(ret + a, to, b);
    memcpy(ret + a + b, rest, c + 1);
    return true;
}

/* stem, the pair's `to`, and what is behind its `from`. */
static bool swap(const pair *pairs, const char *key, const char *stem, char ret[TS_KEY_BYTES]) {
    for (; pairs->from; pairs++) {
        const char *rest = after(key, pairs->from);
        if (rest) return put(ret, stem, pairs->to, rest);
    }
    return false;
}

/* "12." at *key: steps over it. */
static bool number(const char **key, int *ret) {
    const char *s = *key;
    int n = 0;
    while (*s >= '0' && *s <= '9' && s - *key < 4) n = 10 * n + *s++ - '0';
    if (s == *key || *s != '.') return false;
    *key = s + 1;
    *ret = n;
    return true;
}

/* ---- the U-Net ---- */

static const pair unet_top[] = {{"time_embed.0.", "time_embedding.linear_1."},
                                {"time_embed.2.", "time_embedding.linear_2."},
                                {"time_embedding.cond_proj.", "time_embedding.cond_proj."},
                                {"label_emb.0.0.", "add_embedding.linear_1."},
                                {"label_emb.0.2.", "add_embedding.linear_2."},
                                {"input_blocks.0.0.", "conv_in."},
                                {"out.0.", "conv_norm_out."},
                                {"out.2.", "conv_out."},
                                {0}};
static const pair unet_resnet[] = {{"in_layers.0.", "norm1."},
                                   {"in_layers.2.", "conv1."},
                                   {"emb_layers.1.", "time_emb_proj."},
                                   {"out_layers.0.", "norm2."},
                                   {"out_layers.3.", "conv2."},
                                   {"skip_connection.", "conv_shortcut."},
                                   {0}};

/* Submodule 0 of a block is the residual one, what follows is attention or, with these names, resampling. */
static bool unet_block(const char *side, int block, int item, int sub, const char *key,
                       char ret[TS_KEY_BYTES]) {
    static const pair resample[] = {{"op.", "downsamplers.0.conv."}, {"conv.", "upsamplers.0.conv."}, {0}};
    char stem[64];
    snprintf(stem, sizeof stem, "%s.%d.", side, block);
    if (swap(resample, key, stem, ret)) return true;
    snprintf(stem, sizeof stem, "%s.%d.%s.%d.", side, block, sub ? "attentions" : "resnets", item);
    return sub == 0 ? swap(unet_resnet, key, stem, ret) : sub == 1 && put(ret, stem, "", key);
}

bool ts_keymap_unet(const char *key, int layers, char ret[TS_KEY_BYTES]) {
    if (layers < 1) return false;
    if (swap(unet_top, key, "", ret)) return true;
    const char *rest;
    int n, sub;
    if ((rest = after(key, "input_blocks.")))
        return number(&rest, &n) && number(&rest, &sub) && n > 0 &&
               unet_block("down_blocks", (n - 1) / (layers + 1), (n - 1) % (layers + 1), sub, rest, ret);
    if ((rest = after(key, "output_blocks.")))
        return number(&rest, &n) && number(&rest, &sub) &&
               unet_block("up_blocks", n / (layers + 1), n % (layers + 1), sub, rest, ret);
    if ((rest = after(key, "middle_block.1."))) return put(ret, "mid_block.attentions.0.", "", rest);
    if ((rest = after(key, "middle_block.0."))) return swap(unet_resnet, rest, "mid_block.resnets.0.", ret);
    if ((rest = after(key, "middle_block.2."))) return swap(unet_resnet, rest, "mid_block.resnets.1.", ret);
    return false;
}

/* ---- the autoencoder ---- */

static const pair vae_resnet[] = {{"nin_shortcut.", "conv_shortcut."},
                                  {"norm1.", "norm1."},
                                  {"norm2.", "norm2."},
                                  {"conv1.", "conv1."},
                                  {"conv2.", "conv2."},
                                  {0}};
static const pair vae_attention[] = {
    {"norm.", "group_norm."},
    {"q.", "to_q."},
    {"k.", "to_k."},
    {"v.", "to_v."},
    {"proj_out.", "to_out.0."},
    /* Files that were converted from diffusers' newer names by scripts for the older ones. */
    {"to_q.", "to_q."},
    {"to_k.", "to_k."},
    {"to_v.", "to_v."},
    {"to_out.0.", "to_out.0."},
    {0}};
static const pair vae_half[] = {
    {"conv_in.", "conv_in."}, {"conv_out.", "conv_out."}, {"norm_out.", "conv_norm_out."}, {0}};
static const pair vae_top[] = {{"quant_conv.", "quant_conv."}, {"post_quant_conv.", "post_quant_conv."}, {0}};

/* Levels are counted from the finest one there; diffusers counts the decoder's from the coarsest. */
static bool vae_level(const char *half, const char *key, bool down, int levels, char ret[TS_KEY_BYTES]) {
    static const pair resample[] = {
        {"downsample.conv.", "downsamplers.0.conv."}, {"upsample.conv.", "upsamplers.0.conv."}, {0}};
    int level, block;
    char stem[64];
    if (!number(&key, &level) || level >= levels) return false;
    if (!down) level = levels - 1 - level;
    snprintf(stem, sizeof stem, "%s%s.%d.", half, down ? "down_blocks" : "up_blocks", level);
    if (swap(resample, key, stem, ret)) return true;
    const char *rest = after(key, "block.");
    if (!rest || !number(&rest, &block)) return false;
    snprintf(stem, sizeof stem, "%s%s.%d.resnets.%d.", half, down ? "down_blocks" : "up_blocks", level,
             block);
    return swap(vae_resnet, rest, stem, ret);
}

bool ts_keymap_vae(const char *key, int levels, char ret[TS_KEY_BYTES]) {
    static const char *const halves[] = {"decoder.", "encoder."};
    if (swap(vae_top, key, "", ret)) return true;
    for (int i = 0; i < 2; i++) {
        const char *rest = after(key, halves[i]), *inner;
        char stem[64];
        if (!rest) continue;
        if (swap(vae_half, rest, halves[i], ret)) return true;
        if ((inner = after(rest, "up."))) return vae_level(halves[i], inner, false, levels, ret);
        if ((inner = after(rest, "down."))) return vae_level(halves[i], inner, true, levels, ret);
        snprintf(stem, sizeof stem, "%smid_block.", halves[i]);
        char full[96];
        static const pair mids[] = {{"mid.block_1.", "resnets.0."}, {"mid.block_2.", "resnets.1."}};
        for (int k = 0; k < 2; k++)
            if ((inner = after(rest, mids[k].from))) {
                snprintf(full, sizeof full, "%s%s", stem, mids[k].to);
                return swap(vae_resnet, inner, full, ret);
            }
        if ((inner = after(rest, "mid.attn_1."))) {
            snprintf(full, sizeof full, "%sattentions.0.", stem);
            return swap(vae_attention, inner, full, ret);
        }
    }
    return false;
}

/* ---- OpenCLIP's text tower ---- */

bool ts_keymap_openclip(const char *key, char ret[TS_KEY_BYTES]) {
    static const pair top[] = {{"positional_embedding", "text_model.embeddings.position_embedding.weight"},
                               {"token_embedding.", "text_model.embeddings.token_embedding."},
                               {"ln_final.", "text_model.final_layer_norm."},
                               {"text_projection.", "text_projection."},
                               {"text_projection", "text_projection.weight"},
                               {0}};
    static const pair layer[] = {{"ln_1.", "layer_norm1."},
                                 {"ln_2.", "layer_norm2."},
                                 {"mlp.c_fc.", "mlp.fc1."},
                                 {"mlp.c_proj.", "mlp.fc2."},
                                 {"attn.out_proj.", "self_attn.out_proj."},
                                 {"attn.in_proj_", "self_attn.?_proj."},
                                 {0}};
    if (swap(top, key, "", ret)) return true;
    const char *rest = after(key, "transformer.resblocks.");
    int n;
    char stem[64];
    if (!rest || !number(&rest, &n)) return false;
    snprintf(stem, sizeof stem, "text_model.encoder.layers.%d.", n);
    return swap(layer, rest, stem, ret);
}
