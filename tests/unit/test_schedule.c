/* Scheduler configs: what they mean, and what is refused. */
#include "schedule_text.h"

#include <unistd.h>
#include "engine/sampler.h"

/* The plan of a file that says it, which diffusers' own steps are compared with, is the plan of asking for
 * it. */
static void asking_for_a_scheduler_is_as_if_the_file_had_it(void **state) {
    (void)state;
    static const struct {
        const char *scheduler, *text;
    } cases[] = {
        {"karras", "{\"use_karras_sigmas\":true}"},
        {"exponential", "{\"use_exponential_sigmas\":true}"},
        {"beta", "{\"use_beta_sigmas\":true}"},
        {"trailing", "{\"timestep_spacing\":\"trailing\"}"},
        {"leading", "{\"timestep_spacing\":\"leading\"}"},
        {"linspace", "{\"timestep_spacing\":\"linspace\"}"},
    };
    for (int i = 0; i < ts_sampler_count(); i++)
        for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
            const ts_sampler *s = ts_sampler_at(i);
            const int scheduler = ts_scheduler_find(cases[k].scheduler);
            assert_true(scheduler > 0);
            ts_error e = {0};
            if (ts_sampler_takes(s, (ts_scheduler)scheduler, &e)) {
                assert_string_equal(e.param, "scheduler");
                assert_true(!s->by_sigmas || !s->by_spacing);
                continue;
            }
            ts_schedule_config asked = config_text("{}"), file = config_text(cases[k].text);
            if (s == ts_sampler_find("flow_euler"))
                asked.prediction_type = file.prediction_type = TS_PREDICT_FLOW;
            ts_schedule_place(&asked, (ts_scheduler)scheduler, NULL, false);
            /* Its class overlooks them in a file. Euler has the same levels. */
            const bool ancestral = s == ts_sampler_find("euler_a");
            ts_sampler_plan *a = NULL, *b = NULL;
            must(ts_sampler_plan_new(s, &asked, 10, 0, &a, &e), &e);
            must(ts_sampler_plan_new(ancestral ? ts_sampler_find("euler") : s, &file, 10, 0, &b, &e), &e);
            assert_int_equal(a->rows, b->rows);
            for (int r = 0; r < a->rows; r++) {
                assert_true(a->row[r].timestep == b->row[r].timestep && a->row[r].c_in == b->row[r].c_in);
                if (!ancestral) assert_memory_equal(&a->row[r], &b->row[r], sizeof a->row[r]);
            }
            free(a), free(b);
        }
    assert_int_equal(ts_scheduler_find("normal"), -1);
    assert_int_equal(ts_scheduler_find("default"), TS_SCHEDULER_DEFAULT);
}

/* What a file leaves out is the default of the class that runs, not of the one that wrote it. */
static void pndm_ends_at_the_first_alpha_unless_told(void **state) {
    (void)state;
    static const char *const samplers[] = {"pndm", "ddim"};
    for (int i = 0; i < 2; i++) {
        const ts_sampler *s = ts_sampler_find(samplers[i]);
        ts_schedule_config unsaid = config_text("{\"_class_name\":\"EulerDiscreteScheduler\"}");
        ts_schedule_config said = config_text(i ? "{\"clip_sample\":false,\"set_alpha_to_one\":true}"
                                                : "{\"clip_sample\":false,\"set_alpha_to_one\":false}");
        ts_sampler_plan *a = NULL, *b = NULL;
        ts_error e = {0};
        must(ts_sampler_plan_new(s, &unsaid, 5, 0, &a, &e), &e);
        must(ts_sampler_plan_new(s, &said, 5, 0, &b, &e), &e);
        assert_memory_equal(&a->row[a->rows - 1], &b->row[b->rows - 1], sizeof a->row[0]);
        free(a), free(b);
    }
}

