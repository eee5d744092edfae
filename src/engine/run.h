/* A job while it runs: what its ranks share. Private to run.c and to the parts of a run: start.c, leg.c,
 * denoise.c, patch.c, combine.c and autoencoder.c.
 *
 * Denoising goes in legs, in each of which the U-Net runs the same images in the same programs. A leg ends
 * with the last evaluation, or earlier: when pictures of the batch have been cancelled, so that the next leg
 * goes on with the rest, and where guidance begins or ends, so that no evaluation computes unconditional
 * images in vain. */
#ifndef TS_ENGINE_RUN_H
#define TS_ENGINE_RUN_H

#include "engine/group.h"
#include "engine/random.h"

typedef struct ts_patch ts_patch;

typedef struct ts_run {
    ts_group *group;
    const ts_model *model;
    ts_job *job;
    ts_layout layout;
    int ranks;
    int latent_h, latent_w, channels;
    bool told;  /* the U-Net is one for painting into masks: its input holds mask and kept picture too */
    int warmup; /* the last synchronous evaluation, counted from 0; past the last row: all are */
    ts_sampler_plan *plan;

    /* The batch of this leg: pictures of the job that still run. */
    int count, picture[TS_MAX_BATCH];
    bool guided;    /* there are unconditional images beside the conditional ones */
    int next;       /* evaluation that the leg begins with */
    atomic_int end; /* evaluation before which it ends */
    ts_plan *unet;
    ts_patch *patch[TS_MAX_RANKS];

    /* By picture of the job. */
    float *noise;   /* [pictures][channels][h][w], unit normal */
    float *image;   /* [pictures][h][w][channels]: latents of those to be changed; NULL: none are needed */
    float *mask;    /* [pictures][h][w], 1 where it is painted, 0 where it is kept; NULL: there is none */
    float *masked;  /* latents of the pictures without what is painted, for a U-Net that is told; else NULL */
    ts_rng *rng;    /* [pictures]: as the starting noise left them; ranks draw from copies */
    float *latents; /* [pictures][h][w][channels], written row-wise by the ranks at the end */
    float *text;    /* [images][tokens][width]: the unconditional ones first where the job is guided */
    float *pooled;  /* XL: [images][width] */
    float time_ids[TS_MAX_BATCH][6];   /* XL: original size, crop, target size; each y before x */
    atomic_int bad_step[TS_MAX_BATCH]; /* the evaluation after which a latent was not finite; 0: none */

    /* By rank. */
    ts_code code[TS_MAX_RANKS];
    ts_error error[TS_MAX_RANKS];
} ts_run;

/* Values of one latent. */
static inline size_t ts_run_elements(const ts_run *run) {
    return (size_t)run->channels * (size_t)run->latent_h * (size_t)run->latent_w;
}

/* Fills noise, rng, image, mask and masked. TS_EINVAL where a picture lacks what its task needs, TS_ENOMEM,
 * and what a program's run may say. The job's thread. */
ts_code ts_start(ts_run *run, ts_error *e);

/* True when picture k of the job needs no more work: cancelled, or not finite. */
bool ts_run_picture_over(ts_run *run, int k);

/* Pictures of the leg that still want work. */
int ts_run_alive(ts_run *run);

/* Whether the picture at place k of the leg has its prediction guided in evaluation i, from 0. The
 * evaluations of a step stay together. */
bool ts_run_guides(const ts_run *run, int k, int i);

/* Programs for fewer images are worth compiling only for this many evaluations at least. */
#define TS_WORTH_COMPILING 3

/* All evaluations, leg by leg, until run->latents are there. The job's thread. TS_ECANCELLED when all
 * pictures are over, TS_ENOMEM, and what a program's run may say. */
ts_code ts_denoise(ts_run *run, ts_error *e);

/* One rank's part of a leg; after the last one its rows are in run->latents. A task for ts_group_each. */
void ts_denoise_rank(void *run, ts_rank *rank);

/* The U-Net's programs for the job's shape, all pictures and guidance. */
ts_code ts_denoise_plan(const ts_run *run, ts_plan **ret, ts_error *e);

/* The decoder's programs for the job's shape; all ranks of the job decode, whatever their branch. */
ts_code ts_decode_plan(const ts_run *run, ts_plan **ret, ts_error *e);
ts_code ts_encode_plan(const ts_run *run, ts_plan **ret, ts_error *e); /* the encoder's, likewise */

/* Decodes run->latents of picture k of the job on all ranks, into pixels [8h][8w][3]. */
ts_code ts_decode(ts_run *run, int k, unsigned char *pixels, ts_error *e);

/* Encodes pixels [8h][8w][3], -1..1, on all ranks, into moments [h][w][2 * channels] (engine/vae.h). */
ts_code ts_encode(ts_run *run, const float *pixels, float *moments, ts_error *e);

#endif
