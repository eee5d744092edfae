#include "schedule_text.h"

#include "engine/random.h"
#include "engine/sampler.h"

/* The analytic model of tools/parity/samplers.py. */
static float model(float x, double t) {
    return 0.3f * x + 0.1f * sinf(5.0f * x) + (float)(0.05 * t / 1000.0);
}

static double worst_relative(const float *a, const float *b, size_t n, double floor) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]) / fmax(fabs((double)b[i]), floor);
        if (!(d <= worst)) worst = d; /* a NaN is the worst of all */
    }
    return worst;
}

static double norm(const float *a, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)a[i] * (double)a[i];
    return sqrt(sum);
}

static double distance(const float *a, const float *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += pow((double)a[i] - (double)b[i], 2);
    return sqrt(sum);
}

static void alphas_are_those_of_diffusers(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("samplers.safetensors");
    static const char *const kinds[][2] = {
        {"alphas_cumprod_linear", "{\"beta_schedule\":\"linear\"}"},
        {"alphas_cumprod_linear_zero_snr", "{\"beta_schedule\":\"linear\",\"rescale_betas_zero_snr\":true}"},
        {"alphas_cumprod_scaled_linear",
         "{\"beta_schedule\":\"scaled_linear\",\"beta_start\":0.00085,\"beta_end\":0.012}"},
        {"alphas_cumprod_scaled_linear_zero_snr",
         "{\"beta_schedule\":\"scaled_linear\",\"beta_start\":0.00085,\"beta_end\":0.012,"
         "\"rescale_betas_zero_snr\":true}"},
        {"alphas_cumprod_cosine", "{\"beta_schedule\":\"squaredcos_cap_v2\"}"},
        {"alphas_cumprod_cosine_zero_snr",
         "{\"beta_schedule\":\"squaredcos_cap_v2\",\"rescale_betas_zero_snr\":true}"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        ts_schedule_config c = config_text(kinds[i][1]);
        size_t n;
        float *want = fixture_floats(s, kinds[i][0], &n), have[1000];
        assert_int_equal(n, c.num_train_timesteps);
        ts_schedule_alphas(&c, have);
        double worst = worst_relative(have, want, n, 1e-12);
        /* torch's vector square root is off by an ulp here and there; near zero SNR that is 5e-6 of 1e-9. */
        if (!(worst < (c.rescale_betas_zero_snr ? 1e-5 : 1e-7))) fail_msg("%s: %g", kinds[i][0], worst);
        free(want);
    }
    ts_tensors_free(s);
}

static void alphas_of_any_length_are_numbers_that_fall(void **state) {
    (void)state;
    for (int n = 2; n <= TS_MAX_TRAIN_TIMESTEPS; n += n < 10 ? 1 : 777)
        for (int zero = 0; zero < 2; zero++) {
            char text[120];
            snprintf(text, sizeof text, "{\"num_train_timesteps\":%d,\"rescale_betas_zero_snr\":%s}", n,
                     zero ? "true" : "false");
            ts_schedule_config c = config_text(text);
            float *alphas = ts_array0(float, (size_t)n);
            assert_non_null(alphas);
            ts_schedule_alphas(&c, alphas);
            for (int i = 0; i < n; i++)
                if (!(alphas[i] >= 0 && alphas[i] <= (i ? alphas[i - 1] : 1)))
                    fail_msg("%d timesteps: %g at %d", n, (double)alphas[i], i);
            if (zero) assert_true(alphas[n - 1] == 0);
            free(alphas);
        }
}

/* What a plan reads besides x; nothing in it is a number until a row has made it one. */
typedef struct buffers {
    size_t n;
    float *out, *saved, *fresh, *hist[TS_SAMPLER_HISTORY];
} buffers;

static float *no_numbers(size_t n) {
    float *p = ts_array0(float, n);
    for (size_t i = 0; i < n; i++) p[i] = NAN;
    return p;
}

static buffers buffers_new(const ts_sampler_plan *plan, size_t n) {
    buffers b = {.n = n, .out = no_numbers(n), .saved = no_numbers(n), .fresh = no_numbers(n)};
    for (int k = 0; k < plan->history; k++) b.hist[k] = no_numbers(n);
    return b;
}

static void buffers_free(buffers *b) {
    for (int k = 0; k < TS_SAMPLER_HISTORY; k++) free(b->hist[k]);
    free(b->out), free(b->saved), free(b->fresh);
}

static void take_row(const ts_sampler_plan *plan, const ts_sampler_row *row, float *x, buffers *b,
                     ts_torch_rng *rng) {
    for (size_t i = 0; i < b->n; i++) b->out[i] = model(row->c_in * x[i], row->timestep);
    if (row->x_from_noise != 0) ts_torch_randn(rng, b->fresh, b->n);
    ts_sampler_apply(row, x, b->out, b->hist, plan->saves_x ? b->saved : NULL,
                     plan->draws_noise ? b->fresh : NULL, b->n);
}

static void close_to(const char *name, const char *what, int row, const float *have, const float *want,
                     size_t n, double bound) {
    double d = distance(have, want, n) / norm(want, n);
    if (!(d < bound)) fail_msg("%s, %s of row %d: relative L2 %g", name, what, row, d);
}

/* The timesteps, the first sigma, and each step's latents. The worst relative L2 of a step. */
static double distance_to_case(const ts_tensors *s, const cJSON *one, const ts_sampler_plan *plan) {
    enum { N = 16 };
    assert_int_equal(plan->rows, (int)json_value(one, "evaluations"));
    double scale = json_value(one, "init_noise_sigma"), worst = 0, rounding = 0;
    assert_true(fabs((double)plan->init_scale - scale) <= 1e-5 * scale);
    char name[80];
    snprintf(name, sizeof name, "%s_timesteps", json_text(one, "name"));
    float *timesteps = fixture_floats(s, name, NULL);
    snprintf(name, sizeof name, "%s_latents", json_text(one, "name"));
    float *latents = fixture_floats(s, name, NULL), x[N];
    buffers b = buffers_new(plan, N);
    ts_torch_rng rng;
    ts_torch_rng_seed(&rng, 2024);
    ts_torch_randn(&rng, x, N); /* the starting noise: what follows goes on from there */
    for (size_t i = 0; i < N; i++) x[i] *= plan->init_scale;
    for (int r = 0; r < plan->rows; r++) {
        const ts_sampler_row *row = &plan->row[r];
        if (fabs(row->timestep - (double)timesteps[r]) > 1e-3 * fmax(1, row->timestep / 100))
            fail_msg("%s step %d: timestep %.9g, wanted %.9g", name, r, row->timestep, (double)timesteps[r]);
        const float *want = latents + (size_t)r * N;
        /* diffusers' Euler subtracts from x itself in float32: at a sigma of 4096 that rounding, an ulp
         * or two of x, is what its answer is worth. 0.8 is the model's steepest slope. */
        double slope = fabs((double)row->d_from_x) + 0.8 * fabs((double)(row->d_from_out * row->c_in));
        rounding *= fmin(1, fabs((double)row->x_from_x) + fabs((double)row->x_from_d) * slope);
        rounding += 2 * 0x1p-23 * norm(x, N);
        take_row(plan, row, x, &b, &rng);
        double d = (distance(x, want, N) - rounding) / norm(want, N);
        if (d > worst) worst = d;
        if (!(d < 2e-5)) fail_msg("%s step %d: relative L2 %g", name, r, d);
    }
    buffers_free(&b);
    free(timesteps), free(latents);
    return worst;
}

static void every_step_is_that_of_diffusers(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("samplers.safetensors");
    cJSON *json = fixture_json("samplers.json");
    const cJSON *configs = cJSON_GetObjectItemCaseSensitive(json, "configs"), *one;
    int cases = 0;
    double worst = 0;
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(json, "cases")) {
        ts_schedule_config c = config_of(cJSON_GetArrayItem(configs, (int)json_value(one, "config")));
        const ts_sampler *sampler = ts_sampler_find(json_text(one, "sampler"));
        assert_non_null(sampler);
        assert_ptr_equal(ts_sampler_find(c.sampler), sampler);
        ts_sampler_plan *plan = NULL;
        ts_error e = {0};
        must(ts_sampler_plan_new(sampler, &c, (int)json_value(one, "steps"), 0, &plan, &e), &e);
        worst = fmax(worst, distance_to_case(s, one, plan));
        free(plan);
        cases++;
    }
    print_message("# %d cases, worst relative L2 of a step %.3g\n", cases, worst);
    assert_true(cases > 480);
    cJSON_Delete(json);
    ts_tensors_free(s);
}

