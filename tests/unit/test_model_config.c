/* The configs of a model's components with a value in them that no model has: refused, by the key's name. */
#include "fixture.h"

#include "engine/clip.h"
#include "engine/unet.h"
#include "engine/vae.h"

static ts_code read_unet(const cJSON *json, ts_error *e) {
    ts_unet_config c;
    return ts_unet_config_read(json, &c, e);
}
static ts_code read_vae(const cJSON *json, ts_error *e) {
    ts_vae_config c;
    return ts_vae_config_read(json, &c, e);
}
static ts_code read_clip(const cJSON *json, ts_error *e) {
    ts_clip_config c;
    return ts_clip_config_read(json, false, &c, e);
}
static ts_code read_clip_2(const cJSON *json, ts_error *e) {
    ts_clip_config c;
    return ts_clip_config_read(json, true, &c, e);
}

#define MAX_KEYS 40

/* Keys that change what a component computes, as diffusers' and transformers' classes document them. */
static const struct {
    const char *file;
    ts_code (*read)(const cJSON *json, ts_error *e);
    const char *keys[MAX_KEYS];
} configs[] = {
    {"pipeline_sd1/unet",
     read_unet,
     {"sample_size",
      "in_channels",
      "out_channels",
      "center_input_sample",
      "flip_sin_to_cos",
      "freq_shift",
      "down_block_types",
      "mid_block_type",
      "up_block_types",
      "only_cross_attention",
      "block_out_channels",
      "layers_per_block",
      "downsample_padding",
      "mid_block_scale_factor",
      "act_fn",
      "norm_num_groups",
      "norm_eps",
      "cross_attention_dim",
      "transformer_layers_per_block",
      "attention_head_dim",
      "dual_cross_attention",
      "use_linear_projection",
      "class_embed_type",
      "addition_embed_type",
      "num_class_embeds",
      "resnet_time_scale_shift",
      "time_embedding_type",
      "timestep_post_act",
      "conv_in_kernel",
      "conv_out_kernel",
      "attention_type",
      "encoder_hid_dim",
      "resnet_out_scale_factor",
      "_class_name"}},
    {"unet_sd2", read_unet, {"attention_head_dim", "use_linear_projection"}},
    {"pipeline_xl/unet",
     read_unet,
     {"addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
      "transformer_layers_per_block"}},
    {"unet_ssd",
     read_unet,
     {"transformer_layers_per_block", "reverse_transformer_layers_per_block", "mid_block_type"}},
    {"unet_lcm", read_unet, {"time_cond_proj_dim"}},
    {"pipeline_sd1/vae",
     read_vae,
     {"_class_name", "in_channels", "out_channels", "down_block_types", "up_block_types",
      "block_out_channels", "layers_per_block", "act_fn", "latent_channels", "norm_num_groups",
      "scaling_factor", "shift_factor", "latents_mean", "latents_std", "use_quant_conv",
      "use_post_quant_conv", "mid_block_add_attention"}},
    {"pipeline_sd1/text_encoder",
     read_clip,
     {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
      "max_position_embeddings", "vocab_size", "hidden_act", "layer_norm_eps", "eos_token_id"}},
    {"pipeline_xl/text_encoder_2", read_clip_2, {"projection_dim", "hidden_size"}},
};

/* None is a value of any of those keys: names, counts, lists by level, flags. */
static const char *const values[] = {
    "\"x\"",
    "\"\"",
    "-1",
    "0.5",
    "1e300",
    "-1e300",
    "4294967297",
    "9007199254740992",
    "{}",
    "[[]]",
    "[{}]",
    "[\"x\"]",
    "[-1]",
    "[0]",
    "[1,2,3,4,5,6,7,8,9,10,11]",
    "[null]",
};

/* Half is a scale, an eps and a shift like any other. */
static bool may_be(const char *key, const char *value) {
    static const char *const numbers[] = {"norm_eps", "layer_norm_eps", "freq_shift", "scaling_factor"};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i]) && !strcmp(value, "0.5")) return true;
    return false;
}

static cJSON *config_of(const char *folder) {
    char *name = ts_format("%s/config.json", folder);
    cJSON *json = fixture_json(name);
    free(name);
    return json;
}

static void put(cJSON *json, const char *key, const char *value) {
    cJSON_DeleteItemFromObjectCaseSensitive(json, key);
    cJSON *item = cJSON_Parse(value);
    assert_true(item && cJSON_AddItemToObject(json, key, item));
}

static void a_value_that_no_model_has_is_refused_by_its_key(void **state) {
    (void)state;
    size_t wrong = 0;
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++)
        for (size_t k = 0; k < MAX_KEYS && configs[i].keys[k]; k++)
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                const char *key = configs[i].keys[k];
                if (may_be(key, values[v])) continue;
                cJSON *json = config_of(configs[i].file);
                ts_error e = {0};
                must(configs[i].read(json, &e), &e);
                put(json, key, values[v]);
                ts_code rc = configs[i].read(json, &e);
                if ((rc != TS_EFORMAT && rc != TS_EINVAL) || !strstr(e.message, key)) {
                    print_error("%s: \"%s\": %s gives %s \"%s\"\n", configs[i].file, key, values[v],
                                ts_code_name(rc), e.message);
                    wrong++;
                }
                cJSON_Delete(json);
            }
    assert_int_equal(wrong, 0);
}

static void what_is_no_object_is_refused(void **state) {
    (void)state;
    static const char *const texts[] = {"null", "7", "\"x\"", "[]", "[{}]"};
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++)
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
            cJSON *json = cJSON_Parse(texts[k]);
            ts_error e = {0};
            ts_code rc = configs[i].read(json, &e);
            if (rc != TS_EFORMAT && rc != TS_EINVAL) fail_msg("%s reads %s", configs[i].file, texts[k]);
            cJSON_Delete(json);
        }
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_value_that_no_model_has_is_refused_by_its_key),
        cmocka_unit_test(what_is_no_object_is_refused),
    };
    return cmocka_run_group_tests_name("model_config", tests, NULL, NULL);
}
