#include "engine/clip.h"

#include <string.h>
#include "engine/config.h"

ts_code ts_clip_config_read(const cJSON *j, bool projected, ts_clip_config *ret, ts_error *e) {
    ts_clip_config c = {0};
    int64_t eos = 2;
    if (!cJSON_IsObject(j)) return ts_fail(e, TS_EFORMAT, "the config is not an object");
    ts_code rc = ts_config_int(j, "hidden_size", 1 << 14, 512, &c.hidden, e);
    if (!rc) rc = ts_config_int(j, "intermediate_size", 1 << 16, 2048, &c.intermediate, e);
    if (!rc) rc = ts_config_int(j, "num_hidden_layers", 128, 12, &c.layers, e);
    if (!rc) rc = ts_config_int(j, "num_attention_heads", 1 << 10, 8, &c.heads, e);
    if (!rc) rc = ts_config_int(j, "max_position_embeddings", 4096, 77, &c.positions, e);
    if (!rc) rc = ts_config_int(j, "vocab_size", 1 << 22, 49408, &c.vocabulary, e);
    if (!rc && projected) rc = ts_config_int(j, "projection_dim", 1 << 14, 512, &c.projection, e);
    if (!rc) rc = ts_json_number(j, "layer_norm_eps", 0, 1, 1e-5, &c.eps, e);
    if (!rc) rc = ts_json_int(j, "eos_token_id", 0, 1 << 22, 2, &eos, e);
    if (!rc) rc = ts_config_only_false(j, "use_attention_mask", e);
    if (rc) return rc;
    c.eos_token = (int)eos;
    const char *act = "quick_gelu";
    rc = ts_json_string(j, "hidden_act", act, &act, e);
    if (rc) return rc;
    if (!strcmp(act, "quick_gelu"))
        c.act = TS_ACT_QUICK_GELU;
    else if (!strcmp(act, "gelu"))
        c.act = TS_ACT_GELU;
    else
        return ts_fail_param(e, TS_EFORMAT, "hidden_act", "hidden_act: \"%.64s\" is not supported", act);
    *ret = c;
    return TS_OK;
}

static const ts_qkv qkv = {"q_proj", "k_proj", "v_proj", true};

static ts_buf layer(ts_builder *b, const ts_clip_config *c, ts_scope s, ts_buf x) {
    ts_scope self = ts_sub(s, "self_attn"), mlp = ts_sub(s, "mlp");
    ts_buf h = ts_layer_norm(b, ts_sub(s, "layer_norm1"), x, c->eps);
    h = ts_causal_attention(b, self, qkv, h, c->heads);
    x = ts_linear(b, ts_sub(self, "out_proj"), h, x.c, x);
    h = ts_layer_norm(b, ts_sub(s, "layer_norm2"), x, c->eps);
    h = ts_linear(b, ts_sub(mlp, "fc1"), h, c->intermediate, TS_NO_BUF);
    h = ts_activation(b, mlp, h, c->act);
    return ts_linear(b, ts_sub(mlp, "fc2"), h, x.c, x);
}

void ts_clip_build(ts_builder *b, const ts_clip_config *c, const ts_clip_reading *reading) {
    ts_scope top = {.path = "text_model"};
    /* transformers 5 leaves the prefix out for CLIPTextModel. */
    if (!ts_builder_has(b, ts_sub(top, "embeddings.token_embedding"), "weight")) top = (ts_scope){0};
    ts_buf ids = ts_input(b, "ids", c->positions, 1, TS_F32);
    ts_buf vectors = ts_input(b, "vectors", c->positions, c->hidden, TS_F32);
    ts_buf x = ts_embed(b, ts_sub(top, "embeddings.token_embedding"),
                        ts_sub(top, "embeddings.position_embedding"), c->vocabulary, ids, vectors);
    const ts_scope norm = ts_sub(top, "final_layer_norm");
    for (int i = 0;; i++) {
        if (i == reading->layers) ts_output(b, "text", reading->norm ? ts_layer_norm(b, norm, x, c->eps) : x);
        if (i == (reading->last ? c->layers : reading->layers)) break;
        x = layer(b, c, ts_sub(top, "encoder.layers.%d", i), x);
    }
    if (reading->last) ts_output(b, "last", ts_layer_norm(b, norm, x, c->eps));
}
