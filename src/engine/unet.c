#include "engine/unet_blocks.h"

ts_buf unet_resnet(unet *u, ts_scope s, ts_buf x, int channels) {
    ts_builder *b = u->b;
    ts_buf h = ts_group_norm(b, ts_sub(s, "norm1"), x, TS_NO_BUF, u->c->groups, u->c->norm_eps, TS_ACT_SILU);
    h = ts_conv3x3(b, ts_sub(s, "conv1"), h, channels, TS_NO_BUF, 0);
    ts_buf t = ts_linear(b, ts_sub(s, "time_emb_proj"), u->temb, channels, TS_NO_BUF);
    h = ts_group_norm(b, ts_sub(s, "norm2"), h, t, u->c->groups, u->c->norm_eps, TS_ACT_SILU);
    if (channels != x.c) x = ts_linear(b, ts_sub(s, "conv_shortcut"), x, channels, TS_NO_BUF);
    return ts_conv3x3(b, ts_sub(s, "conv2"), h, channels, x, 0);
}

static const ts_qkv qkv = {"to_q", "to_k", "to_v", false};

/* Attention over the picture, attention to the text, feed-forward; each adds to x. */
static ts_buf transformer_block(unet *u, ts_scope s, ts_buf x, int heads) {
    ts_builder *b = u->b;
    ts_scope self = ts_sub(s, "attn1"), cross = ts_sub(s, "attn2");
    ts_buf h = ts_layer_norm(b, ts_sub(s, "norm1"), x, 1e-5);
    h = ts_self_attention(b, self, qkv, h, heads);
    x = ts_linear(b, ts_sub(self, "to_out.0"), h, x.c, x);
    h = ts_layer_norm(b, ts_sub(s, "norm2"), x, 1e-5);
    h = ts_cross_attention(b, cross, qkv, h, u->text, heads);
    x = ts_linear(b, ts_sub(cross, "to_out.0"), h, x.c, x);
    h = ts_layer_norm(b, ts_sub(s, "norm3"), x, 1e-5);
    h = ts_linear(b, ts_sub(s, "ff.net.0.proj"), h, 8 * x.c, TS_NO_BUF);
    h = ts_geglu(b, ts_sub(s, "ff.net.0"), h);
    return ts_linear(b, ts_sub(s, "ff.net.2"), h, x.c, x);
}

/* proj_in and proj_out are 1x1 convolutions or linear layers: in NHWC the same product. */
ts_buf unet_transformer(unet *u, ts_scope s, ts_buf x, int heads, int layers) {
    ts_builder *b = u->b;
    ts_buf h = ts_group_norm(b, ts_sub(s, "norm"), x, TS_NO_BUF, u->c->groups, 1e-6, TS_ACT_NONE);
    h = ts_linear(b, ts_sub(s, "proj_in"), h, x.c, TS_NO_BUF);
    for (int i = 0; i < layers; i++)
        h = transformer_block(u, ts_sub(s, "transformer_blocks.%d", i), h, heads);
    return ts_linear(b, ts_sub(s, "proj_out"), h, x.c, x);
}

ts_buf unet_down_block(unet *u, ts_scope s, int level, ts_buf x, unet_skips *skips) {
    const ts_unet_config *c = u->c;
    for (int i = 0; i < c->layers[level]; i++) {
        x = unet_resnet(u, ts_sub(s, "resnets.%d", i), x, c->channels[level]);
        if (c->down_attention[level])
            x = unet_transformer(u, ts_sub(s, "attentions.%d", i), x, c->heads[level], c->down_depth[level][i]);
        skips->item[skips->count++] = x;
    }
    if (level + 1 < c->levels) {
        x = ts_conv3x3_down(u->b, ts_sub(s, "downsamplers.0.conv"), x, x.c);
        skips->item[skips->count++] = x;
    }
    return x;
}

ts_buf unet_mid_block(unet *u, ts_scope s, ts_buf x) {
    const ts_unet_config *c = u->c;
    if (c->mid == TS_UNET_MID_NONE) return x;
    x = unet_resnet(u, ts_sub(s, "resnets.0"), x, x.c);
    if (c->mid == TS_UNET_MID_PLAIN) return x;
    x = unet_transformer(u, ts_sub(s, "attentions.0"), x, c->heads[c->levels - 1], c->mid_depth);
    return unet_resnet(u, ts_sub(s, "resnets.1"), x, x.c);
}

ts_buf unet_up_block(unet *u, ts_scope s, int index, ts_buf x, unet_skips *skips) {
    const ts_unet_config *c = u->c;
    const int level = c->levels - 1 - index;
    for (int i = 0; i < c->layers[level] + 1; i++) {
        x = ts_concat(u->b, ts_sub(s, "resnets.%d.concat", i), x, skips->item[--skips->count]);
        x = unet_resnet(u, ts_sub(s, "resnets.%d", i), x, c->channels[level]);
        if (c->up_attention[index])
            x = unet_transformer(u, ts_sub(s, "attentions.%d", i), x, c->heads[level], c->up_depth[index][i]);
    }
    return x;
}

