/* Configurations from shapes, for files that come without any. Numbers that no shape tells are those of the
 * published models (runwayml/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1 and -xl-base-1.0). */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "engine/checkpoint_internal.h"
#include "engine/unet.h"
#include "engine/vae.h"

#define BLOCKS_MAXIMUM 1000
#define HEAD_CHANNELS                                                                                        \
    64 /* of each attention head, but in the U-Net of 1.x, which has eight heads everywhere */
#define SD1_HEADS           8
#define SD2_HIDDEN          1024 /* OpenCLIP-H */
#define SD2_LAYERS          24
#define INPAINTING_CHANNELS 9 /* latent, mask, kept latent */
#define TIME_IDS            6 /* XL: original size, crop, target size */

static const ts_file_tensor *find(const ts_checkpoint *c, const char *format, va_list args) {
    char name[256];
    vsnprintf(name, sizeof name, format, args);
    return ts_tensors_find(c->file, name);
}

static bool has(const ts_checkpoint *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool has(const ts_checkpoint *c, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const ts_file_tensor *t = find(c, format, args);
    va_end(args);
    return t != NULL;
}

/* Size of a tensor's dimension, 0 when there is none. The readers of the configs bound it. */
static int dim(const ts_checkpoint *c, int axis, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static int dim(const ts_checkpoint *c, int axis, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const ts_file_tensor *t = find(c, format, args);
    va_end(args);
    return t && t->rank > axis && t->shape[axis] < (1 << 24) ? (int)t->shape[axis] : 0;
}

static ts_code lacks(const ts_checkpoint *c, const char *what, ts_error *e) {
    return ts_fail(e, TS_EFORMAT, "%s: %s", c->path, what);
}

/* A config being made: cJSON leaves out what it has no memory for, and that would be another config. */
typedef struct draft {
    cJSON *json;
    bool failed;
} draft;

static void put_number(draft *d, const char *key, double v) {
    if (!cJSON_AddNumberToObject(d->json, key, v)) d->failed = true;
}
static void put_bool(draft *d, const char *key, bool v) {
    if (!cJSON_AddBoolToObject(d->json, key, v)) d->failed = true;
}
static void put_string(draft *d, const char *key, const char *v) {
    if (!cJSON_AddStringToObject(d->json, key, v)) d->failed = true;
}
static void put_item(draft *d, const char *key, cJSON *item) {
    if (item && cJSON_AddItemToObject(d->json, key, item)) return;
    cJSON_Delete(item);
    d->failed = true;
}
static void put_list(draft *d, const char *key, const int *values, int n) {
    put_item(d, key, cJSON_CreateIntArray(values, n));
}
static void put_floats(draft *d, const char *key, const float *values, int n) {
    put_item(d, key, cJSON_CreateFloatArray(values, n));
}
static void put_types(draft *d, const char *key, const char *const *types, int n) {
    put_item(d, key, cJSON_CreateStringArray(types, n));
}

/* One more than the largest number that stands behind `prefix` in a name. */
static int count_numbered(const ts_checkpoint *c, const char *prefix) {
    const size_t n = strlen(prefix);
    int most = 0;
    for (size_t i = 0; i < ts_tensors_count(c->file); i++) {
        const char *name = ts_tensors_at(c->file, i)->name;
        int number;
        if (strncmp(name, prefix, n) == 0 && sscanf(name + n, "%3d.", &number) == 1 && number >= most)
            most = number + 1;
    }
    return most;
}

static int count_transformers(const ts_checkpoint *c, const char *stem) {
    int n = 0;
    while (n < BLOCKS_MAXIMUM && has(c, "%s.transformer_blocks.%d.norm1.weight", stem, n)) n++;
    return n;
}

/* How many blocks there are on the way down, and how many of them make a level (the last one downsamples). */
static ts_code count_levels(ts_checkpoint *c, int *ret_levels, ts_error *e) {
    int blocks = 1, layers = 0;
    for (; blocks < BLOCKS_MAXIMUM; blocks++) {
        bool down = has(c, CHECKPOINT_UNET "input_blocks.%d.0.op.weight", blocks);
        if (down && !layers) layers = blocks - 1;
        if (!down && !has(c, CHECKPOINT_UNET "input_blocks.%d.0.in_layers.0.weight", blocks)) break;
    }
    if (!layers) layers = blocks - 1; /* one level: nothing downsamples */
    if (layers < 1 || blocks % (layers + 1) || blocks / (layers + 1) > TS_UNET_LEVELS)
        return lacks(c, "the input blocks of the U-Net are no levels of equal length", e);
    int up = 0;
    while (up < BLOCKS_MAXIMUM && has(c, CHECKPOINT_UNET "output_blocks.%d.0.in_layers.0.weight", up)) up++;
    if (up != blocks)
        return ts_fail(e, TS_EFORMAT, "%s: the U-Net has %d input blocks and %d output blocks", c->path,
                       blocks, up);
    c->unet_layers = layers;
    *ret_levels = blocks / (layers + 1);
    return TS_OK;
}

/* Whether a tensor of that name marks the file, whatever its type. */
static bool is_marked(const ts_checkpoint *c, const char *name) {
    const ts_file_other *other;
    if (has(c, "%s", name)) return true;
    for (size_t i = 0; (other = ts_tensors_other(c->file, i)); i++)
        if (!strcmp(other->name, name)) return true;
    return false;
}

/* The n numbers of a tensor that has that many; an error if there is another one of that name. */
static ts_code numbers(const ts_checkpoint *c, const char *name, int n, float *ret, ts_error *e) {
    const ts_file_tensor *t = ts_tensors_find(c->file, name);
    if (!t || ts_file_tensor_elements(t) != (size_t)n)
        return ts_fail(e, TS_EFORMAT, "%s: %s is not a tensor of %d numbers that can be read", c->path, name,
                       n);
    ts_file_tensor_to_f32(t, ret);
    return TS_OK;
}

/* XL models with EDM's noise levels are told by these, as ComfyUI does: Playground 2.5, CosXL. */
static bool is_playground(const ts_checkpoint *c) {
    return c->kind == CHECKPOINT_XL && (is_marked(c, "edm_mean") || is_marked(c, "edm_std"));
}
static bool is_cosxl(const ts_checkpoint *c) {
    return c->kind == CHECKPOINT_XL && is_marked(c, "edm_vpred.sigma_max");
}

/* Population variance. 0: there is no such tensor. */
static double variance(const ts_checkpoint *c, const char *name) {
    enum { SOME = 256 };
    const ts_file_tensor *t = ts_tensors_find(c->file, name);
    const size_t n = t ? ts_file_tensor_elements(t) : 0;
    float values[SOME];
    double sum = 0, squares = 0;
    for (size_t at = 0; at < n; at += SOME) {
        const size_t count = n - at < SOME ? n - at : SOME, size = ts_dtype_size(t->dtype);
        const ts_file_tensor part = {.name = name,
                                     .dtype = t->dtype,
                                     .rank = 1,
                                     .shape = {(int64_t)count},
                                     .data = (const char *)t->data + at * size,
                                     .bytes = count * size};
        ts_file_tensor_to_f32(&part, values);
        for (size_t i = 0; i < count; i++) {
            sum += (double)values[i];
            squares += (double)values[i] * (double)values[i];
        }
    }
    return n ? squares / (double)n - sum / (double)n * (sum / (double)n) : 0;
}

/* Whether the U-Net predicts v. A file's own word counts first: a tensor that is called so, then what its
 * metadata say (as the specification "modelspec" has it, or ComfyUI). 2.x of the kind that paints into masks
 * was made from 2-base, which predicts epsilon, and so were those of fewer blocks (BK-SDM). Other 2.x say
 * nothing; v needs the spread of one layer's bias to be large, which is how ComfyUI and others tell 2.1 from
 * 2-base and its fine-tunes (0.09 is theirs). Without that layer it is 2.1, as diffusers has it. */
static bool predicts_v(const ts_checkpoint *c) {
    static const char *const keys[] = {"modelspec.prediction_type", "modelspec.predict_key"};
    static const char telling[] = CHECKPOINT_UNET "output_blocks.11.1.transformer_blocks.0.norm1.bias";
    if (is_marked(c, "v_pred")) return true;
    for (int i = 0; i < 2; i++) {
        const char *said = ts_tensors_metadata(c->file, keys[i]);
        if (said && (!strcmp(said, "v") || !strcmp(said, "v_prediction"))) return true;
        if (said && (!strcmp(said, "epsilon") || !strcmp(said, "eps"))) return false;
    }
    if (c->kind != CHECKPOINT_SD2 ||
        dim(c, 1, CHECKPOINT_UNET "input_blocks.0.0.weight") == INPAINTING_CHANNELS)
        return false;
    if (has(c, "%s", telling)) return variance(c, telling) > 0.09 * 0.09;
    return has(c, CHECKPOINT_UNET "output_blocks.11.0.in_layers.0.weight");
}

/* Of a latent consistency model that is told the guidance scale; 0: it is none. The name is diffusers', whose
 * converter passes it on. */
static int told_channels(const ts_checkpoint *c) {
    return dim(c, 1, CHECKPOINT_UNET "time_embedding.cond_proj.weight");
}

/* Of OpenCLIP: a parameter of its own, or (from diffusers' own converter) the weight of a linear layer. */
static int projection_of(const ts_checkpoint *c, const char *prefix) {
    const int n = dim(c, 1, "%stext_projection", prefix);
    return n ? n : dim(c, 0, "%stext_projection.weight", prefix);
}

/* The first attention of the U-Net, "input_blocks.4.1" or the like; what all of them share is read off it. */
static void first_attention(const ts_checkpoint *c, int blocks, char *ret, size_t size) {
    for (int i = 0; i < 2 * blocks; i++) {
        const char *side = i < blocks ? "input_blocks" : "output_blocks";
        snprintf(ret, size, CHECKPOINT_UNET "%s.%d.1", side, i % blocks);
        if (has(c, "%s.norm.weight", ret)) return;
    }
    snprintf(ret, size, CHECKPOINT_UNET "middle_block.1");
}

/* How many transformers follow each of n residual blocks of which `side` numbers the first one `first`; where
 * it has no attention, `otherwise`. */
static void put_depths(const ts_checkpoint *c, cJSON *list, const char *side, int first, int n, int otherwise,
                       draft *d) {
    int depths[BLOCKS_MAXIMUM];
    for (int i = 0; i < n; i++) {
        char stem[96];
        snprintf(stem, sizeof stem, CHECKPOINT_UNET "%s.%d.1", side, first + i);
        depths[i] = count_transformers(c, stem);
        if (!depths[i]) depths[i] = otherwise;
    }
    cJSON *item = cJSON_CreateIntArray(depths, n);
    if (item && cJSON_AddItemToArray(list, item)) return;
    cJSON_Delete(item);
    d->failed = true;
}

/* diffusers takes the middle's from the last level. */
static void put_transformers(const ts_checkpoint *c, draft *d, int levels) {
    cJSON *down = cJSON_CreateArray(), *up = cJSON_CreateArray();
    const int layers = c->unet_layers, stride = layers + 1;
    const int middle = count_transformers(c, CHECKPOINT_UNET "middle_block.1");
    for (int i = 0; down && up && i < levels; i++) {
        put_depths(c, down, "input_blocks", 1 + i * stride, layers, middle && i + 1 == levels ? middle : 1,
                   d);
        put_depths(c, up, "output_blocks", i * stride, stride, 1, d);
    }
    put_item(d, "transformer_layers_per_block", down);
    put_item(d, "reverse_transformer_layers_per_block", up);
}

static void put_middle(const ts_checkpoint *c, draft *d) {
    if (has(c, CHECKPOINT_UNET "middle_block.1.norm.weight")) return; /* that is the default */
    if (has(c, CHECKPOINT_UNET "middle_block.0.in_layers.0.weight"))
        put_string(d, "mid_block_type", "UNetMidBlock2D");
    else
        put_item(d, "mid_block_type", cJSON_CreateNull());
}

static ts_code unet_config(ts_checkpoint *c, draft *d, ts_error *e) {
    int levels = 0, channels[TS_UNET_LEVELS], heads[TS_UNET_LEVELS];
    ts_code rc = count_levels(c, &levels, e);
    if (rc) return rc;
    const int stride = c->unet_layers + 1;
    const char *down[TS_UNET_LEVELS], *up[TS_UNET_LEVELS];
    for (int i = 0; i < levels; i++) {
        bool attends = has(c, CHECKPOINT_UNET "input_blocks.%d.1.norm.weight", 1 + i * stride);
        bool up_attends = has(c, CHECKPOINT_UNET "output_blocks.%d.1.norm.weight", i * stride);
        channels[i] = dim(c, 0, CHECKPOINT_UNET "input_blocks.%d.0.out_layers.3.weight", 1 + i * stride);
        heads[i] = c->kind == CHECKPOINT_SD1         ? SD1_HEADS
                   : channels[i] / HEAD_CHANNELS > 1 ? channels[i] / HEAD_CHANNELS
                                                     : 1;
        down[i] = attends ? "CrossAttnDownBlock2D" : "DownBlock2D";
        up[i] = up_attends ? "CrossAttnUpBlock2D" : "UpBlock2D";
    }
    char attention[96];
    first_attention(c, levels * stride, attention, sizeof attention);
    put_types(d, "down_block_types", down, levels);
    put_types(d, "up_block_types", up, levels);
    put_middle(c, d);
    put_transformers(c, d, levels);
    put_list(d, "block_out_channels", channels, levels);
    put_list(d, "attention_head_dim", heads, levels);
    put_number(d, "layers_per_block", c->unet_layers);
    put_number(d, "in_channels", dim(c, 1, CHECKPOINT_UNET "input_blocks.0.0.weight"));
    put_number(d, "out_channels", dim(c, 0, CHECKPOINT_UNET "out.2.weight"));
    put_number(d, "cross_attention_dim", dim(c, 1, "%s.transformer_blocks.0.attn2.to_k.weight", attention));
    put_bool(d, "use_linear_projection", !dim(c, 2, "%s.proj_in.weight", attention));
    const int told = told_channels(c);
    if (told) put_number(d, "time_cond_proj_dim", told);
    /* What predicts v among 2.x was trained at 768 pixels, and LCM_Dreamshaper; the rest at 512. */
    const bool larger = told || (c->kind == CHECKPOINT_SD2 && predicts_v(c));
    const int size = c->kind == CHECKPOINT_XL ? 128 : larger ? 96 : 64;
    put_number(d, "sample_size", size);
    if (c->kind != CHECKPOINT_XL) return TS_OK;
    int added = dim(c, 1, CHECKPOINT_UNET "label_emb.0.0.weight");
    int pooled = projection_of(c, checkpoint_text_prefix(c, 1));
    put_string(d, "addition_embed_type", "text_time");
    put_number(d, "projection_class_embeddings_input_dim", added);
    put_number(d, "addition_time_embed_dim", (added - pooled) / TIME_IDS);
    return TS_OK;
}

/* The autoencoder of all published models, of which XL's has another scale. */
static void published_vae(ts_checkpoint *c, draft *d) {
    c->vae_levels = 4;
    put_list(d, "block_out_channels", (const int[]){128, 256, 512, 512}, c->vae_levels);
    put_number(d, "layers_per_block", 2);
    put_number(d, "latent_channels", 4);
}

static ts_code put_statistics(const ts_checkpoint *c, draft *d, ts_error *e) {
    float mean[TS_VAE_LATENT], std[TS_VAE_LATENT];
    const int n = dim(c, 0, CHECKPOINT_UNET "out.2.weight");
    if (n < 1 || n > TS_VAE_LATENT) return TS_OK; /* which is an error of its own */
    ts_code rc = numbers(c, "edm_mean", n, mean, e);
    if (!rc) rc = numbers(c, "edm_std", n, std, e);
    if (rc) return rc;
    put_floats(d, "latents_mean", mean, n);
    put_floats(d, "latents_std", std, n);
    return TS_OK;
}

static ts_code vae_config(ts_checkpoint *c, draft *d, ts_error *e) {
    int channels[TS_VAE_LEVELS], levels = 0, layers = 0;
    const bool playground = is_playground(c);
    put_number(d, "scaling_factor", playground ? 0.5 : c->kind == CHECKPOINT_XL ? 0.13025 : 0.18215);
    ts_code rc = playground ? put_statistics(c, d, e) : TS_OK;
    if (rc) return rc;
    if (!c->vae) {
        published_vae(c, d);
        return TS_OK;
    }
    for (; has(c, CHECKPOINT_VAE "decoder.up.%d.block.0.conv1.weight", levels); levels++) {
        if (levels == TS_VAE_LEVELS) return lacks(c, "the autoencoder has too many levels", e);
        channels[levels] = dim(c, 0, CHECKPOINT_VAE "decoder.up.%d.block.0.conv2.weight", levels);
    }
    while (layers < BLOCKS_MAXIMUM && has(c, CHECKPOINT_VAE "decoder.up.0.block.%d.conv1.weight", layers))
        layers++;
    if (!levels || layers < 2) return lacks(c, "there is no autoencoder (first_stage_model.decoder)", e);
    c->vae_levels = levels;
    put_list(d, "block_out_channels", channels, levels);
    put_number(d, "layers_per_block", layers - 1); /* the decoder has one more */
    put_number(d, "latent_channels", dim(c, 1, CHECKPOINT_VAE "decoder.conv_in.weight"));
    put_bool(d, "use_quant_conv", has(c, CHECKPOINT_VAE "quant_conv.weight"));
    put_bool(d, "use_post_quant_conv", has(c, CHECKPOINT_VAE "post_quant_conv.weight"));
    put_bool(d, "mid_block_add_attention", has(c, CHECKPOINT_VAE "decoder.mid.attn_1.norm.weight"));
    return TS_OK;
}

/* A published encoder is as deep as its width says; one that is less deep has lost its end. */
static ts_code check_depth(const ts_checkpoint *c, const char *prefix, int hidden, int layers, ts_error *e) {
    static const int published[][2] = {{768, 12}, {SD2_HIDDEN, SD2_LAYERS}, {1280, 32}};
    for (size_t i = 0; i < sizeof published / sizeof *published; i++)
        if (hidden == published[i][0] && layers < published[i][1])
            return ts_fail(e, TS_EFORMAT, "%s: the text encoder %s* has %d layers of %d", c->path, prefix,
                           layers, published[i][1]);
    return TS_OK;
}

/* transformers' CLIPTextModel, below text_model or (as transformers 5 writes it) not. */
static ts_code clip_sizes(const ts_checkpoint *c, const char *prefix, draft *d, ts_error *e) {
    char stem[96];
    snprintf(stem, sizeof stem, "%stext_model.", prefix);
    if (!has(c, "%sembeddings.token_embedding.weight", stem)) snprintf(stem, sizeof stem, "%s", prefix);
    char layers[128];
    snprintf(layers, sizeof layers, "%sencoder.layers.", stem);
    int hidden = dim(c, 1, "%sembeddings.token_embedding.weight", stem);
    const int count = count_numbered(c, layers);
    ts_code rc = check_depth(c, prefix, hidden, count, e);
    put_number(d, "num_hidden_layers", count);
    put_number(d, "hidden_size", hidden);
    put_number(d, "vocab_size", dim(c, 0, "%sembeddings.token_embedding.weight", stem));
    put_number(d, "max_position_embeddings", dim(c, 0, "%sembeddings.position_embedding.weight", stem));
    put_number(d, "intermediate_size", dim(c, 0, "%sencoder.layers.0.mlp.fc1.weight", stem));
    put_number(d, "num_attention_heads", hidden > HEAD_CHANNELS ? hidden / HEAD_CHANNELS : 1);
    put_string(d, "hidden_act", "quick_gelu");
    return rc;
}

static ts_code openclip_sizes(const ts_checkpoint *c, const char *prefix, draft *d, ts_error *e) {
    char blocks[128];
    snprintf(blocks, sizeof blocks, "%stransformer.resblocks.", prefix);
    int layers = count_numbered(c, blocks), hidden = dim(c, 1, "%stoken_embedding.weight", prefix);
    /* 2.x was trained on the last but one layer, normed as if it were the last; XL asks for it by name. A
     * file that was made of diffusers' folder lacks the last one already. */
    const bool two = c->kind == CHECKPOINT_SD2,
               short_one = two && hidden == SD2_HIDDEN && layers == SD2_LAYERS - 1;
    ts_code rc = check_depth(c, prefix, hidden, layers + short_one, e);
    if (two && !short_one) layers--;
    put_number(d, "num_hidden_layers", layers);
    put_number(d, "hidden_size", hidden);
    put_number(d, "vocab_size", dim(c, 0, "%stoken_embedding.weight", prefix));
    put_number(d, "max_position_embeddings", dim(c, 0, "%spositional_embedding", prefix));
    put_number(d, "intermediate_size", dim(c, 0, "%stransformer.resblocks.0.mlp.c_fc.weight", prefix));
    put_number(d, "num_attention_heads", hidden > HEAD_CHANNELS ? hidden / HEAD_CHANNELS : 1);
    put_string(d, "hidden_act", "gelu");
    if (c->kind == CHECKPOINT_XL) put_number(d, "projection_dim", projection_of(c, prefix));
    return rc;
}

/* As Playground's folder has it, and as diffusers' documentation runs CosXL. */
static ts_code edm_config(const ts_checkpoint *c, draft *d, ts_error *e) {
    const bool playground = is_playground(c);
    float high = 80, low = 0.002f;
    ts_code rc = playground ? TS_OK : numbers(c, "edm_vpred.sigma_max", 1, &high, e);
    if (!rc && !playground && is_marked(c, "edm_vpred.sigma_min"))
        rc = numbers(c, "edm_vpred.sigma_min", 1, &low, e);
    put_string(d, "_class_name", playground ? "EDMDPMSolverMultistepScheduler" : "EDMEulerScheduler");
    put_string(d, "sigma_schedule", playground ? "karras" : "exponential");
    put_string(d, "prediction_type", playground ? "epsilon" : "v_prediction");
    put_number(d, "sigma_data", playground ? 0.5 : 1);
    put_number(d, "sigma_max", (double)high);
    put_number(d, "sigma_min", (double)low);
    put_bool(d, "lower_order_final", true);
    return rc;
}

/* The published models' schedulers, as their pipelines have them (ts_schedule_suit_sd). */
static ts_code scheduler_config(const ts_checkpoint *c, draft *d, ts_error *e) {
    if (is_playground(c) || is_cosxl(c)) return edm_config(c, d, e);
    static const char *const classes[] = {[CHECKPOINT_SD1] = "PNDMScheduler",
                                          [CHECKPOINT_SD2] = "DDIMScheduler",
                                          [CHECKPOINT_XL] = "EulerDiscreteScheduler"};
    const bool told = told_channels(c) > 0;
    put_string(d, "_class_name", told ? "LCMScheduler" : classes[c->kind]);
    put_number(d, "num_train_timesteps", 1000);
    put_number(d, "beta_start", 0.00085);
    put_number(d, "beta_end", 0.012);
    put_string(d, "beta_schedule", "scaled_linear");
    put_string(d, "timestep_spacing", "leading");
    put_string(d, "prediction_type", predicts_v(c) ? "v_prediction" : "epsilon");
    put_number(d, "steps_offset", told ? 0 : 1);
    put_bool(d, "clip_sample", false);
    put_bool(d, "set_alpha_to_one", told);
    put_bool(d, "skip_prk_steps", true);
    put_bool(d, "rescale_betas_zero_snr", is_marked(c, "ztsnr"));
    return TS_OK;
}

static ts_code merge(cJSON *json, const cJSON *over, const char *name, ts_error *e) {
    if (!over) return TS_OK;
    if (!cJSON_IsObject(over)) return ts_fail_param(e, TS_EFORMAT, name, "%s is not an object", name);
    const cJSON *v;
    cJSON_ArrayForEach(v, over) {
        cJSON *copy = cJSON_Duplicate(v, true);
        cJSON_DeleteItemFromObjectCaseSensitive(json, v->string);
        if (!copy || !cJSON_AddItemToObject(json, v->string, copy)) {
            cJSON_Delete(copy);
            return ts_fail(e, TS_ENOMEM, "reading a configuration");
        }
    }
    return TS_OK;
}

ts_code checkpoint_configure(ts_checkpoint *c, ts_error *e) {
    static const char *const names[] = {"unet", "vae", "text_encoder", "text_encoder_2", "scheduler"};
    c->config = cJSON_CreateObject();
    ts_code rc = TS_OK;
    for (int i = 0; !rc && i < 5; i++) {
        if (i == 3 && c->kind != CHECKPOINT_XL) continue;
        draft d = {.json = cJSON_AddObjectToObject(c->config, names[i])};
        if (!d.json) return ts_fail(e, TS_ENOMEM, "%s", c->path);
        const char *prefix = i == 2 || i == 3 ? checkpoint_text_prefix(c, i - 2) : NULL;
        if (i == 0)
            rc = unet_config(c, &d, e);
        else if (i == 1)
            rc = vae_config(c, &d, e);
        else if (!prefix)
            rc = scheduler_config(c, &d, e);
        else if (checkpoint_text_is_openclip(c->kind, i - 2))
            rc = openclip_sizes(c, prefix, &d, e);
        else
            rc = clip_sizes(c, prefix, &d, e);
        if (!rc && d.failed) rc = ts_fail(e, TS_ENOMEM, "%s", c->path);
        if (!rc) rc = merge(d.json, cJSON_GetObjectItemCaseSensitive(c->beside, names[i]), names[i], e);
    }
    return rc;
}
