/* Decoder and encoder against diffusers' AutoencoderKL, and what several ranks share against one rank's. */
#include "parity.h"

#include "engine/vae.h"

typedef struct vae_case {
    const char *name, *model;
    const ts_backend *backend;
    ts_dtype dtype;
    int ranks;
} vae_case;

typedef struct model {
    ts_vae_config config;
    int width;
} model;

static void build(ts_builder *b, void *arg) {
    const model *m = arg;
    ts_vae_build_decoder(b, &m->config, m->width);
}

static void build_encoder(ts_builder *b, void *arg) {
    const model *m = arg;
    ts_vae_build_encoder(b, &m->config, m->width);
}

static ts_vae_config config_of(const vae_case *k) {
    char *file = ts_format("%s/config.json", k->model);
    cJSON *json = fixture_json(file);
    ts_vae_config c;
    ts_error e = {0};
    must(ts_vae_config_read(json, &c, &e), &e);
    cJSON_Delete(json);
    free(file);
    return c;
}

/* Takes `in` over. levels: halvings of its rows that each patch must survive. */
static tensor run(const vae_case *k, void (*builder)(ts_builder *b, void *arg), const char *from, tensor in,
                  const char *to, int levels) {
    model m = {.config = config_of(k), .width = in.w};
    parity_spec spec = {.backend = k->backend,
                        .weights = parity_weights_folder(k->model),
                        .model = builder,
                        .arg = &m,
                        .build = {.batch = in.n, .dtype = k->dtype}};
    assert_int_equal(ts_rows_split(in.h, levels, k->ranks, &spec.build.rows), k->ranks);
    parity *p = parity_new(&spec);
    parity_put(p, from, in);
    parity_run(p, 1);
    tensor out = parity_get(p, to);
    tensor_free(in);
    parity_free(p);
    ts_weights_free(spec.weights);
    return out;
}

static tensor encode(const vae_case *k, const ts_tensors *io) {
    return run(k, build_encoder, "pixels", tensor_of(io, "%s.encode_in", k->name), "moments", 3);
}

static tensor decode(const vae_case *k, const ts_tensors *io) {
    tensor latent = tensor_of(io, "%s.latent", k->name);
    const float factor = (float)config_of(k).scaling_factor;
    /* The fixture's latent is already divided by the factor; the engine takes the sampler's, which is not. */
    for (size_t i = 0; i < (size_t)latent.n * (size_t)latent.c * (size_t)latent.h * (size_t)latent.w; i++)
        latent.data[i] *= factor;
    return run(k, build, "latent", latent, "pixels", 0);
}

static void picture_is_that_of_diffusers(void **state) {
    const vae_case *k = *state;
    ts_tensors *io = fixture_tensors("vae.safetensors");
    tensor have = decode(k, io), want = tensor_of(io, "%s.image", k->name);
    assert_close(k->name, have, want, 1e-4);
    tensor_free(have);
    tensor_free(want);
    ts_tensors_free(io);
}

static void bf16_is_as_near_as_that_of_pytorch(void **state) {
    const vae_case *k = *state;
    if (!k->backend->supports(TS_BF16)) skip();
    ts_tensors *io = fixture_tensors("vae.safetensors");
    tensor have = decode(k, io), want = tensor_of(io, "%s.image", k->name);
    tensor theirs = tensor_of(io, "%s.image_bf16", k->name);
    assert_close(k->name, have, want, 3e-2);
    assert_close(k->name, have, want, 1.5 * relative_l2(theirs, want));
    tensor_free(have);
    tensor_free(want);
    tensor_free(theirs);
    ts_tensors_free(io);
}

static void ranks_share_the_decoder_without_a_trace(void **state) {
    const vae_case *k = *state;
    vae_case alone = *k;
    alone.ranks = 1;
    ts_tensors *io = fixture_tensors("vae.safetensors");
    tensor have = decode(k, io), want = decode(&alone, io);
    assert_close(k->name, have, want, 1e-5);
    double db = psnr(have, want, 2); /* -1..1 */
    if (!(db >= 60)) fail_msg("%s: %.1f dB", k->name, db);
    tensor_free(have);
    tensor_free(want);
    ts_tensors_free(io);
}

static void moments_are_those_of_diffusers(void **state) {
    const vae_case *k = *state;
    ts_tensors *io = fixture_tensors("vae.safetensors");
    tensor have = encode(k, io), want = tensor_of(io, "%s.moments", k->name);
    assert_close(k->name, have, want, k->dtype == TS_BF16 ? 3e-2 : 1e-4);
    tensor_free(have);
    tensor_free(want);
    ts_tensors_free(io);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    static const ts_backend *const backends[] = {&ts_backend_ref, &ts_backend_cpu};
    cJSON *json = fixture_json("vae.json");
    ts_tensors *io = fixture_tensors("vae.safetensors");
    test_list tests = {0};
    const cJSON *entry;
    cJSON_ArrayForEach(entry, json) {
        vae_case k = {.name = json_text(entry, "name"), .model = json_text(entry, "model"), .ranks = 1};
        char *key = ts_format("%s.image_bf16", k.name), *moments = ts_format("%s.moments", k.name);
        bool has_bf16 = ts_tensors_find(io, key), has_moments = ts_tensors_find(io, moments);
        free(key);
        free(moments);
        tensor latent = tensor_of(io, "%s.latent", k.name);
        for (int i = 0; i < 2; i++) {
            k.backend = backends[i];
            test_add(&tests, picture_is_that_of_diffusers, &k, sizeof k, "%s on %s is diffusers'", k.name,
                     k.backend->name);
            k.dtype = TS_BF16;
            if (has_bf16)
                test_add(&tests, bf16_is_as_near_as_that_of_pytorch, &k, sizeof k,
                         "%s in bf16 on %s is as near as PyTorch's", k.name, k.backend->name);
            k.dtype = TS_F32;
            for (k.ranks = 2; k.ranks <= 3 && k.ranks <= latent.h; k.ranks++)
                test_add(&tests, ranks_share_the_decoder_without_a_trace, &k, sizeof k,
                         "%s: %s:%d equals one rank", k.name, k.backend->name, k.ranks);
            for (k.ranks = 1; has_moments && k.ranks <= 3; k.ranks++)
                test_add(&tests, moments_are_those_of_diffusers, &k, sizeof k,
                         "%s: moments on %s:%d are diffusers'", k.name, k.backend->name, k.ranks);
            k.ranks = 1;
            k.dtype = TS_BF16;
            if (has_moments && k.backend->supports(TS_BF16))
                test_add(&tests, moments_are_those_of_diffusers, &k, sizeof k,
                         "%s: moments in bf16 on %s are near diffusers'", k.name, k.backend->name);
            k.dtype = TS_F32;
        }
        tensor_free(latent);
    }
    int failed = test_run(&tests, "vae");
    ts_tensors_free(io);
    cJSON_Delete(json);
    return failed;
}
