/* The blocks that the U-Net is made of. Private to unet.c and to the tests that hold each block against
 * diffusers' class of the same kind. Errors stick in the builder. */
#ifndef TS_ENGINE_UNET_BLOCKS_H
#define TS_ENGINE_UNET_BLOCKS_H

#include "engine/unet.h"

typedef struct unet {
    ts_builder *b;
    const ts_unet_config *c;
    ts_buf temb; /* SiLU of the time embedding: every resnet begins with it */
    ts_buf text;
} unet;

/* What the way down leaves for the way up, taken from the end: conv_in's, and of each level every resnet's and
 * the downsampler's. */
typedef struct unet_skips {
    ts_buf item[TS_UNET_LEVELS * (TS_UNET_LAYERS + 1) + 1];
    int count;
} unet_skips;

ts_buf unet_resnet(unet *u, ts_scope s, ts_buf x, int channels);
ts_buf unet_transformer(unet *u, ts_scope s, ts_buf x, int heads, int layers);
ts_buf unet_down_block(unet *u, ts_scope s, int level, ts_buf x, unet_skips *skips);
ts_buf unet_mid_block(unet *u, ts_scope s, ts_buf x);
ts_buf unet_up_block(unet *u, ts_scope s, int index, ts_buf x, unet_skips *skips); /* without upsampler */
ts_buf unet_upsampler(ts_builder *b, ts_scope s, ts_buf x, int height, int width);
ts_buf unet_embedding(ts_builder *b, ts_scope s, ts_buf x, int channels); /* linear, SiLU, linear */

#endif