/* What ts_schedule_place puts in place of the file's levels: its own schedules and lists. */
static void placed_levels_are_those_of_diffusers(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("samplers_placed.safetensors");
    cJSON *json = fixture_json("samplers_placed.json");
    const cJSON *one;
    int cases = 0;
    double worst = 0;
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(json, "cases")) {
        const char *wanted = json_text(one, "scheduler");
        const ts_sampler *sampler = ts_sampler_find(json_text(one, "sampler"));
        const cJSON *own = cJSON_GetObjectItemCaseSensitive(one, "config");
        ts_schedule_config c = config_of(own ? own : cJSON_GetObjectItemCaseSensitive(json, "config"));
        const int steps = (int)json_value(one, "steps");
        int scheduler = ts_scheduler_find(wanted);
        ts_level_list list = {0};
        if (scheduler < 0) {
            scheduler = strcmp(wanted, "sigmas") == 0 ? TS_SCHEDULER_SIGMAS : TS_SCHEDULER_TIMESTEPS;
            char name[80];
            snprintf(name, sizeof name, "%s_list", json_text(one, "name"));
            size_t n;
            float *levels = fixture_floats(s, name, &n);
            assert_int_equal(n, steps);
            memcpy(list.at, levels, n * sizeof *levels);
            list.count = steps;
            free(levels);
        }
        ts_error e = {0};
        ts_sampler_plan *plan = NULL;
        must(ts_sampler_takes(sampler, (ts_scheduler)scheduler, &e), &e);
        ts_schedule_place(&c, (ts_scheduler)scheduler, &list,
                          cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(one, "xl")));
        if (cJSON_GetObjectItemCaseSensitive(one, "eta")) c.eta = json_value(one, "eta");
        must(ts_sampler_plan_new(sampler, &c, steps, 0, &plan, &e), &e);
        worst = fmax(worst, distance_to_case(s, one, plan));
        free(plan);
        cases++;
    }
    print_message("# %d cases, worst relative L2 of a step %.3g\n", cases, worst);
    assert_true(cases > 70);
    cJSON_Delete(json);
    ts_tensors_free(s);
}

