/* Image to image and inpainting against diffusers' pipelines (tools/parity/edits.py). */
#include "pictures.h"

typedef struct edit {
    const cJSON *json;
    const ts_tensors *io;
    const ts_backend *backend;
    int ranks;
} edit;

/* The formula of tools/parity/edits.py. */
static unsigned char *mask(int width, int height) {
    unsigned char *m = calloc((size_t)height, (size_t)width);
    assert_non_null(m);
    for (int y = 7; y < 41; y++)
        for (int x = 15; x < 65; x++) {
            const bool inside = y >= 8 && y < 40 && x >= 16 && x < 64;
            m[y * width + x] = !inside ? 127 : y >= 16 && y < 24 ? 128 : 255;
        }
    return m;
}

/* The small U-Net with the fixture's first convolution, which sees mask and kept picture too. */
static void tell(studio *s, const ts_tensors *io, ts_tensors **ret_file) {
    ts_error e = {0};
    ts_weights *w = NULL;
    char *path = parity_path("pipeline_sd1/unet/diffusion_pytorch_model.safetensors");
    must(ts_tensors_open(path, ret_file, &e), &e);
    must(ts_weights_new(path, &w, &e), &e);
    for (size_t i = 0; i < ts_tensors_count(*ret_file); i++) {
        const ts_file_tensor *t = ts_tensors_at(*ret_file, i);
        if (!strcmp(t->name, "conv_in.weight")) t = ts_tensors_find(io, "told.conv_in.weight");
        must(ts_weights_add(w, ts_tensors_at(*ret_file, i)->name, t, &e), &e);
    }
    must(ts_weights_seal(w, &e), &e);
    ts_weights_free(s->model->unet_weights);
    s->model->unet_weights = w;
    s->model->unet.in_channels = 9;
    free(path);
}

static void the_latent_is_that_of_diffusers(void **state) {
    const edit *k = *state;
    const cJSON *c = k->json;
    const char *name = json_text(c, "name");
    const bool inpaint = !strcmp(json_text(c, "task"), "inpaint");
    studio s = studio_open(json_text(c, "folder"), k->backend, k->ranks);
    const cJSON *scheduler = cJSON_GetObjectItemCaseSensitive(c, "scheduler");
    ts_error e = {0};
    ts_tensors *file = NULL;
    if (cJSON_IsObject(scheduler)) must(ts_schedule_config_read(scheduler, &s.model->schedule, &e), &e);
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(c, "told"))) tell(&s, k->io, &file);
    ts_shape shape = {
        .width = (int)json_value(c, "width"),
        .height = (int)json_value(c, "height"),
        .steps = (int)json_value(c, "steps"),
        .sampler = ts_sampler_find(s.model->schedule.sampler),
        .parallel = {.mode = k->ranks > 1 ? TS_MODE_SYNC : TS_MODE_SINGLE, .cfg_split = TS_CFG_SPLIT_OFF},
        .guided = json_value(c, "guidance") > 1,
        .task = inpaint ? TS_TASK_INPAINT : TS_TASK_IMAGE,
        .strength = json_value(c, "strength")};
    unsigned char *image = studio_source(shape.width, shape.height), *paint = mask(shape.width, shape.height);
    ts_picture request = {.params = {.prompt = json_text(c, "prompt"),
                                     .negative = json_text(c, "negative"),
                                     .seed = (uint64_t)json_value(c, "seed"),
                                     .guidance_scale = json_value(c, "guidance"),
                                     .image = image,
                                     .mask = inpaint ? paint : NULL}};
    shot have = studio_shoot(s, &shape, &request);
    tensor want = tensor_of(k->io, "%s", name);
    assert_close(name, have.latents, want, 1e-4);
    tensor_free(want);
    shot_free(have);
    studio_close(s);
    ts_tensors_free(file);
    free(image);
    free(paint);
}

/* ---- batches ---- */

enum { WIDTH = 96, HEIGHT = 64, PICTURES = 3, LATENT = 4 * 12 * 8 };