static void an_unknown_value_is_named_and_an_unknown_key_ignored(void **state) {
    (void)state;
    static const struct {
        const char *text, *param;
        ts_code code;
    } cases[] = {
        {"{\"beta_schedule\":\"quadratic\"}", "beta_schedule", TS_EINVAL},
        {"{\"beta_schedule\":3}", "beta_schedule", TS_EINVAL},
        {"{\"beta_schedule\":\"exp\"}", "beta_schedule", TS_EUNSUPPORTED},
        {"{\"prediction_type\":\"velocity\"}", "prediction_type", TS_EINVAL},
        {"{\"prediction_type\":\"flow_prediction\"}", "prediction_type", TS_EUNSUPPORTED},
        {"{\"timestep_spacing\":\"Leading\"}", "timestep_spacing", TS_EINVAL},
        {"{\"timestep_spacing\":\"\"}", "timestep_spacing", TS_EINVAL},
        {"{\"final_sigmas_type\":\"one\"}", "final_sigmas_type", TS_EINVAL},
        {"{\"solver_type\":\"rk4\"}", "solver_type", TS_EINVAL},
        {"{\"algorithm_type\":\"sde-dpmsolver\"}", "algorithm_type", TS_EUNSUPPORTED},
        {"{\"_class_name\":\"DPMSolverSinglestepScheduler\",\"algorithm_type\":\"sde-dpmsolver++\"}",
         "algorithm_type", TS_EUNSUPPORTED},
        {"{\"predict_x0\":false}", "predict_x0", TS_EUNSUPPORTED},
        {"{\"original_inference_steps\":0}", "original_inference_steps", TS_EINVAL},
        {"{\"use_karras_sigmas\":true,\"use_exponential_sigmas\":true}", "use_exponential_sigmas", TS_EINVAL},
        {"{\"algorithm_type\":\"dpm\"}", "algorithm_type", TS_EINVAL},
        {"{\"_class_name\":\"EDMHeunScheduler\"}", "_class_name", TS_EUNSUPPORTED},
        {"{\"_class_name\":\"EDMEulerScheduler\",\"rho\":5}", "rho", TS_EUNSUPPORTED},
        {"{\"_class_name\":\"EDMEulerScheduler\",\"sigma_data\":0}", "sigma_data", TS_EINVAL},
        {"{\"_class_name\":\"EDMEulerScheduler\",\"sigma_max\":0.002}", "sigma_min", TS_EINVAL},
        {"{\"_class_name\":\"EDMEulerScheduler\",\"sigma_schedule\":\"linear\"}", "sigma_schedule",
         TS_EINVAL},
        {"{\"_class_name\":\"EDMDPMSolverMultistepScheduler\",\"prediction_type\":\"sample\"}",
         "prediction_type", TS_EUNSUPPORTED},
        {"{\"_class_name\":\"EulerDiscreteScheduler\",\"timestep_type\":\"continuous\"}", "timestep_type",
         TS_EUNSUPPORTED},
        {"{\"_class_name\":\"EulerDiscreteScheduler\",\"timestep_type\":\"continuous\",\"use_karras_sigmas\":"
         "true}",
         "timestep_type", TS_EUNSUPPORTED},
        {"{\"timestep_type\":\"discret\"}", "timestep_type", TS_EINVAL},
        {"{\"_class_name\":\"UniPCMultistepScheduler\",\"disable_corrector\":[0]}", "disable_corrector",
         TS_EUNSUPPORTED},
        {"{\"use_beta_sigmas\":true,\"use_karras_sigmas\":true}", "use_beta_sigmas", TS_EINVAL},
        {"{\"use_lu_lambdas\":1}", "use_lu_lambdas", TS_EINVAL},
        {"{\"thresholding\":true}", "thresholding", TS_EUNSUPPORTED},
        {"{\"trained_betas\":[0.1]}", "trained_betas", TS_EUNSUPPORTED},
        {"{\"variance_type\":\"learned\"}", "variance_type", TS_EUNSUPPORTED},
        {"{\"num_train_timesteps\":0}", "num_train_timesteps", TS_EINVAL},
        {"{\"num_train_timesteps\":1e9}", "num_train_timesteps", TS_EINVAL},
        {"{\"num_train_timesteps\":99.5}", "num_train_timesteps", TS_EINVAL},
        {"{\"steps_offset\":-1}", "steps_offset", TS_EINVAL},
        {"{\"beta_end\":2}", "beta_end", TS_EINVAL},
        {"{\"rescale_betas_zero_snr\":\"yes\"}", "rescale_betas_zero_snr", TS_EINVAL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cJSON *json = cJSON_Parse(cases[i].text);
        ts_schedule_config c;
        ts_error e = {0};
        ts_code rc = ts_schedule_config_read(json, &c, &e);
        if (rc != cases[i].code || strcmp(e.param, cases[i].param) != 0 || !strstr(e.message, cases[i].param))
            fail_msg("%s: %s, %s, %s", cases[i].text, ts_code_name(rc), e.param, e.message);
        cJSON_Delete(json);
    }
    ts_schedule_config c = config_text(
        "{\"_class_name\":\"PNDMScheduler\",\"skip_prk_steps\":true,\"disable_corrector\":[],\"x\":{}}");
    assert_int_equal(c.timestep_spacing, TS_SPACING_UNSET);
    assert_true(c.clip_sample_range == 0);
    assert_true(config_text("{\"_class_name\":\"DDIMScheduler\"}").clip_sample_range == 1);
}

/* PNDM's Runge-Kutta steps are not offered; its file is good for every other sampler. */
static void a_key_of_one_sampler_is_no_reason_to_refuse_the_others(void **state) {
    (void)state;
    static const char *const files[] = {"{\"_class_name\":\"PNDMScheduler\"}",
                                        "{\"_class_name\":\"PNDMScheduler\",\"skip_prk_steps\":false}"};
    for (int i = 0; i < 2; i++) {
        ts_schedule_config c = config_text(files[i]);
        ts_sampler_plan *plan = NULL;
        ts_error e = {0};
        assert_int_equal(ts_sampler_plan_new(ts_sampler_find("pndm"), &c, 4, 0, &plan, &e), TS_EUNSUPPORTED);
        assert_string_equal(e.param, "sampler");
        must(ts_sampler_plan_new(ts_sampler_find("euler"), &c, 4, 0, &plan, &e), &e);
        free(plan);
    }
}

/* What a file leaves out is what the class that runs has by default. */
static void what_a_file_leaves_out_is_the_running_classs_own(void **state) {
    (void)state;
    ts_schedule_config two_s = config_text("{\"_class_name\":\"DPMSolverSinglestepScheduler\"}");
    ts_schedule_config two_m = config_text("{\"_class_name\":\"DPMSolverMultistepScheduler\"}");
    ts_schedule_config ddim = config_text("{\"_class_name\":\"DDIMScheduler\"}");
    static const struct {
        const char *sampler;
        int clips; /* of DDIM's file */
    } cases[] = {{"ddim", 1}, {"ddpm", 1}, {"lcm", 0}, {"heun", 0}};
    for (int i = 0; i < 4; i++) {
        ts_sampler_plan *plan = NULL;
        ts_error e = {0};
        must(ts_sampler_plan_new(ts_sampler_find(cases[i].sampler), &ddim, 4, 0, &plan, &e), &e);
        assert_int_equal(plan->row[0].clip > 0, cases[i].clips);
        free(plan);
    }
    static const char *const both[] = {"unipc", "deis", "dpmpp_2m", "dpmpp_2s"};
    for (int i = 0; i < 4; i++) {
        ts_sampler_plan *a = NULL, *b = NULL;
        ts_error e = {0};
        must(ts_sampler_plan_new(ts_sampler_find(both[i]), &two_s, 5, 0, &a, &e), &e);
        must(ts_sampler_plan_new(ts_sampler_find(both[i]), &two_m, 5, 0, &b, &e), &e);
        assert_int_equal(a->rows, b->rows);
        assert_memory_equal(a->row, b->row, (size_t)a->rows * sizeof *a->row);
        free(a), free(b);
    }
}

static void what_python_writes_for_infinity_is_read(void **state) {
    (void)state;
    char path[] = "/tmp/ts_schedule_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    const char *text = "{\"_class_name\": \"DPMSolverMultistepScheduler\", \"a\\\\\\\"-Infinity\": NaN ,\n"
                       " \"lambda_min_clipped\": -Infinity, \"b\": Infinity, \"steps_offset\": 1}";
    ts_error e = {0};
    ts_schedule_config c;
    must(ts_write_file(path, text, strlen(text), &e), &e);
    must(ts_schedule_config_open(path, NULL, &c, &e), &e);
    assert_true(isinf(c.lambda_min_clipped) && c.lambda_min_clipped < 0);
    assert_int_equal(c.steps_offset, 1);
    assert_string_equal(c.sampler, "dpmpp_2m");
    static const char *const bad[] = {"",
                                      "[",
                                      "{\"beta_schedule\":\"quadratic\"}",
                                      "-Infinity",
                                      "{\"beta_start\":NaN}",
                                      "{\"beta_end\":Infinity}",
                                      "{\"num_train_timesteps\":Infinity}",
                                      "{\"use_karras_sigmas\":Infinity}",
                                      "{\"sigma_max\":NaN }"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        must(ts_write_file(path, bad[i], strlen(bad[i]), &e), &e);
        assert_true(ts_schedule_config_open(path, NULL, &c, &e) != TS_OK);
        assert_non_null(strstr(e.message, path));
    }
    unlink(path);
    assert_int_equal(ts_schedule_config_open(path, NULL, &c, &e), TS_ENOTFOUND);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(asking_for_a_scheduler_is_as_if_the_file_had_it),
        cmocka_unit_test(pndm_ends_at_the_first_alpha_unless_told),
        cmocka_unit_test(an_unknown_value_is_named_and_an_unknown_key_ignored),
        cmocka_unit_test(a_key_of_one_sampler_is_no_reason_to_refuse_the_others),
        cmocka_unit_test(what_a_file_leaves_out_is_the_running_classs_own),
        cmocka_unit_test(what_python_writes_for_infinity_is_read),
    };
    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
