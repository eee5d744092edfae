/* Samplers: from noise to a latent in a number of U-Net evaluations.
 *
 * Every sampler here is linear in the sample x, the model's output, what earlier evaluations predicted, a
 * saved sample and fresh noise. So a sampler is a function that computes, once, on the host, in double
 * precision, a *plan*: one row of coefficients for each evaluation, or several of which a picture takes the
 * one that suits its x. A device applies a row with one elementwise kernel and knows nothing of samplers; nor
 * does a rank care that its x is only some rows.
 *
 * One evaluation, with h[0] the newest of the history:
 *     out = U-Net(c_in * x, timestep)                             (guidance is applied to out before)
 *     d   = d_from_x * x + d_from_out * out,  clamped to +-clip where clip > 0
 *     x'  = x_from_x * x + x_from_d * d + x_from_out * out + sum_k x_from_hist[k] * h[k]
 *         + x_from_saved * saved + x_from_noise * noise
 *     saved = x  if save_x;
 *     h = push_from_x * x + push_from_d * d + push_from_hist * h[0], h[0], h[1]  if push
 * x on the right is the one that the model saw. d is the predicted clean picture (x0; PNDM: the output): with
 * it, rather than the derivative, the huge first sigma of a zero terminal SNR schedule costs no precision.
 * Starting from x = init_scale * unit noise; or, to change a picture, some steps later from the first row's
 * signal * picture + noise * unit noise.
 *
 * Noise: before a row with x_from_noise, and before no other, each picture draws its own, unit normal and in
 * the layout of the starting noise, from the generator that drew that, which goes on where it was (or begins,
 * where the starting noise was given).
 *
 * Each sampler is the diffusers class of its aliases, timesteps and corner cases included, with these choices
 * where the class has several: Heun, DPM2, LMS and Euler ancestral also on a zero terminal SNR schedule,
 * which their classes overlook; PNDM without its Runge-Kutta steps (skip_prk_steps).
 * LMS that begins later begins with one prediction (its class weighs it as if it had four).
 * Formulas: DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16); DDPM (Ho et al. 2020, arXiv 2006.11239,
 * eq. 7); Euler and Heun (Karras et al. 2022, arXiv 2206.00364, alg. 2 and 1, no churn); DPM-Solver++ 2M, 2S,
 * SDE (Lu et al. 2022, arXiv 2211.01095); DPM-Solver-2 (2206.00927); PNDM (Liu et al. 2022, 2202.09778); DEIS
 * (Zhang & Chen 2022, 2204.13902); UniPC (Zhao et al. 2023, 2302.04867); LCM (Luo et al. 2023, 2310.04378);
 * TCD (Zheng et al. 2024, 2402.19159); flow matching (Esser et al. 2024, 2403.03206). Time shift (Li et al.
 * 2024, 2305.15583, algorithm 3) is DDIM whose steps from timestep t > 300 begin at the timestep within a
 * quarter of a step's length of t that has the variance of x; the paper tunes both figures. HB and GHVB
 * (Wizadwongsa et al. 2023, 2307.11118) are their authors', of the file's solver_order (2 where it has none)
 * on Euler's levels. */
#ifndef TS_ENGINE_SAMPLER_H
#define TS_ENGINE_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include "base/error.h"
#include "engine/schedule.h"

#define TS_SAMPLER_STEPS   1000 /* the most steps of a plan */
#define TS_SAMPLER_HISTORY 3

typedef struct ts_sampler_row {
    double timestep;     /* what the U-Net is told; not whole for some schedules */
    float signal, noise; /* the x that it sees: signal * picture + noise * unit noise */
    float c_in;
    float d_from_x, d_from_out, clip;
    float x_from_x, x_from_d, x_from_out;
    float x_from_hist[TS_SAMPLER_HISTORY]; /* newest first */
    float x_from_saved, x_from_noise;
    float push_from_x, push_from_d, push_from_hist;
    bool save_x, push;
    /* Where count is not 0, the row is one of plan->other[first..first + count) instead, which each picture
     * chooses by the variance of its x, all of it (ts_sampler_choose). Their histories, noise and saving are
     * the row's. */
    int first, count;
    double variance; /* of such a row: that of the x that it is for */
} ts_sampler_row;

typedef struct ts_sampler_plan {
    int begin; /* steps that are left out */
    int rows;  /* U-Net evaluations */
    float init_scale;
    int history;           /* how many h a row reads at most; buffers that must be there, 0..3 */
    bool saves_x;          /* a saved buffer must be there */
    bool draws_noise;      /* a noise buffer must be there */
    ts_sampler_row *other; /* after the rows, in the same allocation */
    ts_sampler_row row[];
} ts_sampler_plan;

typedef struct ts_sampler {
    const char *name;       /* of our API */
    const char *label;      /* for people, and what other front ends call it */
    const char *aliases[6]; /* other names that find it; ends with NULL */
    int order;
    int evaluations; /* of the U-Net for a step, at most */
    /* A request may space its timesteps, place its sigmas, list its timesteps (ts_place). */
    bool by_spacing, by_sigmas, by_timesteps;
    /* Or choose how much of a step's noise is drawn anew, 0 (none) to 1; eta is what it is if nobody does. */
    bool by_eta;
    double eta;
    ts_spacing default_spacing;
    bool has_lu; /* TS_CURVE_LU is for it, and overlooked elsewhere */
    bool shifts; /* its rows are chosen by variance: half the distance of two timesteps to choose from */
    /* Appends the rows to a plan that has none and room for steps * evaluations + 1, from step plan->begin
     * on; alphas as in ts_schedule_alphas. */
    ts_code (*plan)(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                    ts_error *e);
} ts_sampler;

/* Static: the pointer is the identity. By name, label or alias, case ignored; NULL when there is none. */
const ts_sampler *ts_sampler_find(const char *name);
int ts_sampler_count(void);
const ts_sampler *ts_sampler_at(int i); /* 0 <= i < count */

/* TS_EUNSUPPORTED (param "scheduler", or the list's) where the sampler has its levels from elsewhere. */
ts_code ts_sampler_takes(const ts_sampler *s, ts_scheduler scheduler, ts_error *e);

/* config: as ts_schedule_place left it. steps: 1..TS_SAMPLER_STEPS and at most the schedule's
 * num_train_timesteps; begin: how many of them are left out, 0..steps - 1. TS_EINVAL (params
 * "sigmas" and "timesteps" for a list that is none, or not of that many steps; "steps" where it is
 * the number of steps that does not work with this schedule), TS_EUNSUPPORTED ("eta" for a sampler that has none),
 * TS_ENOMEM. free() it. */
ts_code ts_sampler_plan_new(const ts_sampler *s, const ts_schedule_config *c, int steps, int begin,
                            ts_sampler_plan **ret, ts_error *e);

/* The row that a picture takes in place of row i: itself, or the one of its others that is nearest to the
 * unbiased variance of the picture's x; the first of equals. */
const ts_sampler_row *ts_sampler_choose(const ts_sampler_plan *plan, int i, double variance);

/* Applies a row to n elements in plain C. hist: plan->history buffers of n floats, newest first, shifted in
 * place (the values move, the pointers stay), NULL where the plan has none; their contents before the first
 * row do not matter. saved and noise: likewise, NULL where the plan does not ask for them. No buffer overlaps
 * another. Any thread. */
void ts_sampler_apply(const ts_sampler_row *row, float *x, const float *out,
                      float *const hist[TS_SAMPLER_HISTORY], float *saved, const float *noise, size_t n);

#endif
