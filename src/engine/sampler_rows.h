/* What the plan functions of the samplers share: timesteps, sigmas, and the prediction of x0. */
#ifndef TS_ENGINE_SAMPLER_ROWS_H
#define TS_ENGINE_SAMPLER_ROWS_H

#include "engine/sampler.h"

/* The plan functions, one row of the table in sampler.c each. */
ts_code ts_plan_ddim(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e);
ts_code ts_plan_euler(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                      ts_error *e);
ts_code ts_plan_dpmpp_2m(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                         ts_error *e);

/* Points of numpy.linspace(0, high, n) and of numpy.arange(high, 0, -step), as numpy computes them. */
double ts_linspace_at(double high, int n, int i);
double ts_arange_down_at(double high, double step, int i);

/* Noise levels sigma = sqrt((1 - a) / a) of the training timesteps, in float32, increasing. A zero terminal
 * SNR, where sigma is infinite, becomes a = 2^-24 as in diffusers. NULL when memory ran out; free() it. */
float *ts_sigma_table(const ts_schedule_config *c, const float *alphas);

/* sigma at a timestep between two training timesteps; clamped at the ends. */
double ts_sigma_at(const float *table, int n, double timestep);

/* The timestep whose sigma this is, by interpolation in log sigma. */
double ts_timestep_of_sigma(const float *table, int n, double sigma);

/* Karras et al. 2022, eq. 5, rho 7: point i of n from high to low. */
double ts_karras_sigma(double high, double low, int n, int i);

/* d_from_x and d_from_out for x0 from the model's output, where x = alpha * x0 + sigma * noise and the model
 * sees x at unit variance (x / sqrt(alpha^2 + sigma^2)). */
void ts_predict_x0(ts_prediction prediction, double alpha, double sigma, ts_sampler_row *row);

#endif
