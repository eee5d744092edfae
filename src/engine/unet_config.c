#include <string.h>
#include "engine/config.h"
#include "engine/unet.h"

/* Keys with only one value that is built; another would change the picture. */
static ts_code check_fixed(const cJSON *j, ts_error *e) {
    static const char *const falses[] = {"center_input_sample", "dual_cross_attention",
                                         "class_embeddings_concat", "resnet_skip_time_act"};
    static const char *const nulls[] = {"num_attention_heads",
                                        "encoder_hid_dim",
                                        "encoder_hid_dim_type",
                                        "class_embed_type",
                                        "num_class_embeds",
                                        "timestep_post_act",
                                        "time_cond_proj_dim",
                                        "time_embedding_dim",
                                        "cross_attention_norm",
                                        "time_embedding_act_fn",
                                        "reverse_transformer_layers_per_block",
                                        "mid_block_only_cross_attention"};
    static const struct {
        const char *key, *value, *also;
    } strings[] = {{"act_fn", "silu", "swish"},
                   {"resnet_time_scale_shift", "default", NULL},
                   {"time_embedding_type", "positional", NULL},
                   {"attention_type", "default", NULL},
                   {"addition_embed_type", "text_time", NULL}};
    static const struct {
        const char *key;
        double value;
    } numbers[] = {{"conv_in_kernel", 3},
                   {"conv_out_kernel", 3},
                   {"downsample_padding", 1},
                   {"mid_block_scale_factor", 1},
                   {"resnet_out_scale_factor", 1}};
    ts_code rc = TS_OK;
    for (size_t i = 0; !rc && i < sizeof falses / sizeof *falses; i++)
        rc = ts_config_only_false(j, falses[i], e);
    for (size_t i = 0; !rc && i < sizeof nulls / sizeof *nulls; i++) {
        /* Today's diffusers writes false where it once wrote nothing. */
        if (!cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(j, nulls[i])))
            rc = ts_config_only_null(j, nulls[i], e);
    }
    for (size_t i = 0; !rc && i < sizeof strings / sizeof *strings; i++)
        rc = ts_config_only_string(j, strings[i].key, strings[i].value, strings[i].also, e);
    for (size_t i = 0; !rc && i < sizeof numbers / sizeof *numbers; i++)
        rc = ts_config_only_number(j, numbers[i].key, numbers[i].value, e);
    const cJSON *only = cJSON_GetObjectItemCaseSensitive(j, "only_cross_attention");
    const cJSON *item = NULL;
    if (!rc && cJSON_IsArray(only)) {
        cJSON_ArrayForEach(item, only) if (!cJSON_IsFalse(item)) rc =
            ts_fail_param(e, TS_EFORMAT, "only_cross_attention", "only_cross_attention is not supported");
    } else if (!rc)
        rc = ts_config_only_false(j, "only_cross_attention", e);
    return rc;
}

/* A list of block types of two kinds. absent: all with attention, but for the deepest one. */
static ts_code read_types(const cJSON *j, const char *key, const char *plain, const char *cross, int deepest,
                          ts_unet_config *c, bool *ret, ts_error *e) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(j, key);
    if (!list || cJSON_IsNull(list)) {
        for (int i = 0; i < c->levels; i++) ret[i] = i != deepest;
        return TS_OK;
    }
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != c->levels)
        return ts_fail_param(e, TS_EFORMAT, key, "%s is not a list of %d block types", key, c->levels);
    for (int i = 0; i < c->levels; i++) {
        const char *type = cJSON_GetStringValue(cJSON_GetArrayItem(list, i));
        if (!type || (strcmp(type, plain) != 0 && strcmp(type, cross) != 0))
            return ts_fail_param(e, TS_EFORMAT, key, "%s: \"%.64s\" is not supported", key,
                                 type ? type : "?");
        ret[i] = !strcmp(type, cross);
    }
    return TS_OK;
}

