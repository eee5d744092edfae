/* Single files that are not whole, or not what they seem, and what is said of them. */
#include "workshop.h"

#include <unistd.h>

static void refused(const char *how, ts_code code, const char *word) {
    char *path = workshop_write("bad");
    ts_error e = {0};
    ts_model *m = NULL;
    ts_code rc = ts_model_load(path, NULL, &m, &e);
    assert_null(m);
    if (rc != code || !strstr(e.message, word))
        fail_msg("%s: %s \"%s\", not %s and %s", how, ts_code_name(rc), e.message, ts_code_name(code), word);
    workshop_discard(path);
}

/* Whichever tensor is missing, nothing is made of the rest. */
static void a_tensor_that_is_missing_is_missed(void **state) {
    const char *kind = *state;
    workshop_gather(kind);
    const size_t all = workshop.count;
    for (size_t i = 0; i < all; i += 3) {
        workshop_gather(kind);
        const char *name = workshop.tensors[i].name;
        workshop.tensors[i] = workshop.tensors[--workshop.count];
        workshop_beside(workshop_case(kind), "bad");
        char *path = workshop_write("bad");
        ts_error e = {0};
        ts_model *m = NULL;
        ts_code rc = ts_model_load(path, NULL, &m, &e);
        if (rc != TS_EFORMAT) fail_msg("without %s: %s", name, ts_code_name(rc));
        workshop_discard(path);
    }
}

