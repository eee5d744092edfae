#include "engine/vae_blocks.h"

#include <string.h>
#include "engine/config.h"

#define NORM_EPS 1e-6

static ts_code only_type(const cJSON *j, const char *key, int levels, const char *wanted, ts_error *e) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(j, key), *type;
    if (!list || cJSON_IsNull(list)) return TS_OK;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != levels)
        return ts_fail_param(e, TS_EFORMAT, key, "%s is not a list of %d block types", key, levels);
    cJSON_ArrayForEach(type, list) {
        if (!cJSON_IsString(type) || strcmp(type->valuestring, wanted) != 0)
            return ts_fail_param(e, TS_EFORMAT, key, "%s: \"%.64s\" is not supported", key,
                                 cJSON_IsString(type) ? type->valuestring : "?");
    }
    return TS_OK;
}

/* Both or, as diffusers' pipelines have it, none. */
static ts_code read_statistics(const cJSON *j, ts_vae_config *c, ts_error *e) {
    bool mean = false, std = false;
    ts_code rc = ts_config_numbers(j, "latents_mean", c->latent_channels, -1e6, c->latents_mean, &mean, e);
    if (!rc) rc = ts_config_numbers(j, "latents_std", c->latent_channels, 1e-6, c->latents_std, &std, e);
    c->normalised = mean && std;
    return rc;
}

void ts_vae_normalise(const ts_vae_config *c, float *z, size_t pixels) {
    const int n = c->latent_channels;
    for (size_t i = 0; c->normalised && i < pixels; i++, z += n)
        for (int j = 0; j < n; j++)
            z[j] = (z[j] - c->latents_mean[j] * (float)c->scaling_factor) / c->latents_std[j];
}

void ts_vae_denormalise(const ts_vae_config *c, float *z, size_t pixels) {
    const int n = c->latent_channels;
    for (size_t i = 0; c->normalised && i < pixels; i++, z += n)
        for (int j = 0; j < n; j++)
            z[j] = z[j] * c->latents_std[j] + c->latents_mean[j] * (float)c->scaling_factor;
}

ts_code ts_vae_config_read(const cJSON *j, ts_vae_config *ret, ts_error *e) {
    ts_vae_config c = {0};
    const cJSON *channels = cJSON_GetObjectItemCaseSensitive(j, "block_out_channels");
    c.levels = cJSON_IsArray(channels) ? cJSON_GetArraySize(channels) : 0;
    if (c.levels < 1 || c.levels > TS_VAE_LEVELS)
        return ts_fail_param(e, TS_EFORMAT, "block_out_channels", "block_out_channels: %d levels", c.levels);
    ts_code rc = ts_config_only_string(j, "_class_name", "AutoencoderKL", NULL, e);
    if (!rc) rc = ts_config_levels(j, "block_out_channels", 0, c.levels, c.channels, e);
    if (!rc) rc = ts_config_only_string(j, "act_fn", "silu", "swish", e);
    if (!rc) rc = ts_config_int(j, "latent_channels", TS_VAE_LATENT, 4, &c.latent_channels, e);
    if (!rc) rc = ts_config_int(j, "out_channels", 4, 3, &c.out_channels, e);
    if (!rc && c.out_channels != 3)
        rc = ts_fail_param(e, TS_EFORMAT, "out_channels", "out_channels is not 3");
    if (!rc) rc = ts_config_only_number(j, "in_channels", 3, e);
    if (!rc) rc = ts_config_int(j, "layers_per_block", 32, 1, &c.layers, e);
    if (!rc) rc = ts_config_int(j, "norm_num_groups", 1 << 12, 32, &c.groups, e);
    if (!rc) rc = ts_json_number(j, "scaling_factor", 1e-6, 1e6, 0.18215, &c.scaling_factor, e);
    if (!rc) rc = ts_json_number(j, "shift_factor", -1e6, 1e6, 0, &c.shift_factor, e);
    if (!rc) rc = ts_config_bool(j, "use_quant_conv", true, &c.quant, e);
    if (!rc) rc = ts_config_bool(j, "use_post_quant_conv", true, &c.post_quant, e);
    if (!rc) rc = ts_config_bool(j, "mid_block_add_attention", true, &c.mid_attention, e);
    if (!rc) rc = read_statistics(j, &c, e);
    if (!rc && c.shift_factor != 0)
        rc =
            ts_fail_param(e, TS_EFORMAT, "shift_factor", "shift_factor: %g is not supported", c.shift_factor);
    if (!rc) rc = only_type(j, "up_block_types", c.levels, "UpDecoderBlock2D", e);
    if (!rc) rc = only_type(j, "down_block_types", c.levels, "DownEncoderBlock2D", e);
    if (rc) return rc;
    *ret = c;
    return TS_OK;
}

ts_buf vae_resnet(ts_builder *b, const ts_vae_config *c, ts_scope s, ts_buf x, int channels) {
    ts_buf h = ts_group_norm(b, ts_sub(s, "norm1"), x, TS_NO_BUF, c->groups, NORM_EPS, TS_ACT_SILU);
    h = ts_conv3x3(b, ts_sub(s, "conv1"), h, channels, TS_NO_BUF, 0);
    h = ts_group_norm(b, ts_sub(s, "norm2"), h, TS_NO_BUF, c->groups, NORM_EPS, TS_ACT_SILU);
    if (channels != x.c) x = ts_linear(b, ts_sub(s, "conv_shortcut"), x, channels, TS_NO_BUF);
    return ts_conv3x3(b, ts_sub(s, "conv2"), h, channels, x, 0);
}

