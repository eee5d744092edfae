/* AutoencoderKL: latents to pixels and back (Rombach et al. 2022, arXiv 2112.10752), from diffusers' config. */
#ifndef TS_ENGINE_VAE_H
#define TS_ENGINE_VAE_H

#include <cjson/cJSON.h>
#include "engine/builder.h"

#define TS_VAE_LEVELS 8
#define TS_VAE_LATENT 64 /* channels */

typedef struct ts_vae_config {
    int latent_channels, out_channels;
    int levels, channels[TS_VAE_LEVELS]; /* block_out_channels; the picture is 2^(levels - 1) times the latent */
    int layers;                          /* layers_per_block; the decoder has one resnet more */
    int groups;
    double scaling_factor, shift_factor;
    bool quant, post_quant, mid_attention;
    /* Of each latent channel, as Playground 2.5 has them: the sampler's latents are (z - mean) * scaling / std. */
    bool normalised;
    float latents_mean[TS_VAE_LATENT], latents_std[TS_VAE_LATENT];
} ts_vae_config;

ts_code ts_vae_config_read(const cJSON *json, ts_vae_config *ret, ts_error *e);

/* Where latents are normalised by channel, between the sampler's and those that are multiplied by the scaling factor and no
 * more; else nothing. z: [pixels][latent_channels], in place. */
void ts_vae_normalise(const ts_vae_config *c, float *z, size_t pixels);
void ts_vae_denormalise(const ts_vae_config *c, float *z, size_t pixels);

/* Input: "latent" picture [b][h][w][latent_channels] float32, as the sampler left it (and denormalised). Output: "pixels"
 * [b][8h][8w][3] float32, about -1..1. The build's rows are the latent's. width: of the latent. */
void ts_vae_build_decoder(ts_builder *b, const ts_vae_config *config, int width);

/* Input: "pixels" picture [b][8h][8w][3] float32, -1..1. Output: "moments" [b][h][w][2 * latent_channels]
 * float32: mean and logarithm of the variance of a latent that is not yet multiplied by the scaling factor. The
 * build's rows are the picture's, each patch with a multiple of 8 of them. width: of the picture. */
void ts_vae_build_encoder(ts_builder *b, const ts_vae_config *config, int width);

#endif