static void a_tensor_of_another_shape_or_layer_is_named(void **state) {
    (void)state;
    static const struct {
        const char *key, *as, *words[3];
    } cases[] = {
        {"model.diffusion_model.time_embed.0.bias", NULL, {"unet", "time_embedding.linear_1", "the bias is"}},
        {"cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc2.weight",
         NULL,
         {"text_encoder", "mlp.fc2", "the weight is"}},
        {"first_stage_model.decoder.conv_in.bias", NULL, {"vae", "decoder.conv_in", "the bias is"}},
        {"model.diffusion_model.out.2.bias",
         "model.diffusion_model.label_emb.0.0.bias",
         {"there is no conv_out.bias"}},
        {"first_stage_model.quant_conv.bias",
         "first_stage_model.decoder.mid.attn_2.q.bias",
         {"decoder.mid.attn_2"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        workshop_gather("sd1");
        ts_file_tensor *t = workshop_tensor(cases[i].key);
        if (cases[i].as)
            t->name = cases[i].as;
        else
            t->shape[0]--, t->bytes -= t->bytes / (size_t)(t->shape[0] + 1);
        for (int k = 0; k < 3 && cases[i].words[k]; k++) {
            workshop_beside(workshop_case("sd1"), "bad");
            refused(cases[i].key, TS_EFORMAT, cases[i].words[k]);
        }
    }
    /* One more than the layers have. */
    workshop_gather("sd1");
    ts_file_tensor *extra = &workshop.tensors[workshop.count++];
    *extra = *workshop_tensor("model.diffusion_model.time_embed.0.bias");
    extra->name = "model.diffusion_model.label_emb.0.0.bias";
    workshop_beside(workshop_case("sd1"), "bad");
    refused("an embedding of something else", TS_EFORMAT, "add_embedding.linear_1.bias is of no layer");
}

/* A config that promises more tokens than there are: an id of theirs would be read from behind the table. */
static void a_table_of_fewer_tokens_is_refused(void **state) {
    (void)state;
    workshop_gather("sd1");
    char *path = workshop_write("bad"), *beside = ts_format("%s/bad.json", workshop.folder);
    workshop_beside(workshop_case("sd1"), "bad");
    cJSON *json = NULL;
    ts_error e = {0};
    must(ts_json_file(beside, 1 << 20, (ts_json_limits){.depth = 8, .values = 1000}, &json, &e), &e);
    cJSON_AddNumberToObject(cJSON_GetObjectItemCaseSensitive(json, "text_encoder"), "vocab_size", 60000);
    char *text = cJSON_PrintUnformatted(json);
    must(ts_write_file(beside, text, strlen(text), &e), &e);
    ts_model *m = NULL;
    assert_int_equal(ts_model_load(path, NULL, &m, &e), TS_EFORMAT);
    if (!strstr(e.message, "rows")) fail_msg("%s", e.message);
    cJSON_free(text);
    cJSON_Delete(json);
    free(beside);
    workshop_discard(path);
}

/* A float becomes an integer of as many bytes. */
static void a_tensor_of_another_type_is_named(void **state) {
    (void)state;
    static const char *const names[] = {"model.diffusion_model.out.2.bias",
                                        "first_stage_model.decoder.conv_out.bias",
                                        "cond_stage_model.transformer.text_model.final_layer_norm.bias"};
    for (int i = 0; i < 3; i++) {
        workshop_gather("sd1");
        workshop_beside(workshop_case("sd1"), "bad");
        char *path = workshop_write("bad"), *bytes = NULL;
        size_t size;
        ts_error e = {0};
        must(ts_read_file(path, SIZE_MAX / 2, &bytes, &size, &e), &e);
        char *entry = ts_format("\"%s\":{\"dtype\":\"", names[i]);
        char *at = memmem(bytes, size, entry, strlen(entry));
        assert_non_null(at);
        at[strlen(entry)] = 'I';
        must(ts_write_file(path, bytes, size, &e), &e);
        ts_model *m = NULL;
        assert_int_equal(ts_model_load(path, NULL, &m, &e), TS_EUNSUPPORTED);
        if (!strstr(e.message, "of type I")) fail_msg("%s", e.message);
        free(entry);
        free(bytes);
        workshop_discard(path);
    }
}

static void a_file_that_is_no_model_says_what_it_lacks(void **state) {
    (void)state;
    static const char *const parts[] = {"model.diffusion_model.", "first_stage_model.", "cond_stage_model."};
    static const char *const words[] = {"model.diffusion_model.", "first_stage_model.", "text encoder"};
    for (int i = 0; i < 3; i++) {
        workshop_gather("sd1");
        workshop_sift(parts[i], false);
        refused(parts[i], TS_EFORMAT, words[i]);
    }
    workshop_gather("xl");
    workshop_sift("conditioner.embedders.0.", false);
    refused("an XL model without its first encoder", TS_EFORMAT, "hidden_size");
    workshop_gather("sd1");
    workshop_sift("model.diffusion_model.input_blocks.4.", false);
    refused("a U-Net without a block", TS_EFORMAT, "input blocks");
}

static void a_projection_that_is_not_three_is_refused(void **state) {
    (void)state;
    workshop_gather("xl");
    for (size_t i = 0; i < workshop.count; i++) {
        ts_file_tensor *t = &workshop.tensors[i];
        if (!strstr(t->name, "resblocks.0.attn.in_proj_bias")) continue;
        t->shape[0]--;
        t->bytes -= ts_dtype_size(t->dtype);
    }
    refused("143 rows", TS_EFORMAT, "in_proj_bias");
}

static void what_lies_beside_is_checked(void **state) {
    (void)state;
    static const struct {
        const char *text, *word;
    } beside[] = {{"[]", "not an object"},
                  {"{\"unet\":7}", "unet"},
                  {"{\"schedular\":{}}", "schedular"},
                  {"{\"vae\":{\"block_out_channels\":\"many\"}}", "block_out_channels"},
                  {"{\"scheduler\":{\"beta_schedule\":\"round\"}}", "beta_schedule"},
                  {"{\"tokenizer\":\"no/such/folder\"}", "no/such/folder"}};
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        workshop_gather("sd1");
        char *path = workshop_write("bad"), *json = ts_format("%s/bad.json", workshop.folder);
        ts_error e = {0};
        ts_model *m = NULL;
        must(ts_write_file(json, beside[i].text, strlen(beside[i].text), &e), &e);
        assert_int_not_equal(ts_model_load(path, NULL, &m, &e), TS_OK);
        assert_null(m);
        if (!strstr(e.message, beside[i].word)) fail_msg("%s: %s", beside[i].text, e.message);
        free(json);
        workshop_discard(path);
    }
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    workshop_open(argc, argv);
    test_list tests = {0};
    test_add(&tests, a_table_of_fewer_tokens_is_refused, NULL, 0, "a table of fewer tokens is refused");
    test_add(&tests, a_projection_that_is_not_three_is_refused, NULL, 0,
             "a projection that is not three is refused");
    test_add(&tests, a_tensor_that_is_missing_is_missed, "sd1", 0, "sd1: a tensor that is missing is missed");
    test_add(&tests, a_tensor_that_is_missing_is_missed, "xl", 0, "xl: a tensor that is missing is missed");
    test_add(&tests, a_tensor_of_another_shape_or_layer_is_named, NULL, 0,
             "a tensor of another shape or layer is named");
    test_add(&tests, a_table_of_fewer_tokens_is_refused, NULL, 0, "a table of fewer tokens is refused");
    test_add(&tests, a_tensor_of_another_type_is_named, NULL, 0, "a tensor of another type is named");
    test_add(&tests, a_file_that_is_no_model_says_what_it_lacks, NULL, 0,
             "a file that is no model says what it lacks");
    test_add(&tests, a_projection_that_is_not_three_is_refused, NULL, 0,
             "a projection that is not three is refused");
    test_add(&tests, what_lies_beside_is_checked, NULL, 0, "what lies beside is checked");
    int failed = test_run(&tests, "broken");
    workshop_close();
    return failed;
}
