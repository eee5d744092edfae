/* Several ranks, displaced in every way, against a simulation of them in PyTorch that was written from the
 * definitions alone (tools/parity/simulate_ranks.py). */
#include "pictures.h"

static cJSON *fixture;
static ts_tensors *io;
static studio the_studio;

static double partial_of(const cJSON *c) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(c, "partial");
    if (cJSON_IsNumber(v)) return v->valuedouble;
    assert_string_equal(json_text(c, "partial"), "all");
    return INFINITY;
}

static double number_or(const cJSON *c, const char *key, double otherwise) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(c, key);
    return v ? v->valuedouble : otherwise;
}

/* The case as a job; noise and text are the fixture's. by_branch: on twice the ranks, one half for each
 * branch. */
static shot shoot(const cJSON *c, bool by_branch) {
    const char *size = json_text(c, "size");
    int height, width;
    assert_int_equal(sscanf(size, "%dx%d", &height, &width), 2);
    const int mode = ts_mode_find(json_text(c, "mode"));
    const int group_norm = ts_group_norm_mode_find(json_text(c, "group_norm"));
    assert_true(mode >= 0 && group_norm >= 0);
    const char *sampler = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(c, "sampler"));
    char *name = ts_format("noise_%s", size);
    float *noise = fixture_floats(io, name, NULL), *text = fixture_floats(io, "encoder_hidden_states", NULL);
    ts_shape shape = {.width = 8 * width,
                      .height = 8 * height,
                      .steps = (int)json_value(c, "steps"),
                      .sampler = ts_sampler_find(sampler ? sampler : "ddim"),
                      .dtype = TS_F32,
                      .guided = true,
                      .parallel = {.mode = (ts_mode)mode,
                                   .ranks = (int)json_value(c, "ranks") * (by_branch ? 2 : 1),
                                   .partial = partial_of(c),
                                   .warmup = (int)json_value(c, "warmup"),
                                   .group_norm = (ts_group_norm_mode)group_norm,
                                   .cfg_split = by_branch ? TS_CFG_SPLIT_ON : TS_CFG_SPLIT_OFF}};
    const cJSON *interval = cJSON_GetObjectItemCaseSensitive(c, "interval");
    ts_picture request = {.params = {.guidance_scale = json_value(c, "guidance"),
                                     .guidance_rescale = number_or(c, "rescale", 0)},
                          .text_in = text,
                          .latents_in = noise};
    if (interval)
        request.params.guidance_interval = (ts_interval){cJSON_GetArrayItem(interval, 0)->valuedouble,
                                                         cJSON_GetArrayItem(interval, 1)->valuedouble};
    shot s = studio_shoot(the_studio, &shape, &request);
    free(noise);
    free(text);
    free(name);
    return s;
}

static bool changes_guidance(const cJSON *c) {
    return cJSON_HasObjectItem(c, "rescale") || cJSON_HasObjectItem(c, "interval");
}

static void latents_are_those_of_the_simulation(void **state) {
    const cJSON *c = *state;
    const char *name = json_text(c, "name");
    const bool single = strcmp(json_text(c, "mode"), "sync") == 0 && !changes_guidance(c);
    tensor want = single ? tensor_of(io, "single_%s", json_text(c, "size")) : tensor_of(io, "%s", name);
    for (int by_branch = 0; by_branch <= changes_guidance(c); by_branch++) {
        shot s = shoot(c, by_branch);
        assert_int_equal(s.stats.patches, (int)json_value(c, "ranks"));
        assert_int_equal(s.stats.ranks, s.stats.patches * (1 + by_branch));
        assert_close(name, s.latents, want, 1e-3);
        shot_free(s);
    }
    tensor_free(want);
}

/* One rank is the picture that `sync` is held against, and no case is tested with an empty distance. */
static void one_rank_is_one_device(void **state) {
    (void)state;
    const cJSON *c = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(fixture, "cases"), 0);
    cJSON *alone = cJSON_Duplicate(c, true);
    cJSON_ReplaceItemInObjectCaseSensitive(alone, "mode", cJSON_CreateString("single"));
    cJSON_ReplaceItemInObjectCaseSensitive(alone, "ranks", cJSON_CreateNumber(1));
    shot s = shoot(alone, false);
    tensor want = tensor_of(io, "single_%s", json_text(c, "size"));
    assert_close("single", s.latents, want, 1e-4);
    tensor_free(want);
    shot_free(s);
    cJSON_Delete(alone);
}

/* A sampler that looks at all of x sees the same on any number of ranks. */
static void time_shift_in_sync_is_one_device(void **state) {
    const char *size = *state;
    cJSON *c = cJSON_CreateObject();
    cJSON_AddStringToObject(c, "size", size);
    cJSON_AddStringToObject(c, "mode", "single");
    cJSON_AddStringToObject(c, "group_norm", "corrected");
    cJSON_AddNumberToObject(c, "partial", 0.3);
    cJSON_AddNumberToObject(c, "ranks", 1);
    cJSON_AddNumberToObject(c, "warmup", 0);
    cJSON_AddNumberToObject(c, "steps", 7);
    cJSON_AddNumberToObject(c, "guidance", 4);
    shot ddim = shoot(c, false);
    cJSON_AddStringToObject(c, "sampler", "time_shift");
    shot alone = shoot(c, false);
    double away = 0;
    for (int i = 0; i < alone.latents.c * alone.latents.h * alone.latents.w; i++)
        away = fmax(away, fabs((double)(alone.latents.data[i] - ddim.latents.data[i])));
    assert_true(away > 0.01);
    cJSON_ReplaceItemInObjectCaseSensitive(c, "mode", cJSON_CreateString("sync"));
    for (int ranks = 2; ranks <= 4; ranks++)
        for (int by_branch = 0; by_branch < 2; by_branch++) {
            cJSON_ReplaceItemInObjectCaseSensitive(c, "ranks", cJSON_CreateNumber(ranks));
            shot s = shoot(c, by_branch);
            assert_int_equal(s.stats.patches, ranks);
            assert_close(size, s.latents, alone.latents, 1e-5);
            shot_free(s);
        }
    shot_free(alone);
    shot_free(ddim);
    cJSON_Delete(c);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    test_list tests = {0};
    fixture = fixture_json("ranks.json");
    io = fixture_tensors("ranks.safetensors");
    the_studio = studio_open("pipeline_sd1", &ts_backend_cpu, 8);
    ts_error e = {0};
    must(ts_schedule_config_read(cJSON_GetObjectItemCaseSensitive(fixture, "scheduler"),
                                 &the_studio.model->schedule, &e),
         &e);
    test_add(&tests, one_rank_is_one_device, NULL, 0, "one rank is one device");
    static const char sizes[][8] = {"32x12", "37x10"};
    for (size_t i = 0; i < 2; i++)
        test_add(&tests, time_shift_in_sync_is_one_device, sizes[i], sizeof sizes[i],
                 "time shift in sync at %s", sizes[i]);
    const cJSON *c;
    cJSON_ArrayForEach(c, cJSON_GetObjectItemCaseSensitive(fixture, "cases"))
        test_add(&tests, latents_are_those_of_the_simulation, c, 0, "%s", json_text(c, "name"));
    int failed = test_run(&tests, "ranks");
    studio_close(the_studio);
    ts_tensors_free(io);
    cJSON_Delete(fixture);
    return failed;
}
