/* The blocks that decoder and encoder are made of. Private to vae.c and to the tests that hold each block
 * against diffusers' class of the same kind. Errors stick in the builder. */
#ifndef TS_ENGINE_VAE_BLOCKS_H
#define TS_ENGINE_VAE_BLOCKS_H

#include "engine/vae.h"

ts_buf vae_resnet(ts_builder *b, const ts_vae_config *c, ts_scope s, ts_buf x, int channels);
ts_buf vae_mid_block(ts_builder *b, const ts_vae_config *c, ts_scope s, ts_buf x);
ts_buf vae_down_block(ts_builder *b, const ts_vae_config *c, ts_scope s, int index, ts_buf x);
ts_buf vae_up_block(ts_builder *b, const ts_vae_config *c, ts_scope s, int index, ts_buf x);

#endif
