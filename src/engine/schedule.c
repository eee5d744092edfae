#include "engine/schedule.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/json.h"

#define FILE_MAXIMUM (1u << 20)
static const ts_json_limits limits = {.depth = 8, .values = 100000};

/* Who wrote the file, what runs when nobody asks for another sampler, whether the class clips when the file
 * does not say, and whether its noise levels are EDM's. */
typedef struct writer {
    const char *class_name, *sampler;
    bool clips, edm;
} writer;

static const writer writers[] = {
    {"DDIMScheduler", "ddim", true},
    {"DDPMScheduler", "ddpm", true},
    {"PNDMScheduler", "pndm", false},
    {"EulerDiscreteScheduler", "euler", false},
    {"EulerAncestralDiscreteScheduler", "euler_a", false},
    {"HeunDiscreteScheduler", "heun", false},
    {"LMSDiscreteScheduler", "lms", false},
    {"KDPM2DiscreteScheduler", "dpm2", false},
    {"KDPM2AncestralDiscreteScheduler", "dpm2_a", false},
    {"DPMSolverMultistepScheduler", "dpmpp_2m", false},
    {"DPMSolverSinglestepScheduler", "dpmpp_2s", false},
    {"DEISMultistepScheduler", "deis", false},
    {"UniPCMultistepScheduler", "unipc", false},
    {"LCMScheduler", "lcm", false},
    {"TCDScheduler", "tcd", false},
    {"FlowMatchEulerDiscreteScheduler", "flow_euler", false},
    {"EDMEulerScheduler", "euler", false, true},
    {"EDMDPMSolverMultistepScheduler", "dpmpp_2m", false, true},
};

/* A word of a list, its number to *ret. A word with '!' before it is known and not offered. */
static ts_code read_word(const cJSON *json, const char *key, const char *const words[], int otherwise,
                         int *ret, ts_error *e) {
    const char *text;
    ts_code rc = ts_json_string(json, key, NULL, &text, e);
    if (rc) return rc;
    if (!text) {
        *ret = otherwise;
        return TS_OK;
    }
    for (int i = 0; words[i]; i++) {
        if (!words[i][0]) continue; /* stands for the absent value */
        bool refused = words[i][0] == '!';
        if (strcmp(words[i] + refused, text) != 0) continue;
        if (refused) return ts_fail_param(e, TS_EUNSUPPORTED, key, "%s: %s is not offered", key, text);
        *ret = i;
        return TS_OK;
    }
    return ts_fail_param(e, TS_EINVAL, key, "%s: unknown value %.64s", key, text);
}

