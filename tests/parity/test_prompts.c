/* What a prompt and what is said of it become, against what diffusers' pipelines hand to their U-Nets. */
#include "pictures.h"

#include <unistd.h>
#include "base/file.h"
#include "engine/emphasis.h"
#include "engine/prompt.h"
#include "engine/text.h"

typedef struct prompt_case {
    const cJSON *json;
    const ts_tensors *io;
    const ts_backend *backend;
    const char *embeddings; /* the folder */
} prompt_case;

static const char *text_or_null(const cJSON *object, const char *key) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
}

static ts_picture_params params_of(const cJSON *c) {
    return (ts_picture_params){.prompt = json_text(c, "prompt"),
                               .negative = text_or_null(c, "negative"),
                               .emphasis = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(c, "emphasis")),
                               .truncate = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(c, "truncate")),
                               .clip_skip = (int)json_value(c, "clip_skip")};
}

static void add_embeddings(ts_model *m, const char *name) {
    char *folder = fixture_path(name);
    ts_error e = {0};
    must(ts_model_add_embeddings(m, folder, &e), &e);
    free(folder);
}

/* have: [tokens][channels], as the fixture has it but for the order that the parity tensors ask for. */
static void hold_text(const ts_tensors *io, const char *name, const char *kind, const float *have) {
    tensor want = tensor_of(io, "%s.%s", name, kind), turned = want;
    turned.data = ts_array0(float, want.c *want.w);
    assert_non_null(turned.data);
    for (int t = 0; t < want.w; t++)
        for (int c = 0; c < want.c; c++) turned.data[c * want.w + t] = have[t * want.c + c];
    assert_close(kind, turned, want, 1e-5);
    tensor_free(turned);
    tensor_free(want);
}

static void the_unet_is_given_what_diffusers_gives(void **state) {
    const prompt_case *k = *state;
    const char *name = json_text(k->json, "name");
    const ts_device_spec device = {.backend = k->backend, .threads = 1};
    const ts_picture_params params = params_of(k->json);
    char *path = fixture_path(json_text(k->json, "folder"));
    ts_model *m = NULL;
    ts_group *g = NULL;
    ts_error e = {0};
    must(ts_model_load(path, NULL, &m, &e), &e);
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(k->json, "embeddings")))
        add_embeddings(m, k->embeddings);
    must(ts_group_open(&device, 1, &g, &e), &e);
    int chunks, count;
    must(ts_model_measure_prompts(m, &params, true, TS_MAX_CHUNKS, &chunks, &count, &e), &e);
    assert_int_equal(chunks, (int)json_value(k->json, "chunks"));
    const int width = ts_model_text_width(m), tokens = chunks * ts_model_get_info(m)->max_tokens;
    const int pooled_width = ts_model_pooled_width(m);
    float *text = ts_array0(float, tokens *width), *pooled = ts_array0(float, pooled_width);
    assert_true(text && pooled);
    for (int negative = 0; negative < 2; negative++) {
        must(ts_text_encode(g, m, TS_F32, &params, negative, chunks, text, pooled, &e), &e);
        hold_text(k->io, name, negative ? "negative_embeds" : "prompt_embeds", text);
        if (!pooled_width) continue;
        const char *kind = negative ? "negative_pooled" : "pooled";
        tensor want = tensor_of(k->io, "%s.%s", name, kind);
        assert_close(kind, (tensor){1, pooled_width, 1, 1, pooled}, want, 1e-5);
        tensor_free(want);
    }
    free(text);
    free(pooled);
    ts_group_close(g);
    ts_model_free(m);
    free(path);
}

/* ---- chunks ---- */

