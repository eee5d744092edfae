/* LoRA files in each layout, fused and as variants, against models that diffusers has fused; and files that
 * are refused. */
#include "pictures.h"

#include <unistd.h>
#include "base/file.h"
#include "engine/lora.h"

typedef struct lora_case {
    const cJSON *json;
    const ts_tensors *want;
    const ts_backend *backend;
} lora_case;

enum { MOST_FILES = 4 };

static size_t uses_of(const cJSON *c, ts_lora_use ret[MOST_FILES]) {
    size_t n = 0;
    const cJSON *f;
    cJSON_ArrayForEach(f, cJSON_GetObjectItemCaseSensitive(c, "files")) {
        assert_true(n < MOST_FILES);
        ret[n++] = (ts_lora_use){fixture_path(json_text(f, "file")), json_value(f, "scale")};
    }
    return n;
}

static void free_uses(ts_lora_use *uses, size_t n) {
    for (size_t i = 0; i < n; i++) free((char *)(uintptr_t)uses[i].path);
}

static shot shoot(studio s, const cJSON *request, ts_mode mode) {
    const double guidance = json_value(request, "guidance");
    ts_shape shape = {.width = (int)json_value(request, "width"),
                      .height = (int)json_value(request, "height"),
                      .steps = (int)json_value(request, "steps"),
                      .sampler = ts_sampler_find(s.model->schedule.sampler),
                      .parallel = {.mode = mode, .cfg_split = TS_CFG_SPLIT_OFF},
                      .dtype = TS_F32,
                      .guided = guidance > 1};
    ts_picture picture = {.params = {.prompt = json_text(request, "prompt"),
                                     .negative = json_text(request, "negative"),
                                     .seed = (uint64_t)json_value(request, "seed"),
                                     .guidance_scale = guidance}};
    return studio_shoot(s, &shape, &picture);
}

static void hold_latents(const lora_case *k, studio s) {
    shot have = shoot(s, cJSON_GetObjectItemCaseSensitive(k->json, "request"), TS_MODE_SINGLE);
    tensor want = tensor_of(k->want, "%s.latents", json_text(k->json, "name"));
    assert_close("latents", have.latents, want, 1e-4);
    tensor_free(want);
    shot_free(have);
}

/* The case's model with its files fused into it. */
static studio open_fused(const lora_case *k) {
    studio s = studio_open(json_text(k->json, "folder"), k->backend, 1);
    ts_lora_use uses[MOST_FILES];
    size_t n = uses_of(k->json, uses);
    ts_error e = {0};
    must(ts_model_fuse(s.model, uses, n, &e), &e);
    free_uses(uses, n);
    return s;
}

static void a_fused_model_makes_the_picture_of_diffusers(void **state) {
    const lora_case *k = *state;
    studio s = open_fused(k);
    hold_latents(k, s);
    studio_close(s);
}

/* ---- the U-Net alone ---- */

typedef struct unet_model {
    const ts_unet_config *config;
    int width, tokens;
} unet_model;

static void build(ts_builder *b, void *arg) {
    const unet_model *m = arg;
    ts_unet_build(b, m->config, m->width, m->tokens);
}

static void put_flat(parity *p, const char *name, const ts_tensors *io, const char *key) {
    size_t n;
    float *data = fixture_floats(io, key, &n);
    parity_put_flat(p, name, data, n);
    free(data);
}

