#include "engine/sampler_rows.h"

#include <math.h>
#include <stdlib.h>

static ts_code bad_steps(ts_error *e, int steps) {
    return ts_fail_param(e, TS_EINVAL, "steps", "the model's schedule has no timesteps for %d steps", steps);
}

/* DDIM, eta 0: x' = sqrt(a') x0 + sqrt(1 - a') eps. eps is never clipped, so it is taken from the output and
 * not from d. */
ts_code ts_plan_ddim(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e) {
    int n = c->num_train_timesteps;
    plan->init_scale = 1;
    plan->rows = steps;
    for (int i = 0; i < steps; i++) {
        double t = c->timestep_spacing == TS_SPACING_LINSPACE
                       ? rint(ts_linspace_at(n - 1, steps, steps - 1 - i))
                   : c->timestep_spacing == TS_SPACING_LEADING
                       ? (double)((steps - 1 - i) * (n / steps) + c->steps_offset)
                       : rint(ts_arange_down_at(n, (double)n / steps, i)) - 1;
        if (!(t >= 0 && t <= n - 1)) return bad_steps(e, steps);
        int at = (int)t, before = at - n / steps;
        double a = (double)alphas[at];
        double a1 = before >= 0 ? (double)alphas[before] : c->set_alpha_to_one ? 1 : (double)alphas[0];
        double signal = sqrt(a), noise = sqrt(1 - a), noise1 = sqrt(1 - a1);

        ts_sampler_row *row = &plan->row[i];
        row->timestep = t;
        row->c_in = 1;
        row->clip = (float)c->clip_sample_range;
        ts_predict_x0(c->prediction_type, signal, noise, row);
        row->x_from_d = (float)sqrt(a1);
        if (c->prediction_type == TS_PREDICT_EPSILON) {
            row->x_from_out = (float)noise1;
        } else if (c->prediction_type == TS_PREDICT_V) {
            row->x_from_x = (float)(noise1 * noise);
            row->x_from_out = (float)(noise1 * signal);
        } else {
            row->x_from_x = (float)(noise1 / noise);
            row->x_from_out = (float)(-noise1 * signal / noise);
        }
    }
    return TS_OK;
}

/* The sigmas of a plan in float32, as diffusers holds them, and the timesteps; room for steps + 1 and steps.
 */
typedef struct levels {
    int count;
    float *sigma; /* count + 1 of them */
    double *timestep;
} levels;

static void levels_free(levels *l) {
    free(l->sigma);
    free(l->timestep);
}

static ts_code levels_new(int steps, levels *l, ts_error *e) {
    *l = (levels){.sigma = calloc((size_t)steps + 1, sizeof(float)),
                  .timestep = calloc((size_t)steps, sizeof(double))};
    if (l->sigma && l->timestep) return TS_OK;
    levels_free(l);
    return ts_fail(e, TS_ENOMEM, "a plan of %d steps", steps);
}

static float final_sigma(const ts_schedule_config *c, const float *table) {
    return c->final_sigmas_type == TS_FINAL_ZERO ? 0 : table[0];
}

static void euler_levels(const ts_schedule_config *c, const float *table, int steps, levels *l) {
    int n = c->num_train_timesteps;
    l->count = steps;
    for (int i = 0; i < steps; i++)
        l->timestep[i] = c->timestep_spacing == TS_SPACING_LINSPACE
                             ? (double)(float)ts_linspace_at(n - 1, steps, steps - 1 - i)
                         : c->timestep_spacing == TS_SPACING_LEADING
                             ? (double)((steps - 1 - i) * (n / steps) + c->steps_offset)
                             : rint(ts_arange_down_at(n, (double)n / steps, i)) - 1;
    double high = ts_sigma_at(table, n, l->timestep[0]), low = ts_sigma_at(table, n, l->timestep[steps - 1]);
    if (c->sigma_max > 0) high = c->sigma_max;
    if (c->sigma_min > 0) low = c->sigma_min;
    for (int i = 0; i < steps; i++) {
        double s = c->use_karras_sigmas ? ts_karras_sigma(high, low, steps, i)
                                        : ts_sigma_at(table, n, l->timestep[i]);
        if (c->use_karras_sigmas) l->timestep[i] = (double)(float)ts_timestep_of_sigma(table, n, s);
        l->sigma[i] = (float)s;
    }
    l->sigma[steps] = final_sigma(c, table);
}

/* Euler in Karras' variables, x = x0 + sigma * noise: x' = x + (s' - s) (x - x0) / s, rearranged so that a
 * large s cancels nothing. */