static void momentum_is_that_of_its_paper(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("samplers_momentum.safetensors");
    cJSON *json = fixture_json("samplers_momentum.json");
    const cJSON *one;
    int cases = 0;
    double worst = 0;
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(json, "cases")) {
        ts_schedule_config c = config_of(cJSON_GetObjectItemCaseSensitive(one, "config"));
        assert_true(c.momentum == 0.8);
        c.momentum = json_value(one, "beta");
        c.solver_order = (int)json_value(one, "order");
        ts_error e = {0};
        ts_sampler_plan *plan = NULL;
        must(ts_sampler_plan_new(ts_sampler_find(json_text(one, "sampler")), &c,
                                 (int)json_value(one, "steps"), 0, &plan, &e),
             &e);
        worst = fmax(worst, distance_to_case(s, one, plan));
        free(plan);
        cases++;
    }
    print_message("# %d cases, worst relative L2 of a step %.3g\n", cases, worst);
    assert_true(cases > 30);
    cJSON_Delete(json);
    ts_tensors_free(s);
}

static double variance_of(const float *x, size_t n) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i];
    for (size_t i = 0; i < n; i++) squares += pow((double)x[i] - sum / (double)n, 2);
    return squares / (double)(n - 1);
}

static void time_shift_is_that_of_its_paper(void **state) {
    (void)state;
    enum { N = 16 };
    ts_tensors *s = fixture_tensors("samplers_shift.safetensors");
    cJSON *json = fixture_json("samplers_shift.json");
    const cJSON *one;
    int cases = 0, shifted = 0;
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(json, "cases")) {
        ts_schedule_config c = config_of(cJSON_GetObjectItemCaseSensitive(one, "config"));
        ts_error e = {0};
        ts_sampler_plan *plan = NULL;
        must(ts_sampler_plan_new(ts_sampler_find("time_shift"), &c, (int)json_value(one, "steps"), 0, &plan,
                                 &e),
             &e);
        assert_int_equal(plan->rows, (int)json_value(one, "steps"));
        const char *name = json_text(one, "name");
        char full[80];
        snprintf(full, sizeof full, "%s_timesteps", name);
        float *timesteps = fixture_floats(s, full, NULL), x[N];
        snprintf(full, sizeof full, "%s_latents", name);
        float *latents = fixture_floats(s, full, NULL);
        buffers b = buffers_new(plan, N);
        ts_torch_rng rng;
        ts_torch_rng_seed(&rng, 2024);
        ts_torch_randn(&rng, x, N);
        for (int i = 0; i < N; i++) x[i] *= (float)json_value(one, "spread");
        for (int r = 0; r < plan->rows; r++) {
            const ts_sampler_row *row = ts_sampler_choose(plan, r, variance_of(x, N));
            assert_true(row->timestep == (double)timesteps[r]);
            shifted += row->timestep != plan->row[r].timestep;
            take_row(plan, row, x, &b, &rng);
            close_to(name, "latents", r, x, latents + r * N, N, 2e-6);
        }
        buffers_free(&b);
        free(timesteps), free(latents), free(plan);
        cases++;
    }
    assert_true(cases > 40 && shifted > 100);
    cJSON_Delete(json);
    ts_tensors_free(s);
}

