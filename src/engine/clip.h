/* CLIP's text encoder: CLIPTextModel and CLIPTextModelWithProjection (Radford et al. 2021, arXiv 2103.00020),
 * from transformers' config. */
#ifndef TS_ENGINE_CLIP_H
#define TS_ENGINE_CLIP_H

#include <cjson/cJSON.h>
#include "engine/builder.h"

typedef struct ts_clip_config {
    int hidden, intermediate, layers, heads, positions, vocabulary;
    int projection; /* 0: without */
    int eos_token;  /* where the pooled vector is taken; 2: the largest id, as transformers keeps it */
    ts_act act;
    double eps;
} ts_clip_config;

/* projected: the class is CLIPTextModelWithProjection. */
ts_code ts_clip_config_read(const cJSON *json, bool projected, ts_clip_config *ret, ts_error *e);

/* What is read of an encoder. Layers that nobody reads are not built. */
typedef struct ts_clip_reading {
    int layers; /* after which the text is taken, 0 (the embeddings) to config.layers */
    bool norm;  /* it goes through the final norm */
    bool last;  /* the end is read too, for the pooled vector */
} ts_clip_reading;

/* Inputs: "ids" [b][1][positions][1] int32, each checked against the vocabulary, or -1 where "vectors" float32
 * [b][1][positions][hidden] has what stands there in place of the vocabulary's vector. Outputs, in the build's dtype:
 * "text" [b][1][positions][hidden], and "last" likewise: after all layers and the final norm. */
void ts_clip_build(ts_builder *b, const ts_clip_config *config, const ts_clip_reading *reading);

#endif
