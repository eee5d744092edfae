/* The options of `tesserad generate`: one table, from which they are parsed and explained. */
#ifndef TS_GENERATE_OPTIONS_H
#define TS_GENERATE_OPTIONS_H

#include "engine/job.h"

typedef struct ts_generate_options {
    const char *model, *vae, *embeddings, *prompt, *negative, *out, *devices, *sampler, *latents_in,
        *latents_out, *dump, *init, *mask;
    const char *loras[TS_MAX_LORAS + 1]; /* as ts_lora_uses_parse takes them; NULL behind the last */
    uint64_t seed;
    int rng, scheduler; /* ts_rng_kind, ts_scheduler */
    ts_level_list sigmas, timesteps;
    int steps; /* 0: 20, or as many as the list has */
    int clip_skip, width, height, batch;
    int dtype;       /* ts_dtype; -1: auto */
    double strength; /* 0: the task's default */
    double guidance, guidance_rescale;
    double eta; /* -1: the sampler's own */
    ts_interval guidance_interval;
    ts_size_condition sizes;
    ts_parallel parallel;
    bool emphasis, truncate, json, profile;
} ts_generate_options;

/* Strings point into argv. Complains on stderr. Returns the exit status, or -1 to go on. */
int ts_generate_options_parse(int argc, char **argv, ts_generate_options *ret);

#endif