static void a_list_that_is_none_is_named(void **state) {
    (void)state;
    static const struct {
        ts_scheduler scheduler;
        ts_level_list list;
        int steps;
    } bad[] = {
        {TS_SCHEDULER_SIGMAS, {2, {3, 3}}, 2},        {TS_SCHEDULER_SIGMAS, {2, {3, 4}}, 2},
        {TS_SCHEDULER_SIGMAS, {2, {3, 0}}, 2},        {TS_SCHEDULER_SIGMAS, {2, {3, -1}}, 2},
        {TS_SCHEDULER_SIGMAS, {2, {INFINITY, 1}}, 2}, {TS_SCHEDULER_SIGMAS, {2, {3, NAN}}, 2},
        {TS_SCHEDULER_SIGMAS, {2, {3, 2}}, 3},        {TS_SCHEDULER_SIGMAS, {0, {0}}, 1},
        {TS_SCHEDULER_TIMESTEPS, {2, {1000, 3}}, 2},  {TS_SCHEDULER_TIMESTEPS, {2, {9, 3.5f}}, 2},
        {TS_SCHEDULER_TIMESTEPS, {2, {9, -1}}, 2},    {TS_SCHEDULER_TIMESTEPS, {2, {9, 9}}, 2},
        {TS_SCHEDULER_TIMESTEPS, {2, {9, 8}}, 1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ts_schedule_config c = config_text("{}");
        ts_schedule_place(&c, bad[i].scheduler, &bad[i].list, false);
        ts_error e = {0};
        ts_sampler_plan *plan = NULL;
        assert_int_equal(ts_sampler_plan_new(ts_sampler_find("euler"), &c, bad[i].steps, 0, &plan, &e),
                         TS_EINVAL);
        assert_string_equal(e.param, ts_scheduler_name(bad[i].scheduler));
    }
    ts_error e = {0};
    assert_int_equal(ts_sampler_takes(ts_sampler_find("ddim"), TS_SCHEDULER_SIGMAS, &e), TS_EUNSUPPORTED);
    assert_string_equal(e.param, "sigmas");
    assert_int_equal(ts_sampler_takes(ts_sampler_find("pndm"), TS_SCHEDULER_TIMESTEPS, &e), TS_EUNSUPPORTED);
    assert_string_equal(e.param, "timesteps");
    assert_int_equal(ts_scheduler_find("sigmas"), -1);
    assert_int_equal(ts_scheduler_find("SGM Uniform"), TS_SCHEDULER_SGM_UNIFORM);
}

static void samplers_without_eta_refuse_it(void **state) {
    (void)state;
    for (int i = 0; i < ts_sampler_count(); i++) {
        const ts_sampler *s = ts_sampler_at(i);
        ts_schedule_config c = config_text("{}");
        if (s == ts_sampler_find("flow_euler")) c.prediction_type = TS_PREDICT_FLOW;
        c.eta = 0.5;
        ts_sampler_plan *plan = NULL;
        ts_error e = {0};
        ts_code rc = ts_sampler_plan_new(s, &c, 4, 0, &plan, &e);
        assert_int_equal(rc, s->by_eta ? TS_OK : TS_EUNSUPPORTED);
        if (rc) assert_string_equal(e.param, "eta");
        if (plan) assert_true(plan->draws_noise);
        free(plan);
    }
}

/* All noise is 1, and nobody has optimised levels for it. */
static void a_flow_has_levels_up_to_1(void **state) {
    (void)state;
    static const ts_level_list lists[] = {{2, {1, 0.25f}}, {2, {1.01f, 0.25f}}};
    const ts_sampler *s = ts_sampler_find("flow_euler");
    for (int i = 0; i < 3; i++) {
        ts_schedule_config c = config_text("{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\"}");
        ts_schedule_place(&c, i < 2 ? TS_SCHEDULER_SIGMAS : TS_SCHEDULER_ALIGN_YOUR_STEPS, &lists[i % 2],
                          false);
        ts_error e = {0};
        ts_sampler_plan *plan = NULL;
        ts_code rc = ts_sampler_plan_new(s, &c, 2, 0, &plan, &e);
        static const ts_code wanted[] = {TS_OK, TS_EINVAL, TS_EUNSUPPORTED};
        assert_int_equal(rc, wanted[i]);
        if (rc) assert_string_equal(e.param, i == 1 ? "sigmas" : "scheduler");
        free(plan);
    }
}

/* The noisy picture that a shortened plan begins with, its steps, and the noisy picture of each level. */
static void a_plan_without_its_first_steps_is_that_of_diffusers(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("samplers_begin.safetensors");
    cJSON *json = fixture_json("samplers_begin.json");
    const cJSON *configs = cJSON_GetObjectItemCaseSensitive(json, "configs"), *one;
    enum { N = 16 };
    int cases = 0;
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(json, "cases")) {
        ts_schedule_config c = config_of(cJSON_GetArrayItem(configs, (int)json_value(one, "config")));
        const ts_sampler *sampler = ts_sampler_find(json_text(one, "sampler"));
        ts_sampler_plan *plan = NULL;
        ts_error e = {0};
        must(ts_sampler_plan_new(sampler, &c, (int)json_value(one, "steps"), (int)json_value(one, "begin"),
                                 &plan, &e),
             &e);
        assert_int_equal(plan->rows, (int)json_value(one, "evaluations"));
        const char *parts[] = {"timesteps", "start", "latents", "kept"}, *name = json_text(one, "name");
        float *part[4], x[N], noise[N], picture[N], level[N];
        for (int i = 0; i < 4; i++) {
            char full[80];
            snprintf(full, sizeof full, "%s_%s", name, parts[i]);
            part[i] = fixture_floats(s, full, NULL);
        }
        ts_torch_rng rng;
        ts_torch_rng_seed(&rng, 2024);
        ts_torch_randn(&rng, noise, N);
        for (int i = 0; i < N; i++) {
            picture[i] = -1 + 2.0f * (float)i / (N - 1);
            x[i] = plan->row[0].signal * picture[i] + plan->row[0].noise * noise[i];
        }
        close_to(name, "start", 0, x, part[1], N, 1e-6);
        buffers b = buffers_new(plan, N);
        for (int r = 0; r < plan->rows; r++) {
            const ts_sampler_row *row = &plan->row[r];
            assert_true(fabs(row->timestep - (double)part[0][r]) < 1e-3);
            take_row(plan, row, x, &b, &rng);
            close_to(name, "latents", r, x, part[2] + r * N, N, 2e-5);
            if (r + 1 == plan->rows) break;
            /* The class says of a half-way row the level where the whole step goes. */
            if (sampler == ts_sampler_find("dpm2") || sampler == ts_sampler_find("dpm2_a")) continue;
            for (int i = 0; i < N; i++) level[i] = row[1].signal * picture[i] + row[1].noise * noise[i];
            close_to(name, "level", r, level, part[3] + r * N, N, 1e-6);
        }
        buffers_free(&b);
        for (int i = 0; i < 4; i++) free(part[i]);
        free(plan);
        cases++;
    }
    assert_true(cases > 100);
    cJSON_Delete(json);
    ts_tensors_free(s);
}

