/* XL with EDM's noise levels and with latents that are normalised by channel (Playground 2.5, CosXL), from
 * folders and from single files, against diffusers' pipelines (tools/parity/edm.py). */
#include "workshop.h"

#define INDEX "{\"_class_name\":\"StableDiffusionXLPipeline\"}"

static cJSON *json;
static ts_tensors *io;

typedef struct edm_case {
    const char *name;
    int ranks;
} edm_case;

static const cJSON *case_of(const char *name) {
    const cJSON *c;
    cJSON_ArrayForEach(
        c, cJSON_GetObjectItemCaseSensitive(json, "cases")) if (!strcmp(json_text(c, "name"), name)) return c;
    fail_msg("no case %s", name);
    return NULL;
}

static void put(const char *folder, const char *component, const char *file, const cJSON *config) {
    char *text = cJSON_PrintUnformatted(config);
    assert_non_null(text);
    workshop_put(folder, component, file, text);
    free(text);
}

/* The small XL model with the case's scheduler and its autoencoder's numbers. */
static char *folder_of(const cJSON *c) {
    char *folder = workshop_folder("pipeline_xl", INDEX);
    cJSON *vae = fixture_json("pipeline_xl/vae/config.json"), *v;
    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(c, "vae")) {
        cJSON_DeleteItemFromObjectCaseSensitive(vae, v->string);
        assert_true(cJSON_AddItemToObject(vae, v->string, cJSON_Duplicate(v, true)));
    }
    put(folder, "vae", "config.json", vae);
    put(folder, "scheduler", "scheduler_config.json", cJSON_GetObjectItemCaseSensitive(c, "scheduler"));
    cJSON_Delete(vae);
    return folder;
}

static shot take(studio s, const cJSON *c) {
    const double strength = json_value(c, "strength");
    const ts_shape shape = {.width = (int)json_value(json, "width"),
                            .height = (int)json_value(json, "height"),
                            .steps = (int)json_value(json, "steps"),
                            .sampler = ts_sampler_find(ts_model_get_info(s.model)->default_sampler),
                            .parallel = {.mode = TS_MODE_SYNC},
                            .guided = true,
                            .task = strength > 0 ? TS_TASK_IMAGE : TS_TASK_TEXT,
                            .strength = strength};
    unsigned char *image = studio_source(shape.width, shape.height);
    const ts_picture request = {.params = {.prompt = json_text(json, "prompt"),
                                           .negative = json_text(json, "negative"),
                                           .seed = (uint64_t)json_value(json, "seed"),
                                           .guidance_scale = json_value(c, "guidance"),
                                           .image = strength > 0 ? image : NULL}};
    shot have = studio_shoot(s, &shape, &request);
    free(image);
    return have;
}

static void hold(const cJSON *c, shot have) {
    const char *name = json_text(c, "name");
    tensor latents = tensor_of(io, "%s.latents", name), picture = tensor_of(io, "%s.picture", name);
    assert_close(name, have.latents, latents, 1e-4);
    studio_hold(name, have.rgb, picture);
    tensor_free(latents);
    tensor_free(picture);
}

static void a_folder_makes_diffusers_picture(void **state) {
    const edm_case *k = *state;
    const cJSON *c = case_of(k->name);
    char *folder = folder_of(c);
    studio s = studio_open_with(folder, NULL, k->ranks);
    shot have = take(s, c);
    hold(c, have);
    shot_free(have);
    studio_close(s);
    workshop_discard_folder(folder);
}

static void mark(const char *name, int n, const double *values) {
    ts_file_tensor *t = &workshop.tensors[workshop.count++];
    *t = (ts_file_tensor){.name = name, .dtype = TS_F32, .rank = 1, .shape = {n}, .bytes = 4 * (size_t)n};
    float *to = (float *)(void *)workshop_room(t->bytes);
    for (int i = 0; i < n; i++) to[i] = (float)values[i];
    t->data = to;
}

/* Tensors of a name tell what the file is; all else it says is that of any XL file. */
static void a_single_file_makes_diffusers_picture(void **state) {
    const cJSON *c = case_of(((const edm_case *)*state)->name);
    const cJSON *scheduler = cJSON_GetObjectItemCaseSensitive(c, "scheduler"),
                *vae = cJSON_GetObjectItemCaseSensitive(c, "vae");
    const cJSON *mean = cJSON_GetObjectItemCaseSensitive(vae, "latents_mean"),
                *std = cJSON_GetObjectItemCaseSensitive(vae, "latents_std");
    cJSON *beside = cJSON_Duplicate(workshop_case("xl"), true);
    cJSON *said = cJSON_GetObjectItemCaseSensitive(beside, "beside");
    cJSON_DeleteItemFromObjectCaseSensitive(said, "scheduler");
    cJSON_DeleteItemFromObjectCaseSensitive(cJSON_GetObjectItemCaseSensitive(said, "vae"), "scaling_factor");
    workshop_gather("xl");
    if (mean) {
        double values[2][4];
        for (int i = 0; i < 4; i++) {
            values[0][i] = cJSON_GetArrayItem(mean, i)->valuedouble;
            values[1][i] = cJSON_GetArrayItem(std, i)->valuedouble;
        }
        mark("edm_mean", 4, values[0]);
        mark("edm_std", 4, values[1]);
    } else {
        const double high = json_value(scheduler, "sigma_max"), low = json_value(scheduler, "sigma_min");
        mark("edm_vpred.sigma_max", 1, &high);
        mark("edm_vpred.sigma_min", 1, &low);
    }
    char *path = workshop_write("edm");
    workshop_beside(beside, "edm");
    studio s = studio_open_with(path, NULL, 1);
    shot have = take(s, c);
    hold(c, have);
    shot_free(have);
    studio_close(s);
    workshop_discard(path);
    cJSON_Delete(beside);
}

