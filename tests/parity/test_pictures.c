/* Whole pictures from prompts, in four steps, against diffusers' pipelines. */
#include "pictures.h"

typedef struct picture_case {
    const cJSON *json;
    const char *folder;
    const ts_tensors *io;
    const ts_backend *backend;
    int ranks, patches;
    ts_parallel parallel;
} picture_case;

static const char *text_or_null(const cJSON *object, const char *key) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
}

static void the_picture_is_that_of_diffusers(void **state) {
    const picture_case *k = *state;
    const cJSON *c = k->json;
    const char *name = json_text(c, "name");
    studio s = studio_open(k->folder, k->backend, k->ranks);
    const cJSON *scheduler = cJSON_GetObjectItemCaseSensitive(c, "scheduler");
    const cJSON *zeros = cJSON_GetObjectItemCaseSensitive(c, "force_zeros_for_empty_prompt");
    ts_error e = {0};
    if (cJSON_IsObject(scheduler)) must(ts_schedule_config_read(scheduler, &s.model->schedule, &e), &e);
    if (zeros) s.model->zeros_for_absent = cJSON_IsTrue(zeros);
    const double guidance = json_value(c, "guidance");
    ts_shape shape = {.width = (int)json_value(c, "width"),
                      .height = (int)json_value(c, "height"),
                      .steps = (int)json_value(c, "steps"),
                      .sampler = ts_sampler_find(s.model->schedule.sampler),
                      .parallel = k->parallel,
                      .dtype = TS_F32,
                      .guided = guidance > 1};
    ts_picture request = {.params.prompt = json_text(c, "prompt"),
                          .params.negative = text_or_null(c, "negative"),
                          .params.seed = (uint64_t)json_value(c, "seed"),
                          .params.guidance_scale = guidance,
                          .params.guidance_rescale = json_value(c, "guidance_rescale")};
    shot have = studio_shoot(s, &shape, &request);
    tensor steps = tensor_of(k->io, "%s.latents", name), last = steps;
    last.n = 1;
    last.data += (size_t)(steps.n - 1) * (size_t)(steps.c * steps.h * steps.w);
    assert_int_equal(have.stats.evaluations, steps.n);
    assert_int_equal(have.stats.ranks, k->ranks);
    assert_int_equal(have.stats.patches, k->patches);
    assert_close(name, have.latents, last, 1e-4);
    char *key = ts_format("%s.image", name);
    if (ts_tensors_find(k->io, key)) {
        tensor image = tensor_of(k->io, "%s", key);
        studio_hold(name, have.rgb, image);
        tensor_free(image);
    }
    free(key);
    tensor_free(steps);
    shot_free(have);
    studio_close(s);
}

static const struct {
    const char *how;
    const ts_backend *backend;
    int ranks, patches;
    ts_parallel parallel;
} devices[] = {
    {"ref:1", &ts_backend_ref, 1, 1, {.mode = TS_MODE_SINGLE}},
    {"cpu:1", &ts_backend_cpu, 1, 1, {.mode = TS_MODE_SINGLE}},
    {"cpu:2 in sync", &ts_backend_cpu, 2, 2, {.mode = TS_MODE_SYNC, .cfg_split = TS_CFG_SPLIT_OFF}},
    {"cpu:2 by branch", &ts_backend_cpu, 2, 1, {.mode = TS_MODE_PCPP, .cfg_split = TS_CFG_SPLIT_ON}},
    {"cpu:4 by branch, in sync", &ts_backend_cpu, 4, 2, {.mode = TS_MODE_SYNC, .cfg_split = TS_CFG_SPLIT_ON}},
    /* As many synchronous evaluations as there are: nothing is ever stale. */
    {"cpu:2 warmed up to the end",
     &ts_backend_cpu,
     2,
     2,
     {.mode = TS_MODE_PCPP, .partial = 0.3, .warmup = 3, .cfg_split = TS_CFG_SPLIT_OFF}},
};

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    static const char *const folders[] = {"pipeline_sd1", "pipeline_xl"};
    /* The pictures have eight latent rows, of which the 1.x model's deepest level sees one, the XL model's
     * two. */
    static const int most_patches[] = {1, 2};
    test_list tests = {0};
    cJSON *json[2];
    ts_tensors *io[2];
    for (int f = 0; f < 2; f++) {
        char *name = ts_format("%s.json", folders[f]);
        json[f] = fixture_json(name);
        free(name);
        name = ts_format("%s.safetensors", folders[f]);
        io[f] = fixture_tensors(name);
        free(name);
        for (size_t d = 0; d < sizeof devices / sizeof *devices; d++) {
            const cJSON *c;
            cJSON_ArrayForEach(c, cJSON_GetObjectItemCaseSensitive(json[f], "cases")) {
                picture_case k = {.json = c,
                                  .folder = folders[f],
                                  .io = io[f],
                                  .backend = devices[d].backend,
                                  .ranks = devices[d].ranks,
                                  .patches = devices[d].patches,
                                  .parallel = devices[d].parallel};
                if (k.patches > most_patches[f]) continue;
                if (json_value(c, "guidance") <= 1 && k.parallel.cfg_split == TS_CFG_SPLIT_ON) continue;
                test_add(&tests, the_picture_is_that_of_diffusers, &k, sizeof k, "%s/%s on %s", folders[f],
                         json_text(c, "name"), devices[d].how);
            }
        }
    }
    int failed = test_run(&tests, "pictures");
    for (int f = 0; f < 2; f++) {
        cJSON_Delete(json[f]);
        ts_tensors_free(io[f]);
    }
    return failed;
}
