/* The plans of DPM-Solver++ 2S, DEIS and UniPC: exponential integrators at unit variance, x = alpha x0 +
 * sigma noise with alpha^2 + sigma^2 = 1. Levels are sigma / alpha, so lambda = -log of a level. */
#include <math.h>
#include "engine/sampler_rows.h"

static double alpha_of(double level) {
    return 1 / sqrt(level * level + 1);
}

static ts_sampler_row *begin_row(const ts_schedule_config *c, const ts_levels *l, int i,
                                 ts_sampler_plan *plan) {
    double s = (double)l->sigma[i], alpha = alpha_of(s);
    ts_sampler_row *row = &plan->row[plan->rows++];
    row->timestep = l->timestep[i];
    ts_predict_x0(c, alpha, s * alpha, row);
    return row;
}

/* ---- DPM-Solver++ 2S, as DPMSolverSinglestepScheduler: every other timestep is the first half of a step
 * ---- */

static ts_code singlestep_config(const ts_schedule_config *c, ts_schedule_config *ret, ts_error *e) {
    if (c->solver_order > 2)
        return ts_fail_param(e, TS_EUNSUPPORTED, "solver_order", "solver_order: DPM++ 2S has 1 and 2");
    *ret = *c;
    ret->timestep_spacing = TS_SPACING_LINSPACE; /* the class knows no other */
    return TS_OK;
}

static void second_half(const ts_schedule_config *c, const ts_levels *l, int i, ts_sampler_row *row) {
    double s0 = (double)l->sigma[i - 1], s = (double)l->sigma[i], s1 = (double)l->sigma[i + 1];
    double alpha1 = alpha_of(s1), h = log(s0 / s1), r0 = log(s0 / s) / h, d0 = alpha1 * (1 - s1 / s0);
    double d1 = c->solver_type == TS_SOLVER_MIDPOINT ? 0.5 * d0 : alpha1 * ((s1 / s0 - 1) / h + 1);
    row->x_from_saved = (float)(s1 * alpha1 / (s0 * alpha_of(s0)));
    row->x_from_d = (float)(d1 / r0);
    row->x_from_hist[0] = (float)(d0 - d1 / r0);
}

ts_code ts_plan_dpmpp_2s(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                         ts_error *e) {
    ts_schedule_config own;
    ts_levels l;
    ts_code rc = singlestep_config(c, &own, e);
    if (!rc) rc = ts_multistep_levels(&own, alphas, steps, TS_ROUND, &l, e);
    if (rc) return rc;
    plan->init_scale = l.init_scale;
    /* diffusers turns lower_order_final on for an odd number of steps and where the last sigma is zero. */
    const bool zero = c->final_sigmas_type == TS_FINAL_ZERO;
    const bool lower = c->lower_order_final || steps % 2 || zero;
    for (int i = plan->begin; i < l.count; i++) {
        ts_sampler_row *row = begin_row(c, &l, i, plan);
        bool second =
            own.solver_order == 2 && i % 2 == 1 && i > plan->begin && !(i == steps - 1 && (lower || zero));
        if (second) {
            second_half(c, &l, i, row);
            continue;
        }
        double s = (double)l.sigma[i], s1 = (double)l.sigma[i + 1];
        row->x_from_x = (float)(s1 * alpha_of(s1) / (s * alpha_of(s)));
        row->x_from_d = (float)(alpha_of(s1) * (1 - s1 / s));
        row->push_from_d = 1;
        row->push = row->save_x = own.solver_order == 2 && i + 1 < l.count;
    }
    ts_levels_free(&l);
    return TS_OK;
}

/* ---- DEIS: the noise prediction extrapolated by a polynomial in log rho, rho = sigma / alpha ---- */

/* Integral over rho of the Lagrange polynomial in log rho that is 1 at b and 0 at c. */
static double deis_linear(double rho, double b, double c) {
    return rho * (log(rho) - log(c) - 1) / (log(b) - log(c));
}

/* The same with two zeros, c and d. */
static double deis_square(double rho, double b, double c, double d) {
    double t = log(rho), lc = log(c), ld = log(d);
    return rho * (lc * (ld - t + 1) - ld * t + ld + t * t - 2 * t + 2) / ((log(b) - lc) * (log(b) - ld));
}