/* Of pictures that are all noise of the deviation of the data, a model that knows them predicts 0. What then
 * solves dx/dsigma = x sigma / (sigma^2 + data^2) brings x down by a known factor. */
static void every_sampler_of_sigmas_solves_edms_equation(void **state) {
    (void)state;
    enum { N = 16, STEPS = 300 };
    ts_schedule_config c = config_text("{\"_class_name\":\"EDMEulerScheduler\",\"sigma_max\":40}");
    int solved = 0;
    for (int i = 0; i < ts_sampler_count(); i++) {
        const ts_sampler *s = ts_sampler_at(i);
        ts_sampler_plan *plan = NULL;
        ts_error e = {0};
        ts_code rc = ts_sampler_plan_new(s, &c, STEPS, 0, &plan, &e);
        if (!s->by_sigmas || s == ts_sampler_find("flow_euler")) {
            assert_int_equal(rc, TS_EUNSUPPORTED);
            assert_string_equal(e.param, "sampler");
            continue;
        }
        must(rc, &e);
        float x[N], want[N];
        for (int k = 0; k < N; k++) {
            const double noise = cos(k) * (double)plan->init_scale, scale = sqrt(40.0 * 40 + 1);
            x[k] = (float)noise;
            want[k] = (float)(cos(k) * scale * 0.5 / sqrt(40.0 * 40 + 0.25));
        }
        buffers b = buffers_new(plan, N);
        for (int k = 0; k < N; k++) b.out[k] = 0;
        for (int r = 0; r < plan->rows && !plan->draws_noise; r++)
            ts_sampler_apply(&plan->row[r], x, b.out, b.hist, plan->saves_x ? b.saved : NULL, NULL, N);
        if (!plan->draws_noise) close_to(s->name, "x", plan->rows, x, want, N, 0.02), solved++;
        buffers_free(&b);
        free(plan);
    }
    assert_int_equal(solved, 10);
}

