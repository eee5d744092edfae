/* The plans of samplers that count in training timesteps, x = sqrt(a) x0 + sqrt(1 - a) * noise. */
#include <math.h>
#include "engine/sampler_rows.h"

/* The posterior of the training's Markov chain: mean, and fresh noise where there is another timestep below.
 */
ts_code ts_plan_ddpm(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e) {
    int n = c->num_train_timesteps;
    plan->init_scale = 1;
    for (int i = plan->begin; i < steps; i++) {
        double t = ts_timestep_at(c, steps, i), t1 = i + 1 < steps ? ts_timestep_at(c, steps, i + 1) : -1;
        if (!(t >= 0 && t <= n - 1 && t1 <= n - 1)) return ts_bad_steps(e, steps);
        double a = (double)alphas[(int)t], a1 = t1 >= 0 ? (double)alphas[(int)t1] : 1;
        double beta = 1 - a / a1;

        ts_sampler_row *row = &plan->row[plan->rows++];
        row->timestep = t;
        row->clip = (float)c->clip_sample_range;
        ts_predict_x0(c, sqrt(a), sqrt(1 - a), row);
        row->x_from_d = (float)(sqrt(a1) * beta / (1 - a));
        row->x_from_x = (float)(sqrt(a / a1) * (1 - a1) / (1 - a));
        double variance = c->large_variance ? beta : fmax((1 - a1) / (1 - a) * beta, 1e-20);
        if (t > 0) row->x_from_noise = (float)sqrt(variance);
    }
    return TS_OK;
}

/* How many of the timesteps that a consistency model was distilled with are gone through. */
static int distilled_steps(const ts_schedule_config *c) {
    const int origin = c->original_inference_steps;
    return c->origin_share > 0 ? (int)(origin * c->origin_share) : origin;
}

/* Timesteps of a consistency model: the list that was asked for, or every so many of those. -1: there are
 * fewer. */
static int distilled_timestep(const ts_schedule_config *c, int steps, int i) {
    const int origin = c->original_inference_steps, from = distilled_steps(c);
    if (c->asked == TS_SCHEDULER_TIMESTEPS) return (int)ts_timestep_at(c, steps, i);
    if (origin > c->num_train_timesteps || steps > from) return -1;
    int at = (int)floor(i * ((double)from / steps));
    return (from - at) * (c->num_train_timesteps / origin) - 1;
}

static ts_code too_many(const ts_schedule_config *c, ts_error *e) {
    return ts_fail_param(e, TS_EINVAL, "steps", "the model was distilled for at most %d steps%s",
                         distilled_steps(c), c->origin_share > 0 ? " of this strength" : "");
}

ts_code ts_plan_lcm(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                    ts_error *e) {
    const double data = 0.5; /* sigma_data */
    plan->init_scale = 1;
    for (int i = plan->begin; i < steps; i++) {
        int t = distilled_timestep(c, steps, i);
        if (t < 0) return too_many(c, e);
        double a = (double)alphas[t], a1 = 1, scaled = t * c->timestep_scaling;
        double skip = data * data / (scaled * scaled + data * data);
        double out = scaled / sqrt(scaled * scaled + data * data);

        ts_sampler_row *row = &plan->row[plan->rows++];
        row->timestep = t;
        row->clip = (float)c->clip_sample_range;
        ts_predict_x0(c, sqrt(a), sqrt(1 - a), row);
        if (i + 1 < steps) {
            a1 = (double)alphas[distilled_timestep(c, steps, i + 1)];
            row->x_from_noise = (float)sqrt(1 - a1);
        }
        row->x_from_d = (float)(sqrt(a1) * out);
        row->x_from_x = (float)(sqrt(a1) * skip);
    }
    return TS_OK;
}

