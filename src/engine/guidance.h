/* Classifier-free guidance: one prediction from two, of the rows that a rank has.
 *
 * out = uncond + scale (cond - uncond) (Ho & Salimans 2022, arXiv 2207.12598). A rescale phi multiplies it by
 * 1 + phi (std(cond) / std(out) - 1), with the standard deviations over the whole picture (Lin et al. 2024,
 * arXiv 2305.08891, eq. 15 and 16; unbiased, as diffusers' rescale_noise_cfg). Those come from sums, which
 * the patches of a picture add up in between. */
#ifndef TS_ENGINE_GUIDANCE_H
#define TS_ENGINE_GUIDANCE_H

#include <stdbool.h>
#include <stddef.h>
#include "engine/job.h"

/* Of the n elements of one patch, or their total over the patches. */
typedef struct ts_guidance_sums {
    double cond, cond_squares, out, out_squares;
} ts_guidance_sums;

/* Whether there is guidance in step `step` of `steps`, from 0: from the floor(from * steps)-th up to but not
 * with the floor(to * steps)-th, as with start and stop of diffusers' guiders. The others have out = cond
 * (Kynkaanniemi et al. 2024, arXiv 2404.07724). */
bool ts_guidance_acts(ts_interval i, int step, int steps);

/* out may be uncond or cond. Any thread. */
void ts_guide(float scale, const float *uncond, const float *cond, float *out, size_t n);

ts_guidance_sums ts_guidance_sum(const float *cond, const float *out, size_t n);

/* What out is multiplied by, for the sums over all n elements of a picture; 1 where out is constant. */
float ts_guidance_factor(double rescale, const ts_guidance_sums *sums, size_t n);

#endif