static void edms_levels_are_on_a_curve_or_given(void **state) {
    (void)state;
    for (int k = 0; k < TS_SCHEDULER_COUNT; k++) {
        ts_schedule_config c = config_text("{\"_class_name\":\"EDMDPMSolverMultistepScheduler\"}");
        const ts_level_list list = {.count = 2, .at = {50, 1}};
        const bool curve =
            k == TS_SCHEDULER_KARRAS || k == TS_SCHEDULER_EXPONENTIAL || k == TS_SCHEDULER_BETA;
        ts_sampler_plan *plan = NULL;
        ts_error e = {0};
        ts_schedule_place(&c, (ts_scheduler)k, k < TS_SCHEDULER_NAMED ? NULL : &list, true);
        ts_code rc = ts_sampler_plan_new(ts_sampler_find("euler"), &c, 2, 0, &plan, &e);
        if (k == TS_SCHEDULER_DEFAULT || k == TS_SCHEDULER_SIGMAS || curve) {
            must(rc, &e);
            const double high = k == TS_SCHEDULER_SIGMAS ? 50 : 80,
                         low = k == TS_SCHEDULER_SIGMAS ? 1 : 0.002;
            assert_true(fabs(plan->row[0].timestep - log(high) / 4) < 1e-6);
            assert_true(fabs(plan->row[1].timestep - log(low) / 4) < 1e-6);
            free(plan);
            continue;
        }
        assert_int_equal(rc, TS_EUNSUPPORTED);
        assert_string_equal(e.param, k == TS_SCHEDULER_TIMESTEPS ? "timesteps" : "scheduler");
    }
}

static void samplers_are_found_by_the_names_of_other_front_ends(void **state) {
    (void)state;
    assert_ptr_equal(ts_sampler_find("DPM++ 2M"), ts_sampler_find("dpmpp_2m"));
    assert_ptr_equal(ts_sampler_find("Euler"), ts_sampler_find("euler"));
    assert_ptr_equal(ts_sampler_find("DDIM"), ts_sampler_find("ddim"));
    assert_ptr_equal(ts_sampler_find("EulerDiscreteScheduler"), ts_sampler_find("euler"));
    assert_ptr_equal(ts_sampler_find("Euler a"), ts_sampler_find("euler_a"));
    assert_ptr_equal(ts_sampler_find("k_euler_ancestral"), ts_sampler_find("euler_a"));
    assert_ptr_equal(ts_sampler_find("DPM++ 2M SDE"), ts_sampler_find("dpmpp_2m_sde"));
    assert_ptr_equal(ts_sampler_find("PLMS"), ts_sampler_find("PNDMScheduler"));
    assert_null(ts_sampler_find("Euler b"));
    assert_null(ts_sampler_find(""));
    for (int i = 0; i < ts_sampler_count(); i++) {
        const ts_sampler *s = ts_sampler_at(i);
        assert_ptr_equal(ts_sampler_find(s->name), s);
        assert_ptr_equal(ts_sampler_find(s->label), s);
    }
}

