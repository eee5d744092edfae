/* Pictures of a model that is told the guidance scale (latent consistency models), against diffusers'
 * pipeline. */
#include "workshop.h"

static cJSON *json;
static ts_tensors *io;

typedef struct device_case {
    const ts_backend *backend;
    int ranks;
} device_case;

static ts_shape shape_of(const ts_model *m) {
    return (ts_shape){.width = (int)json_value(json, "width"),
                      .height = (int)json_value(json, "height"),
                      .steps = (int)json_value(json, "steps"),
                      .sampler = ts_sampler_find(ts_model_get_info(m)->default_sampler),
                      .parallel = {.mode = TS_MODE_SYNC},
                      .dtype = TS_F32,
                      .guided = ts_model_guides(m, 8.5)};
}

typedef struct album {
    ts_picture pictures[TS_MAX_BATCH];
    float *latents[TS_MAX_BATCH];
} album;

static void take(void *arg, ts_picture *picture) {
    album *a = arg;
    a->latents[picture - a->pictures] = picture->latents_out;
    picture->latents_out = NULL;
}

static char *consistent_folder(void) {
    char *folder = workshop_folder("pipeline_sd1", "{\"_class_name\":\"LatentConsistencyModelPipeline\"}");
    workshop_swap(folder, "unet", "unet_lcm");
    workshop_swap(folder, "scheduler", "lcm_scheduler");
    return folder;
}

/* Every step is made, in the lower part of the noise levels. */
static void an_edit_is_that_of_diffusers(void **state) {
    const cJSON *c = *state;
    char *folder = consistent_folder();
    studio s = studio_open_with(folder, NULL, 2);
    ts_shape shape = shape_of(s.model);
    shape.task = TS_TASK_IMAGE;
    shape.strength = json_value(c, "strength");
    unsigned char *image = studio_source(shape.width, shape.height);
    const ts_picture request = {.params = {.prompt = json_text(json, "prompt"),
                                           .seed = (uint64_t)json_value(c, "seed"),
                                           .guidance_scale = json_value(c, "guidance"),
                                           .image = image}};
    shot have = studio_shoot(s, &shape, &request);
    tensor want = tensor_of(io, "%s.latents", json_text(c, "name"));
    assert_int_equal(have.stats.evaluations, shape.steps);
    assert_close(json_text(c, "name"), have.latents, want, 1e-4);
    tensor_free(want);
    shot_free(have);
    /* 50 timesteps, of which strength leaves too few. */
    ts_error e = {0};
    shape.steps = 20;
    shape.strength = 0.3;
    assert_int_equal(ts_group_check(s.group, s.model, &shape, &e), TS_EINVAL);
    assert_string_equal(e.param, "steps");
    shape.steps = 15;
    must(ts_group_check(s.group, s.model, &shape, &e), &e);
    studio_close(s);
    free(image);
    workshop_discard_folder(folder);
}

/* All of them in one job: each is told its own. */
static void each_picture_is_that_of_diffusers(void **state) {
    const device_case *k = *state;
    char *folder = consistent_folder();
    ts_error e = {0};
    ts_model *m = NULL;
    must(ts_model_load(folder, NULL, &m, &e), &e);
    assert_false(ts_model_guides(m, 8.5));
    ts_device_spec devices[TS_MAX_RANKS];
    for (int i = 0; i < k->ranks; i++) devices[i] = (ts_device_spec){k->backend, i, 1};
    ts_group *group = NULL;
    must(ts_group_open(devices, k->ranks, &group, &e), &e);
    album a = {0};
    ts_job job = {
        .shape = shape_of(m), .pictures = a.pictures, .keep_latents = true, .on_picture = take, .arg = &a};
    assert_string_equal(job.shape.sampler->name, "lcm");
    const cJSON *c, *cases = cJSON_GetObjectItemCaseSensitive(json, "cases");
    cJSON_ArrayForEach(c, cases) a.pictures[job.count++].params =
        (ts_picture_params){.prompt = json_text(json, "prompt"),
                            .seed = (uint64_t)json_value(c, "seed"),
                            .guidance_scale = json_value(c, "guidance")};
    must(ts_group_run(group, m, &job, &e), &e);
    int i = 0;
    cJSON_ArrayForEach(c, cases) {
        must(a.pictures[i].error.code, &a.pictures[i].error);
        tensor want = tensor_of(io, "%s.latents", json_text(c, "name")), have = want;
        have.data = a.latents[i++];
        assert_close(json_text(c, "name"), have, want, 1e-4);
        tensor_free(want);
        tensor_free(have);
    }
    assert_int_equal(job.stats.ranks, k->ranks);
    ts_group_close(group);
    ts_model_free(m);
    workshop_discard_folder(folder);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    workshop_open(argc, argv);
    json = fixture_json("distilled.json");
    io = fixture_tensors("distilled.safetensors");
    static const device_case devices[] = {{&ts_backend_ref, 1}, {&ts_backend_cpu, 1}, {&ts_backend_cpu, 2}};
    test_list tests = {0};
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
        test_add(&tests, each_picture_is_that_of_diffusers, &devices[i], sizeof devices[i],
                 "pictures told their guidance scale on %s:%d are diffusers'", devices[i].backend->name,
                 devices[i].ranks);
    const cJSON *c;
    cJSON_ArrayForEach(c, cJSON_GetObjectItemCaseSensitive(json, "edits")) test_add(
        &tests, an_edit_is_that_of_diffusers, c, 0, "an edit of %s is diffusers'", json_text(c, "name"));
    int failed = test_run(&tests, "distilled");
    ts_tensors_free(io);
    cJSON_Delete(json);
    workshop_close();
    return failed;
}
