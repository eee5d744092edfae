/* The plans of samplers in Karras' variables, x = x0 + sigma * noise: k-diffusion's family. With the
 * derivative D = (x - x0) / sigma, an Euler step to s' is x + (s' - s) D. */
#include <math.h>
#include "engine/sampler_rows.h"

/* A model evaluation at noise s. */
static ts_sampler_row *begin_row(const ts_schedule_config *c, double s, double timestep,
                                 ts_sampler_plan *plan) {
    ts_sampler_row *row = &plan->row[plan->rows++];
    row->timestep = timestep;
    ts_predict_x0(c, 1, s, row);
    return row;
}

/* x' = x + (s1 - s) D, rearranged so that a large s cancels nothing. */
static void step_from_x(double s, double s1, ts_sampler_row *row) {
    row->x_from_x = (float)(s1 / s);
    row->x_from_d = (float)(1 - s1 / s);
}

/* x' = ... + weight * D */
static void add_derivative(double weight, double s, ts_sampler_row *row) {
    row->x_from_x += (float)(weight / s);
    row->x_from_d += (float)(-weight / s);
}

/* Of the noise at s1, how much is left over from s and how much is fresh, so that the variance is right.
 * diffusers subtracts in float32 what is divided here: it loses digits where s is far above s1. */
static void ancestral_parts(double s, double s1, double *ret_down, double *ret_up) {
    *ret_down = s1 * s1 / s;
    *ret_up = s > s1 ? s1 * sqrt((s - s1) * (s + s1)) / s : 0;
}

ts_code ts_plan_euler_a(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                        ts_error *e) {
    /* The class overlooks these keys of a file, and has no EDM. */
    ts_schedule_config own = *c;
    if (!c->asked && c->sigma_data == 0) own.curve = TS_CURVE_NONE;
    own.final_sigmas_type = TS_FINAL_ZERO;
    ts_levels l;
    ts_code rc = ts_euler_levels(&own, alphas, steps, TS_KEEP_FRACTION, &l, e);
    if (rc) return rc;
    plan->init_scale = l.init_scale;
    for (int i = plan->begin; i < l.count; i++) {
        double s = (double)l.sigma[i], down, up;
        ts_sampler_row *row = begin_row(c, s, l.timestep[i], plan);
        ancestral_parts(s, (double)l.sigma[i + 1], &down, &up);
        step_from_x(s, down, row);
        row->x_from_noise = (float)up;
    }
    ts_levels_free(&l);
    return TS_OK;
}

static ts_code levels_to_zero(const ts_schedule_config *c, const float *alphas, int steps,
                              ts_rounding rounding, ts_levels *ret, ts_error *e) {
    ts_schedule_config own = *c;
    own.final_sigmas_type = TS_FINAL_ZERO;
    return ts_euler_levels(&own, alphas, steps, rounding, ret, e);
}

ts_code ts_plan_heun(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e) {
    ts_levels l;
    ts_code rc = levels_to_zero(c, alphas, steps, TS_KEEP_FRACTION, &l, e);
    if (rc) return rc;
    plan->init_scale = l.init_scale;
    for (int i = plan->begin; i < l.count; i++) {
        double s = (double)l.sigma[i], s1 = (double)l.sigma[i + 1];
        ts_sampler_row *row = begin_row(c, s, l.timestep[i], plan);
        row->clip = (float)c->clip_sample_range;
        step_from_x(s, s1, row);
        if (i == l.count - 1) break;
        row->save_x = row->push = true;
        row->push_from_x = (float)(1 / s);
        row->push_from_d = (float)(-1 / s);

        row = begin_row(c, s1, l.timestep[i + 1], plan);
        row->clip = (float)c->clip_sample_range;
        row->x_from_saved = 1;
        row->x_from_hist[0] = (float)(0.5 * (s1 - s));
        add_derivative(0.5 * (s1 - s), s1, row);
    }
    ts_levels_free(&l);
    return TS_OK;
}

/* Two evaluations a step: at s, and at the middle (in log sigma) of s and where the step goes. */
static ts_code dpm2(const ts_schedule_config *c, const float *alphas, int steps, bool ancestral,
                    ts_sampler_plan *plan, ts_error *e) {
    ts_levels l;
    ts_code rc = levels_to_zero(c, alphas, steps, TS_ROUND, &l, e);
    if (rc) return rc;
    plan->init_scale = l.init_scale;
    for (int i = plan->begin; i < l.count; i++) {
        double s = (double)l.sigma[i], to = (double)l.sigma[i + 1], up = 0;
        if (ancestral) ancestral_parts(s, (double)l.sigma[i + 1], &to, &up);
        ts_sampler_row *row = begin_row(c, s, l.timestep[i], plan);
        if (i == l.count - 1) {
            step_from_x(s, 0, row);
            break;
        }
        double middle = sqrt(s * to);
        row->save_x = true;
        step_from_x(s, middle, row);

        row = begin_row(c, middle, ts_timestep_of_sigma(c, l.table, middle), plan);
        row->x_from_saved = 1;
        add_derivative(to - s, middle, row);
        row->x_from_noise = (float)up;
    }
    ts_levels_free(&l);
    return TS_OK;
}