static void deis_row(const ts_levels *l, int order, int i, ts_sampler_row *row) {
    double s = (double)l->sigma[i], s1 = (double)l->sigma[i + 1], w[3] = {s1 - s};
    if (order == 2) {
        double p = (double)l->sigma[i - 1];
        w[0] = deis_linear(s1, s, p) - deis_linear(s, s, p);
        w[1] = deis_linear(s1, p, s) - deis_linear(s, p, s);
    } else if (order == 3) {
        double p = (double)l->sigma[i - 1], o = (double)l->sigma[i - 2];
        w[0] = deis_square(s1, s, p, o) - deis_square(s, s, p, o);
        w[1] = deis_square(s1, p, o, s) - deis_square(s, p, o, s);
        w[2] = deis_square(s1, o, s, p) - deis_square(s, o, s, p);
    }
    /* x' = alpha' (x / alpha + w eps ...), eps = (x - alpha d) / sigma */
    double alpha = alpha_of(s), alpha1 = alpha_of(s1);
    row->x_from_x = (float)(alpha1 / alpha * (1 + w[0] / s));
    row->x_from_d = (float)(-alpha1 * w[0] / s);
    row->x_from_hist[0] = (float)(alpha1 * w[1]);
    row->x_from_hist[1] = (float)(alpha1 * w[2]);
    row->push = true;
    row->push_from_x = (float)(1 / (s * alpha));
    row->push_from_d = (float)(-1 / s);
}

ts_code ts_plan_deis(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e) {
    ts_schedule_config own = *c;
    own.final_sigmas_type = TS_FINAL_SIGMA_MIN;
    own.lambda_min_clipped = -INFINITY;
    ts_levels l;
    ts_code rc = ts_multistep_levels(&own, alphas, steps, TS_ROUND, &l, e);
    if (rc) return rc;
    if (c->curve) l.sigma[l.count] = l.sigma[l.count - 1];
    /* A list may go as low as the schedule does. */
    if (l.sigma[l.count] > l.sigma[l.count - 1]) l.sigma[l.count] = l.sigma[l.count - 1];
    plan->init_scale = l.init_scale;
    const bool few = c->lower_order_final && l.count < 15;
    for (int i = plan->begin; i < l.count; i++) {
        int left = l.count - i, known = i - plan->begin + 1;
        int order = known < c->solver_order ? known : c->solver_order;
        if (few && left < order) order = left;
        deis_row(&l, order, i, begin_row(c, &l, i, plan));
    }
    ts_levels_free(&l);
    return TS_OK;
}

/* ---- UniPC: a predictor, and when its prediction has been evaluated, a corrector ---- */

#define UNIPC_ORDER 3

typedef struct unipc {
    double scale;            /* alpha' B(h) */
    double phi;              /* e^-h - 1 */
    double r[UNIPC_ORDER];   /* of the older predictions, then 1 */
    double rho[UNIPC_ORDER]; /* their weights, then the corrector's for the new one */
} unipc;

/* Gauss with pivots on up to three rows; the matrix is Vandermonde's and has an inverse. */
static void solve(double m[UNIPC_ORDER][UNIPC_ORDER], double b[UNIPC_ORDER], int n, double *ret) {
    for (int k = 0; k < n; k++) {
        int best = k;
        for (int i = k + 1; i < n; i++)
            if (fabs(m[i][k]) > fabs(m[best][k])) best = i;
        for (int j = 0; j < n; j++) {
            double swap = m[k][j];
            m[k][j] = m[best][j], m[best][j] = swap;
        }
        double swap = b[k];
        b[k] = b[best], b[best] = swap;
        for (int i = k + 1; i < n; i++) {
            double f = m[i][k] / m[k][k];
            for (int j = k; j < n; j++) m[i][j] -= f * m[k][j];
            b[i] -= f * b[k];
        }
    }
    for (int k = n - 1; k >= 0; k--) {
        double sum = b[k];
        for (int j = k + 1; j < n; j++) sum -= m[k][j] * ret[j];
        ret[k] = sum / m[k][k];
    }
}