/* Against an algorithm that was written apart from this one (tools/parity/a1111.py). */
static void prompts_are_cut_as_automatic1111_does(void **state) {
    const char *folder = *state;
    char *path = ts_format("tokenizer/%s", folder), *where = fixture_path(path);
    cJSON *json = fixture_json("prompt_splits.json");
    ts_tokenizer *t = NULL;
    ts_error e = {0};
    must(ts_tokenizer_open(where, &t, &e), &e);
    const cJSON *entry;
    int most = 0;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(json, "splits")) {
        if (strcmp(json_text(entry, "tokenizer"), folder) != 0) continue;
        const cJSON *chunks = cJSON_GetObjectItemCaseSensitive(entry, "chunks");
        const bool emphasis = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(entry, "emphasis"));
        const ts_picture_params params = {.prompt = json_text(entry, "prompt"), .emphasis = emphasis};
        ts_prompt p;
        must(ts_prompt_read(t, 77, &params, false, 0, &p, &e), &e);
        if (p.chunks != cJSON_GetArraySize(chunks)) fail_msg("%.60s: %d chunks", params.prompt, p.chunks);
        int tokens = 0;
        for (int i = 0; i < p.chunks; i++) {
            const cJSON *chunk = cJSON_GetArrayItem(chunks, i), *id;
            int32_t want[77] = {ts_tokenizer_start(t)};
            int n = 1;
            cJSON_ArrayForEach(id, chunk) want[n++] = (int32_t)id->valuedouble;
            tokens += n + 1;
            want[n++] = ts_tokenizer_end(t);
            while (n < 77) want[n++] = ts_tokenizer_pad(t);
            if (memcmp(p.ids + i * 77, want, sizeof want) != 0)
                fail_msg("%.60s: the ids of chunk %d", params.prompt, i);
            const cJSON *weights = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(entry, "weights"), i);
            for (int k = 0; k < 77 && emphasis; k++) {
                const cJSON *weight = k ? cJSON_GetArrayItem(weights, k - 1) : NULL;
                if (p.weights[i * 77 + k] != (weight ? (float)weight->valuedouble : 1))
                    fail_msg("%.60s: chunk %d, weight %d is %g", params.prompt, i, k,
                             (double)p.weights[i * 77 + k]);
            }
            if (!emphasis) assert_null(p.weights);
        }
        assert_int_equal(p.tokens, tokens);
        if (p.chunks > most) most = p.chunks;
        if (emphasis) {
            ts_prompt_free(&p);
            continue;
        }
        /* What fits is what it is without chunks. */
        int32_t whole[77];
        must(ts_tokenizer_encode(t, params.prompt, strlen(params.prompt), 77, whole, NULL, NULL, &e), &e);
        if (p.chunks == 1) assert_memory_equal(p.ids, whole, sizeof whole);
        ts_prompt_free(&p);
        const ts_picture_params cut = {.prompt = params.prompt, .truncate = true};
        must(ts_prompt_read(t, 77, &cut, false, 2, &p, &e), &e);
        assert_memory_equal(p.ids, whole, sizeof whole);
        assert_int_equal(p.chunks, 2);
        assert_int_equal(p.ids[77 + 1], ts_tokenizer_end(t));
        ts_prompt_free(&p);
    }
    assert_true(most >= 4);
    ts_tokenizer_free(t);
    cJSON_Delete(json);
    free(path);
    free(where);
}

static void emphasis_beyond_measure_is_refused(void **state) {
    (void)state;
    char deep[4 * TS_EMPHASIS_DEPTH];
    static const char *const bad[] = {"a (b:1000.5)", "((a:100):11)", "(a:-2000)", "\xff", "(\xe4\xb8"};
    ts_emphasis m;
    ts_error e = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(ts_emphasis_parse(bad[i], strlen(bad[i]), &m, &e), TS_EINVAL);
    memset(deep, '[', sizeof deep);
    must(ts_emphasis_parse(deep, TS_EMPHASIS_DEPTH, &m, &e), &e);
    assert_int_equal(m.count, 0);
    ts_emphasis_free(&m);
    assert_int_equal(ts_emphasis_parse(deep, TS_EMPHASIS_DEPTH + 1, &m, &e), TS_EINVAL);
    /* As many as one likes, one after another and of both kinds. */
    for (size_t i = 0; i < sizeof deep; i++) deep[i] = "([a])"[i % 5];
    must(ts_emphasis_parse(deep, sizeof deep - 1, &m, &e), &e);
    ts_emphasis_free(&m);
    const char *const forms[] = {"a\0(b)", "(a:99999999999999999999999999999999999999999999)", "(a:"};
    const size_t sizes[] = {5, 48, 3};
    const int counts[] = {2, 1, 1};
    for (int i = 0; i < 3; i++) {
        must(ts_emphasis_parse(forms[i], sizes[i], &m, &e), &e);
        assert_int_equal(m.count, counts[i]);
        ts_emphasis_free(&m);
    }
    const ts_picture_params params = {.prompt = "", .negative = "(a:5000)", .emphasis = true};
    char *path = fixture_path("tokenizer/files");
    ts_tokenizer *t = NULL;
    ts_prompt p;
    must(ts_tokenizer_open(path, &t, &e), &e);
    assert_int_equal(ts_prompt_read(t, 77, &params, true, 0, &p, &e), TS_EINVAL);
    assert_string_equal(e.param, "negative_prompt");
    ts_tokenizer_free(t);
    free(path);
}