ts_code ts_plan_dpm2(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e) {
    return dpm2(c, alphas, steps, false, plan, e);
}

ts_code ts_plan_dpm2_a(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                       ts_error *e) {
    return dpm2(c, alphas, steps, true, plan, e);
}

/* The Lagrange polynomial through sigma[at], sigma[at - 1], ... that is 1 at the k-th, integrated over the
 * step. Two Gauss points are exact for a cubic, which is the most there is. */
static double lms_weight(const float *sigma, int at, int order, int k) {
    double from = (double)sigma[at], to = (double)sigma[at + 1], sum = 0;
    for (int side = -1; side <= 1; side += 2) {
        double tau = 0.5 * (from + to) + side * 0.5 * (to - from) / sqrt(3), product = 1;
        for (int j = 0; j < order; j++)
            if (j != k)
                product *= (tau - (double)sigma[at - j]) / ((double)sigma[at - k] - (double)sigma[at - j]);
        sum += product;
    }
    return 0.5 * (to - from) * sum;
}

ts_code ts_plan_lms(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                    ts_error *e) {
    ts_levels l;
    ts_schedule_config own = *c;
    if (c->curve == TS_CURVE_KARRAS && c->sigma_data == 0)
        own.sigma_min = own.sigma_max = 0; /* its class overlooks them there */
    ts_code rc = levels_to_zero(&own, alphas, steps, TS_KEEP_FRACTION, &l, e);
    if (rc) return rc;
    plan->init_scale = l.init_scale;
    for (int i = plan->begin; i < l.count; i++) {
        const int most = TS_SAMPLER_HISTORY + 1, known = i - plan->begin + 1;
        const int order = known < most ? known : most;
        double s = (double)l.sigma[i];
        ts_sampler_row *row = begin_row(c, s, l.timestep[i], plan);
        row->x_from_x = 1;
        add_derivative(lms_weight(l.sigma, i, order, 0), s, row);
        for (int k = 1; k < order; k++) row->x_from_hist[k - 1] = (float)lms_weight(l.sigma, i, order, k);
        row->push = true;
        row->push_from_x = (float)(1 / s);
        row->push_from_d = (float)(-1 / s);
    }
    ts_levels_free(&l);
    return TS_OK;
}

/* ---- heavy-ball momentum: x' = x + (s' - s) (weights of D and what came before) ---- */

/* Weights of the last n derivatives, newest first, for a step of Adams and Bashforth: the series 1 + D/2 + 5
 * D^2/12 + 3 D^3/8 in backward differences D, cut off at D^(n-1). For derivatives that were smoothed by v =
 * (1 - b) v' + b f, the series is first multiplied by what undoes that, 1 + (1 - b)/b D. (arXiv 2307.11118,
 * section 4.2.) */
static void momentum_weights(int n, double b, double ret[TS_SAMPLER_HISTORY + 1]) {
    static const double bashforth[] = {1, 1. / 2, 5. / 12, 3. / 8};
    double power[TS_SAMPLER_HISTORY + 1] = {1}; /* of D, in steps back */
    for (int i = 0; i < n; i++) ret[i] = 0;
    for (int k = 0; k < n; k++) {
        const double weight = bashforth[k] + (k ? (1 - b) / b * bashforth[k - 1] : 0);
        for (int i = 0; i <= k; i++) ret[i] += weight * power[i];
        for (int i = k + 1; i > 0 && k + 1 < n; i--) power[i] -= power[i - 1];
    }
}