typedef struct album {
    ts_picture pictures[PICTURES];
    float latents[PICTURES][LATENT];
} album;

static void keep(void *arg, ts_picture *p) {
    album *a = arg;
    must(p->error.code, &p->error);
    memcpy(a->latents[p - a->pictures], p->latents_out, sizeof a->latents[0]);
}

static void run_album(studio s, const ts_shape *shape, album *a, int first, int count) {
    ts_job job = {.shape = *shape,
                  .pictures = a->pictures + first,
                  .count = count,
                  .keep_latents = true,
                  .on_picture = keep,
                  .arg = a};
    ts_error e = {0};
    must(ts_group_run(s.group, s.model, &job, &e), &e);
}

/* Two pictures of one request, which share their source, and one with a source of its own between them. */
static void a_picture_of_a_batch_is_the_one_that_it_is_alone(void **state) {
    const ts_tensors *told = *state;
    studio s = studio_open("pipeline_sd1", &ts_backend_cpu, 1);
    ts_tensors *file = NULL;
    if (told) tell(&s, told, &file);
    const ts_shape shape = {.width = WIDTH,
                            .height = HEIGHT,
                            .steps = 3,
                            .sampler = ts_sampler_find("euler_a"),
                            .parallel = {.mode = TS_MODE_SINGLE},
                            .task = TS_TASK_INPAINT,
                            .strength = 0.7};
    unsigned char *image = studio_source(WIDTH, HEIGHT), *paint = mask(WIDTH, HEIGHT),
                  *other = studio_source(WIDTH, HEIGHT);
    unsigned char *inverse = mask(WIDTH, HEIGHT);
    for (int i = 0; i < WIDTH * HEIGHT; i++) inverse[i] = (unsigned char)(255 - inverse[i]);
    for (int i = 0; i < WIDTH * HEIGHT * 3; i++) other[i] = (unsigned char)(200 - other[i]);
    album together = {0};
    for (int k = 0; k < PICTURES; k++)
        together.pictures[k].params = (ts_picture_params){.prompt = "a lake",
                                                          .seed = 5 + (uint64_t)k,
                                                          .image = k == 1 ? other : image,
                                                          .mask = k == 1 ? inverse : paint};
    album alone = together;
    run_album(s, &shape, &together, 0, PICTURES);
    for (int k = 0; k < PICTURES; k++) run_album(s, &shape, &alone, k, 1);
    for (int k = 0; k < PICTURES; k++) {
        tensor have = {1, 4, 8, 12, together.latents[k]}, want = {1, 4, 8, 12, alone.latents[k]};
        assert_close("together", have, want, 1e-5);
        tensor next = {1, 4, 8, 12, together.latents[(k + 1) % PICTURES]};
        assert_true(relative_l2(next, want) > 0.1);
    }
    studio_close(s);
    ts_tensors_free(file);
    free(image), free(paint), free(other), free(inverse);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    parity_init(argc, argv);
    static const edit devices[] = {{.backend = &ts_backend_ref, .ranks = 1},
                                   {.backend = &ts_backend_cpu, .ranks = 1},
                                   {.backend = &ts_backend_cpu, .ranks = 2}};
    test_list tests = {0};
    cJSON *json = fixture_json("edits.json");
    ts_tensors *io = fixture_tensors("edits.safetensors");
    const cJSON *c;
    for (size_t d = 0; d < sizeof devices / sizeof *devices; d++) cJSON_ArrayForEach(c, json) {
            edit k = devices[d];
            k.json = c;
            k.io = io;
            test_add(&tests, the_latent_is_that_of_diffusers, &k, sizeof k, "%s on %s:%d",
                     json_text(c, "name"), k.backend->name, k.ranks);
        }
    test_add(&tests, a_picture_of_a_batch_is_the_one_that_it_is_alone, NULL, 0, "a batch");
    test_add(&tests, a_picture_of_a_batch_is_the_one_that_it_is_alone, io, 0,
             "a batch of a U-Net that is told");
    int failed = test_run(&tests, "edits");
    cJSON_Delete(json);
    ts_tensors_free(io);
    return failed;
}
