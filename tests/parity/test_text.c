/* The text encoders against transformers: the hidden states of the tokenized prompts, and what a pipeline
 * hands to the U-Net. */
#include "parity.h"

#include "engine/clip.h"
#include "engine/text.h"
#include "engine/tokenizer.h"

typedef struct encoder_case {
    char folder[64], io[64], tokenizer[64];
    bool projected;
    const ts_backend *backend;
    ts_dtype dtype;
} encoder_case;

static cJSON *cases;

/* Prompt i, its ids as the named tokenizer of the fixtures makes them. */
static int prompt_count(void) {
    return cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(cases, "prompts"));
}

static const char *prompt_at(int i) {
    return cJSON_GetStringValue(cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(cases, "prompts"), i));
}

static int32_t *tokenize(const char *folder, int length) {
    char *path = fixture_path(folder);
    ts_tokenizer *t = NULL;
    ts_error e = {0};
    must(ts_tokenizer_open(path, &t, &e), &e);
    int32_t *ids = ts_array0(int32_t, prompt_count() * length);
    assert_non_null(ids);
    for (int i = 0; i < prompt_count(); i++)
        must(ts_tokenizer_encode(t, prompt_at(i), strlen(prompt_at(i)), length, ids + i * length, NULL, NULL,
                                 &e),
             &e);
    ts_tokenizer_free(t);
    free(path);
    return ids;
}

/* All that can be read: the text before the last layer, and the end. */
static void build(ts_builder *b, void *arg) {
    const ts_clip_config *c = arg;
    ts_clip_build(b, c, &(ts_clip_reading){.layers = c->layers - 1, .last = true});
}

static void hidden_states_are_those_of_transformers(void **state) {
    const encoder_case *k = *state;
    if (!k->backend->supports(k->dtype)) skip();
    char *file = ts_format("%s/config.json", k->folder);
    cJSON *json = fixture_json(file);
    ts_clip_config c;
    ts_error e = {0};
    must(ts_clip_config_read(json, k->projected, &c, &e), &e);
    ts_tensors *io = fixture_tensors(k->io);
    parity_spec spec = {
        .backend = k->backend,
        .weights = parity_weights_folder(k->folder),
        .model = build,
        .arg = &c,
        .build = {.batch = prompt_count(), .dtype = k->dtype, .rows = {.n = 1, .bound = {0, 1}}}};
    parity *p = parity_new(&spec);
    int32_t *ids = tokenize(k->tokenizer, c.positions);
    parity_put_flat(p, "ids", ids, (size_t)(prompt_count() * c.positions));
    parity_run(p, 1);
    static const char *const names[][2] = {{"last", "last_hidden_state"}, {"text", "hidden_states_m2"}};
    for (int i = 0; i < 2; i++) {
        tensor have = parity_get(p, names[i][0]), want = tensor_of(io, "%s", names[i][1]);
        assert_close(names[i][1], have, want, k->dtype == TS_F32 ? 1e-5 : 2e-2);
        tensor_free(have);
        tensor_free(want);
    }
    free(ids);
    parity_free(p);
    ts_weights_free(spec.weights);
    ts_tensors_free(io);
    cJSON_Delete(json);
    free(file);
}

/* ---- through a model and a group ---- */

typedef struct pipeline {
    const char *folder;
    struct {
        const char *io, *key;
    } column[2];        /* of the text, from left to right */
    const char *pooled; /* of the last one's io; NULL: none */
    const ts_backend *backend;
} pipeline;

static void hold_column(const pipeline *k, int i, const float *text, int width, int *at) {
    ts_tensors *io = fixture_tensors(k->column[i].io);
    tensor want = tensor_of(io, "%s", k->column[i].key);
    tensor have = want;
    have.data = ts_array0(float, want.n *want.c *want.w);
    assert_non_null(have.data);
    for (int n = 0; n < want.n; n++)
        for (int c = 0; c < want.c; c++)
            for (int t = 0; t < want.w; t++)
                have.data[(n * want.c + c) * want.w + t] = text[(n * want.w + t) * width + *at + c];
    assert_close(k->column[i].io, have, want, 1e-5);
    *at += want.c;
    tensor_free(have);
    tensor_free(want);
    ts_tensors_free(io);
}

