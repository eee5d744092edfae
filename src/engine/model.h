/* A loaded model from inside the engine. */
#ifndef TS_ENGINE_MODEL_H
#define TS_ENGINE_MODEL_H

#include "engine/checkpoint.h"
#include "engine/clip.h"
#include "engine/engine.h"
#include "engine/schedule.h"
#include "engine/tokenizer.h"
#include "engine/unet.h"
#include "engine/vae.h"

#define TS_TEXT_ENCODERS 2

typedef struct ts_text_model {
    ts_clip_config config;
    ts_weights *weights;
    ts_tokenizer *tokenizer;
    /* Of the embeddings: [vector_count][hidden], in the order of the tokenizer's rows. */
    float *vectors;
    size_t vector_count, vector_capacity; /* the capacity in floats */
} ts_text_model;

struct ts_model {
    ts_model_info info;
    const ts_model *base; /* of a variant: whose all is that it does not have itself; else NULL */
    char *path, *id;
    ts_lora_ref fused[TS_MAX_LORAS];
    ts_checkpoint *checkpoint; /* what a single file holds; NULL where path is a folder */
    bool overrules; /* its folder's pipeline, two keys of the scheduler: ts_schedule_suit_sd */
    bool consistent; /* of the pipeline of latent consistency models, or a single file of one */
    bool xl;
    bool zeros_for_absent; /* force_zeros_for_empty_prompt: an absent negative prompt is zeros */
    ts_unet_config unet;
    ts_weights *unet_weights;
    ts_vae_config vae;
    ts_weights *vae_weights;
    bool vae_inferred; /* its config is read off its tensors, in part at least */
    ts_text_model text[TS_TEXT_ENCODERS];
    int text_count;
    char **embeddings; /* names, as many as the info says */
    size_t embedding_capacity;
    ts_schedule_config schedule;
    ts_store *store_cpu, *store_ref; /* by backend: their layouts differ */
};

/* Weights are read from their files when a program is compiled or a text is encoded, at any time. TS_EIO when
 * a file has changed by then, so that what was made of it is not to be used; the model cannot be used any
 * more. Any thread. */
ts_code ts_model_check(const ts_model *m, ts_error *e);
/* After something was compiled: the store holds what the kernels read, so that the pages of the files need
 * not be resident beside it. Any thread. */
void ts_model_rest(const ts_model *m);

/* Whose `weights` are that m has as a part: m itself, or the model that it is a variant of. Programs of that
 * part belong to the owner, and are shared with its variants. */
const ts_model *ts_model_owner(const ts_model *m, const ts_weights *weights);

ts_store *ts_model_store(const ts_model *m, const ts_backend *backend);
int ts_model_scale(const ts_model *m);        /* picture pixels to a latent pixel, 8 */
int ts_model_text_width(const ts_model *m);   /* channels of the text that the U-Net attends to */
int ts_model_pooled_width(const ts_model *m); /* XL: channels of the pooled text; else 0 */

void model_free_variant(ts_model *m); /* model_lora.c, for ts_model_free */

#endif
