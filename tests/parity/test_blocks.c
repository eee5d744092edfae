/* Every kind of block against diffusers' class, on one rank and, synchronously, on two. */
#include "parity.h"

#include "engine/unet_blocks.h"
#include "engine/vae_blocks.h"

typedef struct block block;
struct block {
    const char *file, *class;
    const cJSON *params;
    void (*build)(ts_builder *b, const block *k);
    const char *input; /* the picture; its size is the program's */
    const char *const *outputs;
    const ts_backend *backend;
    int ranks;
    /* of the fixture, while building */
    const ts_tensors *io;
    int w, c;
};

/* ---- what each class is in the engine ---- */

static int param(const block *k, const char *key, int otherwise) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(k->params, key);
    return cJSON_IsNumber(v) ? v->valueint : otherwise;
}

static bool flag(const block *k, const char *key, bool otherwise) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(k->params, key);
    return cJSON_IsBool(v) ? cJSON_IsTrue(v) : otherwise;
}

static double eps(const block *k) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(k->params, "resnet_eps");
    if (!v) v = cJSON_GetObjectItemCaseSensitive(k->params, "eps");
    return cJSON_IsNumber(v) ? v->valuedouble : 1e-6;
}

static const ts_scope top;

static ts_buf picture(ts_builder *b, const block *k) {
    return ts_input_picture(b, "x", k->w, k->c, TS_F32);
}

static unet unet_of(ts_builder *b, const block *k, ts_unet_config *c) {
    int groups = param(k, "resnet_groups", param(k, "norm_num_groups", param(k, "groups", 0)));
    const int depth = param(k, "transformer_layers_per_block", 1);
    *c = (ts_unet_config){.levels = 1,
                          .channels = {param(k, "out_channels", param(k, "in_channels", 0))},
                          .heads = {param(k, "num_attention_heads", 0)},
                          .layers = {param(k, "num_layers", 1)},
                          .mid_depth = depth,
                          .groups = groups,
                          .norm_eps = eps(k)};
    for (int i = 0; i < TS_UNET_LAYERS; i++) c->down_depth[0][i] = c->up_depth[0][i] = depth;
    c->down_attention[0] = c->up_attention[0] = strstr(k->class, "CrossAttn") != NULL;
    unet u = {.b = b, .c = c, .temb = TS_NO_BUF, .text = TS_NO_BUF};
    if (ts_tensors_find(k->io, "temb"))
        u.temb =
            ts_activation(b, (ts_scope){.path = "temb"}, ts_input(b, "temb", 1, 64, TS_F32), TS_ACT_SILU);
    if (ts_tensors_find(k->io, "ehs")) u.text = ts_input(b, "ehs", 21, 32, TS_F32);
    return u;
}

static void build_resnet(ts_builder *b, const block *k) {
    ts_unet_config c;
    unet u = unet_of(b, k, &c);
    ts_output(b, "out", unet_resnet(&u, top, picture(b, k), c.channels[0]));
}

static void build_transformer(ts_builder *b, const block *k) {
    ts_unet_config c;
    unet u = unet_of(b, k, &c);
    ts_output(b, "out", unet_transformer(&u, top, picture(b, k), c.heads[0], c.layers[0]));
}

static void build_downsample(ts_builder *b, const block *k) {
    ts_output(b, "out", ts_conv3x3_down(b, ts_sub(top, "conv"), picture(b, k), k->c));
}

static void build_upsample(ts_builder *b, const block *k) {
    ts_buf x = picture(b, k);
    ts_output(b, "out", unet_upsampler(b, top, x, 8, 6));
    ts_output(b, "out_7x5", unet_upsampler(b, top, x, 7, 5));
    ts_output(b, "out_7x6", unet_upsampler(b, top, x, 7, 6));
    ts_output(b, "out_8x5", unet_upsampler(b, top, x, 8, 5));
}

static void build_down(ts_builder *b, const block *k) {
    static const char *const names[] = {"res0", "res1", "res2"};
    ts_unet_config c;
    unet u = unet_of(b, k, &c);
    unet_skips skips = {0};
    c.levels = flag(k, "add_downsample", true) ? 2 : 1;
    unet_down_block(&u, top, 0, picture(b, k), &skips);
    for (int i = 0; i < skips.count; i++) ts_output(b, names[i], skips.item[i]);
}

static void build_mid(ts_builder *b, const block *k) {
    ts_unet_config c;
    unet u = unet_of(b, k, &c);
    ts_output(b, "out", unet_mid_block(&u, top, picture(b, k)));
}