ts_code ts_plan_tcd(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                    ts_error *e) {
    const float keep = (float)(1 - c->eta);
    plan->init_scale = 1;
    for (int i = plan->begin; i < steps; i++) {
        int t = distilled_timestep(c, steps, i), t1 = i + 1 < steps ? distilled_timestep(c, steps, i + 1) : 0;
        if (t < 0 || t1 < 0) return too_many(c, e);
        double a = (double)alphas[t], a1 = (double)alphas[t1],
               as = (double)alphas[(int)floorf(keep * (float)t1)];
        double signal = sqrt(a), noise = sqrt(1 - a), scale = i + 1 < steps ? sqrt(a1 / as) : 1;

        ts_sampler_row *row = &plan->row[plan->rows++];
        row->timestep = t;
        ts_predict_x0(c, signal, noise, row);
        row->x_from_d = (float)(scale * sqrt(as));
        ts_add_noise_prediction(c->prediction_type, signal, noise, scale * sqrt(1 - as), row);
        if (i + 1 < steps) row->x_from_noise = (float)sqrt(1 - a1 / as);
    }
    return TS_OK;
}

/* PNDM eq. 11 from a to a1: x' = *from_x x + *from_out (model's output). */
static void transfer(ts_prediction prediction, double a, double a1, double *from_x, double *from_out) {
    double x = sqrt(a1 / a), out = -(a1 - a) / (a * sqrt(1 - a1) + sqrt(a * (1 - a) * a1));
    if (prediction == TS_PREDICT_V) {
        x += out * sqrt(1 - a);
        out *= sqrt(a);
    }
    *from_x = x;
    *from_out = out;
}

/* Linear multistep in the model's outputs, begun with an improved Euler step: the second row evaluates where
 * the first one arrived, at the same timestep as the third, and goes there again from where the first one
 * began. Begun later, the class counts its rows anew in the same list of timesteps: from the third row
 * on x is a timestep noisier than what the model is told. That is kept. */
ts_code ts_plan_pndm(const ts_schedule_config *c, const float *alphas, int steps, ts_sampler_plan *plan,
                     ts_error *e) {
    static const double adams[4][4] = {
        {1}, {1.5, -0.5}, {23. / 12, -16. / 12, 5. / 12}, {55. / 24, -59. / 24, 37. / 24, -9. / 24}};
    if (c->prediction_type != TS_PREDICT_EPSILON && c->prediction_type != TS_PREDICT_V)
        return ts_fail_param(e, TS_EUNSUPPORTED, "sampler", "PLMS needs a model that predicts epsilon or v");
    int n = c->num_train_timesteps, stride = n / steps;
    plan->init_scale = 1;
    const int rows = (steps > 1 ? steps + 1 : 1) - plan->begin;
    for (int i = 0; i < rows; i++) {
        const int listed = plan->begin + i; /* of the class's timesteps, where the second one comes twice */
        double t = ts_timestep_at(c, steps, listed > 1 ? listed - 1 : listed);
        if (!(t >= 0 && t <= n - 1)) return ts_bad_steps(e, steps);
        int at = (int)t, to = at - stride;
        if (i == 1) to = at, at += stride;
        if (at > n - 1) return ts_bad_steps(e, steps);
        double a1 = to >= 0 ? (double)alphas[to] : c->set_alpha_to_one ? 1 : (double)alphas[0];
        double a = (double)alphas[at], from_x, from_out;
        if (a <= 0)
            return ts_fail_param(e, TS_EUNSUPPORTED, "sampler",
                                 "PLMS cannot begin from pure noise (rescale_betas_zero_snr)");
        transfer(c->prediction_type, a, a1, &from_x, &from_out);

        ts_sampler_row *row = &plan->row[plan->rows++];
        row->timestep = t;
        row->signal = (float)sqrt((double)alphas[(int)t]);
        row->noise = (float)sqrt(1 - (double)alphas[(int)t]);
        row->c_in = 1;
        row->d_from_out = 1;
        row->push_from_d = 1;
        row->push = i != 1;
        row->save_x = i == 0 && rows > 1;
        if (i == 1) {
            row->x_from_saved = (float)from_x;
            row->x_from_d = row->x_from_hist[0] = (float)(0.5 * from_out);
            continue;
        }
        int known = i == 0 ? 1 : i < 5 ? i : 4;
        row->x_from_x = (float)from_x;
        row->x_from_d = (float)(adams[known - 1][0] * from_out);
        for (int k = 1; k < known; k++) row->x_from_hist[k - 1] = (float)(adams[known - 1][k] * from_out);
    }
    return TS_OK;
}
