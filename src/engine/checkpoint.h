/* A single-file checkpoint: all components of a model in one file (engine/tensors.h), in the LDM/SGM key layout
 * in which Stable Diffusion 1.x, 2.x and XL are shared.
 *
 * Which of the three it is shows in its keys. Such a file has no configuration: sizes are read from the
 * shapes, the rest is that of the published models. What differs can be said in NAME.json beside
 * NAME.safetensors (or .ckpt, .pt, .bin):
 *     {"unet": {...}, "vae": {...}, "text_encoder": {...}, "text_encoder_2": {...}, "scheduler": {...},
 *      "tokenizer": "FOLDER", "tokenizer_2": "FOLDER"}
 * members of the first five go over the built-in ones and are named as in diffusers' folders; folders are
 * relative to the file. Without a folder the tokenizer is CLIP's own, which comes with the program. A
 * checkpoint is immutable once open; nothing in the file is trusted. */
#ifndef TS_ENGINE_CHECKPOINT_H
#define TS_ENGINE_CHECKPOINT_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "engine/tokenizer.h"
#include "engine/weights.h"

typedef struct ts_checkpoint ts_checkpoint;

/* TS_ENOTFOUND, TS_EIO, TS_ENOMEM; TS_EFORMAT for a file that is none of the three, saying what it lacks. */
ts_code ts_checkpoint_open(const char *path, ts_checkpoint **ret, ts_error *e);
void ts_checkpoint_free(ts_checkpoint *c); /* NULL is fine; weights of it die before it does */

/* TS_EIO when the file has changed since it was opened (ts_tensors_check). Any thread. */
ts_code ts_checkpoint_check(const ts_checkpoint *c, ts_error *e);

bool ts_checkpoint_is_xl(const ts_checkpoint *c);
/* Whether there is an autoencoder in it; TS_EFORMAT, TS_EUNSUPPORTED why not. Without one its config is that of the
 * published models. */
ts_code ts_checkpoint_check_vae(const ts_checkpoint *c, ts_error *e);

/* component: "unet", "vae", "text_encoder", "text_encoder_2" (XL) or "scheduler". As in diffusers' config
 * files; owned by c; NULL for any other name. */
const cJSON *ts_checkpoint_config(const ts_checkpoint *c, const char *component);

/* Which file a value of that config is likely from, for messages: NAME.json where it speaks of the
 * component. */
const char *ts_checkpoint_config_path(const ts_checkpoint *c, const char *component);

/* The first four, under diffusers' and transformers' names; mapped, not copied, but for a projection that is
 * stored the other way round. TS_EFORMAT, TS_ENOMEM. */
ts_code ts_checkpoint_weights(const ts_checkpoint *c, const char *component, ts_weights **ret, ts_error *e);

/* The weights of an autoencoder that is alone in a file, in the LDM layout (with or without its prefix) or
 * diffusers'. levels: of the model that it is for. TS_EFORMAT when there is no decoder in it. */
ts_code ts_checkpoint_open_vae(const char *path, int levels, ts_weights **ret, ts_error *e);

/* Of encoder 0, or 1 of XL. Errors as ts_tokenizer_open's. */
ts_code ts_checkpoint_tokenizer(const ts_checkpoint *c, int encoder, ts_tokenizer **ret, ts_error *e);

#endif
