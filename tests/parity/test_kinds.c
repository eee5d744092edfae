/* Which model a file or a folder holds, where its names alone do not say; and what its own pipeline would
 * make of it. */
#include "workshop.h"

#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"

/* Gives a tensor another shape, of zeros. */
static void reshape(const char *name, int axis, int64_t size) {
    ts_file_tensor *t = workshop_tensor(name);
    t->bytes = t->bytes / (size_t)t->shape[axis] * (size_t)size;
    t->shape[axis] = size;
    t->data = workshop_room(t->bytes);
}

/* 2.x with all of its blocks, of which the small model has six. */
static void gather_sd2(void) {
    workshop_gather("sd2");
    ts_file_tensor *t = &workshop.tensors[workshop.count++];
    *t = *workshop_tensor("model.diffusion_model.output_blocks.0.0.in_layers.0.weight");
    t->name = "model.diffusion_model.output_blocks.11.0.in_layers.0.weight";
}

static void hold_sd2(const char *prediction, int size, int layers) {
    char *path = workshop_write("sd2");
    ts_error e = {0};
    ts_checkpoint *c = NULL;
    must(ts_checkpoint_open(path, &c, &e), &e);
    assert_string_equal(json_text(ts_checkpoint_config(c, "scheduler"), "prediction_type"), prediction);
    assert_int_equal((int)json_value(ts_checkpoint_config(c, "unet"), "sample_size"), size);
    assert_int_equal((int)json_value(ts_checkpoint_config(c, "text_encoder"), "num_hidden_layers"), layers);
    ts_checkpoint_free(c);
    workshop_discard(path);
}

/* 2.1 predicts v; what paints into masks was made from 2-base and does not. The last of OpenCLIP-H's layers
 * is not used, and files that were made of diffusers' folders lack it. */
static void the_kinds_of_sd2_are_told_apart(void **state) {
    (void)state;
    gather_sd2();
    const int layers = 24;
    ts_file_tensor *last = &workshop.tensors[workshop.count++];
    *last = *workshop_tensor("cond_stage_model.model.transformer.resblocks.0.ln_1.weight");
    last->name = "cond_stage_model.model.transformer.resblocks.23.ln_1.weight";
    reshape("cond_stage_model.model.token_embedding.weight", 1, 1024);
    hold_sd2("v_prediction", 96, layers - 1);
    last->name = "cond_stage_model.model.transformer.resblocks.22.ln_1.weight";
    hold_sd2("v_prediction", 96, layers - 1);
    reshape("model.diffusion_model.input_blocks.0.0.weight", 1, 9);
    hold_sd2("epsilon", 64, layers - 1);
    last->name = "cond_stage_model.model.transformer.resblocks.21.ln_1.weight";
    char *path = workshop_write("sd2");
    ts_error e = {0};
    ts_checkpoint *c = NULL;
    assert_int_equal(ts_checkpoint_open(path, &c, &e), TS_EFORMAT);
    assert_non_null(strstr(e.message, "22 layers of 24"));
    workshop_discard(path);
}

/* BK-SDM's of 2.x are 2-base's with fewer blocks. */
static void fewer_blocks_of_sd2_predict_epsilon(void **state) {
    (void)state;
    workshop_gather("sd2");
    char *path = workshop_write("sd2");
    ts_error e = {0};
    ts_checkpoint *c = NULL;
    must(ts_checkpoint_open(path, &c, &e), &e);
    assert_string_equal(json_text(ts_checkpoint_config(c, "scheduler"), "prediction_type"), "epsilon");
    ts_checkpoint_free(c);
    workshop_discard(path);
}

