#include <math.h>
#include <stdlib.h>
#include "base/alloc.h"
#include "engine/sampler_rows.h"

void ts_levels_free(ts_levels *l) {
    free(l->sigma);
    free(l->timestep);
    free(l->table);
    *l = (ts_levels){0};
}

static ts_code levels_new(const ts_schedule_config *c, const float *alphas, int steps, ts_levels *l,
                          ts_error *e) {
    *l = (ts_levels){.sigma = ts_array0(float, (size_t)steps + 1),
                     .timestep = ts_array0(double, (size_t)steps),
                     .table = ts_sigma_table(c, alphas)};
    if (l->sigma && l->timestep && l->table) return TS_OK;
    ts_levels_free(l);
    return ts_fail(e, TS_ENOMEM, "a plan of %d steps", steps);
}

static float final_sigma(const ts_schedule_config *c, const float *table) {
    return c->final_sigmas_type == TS_FINAL_ZERO ? 0 : c->final_sigma > 0 ? (float)c->final_sigma : table[0];
}

/* Sigmas of a spacing that goes from the noisiest to the least noisy without the help of timesteps. */
static bool spaced(const ts_schedule_config *c) {
    return c->curve || c->asked == TS_SCHEDULER_SGM_UNIFORM || c->asked == TS_SCHEDULER_ALIGN_YOUR_STEPS ||
           c->asked == TS_SCHEDULER_SIGMAS;
}

/* The last is where the tenth step would go, if it did not go to 0. */
#define ALIGNED 11
static const double aligned[2][ALIGNED] = {
    {14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029},
    {14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029},
};

static double aligned_sigma(bool xl, int steps, int i) {
    const double *table = aligned[xl], at = (double)i / steps * (ALIGNED - 1);
    const int k = (int)at;
    return (double)(float)exp(log(table[k]) + (at - k) * (log(table[k + 1]) - log(table[k])));
}

/* k-diffusion's t_to_sigma: between two training timesteps in log sigma. */
static double log_sigma_at(const float *table, double timestep) {
    const int k = (int)timestep;
    if (timestep == k) return (double)table[k];
    const double a = log((double)table[k]), b = log((double)table[k + 1]);
    return exp(a + (timestep - k) * (b - a));
}

static double spaced_sigma(const ts_schedule_config *c, const float *table, double high, double low,
                           int steps, int i) {
    const int last = c->num_train_timesteps - 1;
    if (c->asked == TS_SCHEDULER_SIGMAS) return (double)c->list->at[i];
    if (c->asked == TS_SCHEDULER_ALIGN_YOUR_STEPS) return aligned_sigma(c->xl, steps, i);
    if (c->asked == TS_SCHEDULER_SGM_UNIFORM)
        return log_sigma_at(table, i ? last * (1 - (double)i / steps) : last);
    return ts_curve_sigma(c->curve, high, low, steps, i);
}

ts_code ts_euler_levels(const ts_schedule_config *c, const float *alphas, int steps, ts_rounding rounding,
                        ts_levels *ret, ts_error *e) {
    ts_levels levels, *l = &levels;
    ts_code rc = levels_new(c, alphas, steps, l, e);
    if (rc) return rc;
    int n = c->num_train_timesteps;
    const float *table = l->table;
    l->count = steps;
    for (int i = 0; i < steps; i++)
        l->timestep[i] = c->timestep_spacing == TS_SPACING_LINSPACE && c->asked != TS_SCHEDULER_TIMESTEPS
                             ? (double)(float)ts_linspace_at(n - 1, steps, steps - 1 - i)
                             : ts_timestep_at(c, steps, i);
    double high = ts_sigma_at(table, n, l->timestep[0]), low = ts_sigma_at(table, n, l->timestep[steps - 1]);
    if (c->sigma_max > 0) high = c->sigma_max;
    if (c->sigma_min > 0) low = c->sigma_min;
    for (int i = 0; i < steps; i++) {
        double s =
            spaced(c) ? spaced_sigma(c, table, high, low, steps, i) : ts_sigma_at(table, n, l->timestep[i]);
        if (spaced(c)) {
            double t = ts_timestep_of_sigma(c, table, s);
            const bool whole = rounding == TS_ROUND && c->sigma_data == 0 && ts_curve_rounds(c->curve);
            l->timestep[i] = whole ? rint(t) : (double)(float)t;
        }
        l->sigma[i] = (float)s;
    }
    l->sigma[steps] = final_sigma(c, table);
    double largest = 0;
    for (int i = 0; i < steps; i++) largest = fmax(largest, (double)l->sigma[i]);
    l->init_scale =
        (float)(c->timestep_spacing == TS_SPACING_LEADING ? sqrt(largest * largest + 1) : largest);
    *ret = levels;
    return TS_OK;
}