static void a_prompt_of_too_many_chunks_is_refused(void **state) {
    (void)state;
    char *path = fixture_path("pipeline_sd1");
    ts_model *m = NULL;
    ts_error e = {0};
    must(ts_model_load(path, NULL, &m, &e), &e);
    char text[2 * 75 * (TS_MAX_CHUNKS + 1) + 1];
    memset(text, 'a', sizeof text);
    for (size_t i = 1; i < sizeof text; i += 2) text[i] = ' ';
    text[sizeof text - 1] = 0;
    int chunks, tokens;
    ts_picture_params params = {.prompt = text, .negative = text};
    assert_int_equal(ts_model_measure_prompts(m, &params, true, TS_MAX_CHUNKS, &chunks, &tokens, &e),
                     TS_EINVAL);
    assert_string_equal(e.param, "prompt");
    params.prompt = "a";
    assert_int_equal(ts_model_measure_prompts(m, &params, true, TS_MAX_CHUNKS, &chunks, &tokens, &e),
                     TS_EINVAL);
    assert_string_equal(e.param, "negative_prompt");
    /* Without guidance nobody reads it. */
    must(ts_model_measure_prompts(m, &params, false, 1, &chunks, &tokens, &e), &e);
    assert_int_equal(chunks, 1);
    assert_int_equal(tokens, 3);
    text[2 * 75 * 3] = 0;
    params.prompt = text;
    must(ts_model_measure_prompts(m, &params, true, 3, &chunks, &tokens, &e), &e);
    assert_int_equal(chunks, 3);
    assert_int_equal(tokens, 3 * 77);
    assert_int_equal(ts_model_measure_prompts(m, &params, true, 2, &chunks, &tokens, &e), TS_EINVAL);
    assert_string_equal(e.param, "prompt");
    params.truncate = true;
    must(ts_model_measure_prompts(m, &params, true, 1, &chunks, &tokens, &e), &e);
    assert_int_equal(tokens, 77);
    ts_model_free(m);
    free(path);
}

/* ---- textual inversion ---- */

static void embeddings_of_other_widths_are_left_out(void **state) {
    static const char *const sd[] = {"easyNegative", "<cat-toy>", "one word"}, *const xl[] = {"xl-thing"};
    for (int i = 0; i < 2; i++) {
        char *path = fixture_path(i ? "pipeline_xl" : "pipeline_sd1");
        ts_model *m = NULL;
        ts_error e = {0};
        must(ts_model_load(path, NULL, &m, &e), &e);
        add_embeddings(m, *state);
        const ts_model_info *info = ts_model_get_info(m);
        assert_int_equal(info->embedding_count, i ? 1 : 3);
        for (int k = 0; k < info->embedding_count; k++)
            assert_string_equal(info->embeddings[k], i ? xl[k] : sd[k]);
        ts_model_free(m);
        free(path);
    }
}