static void a_fused_unet_is_that_of_diffusers(void **state) {
    const lora_case *k = *state;
    studio s = open_fused(k);
    ts_tensors *io = fixture_tensors(json_text(k->json, "io"));
    tensor sample = tensor_of(io, "16x16.sample"), t = tensor_of(io, "16x16.timestep");
    tensor text = tensor_of(io, "16x16.encoder_hidden_states");
    unet_model m = {.config = &s.model->unet, .width = sample.w, .tokens = text.w};
    parity_spec spec = {
        .backend = k->backend,
        .weights = s.model->unet_weights,
        .model = build,
        .arg = &m,
        .build = {.batch = sample.n, .dtype = TS_F32, .rows = {.n = 1, .bound = {0, sample.h}}}};
    parity *p = parity_new(&spec);
    parity_put(p, "sample", sample);
    const float times[2] = {t.data[0], t.data[0]};
    parity_put_flat(p, "timestep", times, 2);
    put_flat(p, "text", io, "16x16.encoder_hidden_states");
    if (s.model->xl) {
        put_flat(p, "pooled", io, "16x16.text_embeds");
        put_flat(p, "time_ids", io, "16x16.time_ids");
    }
    parity_run(p, 1);
    tensor have = parity_get(p, "out"), want = tensor_of(k->want, "%s.out", json_text(k->json, "name"));
    assert_close("out", have, want, 1e-4);
    tensor_free(have);
    tensor_free(want);
    tensor_free(sample);
    tensor_free(t);
    tensor_free(text);
    parity_free(p);
    ts_tensors_free(io);
    studio_close(s);
}

/* ---- variants ---- */

static void assert_same(tensor a, tensor b) {
    size_t n = (size_t)a.n * (size_t)a.c * (size_t)a.h * (size_t)a.w;
    assert_memory_equal(a.data, b.data, n * sizeof *a.data);
}

static size_t store_bytes(const ts_model *m) {
    return ts_store_bytes(m->store_cpu, NULL, NULL) + ts_store_bytes(m->store_ref, NULL, NULL);
}

/* What the model makes is bit for bit the same before, beside and after a variant; nothing of one is left,
 * and the next one, which may come to lie at the same address, finds nothing of it. */
static void a_variant_leaves_its_model_alone(void **state) {
    const lora_case *k = *state;
    const cJSON *request = cJSON_GetObjectItemCaseSensitive(k->json, "request");
    studio s = studio_open(json_text(k->json, "folder"), k->backend, 1), v = s;
    ts_lora_use uses[MOST_FILES];
    const size_t n = uses_of(k->json, uses);
    ts_error e = {0};
    shot before = shoot(s, request, TS_MODE_SINGLE);
    const size_t bytes = store_bytes(s.model);

    must(ts_model_vary(s.model, uses, n, &v.model, &e), &e);
    hold_latents(k, v);
    assert_ptr_equal(v.model->vae_weights, s.model->vae_weights);
    assert_ptr_equal(ts_weights_find(v.model->unet_weights, "time_embedding.linear_1.weight"),
                     ts_weights_find(s.model->unet_weights, "time_embedding.linear_1.weight"));
    assert_true(store_bytes(s.model) > bytes);
    assert_true(ts_model_variant_bytes(v.model) > store_bytes(s.model) - bytes);
    shot beside = shoot(s, request, TS_MODE_SINGLE);
    assert_same(beside.latents, before.latents);
    shot_free(beside);
    ts_group_forget(s.group, v.model);
    ts_model_free(v.model);
    assert_int_equal(store_bytes(s.model), bytes);

    for (size_t i = 0; i < n; i++) uses[i].scale = 0;
    must(ts_model_vary(s.model, uses, n, &v.model, &e), &e);
    shot nothing = shoot(v, request, TS_MODE_SINGLE);
    /* PEFT's DoRA has its magnitude at a scale of 0 too. */
    if (!strstr(uses[0].path, "peft_dora")) assert_same(nothing.latents, before.latents);
    shot_free(nothing);
    ts_group_forget(s.group, v.model);
    ts_model_free(v.model);
    shot_free(before);
    free_uses(uses, n);
    studio_close(s);
}

/* ---- files that are refused ---- */

#define T(dtype, shape, from, to)                                                                            \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"
#define Q "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
#define C "lora_unet_mid_block_resnets_0_conv1"
#define PAIR(key)                                                                                            \
    "\"" key ".lora_down.weight\":" T("F16", "[2,32]", 0,                                                    \
                                      128) ",\"" key ".lora_up.weight\":" T("F16", "[32,2]", 128, 256)
#define PAIR_BEHIND(key)                                                                                     \
    "\"" key ".lora_A.default.weight\":" T(                                                                  \
        "F16", "[2,32]", 256, 384) ",\"" key ".lora_B.default.weight\":" T("F16", "[32,2]", 384, 512)