static void a_plan_has_rows_for_1_to_1000_steps_or_says_why_not(void **state) {
    (void)state;
    static const char *const spacings[] = {"leading", "trailing", "linspace"};
    for (int i = 0; i < ts_sampler_count(); i++)
        for (size_t k = 0; k < 3; k++) {
            char text[200];
            snprintf(
                text, sizeof text,
                "{\"timestep_spacing\":\"%s\",\"prediction_type\":\"v_prediction\",\"clip_sample\":false,"
                "\"rescale_betas_zero_snr\":true}",
                spacings[k]);
            ts_schedule_config c = config_text(text);
            for (int steps = 1; steps <= 1000; steps += steps < 130 ? 1 : 29) {
                ts_sampler_plan *plan = NULL;
                ts_error e = {0};
                ts_code rc = ts_sampler_plan_new(ts_sampler_at(i), &c, steps, 0, &plan, &e);
                const ts_sampler *s = ts_sampler_at(i);
                if (rc == TS_EUNSUPPORTED) { /* pure noise, or a flow where the model predicts none */
                    assert_true(s == ts_sampler_find("pndm") || s == ts_sampler_find("flow_euler"));
                    assert_string_equal(e.param, "sampler");
                    continue;
                }
                bool distilled = s == ts_sampler_find("lcm") || s == ts_sampler_find("tcd");
                if (steps < (distilled ? 51 : 250)) must(rc, &e);
                if (rc) {
                    assert_string_equal(e.param, "steps");
                    continue;
                }
                const int extra = s == ts_sampler_find("pndm") && steps > 1;
                assert_int_equal(plan->rows, s->evaluations == 2 ? 2 * steps - 1 : steps + extra);
                for (int r = 0; r < plan->rows; r++) {
                    assert_true(plan->row[r].timestep >= 0 && plan->row[r].timestep <= 999);
                    /* The second evaluation of a step lies between it and the next; on a clamped table,
                     * about. */
                    const int before = r - s->evaluations;
                    assert_true(before < 0 || plan->row[r].timestep <= plan->row[before].timestep ||
                                (s->evaluations == 2 && r % 2 == 1));
                }
                free(plan);
            }
            ts_sampler_plan *plan = NULL;
            ts_error e = {0};
            assert_int_equal(ts_sampler_plan_new(ts_sampler_at(i), &c, 0, 0, &plan, &e), TS_EINVAL);
            assert_string_equal(e.param, "steps");
            assert_int_equal(ts_sampler_plan_new(ts_sampler_at(i), &c, 1001, 0, &plan, &e), TS_EINVAL);
            assert_int_equal(ts_sampler_plan_new(ts_sampler_at(i), &c, -1, 0, &plan, NULL), TS_EINVAL);
            assert_null(plan);
        }
    ts_schedule_config c = config_text("{\"num_train_timesteps\":10,\"timestep_spacing\":\"leading\"}");
    ts_sampler_plan *plan = NULL;
    ts_error e = {0};
    /* Karras' last level and the least of the schedule, which comes after it, are the same number. */
    c = config_text("{\"final_sigmas_type\":\"sigma_min\",\"use_karras_sigmas\":true}");
    static const char *const solvers[] = {"dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"};
    for (int steps = 2; steps < 40; steps++)
        for (size_t i = 0; i < 3; i++) {
            must(ts_sampler_plan_new(ts_sampler_find(solvers[i]), &c, steps, 0, &plan, &e), &e);
            free(plan);
        }
    plan = NULL;
    c = config_text("{\"num_train_timesteps\":10,\"timestep_spacing\":\"leading\"}");
    assert_int_equal(ts_sampler_plan_new(ts_sampler_find("ddim"), &c, 11, 0, &plan, &e), TS_EINVAL);
    c = config_text("{\"timestep_spacing\":\"leading\",\"steps_offset\":1}");
    assert_int_equal(ts_sampler_plan_new(ts_sampler_find("ddim"), &c, 1000, 0, &plan, &e), TS_EINVAL);
    c = config_text("{\"timestep_spacing\":\"trailing\",\"rescale_betas_zero_snr\":true}");
    assert_int_equal(ts_sampler_plan_new(ts_sampler_find("ddim"), &c, 20, 0, &plan, &e), TS_EUNSUPPORTED);
    assert_string_equal(e.param, "prediction_type");
}

static char *read_source(const char *path) {
    const char *root = getenv("TS_SOURCE");
    char *full = ts_format("%s/%s", root ? root : ".", path), *text = NULL;
    size_t size;
    ts_error e = {0};
    must(ts_read_file(full, 1u << 20, &text, &size, &e), &e);
    free(full);
    return text;
}