/* What is told the guidance scale was made for LCM's scheduler. */
static void a_latent_consistency_model_has_its_scheduler(void **state) {
    (void)state;
    static const char *const kinds[] = {"lcm", "sd1"};
    for (int i = 0; i < 2; i++) {
        workshop_gather(kinds[i]);
        char *path = workshop_write(kinds[i]);
        ts_error e = {0};
        ts_checkpoint *c = NULL;
        must(ts_checkpoint_open(path, &c, &e), &e);
        assert_string_equal(json_text(ts_checkpoint_config(c, "scheduler"), "_class_name"),
                            i ? "PNDMScheduler" : "LCMScheduler");
        assert_int_equal((int)json_value(ts_checkpoint_config(c, "unet"), "sample_size"), i ? 64 : 96);
        ts_checkpoint_free(c);
        workshop_discard(path);
    }
}

/* Puts an entry into the file's header: "__metadata__":{...}, or a tensor without elements. */
static void insert(const char *path, const char *entry) {
    char *bytes;
    size_t size, length = 0;
    ts_error e = {0};
    must(ts_read_file(path, (size_t)64 << 20, &bytes, &size, &e), &e);
    for (int i = 7; i >= 0; i--) length = length << 8 | (unsigned char)bytes[i];
    const size_t more = strlen(entry) + 1;
    char *grown = malloc(size + more);
    assert_non_null(grown);
    for (int i = 0; i < 8; i++) grown[i] = (char)((length + more) >> (8 * i));
    grown[8] = '{';
    memcpy(grown + 9, entry, more - 1);
    grown[8 + more] = ',';
    memcpy(grown + 9 + more, bytes + 9, size - 9);
    must(ts_write_file(path, grown, size + more, &e), &e);
    free(grown);
    free(bytes);
}

static void hold_prediction(const char *kind, const char *entry, const char *prediction) {
    char *path = workshop_write(kind);
    if (entry) insert(path, entry);
    ts_error e = {0};
    ts_checkpoint *c = NULL;
    must(ts_checkpoint_open(path, &c, &e), &e);
    const char *have = json_text(ts_checkpoint_config(c, "scheduler"), "prediction_type");
    if (strcmp(have, prediction) != 0) fail_msg("%s with %s: %s", kind, entry ? entry : "nothing", have);
    ts_checkpoint_free(c);
    workshop_discard(path);
}

#define EMPTY(name, type) "\"" name "\":{\"dtype\":\"" type "\",\"shape\":[0],\"data_offsets\":[0,0]}"
#define SAYS(key, value)  "\"__metadata__\":{\"" key "\":\"" value "\"}"

