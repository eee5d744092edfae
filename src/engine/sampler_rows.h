/* What the plan functions of the samplers share: timesteps, sigmas, and the prediction of x0. */
#ifndef TS_ENGINE_SAMPLER_ROWS_H
#define TS_ENGINE_SAMPLER_ROWS_H

#include "engine/sampler.h"

/* The plan functions, one row of the table in sampler.c each. */
ts_code ts_plan_ddim(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e);
ts_code ts_plan_ddpm(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e);
ts_code ts_plan_euler(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                      ts_error *e);
ts_code ts_plan_euler_a(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                        ts_error *e);
ts_code ts_plan_heun(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e);
ts_code ts_plan_lms(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                    ts_error *e);
ts_code ts_plan_dpm2(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e);
ts_code ts_plan_dpm2_a(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                       ts_error *e);
ts_code ts_plan_dpmpp_2m(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                         ts_error *e);
ts_code ts_plan_dpmpp_2m_sde(const ts_schedule_config *c, const float *alphas, int steps,
                             ts_sampler_plan *plan, ts_error *e);
ts_code ts_plan_dpmpp_3m_sde(const ts_schedule_config *c, const float *alphas, int steps,
                             ts_sampler_plan *plan, ts_error *e);
ts_code ts_plan_dpmpp_2s(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                         ts_error *e);
ts_code ts_plan_pndm(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e);
ts_code ts_plan_deis(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e);
ts_code ts_plan_unipc(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                      ts_error *e);
ts_code ts_plan_lcm(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                    ts_error *e);
ts_code ts_plan_tcd(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                    ts_error *e);
ts_code ts_plan_hb(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                   ts_error *e);
ts_code ts_plan_ghvb(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e);
ts_code ts_plan_time_shift(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                           ts_error *e);
ts_code ts_plan_flow_euler(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                           ts_error *e);

/* How many training timesteps up and down a step of the time-shift sampler may begin. */
static inline size_t ts_shift_reach(const ts_schedule_config *c, int steps) {
    return (size_t)(c->num_train_timesteps / steps / 4);
}

/* Points of numpy.linspace(0, high, n) and of numpy.arange(high, 0, -step), as numpy computes them. */
double ts_linspace_at(double high, int n, int i);
double ts_arange_down_at(double high, double step, int i);

/* Noise levels sigma = sqrt((1 - a) / a) of the training timesteps, in float32, increasing. A zero terminal
 * SNR, where sigma is infinite, becomes a = 2^-24 as in diffusers. NULL when memory ran out; free() it. */
float *ts_sigma_table(const ts_schedule_config *c, const float *alphas);

/* sigma at a timestep between two training timesteps; clamped at the ends. */
double ts_sigma_at(const float *table, int n, double timestep);

/* The timestep whose sigma this is, by interpolation in log sigma; of EDM's as it is told them. */
double ts_timestep_of_sigma(const ts_schedule_config *c, const float *table, double sigma);

/* Point i of n on a curve (not NONE) from high to low. */
double ts_curve_sigma(ts_curve curve, double high, double low, int n, int i);

/* Whether diffusers rounds the timesteps of a curve's levels, where the class does so for any. */
static inline bool ts_curve_rounds(ts_curve curve) {
    return curve != TS_CURVE_EXPONENTIAL && curve != TS_CURVE_BETA;
}

/* signal and noise of the row's x = alpha * x0 + sigma * noise; c_in, with which the model sees it at unit variance;
 * and d_from_x and d_from_out for x0 from the model's output. */
void ts_predict_x0(const ts_schedule_config *c, double alpha, double sigma, ts_sampler_row *row);

/* Adds weight * (the noise in x) to what the row makes of x and the output, for x = signal * x0 + noise * eps
 * of unit variance. The output's own eps, which clamping x0 does not touch. */
void ts_add_noise_prediction(ts_prediction prediction, double signal, double noise, double weight,
                             ts_sampler_row *row);

/* Timestep i of diffusers' DDIM, DDPM and PNDM, or of the list that was asked for, from the noisiest; out of
 * range where there is none. */
double ts_timestep_at(const ts_schedule_config *c, int steps, int i);

/* The sigmas of a plan, noise over signal, in float32 as diffusers holds them, and the timesteps. */
typedef struct ts_levels {
    int count;
    float *sigma; /* count + 1 of them */
    double *timestep;
    float init_scale;
    float *table; /* ts_sigma_table */
} ts_levels;

/* How a class of diffusers rounds the timesteps that it interpolates between the training ones. */
typedef enum ts_rounding { TS_KEEP_FRACTION, TS_ROUND } ts_rounding;

/* Of the samplers in Karras' variables, x = x0 + sigma * noise. Free the levels. */
ts_code ts_euler_levels(const ts_schedule_config *c, const float *alphas, int steps, ts_rounding rounding,
                        ts_levels *ret, ts_error *e);

/* Of the multistep samplers at unit variance; whole timesteps. TS_ROUND: Karras' are rounded, as in all classes
 * but DPMSolverMultistep, which leaves that out where the betas are a cosine's. */
ts_code ts_multistep_levels(const ts_schedule_config *c, const float *alphas, int steps, ts_rounding rounding,
                            ts_levels *ret, ts_error *e);
void ts_levels_free(ts_levels *l);

/* TS_EINVAL about "steps". */
ts_code ts_bad_steps(ts_error *e, int steps);

#endif
