#include <string.h>
#include "engine/config.h"
#include "engine/unet.h"

/* Keys with only one value that is built; another would change the picture. */
static ts_code check_fixed(const cJSON *j, ts_error *e) {
    static const char *const falses[] = {"center_input_sample", "dual_cross_attention",
                                         "class_embeddings_concat", "resnet_skip_time_act"};
    static const char *const nulls[] = {"num_attention_heads",   "encoder_hid_dim",
                                        "encoder_hid_dim_type",  "class_embed_type",
                                        "num_class_embeds",      "timestep_post_act",
                                        "time_embedding_dim",    "cross_attention_norm",
                                        "time_embedding_act_fn", "mid_block_only_cross_attention"};
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
    if (!rc)
        rc = read_types(j, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D", n - 1, c,
                        c->down_attention, e);
    if (!rc)
        rc = read_types(j, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D", 0, c, c->up_attention, e);
    for (int i = 0; !rc && i < n; i++)
        if (c->layers[i] > TS_UNET_LAYERS)
            rc = ts_fail_param(e, TS_EFORMAT, "layers_per_block", "more layers than any model has");
    return rc;
}

/* How many transformer blocks follow each of n resnets: a number for all, or a list. v: NULL for none said.
 */
static ts_code read_depth(const cJSON *v, const char *key, int n, int *ret, ts_error *e) {
    enum { MOST = 64 };
    if (cJSON_IsArray(v) && cJSON_GetArraySize(v) != n)
        return ts_fail_param(e, TS_EFORMAT, key, "%s: %d values for %d layers", key, cJSON_GetArraySize(v),
                             n);
    for (int i = 0; i < n; i++) {
        const cJSON *one = cJSON_IsArray(v) ? cJSON_GetArrayItem(v, i) : v;
        ret[i] = 1;
        ts_code rc = one ? ts_config_count(one, key, MOST, &ret[i], e) : TS_OK;
        if (rc) return rc;
    }
    return TS_OK;
}

/* A number, or a list by level of numbers or of lists by layer. Lists by layer are of the way down, and then
 * the way up has its own, deepest level first. */
static ts_code read_depths(const cJSON *j, ts_unet_config *c, ts_error *e) {
    static const char down_key[] = "transformer_layers_per_block",
                      up_key[] = "reverse_transformer_layers_per_block";
    const cJSON *down = cJSON_GetObjectItemCaseSensitive(j, down_key);
    const cJSON *up = cJSON_GetObjectItemCaseSensitive(j, up_key);
    const cJSON *last = down, *item;
    const bool by_level = cJSON_IsArray(down);
    bool by_layer = false;
    if (cJSON_IsNull(down)) last = down = NULL;
    if (cJSON_IsNull(up) || cJSON_IsFalse(up)) up = NULL;
    if (by_level && cJSON_GetArraySize(down) != c->levels)
        return ts_fail_param(e, TS_EFORMAT, down_key, "%s: %d values for %d levels", down_key,
                             cJSON_GetArraySize(down), c->levels);
    if (up && (!cJSON_IsArray(up) || cJSON_GetArraySize(up) != c->levels))
        return ts_fail_param(e, TS_EFORMAT, up_key, "%s is not a list of %d", up_key, c->levels);
    if (by_level) cJSON_ArrayForEach(item, down) by_layer |= cJSON_IsArray(item);
    if (by_layer && !up)
        return ts_fail_param(e, TS_EFORMAT, up_key, "%s is missing: %s says how deep each layer is", up_key,
                             down_key);
    for (int i = 0; i < c->levels; i++) {
        const int level = c->levels - 1 - i;
        const cJSON *of_down = by_level ? cJSON_GetArrayItem(down, i) : down;
        const cJSON *of_up = up         ? cJSON_GetArrayItem(up, i)
                             : by_level ? cJSON_GetArrayItem(down, level)
                                        : down;
        ts_code rc = TS_OK;
        if (c->down_attention[i]) rc = read_depth(of_down, down_key, c->layers[i], c->down_depth[i], e);
        if (!rc && c->up_attention[i])
            rc = read_depth(of_up, up ? up_key : down_key, c->layers[level] + 1, c->up_depth[i], e);
        if (rc) return rc;
    }
    if (by_level) last = cJSON_GetArrayItem(down, c->levels - 1);
    if (cJSON_IsArray(last)) last = cJSON_GetArrayItem(last, 0);
    return c->mid == TS_UNET_MID_CROSS ? read_depth(last, down_key, 1, &c->mid_depth, e) : TS_OK;
}

static ts_code read_mid(const cJSON *j, ts_unet_config *c, ts_error *e) {
    static const char key[] = "mid_block_type", plain[] = "UNetMidBlock2D";
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);
    c->mid = cJSON_IsNull(v)                                           ? TS_UNET_MID_NONE
             : cJSON_IsString(v) && strcmp(v->valuestring, plain) == 0 ? TS_UNET_MID_PLAIN
                                                                       : TS_UNET_MID_CROSS;
    return ts_config_only_string(j, key, "UNetMidBlock2DCrossAttn", plain, e);
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

static bool has_value(const cJSON *j, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);
    return v && !cJSON_IsNull(v) && !cJSON_IsFalse(v);
}

ts_code ts_unet_config_read(const cJSON *j, ts_unet_config *ret, ts_error *e) {
    ts_unet_config c = {0};
    ts_code rc = ts_config_only_string(j, "_class_name", "UNet2DConditionModel", NULL, e);
    if (!rc) rc = check_fixed(j, e);
    if (!rc) rc = read_levels(j, &c, e);
    if (!rc) rc = read_mid(j, &c, e);
    if (!rc) rc = read_depths(j, &c, e);
    if (!rc) rc = read_sample_size(j, &c, e);
    if (!rc) rc = ts_config_int(j, "in_channels", 64, 4, &c.in_channels, e);
    if (!rc) rc = ts_config_int(j, "out_channels", 64, 4, &c.out_channels, e);
    if (!rc) rc = ts_config_int(j, "cross_attention_dim", 1 << 16, 1280, &c.cross_attention_dim, e);
    if (!rc) rc = ts_config_int(j, "norm_num_groups", 1 << 12, 32, &c.groups, e);
    if (!rc) rc = ts_json_number(j, "norm_eps", 0, 1, 1e-5, &c.norm_eps, e);
    if (!rc) rc = ts_json_bool(j, "use_linear_projection", false, &c.linear_projection, e);
    if (!rc) rc = ts_config_bool(j, "flip_sin_to_cos", true, &c.flip_sin_to_cos, e);
    if (!rc) rc = ts_json_number(j, "freq_shift", 0, 1, 0, &c.freq_shift, e);
    if (!rc && has_value(j, "time_cond_proj_dim"))
        rc = ts_config_int(j, "time_cond_proj_dim", 1 << 14, 0, &c.guidance_dim, e);
    if (!rc && c.guidance_dim > 0 && c.guidance_dim < 4)
        rc = ts_fail_param(e, TS_EFORMAT, "time_cond_proj_dim", "time_cond_proj_dim must be at least 4");
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