/* A LoHa of rank 1, but for the shape of one of its matrices; where each of them ends. */
#define HADA(shape, end_1a, end_1b, end_2a, end_2b)                                                          \
    "\"" Q ".hada_w1_a\":" T("F16", shape, 0, end_1a) ",\"" Q ".hada_w1_b\":" T(                             \
        "F16", "[1,32]", end_1a,                                                                             \
        end_1b) ",\"" Q ".hada_w2_a\":" T("F16", "[32,1]", end_1b,                                           \
                                          end_2a) ",\"" Q ".hada_w2_b\":" T("F16", "[1,32]", end_2a, end_2b)
#define METADATA(json)        "\"__metadata__\":{\"lora_adapter_metadata\":\"" json "\"}"
#define DOWN(shape, from, to) "\"" Q ".lora_down.weight\":" T("F16", shape, from, to)
#define UP(shape, from, to)   "\"" Q ".lora_up.weight\":" T("F16", shape, from, to)

typedef struct refusal {
    const char *header;
    size_t bytes;
    ts_code code;
    const char *word;
} refusal;

static const refusal refusals[] = {
    {"{" PAIR(Q) "}", 256, TS_OK, ""},
    {"{" PAIR(Q) ",\"" Q ".alpha\":" T("I64", "[]", 256, 264) "}", 264, TS_OK, ""},
    {"{}", 0, TS_EFORMAT, "nothing"},
    {"{" PAIR(Q) ",\"other\":" T("F16", "[1]", 256, 258) "}", 258, TS_EFORMAT, "other"},
    {"{" PAIR(Q) ",\"count\":" T("I64", "[]", 256, 264) "}", 264, TS_EFORMAT, "count"},
    {"{" PAIR(Q) ",\"lora_unet_.alpha\":" T("F16", "[]", 256, 258) "}", 258, TS_EFORMAT, "lora_unet_.alpha"},
    {"{" PAIR(Q) ",\"" Q ".alpha\":" T("F16", "[2]", 256, 260) "}", 260, TS_EFORMAT, Q ".alpha"},
    {"{" PAIR(Q) ",\"" Q ".alpha\":" T("I16", "[]", 256, 258) "}", 258, TS_OK, ""},
    {"{" PAIR(Q) ",\"" Q ".alpha\":" T("BOOL", "[]", 256, 257) "}", 257, TS_EFORMAT, Q ".alpha"},
    {"{" PAIR(Q) ",\"bundle_emb.word.string_to_param.*\":" T("F16", "[1]", 256, 258) "}", 258, TS_OK, ""},
    {"{\"bundle_emb.word.string_to_param.*\":" T("F16", "[1]", 0, 2) "}", 2, TS_EFORMAT, "no LoRA"},
    {"{" PAIR("diffusion_model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q") "}", 256, TS_OK, ""},
    {"{" PAIR(Q) ",\"" Q ".on_input\":" T("F16", "[1]", 256, 258) "}", 258, TS_EUNSUPPORTED, "IA3"},
    {"{" PAIR(Q) ",\"" Q ".a1.weight\":" T("F16", "[1]", 256, 258) "}", 258, TS_EUNSUPPORTED, "GLoRA"},
    {"{" PAIR(Q) ",\"" Q ".w_norm\":" T("F16", "[1]", 256, 258) "}", 258, TS_EFORMAT, "different kinds"},
    {"{" PAIR(Q) ",\"" Q ".dora_scale\":" T("F16", "[32,1]", 256, 320) "}", 320, TS_OK, ""},
    {"{" PAIR(Q) ",\"" Q ".dora_scale\":" T("F16", "[1,32]", 256, 320) "}", 320, TS_OK, ""},
    {"{" PAIR(Q) ",\"" Q ".dora_scale\":" T("F16", "[31]", 256, 318) "}", 318, TS_EFORMAT, "shape"},
    {"{" PAIR(Q) ",\"" Q ".lora_magnitude_vector\":" T("F16", "[32]", 256, 320) "}", 320, TS_OK, ""},
    {"{" PAIR(Q) ",\"" Q ".lora_magnitude_vector\":" T("F16", "[16]", 256, 288) "}", 288, TS_EFORMAT,
     "shape"},
    {"{" PAIR(Q) ",\"" Q ".dora_scale\":" T("F16", "[32]", 256, 320) ",\"" Q ".lora_magnitude_vector\":" T(
         "F16", "[32]", 320, 384) "}",
     384, TS_EFORMAT, "two magnitudes"},
    {"{\"" Q ".dora_scale\":" T("F16", "[32]", 0, 64) "}", 64, TS_EFORMAT, "missing"},
    {"{\"" Q ".alpha\":" T("F16", "[]", 0, 2) "}", 2, TS_EFORMAT, "missing"},
    {"{\"" Q ".hada_w1_a\":" T("F16", "[2]", 0, 4) "}", 4, TS_EFORMAT, "fit together"},
    {"{" HADA("[32,1]", 64, 128, 192, 256) "}", 256, TS_OK, ""},
    {"{" HADA("[32,2]", 128, 192, 256, 320) "}", 320, TS_EFORMAT, "fit together"},
    {"{" HADA("[16,1]", 32, 96, 160, 224) "}", 224, TS_EFORMAT, "fit together"},
    {"{\"" Q ".lokr_w1\":" T("F16", "[4,4]", 0, 32) ",\"" Q ".lokr_w2\":" T("F16", "[8,8]", 32, 160) "}", 160,
     TS_OK, ""},
    {"{\"" Q ".lokr_w1\":" T("F16", "[4,4]", 0, 32) ",\"" Q ".lokr_w2\":" T("F16", "[8,4]", 32, 96) "}", 96,
     TS_EFORMAT, "shape"},
    {"{\"" Q ".lokr_w1\":" T("F16", "[2,2,2,2]", 0, 32) ",\"" Q ".lokr_w2\":" T("F16", "[8,8]", 32, 160) "}",
     160, TS_EFORMAT, "fit together"},
    {"{\"" Q ".lokr_w1\":" T("F16", "[4,4]", 0, 32) "}", 32, TS_EFORMAT, "missing"},
    {"{\"" Q ".lokr_w1\":" T("F16", "[4,4]", 0, 32) ",\"" Q ".lokr_w1_a\":" T("F16", "[4,4]", 32, 64) "}", 64,
     TS_EFORMAT, "fit together"},
    {"{\"" Q ".diff\":" T("F16", "[32,32]", 0, 2048) "}", 2048, TS_OK, ""},
    {"{\"" Q ".diff\":" T("F16", "[1024]", 0, 2048) "}", 2048, TS_EFORMAT, "shape"},
    {"{\"" Q ".diff_b\":" T("F16", "[32]", 0, 64) "}", 64, TS_EFORMAT, "no such layer"},
    {"{\"lora_unet_mid_block_resnets_0_norm1.b_norm\":" T("F16", "[32]", 0, 64) "}", 64, TS_OK, ""},
    {"{\"lora_unet_middle_block_0_in_layers_0.b_norm\":" T("F16", "[32]", 0, 64) "}", 64, TS_OK, ""},
    {"{\"lora_unet_mid_block_resnets_0_norm1.w_norm\":" T("F16", "[32,1]", 0, 64) "}", 64, TS_EFORMAT,
     "shape"},
    {"{" PAIR(Q) ",\"" Q ".lora_mid.weight\":" T("F16", "[2,2,1,1]", 256, 264) "}", 264, TS_OK, ""},
    {"{" PAIR(Q) ",\"" Q ".lora_mid.weight\":" T("F16", "[2,1,1,1]", 256, 260) "}", 260, TS_EFORMAT,
     "fit together"},
    {"{" PAIR(Q) ",\"" Q ".lora_mid.weight\":" T("F16", "[2,2,3,3]", 256, 328) "}", 328, TS_EFORMAT, "shape"},
    {"{\"" C ".lora_down.weight\":" T("F16", "[2,288]", 0,
                                      1152) ",\"" C ".lora_up.weight\":" T("F16", "[32,2]", 1152, 1280) "}",
     1280, TS_OK, ""},
    {"{\"" C ".lokr_w1\":" T("F16", "[8,24]", 0, 384) ",\"" C ".lokr_w2\":" T("F16", "[4,12]", 384, 480) "}",
     480, TS_OK, ""},
    {"{" PAIR("text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj") "}", 256,
     TS_OK, ""},
    {"{" PAIR("text_encoders.clip_x.transformer.text_model.encoder.layers.0.self_attn.q_proj") "}", 256,
     TS_EFORMAT, "no key"},
    {"{\"" Q ".lokr_w1\":" T("F16", "[1,1]", 0, 2) ",\"" Q ".lokr_w2_a\":" T(
         "F16", "[33,32]", 2,
         2114) ",\"" Q ".lokr_w2_b\":" T("F16", "[33,32]", 2114,
                                         4226) ",\"" Q ".lokr_t2\":" T("F16", "[33,33,1,1]", 4226, 6404) "}",
     6404, TS_EFORMAT, "fit together"},
    {"{" PAIR(Q) ",\"" Q ".oft_blocks\":" T("F16", "[1]", 256, 258) "}", 258, TS_EUNSUPPORTED, "OFT"},
    {"{\"" Q ".lora_down.weight\":" T("F16", "[2,32]", 0, 128) "}", 128, TS_EFORMAT, "missing"},
    {"{\"" Q ".lora_down.weight\":" T("I8", "[2,32]", 0, 64) "}", 64, TS_EUNSUPPORTED, "I8"},
    {"{" DOWN("[2,32]", 0, 128) "," UP("[32,1]", 128, 192) "}", 192, TS_EFORMAT, "fit together"},
    {"{" DOWN("[0,32]", 0, 0) "," UP("[32,0]", 0, 0) "}", 0, TS_EFORMAT, "fit together"},
    {"{" DOWN("[2,32,1]", 0, 128) "," UP("[32,2]", 128, 256) "}", 256, TS_EFORMAT, "fit together"},
    {"{" PAIR(Q) "," METADATA("{") "}", 256, TS_EFORMAT, "lora_adapter_metadata"},
    {"{" PAIR(Q) "," METADATA("{\\\"unet.lora_alpha\\\":\\\"1\\\"}") "}", 256, TS_EFORMAT, "alpha"},
    {"{" PAIR(Q) "," METADATA("{\\\"unet.use_dora\\\":true}") "}", 256, TS_EFORMAT, "no magnitude"},
    {"{" PAIR(Q) "," METADATA("{\\\"unet.alpha_pattern\\\":[1]}") "}", 256, TS_EFORMAT, "alpha_pattern"},
    {"{" PAIR(Q) "," METADATA("5") "}", 256, TS_EFORMAT, "object"},
    {"{\"base_model.model.a.lora_A.weight\":" T(
         "F16", "[2,32]", 0, 128) ",\"base_model.model.a.lora_B.weight\":" T("F16", "[32,2]", 128, 256) "}",
     256, TS_EFORMAT, "adapter_config.json"},
    {"{" PAIR(Q) ",\"base_model.model.a.lora_A.weight\":" T("F16", "[1]", 256, 258) "}", 258, TS_EFORMAT,
     "of one layout"},
    /* What a model says to them. */
    {"{" PAIR("lora_unet_mid_block_attentions_9_transformer_blocks_0_attn1_to_q") "}", 256, TS_EFORMAT,
     "no such layer"},
    {"{" PAIR("lora_unet_input_blocks_99_1_proj_in") "}", 256, TS_EFORMAT, "no such layer"},
    {"{" PAIR("lora_unet_conv_in") "}", 256, TS_EFORMAT, "shape"},
    /* Names of the LDM layout beside diffusers' are dropped, whether they are of the same layer or of none.
     */
    {"{" PAIR("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q") "," PAIR_BEHIND(Q) "}", 512, TS_OK,
     ""},
    {"{" PAIR("lora_unet_input_blocks_99_1_proj_in") "," PAIR_BEHIND(Q) "}", 512, TS_OK, ""},
    {"{" PAIR("lora_unet_input_blocks_99_1_proj_in") "," PAIR_BEHIND("lora_unet_time_embedding_linear_1") "}",
     512, TS_EFORMAT, "no such layer"},
    {"{" PAIR("lora_unet_mid_block_resnets_0_conv1") "}", 256, TS_EFORMAT, "shape"},
    {"{" PAIR("lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj") "}", 256, TS_EFORMAT,
     "shape"},
};