/* What would change the picture and is not offered may not pass. */
static ts_code read_choices(const cJSON *json, ts_schedule_config *c, ts_error *e) {
    static const char *const switches[] = {"use_flow_sigmas", "use_dynamic_shifting", "thresholding",
                                           "invert_sigmas", "stochastic_sampling"};
    for (size_t i = 0; i < sizeof switches / sizeof switches[0]; i++) {
        bool on;
        ts_code rc = ts_json_bool(json, switches[i], false, &on, e);
        if (rc) return rc;
        if (on) return ts_fail_param(e, TS_EUNSUPPORTED, switches[i], "%s: true is not offered", switches[i]);
    }
    const cJSON *betas = cJSON_GetObjectItemCaseSensitive(json, "trained_betas");
    if (betas && !cJSON_IsNull(betas))
        return ts_fail_param(e, TS_EUNSUPPORTED, "trained_betas", "trained_betas: a table is not offered");

    const cJSON *without = cJSON_GetObjectItemCaseSensitive(json, "disable_corrector");
    if (without && !cJSON_IsNull(without) && cJSON_GetArraySize(without))
        return ts_fail_param(e, TS_EUNSUPPORTED, "disable_corrector",
                             "disable_corrector: a list is not offered");
    bool skips = false;
    ts_code read = ts_json_bool(json, "skip_prk_steps", false, &skips, e);
    if (read) return read;
    c->begins_with_prk = !skips && strcmp(c->sampler, "pndm") == 0;

    static const struct {
        const char *key;
        const char *words[8];
    } choices[] = {
        {"interpolation_type", {"linear", "!log_linear"}},
        {"timestep_type", {"discrete", "continuous"}},
        {"algorithm_type", {"dpmsolver++", "deis", "!dpmsolver", "!sde-dpmsolver", "sde-dpmsolver++"}},
        {"variance_type",
         {"fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "!learned", "!learned_range"}},
    };
    int chosen[4];
    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++) {
        ts_code rc = read_word(json, choices[i].key, choices[i].words, 0, &chosen[i], e);
        if (rc) return rc;
    }
    const bool sde = chosen[2] == 4, multistep = strcmp(c->sampler, "dpmpp_2m") == 0;
    if (sde && !multistep)
        return ts_fail_param(e, TS_EUNSUPPORTED, "algorithm_type",
                             "algorithm_type: only of the multistep solver");
    if (sde) c->sampler = c->solver_order == 3 ? "dpmpp_3m_sde" : "dpmpp_2m_sde";
    c->large_variance = chosen[3] >= 2;
    c->sigma_data = chosen[1]; /* which is 1 there */
    bool predict_x0;
    ts_code rc = ts_json_bool(json, "predict_x0", true, &predict_x0, e);
    if (!rc && !predict_x0)
        rc = ts_fail_param(e, TS_EUNSUPPORTED, "predict_x0", "predict_x0: false is not offered");
    return rc;
}

static ts_code read_writer(const cJSON *json, const writer **ret, ts_error *e) {
    const char *name;
    ts_code rc = ts_json_string(json, "_class_name", writers[0].class_name, &name, e);
    if (rc) return rc;
    for (size_t i = 0; i < sizeof writers / sizeof writers[0]; i++)
        if (strcmp(writers[i].class_name, name) == 0) {
            *ret = &writers[i];
            return TS_OK;
        }
    return ts_fail_param(e, TS_EUNSUPPORTED, "_class_name", "_class_name: %.64s is not offered", name);
}

static ts_code read_numbers(const cJSON *json, ts_schedule_config *c, bool clips, ts_error *e) {
    int64_t timesteps, offset, order, original;
    double range;
    ts_code rc = ts_json_int(json, "num_train_timesteps", 2, TS_MAX_TRAIN_TIMESTEPS, 1000, &timesteps, e);
    if (!rc) rc = ts_json_int(json, "steps_offset", 0, timesteps - 1, 0, &offset, e);
    if (!rc) rc = ts_json_int(json, "solver_order", 1, 3, 2, &order, e);
    if (!rc)
        rc = ts_json_int(json, "original_inference_steps", 1, timesteps, timesteps < 50 ? timesteps : 50,
                         &original, e);
    if (!rc) rc = ts_json_number(json, "timestep_scaling", 1e-9, 1e9, 10, &c->timestep_scaling, e);
    if (!rc) rc = ts_json_number(json, "shift", 1e-9, 1e9, 1, &c->flow_shift, e);
    if (!rc) rc = ts_json_number(json, "shift_terminal", 0, 0.999, 0, &c->flow_terminal, e);
    if (!rc) rc = ts_json_number(json, "beta_start", 1e-9, 0.999, 0, &c->beta_start, e);
    if (!rc) rc = ts_json_number(json, "beta_end", 1e-9, 0.999, 0, &c->beta_end, e);
    if (!rc) rc = ts_json_number(json, "sigma_min", 1e-9, 1e9, 0, &c->sigma_min, e);
    if (!rc) rc = ts_json_number(json, "sigma_max", 1e-9, 1e9, 0, &c->sigma_max, e);
    if (!rc) rc = ts_json_number(json, "lambda_min_clipped", -1e300, 1e9, -1e300, &c->lambda_min_clipped, e);
    if (!rc) rc = ts_json_bool(json, "clip_sample", clips, &clips, e);
    if (!rc) rc = ts_json_number(json, "clip_sample_range", 1e-9, 1e9, 1, &range, e);
    if (rc) return rc;
    if (c->lambda_min_clipped < -1e9)
        c->lambda_min_clipped = -INFINITY; /* as Python writes it (ts_json_python_file) */
    c->num_train_timesteps = (int)timesteps;
    c->steps_offset = (int)offset;
    c->solver_order = (int)order;
    c->original_inference_steps = (int)original;
    c->clip_sample_range = clips ? range : 0;
    return TS_OK;
}

const char *ts_prediction_name(ts_prediction prediction) {
    static const char *const names[] = {"epsilon", "v_prediction", "sample", "flow_prediction"};
    return names[prediction];
}

/* One at most. */
static ts_code read_curve(const cJSON *json, ts_curve *ret, ts_error *e) {
    static const struct {
        const char *key;
        ts_curve curve;
    } curves[] = {{"use_karras_sigmas", TS_CURVE_KARRAS},
                  {"use_exponential_sigmas", TS_CURVE_EXPONENTIAL},
                  {"use_beta_sigmas", TS_CURVE_BETA}};
    const char *first = NULL;
    *ret = TS_CURVE_NONE;
    for (size_t i = 0; i < sizeof curves / sizeof curves[0]; i++) {
        bool on;
        ts_code rc = ts_json_bool(json, curves[i].key, false, &on, e);
        if (rc) return rc;
        if (!on) continue;
        if (first)
            return ts_fail_param(e, TS_EINVAL, curves[i].key, "%s and %s exclude each other", curves[i].key,
                                 first);
        first = curves[i].key;
        *ret = curves[i].curve;
    }
    return TS_OK;
}

/* The classes of EDM (Playground 2.5's), and Euler's with timesteps that are no training's (as CosXL has it).
 */
static ts_code read_edm(const cJSON *json, bool edm, ts_schedule_config *c, ts_error *e) {
    static const char *const schedules[] = {"karras", "exponential", NULL};
    if (!edm && c->sigma_data == 0) return TS_OK;
    c->lu = false; /* those of training timesteps */
    if (!edm && (strcmp(c->sampler, "euler") != 0 || c->prediction_type != TS_PREDICT_V || !c->curve))
        return ts_fail_param(
            e, TS_EUNSUPPORTED, "timestep_type",
            "timestep_type: continuous is only offered of Euler, with v_prediction and Karras' or "
            "another curve of sigmas");
    if (!edm) return TS_OK;
    int schedule = 0;
    double rho = 7;
    ts_code rc = ts_json_number(json, "sigma_data", 1e-9, 1e9, 0.5, &c->sigma_data, e);
    if (!rc) rc = ts_json_number(json, "sigma_min", 1e-9, 1e9, 0.002, &c->sigma_min, e);
    if (!rc) rc = ts_json_number(json, "sigma_max", 1e-9, 1e9, 80, &c->sigma_max, e);
    if (!rc) rc = ts_json_number(json, "rho", 1e-9, 1e9, 7, &rho, e);
    if (!rc) rc = read_word(json, "sigma_schedule", schedules, 0, &schedule, e);
    if (!rc && rho != 7) rc = ts_fail_param(e, TS_EUNSUPPORTED, "rho", "rho: only 7 is offered");
    if (!rc && c->sigma_min >= c->sigma_max)
        rc = ts_fail_param(e, TS_EINVAL, "sigma_min", "sigma_min is not below sigma_max");
    if (!rc && c->prediction_type == TS_PREDICT_SAMPLE)
        rc = ts_fail_param(e, TS_EUNSUPPORTED, "prediction_type",
                           "prediction_type: sample is not offered of EDM");
    c->curve = schedule ? TS_CURVE_EXPONENTIAL : TS_CURVE_KARRAS;
    c->final_sigma = c->sigma_min;
    c->timestep_spacing = TS_SPACING_LEADING; /* the starting noise has sigma_max^2 + 1 */
    return rc;
}

static bool is_unsaid(const cJSON *json, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(json, key);
    return !v || cJSON_IsNull(v);
}

ts_code ts_schedule_config_read(const cJSON *json, ts_schedule_config *ret, ts_error *e) {
    static const char *const betas[] = {
        "linear", "scaled_linear", "squaredcos_cap_v2", "", "!sigmoid", "!laplace", "!exp", NULL};
    static const char *const predictions[] = {"epsilon", "v_prediction", "sample", "!flow_prediction", NULL};
    static const char *const spacings[] = {"", "leading", "trailing", "linspace", NULL};
    static const char *const finals[] = {"zero", "sigma_min", NULL};
    /* What other solvers call theirs; diffusers runs midpoint for those. */
    static const char *const solvers[] = {"midpoint", "heun", "logrho", "bh1", "bh2", NULL};

    if (!cJSON_IsObject(json)) return ts_fail(e, TS_EINVAL, "a scheduler config is an object");
    ts_schedule_config c = {.momentum = TS_MOMENTUM, .eta = TS_ETA_UNSAID};
    const writer *by = NULL;
    int beta = 0, prediction = 0, spacing = 0, final = 0, solver = 0;
    ts_code rc = read_writer(json, &by, e);
    if (rc) return rc;
    c.sampler = by->sampler;
    const bool flow = strcmp(c.sampler, "flow_euler") == 0;
    rc = read_numbers(json, &c, by->clips, e);
    if (!rc && flow && c.sigma_max > 1)
        rc = ts_fail_param(e, TS_EINVAL, "sigma_max", "sigma_max: a flow's levels are at most 1");
    if (!rc) rc = read_choices(json, &c, e);
    if (!rc) rc = read_word(json, "beta_schedule", betas, TS_BETA_UNSAID, &beta, e);
    if (!rc) rc = read_word(json, "prediction_type", predictions, TS_PREDICT_EPSILON, &prediction, e);
    if (!rc) rc = read_word(json, "timestep_spacing", spacings, TS_SPACING_UNSET, &spacing, e);
    if (!rc) rc = read_word(json, "final_sigmas_type", finals, TS_FINAL_ZERO, &final, e);
    if (!rc) rc = read_word(json, "solver_type", solvers, TS_SOLVER_MIDPOINT, &solver, e);
    if (!rc) rc = ts_json_bool(json, "rescale_betas_zero_snr", false, &c.rescale_betas_zero_snr, e);
    if (!rc) rc = read_curve(json, &c.curve, e);
    if (!rc) rc = ts_json_bool(json, "use_lu_lambdas", false, &c.lu, e);
    bool to_one = false;
    if (!rc) rc = ts_json_bool(json, "set_alpha_to_one", false, &to_one, e);
    if (!rc) rc = ts_json_bool(json, "lower_order_final", false, &c.lower_order_final, e);
    c.lower_unsaid = is_unsaid(json, "lower_order_final");
    c.clip_unsaid = is_unsaid(json, "clip_sample");
    if (!rc) rc = ts_json_bool(json, "euler_at_final", false, &c.euler_at_final, e);
    if (rc) return rc;
    c.set_alpha_to_one = is_unsaid(json, "set_alpha_to_one") ? TS_ALPHA_UNSAID : to_one;
    c.beta_schedule = (ts_beta_schedule)beta;
    c.prediction_type = flow ? TS_PREDICT_FLOW : (ts_prediction)prediction;
    c.timestep_spacing = (ts_spacing)spacing;
    c.final_sigmas_type = (ts_final_sigma) final;
    c.solver_type = solver == TS_SOLVER_HEUN ? TS_SOLVER_HEUN : TS_SOLVER_MIDPOINT;
    c.unipc_bh1 = solver == 3;
    rc = read_edm(json, by->edm, &c, e);
    if (!rc) *ret = c;
    return rc;
}

static ts_code set_class(cJSON *json, const char *name, ts_error *e) {
    if (!cJSON_IsObject(json)) return TS_OK; /* which is an error of its own */
    cJSON_DeleteItemFromObjectCaseSensitive(json, "_class_name");
    return cJSON_AddStringToObject(json, "_class_name", name) ? TS_OK
                                                              : ts_fail(e, TS_ENOMEM, "the scheduler");
}

ts_code ts_schedule_config_open(const char *path, const char *class_name, ts_schedule_config *ret,
                                ts_error *e) {
    cJSON *json = NULL;
    ts_code rc = ts_json_python_file(path, FILE_MAXIMUM, limits, &json, e);
    if (rc) return rc;
    if (class_name) rc = set_class(json, class_name, e);
    if (!rc) rc = ts_schedule_config_read(json, ret, e);
    if (rc && class_name && e && !strcmp(e->param, "_class_name"))
        rc = ts_error_context(e, rc, "as model_index.json has it");
    cJSON_Delete(json);
    return rc ? ts_error_context(e, rc, "%s", path) : TS_OK;
}

void ts_schedule_suit_sd(ts_schedule_config *c) {
    c->steps_offset = 1;
    c->clip_sample_range = 0;
}

/* torch.linspace in float32: from both ends towards the middle, with fused multiply-adds as its vector code.
 */
static float linspace(float start, float end, int n, int i) {
    float step = (end - start) / (float)(n - 1);
    return i < n / 2 ? fmaf(step, (float)i, start) : fmaf(-step, (float)(n - 1 - i), end);
}

static double cosine_bar(double t) {
    double c = cos((t + 0.008) / 1.008 * M_PI / 2); /* Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17 */
    return c * c;
}

static float beta_at(const ts_schedule_config *c, int i) {
    int n = c->num_train_timesteps;
    if (c->beta_schedule == TS_BETA_LINEAR) return linspace((float)c->beta_start, (float)c->beta_end, n, i);
    if (c->beta_schedule == TS_BETA_SCALED_LINEAR) {
        float root = linspace((float)sqrt(c->beta_start), (float)sqrt(c->beta_end), n, i);
        return root * root;
    }
    double beta = 1 - cosine_bar((i + 1.0) / n) / cosine_bar((double)i / n);
    return (float)(beta < 0.999 ? beta : 0.999);
}

/* a = 1 - beta in, running products out; torch accumulates float32 products in double. */
static void products(float *a, int n) {
    double product = 1;
    for (int i = 0; i < n; i++) {
        product *= (double)a[i];
        a[i] = (float)product;
    }
}

/* Lin et al. 2024, arXiv 2305.08891, algorithm 1, from products to factors 1 - beta, in float32 as diffusers
 * does it: its rounding is what models were trained on. A schedule so long that its products vanish before
 * the end stays at zero there (diffusers divides zero by zero). */
static void rescale_zero_snr(float *a, int n) {
    float first = sqrtf(a[0]), last = sqrtf(a[n - 1]), scale = first > last ? first / (first - last) : 0,
          before = 1;
    for (int i = 0; i < n; i++) {
        float root = (sqrtf(a[i]) - last) * scale, bar = root * root;
        float factor = before > 0 ? bar / before : 0;
        before = bar;
        a[i] = 1.0f - (1.0f - factor);
    }
}

void ts_schedule_default_betas(ts_schedule_config *c, bool published, bool scaled) {
    if (c->beta_start == 0) c->beta_start = published ? 0.00085 : 0.0001;
    if (c->beta_end == 0) c->beta_end = published ? 0.012 : 0.02;
    if (c->beta_schedule == TS_BETA_UNSAID)
        c->beta_schedule = scaled ? TS_BETA_SCALED_LINEAR : TS_BETA_LINEAR;
}

void ts_schedule_alphas(const ts_schedule_config *c, float *ret) {
    ts_schedule_config said = *c;
    int n = c->num_train_timesteps;
    ts_schedule_default_betas(&said, false, false);
    for (int i = 0; i < n; i++) ret[i] = 1.0f - beta_at(&said, i);
    products(ret, n);
    if (!c->rescale_betas_zero_snr) return;
    rescale_zero_snr(ret, n);
    products(ret, n);
}

static const struct {
    const char *name, *label;
    ts_place places;
} schedulers[] = {
#define X(name, text, label, by) {text, label, by},
    TS_SCHEDULERS(X)
#undef X
};

const char *ts_scheduler_name(ts_scheduler scheduler) {
    return schedulers[scheduler].name;
}

const char *ts_scheduler_label(ts_scheduler scheduler) {
    return schedulers[scheduler].label;
}

ts_place ts_scheduler_places(ts_scheduler scheduler) {
    return schedulers[scheduler].places;
}

int ts_scheduler_find(const char *name) {
    for (int i = 0; i < TS_SCHEDULER_NAMED; i++)
        if (strcasecmp(schedulers[i].name, name) == 0 || strcasecmp(schedulers[i].label, name) == 0) return i;
    return -1;
}

void ts_schedule_place(ts_schedule_config *c, ts_scheduler scheduler, const ts_level_list *list, bool xl) {
    if (scheduler == TS_SCHEDULER_DEFAULT) return;
    c->asked = scheduler;
    c->list = list;
    c->xl = xl;
    c->lu = false;
    c->curve = scheduler == TS_SCHEDULER_KARRAS        ? TS_CURVE_KARRAS
               : scheduler == TS_SCHEDULER_EXPONENTIAL ? TS_CURVE_EXPONENTIAL
               : scheduler == TS_SCHEDULER_BETA        ? TS_CURVE_BETA
                                                       : TS_CURVE_NONE;
    if (scheduler == TS_SCHEDULER_LEADING) c->timestep_spacing = TS_SPACING_LEADING;
    if (scheduler == TS_SCHEDULER_TRAILING) c->timestep_spacing = TS_SPACING_TRAILING;
    if (scheduler == TS_SCHEDULER_LINSPACE) c->timestep_spacing = TS_SPACING_LINSPACE;
    /* These are levels to the end. */
    if (ts_scheduler_places(scheduler) == TS_PLACE_BY_SIGMAS && !c->curve)
        c->final_sigmas_type = TS_FINAL_ZERO;
}