ts_code ts_plan_euler(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                      ts_error *e) {
    levels l;
    ts_code rc = levels_new(steps, &l, e);
    if (rc) return rc;
    float *table = ts_sigma_table(c, alphas);
    if (!table) {
        levels_free(&l);
        return ts_fail(e, TS_ENOMEM, "a plan of %d steps", steps);
    }
    euler_levels(c, table, steps, &l);
    free(table);

    double largest = 0;
    plan->rows = l.count;
    for (int i = 0; i < l.count; i++) {
        double s = (double)l.sigma[i], s1 = (double)l.sigma[i + 1];
        ts_sampler_row *row = &plan->row[i];
        row->timestep = l.timestep[i];
        row->c_in = (float)(1 / sqrt(s * s + 1));
        ts_predict_x0(c->prediction_type, 1, s, row);
        row->x_from_x = (float)(s1 / s);
        row->x_from_d = (float)(1 - s1 / s);
        if (s > largest) largest = s;
    }
    plan->init_scale =
        (float)(c->timestep_spacing == TS_SPACING_LEADING ? sqrt(largest * largest + 1) : largest);
    levels_free(&l);
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

static ts_code dpm_levels(const ts_schedule_config *c, const float *alphas, const float *table, int steps,
                          levels *l, ts_error *e) {
    int n = c->num_train_timesteps, last = n - clipped_timesteps(c, alphas);
    if (last < 1)
        return ts_fail_param(e, TS_EINVAL, "lambda_min_clipped", "lambda_min_clipped leaves no timestep");
    double ratio = (double)n / steps;
    l->count = steps;
    /* Clipped timesteps shorten a trailing plan. (numpy's arange may also give one value too many, of about
     * 0; that one would be timestep -1 and is not taken.) */
    if (c->timestep_spacing == TS_SPACING_TRAILING && !c->use_karras_sigmas)
        while (l->count > 1 && rint(ts_arange_down_at(last, ratio, l->count - 1)) < 1) l->count--;
    for (int i = 0; i < l->count; i++) {
        double t = c->timestep_spacing == TS_SPACING_LINSPACE
                       ? rint(ts_linspace_at(last - 1, steps + 1, steps - i))
                   : c->timestep_spacing == TS_SPACING_LEADING
                       ? (double)((steps - i) * (last / (steps + 1)) + c->steps_offset)
                       : rint(ts_arange_down_at(last, ratio, i)) - 1;
        double s = ts_sigma_at(table, n, t);
        if (c->use_karras_sigmas) {
            s = ts_karras_sigma((double)table[n - 1], (double)table[0], steps, i);
            t = ts_timestep_of_sigma(table, n, s);
            t = c->beta_schedule == TS_BETA_SQUARED_COSINE ? trunc(t) : rint(t);
        }
        l->timestep[i] = t;
        l->sigma[i] = (float)s;
    }
    l->sigma[l->count] = final_sigma(c, table);
    return TS_OK;
}

/* Row i: x' = (sigma'/sigma) x - alpha' (e^-h - 1) D, with D extrapolated from the newest two predictions. */
static void dpm_row(const ts_schedule_config *c, const levels *l, int i, ts_sampler_row *row) {
    double s = (double)l->sigma[i], s1 = (double)l->sigma[i + 1]; /* noise over signal; lambda = -log s */
    double alpha = 1 / sqrt(s * s + 1), alpha1 = 1 / sqrt(s1 * s1 + 1);
    row->timestep = l->timestep[i];
    row->c_in = 1;
    ts_predict_x0(c->prediction_type, alpha, s * alpha, row);
    double grow = alpha1 * (s1 / s - 1);
    row->x_from_x = (float)(s1 * alpha1 / (s * alpha));
    double from_d = -grow;

    bool few = l->count < 15, final = i == l->count - 1;
    bool first_order = c->solver_order == 1 || i == 0 ||
                       (final && (c->euler_at_final || (c->lower_order_final && few) ||
                                  c->final_sigmas_type == TS_FINAL_ZERO));
    if (!first_order) {
        double h = log(s / s1), h0 = log((double)l->sigma[i - 1] / s);
        double weight = c->solver_type == TS_SOLVER_MIDPOINT ? -0.5 * grow : alpha1 * ((s1 / s - 1) / h + 1);
        double slope = weight * h / h0; /* times (d - h[0]) */
        from_d += slope;
        row->x_from_hist[0] = (float)-slope;
    }
    row->x_from_d = (float)from_d;
    row->push_d = c->solver_order > 1;
}

ts_code ts_plan_dpmpp_2m(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                         ts_error *e) {
    if (c->solver_order > 2)
        return ts_fail_param(e, TS_EUNSUPPORTED, "solver_order", "solver_order: only 1 and 2 are offered");
    levels l;
    ts_code rc = levels_new(steps, &l, e);
    if (rc) return rc;
    float *table = ts_sigma_table(c, alphas);
    if (!table) {
        levels_free(&l);
        return ts_fail(e, TS_ENOMEM, "a plan of %d steps", steps);
    }
    rc = dpm_levels(c, alphas, table, steps, &l, e);
    free(table);
    if (!rc) {
        plan->init_scale = 1;
        plan->rows = l.count;
        for (int i = 0; i < l.count; i++) dpm_row(c, &l, i, &plan->row[i]);
    }
    levels_free(&l);
    return rc;
}