/* NoobAI's tensors without elements, of any type; kohya's and ComfyUI's metadata. */
static void a_file_says_what_it_predicts(void **state) {
    (void)state;
    static const struct {
        const char *entry, *xl, *sd2;
    } cases[] = {
        {NULL, "epsilon", "v_prediction"},
        {EMPTY("v_pred", "F32"), "v_prediction", "v_prediction"},
        {EMPTY("v_pred", "I64"), "v_prediction", "v_prediction"},
        {EMPTY("v_pred", "BOOL"), "v_prediction", "v_prediction"},
        {SAYS("modelspec.prediction_type", "v"), "v_prediction", "v_prediction"},
        {SAYS("modelspec.predict_key", "v"), "v_prediction", "v_prediction"},
        {SAYS("modelspec.prediction_type", "epsilon"), "epsilon", "epsilon"},
        {SAYS("modelspec.prediction_type", "other"), "epsilon", "v_prediction"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        workshop_gather("xl");
        hold_prediction("xl", cases[i].entry, cases[i].xl);
        gather_sd2();
        hold_prediction("sd2", cases[i].entry, cases[i].sd2);
    }
}

/* Whose bias spreads as 2.1's does predicts v, as ComfyUI has it; 2-base's does not. */
static void two_base_is_known_by_the_spread_of_a_bias(void **state) {
    (void)state;
    static const char name[] = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
    static const float spreads[] = {0.05f, 0.089f, 0.091f, 0.3f};
    for (int i = 0; i < 4; i++) {
        gather_sd2();
        ts_file_tensor *t = &workshop.tensors[workshop.count++];
        *t = (ts_file_tensor){
            .name = name, .dtype = TS_F32, .rank = 1, .shape = {320}, .bytes = 320 * sizeof(float)};
        float *values = (float *)(void *)workshop_room(t->bytes);
        for (int k = 0; k < 320; k++) values[k] = 0.7f + (k % 2 ? spreads[i] : -spreads[i]);
        t->data = values;
        hold_prediction("sd2", NULL, i < 2 ? "epsilon" : "v_prediction");
    }
}

/* Stability's sd_turbo.safetensors has its text encoder where XL's refiner has it. */
static void sd_turbo_is_no_refiner(void **state) {
    (void)state;
    static const char from[] = "cond_stage_model.model.", to[] = "conditioner.embedders.0.model.";
    static char *names[512];
    size_t n = 0;
    workshop_gather("sd2");
    char *other = workshop_write("plain");
    for (size_t i = 0; i < workshop.count; i++)
        if (!strncmp(workshop.tensors[i].name, from, sizeof from - 1)) {
            assert_true(n < 512);
            workshop.tensors[i].name = names[n++] =
                ts_format("%s%s", to, workshop.tensors[i].name + sizeof from - 1);
        }
    assert_true(n > 0);
    ts_error e = {0};
    ts_checkpoint *turbo = NULL, *plain = NULL;
    char *path = workshop_write("turbo");
    must(ts_checkpoint_open(path, &turbo, &e), &e);
    must(ts_checkpoint_open(other, &plain, &e), &e);
    assert_true(cJSON_Compare(ts_checkpoint_config(turbo, "text_encoder"),
                              ts_checkpoint_config(plain, "text_encoder"), 1));
    ts_weights *a = NULL, *b = NULL;
    must(ts_checkpoint_weights(turbo, "text_encoder", &a, &e), &e);
    must(ts_checkpoint_weights(plain, "text_encoder", &b, &e), &e);
    assert_int_equal(ts_weights_elements(a), ts_weights_elements(b));
    ts_weights_free(a), ts_weights_free(b);
    ts_checkpoint_free(turbo), ts_checkpoint_free(plain);
    workshop_discard(path), workshop_discard(other);
    while (n) free(names[--n]);
}

/* diffusers' converter once left XL's projection as the weight of a linear layer, which is the other way
 * round. */
static void the_projection_of_xl_has_two_forms(void **state) {
    (void)state;
    static const char name[] = "conditioner.embedders.1.model.text_projection";
    workshop_gather("xl");
    char *plain = workshop_write("plain");
    ts_file_tensor *t = workshop_tensor(name);
    const size_t rows = (size_t)t->shape[0], columns = (size_t)t->shape[1], size = ts_dtype_size(t->dtype);
    char *turned = workshop_room(t->bytes);
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < columns; k++)
            memcpy(turned + (k * rows + i) * size, (const char *)t->data + (i * columns + k) * size, size);
    t->name = "conditioner.embedders.1.model.text_projection.weight";
    t->data = turned;
    t->shape[0] = (int64_t)columns;
    t->shape[1] = (int64_t)rows;
    char *other = workshop_write("linear");
    ts_error e = {0};
    const ts_param *params[2];
    ts_checkpoint *c[2] = {NULL};
    ts_weights *w[2] = {NULL};
    const char *const paths[] = {plain, other};
    for (int i = 0; i < 2; i++) {
        must(ts_checkpoint_open(paths[i], &c[i], &e), &e);
        must(ts_checkpoint_weights(c[i], "text_encoder_2", &w[i], &e), &e);
        params[i] = ts_weights_find(w[i], "text_projection.weight");
        assert_non_null(params[i]);
    }
    assert_true(cJSON_Compare(ts_checkpoint_config(c[0], "text_encoder_2"),
                              ts_checkpoint_config(c[1], "text_encoder_2"), 1));
    assert_true(cJSON_Compare(ts_checkpoint_config(c[0], "unet"), ts_checkpoint_config(c[1], "unet"), 1));
    assert_memory_equal(params[0]->data, params[1]->data, rows * columns * size);
    for (int i = 0; i < 2; i++) {
        ts_weights_free(w[i]);
        ts_checkpoint_free(c[i]);
    }
    workshop_discard(plain), workshop_discard(other);
}