/* One head over all pixels. Files published before 2023 use older names for the same four matrices. */
static ts_buf attention(ts_builder *b, const ts_vae_config *c, ts_scope s, ts_buf x) {
    bool old = ts_builder_has(b, s, "query.weight");
    ts_qkv names = old ? (ts_qkv){"query", "key", "value", true} : (ts_qkv){"to_q", "to_k", "to_v", true};
    ts_buf h = ts_group_norm(b, ts_sub(s, "group_norm"), x, TS_NO_BUF, c->groups, NORM_EPS, TS_ACT_NONE);
    h = ts_self_attention(b, s, names, h, 1);
    return ts_linear(b, ts_sub(s, "%s", old ? "proj_attn" : "to_out.0"), h, x.c, x);
}

ts_buf vae_mid_block(ts_builder *b, const ts_vae_config *c, ts_scope s, ts_buf x) {
    x = vae_resnet(b, c, ts_sub(s, "resnets.0"), x, x.c);
    if (c->mid_attention) x = attention(b, c, ts_sub(s, "attentions.0"), x);
    return vae_resnet(b, c, ts_sub(s, "resnets.1"), x, x.c);
}

ts_buf vae_down_block(ts_builder *b, const ts_vae_config *c, ts_scope s, int index, ts_buf x) {
    for (int k = 0; k < c->layers; k++)
        x = vae_resnet(b, c, ts_sub(s, "resnets.%d", k), x, c->channels[index]);
    if (index + 1 == c->levels) return x;
    return ts_conv3x3_down_end(b, ts_sub(s, "downsamplers.0.conv"), x, x.c);
}

ts_buf vae_up_block(ts_builder *b, const ts_vae_config *c, ts_scope s, int index, ts_buf x) {
    for (int k = 0; k < c->layers + 1; k++)
        x = vae_resnet(b, c, ts_sub(s, "resnets.%d", k), x, c->channels[c->levels - 1 - index]);
    if (index + 1 == c->levels) return x;
    x = ts_upsample(b, ts_sub(s, "upsamplers.0"), x, 2 * ts_buf_height(b, x), 2 * x.w);
    return ts_conv3x3(b, ts_sub(s, "upsamplers.0.conv"), x, x.c, TS_NO_BUF, 0);
}

void ts_vae_build_decoder(ts_builder *b, const ts_vae_config *c, int width) {
    ts_scope top = {.path = "decoder"};
    ts_buf x = ts_input_picture(b, "latent", width, c->latent_channels, TS_F32);
    x = ts_cast(b, (ts_scope){.path = "latent"}, x, ts_builder_build(b)->dtype,
                (float)(1.0 / c->scaling_factor));
    if (c->post_quant) x = ts_linear(b, (ts_scope){.path = "post_quant_conv"}, x, x.c, TS_NO_BUF);
    x = ts_conv3x3(b, ts_sub(top, "conv_in"), x, c->channels[c->levels - 1], TS_NO_BUF, 0);
    x = vae_mid_block(b, c, ts_sub(top, "mid_block"), x);
    for (int i = 0; i < c->levels; i++) x = vae_up_block(b, c, ts_sub(top, "up_blocks.%d", i), i, x);
    x = ts_group_norm(b, ts_sub(top, "conv_norm_out"), x, TS_NO_BUF, c->groups, NORM_EPS, TS_ACT_SILU);
    x = ts_conv3x3(b, ts_sub(top, "conv_out"), x, c->out_channels, TS_NO_BUF, TS_CONV_F32_OUT);
    ts_output(b, "pixels", x);
}

void ts_vae_build_encoder(ts_builder *b, const ts_vae_config *c, int width) {
    ts_scope top = {.path = "encoder"};
    ts_buf x = ts_input_picture(b, "pixels", width, 3, TS_F32);
    x = ts_cast(b, (ts_scope){.path = "pixels"}, x, ts_builder_build(b)->dtype, 1);
    x = ts_conv3x3(b, ts_sub(top, "conv_in"), x, c->channels[0], TS_NO_BUF, 0);
    for (int i = 0; i < c->levels; i++) x = vae_down_block(b, c, ts_sub(top, "down_blocks.%d", i), i, x);
    x = vae_mid_block(b, c, ts_sub(top, "mid_block"), x);
    x = ts_group_norm(b, ts_sub(top, "conv_norm_out"), x, TS_NO_BUF, c->groups, NORM_EPS, TS_ACT_SILU);
    x = ts_conv3x3(b, ts_sub(top, "conv_out"), x, 2 * c->latent_channels, TS_NO_BUF, 0);
    if (c->quant) x = ts_linear(b, (ts_scope){.path = "quant_conv"}, x, x.c, TS_NO_BUF);
    ts_output(b, "moments", ts_cast(b, (ts_scope){.path = "moments"}, x, TS_F32, 1));
}
