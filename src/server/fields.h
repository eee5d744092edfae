/* The fields of an image request one by one: names, types and bounds. Private to fields.c and request.c. */
#ifndef TS_SERVER_FIELDS_H
#define TS_SERVER_FIELDS_H

#include "server/request.h"

/* All fields as they came; pointers into the JSON. What is absent is NULL, 0 or the default put in before. */
typedef struct ts_fields {
    const ts_request_context *context;
    const ts_original *original;
    const char *prompt, *negative, *long_prompt, *model, *size, *other;
    const char *output_format, *response_format, *sampler, *scheduler, *rng, *on_disconnect;
    int64_t n, width, height, steps, clip_skip, partial_images, output_compression;
    double guidance, guidance_rescale, strength, eta;
    ts_interval guidance_interval;
    ts_level_list sigmas, timesteps;
    bool emphasis, stream, progress, has_seed;
    uint64_t seed;
    ts_size_condition sizes;
    const char *mode, *group_norm, *cfg_split;
    ts_parallel parallel;
    int lora_count;
    ts_lora_ref loras[TS_MAX_LORAS];
} ts_fields;

/* Every member of the object into *to, whose defaults and context are there already; null is absent, as OpenAI's clients
 * send it. TS_EINVAL or TS_EUNSUPPORTED with the field as param. to's texts are the object's. */
ts_code ts_fields_read(const cJSON *object, ts_fields *to, ts_error *e);

/* "640x480". */
bool ts_size_parse(const char *text, int *ret_width, int *ret_height);

#endif