ts_buf unet_upsampler(ts_builder *b, ts_scope s, ts_buf x, int height, int width) {
    x = ts_upsample(b, s, x, height, width);
    return ts_conv3x3(b, ts_sub(s, "conv"), x, x.c, TS_NO_BUF, 0);
}

ts_buf unet_embedding(ts_builder *b, ts_scope s, ts_buf x, int channels) {
    x = ts_linear(b, ts_sub(s, "linear_1"), x, channels, TS_NO_BUF);
    x = ts_activation(b, s, x, TS_ACT_SILU);
    return ts_linear(b, ts_sub(s, "linear_2"), x, channels, TS_NO_BUF);
}

/* XL: what does not change from step to step (pooled text, sizes and crop) is embedded once a job. */
static ts_buf added_embedding(unet *u, int channels) {
    const ts_unet_config *c = u->c;
    ts_builder *b = u->b;
    ts_scope s = {.path = "add_embedding"};
    ts_builder_once_begin(b);
    ts_buf sizes = ts_input(b, "time_ids", 1, 6, TS_F32);
    ts_buf pooled = ts_input(b, "pooled", 1, c->added_dim - 6 * c->time_id_dim, TS_F32);
    pooled = ts_cast(b, s, pooled, ts_builder_build(b)->dtype, 1);
    sizes = ts_time_embed(b, s, sizes, c->time_id_dim, c->flip_sin_to_cos, c->freq_shift);
    ts_buf y = unet_embedding(b, s, ts_concat(b, s, pooled, sizes), channels);
    ts_builder_once_end(b);
    return y;
}

/* Luo et al. 2023: the scale as if it were a timestep, added to the timestep. Sines first, and the slowest
 * one is the ten-thousandth of the fastest. */
static ts_buf guidance_embedding(unet *u, ts_buf t) {
    ts_builder *b = u->b;
    ts_scope s = {.path = "time_embedding.cond_proj"};
    ts_builder_once_begin(b);
    ts_buf w = ts_time_embed(b, s, ts_input(b, "guidance", 1, 1, TS_F32), u->c->guidance_dim, false, 1);
    ts_builder_once_end(b);
    return ts_linear_unbiased(b, s, w, t.c, t);
}

void ts_unet_build(ts_builder *b, const ts_unet_config *c, int width, int tokens) {
    unet u = {.b = b, .c = c};
    const ts_dtype dtype = ts_builder_build(b)->dtype;
    const int time_channels = 4 * c->channels[0];
    const ts_scope top = {0};
    unet_skips skips = {0};

    ts_builder_once_begin(b);
    u.text = ts_input(b, "text", tokens, c->cross_attention_dim, TS_F32);
    u.text = ts_cast(b, (ts_scope){.path = "text"}, u.text, dtype, 1);
    ts_builder_once_end(b);

    ts_buf t = ts_input(b, "timestep", 1, 1, TS_F32);
    t = ts_time_embed(b, (ts_scope){.path = "time_proj"}, t, c->channels[0], c->flip_sin_to_cos,
                      c->freq_shift);
    if (c->guidance_dim) t = guidance_embedding(&u, t);
    t = unet_embedding(b, (ts_scope){.path = "time_embedding"}, t, time_channels);
    if (c->text_time)
        t = ts_add(b, (ts_scope){.path = "add_embedding"}, t, added_embedding(&u, time_channels));
    u.temb = ts_activation(b, (ts_scope){.path = "temb"}, t, TS_ACT_SILU);

    ts_buf x = ts_input_picture(b, "sample", width, c->in_channels, TS_F32);
    x = ts_cast(b, (ts_scope){.path = "sample"}, x, dtype, 1);
    x = ts_conv3x3(b, (ts_scope){.path = "conv_in"}, x, c->channels[0], TS_NO_BUF, TS_CONV_FRESH);
    skips.item[skips.count++] = x;
    for (int level = 0; level < c->levels; level++)
        x = unet_down_block(&u, ts_sub(top, "down_blocks.%d", level), level, x, &skips);
    x = unet_mid_block(&u, ts_sub(top, "mid_block"), x);
    for (int i = 0; i < c->levels; i++) {
        ts_scope s = ts_sub(top, "up_blocks.%d", i);
        x = unet_up_block(&u, s, i, x, &skips);
        if (!skips.count) break;
        /* The next skip has the size that was halved on the way down, rounding up. */
        ts_buf like = skips.item[skips.count - 1];
        x = unet_upsampler(b, ts_sub(s, "upsamplers.0"), x, ts_buf_height(b, like), like.w);
    }
    x = ts_group_norm(b, (ts_scope){.path = "conv_norm_out"}, x, TS_NO_BUF, c->groups, c->norm_eps,
                      TS_ACT_SILU);
    x = ts_conv3x3(b, (ts_scope){.path = "conv_out"}, x, c->out_channels, TS_NO_BUF, TS_CONV_F32_OUT);
    ts_output(b, "out", x);
}