/* docs/samplers.md has a row for each, which says what the table says, and no other rows. */
static void the_page_about_samplers_lists_what_there_is(void **state) {
    (void)state;
    char *page = read_source("docs/samplers.md");
    int rows = 0, missing = 0;
    for (const char *at = page; (at = strstr(at, "\n| `")); at++) rows++;
    for (int i = 0; i < ts_sampler_count(); i++) {
        const ts_sampler *s = ts_sampler_at(i);
        char row[512], *to = row, *end = row + sizeof row;
        to += snprintf(to, (size_t)(end - to), "\n| `%s` | %s | ", s->name, s->label);
        for (int k = 0; s->aliases[k]; k++)
            to += snprintf(to, (size_t)(end - to), "%s%s", k ? ", " : "", s->aliases[k]);
        char eta[32] = "";
        if (s->by_eta) snprintf(eta, sizeof eta, "%g", s->eta);
        snprintf(to, (size_t)(end - to), " | %d | %s | %s | %s | %s |\n", s->evaluations,
                 s->by_spacing ? "yes" : "", s->by_sigmas ? "yes" : "", s->by_timesteps ? "yes" : "", eta);
        if (!strstr(page, row)) print_message("not there: %s", row), missing++;
    }
    static const char *const places[] = {"", "spacing", "sigmas", "timesteps"};
    for (int i = 0; i < TS_SCHEDULER_NAMED; i++) {
        char row[128];
        snprintf(row, sizeof row, "\n| `%s` | %s | %s | ", ts_scheduler_name((ts_scheduler)i),
                 ts_scheduler_label((ts_scheduler)i), places[ts_scheduler_places((ts_scheduler)i)]);
        if (!strstr(page, row)) print_message("not there: %s", row), missing++;
    }
    assert_int_equal(missing, 0);
    assert_int_equal(rows, ts_sampler_count() + TS_SCHEDULER_NAMED);
    free(page);
}

static void a_row_saves_draws_and_shifts_as_its_header_says(void **state) {
    (void)state;
    /* By hand: d = 2*3 + 1*4 = 10 clamped to 8; x' = 3 + 2*8 + 0.5*4 + 10*1 + 100*2 + 1000*3 + 7*0.5 +
     * 9*0.25; h = 4*3 - 8 = 4 */
    const ts_sampler_row row = {.d_from_x = 2,
                                .d_from_out = 1,
                                .clip = 8,
                                .x_from_x = 1,
                                .x_from_d = 2,
                                .x_from_out = 0.5f,
                                .x_from_hist = {10, 100, 1000},
                                .x_from_saved = 7,
                                .x_from_noise = 9,
                                .save_x = true,
                                .push_from_x = 4,
                                .push_from_d = -1,
                                .push = true};
    float x = 3, out = 4, h0 = 1, h1 = 2, h2 = 3, saved = 0.5f, noise = 0.25f;
    float *hist[TS_SAMPLER_HISTORY] = {&h0, &h1, &h2};
    ts_sampler_apply(&row, &x, &out, hist, &saved, &noise, 1);
    assert_float_equal(x, 3236.75f, 1e-3f);
    assert_true(saved == 3 && h0 == 4 && h1 == 1 && h2 == 2);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alphas_are_those_of_diffusers),
        cmocka_unit_test(alphas_of_any_length_are_numbers_that_fall),
        cmocka_unit_test(every_step_is_that_of_diffusers),
        cmocka_unit_test(placed_levels_are_those_of_diffusers),
        cmocka_unit_test(momentum_is_that_of_its_paper),
        cmocka_unit_test(time_shift_is_that_of_its_paper),
        cmocka_unit_test(a_list_that_is_none_is_named),
        cmocka_unit_test(a_flow_has_levels_up_to_1),
        cmocka_unit_test(samplers_without_eta_refuse_it),
        cmocka_unit_test(a_plan_without_its_first_steps_is_that_of_diffusers),
        cmocka_unit_test(every_sampler_of_sigmas_solves_edms_equation),
        cmocka_unit_test(edms_levels_are_on_a_curve_or_given),
        cmocka_unit_test(samplers_are_found_by_the_names_of_other_front_ends),
        cmocka_unit_test(a_plan_has_rows_for_1_to_1000_steps_or_says_why_not),
        cmocka_unit_test(the_page_about_samplers_lists_what_there_is),
        cmocka_unit_test(a_row_saves_draws_and_shifts_as_its_header_says),
    };
    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