static void a_name_is_found_where_it_is_a_word(void **state) {
    (void)state;
    /* A letter is a token; the name <ab> has two vectors, xy three. */
    static const struct {
        const char *text;
        int names; /* vectors in it */
    } texts[] = {
        {"<ab>", 2},       {"a <AB>, b", 2}, {"a<ab>b", 2}, {"<ab><ab>", 4}, {"xy", 3},  {"a XY b", 3},
        {"xy,xy.", 6},     {"(xy)", 3},      {"xyz", 0},    {"axy", 0},      {"xy1", 0}, {"x y", 0},
        {"\xc3\xa9xy", 0}, {"xy_", 0},       {"xy-b", 3},   {"< ab >", 0},   {"<ab", 0}, {"", 0}};
    char *path = fixture_path("tokenizer/files");
    ts_tokenizer *t = NULL;
    ts_error e = {0};
    must(ts_tokenizer_open(path, &t, &e), &e);
    const int32_t size = ts_tokenizer_size(t);
    must(ts_tokenizer_add_name(t, " <aB> ", 2, &e), &e);
    must(ts_tokenizer_add_name(t, "xy", 3, &e), &e);
    assert_int_equal(ts_tokenizer_add_name(t, "XY", 1, &e), TS_ECONFLICT);
    assert_int_equal(ts_tokenizer_add_name(t, "<|endoftext|>", 1, &e), TS_ECONFLICT);
    static const char *const bad[] = {"", " ", "\xff"};
    for (int i = 0; i < 3; i++) assert_int_equal(ts_tokenizer_add_name(t, bad[i], 1, &e), TS_EFORMAT);
    char longest[TS_TOKENIZER_NAME + 2];
    memset(longest, 'q', sizeof longest);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(ts_tokenizer_add_name(t, longest, 1, &e), TS_EFORMAT);
    assert_int_equal(ts_tokenizer_size(t), size);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int32_t ids[40];
        size_t count;
        int names = 0;
        must(ts_tokenizer_ids(t, texts[i].text, strlen(texts[i].text), ids, 40, &count, &e), &e);
        for (size_t k = 0; k < count; k++) {
            const int row = ts_tokenizer_row(t, ids[k]);
            assert_true(row < 5 && (row >= 0) == (ids[k] >= size));
            if (row >= 0) assert_int_equal(ts_tokenizer_rest(t, ids[k]), row < 2 ? 2 - row : 5 - row);
            names += row >= 0;
        }
        if (names != texts[i].names) fail_msg("%s: %d vectors", texts[i].text, names);
    }
    ts_tokenizer_free(t);
    free(path);
}

static void vectors_of_a_name_stay_together(void **state) {
    (void)state;
    char *path = fixture_path("tokenizer/files");
    ts_tokenizer *t = NULL;
    ts_error e = {0};
    must(ts_tokenizer_open(path, &t, &e), &e);
    must(ts_tokenizer_add_name(t, "<ab>", 10, &e), &e);
    /* `before` letters, the comma at `comma` among them, then the name: how many tokens the first chunk
     * keeps. */
    static const struct {
        int before, comma, first, chunks;
    } cases[] = {{65, -1, 75, 1}, {66, -1, 66, 2}, {74, 70, 74, 2},
                 {75, -1, 75, 2}, {75, 60, 61, 2}, {75, 40, 75, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[200] = "";
        for (int k = 0; k < cases[i].before; k++) strcat(text, k == cases[i].comma ? ", " : "a ");
        strcat(text, "<ab>");
        const ts_picture_params params = {.prompt = text};
        ts_prompt p;
        must(ts_prompt_read(t, 77, &params, false, 0, &p, &e), &e);
        assert_int_equal(p.chunks, cases[i].chunks);
        assert_int_equal(p.ids[1 + cases[i].first], ts_tokenizer_end(t));
        if (p.chunks == 2) {
            const int moved = cases[i].before - cases[i].first;
            assert_int_equal(ts_tokenizer_row(t, p.ids[77 + 1 + moved]), 0);
            assert_int_equal(ts_tokenizer_row(t, p.ids[77 + moved + 10]), 9);
            assert_int_equal(p.ids[77 + moved + 11], ts_tokenizer_end(t));
        }
        ts_prompt_free(&p);
    }
    ts_tokenizer_free(t);
    free(path);
}

/* What each hostile or mistaken file is refused with. */
static void files_that_are_no_embeddings_are_refused(void **state) {
    (void)state;
    static float many[76 * 32];
    const float nan_[32] = {NAN};
#define TENSOR(called, n, width, values)                                                                     \
    {                                                                                                        \
        .name = called, .dtype = TS_F32, .rank = 2, .shape = {n, width}, .data = values,                     \
        .bytes = (n) * (width)*4                                                                             \
    }
    const struct {
        ts_code code;
        size_t count;
        ts_file_tensor tensors[2];
    } files[] = {
        {TS_EFORMAT, 1, {TENSOR("emb_params", 76, 32, many)}},
        {TS_EFORMAT, 1, {TENSOR("emb_params", 1, 32, nan_)}},
        {TS_EFORMAT, 1, {TENSOR("emb_params", 0, 32, many)}},
        {TS_EFORMAT,
         1,
         {{.name = "a", .dtype = TS_F32, .rank = 3, .shape = {1, 1, 32}, .data = many, .bytes = 128}}},
        {TS_EFORMAT, 1, {{.name = "a", .dtype = TS_F32, .rank = 0, .data = many, .bytes = 4}}},
        {TS_EFORMAT, 2, {TENSOR("a", 1, 32, many), TENSOR("b", 1, 32, many)}},
        {TS_EFORMAT, 1, {TENSOR("clip_l", 1, 32, many)}},
        {TS_EFORMAT, 2, {TENSOR("clip_l", 1, 32, many), TENSOR("clip_g", 2, 48, many)}},
        {TS_EFORMAT, 0, {{0}}},
        {TS_EFORMAT, 1, {TENSOR("   ", 1, 32, many)}},
        {TS_ECONFLICT, 1, {TENSOR("<|startoftext|>", 1, 32, many)}},
        {TS_OK, 1, {TENSOR("good", 75, 32, many)}},
        {TS_OK, 1, {TENSOR("wide", 1, 64, many)}},
        {TS_OK, 2, {TENSOR("clip_l", 1, 32, many), TENSOR("clip_g", 1, 48, many)}},
    };
    char *path = fixture_path("pipeline_sd1");
    char folder[] = "/tmp/embeddings-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *file = ts_format("%s/x.safetensors", folder);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        ts_model *m = NULL;
        ts_error e = {0};
        must(ts_safetensors_write(file, files[i].tensors, files[i].count, &e), &e);
        must(ts_model_load(path, NULL, &m, &e), &e);
        const ts_code rc = ts_model_add_embeddings(m, folder, &e);
        if (rc != files[i].code) fail_msg("file %zu: %s: %s", i, ts_code_name(rc), e.message);
        if (rc) assert_non_null(strstr(e.message, "x.safetensors"));
        ts_model_free(m);
    }
    must(ts_write_file(file, "no tensors", 10, &(ts_error){0}), &(ts_error){0});
    ts_model *m = NULL;
    ts_error e = {0};
    must(ts_model_load(path, NULL, &m, &e), &e);
    assert_int_equal(ts_model_add_embeddings(m, folder, &e), TS_EFORMAT);
    unlink(file);
    assert_int_equal(ts_model_add_embeddings(m, folder, &e), TS_OK);
    rmdir(folder);
    assert_int_equal(ts_model_add_embeddings(m, folder, &e), TS_ENOTFOUND);
    ts_model_free(m);
    free(file);
    free(path);
}