/* How many of the noisiest training timesteps lambda_min_clipped leaves out (lambda = log(alpha / sigma)). */
static int clipped_timesteps(const ts_schedule_config *c, const float *alphas) {
    int n = c->num_train_timesteps, clipped = 0;
    while (clipped < n) {
        float a = alphas[n - 1 - clipped];
        if (!clipped && c->rescale_betas_zero_snr) a = 0x1p-24f;
        float lambda = logf(sqrtf(a)) - logf(sqrtf(1.0f - a));
        if ((double)lambda >= c->lambda_min_clipped) break;
        clipped++;
    }
    return clipped;
}

ts_code ts_multistep_levels(const ts_schedule_config *c, const float *alphas, int steps, ts_rounding rounding,
                            ts_levels *ret, ts_error *e) {
    int n = c->num_train_timesteps, last = n - clipped_timesteps(c, alphas);
    if (last < 1)
        return ts_fail_param(e, TS_EINVAL, "lambda_min_clipped", "lambda_min_clipped leaves no timestep");
    ts_levels levels, *l = &levels;
    ts_code rc = levels_new(c, alphas, steps, l, e);
    if (rc) return rc;
    const float *table = l->table;
    double ratio = (double)n / steps;
    l->init_scale = 1;
    l->count = steps;
    /* Clipped timesteps shorten a trailing plan. (numpy's arange may also give one value too many, of about
     * 0; that one would be timestep -1 and is not taken.) */
    const bool listed = c->asked == TS_SCHEDULER_TIMESTEPS;
    if (c->timestep_spacing == TS_SPACING_TRAILING && !spaced(c) && !listed)
        while (l->count > 1 && rint(ts_arange_down_at(last, ratio, l->count - 1)) < 1) l->count--;
    for (int i = 0; i < l->count; i++) {
        double t = listed ? ts_timestep_at(c, steps, i)
                   : c->timestep_spacing == TS_SPACING_LINSPACE
                       ? rint(ts_linspace_at(last - 1, steps + 1, steps - i))
                   : c->timestep_spacing == TS_SPACING_LEADING
                       ? (double)((steps - i) * (last / (steps + 1)) + c->steps_offset)
                       : rint(ts_arange_down_at(last, ratio, i)) - 1;
        double s = ts_sigma_at(table, n, t);
        if (spaced(c)) {
            const bool own = c->curve != TS_CURVE_LU; /* which is between the schedule's ends always */
            const double high = own && c->sigma_max > 0 ? c->sigma_max : (double)table[n - 1];
            const double low = own && c->sigma_min > 0 ? c->sigma_min : (double)table[0];
            s = spaced_sigma(c, table, high, low, steps, i);
            t = ts_timestep_of_sigma(c, table, s);
            /* diffusers rounds Karras' and Lu's timesteps before it makes them whole, but not the others'. */
            const bool rounds = rounding == TS_ROUND || c->beta_schedule != TS_BETA_SQUARED_COSINE;
            t = c->sigma_data > 0                     ? (double)(float)t
                : ts_curve_rounds(c->curve) && rounds ? rint(t)
                                                      : trunc(t);
        }
        l->timestep[i] = t;
        l->sigma[i] = (float)s;
    }
    l->sigma[l->count] = final_sigma(c, table);
    *ret = levels;
    return TS_OK;
}
