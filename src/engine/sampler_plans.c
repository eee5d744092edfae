/* The plans of DDIM, with and without time shift, Euler and the DPM-Solver++ multistep family. */
#include <math.h>
#include "engine/sampler_rows.h"

/* DDIM from training timestep `at` to `to`, or to the end where that is negative: x' = sqrt(a') x0 +
 * sqrt(1 - a' - s^2) eps + s noise. eps is never clipped, so it is taken from the output and not from d. */
static void ddim_row(const ts_schedule_config *c, const float *alphas, int at, int to, ts_sampler_row *row) {
    double a = (double)alphas[at];
    double a1 = to >= 0 ? (double)alphas[to] : c->set_alpha_to_one ? 1 : (double)alphas[0];
    double signal = sqrt(a), noise = sqrt(1 - a);
    row->timestep = at;
    row->clip = (float)c->clip_sample_range;
    ts_predict_x0(c, signal, noise, row);
    row->x_from_d = (float)sqrt(a1);
    const double fresh = c->eta * sqrt(fmax((1 - a1) / (1 - a) * (1 - a / a1), 0));
    ts_add_noise_prediction(c->prediction_type, signal, noise, sqrt(fmax(1 - a1 - fresh * fresh, 0)), row);
    row->x_from_noise = (float)fresh;
}

/* The two timesteps of step i. TS_EINVAL where there is none. */
static ts_code ddim_timesteps(const ts_schedule_config *c, int steps, int i, int *at, int *to, ts_error *e) {
    double t = ts_timestep_at(c, steps, i);
    if (!(t >= 0 && t <= c->num_train_timesteps - 1)) return ts_bad_steps(e, steps);
    *at = (int)t;
    *to = *at - c->num_train_timesteps / steps;
    if (c->asked == TS_SCHEDULER_TIMESTEPS) *to = i + 1 < steps ? (int)ts_timestep_at(c, steps, i + 1) : -1;
    return TS_OK;
}

ts_code ts_plan_ddim(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e) {
    plan->init_scale = 1;
    for (int i = plan->begin; i < steps; i++) {
        int at = 0, to = 0;
        ts_code rc = ddim_timesteps(c, steps, i, &at, &to, e);
        if (rc) return rc;
        ddim_row(c, alphas, at, to, &plan->row[plan->rows++]);
    }
    return TS_OK;
}

/* Below this timestep nothing is shifted. */
#define SHIFT_CUTOFF 300

ts_code ts_plan_time_shift(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                           ts_error *e) {
    const int reach = (int)ts_shift_reach(c, steps), last = c->num_train_timesteps - 1;
    int others = 0;
    plan->init_scale = 1;
    for (int i = plan->begin; i < steps; i++) {
        int at = 0, to = 0;
        ts_code rc = ddim_timesteps(c, steps, i, &at, &to, e);
        if (rc) return rc;
        ts_sampler_row *row = &plan->row[plan->rows++];
        ddim_row(c, alphas, at, to, row);
        /* What the sampler begins with is exactly as noisy as it should be. */
        if (i == plan->begin || at <= SHIFT_CUTOFF) continue;
        row->first = others;
        for (int t = at > reach ? at - reach : 0; t <= at + reach && t <= last; t++) {
            if (t <= to) continue; /* in a list of timesteps that lie close */
            row->count++;
            ts_sampler_row *other = &plan->other[others++];
            ddim_row(c, alphas, t, to, other);
            other->variance = 1 - (double)alphas[t];
        }
    }
    return TS_OK;
}

/* Euler in Karras' variables, x = x0 + sigma * noise: x' = x + (s' - s) (x - x0) / s, rearranged so that a
 * large s cancels nothing. */
ts_code ts_plan_euler(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                      ts_error *e) {
    ts_levels l;
    ts_code rc = ts_euler_levels(c, alphas, steps, TS_KEEP_FRACTION, &l, e);
    if (rc) return rc;
    plan->init_scale = l.init_scale;
    for (int i = plan->begin; i < l.count; i++) {
        double s = (double)l.sigma[i], s1 = (double)l.sigma[i + 1];
        ts_sampler_row *row = &plan->row[plan->rows++];
        row->timestep = l.timestep[i];
        ts_predict_x0(c, 1, s, row);
        row->x_from_x = (float)(s1 / s);
        row->x_from_d = (float)(1 - s1 / s);
    }
    ts_levels_free(&l);
    return TS_OK;
}

/* ---- DPM-Solver++ ---- */

/* The SDE of the third order is k-diffusion's sample_dpmpp_3m_sde: its steps of the second order are of the
 * other form, the last ones of no lower order, and the weight of D2 vanishes as the steps get shorter, where
 * diffusers' has another sign in it and goes to 1. All else is diffusers'. */