/* ---- pictures ---- */

static void pair_of(const cJSON *object, const char *key, int *x, int *y) {
    const cJSON *a = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!a) return;
    *x = (int)cJSON_GetArrayItem(a, 0)->valuedouble;
    *y = (int)cJSON_GetArrayItem(a, 1)->valuedouble;
}

static void the_picture_is_that_of_diffusers(void **state) {
    const prompt_case *k = *state;
    const cJSON *c = k->json;
    studio s = studio_open(json_text(c, "folder"), k->backend, 2);
    const double guidance = json_value(c, "guidance");
    const ts_shape shape = {.width = (int)json_value(c, "width"),
                            .height = (int)json_value(c, "height"),
                            .steps = (int)json_value(c, "steps"),
                            .sampler = ts_sampler_find(s.model->schedule.sampler),
                            .parallel = {.mode = TS_MODE_SYNC},
                            .dtype = TS_F32,
                            .guided = guidance > 1,
                            .chunks = (int)json_value(c, "chunks")};
    ts_picture request = {.params = {.prompt = json_text(c, "prompt"),
                                     .negative = text_or_null(c, "negative"),
                                     .seed = (uint64_t)json_value(c, "seed"),
                                     .guidance_scale = guidance}};
    ts_size_condition *sizes = &request.params.sizes;
    pair_of(c, "original_size", &sizes->original_width, &sizes->original_height);
    pair_of(c, "crop", &sizes->crop_left, &sizes->crop_top);
    pair_of(c, "target_size", &sizes->target_width, &sizes->target_height);
    shot have = studio_shoot(s, &shape, &request);
    tensor want = tensor_of(k->io, "%s.latents", json_text(c, "name"));
    assert_close(json_text(c, "name"), have.latents, want, 1e-4);
    tensor_free(want);
    shot_free(have);
    studio_close(s);
}

