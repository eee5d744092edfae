/* The U-Net of latent diffusion: UNet2DConditionModel as in Stable Diffusion 1.x, 2.x and XL (Rombach et al.
 * 2022, arXiv 2112.10752; Podell et al. 2023, arXiv 2307.01952), read from diffusers' config. */
#ifndef TS_ENGINE_UNET_H
#define TS_ENGINE_UNET_H

#include <cjson/cJSON.h>
#include "engine/builder.h"

#define TS_UNET_LEVELS 8
#define TS_UNET_LAYERS 32 /* resnets of a down block, at most */

/* What is between the way down and the way up. */
typedef enum ts_unet_mid {
    TS_UNET_MID_CROSS, /* a resnet, attention, a resnet: UNetMidBlock2DCrossAttn */
    TS_UNET_MID_PLAIN, /* one resnet, in SSD-1B: UNetMidBlock2D as UNet2DConditionModel makes it */
    TS_UNET_MID_NONE   /* in BK-SDM-Tiny and the like */
} ts_unet_mid;

typedef struct ts_unet_config {
    int sample_width, sample_height; /* of the latents that it was trained with */
    int in_channels, out_channels;
    int levels;
    int channels[TS_UNET_LEVELS];           /* block_out_channels */
    bool down_attention[TS_UNET_LEVELS];    /* CrossAttnDownBlock2D rather than DownBlock2D */
    bool up_attention[TS_UNET_LEVELS];      /* in the order of the up blocks, deepest first */
    int layers[TS_UNET_LEVELS];             /* resnets of a down block; an up block has one more */
    int heads[TS_UNET_LEVELS];              /* attention_head_dim, which is the number of heads */
    /* Transformer blocks after each resnet, where a block has attention (transformer_layers_per_block); up_depth in the
     * order of the up blocks. */
    int down_depth[TS_UNET_LEVELS][TS_UNET_LAYERS], up_depth[TS_UNET_LEVELS][TS_UNET_LAYERS + 1], mid_depth;
    ts_unet_mid mid;
    int cross_attention_dim;
    int groups;
    double norm_eps;
    bool linear_projection, flip_sin_to_cos;
    double freq_shift;
    bool text_time;   /* XL: pooled text and sizes are added to the time embedding */
    int time_id_dim;  /* addition_time_embed_dim */
    int added_dim;    /* projection_class_embeddings_input_dim */
    int guidance_dim; /* 0, or of a model that is told the guidance scale (Luo et al. 2023, arXiv 2310.04378, 4.2):
                         time_cond_proj_dim */
} ts_unet_config;

/* An unknown value of a known key is TS_EFORMAT and named; unknown keys are ignored, as diffusers does. */
ts_code ts_unet_config_read(const cJSON *json, ts_unet_config *ret, ts_error *e);

/* Inputs: "sample" picture [b][h][w][in_channels] float32; "timestep" [b][1][1][1] float32; "text"
 * [b][1][tokens][cross_attention_dim] float32; XL: "time_ids" [b][1][1][6], "pooled" [b][1][1][dim], float32;
 * where guidance_dim > 0, "guidance" [b][1][1][1] float32, a thousand times (guidance scale - 1).
 * Output: "out" [b][h][w][out_channels] float32. width: of the latent. */
void ts_unet_build(ts_builder *b, const ts_unet_config *config, int width, int tokens);

#endif
