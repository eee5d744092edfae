/* What one rank has of a job: its own rows of everything that the sampler touches. Private to the parts of a run
 * (engine/run.h).
 *
 * Arrays of rows are float32 [pictures of the leg][rows][w][channels]. All is used by the rank's own thread, but for
 * ts_patch_keep and ts_patch_free, when the ranks are idle. */
#ifndef TS_ENGINE_PATCH_H
#define TS_ENGINE_PATCH_H

#include "engine/run.h"

struct ts_patch {
    ts_run *run;
    ts_program *program;     /* of the leg */
    ts_transport *transport; /* between the patches of the branch, or NULL */
    int rank, branch, index;
    int row, rows;   /* of the latent */
    size_t elements; /* of one picture's rows */
    float *memory;   /* one allocation a job for all that follow */
    float *x, *out, *saved, *hist[TS_SAMPLER_HISTORY];
    float *kept; /* one picture's rows, of what a mask keeps */
    /* Where the sampler draws noise: every rank draws all of a picture's and keeps its rows, so that nothing
     * need be sent and the picture is the same on any number of ranks. */
    float *noise, *drawn;
    ts_rng *rng;      /* by picture of the job */
    uint64_t wait_ns; /* for peers, beside what the program waits */
};

/* With x as it is before the first evaluation. TS_ENOMEM: run->error of the rank says so. */
ts_code ts_patch_new(ts_run *run, int rank, ts_patch **ret);
void ts_patch_free(ts_patch *p); /* NULL is fine */

/* Moves the pictures that stay to the front: picture k of the smaller batch was old[k]. */
void ts_patch_keep(ts_patch *p, const int *old, int count);

/* Where this rank's rows of picture k of the job begin in an array of whole pictures with c channels. */
size_t ts_patch_own_rows(const ts_patch *p, int k, int c);

/* p->noise = fresh noise of each picture of the leg, from its own generator. */
void ts_patch_draw_noise(ts_patch *p);

/* After evaluation i, what the mask keeps becomes the picture again, as noisy as what the next one sees. A
 * U-Net that is told of the mask does without. */
void ts_patch_keep_unmasked(ts_patch *p, int i);

/* A latent that has left the finite numbers fails its picture, not the others of the batch; evaluations count
 * from 1 here. */
void ts_patch_check_finite(ts_patch *p, int evaluation);

/* Writes x to the rank's rows of run->latents. */
void ts_patch_give(const ts_patch *p);

#endif