/* ---- layers ---- */

typedef struct encoder {
    ts_clip_config config;
    ts_clip_reading reading;
} encoder;

static void build(ts_builder *b, void *arg) {
    const encoder *t = arg;
    ts_clip_build(b, &t->config, &t->reading);
}

static double flops_of(ts_weights *w, const ts_clip_config *config, ts_clip_reading reading) {
    encoder t = {.config = *config, .reading = reading};
    parity_spec spec = {.backend = &ts_backend_ref,
                        .weights = w,
                        .model = build,
                        .arg = &t,
                        .build = {.batch = 1, .dtype = TS_F32, .rows = {.n = 1, .bound = {0, 1}}}};
    parity *p = parity_new(&spec);
    ts_program_stats s;
    ts_program_get_stats(parity_program(p, 0), &s);
    parity_free(p);
    return s.flops_fresh;
}

static void layers_that_nobody_reads_do_not_run(void **state) {
    (void)state;
    cJSON *json = fixture_json("text_encoders/sd2/config.json");
    ts_weights *w = parity_weights_folder("text_encoders/sd2");
    ts_clip_config c;
    ts_error e = {0};
    must(ts_clip_config_read(json, false, &c, &e), &e);
    assert_int_equal(c.layers, 3);
    double flops[4], layer;
    for (int i = 0; i <= 3; i++) flops[i] = flops_of(w, &c, (ts_clip_reading){.layers = i});
    layer = flops[1] - flops[0];
    assert_true(layer > 0 && flops[0] < 0.01 * layer);
    assert_true(fabs(flops[3] - flops[0] - 3 * layer) < 1e-9 * flops[3]);
    /* The pooled vector asks for all of them, wherever the text is taken. */
    assert_true(flops_of(w, &c, (ts_clip_reading){.layers = 1, .last = true}) >= flops[3]);
    ts_weights_free(w);
    cJSON_Delete(json);
}

/* The group keeps a bounded number of programs; those that had to go are compiled again, to the same end. */
static void any_number_of_skips_can_follow_each_other(void **state) {
    (void)state;
    const ts_device_spec device = {.backend = &ts_backend_ref, .threads = 1};
    char *path = fixture_path("pipeline_sd1");
    ts_model *m[8];
    ts_group *g = NULL;
    ts_error e = {0};
    must(ts_group_open(&device, 1, &g, &e), &e);
    float *first = NULL, *text = NULL;
    size_t n = 0;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 8; i++) {
            if (round == 0) must(ts_model_load(path, NULL, &m[i], &e), &e);
            n = (size_t)(ts_model_text_width(m[i]) * ts_model_get_info(m[i])->max_tokens);
            if (!text) text = ts_array0(float, n), first = ts_array0(float, 3 * n);
            assert_true(text && first);
            for (int skip = 0; skip < 3; skip++) {
                const ts_picture_params params = {.prompt = "a red house", .clip_skip = skip};
                must(ts_text_encode(g, m[i], TS_F32, &params, false, 1, text, NULL, &e), &e);
                if (round == 0 && i == 0) memcpy(first + (size_t)skip * n, text, n * sizeof *text);
                assert_memory_equal(first + (size_t)skip * n, text, n * sizeof *text);
            }
        }
    int kept = 0;
    for (const ts_text_program *p = g->texts; p; p = p->next) kept++;
    assert_in_range(kept, 3, 23);
    ts_group_close(g);
    for (int i = 0; i < 8; i++) ts_model_free(m[i]);
    free(first);
    free(text);
    free(path);
}

/* ---- what is refused ---- */

static void a_skip_beyond_the_layers_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *folder;
        int most;
    } models[] = {{"pipeline_sd1", 2}, {"pipeline_xl", 1}};
    for (size_t i = 0; i < 2; i++) {
        char *path = fixture_path(models[i].folder);
        ts_model *m = NULL;
        ts_error e = {0};
        must(ts_model_load(path, NULL, &m, &e), &e);
        ts_picture_params params = {.prompt = "", .clip_skip = models[i].most};
        assert_int_equal(ts_model_check_params(m, &params, &e), TS_OK);
        params.clip_skip++;
        assert_int_equal(ts_model_check_params(m, &params, &e), TS_EINVAL);
        assert_string_equal(e.param, "clip_skip");
        params.clip_skip = -1;
        assert_int_equal(ts_model_check_params(m, &params, &e), TS_EINVAL);
        ts_model_free(m);
        free(path);
    }
}

