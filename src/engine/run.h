/* A job while it runs: what its ranks share. Private to run.c, denoise.c and decode.c. */
#ifndef TS_ENGINE_RUN_H
#define TS_ENGINE_RUN_H

#include "engine/group.h"

typedef struct ts_run {
    ts_group *group;
    const ts_model *model;
    ts_job *job;
    ts_layout layout;
    int ranks;
    int latent_h, latent_w, channels;
    int warmup; /* the last synchronous evaluation, counted from 0; INT_MAX: all are */
    ts_sampler_plan *plan;
    ts_plan *unet;
    /* By picture. */
    float *noise;      /* [count][channels][h][w] unit normal; then, by rows, [count][h][w][channels] latents */
    float *latents;    /* [count][h][w][channels], written row-wise by the ranks at the end */
    float *text;       /* [images][tokens][width]: the unconditional ones first where the job is guided */
    float *pooled;     /* XL: [images][width] */
    float time_ids[6]; /* XL: original size, crop, target size */
    atomic_int bad_step[TS_MAX_BATCH]; /* the evaluation after which a latent was not finite; 0: none */
    /* By rank. */
    ts_code code[TS_MAX_RANKS];
    ts_error error[TS_MAX_RANKS];
} ts_run;

/* True when picture k needs no more work: cancelled, or not finite. */
bool ts_run_picture_over(ts_run *run, int k);

/* One rank's part: all evaluations, then its rows into run->latents. A task for ts_group_each. */
void ts_denoise_rank(void *run, ts_rank *rank);

/* Decodes run->latents of picture k on all ranks of the job, into pixels [8h][8w][3]. */
ts_code ts_decode(ts_run *run, int k, unsigned char *pixels, ts_error *e);

#endif
