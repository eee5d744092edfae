/* Whole U-Nets of the 1.x, 2.x and XL kinds, and what was distilled from them, against diffusers, at three
 * sizes, one of them odd. */
#include "parity.h"

#include "engine/unet.h"

typedef struct unet_case {
    const char *model, *io, *size;
    const ts_backend *backend;
    ts_dtype dtype;
    int ranks;
} unet_case;

typedef struct model {
    ts_unet_config config;
    int width, tokens;
} model;

static void build(ts_builder *b, void *arg) {
    const model *m = arg;
    ts_unet_build(b, &m->config, m->width, m->tokens);
}

static ts_unet_config config_of(const char *folder) {
    char *file = ts_format("%s/config.json", folder);
    cJSON *json = fixture_json(file);
    ts_unet_config c;
    ts_error e = {0};
    must(ts_unet_config_read(json, &c, &e), &e);
    cJSON_Delete(json);
    free(file);
    return c;
}

/* The channels last of a tensor that no patch divides lie in the file as they lie in the program. */
static void put_flat(parity *p, const char *name, const ts_tensors *io, const char *size, const char *key) {
    char *full = ts_format("%s.%s", size, key);
    size_t n;
    float *data = fixture_floats(io, full, &n);
    parity_put_flat(p, name, data, n);
    free(data);
    free(full);
}

/* One evaluation of a fixture's inputs on so many ranks. */
static tensor evaluate(const unet_case *k, const ts_tensors *io) {
    model m = {.config = config_of(k->model)};
    tensor sample = tensor_of(io, "%s.sample", k->size), t = tensor_of(io, "%s.timestep", k->size);
    tensor text = tensor_of(io, "%s.encoder_hidden_states", k->size);
    m.width = sample.w;
    m.tokens = text.w;
    parity_spec spec = {.backend = k->backend,
                        .weights = parity_weights_folder(k->model),
                        .model = build,
                        .arg = &m,
                        .build = {.batch = sample.n, .dtype = k->dtype}};
    assert_int_equal(ts_rows_split(sample.h, m.config.levels - 1, k->ranks, &spec.build.rows), k->ranks);
    parity *p = parity_new(&spec);
    parity_put(p, "sample", sample);
    float times[2] = {t.data[0], t.data[0]};
    assert_int_equal(sample.n, 2);
    parity_put_flat(p, "timestep", times, 2);
    put_flat(p, "text", io, k->size, "encoder_hidden_states");
    if (m.config.text_time) {
        put_flat(p, "pooled", io, k->size, "text_embeds");
        put_flat(p, "time_ids", io, k->size, "time_ids");
    }
    if (m.config.guidance_dim) put_flat(p, "guidance", io, k->size, "guidance");
    /* Twice: the second evaluation finds nothing of the first. */
    parity_run(p, 2);
    tensor out = parity_get(p, "out");
    tensor_free(sample);
    tensor_free(t);
    tensor_free(text);
    parity_free(p);
    ts_weights_free(spec.weights);
    return out;
}

static void unet_is_that_of_diffusers(void **state) {
    const unet_case *k = *state;
    ts_tensors *io = fixture_tensors(k->io);
    tensor have = evaluate(k, io), want = tensor_of(io, "%s.out", k->size);
    assert_close(k->size, have, want, 1e-4);
    tensor_free(have);
    tensor_free(want);
    ts_tensors_free(io);
}

/* Rounding to bf16 is no coarser than PyTorch's own bf16 model. */
static void bf16_is_as_near_as_that_of_pytorch(void **state) {
    const unet_case *k = *state;
    if (!k->backend->supports(TS_BF16)) skip();
    ts_tensors *io = fixture_tensors(k->io);
    tensor have = evaluate(k, io), want = tensor_of(io, "%s.out", k->size);
    tensor theirs = tensor_of(io, "%s.out_bf16", k->size);
    assert_close(k->size, have, want, 3e-2);
    assert_close(k->size, have, want, 1.5 * relative_l2(theirs, want));
    tensor_free(have);
    tensor_free(want);
    tensor_free(theirs);
    ts_tensors_free(io);
}

static double peak(tensor t) {
    double m = 0;
    for (size_t i = 0; i < (size_t)t.n * (size_t)t.c * (size_t)t.h * (size_t)t.w; i++)
        m = fmax(m, fabs((double)t.data[i]));
    return m;
}

static void synchronous_ranks_equal_one(void **state) {
    const unet_case *k = *state;
    unet_case alone = *k;
    alone.ranks = 1;
    ts_tensors *io = fixture_tensors(k->io);
    tensor have = evaluate(k, io), want = evaluate(&alone, io);
    assert_close(k->size, have, want, 2e-5);
    double db = psnr(have, want, peak(want));
    if (!(db >= 60)) fail_msg("%s: %.1f dB", k->size, db);
    tensor_free(have);
    tensor_free(want);
    ts_tensors_free(io);
}

static void add(test_list *tests, unet_case k, const char *kind) {
    if (k.ranks > 1)
        test_add(tests, synchronous_ranks_equal_one, &k, sizeof k, "%s at %s: %s:%d equals one rank", kind,
                 k.size, k.backend->name, k.ranks);
    else if (k.dtype == TS_BF16)
        test_add(tests, bf16_is_as_near_as_that_of_pytorch, &k, sizeof k,
                 "%s at %s in bf16 on %s is as near as PyTorch's", kind, k.size, k.backend->name);
    else
        test_add(tests, unet_is_that_of_diffusers, &k, sizeof k, "%s at %s on %s is diffusers'", kind, k.size,
                 k.backend->name);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    static const ts_backend *const backends[] = {&ts_backend_ref, &ts_backend_cpu};
    cJSON *json = fixture_json("unets.json");
    test_list tests = {0};
    const cJSON *entry, *size;
    cJSON_ArrayForEach(entry, json) {
        unet_case k = {.model = json_text(entry, "model"), .io = json_text(entry, "io")};
        const char *kind = json_text(entry, "kind");
        cJSON_ArrayForEach(size, cJSON_GetObjectItemCaseSensitive(entry, "sizes")) {
            k.size = cJSON_GetStringValue(size);
            for (int i = 0; i < 2; i++) {
                k.backend = backends[i];
                for (k.dtype = TS_F32; k.dtype <= TS_BF16; k.dtype++) {
                    k.ranks = 1;
                    add(&tests, k, kind);
                }
                k.dtype = TS_F32;
                for (k.ranks = 2; k.ranks <= 3; k.ranks++) {
                    ts_unet_config c = config_of(k.model);
                    ts_rows rows;
                    int height = atoi(k.size);
                    /* Fewer rows than ranks at the deepest level: there is no such group. */
                    if (ts_rows_split(height, c.levels - 1, k.ranks, &rows) == k.ranks) add(&tests, k, kind);
                }
            }
        }
    }
    int failed = test_run(&tests, "unets");
    cJSON_Delete(json);
    return failed;
}