static ts_code momentum(const ts_schedule_config *c, const float *alphas, int steps, bool smooth_first,
                        ts_sampler_plan *plan, ts_error *e) {
    ts_levels l;
    ts_code rc = levels_to_zero(c, alphas, steps, TS_KEEP_FRACTION, &l, e);
    if (rc) return rc;
    plan->init_scale = l.init_scale;
    const double b = c->momentum;
    for (int i = plan->begin; i < l.count; i++) {
        const int known = i - plan->begin, order = known < c->solver_order ? known + 1 : c->solver_order;
        const double s = (double)l.sigma[i], way = (double)l.sigma[i + 1] - s;
        double w[TS_SAMPLER_HISTORY + 1], from_d, keep = 0;
        momentum_weights(order, smooth_first ? b : 1, w);
        ts_sampler_row *row = begin_row(c, s, l.timestep[i], plan);
        row->push = true;
        if (smooth_first) { /* h: smoothed derivatives */
            const double fresh = known ? b : 1;
            from_d = w[0] * fresh;
            for (int k = 1; k < order; k++) row->x_from_hist[k - 1] = (float)(way * w[k]);
            row->x_from_hist[0] = (float)(way * (w[0] * (1 - fresh) + (order > 1 ? w[1] : 0)));
            row->push_from_x = (float)(fresh / s);
            row->push_from_d = (float)(-fresh / s);
            row->push_from_hist = (float)(1 - fresh);
        } else { /* h: derivatives; what was smoothed last is the way that x has come since */
            const double share = known ? b : 1;
            from_d = w[0] * share;
            for (int k = 1; k < order; k++) row->x_from_hist[k - 1] = (float)(way * w[k] * share);
            if (known) keep = (1 - share) * way / (s - (double)l.sigma[i - 1]);
            row->x_from_saved = (float)-keep;
            row->save_x = b < 1;
            row->push_from_x = (float)(1 / s);
            row->push_from_d = (float)(-1 / s);
        }
        row->x_from_x = (float)(1 + keep + way * from_d / s);
        row->x_from_d = (float)(-way * from_d / s);
    }
    ts_levels_free(&l);
    return TS_OK;
}

ts_code ts_plan_hb(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                   ts_error *e) {
    return momentum(c, alphas, steps, false, plan, e);
}

ts_code ts_plan_ghvb(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e) {
    return momentum(c, alphas, steps, true, plan, e);
}

static double shifted(const ts_schedule_config *c, double sigma) {
    return c->flow_shift * sigma / (1 + (c->flow_shift - 1) * sigma);
}

/* Level i of steps, every one shifted; by the file they are even between ends of which the lower one is
 * shifted already. sgm_uniform: 1, 1 - 1/steps, ... (what diffusers' pipelines ask for). */
static double shifted_level(const ts_schedule_config *c, int steps, int i) {
    if (c->asked == TS_SCHEDULER_SIGMAS) return shifted(c, (double)c->list->at[i]);
    if (c->asked == TS_SCHEDULER_SGM_UNIFORM) return shifted(c, 1 - (double)i / steps);
    const double low = shifted(c, 1.0 / c->num_train_timesteps);
    return shifted(c, 1 + ts_linspace_at(1, steps, i) * (low - 1));
}

/* The last one is moved to shift_terminal, the others in proportion to their distance from 1. */
static double stretched_level(const ts_schedule_config *c, int steps, int i) {
    const double sigma = shifted_level(c, steps, i);
    if (c->flow_terminal == 0) return sigma;
    return 1 - (1 - sigma) * (1 - c->flow_terminal) / (1 - shifted_level(c, steps, steps - 1));
}

static double flow_level(const ts_schedule_config *c, int steps, int i) {
    const bool listed = c->asked == TS_SCHEDULER_SIGMAS || c->asked == TS_SCHEDULER_SGM_UNIFORM;
    if (listed || !c->curve) return stretched_level(c, steps, i);
    const double high = c->sigma_max > 0 ? c->sigma_max : stretched_level(c, steps, 0);
    const double low = c->sigma_min > 0 ? c->sigma_min : stretched_level(c, steps, steps - 1);
    return ts_curve_sigma(c->curve, high, low, steps, i);
}

/* A flow model's output is d x / d sigma, x = (1 - sigma) x0 + sigma * noise. The levels are diffusers'. */
ts_code ts_plan_flow_euler(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                           ts_error *e) {
    (void)alphas;
    if (c->asked == TS_SCHEDULER_ALIGN_YOUR_STEPS)
        return ts_fail_param(e, TS_EUNSUPPORTED, "scheduler",
                             "%s has no levels for models that predict a flow", ts_scheduler_label(c->asked));
    plan->init_scale = 1;
    plan->rows = steps - plan->begin;
    double sigma = 0;
    for (int i = steps - 1; i >= plan->begin; i--) {
        const double next = sigma;
        sigma = (double)(float)flow_level(c, steps, i);
        ts_sampler_row *row = &plan->row[i - plan->begin];
        row->timestep = (double)(float)(sigma * c->num_train_timesteps);
        row->signal = (float)(1 - sigma);
        row->noise = (float)sigma;
        row->c_in = 1;
        row->d_from_x = 1;
        row->d_from_out = (float)-sigma;
        row->x_from_x = 1;
        row->x_from_out = (float)(next - sigma);
    }
    return TS_OK;
}