/* The step from level i to i + 1 with `order` predictions; unknowns: weights of the older ones (predictor),
 * and that of the new one too (corrector). */
static unipc unipc_step(const ts_schedule_config *c, const ts_levels *l, int i, int order, bool corrector) {
    double s = (double)l->sigma[i], s1 = (double)l->sigma[i + 1], hh = -log(s / s1);
    unipc u = {.phi = s1 / s - 1, .rho = {0.5, 0.5, 0}};
    double b_h = c->unipc_bh1 ? hh : u.phi;
    u.scale = alpha_of(s1) * b_h;
    for (int k = 1; k < order; k++) u.r[k - 1] = -log((double)l->sigma[i - k] / s) / -hh;
    u.r[order - 1] = 1;
    int unknowns = corrector ? order : order - 1;
    /* Their closed forms are what the paper has for these; the equations would give something else. */
    if ((corrector && order == 1) || (!corrector && order <= 2)) return u;
    double m[UNIPC_ORDER][UNIPC_ORDER], b[UNIPC_ORDER], phi = u.phi / hh - 1, factorial = 1;
    for (int k = 0; k < unknowns; k++) {
        for (int j = 0; j < unknowns; j++) m[k][j] = pow(u.r[j], k);
        b[k] = phi * factorial / b_h;
        factorial *= k + 2;
        phi = phi / hh - 1 / factorial;
    }
    solve(m, b, unknowns, u.rho);
    return u;
}

/* Row i. The corrector goes the predictor's way again from where that began, so what it changes in x are only
 * the differences of predictions: no sample of before is needed. from: [0] of d, [k] of h[k - 1]. */
static void unipc_row(const ts_schedule_config *c, const ts_levels *l, int i, int before, int order,
                      ts_sampler_row *row) {
    double fix[UNIPC_ORDER + 1] = {0}, from[UNIPC_ORDER + 1] = {0};
    if (before) {
        unipc p = unipc_step(c, l, i - 1, before, false), q = unipc_step(c, l, i - 1, before, true);
        for (int k = 1; k < before; k++) { /* (h[k] - h[0]) / r */
            double w = p.scale * (p.rho[k - 1] - q.rho[k - 1]) / p.r[k - 1];
            fix[k + 1] += w;
            fix[1] -= w;
        }
        fix[0] -= q.scale * q.rho[before - 1];
        fix[1] += q.scale * q.rho[before - 1];
    }
    double s = (double)l->sigma[i], s1 = (double)l->sigma[i + 1];
    double keep = s1 * alpha_of(s1) / (s * alpha_of(s));
    for (int k = 0; k <= UNIPC_ORDER; k++) from[k] = keep * fix[k];
    from[0] += alpha_of(s1) * (1 - s1 / s);
    if (order > 1) {
        unipc p = unipc_step(c, l, i, order, false);
        for (int k = 1; k < order; k++) { /* (h[k - 1] - d) / r */
            double w = -p.scale * p.rho[k - 1] / p.r[k - 1];
            from[k] += w;
            from[0] -= w;
        }
    }
    row->x_from_x = (float)keep;
    row->x_from_d = (float)from[0];
    for (int k = 0; k < UNIPC_ORDER; k++) row->x_from_hist[k] = (float)from[k + 1];
    row->push = true;
    row->push_from_d = 1;
}

ts_code ts_plan_unipc(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                      ts_error *e) {
    ts_schedule_config own = *c;
    own.lambda_min_clipped = -INFINITY;
    ts_levels l;
    ts_code rc = ts_multistep_levels(&own, alphas, steps, TS_ROUND, &l, e);
    if (rc) return rc;
    if (c->final_sigmas_type == TS_FINAL_SIGMA_MIN && c->curve) l.sigma[l.count] = l.sigma[l.count - 1];
    plan->init_scale = l.init_scale;
    int before = 0;
    for (int i = plan->begin; i < l.count; i++) {
        int order = c->lower_order_final && l.count - i < c->solver_order ? l.count - i : c->solver_order;
        if (order > i - plan->begin + 1) order = i - plan->begin + 1;
        unipc_row(c, &l, i, before, order, begin_row(c, &l, i, plan));
        before = order;
    }
    ts_levels_free(&l);
    return TS_OK;
}