static ts_code read_levels(const cJSON *j, ts_unet_config *c, ts_error *e) {
    const cJSON *channels = cJSON_GetObjectItemCaseSensitive(j, "block_out_channels");
    if (!cJSON_IsArray(channels))
        return ts_fail_param(e, TS_EFORMAT, "block_out_channels", "block_out_channels is missing");
    c->levels = cJSON_GetArraySize(channels);
    if (c->levels < 1 || c->levels > TS_UNET_LEVELS)
        return ts_fail_param(e, TS_EFORMAT, "block_out_channels", "block_out_channels: %d levels", c->levels);
    const int n = c->levels;
    ts_code rc = ts_config_levels(j, "block_out_channels", 0, n, c->channels, e);
    if (!rc) rc = ts_config_levels(j, "layers_per_block", 2, n, c->layers, e);
    if (!rc) rc = ts_config_levels(j, "attention_head_dim", 8, n, c->heads, e);
    if (!rc) rc = ts_config_levels(j, "transformer_layers_per_block", 1, n, c->transformer_layers, e);
    if (!rc)
        rc = read_types(j, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D", n - 1, c,
                        c->down_attention, e);
    if (!rc)
        rc = read_types(j, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D", 0, c, c->up_attention, e);
    for (int i = 0; !rc && i < n; i++)
        if (c->layers[i] > 32 || c->transformer_layers[i] > 64)
            rc = ts_fail_param(e, TS_EFORMAT, "layers_per_block", "more layers than any model has");
    return rc;
}

/* A number for both sides, or height and width. */
static ts_code read_sample_size(const cJSON *j, ts_unet_config *c, ts_error *e) {
    enum { MOST = 2048 };
    static const char key[] = "sample_size";
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);
    int sides[2];
    if (!cJSON_IsArray(v)) {
        ts_code rc = ts_config_int(j, key, MOST, 64, &c->sample_width, e);
        c->sample_height = c->sample_width;
        return rc;
    }
    ts_code rc = ts_config_levels(j, key, 0, 2, sides, e);
    if (rc) return rc;
    if (sides[0] > MOST || sides[1] > MOST)
        return ts_fail_param(e, TS_EFORMAT, key, "%s is not two numbers from 1 to %d", key, MOST);
    c->sample_height = sides[0];
    c->sample_width = sides[1];
    return TS_OK;
}

ts_code ts_unet_config_read(const cJSON *j, ts_unet_config *ret, ts_error *e) {
    ts_unet_config c = {0};
    ts_code rc = ts_config_only_string(j, "_class_name", "UNet2DConditionModel", NULL, e);
    if (!rc) rc = check_fixed(j, e);
    if (!rc) rc = read_levels(j, &c, e);
    if (!rc) rc = read_sample_size(j, &c, e);
    if (!rc) rc = ts_config_int(j, "in_channels", 64, 4, &c.in_channels, e);
    if (!rc) rc = ts_config_int(j, "out_channels", 64, 4, &c.out_channels, e);
    if (!rc) rc = ts_config_int(j, "cross_attention_dim", 1 << 16, 1280, &c.cross_attention_dim, e);
    if (!rc) rc = ts_config_int(j, "norm_num_groups", 1 << 12, 32, &c.groups, e);
    if (!rc) rc = ts_json_number(j, "norm_eps", 0, 1, 1e-5, &c.norm_eps, e);
    if (!rc) rc = ts_json_bool(j, "use_linear_projection", false, &c.linear_projection, e);
    if (!rc) rc = ts_config_bool(j, "flip_sin_to_cos", true, &c.flip_sin_to_cos, e);
    if (!rc) rc = ts_json_number(j, "freq_shift", 0, 1, 0, &c.freq_shift, e);
    if (rc) return rc;
    const cJSON *mid = cJSON_GetObjectItemCaseSensitive(j, "mid_block_type");
    c.mid_block = !cJSON_IsNull(mid);
    rc = ts_config_only_string(j, "mid_block_type", "UNetMidBlock2DCrossAttn", NULL, e);
    c.text_time = cJSON_IsString(cJSON_GetObjectItemCaseSensitive(j, "addition_embed_type"));
    if (!rc && c.text_time) rc = ts_config_int(j, "addition_time_embed_dim", 1 << 14, 0, &c.time_id_dim, e);
    if (!rc && c.text_time)
        rc = ts_config_int(j, "projection_class_embeddings_input_dim", 1 << 16, 0, &c.added_dim, e);
    if (!rc && c.text_time && c.added_dim <= 6 * c.time_id_dim)
        rc = ts_fail_param(e, TS_EFORMAT, "projection_class_embeddings_input_dim",
                           "no room for the pooled text");
    if (rc) return rc;
    *ret = c;
    return TS_OK;
}