static void build_up(ts_builder *b, const block *k) {
    ts_unet_config c;
    unet u = unet_of(b, k, &c);
    unet_skips skips = {0};
    ts_buf x = picture(b, k);
    static const char *const names[] = {"res0", "res1"};
    const int channels[] = {param(k, "in_channels", 0), c.channels[0]};
    for (int i = 0; i < 2; i++)
        skips.item[skips.count++] = ts_input_picture(b, names[i], k->w, channels[i], TS_F32);
    c.layers[0]--; /* an up block has one resnet more than the down block of its level */
    x = unet_up_block(&u, top, 0, x, &skips);
    if (flag(k, "add_upsample", true)) {
        ts_scope s = ts_sub(top, "upsamplers.0");
        ts_output(b, "out", unet_upsampler(b, s, x, 8, 6));
        ts_output(b, "out_7x5", unet_upsampler(b, s, x, 7, 5));
    } else
        ts_output(b, "out", x);
}

static ts_vae_config vae_of(const block *k) {
    return (ts_vae_config){.levels = 1,
                           .channels = {param(k, "out_channels", param(k, "in_channels", 0))},
                           .layers = param(k, "num_layers", 1) - 1,
                           .groups = param(k, "resnet_groups", param(k, "groups", 0)),
                           .mid_attention = true};
}

static void build_vae_resnet(ts_builder *b, const block *k) {
    ts_vae_config c = vae_of(k);
    ts_output(b, "out", vae_resnet(b, &c, top, picture(b, k), c.channels[0]));
}

static void build_vae_mid(ts_builder *b, const block *k) {
    ts_vae_config c = vae_of(k);
    ts_output(b, "out", vae_mid_block(b, &c, top, picture(b, k)));
}

static void build_vae_up(ts_builder *b, const block *k) {
    ts_vae_config c = vae_of(k);
    c.levels = 2; /* only the last level has no upsampler */
    c.channels[1] = c.channels[0];
    ts_output(b, "out", vae_up_block(b, &c, top, 0, picture(b, k)));
}

/* ---- the test ---- */

static void build(ts_builder *b, void *arg) {
    const block *k = arg;
    k->build(b, k);
}

static bool doubles_rows(const block *k) {
    return strstr(k->class, "Up") != NULL;
}

static void block_is_that_of_diffusers(void **state) {
    block k = *(const block *)*state;
    char *file = ts_format("blocks/%s", k.file);
    ts_tensors *io = fixture_tensors(file);
    tensor x = tensor_of(io, "%s", k.input);
    k.io = io;
    k.w = x.w, k.c = x.c;
    parity_spec spec = {.backend = k.backend,
                        .weights = parity_weights(file),
                        .model = build,
                        .arg = &k,
                        .build = {.batch = x.n, .dtype = TS_F32}};
    assert_int_equal(ts_rows_split(x.h, doubles_rows(&k) ? 0 : 1, k.ranks, &spec.build.rows), k.ranks);
    parity *p = parity_new(&spec);
    parity_put(p, "x", x);
    for (int i = 0; i < 2 && strstr(k.class, "Up") && ts_tensors_find(io, "res0"); i++) {
        tensor r = tensor_of(io, "res%d", i);
        parity_put(p, i ? "res1" : "res0", r);
        tensor_free(r);
    }
    static const char *const flat[] = {"temb", "ehs"};
    for (int i = 0; i < 2; i++) {
        if (!ts_tensors_find(io, flat[i])) continue;
        size_t n;
        float *data = fixture_floats(io, flat[i], &n);
        parity_put_flat(p, flat[i], data, n);
        free(data);
    }
    parity_run(p, 2);
    /* outputs: pairs of the program's name and the fixture's */
    for (const char *const *o = k.outputs; *o; o += 2) {
        tensor have = parity_get(p, o[0]), want = tensor_of(io, "%s", o[1]);
        assert_close(o[1], have, want, 1e-5);
        tensor_free(have);
        tensor_free(want);
    }
    tensor_free(x);
    parity_free(p);
    ts_weights_free(spec.weights);
    ts_tensors_free(io);
    free(file);
}

/* ---- time ---- */

static void build_time(ts_builder *b, void *arg) {
    (void)arg;
    ts_buf t = ts_input(b, "t", 1, 1, TS_F32);
    ts_scope s = {.path = "time"};
    ts_buf sinusoid = ts_time_embed(b, s, t, 16, true, 0);
    ts_output(b, "sinusoid", sinusoid);
    ts_output(b, "sinusoid_320", ts_time_embed(b, s, t, 320, true, 0));
    ts_output(b, "sinusoid_unflipped_shift1", ts_time_embed(b, s, t, 16, false, 1));
    ts_output(b, "out", unet_embedding(b, top, sinusoid, 64));
}

static void time_embedding_is_that_of_diffusers(void **state) {
    ts_tensors *io = fixture_tensors("blocks/time.safetensors");
    size_t n;
    float *t = fixture_floats(io, "t", &n);
    parity_spec spec = {.backend = *state,
                        .weights = parity_weights("blocks/time.safetensors"),
                        .model = build_time,
                        .build = {.batch = (int)n, .dtype = TS_F32, .rows = {.n = 1, .bound = {0, 1}}}};
    parity *p = parity_new(&spec);
    parity_put_flat(p, "t", t, n);
    parity_run(p, 1);
    static const char *const names[] = {"sinusoid", "sinusoid_320", "sinusoid_unflipped_shift1", "out"};
    for (int i = 0; i < 4; i++) {
        tensor have = parity_get(p, names[i]), want = tensor_of(io, "%s", names[i]);
        assert_close(names[i], have, want, 1e-5);
        tensor_free(have);
        tensor_free(want);
    }
    free(t);
    parity_free(p);
    ts_weights_free(spec.weights);
    ts_tensors_free(io);
}