static void a_file_is_taken_or_refused_with_the_reason(void **state) {
    const refusal *r = *state;
    const size_t length = strlen(r->header), size = 8 + length + r->bytes;
    unsigned char *file = calloc(size, 1);
    assert_non_null(file);
    for (unsigned i = 0; i < 8; i++) file[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(file + 8, r->header, length);
    ts_lora *l = NULL;
    ts_error e = {0};
    ts_code rc = ts_lora_parse("a test", file, size, NULL, &l, &e);
    ts_weights *base = parity_weights_folder("pipeline_sd1/unet"), *over = NULL;
    must(ts_weights_over(base, &over, NULL), &e);
    if (!rc) rc = ts_lora_fuse(&(ts_lora_scaled){l, 1}, 1, TS_LORA_UNET, 1, base, over, &e);
    if (rc != r->code || (rc && (!strstr(e.message, r->word) || !strstr(e.message, "a test"))))
        fail_msg("%s: \"%s\", without %s", ts_code_name(rc), e.message, r->word);
    ts_weights_free(over);
    ts_weights_free(base);
    ts_lora_free(l);
    free(file);
}

/* ComfyUI writes the difference of each encoder's projection, one that has none included. */
static void a_projection_that_an_encoder_has_not_is_nothing_to_it(void **state) {
    (void)state;
#define TEXT(name) "text_encoders.clip_l.transformer." name
    static const struct {
        const char *header;
        ts_code code;
    } cases[] = {{"{" PAIR(TEXT("text_projection")) "," PAIR_BEHIND(
                      TEXT("text_model.encoder.layers.0.self_attn.q_proj")) "}",
                  TS_OK},
                 {"{" PAIR(TEXT("text_projector")) "," PAIR_BEHIND(
                      TEXT("text_model.encoder.layers.0.self_attn.q_proj")) "}",
                  TS_EFORMAT}};
    ts_weights *base = parity_weights_folder("pipeline_sd1/text_encoder");
    for (int i = 0; i < 2; i++) {
        const size_t length = strlen(cases[i].header), size = 8 + length + 512;
        unsigned char *file = calloc(size, 1);
        assert_non_null(file);
        for (unsigned k = 0; k < 8; k++) file[k] = (unsigned char)((uint64_t)length >> (8 * k));
        memcpy(file + 8, cases[i].header, length);
        ts_lora *l = NULL;
        ts_weights *over = NULL;
        ts_error e = {0};
        must(ts_weights_over(base, &over, NULL), &e);
        must(ts_lora_parse("a test", file, size, NULL, &l, &e), &e);
        assert_int_equal(ts_lora_fuse(&(ts_lora_scaled){l, 1}, 1, TS_LORA_TEXT, 1, base, over, &e),
                         cases[i].code);
        if (cases[i].code) assert_non_null(strstr(e.message, "no such layer"));
        ts_weights_free(over);
        ts_lora_free(l);
        free(file);
    }
    ts_weights_free(base);
}

/* As diffusers saves a LoRA: a folder like an adapter's, with another file and other keys in it. */
static void a_folder_of_diffusers_is_a_lora(void **state) {
    (void)state;
    char folder[] = "/tmp/tessera_lora_XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *from = fixture_path("loras/peft_sd1.safetensors"),
         *inside = ts_path_join(folder, "pytorch_lora_weights.safetensors");
    char *full = realpath(from, NULL), *slash = strrchr(folder, '/'), *name = ts_strdup(slash + 1);
    assert_true(full && name && !symlink(full, inside));
    ts_error e = {0};
    ts_lora *l = NULL, *same = NULL;
    must(ts_lora_open(folder, &l, &e), &e);
    must(ts_lora_open(from, &same, &e), &e);
    assert_int_equal(ts_lora_count(l), ts_lora_count(same));
    char *found = ts_lora_find("/tmp", name), *none = ts_lora_find("/tmp", "tessera_no_such_lora");
    assert_string_equal(found, inside);
    assert_string_equal(none, "/tmp/tessera_no_such_lora.safetensors");
    studio s = studio_open("pipeline_sd1", &ts_backend_ref, 1);
    must(ts_model_fuse(s.model, &(ts_lora_use){inside, 1}, 1, &e), &e);
    assert_string_equal(ts_model_get_info(s.model)->loras[0].name, name);
    studio_close(s);
    ts_lora_free(l), ts_lora_free(same);
    unlink(inside);
    rmdir(folder);
    free(found), free(none), free(from), free(full), free(inside), free(name);
}

/* An adapter of PEFT's own, with another configuration beside it; text NULL: none. */
typedef struct adapter_case {
    const char *text;
    ts_code code;
    const char *word; /* of the message; where there is none, the layer whose alpha is 9 */
} adapter_case;

static const adapter_case adapters[] = {
    {"{}", TS_OK, ""}, /* PEFT's own default */
    {"{\"lora_alpha\": 4, \"r\": 3}", TS_OK, ""},
    {"{\"lora_alpha\": 4, \"use_rslora\": 1}", TS_EFORMAT, "use_rslora"},
    {NULL, TS_EFORMAT, "adapter_config.json"},
    {"{", TS_EFORMAT, "adapter_config.json"},
    {"{\"lora_alpha\": \"4\"}", TS_EFORMAT, "alpha"},
    {"{\"lora_alpha\": 4, \"peft_type\": \"LOHA\"}", TS_EUNSUPPORTED, "peft_type"},
    {"{\"lora_alpha\": 4, \"peft_type\": 5}", TS_EUNSUPPORTED, "peft_type"},
    {"{\"lora_alpha\": 4, \"use_dora\": true}", TS_EFORMAT, "no magnitude"},
    {"{\"lora_alpha\": 4, \"use_dora\": false, \"kasa_config\": null, \"init_lora_weights\": \"gaussian\"}",
     TS_OK, ""},
    {"{\"lora_alpha\": 4, \"init_lora_weights\": \"pissa_niter_4\"}", TS_EUNSUPPORTED, "pissa"},
    {"[]", TS_EFORMAT, "object"},
    {"{\"alpha_pattern\": [1]}", TS_EFORMAT, "alpha_pattern"},
    {"{\"alpha_pattern\": {\"q_(proj|x)\": 1}}", TS_EUNSUPPORTED, "alpha_pattern"},
    {"{\"lora_alpha\": 4, \"alpha_pattern\": {\"proj\": 9, \"\u00e9\": 2}}", TS_EUNSUPPORTED,
     "alpha_pattern"},
    {"{\"lora_alpha\": 4, \"alpha_pattern\": {\"proj\": 9, \"c1\": 8}}", TS_OK, ""},
    {"{\"lora_alpha\": 4, \"alpha_pattern\": {\"^q_proj\": 9, \"^fc1\": 8}}", TS_OK, ""},
    {"{\"lora_alpha\": 4, \"alpha_pattern\": {\"^encoder.layers.0.mlp.fc1\": 9}}", TS_OK,
     "encoder_layers_0_mlp_fc1"},
    {"{\"lora_alpha\": 4, \"alpha_pattern\": {\"1.self_attn.q_proj\": 9}}", TS_OK,
     "encoder_layers_1_self_attn_q_proj"},
    {"{\"lora_alpha\": 4, \"alpha_pattern\": {\"^\": 9}}", TS_EUNSUPPORTED, "alpha_pattern"},
};

static void an_adapter_is_read_with_its_configuration(void **state) {
    const adapter_case *c = *state;
    char folder[] = "/tmp/tessera_adapter_XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *from = fixture_path("loras/adapter_text/adapter_model.safetensors"), *bytes;
    char *model = ts_path_join(folder, "adapter_model.safetensors"),
         *config = ts_path_join(folder, "adapter_config.json");
    size_t n;
    ts_error e = {0};
    must(ts_read_file(from, (size_t)1 << 20, &bytes, &n, &e), &e);
    must(ts_write_file(model, bytes, n, &e), &e);
    if (c->text) must(ts_write_file(config, c->text, strlen(c->text), &e), &e);
    const char *const paths[] = {folder, model}; /* the folder, or the file in it */
    for (int i = 0; i < 2; i++) {
        ts_lora *l = NULL;
        e = (ts_error){0};
        ts_code rc = ts_lora_open(paths[i], &l, &e);
        if (rc != c->code || (rc && (!strstr(e.message, c->word) || !strstr(e.message, folder))))
            fail_msg("%s: \"%s\", without %s", ts_code_name(rc), e.message, c->word);
        for (size_t k = 0; l && k < ts_lora_count(l); k++) {
            assert_int_equal(ts_lora_at(l, k)->part, TS_LORA_TEXT);
            const double alpha = !strcmp(ts_lora_at(l, k)->layer, c->word) ? 9
                                 : strstr(c->text, "alpha")                ? 4
                                                                           : 8;
            assert_true(fabs(ts_lora_at(l, k)->factor - alpha / 3) < 1e-9);
        }
        ts_lora_free(l);
    }
    unlink(config);
    unlink(model);
    rmdir(folder);
    free(config);
    free(model);
    free(bytes);
    free(from);
}

/* A file for another kind of model. */
static void a_second_text_encoder_is_asked_for(void **state) {
    (void)state;
    studio s = studio_open("pipeline_sd1", &ts_backend_ref, 1);
    char *path = fixture_path("loras/sgm_xl.safetensors");
    ts_model *v = NULL;
    ts_error e = {0};
    assert_int_equal(ts_model_vary(s.model, &(ts_lora_use){path, 1}, 1, &v, &e), TS_EFORMAT);
    assert_null(v);
    assert_non_null(strstr(e.message, "sgm_xl.safetensors"));
    assert_int_equal(ts_model_vary(s.model, &(ts_lora_use){"/nonexistent", 1}, 1, &v, &e), TS_ENOTFOUND);
    free(path);
    studio_close(s);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    cJSON *json = fixture_json("loras.json");
    ts_tensors *want = fixture_tensors("loras.safetensors");
    test_list tests = {0};
    const cJSON *c;
    cJSON_ArrayForEach(c, json) {
        lora_case k = {.json = c, .want = want, .backend = &ts_backend_ref};
        const char *name = json_text(c, "name");
        test_add(&tests, a_fused_unet_is_that_of_diffusers, &k, sizeof k, "%s: the U-Net is diffusers'",
                 name);
        k.backend = &ts_backend_cpu;
        test_add(&tests, a_fused_model_makes_the_picture_of_diffusers, &k, sizeof k,
                 "%s: the picture is diffusers'", name);
        test_add(&tests, a_variant_leaves_its_model_alone, &k, sizeof k,
                 "%s: a variant leaves its model alone", name);
    }
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++)
        test_add(&tests, a_file_is_taken_or_refused_with_the_reason, &refusals[i], 0, "file %zu: %s", i,
                 refusals[i].code ? refusals[i].word : "taken");
    for (size_t i = 0; i < sizeof adapters / sizeof *adapters; i++)
        test_add(&tests, an_adapter_is_read_with_its_configuration, &adapters[i], 0, "adapter %zu: %s", i,
                 adapters[i].code ? adapters[i].word : "taken");
    test_add(&tests, a_projection_that_an_encoder_has_not_is_nothing_to_it, NULL, 0,
             "a projection that an encoder has not is nothing to it");
    test_add(&tests, a_folder_of_diffusers_is_a_lora, NULL, 0, "a folder of diffusers is a LoRA");
    test_add(&tests, a_second_text_encoder_is_asked_for, NULL, 0,
             "a file for another kind of model is refused");
    int failed = test_run(&tests, "loras");
    cJSON_Delete(json);
    ts_tensors_free(want);
    return failed;
}
