/* Names of parameters: from the LDM/SGM layout of single-file checkpoints to diffusers' and transformers'.
 *
 * In the LDM layout (CompVis/latent-diffusion, Stability-AI/generative-models) blocks are counted through:
 * input_blocks.7 is the third block of some level, and which one depends on how many residual blocks a level
 * has. Keys come without the prefix of their component ("model.diffusion_model.", "first_stage_model.", ...).
 */
#ifndef TS_ENGINE_KEYMAP_H
#define TS_ENGINE_KEYMAP_H

#include <stdbool.h>
#include <stddef.h>

#define TS_KEY_BYTES 256 /* room for a name; longer ones have no counterpart */

/* layers: residual blocks of a level on the way down. False when there is no such name; then ret is not
 * written to. Any key may come: nothing is assumed of it. */
bool ts_keymap_unet(const char *key, int layers, char ret[TS_KEY_BYTES]);
bool ts_keymap_vae(const char *key, int levels, char ret[TS_KEY_BYTES]);

/* OpenCLIP's text tower. The three projections of an attention lie in one tensor there: then ret has a '?'
 * where each of q, k and v stands. */
bool ts_keymap_openclip(const char *key, char ret[TS_KEY_BYTES]);

#endif
