#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/alloc.h"
#include "engine/sampler_rows.h"

static const ts_sampler samplers[] = {
    {.name = "ddim",
     .by_spacing = true,
     .by_timesteps = true,
     .by_eta = true,
     .label = "DDIM",
     .aliases = {"DDIMScheduler"},
     .order = 1,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LEADING,
     .plan = ts_plan_ddim},
    {.name = "ddpm",
     .by_spacing = true,
     .by_timesteps = true,
     .label = "DDPM",
     .aliases = {"DDPMScheduler"},
     .order = 1,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LEADING,
     .plan = ts_plan_ddpm},
    {.name = "euler",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "Euler",
     .aliases = {"k_euler", "EulerDiscreteScheduler"},
     .order = 1,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_euler},
    {.name = "euler_a",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "Euler a",
     .aliases = {"euler_ancestral", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"},
     .order = 1,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_euler_a},
    {.name = "heun",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "Heun",
     .aliases = {"k_heun", "HeunDiscreteScheduler"},
     .order = 2,
     .evaluations = 2,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_heun},
    {.name = "lms",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "LMS",
     .aliases = {"k_lms", "LMSDiscreteScheduler"},
     .order = 4,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_lms},
    {.name = "dpm2",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "DPM2",
     .aliases = {"k_dpm_2", "dpm_2", "KDPM2DiscreteScheduler"},
     .order = 2,
     .evaluations = 2,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_dpm2},
    {.name = "dpm2_a",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "DPM2 a",
     .aliases = {"dpm2_ancestral", "k_dpm_2_a", "k_dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"},
     .order = 2,
     .evaluations = 2,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_dpm2_a},
    {.name = "dpmpp_2m",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "DPM++ 2M",
     .aliases = {"k_dpmpp_2m", "dpm++2m", "dpmsolver++", "DPMSolverMultistepScheduler"},
     .order = 2,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .has_lu = true,
     .plan = ts_plan_dpmpp_2m},
    {.name = "dpmpp_2m_sde",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "DPM++ 2M SDE",
     .aliases = {"k_dpmpp_2m_sde", "dpm++2m_sde", "sde-dpmsolver++"},
     .order = 2,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .has_lu = true,
     .plan = ts_plan_dpmpp_2m_sde},
    {.name = "dpmpp_3m_sde",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "DPM++ 3M SDE",
     .aliases = {"k_dpmpp_3m_sde", "dpm++3m_sde"},
     .order = 3,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .has_lu = true,
     .plan = ts_plan_dpmpp_3m_sde},
    {.name = "dpmpp_2s",
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "DPM++ 2S",
     .aliases = {"dpmpp_2s_singlestep", "dpm++2s", "DPMSolverSinglestepScheduler"},
     .order = 2,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_dpmpp_2s},
    {.name = "pndm",
     .by_spacing = true,
     .label = "PLMS",
     .aliases = {"PNDMScheduler"},
     .order = 4,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LEADING,
     .plan = ts_plan_pndm},
    {.name = "deis",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "DEIS",
     .aliases = {"DEISMultistepScheduler"},
     .order = 2,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_deis},
    {.name = "unipc",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "UniPC",
     .aliases = {"uni_pc", "uni_pc_bh2", "UniPCMultistepScheduler"},
     .order = 2,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_unipc},
    {.name = "lcm",
     .by_timesteps = true,
     .label = "LCM",
     .aliases = {"LCMScheduler"},
     .order = 1,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LEADING,
     .plan = ts_plan_lcm},
    {.name = "tcd",
     .by_timesteps = true,
     .by_eta = true,
     .eta = 0.3,
     .label = "TCD",
     .aliases = {"TCDScheduler"},
     .order = 1,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LEADING,
     .plan = ts_plan_tcd},
    {.name = "hb",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "HB",
     .aliases = {"plms_hb", "heavy_ball"},
     .order = 2,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_hb},
    {.name = "ghvb",
     .by_spacing = true,
     .by_sigmas = true,
     .by_timesteps = true,
     .label = "GHVB",
     .order = 2,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .plan = ts_plan_ghvb},
    {.name = "time_shift",
     .by_spacing = true,
     .by_timesteps = true,
     .label = "TS-DDIM",
     .aliases = {"ts_ddim"},
     .order = 1,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LEADING,
     .shifts = true,
     .plan = ts_plan_time_shift},
    {.name = "flow_euler",
     .label = "Flow Euler",
     .aliases = {"FlowMatchEulerDiscreteScheduler"},
     .order = 1,
     .evaluations = 1,
     .default_spacing = TS_SPACING_LINSPACE,
     .by_sigmas = true,
     .plan = ts_plan_flow_euler},
};

int ts_sampler_count(void) {
    return (int)(sizeof samplers / sizeof samplers[0]);
}

const ts_sampler *ts_sampler_at(int i) {
    ts_assert(i >= 0 && i < ts_sampler_count());
    return &samplers[i];
}

const ts_sampler *ts_sampler_find(const char *name) {
    for (int i = 0; i < ts_sampler_count(); i++) {
        const ts_sampler *s = &samplers[i];
        if (strcasecmp(s->name, name) == 0 || strcasecmp(s->label, name) == 0) return s;
        for (int k = 0; s->aliases[k]; k++)
            if (strcasecmp(s->aliases[k], name) == 0) return s;
    }
    return NULL;
}

ts_code ts_sampler_takes(const ts_sampler *s, ts_scheduler scheduler, ts_error *e) {
    const bool takes[] = {[TS_PLACE_BY_FILE] = true,
                          [TS_PLACE_BY_SPACING] = s->by_spacing,
                          [TS_PLACE_BY_SIGMAS] = s->by_sigmas,
                          [TS_PLACE_BY_TIMESTEPS] = s->by_timesteps};
    if (takes[ts_scheduler_places(scheduler)]) return TS_OK;
    const char *name = ts_scheduler_name(scheduler);
    if (scheduler >= TS_SCHEDULER_NAMED)
        return ts_fail_param(e, TS_EUNSUPPORTED, name, "%s takes no list of %s", s->label, name);
    return ts_fail_param(e, TS_EUNSUPPORTED, "scheduler", "%s has no scheduler %s", s->label, name);
}

/* EDM's levels are given or on a curve: there are none at training timesteps. */
static ts_code check_edm(const ts_sampler *s, const ts_schedule_config *c, ts_error *e) {
    if (!s->by_sigmas)
        return ts_fail_param(e, TS_EUNSUPPORTED, "sampler",
                             "%s is not for a model that has EDM's noise levels", s->label);
    if (c->curve || c->asked == TS_SCHEDULER_SIGMAS) return TS_OK;
    const bool listed = c->asked == TS_SCHEDULER_TIMESTEPS;
    return ts_fail_param(e, TS_EUNSUPPORTED, listed ? "timesteps" : "scheduler",
                         "%s has no noise levels for a model that has EDM's", ts_scheduler_label(c->asked));
}

static ts_code check_list(const ts_schedule_config *c, int steps, ts_error *e) {
    const ts_level_list *l = c->list;
    const char *name = ts_scheduler_name(c->asked);
    const bool whole = c->asked == TS_SCHEDULER_TIMESTEPS, flow = c->prediction_type == TS_PREDICT_FLOW;
    if (!l || l->count != steps || l->count > TS_LIST_LEVELS)
        return ts_fail_param(e, TS_EINVAL, name, "%s must have one for each of the steps, at most %d", name,
                             TS_LIST_LEVELS);
    for (int i = 0; i < l->count; i++) {
        const float level = l->at[i];
        const bool good = whole
                              ? level >= 0 && level < (float)c->num_train_timesteps && level == floorf(level)
                              : level > 0 && isfinite(level) && (!flow || level <= 1);
        if (!good && whole)
            return ts_fail_param(e, TS_EINVAL, name, "%s must be whole numbers from 0 to %d", name,
                                 c->num_train_timesteps - 1);
        if (!good)
            return ts_fail_param(e, TS_EINVAL, name, "%s must be above 0%s", name,
                                 flow ? " and, for a model that predicts a flow, at most 1" : "");
        if (i && !(level < l->at[i - 1])) return ts_fail_param(e, TS_EINVAL, name, "%s must decrease", name);
    }
    return TS_OK;
}

/* Some schedules have no finite step somewhere (epsilon at zero SNR, two equal sigmas). */
static bool row_finite(const ts_sampler_row *r) {
    bool ok = isfinite(r->timestep) && isfinite(r->signal) && isfinite(r->noise) && isfinite(r->c_in) &&
              isfinite(r->d_from_x) && isfinite(r->d_from_out) && isfinite(r->x_from_x) &&
              isfinite(r->x_from_d) && isfinite(r->x_from_out) && isfinite(r->x_from_saved) &&
              isfinite(r->x_from_noise) && isfinite(r->push_from_x) && isfinite(r->push_from_d) &&
              isfinite(r->push_from_hist);
    for (int k = 0; k < TS_SAMPLER_HISTORY; k++) ok = ok && isfinite(r->x_from_hist[k]);
    return ok;
}

static ts_code finish(ts_sampler_plan *plan, const ts_schedule_config *c, int steps, ts_error *e) {
    int others = 0;
    for (int i = 0; i < plan->rows; i++) others += plan->row[i].count;
    for (int i = 0; i < plan->rows + others; i++) {
        const ts_sampler_row *row = i < plan->rows ? &plan->row[i] : &plan->other[i - plan->rows];
        if (!row_finite(row) && c->rescale_betas_zero_snr && c->prediction_type == TS_PREDICT_EPSILON)
            return ts_fail_param(e, TS_EUNSUPPORTED, "prediction_type",
                                 "epsilon cannot be predicted from pure noise (rescale_betas_zero_snr)");
        if (!row_finite(row))
            return c->list
                       ? ts_fail_param(e, TS_EINVAL, ts_scheduler_name(c->asked),
                                       "%s: the sampler cannot reckon with them", ts_scheduler_name(c->asked))
                       : ts_fail_param(e, TS_EINVAL, "steps",
                                       "the model's schedule has no timesteps for %d steps", steps);
        for (int k = 0; k < TS_SAMPLER_HISTORY; k++)
            if (row->x_from_hist[k] != 0 && plan->history <= k) plan->history = k + 1;
        if (row->push_from_hist != 0 && plan->history < 1) plan->history = 1;
        plan->saves_x = plan->saves_x || row->save_x;
        plan->draws_noise = plan->draws_noise || row->x_from_noise != 0;
    }
    return TS_OK;
}

ts_code ts_sampler_plan_new(const ts_sampler *s, const ts_schedule_config *config, int steps, int begin,
                            ts_sampler_plan **ret, ts_error *e) {
    ts_schedule_config c = *config;
    if (c.timestep_spacing == TS_SPACING_UNSET) c.timestep_spacing = s->default_spacing;
    if (c.lu && s->has_lu && c.curve != TS_CURVE_KARRAS) c.curve = TS_CURVE_LU;
    const bool distilled = s->plan == ts_plan_lcm || s->plan == ts_plan_tcd;
    ts_schedule_default_betas(
        &c, distilled || s->plan == ts_plan_heun || s->plan == ts_plan_dpm2 || s->plan == ts_plan_dpm2_a,
        distilled);
    if (c.eta >= 0 && !s->by_eta) return ts_fail_param(e, TS_EUNSUPPORTED, "eta", "%s has no eta", s->label);
    if (c.eta < 0) c.eta = s->eta;
    if (c.set_alpha_to_one == TS_ALPHA_UNSAID) c.set_alpha_to_one = s->plan != ts_plan_pndm;
    if (c.begins_with_prk && s->plan == ts_plan_pndm)
        return ts_fail_param(e, TS_EUNSUPPORTED, "sampler",
                             "%s: the model's skip_prk_steps: false is not offered", s->label);
    if (c.lower_unsaid) c.lower_order_final = s->plan != ts_plan_dpmpp_2s;
    if (c.clip_unsaid && (s->plan == ts_plan_lcm || s->plan == ts_plan_heun)) c.clip_sample_range = 0;
    int most = c.num_train_timesteps < TS_SAMPLER_STEPS ? c.num_train_timesteps : TS_SAMPLER_STEPS;
    if (steps < 1 || steps > most) return ts_fail_param(e, TS_EINVAL, "steps", "steps must be 1 to %d", most);
    if (c.asked >= TS_SCHEDULER_NAMED) {
        ts_code bad = check_list(&c, steps, e);
        if (bad) return bad;
    }
    if (begin < 0 || begin >= steps)
        return ts_fail_param(e, TS_EINVAL, "strength", "%d of %d steps cannot be left out", begin, steps);
    const bool flow = s->plan == ts_plan_flow_euler;
    if ((c.prediction_type == TS_PREDICT_FLOW) != flow)
        return ts_fail_param(e, TS_EUNSUPPORTED, "sampler", "%s is %sfor models that predict a flow",
                             s->label, flow ? "only " : "not ");

    if (c.sigma_data > 0) {
        ts_code bad = check_edm(s, &c, e);
        if (bad) return bad;
    }

    const size_t rows = (size_t)steps * (size_t)s->evaluations + 1;
    const size_t others = s->shifts ? (size_t)steps * (2 * ts_shift_reach(&c, steps) + 1) : 0;
    ts_sampler_plan *plan = calloc(1, sizeof *plan + (rows + others) * sizeof plan->row[0]);
    float *alphas = ts_array0(float, (size_t)c.num_train_timesteps);
    ts_code rc = TS_OK;
    if (!plan || !alphas) {
        rc = ts_fail(e, TS_ENOMEM, "a plan of %d steps", steps);
        goto done;
    }
    plan->begin = begin;
    plan->other = plan->row + rows;
    ts_schedule_alphas(&c, alphas);
    rc = s->plan(&c, alphas, steps, plan, e);
    if (!rc && plan->rows < 1) rc = ts_bad_steps(e, steps); /* a clipped schedule may have none left */
    if (!rc) rc = finish(plan, &c, steps, e);
    if (rc) goto done;
    *ret = plan;
    plan = NULL;
done:
    free(alphas);
    free(plan);
    return rc;
}

const ts_sampler_row *ts_sampler_choose(const ts_sampler_plan *plan, int i, double variance) {
    const ts_sampler_row *best = &plan->row[i];
    for (int k = 0; k < plan->row[i].count; k++) {
        const ts_sampler_row *other = &plan->other[plan->row[i].first + k];
        if (!k || fabs(other->variance - variance) < fabs(best->variance - variance)) best = other;
    }
    return best;
}

void ts_sampler_apply(const ts_sampler_row *row, float *x, const float *out,
                      float *const hist[TS_SAMPLER_HISTORY], float *saved, const float *noise, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float before = x[i], o = out[i], d = row->d_from_x * before + row->d_from_out * o;
        if (row->clip > 0) d = d < -row->clip ? -row->clip : d > row->clip ? row->clip : d;
        float v = row->x_from_x * before + row->x_from_d * d + row->x_from_out * o;
        /* What a row does not read may not be there, or not be a number yet. */
        for (int k = 0; k < TS_SAMPLER_HISTORY; k++)
            if (row->x_from_hist[k] != 0) v += row->x_from_hist[k] * hist[k][i];
        if (row->x_from_saved != 0) v += row->x_from_saved * saved[i];
        if (row->x_from_noise != 0) v += row->x_from_noise * noise[i];
        x[i] = v;
        if (row->save_x) saved[i] = before;
        if (!row->push) continue;
        float pushed = row->push_from_x * before + row->push_from_d * d;
        if (row->push_from_hist != 0) pushed += row->push_from_hist * hist[0][i];
        for (int k = TS_SAMPLER_HISTORY - 1; k > 0; k--)
            if (hist[k]) hist[k][i] = hist[k - 1][i];
        if (hist[0]) hist[0][i] = pushed;
    }
}