typedef struct dpm_solver {
    int order;
    bool sde;
    bool heun; /* how a step of the second order takes the difference of two predictions */
    bool few;  /* so few steps that the last ones are of a lower order */
} dpm_solver;

/* known: predictions, that of row i included. */
static int order_of_row(const ts_schedule_config *c, const ts_levels *l, dpm_solver s, int i, int known) {
    bool last = i == l->count - 1;
    /* Karras' levels may end with the same one twice. */
    if (s.order == 1 || known == 1 || l->sigma[i + 1] == l->sigma[i] ||
        (last && (c->euler_at_final || s.few || c->final_sigmas_type == TS_FINAL_ZERO)))
        return 1;
    return s.order == 2 || known == 2 || (s.few && i == l->count - 2) ? 2 : 3;
}

/* Row i, with q = e^-h (e^-2h for the SDE), D0 the newest prediction, D1 and D2 its scaled differences:
 * x' = (sigma'/sigma) (q/e^-h) x + alpha' ((1 - q) D0 + ... D1 + ... D2) + noise. */
static void dpm_row(const ts_schedule_config *c, const ts_levels *l, dpm_solver solver, int i,
                    ts_sampler_plan *plan) {
    ts_sampler_row *row = &plan->row[plan->rows++];
    double s = (double)l->sigma[i], s1 = (double)l->sigma[i + 1]; /* noise over signal; lambda = -log s */
    double alpha = 1 / sqrt(s * s + 1), alpha1 = 1 / sqrt(s1 * s1 + 1);
    double q = solver.sde ? (s1 / s) * (s1 / s) : s1 / s;
    row->timestep = l->timestep[i];
    ts_predict_x0(c, alpha, s * alpha, row);
    row->x_from_x = (float)(s1 * alpha1 / (s * alpha) * (solver.sde ? s1 / s : 1));
    if (solver.sde) row->x_from_noise = (float)(s1 * alpha1 * sqrt(1 - q));
    double d0 = alpha1 * (1 - q), from_d = d0;

    const int order = order_of_row(c, l, solver, i, plan->rows);
    if (order > 1) {
        double h = log(s / s1), r0 = log((double)l->sigma[i - 1] / s) / h, hh = solver.sde ? 2 * h : h;
        double d1 = order == 2 && !solver.heun ? 0.5 * d0 : alpha1 * ((q - 1) / hh + 1);
        if (order == 2) {
            from_d += d1 / r0;
            row->x_from_hist[0] = (float)(-d1 / r0);
        } else {
            double r1 = log((double)l->sigma[i - 2] / (double)l->sigma[i - 1]) / h;
            double d2 = -alpha1 * ((q - 1 + hh) / (hh * hh) - 0.5);
            /* D1 = a + r0/(r0+r1) (a - b), D2 = (a - b)/(r0+r1), a = (m0 - m1)/r0, b = (m1 - m2)/r1 */
            double b = -(d1 * r0 + d2) / (r0 + r1), a = d1 - b;
            from_d += a / r0;
            row->x_from_hist[0] = (float)(b / r1 - a / r0);
            row->x_from_hist[1] = (float)(-b / r1);
        }
    }
    row->x_from_d = (float)from_d;
    row->push_from_d = 1;
    row->push = solver.order > 1;
}

static ts_code dpm_plan(const ts_schedule_config *c, const float *alphas, int steps, dpm_solver solver,
                        ts_sampler_plan *plan, ts_error *e) {
    ts_levels l;
    ts_code rc = ts_multistep_levels(c, alphas, steps, TS_KEEP_FRACTION, &l, e);
    if (rc) return rc;
    const bool third = solver.sde && solver.order == 3;
    solver.heun = third || c->solver_type == TS_SOLVER_HEUN;
    solver.few = !third && c->lower_order_final && l.count < 15;
    plan->init_scale = l.init_scale;
    for (int i = plan->begin; i < l.count; i++) dpm_row(c, &l, solver, i, plan);
    ts_levels_free(&l);
    return TS_OK;
}

ts_code ts_plan_dpmpp_2m(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                         ts_error *e) {
    return dpm_plan(c, alphas, steps, (dpm_solver){.order = c->solver_order}, plan, e);
}

ts_code ts_plan_dpmpp_2m_sde(const ts_schedule_config *c, const float *alphas, int steps,
                             ts_sampler_plan *plan, ts_error *e) {
    return dpm_plan(c, alphas, steps, (dpm_solver){.order = c->solver_order, .sde = true}, plan, e);
}

ts_code ts_plan_dpmpp_3m_sde(const ts_schedule_config *c, const float *alphas, int steps,
                             ts_sampler_plan *plan, ts_error *e) {
    return dpm_plan(c, alphas, steps, (dpm_solver){.order = 3, .sde = true}, plan, e);
}