static void what_is_no_whole_model_of_ours_is_refused_by_its_name(void **state) {
    (void)state;
    static const char *const marks[][2] = {
        {"input_blocks.0.0.weight", "U-Net alone"},
        {"model.diffusion_model.input_blocks.1.0.in_layers.2.scale_weight", "scales"},
        {"model.diffusion_model.time_embed.0.weight_scale", "scales"},
        {"model.diffusion_model.time_embed.0.comfy_quant", "scales"}};
    for (int i = 0; i < 4; i++) {
        workshop_gather("xl");
        if (i == 0) workshop_sift("model.diffusion_model.", false);
        ts_file_tensor *t = &workshop.tensors[workshop.count++];
        *t = (ts_file_tensor){.name = marks[i][0], .dtype = TS_F32, .rank = 1, .shape = {1}, .bytes = 4};
        t->data = workshop_room(4);
        char *path = workshop_write("strange");
        ts_error e = {0};
        ts_checkpoint *c = NULL;
        assert_int_equal(ts_checkpoint_open(path, &c, &e), TS_EUNSUPPORTED);
        if (!strstr(e.message, marks[i][1])) fail_msg("%s", e.message);
        workshop_discard(path);
    }
}

/* ---- folders ---- */

/* Folders that were saved from other pipelines: the same parts under another name. */
static void a_folder_of_another_task_is_read(void **state) {
    (void)state;
    static const struct {
        const char *pipeline, *index, *word; /* NULL: it loads */
    } cases[] = {
        {"pipeline_sd1", "{\"_class_name\":\"StableDiffusionInpaintPipeline\"}", NULL},
        {"pipeline_sd1", "{\"_class_name\":\"StableDiffusionImg2ImgPipeline\"}", NULL},
        {"pipeline_sd1", "{\"_class_name\":\"LatentConsistencyModelImg2ImgPipeline\"}", NULL},
        {"pipeline_xl", "{\"_class_name\":\"StableDiffusionXLInpaintPipeline\"}", NULL},
        {"pipeline_xl", "{\"_class_name\":\"StableDiffusionXLImg2ImgPipeline\"}", NULL},
        {"pipeline_xl",
         "{\"_class_name\":\"StableDiffusionXLImg2ImgPipeline\",\"requires_aesthetics_score\":true}",
         "refiner"},
        {"pipeline_sd1", "{\"_class_name\":\"StableDiffusionControlNetPipeline\"}", "ControlNet"},
        {"pipeline_sd1", "{\"_class_name\":\"StableDiffusionXLPipeline\"}", "text_encoder_2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = workshop_folder(cases[i].pipeline, cases[i].index);
        ts_error e = {0};
        ts_model *m = NULL;
        ts_code rc = ts_model_load(folder, NULL, &m, &e);
        if (!cases[i].word != !rc || (rc && !strstr(e.message, cases[i].word)))
            fail_msg("%s: %s", cases[i].index, e.message);
        ts_model_free(m);
        workshop_discard_folder(folder);
    }
}

/* A pipeline's folder with another scheduler. */
static char *with_scheduler(const char *pipeline, const char *index, const char *scheduler) {
    char *folder = workshop_folder(pipeline, index);
    workshop_put(folder, "scheduler", "scheduler_config.json", scheduler);
    return folder;
}

#define SD  "{\"_class_name\":\"StableDiffusionPipeline\"}"
#define LCM "{\"_class_name\":\"LatentConsistencyModelPipeline\"}"
#define XL  "{\"_class_name\":\"StableDiffusionXLPipeline\"}"

/* StableDiffusionPipeline.__init__: steps_offset becomes 1 and clip_sample false, whatever the file says or
 * leaves out. The pipelines of XL and of latent consistency do neither. */
static void pipelines_of_1_and_2_overrule_two_keys_of_the_scheduler(void **state) {
    (void)state;
    static const struct {
        const char *pipeline, *index, *config;
        int offset;
        double clip;
    } cases[] = {
        {"pipeline_sd1", SD, "{\"_class_name\":\"DDIMScheduler\"}", 1, 0},
        {"pipeline_sd1", SD, "{\"_class_name\":\"DDIMScheduler\",\"steps_offset\":0,\"clip_sample\":true}", 1,
         0},
        {"pipeline_sd1", SD, "{\"_class_name\":\"PNDMScheduler\",\"skip_prk_steps\":true}", 1, 0},
        {"pipeline_sd1", LCM, "{\"_class_name\":\"DDIMScheduler\"}", 0, 1},
        {"pipeline_xl", XL, "{\"_class_name\":\"DDIMScheduler\"}", 0, 1},
        {"pipeline_xl", XL, "{\"_class_name\":\"DDIMScheduler\",\"steps_offset\":1,\"clip_sample\":false}", 1,
         0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = with_scheduler(cases[i].pipeline, cases[i].index, cases[i].config);
        ts_error e = {0};
        ts_model *m = NULL;
        must(ts_model_load(folder, NULL, &m, &e), &e);
        assert_int_equal(m->schedule.steps_offset, cases[i].offset);
        assert_true(m->schedule.clip_sample_range == cases[i].clip);
        ts_model_free(m);
        workshop_discard_folder(folder);
    }
}

/* diffusers makes the class that the index names, and takes no more than the keys from the scheduler's file.
 */
static void the_index_says_which_scheduler_it_is(void **state) {
    (void)state;
#define INDEX(entry) "{\"_class_name\":\"StableDiffusionPipeline\",\"scheduler\":" entry "}"
    static const struct {
        const char *index, *config, *sampler; /* NULL: refused */
    } cases[] = {
        {SD, "{\"_class_name\":\"DDIMScheduler\"}", "ddim"},
        {INDEX("[\"diffusers\",\"EulerDiscreteScheduler\"]"), "{\"_class_name\":\"DDIMScheduler\"}", "euler"},
        {INDEX("[\"diffusers\",\"EulerDiscreteScheduler\"]"), "{}", "euler"},
        {INDEX("[null,null]"), "{\"_class_name\":\"DDIMScheduler\"}", "ddim"},
        {INDEX("[\"diffusers\",\"EDMHeunScheduler\"]"), "{\"_class_name\":\"DDIMScheduler\"}", NULL},
        /* One that cannot run is only the default of those who name none. */
        {SD, "{\"_class_name\":\"DPMSolverSinglestepScheduler\",\"solver_order\":3}", "dpmpp_2s"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *folder = with_scheduler("pipeline_sd1", cases[i].index, cases[i].config);
        ts_error e = {0};
        ts_model *m = NULL;
        ts_code rc = ts_model_load(folder, NULL, &m, &e);
        if (!cases[i].sampler != !!rc) fail_msg("%s %s: %s", cases[i].index, cases[i].config, e.message);
        if (rc)
            assert_non_null(strstr(e.message, "scheduler_config.json"));
        else
            assert_string_equal(m->schedule.sampler, cases[i].sampler);
        ts_model_free(m);
        workshop_discard_folder(folder);
    }
}

/* Others' notes on a checkpoint lie under the name of ours. */
static void notes_of_others_beside_a_checkpoint_are_passed_over(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool good;
    } cases[] = {
        {"{\"id\":4384,\"creator\":{\"username\":\"x\"},\"modelVersions\":[]}",
         true},                                             /* SD.Next's, Civitai's */
        {"{\"description\":\"x\",\"vae\":\"y.pt\"}", true}, /* AUTOMATIC1111's */
        {"{\"images\":[[[[[[[[[[[1]]]]]]]]]]]}", true},     /* deeper than ours are */
        {"", true},
        {"not JSON at all", true},
        {"{\"scheduler\":[[[[[[[[[[[1]]]]]]]]]]]}", false},
        {"{\"scheduler\":{", false},
        {"{\"sheduler\":{}}", false},
        {"{\"scheduler\":{\"beta_end\":5}}", false},
        {"{\"scheduler\":{\"_class_name\":\"DPMSolverMultistepScheduler\",\"lambda_min_clipped\":-Infinity}}",
         true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        workshop_gather("sd1");
        char *path = workshop_write("notes"),
             *beside = ts_format("%.*s.json", (int)(strlen(path) - strlen(".safetensors")), path);
        ts_error e = {0};
        ts_checkpoint *c = NULL;
        ts_schedule_config schedule;
        must(ts_write_file(beside, cases[i].text, strlen(cases[i].text), &e), &e);
        ts_code rc = ts_checkpoint_open(path, &c, &e);
        if (!rc) rc = ts_schedule_config_read(ts_checkpoint_config(c, "scheduler"), &schedule, &e);
        if (cases[i].good != !rc) fail_msg("%s: %s", cases[i].text, e.message);
        ts_checkpoint_free(c);
        free(beside);
        workshop_discard(path);
    }
}

/* A folder's pipeline has the last word on two keys of the scheduler; beside a single file the operator has.
 */
static void what_lies_beside_a_checkpoint_is_not_overruled(void **state) {
    (void)state;
    cJSON *c = cJSON_Duplicate(workshop_case("sd1"), true);
    cJSON *scheduler =
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(c, "beside"), "scheduler");
    cJSON_ReplaceItemInObjectCaseSensitive(scheduler, "steps_offset", cJSON_CreateNumber(0));
    cJSON_ReplaceItemInObjectCaseSensitive(scheduler, "clip_sample", cJSON_CreateBool(true));
    workshop_gather("sd1");
    char *path = workshop_write("said");
    workshop_beside(c, "said");
    ts_error e = {0};
    ts_model *m = NULL;
    must(ts_model_load(path, NULL, &m, &e), &e);
    assert_int_equal(m->schedule.steps_offset, 0);
    assert_true(m->schedule.clip_sample_range == 1);
    ts_model_free(m);
    workshop_discard(path);
    cJSON_Delete(c);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    workshop_open(argc, argv);
    test_list tests = {0};
    test_add(&tests, the_kinds_of_sd2_are_told_apart, NULL, 0, "the kinds of sd2 are told apart");
    test_add(&tests, fewer_blocks_of_sd2_predict_epsilon, NULL, 0, "fewer blocks of sd2 predict epsilon");
    test_add(&tests, a_latent_consistency_model_has_its_scheduler, NULL, 0,
             "a latent consistency model has its scheduler");
    test_add(&tests, a_file_says_what_it_predicts, NULL, 0, "a file says what it predicts");
    test_add(&tests, two_base_is_known_by_the_spread_of_a_bias, NULL, 0,
             "2-base is known by the spread of a bias");
    test_add(&tests, sd_turbo_is_no_refiner, NULL, 0, "sd-turbo is no refiner");
    test_add(&tests, the_projection_of_xl_has_two_forms, NULL, 0, "the projection of xl has two forms");
    test_add(&tests, what_is_no_whole_model_of_ours_is_refused_by_its_name, NULL, 0,
             "what is no whole model of ours is refused by its name");
    test_add(&tests, a_folder_of_another_task_is_read, NULL, 0, "a folder of another task is read");
    test_add(&tests, pipelines_of_1_and_2_overrule_two_keys_of_the_scheduler, NULL, 0,
             "pipelines of 1.x and 2.x overrule two keys of the scheduler");
    test_add(&tests, the_index_says_which_scheduler_it_is, NULL, 0, "the index says which scheduler it is");
    test_add(&tests, notes_of_others_beside_a_checkpoint_are_passed_over, NULL, 0,
             "notes of others beside a checkpoint are passed over");
    test_add(&tests, what_lies_beside_a_checkpoint_is_not_overruled, NULL, 0,
             "what lies beside a checkpoint is not overruled");
    int failed = test_run(&tests, "kinds");
    workshop_close();
    return failed;
}