static void a_model_offers_what_it_has_levels_for(void **state) {
    (void)state;
    char *folder = folder_of(case_of("playground")), *plain = parity_path("pipeline_xl");
    ts_model *m = NULL, *other = NULL;
    ts_error e = {0};
    must(ts_model_load(folder, NULL, &m, &e), &e);
    must(ts_model_load(plain, NULL, &other, &e), &e);
    for (int k = 0; k < TS_SCHEDULER_NAMED; k++) {
        const bool curve =
            k == TS_SCHEDULER_KARRAS || k == TS_SCHEDULER_EXPONENTIAL || k == TS_SCHEDULER_BETA;
        assert_int_equal(ts_model_takes_scheduler(m, (ts_scheduler)k), k == TS_SCHEDULER_DEFAULT || curve);
        assert_true(ts_model_takes_scheduler(other, (ts_scheduler)k));
    }
    assert_true(ts_model_takes_sampler(m, ts_sampler_find("unipc")) &&
                !ts_model_takes_sampler(m, ts_sampler_find("ddim")));
    ts_model_free(m), ts_model_free(other);
    workshop_discard_folder(folder);
    free(plain);
}

/* 1.x' and 2.x' pipelines do not look at an autoencoder's statistics, XL's only at both of them. */
static void statistics_count_where_a_pipeline_looks_at_them(void **state) {
    (void)state;
#define BOTH "\"latents_mean\":[1,2,3,4],\"latents_std\":[4,3,2,1]"
    static const struct {
        const char *pipeline, *index, *keys;
        bool normalised;
    } cases[] = {{"pipeline_xl", INDEX, BOTH, true},
                 {"pipeline_xl", INDEX, "\"latents_mean\":[1,2,3,4]", false},
                 {"pipeline_xl", INDEX, "\"latents_mean\":null,\"latents_std\":[4,3,2,1]", false},
                 {"pipeline_sd1", "{\"_class_name\":\"StableDiffusionPipeline\"}", BOTH, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = workshop_folder(cases[i].pipeline, cases[i].index);
        char *name = ts_format("%s/vae/config.json", cases[i].pipeline);
        cJSON *config = fixture_json(name), *v;
        char *keys = ts_format("{%s}", cases[i].keys);
        cJSON *more = cJSON_Parse(keys);
        assert_non_null(more);
        cJSON_ArrayForEach(v, more) {
            cJSON_DeleteItemFromObjectCaseSensitive(config, v->string);
            assert_true(cJSON_AddItemToObject(config, v->string, cJSON_Duplicate(v, true)));
        }
        put(folder, "vae", "config.json", config);
        ts_error e = {0};
        ts_model *m = NULL;
        must(ts_model_load(folder, NULL, &m, &e), &e);
        assert_int_equal(m->vae.normalised, cases[i].normalised);
        ts_model_free(m);
        cJSON_Delete(config), cJSON_Delete(more);
        free(keys), free(name);
        workshop_discard_folder(folder);
    }
}

/* Marks whose numbers are missing or others' are an error that names them. */
static void a_mark_without_its_numbers_is_named(void **state) {
    (void)state;
    static const double numbers[] = {1, 2, 3, 4, 5};
    static const struct {
        const char *marks[2];
        int n[2];
        const char *bad;
    } cases[] = {{{"edm_mean", "edm_std"}, {5, 4}, "edm_mean"},
                 {{"edm_mean", "edm_std"}, {4, 3}, "edm_std"},
                 {{"edm_mean"}, {4}, "edm_std"},
                 {{"edm_std"}, {4}, "edm_mean"},
                 {{"edm_vpred.sigma_max"}, {2}, "edm_vpred.sigma_max"},
                 {{"edm_vpred.sigma_max", "edm_vpred.sigma_min"}, {1, 2}, "edm_vpred.sigma_min"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        workshop_gather("xl");
        for (int k = 0; k < 2 && cases[i].marks[k]; k++) mark(cases[i].marks[k], cases[i].n[k], numbers);
        char *path = workshop_write("marked");
        ts_error e = {0};
        ts_checkpoint *c = NULL;
        assert_int_equal(ts_checkpoint_open(path, &c, &e), TS_EFORMAT);
        if (!strstr(e.message, cases[i].bad)) fail_msg("%s", e.message);
        workshop_discard(path);
    }
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    workshop_open(argc, argv);
    json = fixture_json("edm.json");
    io = fixture_tensors("edm.safetensors");
    static const edm_case cases[] = {{"playground", 1},       {"playground", 3}, {"playground_image", 1},
                                     {"playground_image", 2}, {"cosxl", 1},      {"cosxl", 2}};
    test_list tests = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        test_add(&tests, a_folder_makes_diffusers_picture, &cases[i], sizeof cases[i],
                 "%s from a folder on %d devices is diffusers'", cases[i].name, cases[i].ranks);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i += 2)
        test_add(&tests, a_single_file_makes_diffusers_picture, &cases[i], sizeof cases[i],
                 "%s from a single file is diffusers'", cases[i].name);
    test_add(&tests, a_model_offers_what_it_has_levels_for, NULL, 0, "a model offers what it has levels for");
    test_add(&tests, statistics_count_where_a_pipeline_looks_at_them, NULL, 0,
             "statistics count where a pipeline looks at them");
    test_add(&tests, a_mark_without_its_numbers_is_named, NULL, 0, "a mark without its numbers is named");
    int failed = test_run(&tests, "edm");
    ts_tensors_free(io);
    cJSON_Delete(json);
    workshop_close();
    return failed;
}