static void the_unet_gets_what_diffusers_gives_it(void **state) {
    const pipeline *k = *state;
    const ts_device_spec device = {.backend = k->backend, .threads = 1};
    char *path = fixture_path(k->folder);
    ts_model *m = NULL;
    ts_group *g = NULL;
    ts_error e = {0};
    must(ts_model_load(path, NULL, &m, &e), &e);
    must(ts_group_open(&device, 1, &g, &e), &e);
    const int width = ts_model_text_width(m), tokens = ts_model_get_info(m)->max_tokens;
    const int pooled_width = ts_model_pooled_width(m);
    float *text = ts_array0(float, prompt_count() * tokens * width);
    float *pooled = ts_array0(float, prompt_count() * pooled_width);
    assert_true(text && pooled);
    for (int i = 0; i < prompt_count(); i++) {
        const ts_picture_params params = {.prompt = prompt_at(i), .truncate = true};
        must(ts_text_encode(g, m, TS_F32, &params, false, 1, text + i * tokens * width,
                            pooled + i * pooled_width, &e),
             &e);
    }
    int at = 0;
    for (int i = 0; i < 2 && k->column[i].io; i++) hold_column(k, i, text, width, &at);
    assert_int_equal(at, width);
    if (k->pooled) {
        ts_tensors *io = fixture_tensors(k->column[1].io);
        tensor want = tensor_of(io, "%s", k->pooled);
        assert_close(k->pooled, (tensor){prompt_count(), pooled_width, 1, 1, pooled}, want, 1e-5);
        tensor_free(want);
        ts_tensors_free(io);
    }
    free(text);
    free(pooled);
    ts_group_close(g);
    ts_model_free(m);
    free(path);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    static const ts_backend *const backends[] = {&ts_backend_ref, &ts_backend_cpu};
    cases = fixture_json("text_encoders/cases.json");
    test_list tests = {0};
    for (int i = 0; i < 2; i++) {
        const cJSON *entry;
        cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(cases, "cases")) {
            encoder_case k = {.backend = backends[i]};
            snprintf(k.folder, sizeof k.folder, "%s", json_text(entry, "folder"));
            snprintf(k.io, sizeof k.io, "text_encoders/%s", json_text(entry, "io"));
            snprintf(k.tokenizer, sizeof k.tokenizer, "tokenizer/%s", json_text(entry, "tokenizer"));
            k.projected = strstr(json_text(entry, "class"), "WithProjection");
            for (k.dtype = TS_F32; k.dtype <= TS_BF16; k.dtype++)
                test_add(&tests, hidden_states_are_those_of_transformers, &k, sizeof k,
                         "%s in %s on %s is transformers'", k.folder, ts_dtype_name(k.dtype),
                         k.backend->name);
        }
        const pipeline sd = {.folder = "pipeline_sd1",
                             .column = {{"text_encoders/sd1.safetensors", "last_hidden_state"}},
                             .backend = backends[i]};
        const pipeline xl = {.folder = "pipeline_xl",
                             .column = {{"text_encoders/sd1.safetensors", "hidden_states_m2"},
                                        {"text_encoders/xl2.safetensors", "hidden_states_m2"}},
                             .pooled = "text_embeds",
                             .backend = backends[i]};
        test_add(&tests, the_unet_gets_what_diffusers_gives_it, &sd, sizeof sd,
                 "the text of a 1.x pipeline on %s", backends[i]->name);
        test_add(&tests, the_unet_gets_what_diffusers_gives_it, &xl, sizeof xl,
                 "text and pooled text of an XL pipeline on %s", backends[i]->name);
    }
    int failed = test_run(&tests, "text");
    cJSON_Delete(cases);
    return failed;
}
