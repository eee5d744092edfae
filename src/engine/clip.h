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

/* Input: "ids" [b][1][positions][1] int32, each checked against the vocabulary. Outputs, in the build's dtype:
 * "last" [b][1][positions][hidden] after the final norm, "penultimate" before the last layer. */
void ts_clip_build(ts_builder *b, const ts_clip_config *config);

#endif