static void sizes_are_for_xl(void **state) {
    (void)state;
    static const char *const names[] = {"original_size", "crop", "target_size"};
    const ts_size_condition sizes[] = {{.original_width = 64, .original_height = 64},
                                       {.crop_top = 8},
                                       {.target_width = 1, .target_height = 8}};
    for (int xl = 0; xl < 2; xl++) {
        char *path = fixture_path(xl ? "pipeline_xl" : "pipeline_sd1");
        ts_model *m = NULL;
        ts_error e = {0};
        must(ts_model_load(path, NULL, &m, &e), &e);
        for (int i = 0; i < 3; i++) {
            ts_picture_params params = {.prompt = "", .sizes = sizes[i]};
            assert_int_equal(ts_model_check_params(m, &params, &e), xl ? TS_OK : TS_EINVAL);
            if (!xl) assert_string_equal(e.param, names[i]);
            params.sizes.target_width = -1;
            assert_int_equal(ts_model_check_params(m, &params, &e), TS_EINVAL);
        }
        ts_model_free(m);
        free(path);
    }
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    static const ts_backend *const backends[] = {&ts_backend_ref, &ts_backend_cpu};
    cJSON *cases = fixture_json("prompts.json");
    ts_tensors *io = fixture_tensors("prompts.safetensors");
    test_list tests = {0};
    const cJSON *entry;
    static const char *const words[] = {"embeddings", "torch/embeddings"};
    cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(cases, "cases")) {
        const bool named = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(entry, "embeddings"));
        for (int i = 0; i < (named ? 4 : 2); i++) {
            const prompt_case k = {
                .json = entry, .io = io, .backend = backends[i % 2], .embeddings = words[i / 2]};
            test_add(&tests, the_unet_is_given_what_diffusers_gives, &k, sizeof k, "%s on %s%s",
                     json_text(entry, "name"), k.backend->name, i < 2 ? "" : ", PyTorch's files");
        }
    }
    cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(cases, "pictures")) for (int i = 0; i < 2;
                                                                                        i++) {
        const prompt_case k = {.json = entry, .io = io, .backend = backends[i]};
        test_add(&tests, the_picture_is_that_of_diffusers, &k, sizeof k, "the picture of %s on %s",
                 json_text(entry, "name"), backends[i]->name);
    }
    static const char *const folders[] = {"files", "files_pad0"};
    for (int i = 0; i < 2; i++)
        test_add(&tests, prompts_are_cut_as_automatic1111_does, folders[i], 0,
                 "prompts are cut as AUTOMATIC1111 does, tokenizer %s", folders[i]);
    for (int i = 0; i < 2; i++)
        test_add(&tests, embeddings_of_other_widths_are_left_out, words[i], 0,
                 "embeddings of other widths are left out, %s", words[i]);
    test_add(&tests, a_name_is_found_where_it_is_a_word, NULL, 0, "a name is found where it is a word");
    test_add(&tests, vectors_of_a_name_stay_together, NULL, 0, "vectors of a name stay together");
    test_add(&tests, files_that_are_no_embeddings_are_refused, NULL, 0,
             "files that are no embeddings are refused");
    test_add(&tests, emphasis_beyond_measure_is_refused, NULL, 0, "emphasis beyond measure is refused");
    test_add(&tests, a_prompt_of_too_many_chunks_is_refused, NULL, 0,
             "a prompt of too many chunks is refused");
    test_add(&tests, sizes_are_for_xl, NULL, 0, "sizes are for XL");
    test_add(&tests, layers_that_nobody_reads_do_not_run, NULL, 0, "layers that nobody reads do not run");
    test_add(&tests, any_number_of_skips_can_follow_each_other, NULL, 0,
             "any number of skips can follow each other");
    test_add(&tests, a_skip_beyond_the_layers_is_refused, NULL, 0, "a skip beyond the layers is refused");
    int failed = test_run(&tests, "prompts");
    ts_tensors_free(io);
    cJSON_Delete(cases);
    return failed;
}