#define OUTPUTS(...)                                                                                         \
    (const char *const[]) {                                                                                  \
        __VA_ARGS__, NULL                                                                                    \
    }
#define OUT OUTPUTS("out", "out")

/* A down block's result is its last skip state, so the fixture's `out` is held against that. The encoder's
 * downsample_vae and vae_down have no counterpart: nothing here encodes pictures. */
static const block blocks[] = {
    {"resnet.safetensors", .build = build_resnet, .outputs = OUT},
    {"resnet_shortcut.safetensors", .build = build_resnet, .outputs = OUT},
    {"resnet_no_temb.safetensors", .build = build_vae_resnet, .outputs = OUT},
    {"resnet_wide.safetensors", .build = build_vae_resnet, .outputs = OUT},
    {"transformer_conv.safetensors", .build = build_transformer, .outputs = OUT},
    {"transformer_conv_2.safetensors", .build = build_transformer, .outputs = OUT},
    {"transformer_linear.safetensors", .build = build_transformer, .outputs = OUT},
    {"transformer_linear_2.safetensors", .build = build_transformer, .outputs = OUT},
    {"downsample.safetensors", .build = build_downsample, .outputs = OUT},
    {"downsample.safetensors", .build = build_downsample, .input = "x_odd",
     .outputs = OUTPUTS("out", "out_odd")},
    {"upsample.safetensors", .build = build_upsample,
     .outputs = OUTPUTS("out", "out", "out_7x5", "out_7x5", "out_7x6", "out_7x6", "out_8x5", "out_8x5")},
    {"down.safetensors", .build = build_down,
     .outputs = OUTPUTS("res0", "res0", "res1", "res1", "res2", "res2", "res2", "out")},
    {"down_last.safetensors", .build = build_down,
     .outputs = OUTPUTS("res0", "res0", "res1", "res1", "res1", "out")},
    {"cross_attn_down.safetensors", .build = build_down,
     .outputs = OUTPUTS("res0", "res0", "res1", "res1", "res2", "res2", "res2", "out")},
    {"cross_attn_down_linear.safetensors", .build = build_down,
     .outputs = OUTPUTS("res0", "res0", "res1", "res1", "res1", "out")},
    {"cross_attn_down_last.safetensors", .build = build_down,
     .outputs = OUTPUTS("res0", "res0", "res0", "out")},
    {"mid_cross_attn.safetensors", .build = build_mid, .outputs = OUT},
    {"up.safetensors", .build = build_up, .outputs = OUTPUTS("out", "out", "out_7x5", "out_7x5")},
    {"up_last.safetensors", .build = build_up, .outputs = OUT},
    {"cross_attn_up.safetensors", .build = build_up, .outputs = OUTPUTS("out", "out", "out_7x5", "out_7x5")},
    {"cross_attn_up_last.safetensors", .build = build_up, .outputs = OUT},
    {"vae_mid.safetensors", .build = build_vae_mid, .outputs = OUT},
    {"vae_up.safetensors", .build = build_vae_up, .outputs = OUT},
};
enum { BLOCKS = sizeof blocks / sizeof *blocks };

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    static const struct {
        const ts_backend *backend;
        int ranks;
    } devices[] = {{&ts_backend_ref, 1}, {&ts_backend_ref, 2}, {&ts_backend_cpu, 1}, {&ts_backend_cpu, 2}};
    cJSON *json = fixture_json("blocks/blocks.json");
    test_list tests = {0};
    for (int d = 0; d < 4; d++) {
        for (int i = 0; i < BLOCKS; i++) {
            block k = blocks[i];
            k.backend = devices[d].backend;
            k.ranks = devices[d].ranks;
            if (!k.input) k.input = "x";
            const cJSON *entry;
            cJSON_ArrayForEach(entry, json) {
                if (strcmp(json_text(entry, "file"), k.file) != 0) continue;
                k.class = json_text(entry, "class");
                k.params = cJSON_GetObjectItemCaseSensitive(entry, "params");
            }
            test_add(&tests, block_is_that_of_diffusers, &k, sizeof k, "%.*s of %s is diffusers' %s on %s:%d",
                     (int)strcspn(k.file, "."), k.file, k.input, k.class, k.backend->name, k.ranks);
        }
        if (devices[d].ranks == 1)
            test_add(&tests, time_embedding_is_that_of_diffusers, devices[d].backend, 0,
                     "the time embedding is diffusers' on %s", devices[d].backend->name);
    }
    int failed = test_run(&tests, "blocks");
    cJSON_Delete(json);
    return failed;
}
