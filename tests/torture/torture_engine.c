/* From a model's files to a picture, with every call that can fail failing: the failure is told as what it
 * is, or the picture is the one that it would have been. */
#include "../parity/workshop.h"

#include "base/png.h"
#include "base/source.h"
#include "engine/infotext.h"
#include "torture.h"

enum { WIDTH = 96, HEIGHT = 64, PIXELS = 3 * WIDTH * HEIGHT };

/* One thing to make, and how. Paths are the file system's. */
typedef struct plan {
    char *model, *vae, *embeddings, *lora, *variant;
    const char *prompt, *devices;
    ts_dtype dtype;
    bool edit, trace;
    unsigned char want[PIXELS]; /* of the run in which nothing fails */
} plan;

/* What has come of a run. */
typedef struct outcome {
    ts_code rc; /* also of the picture */
    ts_error error;
    unsigned char *rgb;
    char *png;
    size_t png_size;
} outcome;

static void take(void *arg, ts_picture *p) {
    outcome *o = arg;
    if (p->error.code) {
        o->rc = p->error.code;
        o->error = p->error;
        return;
    }
    o->rgb = p->rgb;
    p->rgb = NULL;
}

/* A picture that has been a PNG, to begin an edit with, the left half of it to be painted. */
static ts_code read_source(ts_source *ret, ts_error *e) {
    static unsigned char rgb[PIXELS], mask[PIXELS];
    for (int i = 0; i < PIXELS; i++) {
        rgb[i] = (unsigned char)(i * 7);
        mask[i] = i / 3 % WIDTH < WIDTH / 2 ? 255 : 0;
    }
    char *image = NULL, *painted = NULL;
    size_t image_size, mask_size;
    ts_code rc = ts_png_encode(rgb, WIDTH, HEIGHT, NULL, 0, &image, &image_size, e);
    if (!rc) rc = ts_png_encode(mask, WIDTH, HEIGHT, NULL, 0, &painted, &mask_size, e);
    if (!rc) rc = ts_source_read(image, image_size, painted, mask_size, WIDTH, HEIGHT, PIXELS, ret, e);
    free(image);
    free(painted);
    return rc;
}

static ts_code load(const plan *p, ts_model **ret, ts_error *e) {
    ts_code rc = ts_model_load(p->model, p->vae, ret, e);
    if (!rc && p->embeddings) rc = ts_model_add_embeddings(*ret, p->embeddings, e);
    if (!rc && p->lora) rc = ts_model_fuse(*ret, &(ts_lora_use){p->lora, 0.75}, 1, e);
    return rc;
}

static ts_code write_png(const ts_model *m, const ts_job *job, outcome *o, ts_error *e) {
    char *text = NULL;
    ts_code rc = ts_infotext(m, job, job->pictures, &text);
    if (rc) return ts_fail(e, rc, "writing a picture");
    rc =
        ts_png_encode(o->rgb, WIDTH, HEIGHT, &(ts_png_text){"parameters", text}, 1, &o->png, &o->png_size, e);
    free(text);
    return rc;
}

static ts_code shoot(const plan *p, ts_group *g, ts_model *m, const ts_source *source, outcome *o,
                     ts_error *e) {
    ts_picture picture = {.params = {.prompt = p->prompt,
                                     .negative = "blurry",
                                     .emphasis = true,
                                     .seed = 7,
                                     .guidance_scale = 5,
                                     .image = source->rgb,
                                     .mask = source->mask}};
    ts_trace trace = {0};
    ts_job job = {.shape = {.width = WIDTH,
                            .height = HEIGHT,
                            .steps = 2,
                            .sampler = ts_sampler_find("dpmpp_2m"),
                            .parallel = TS_PARALLEL_DEFAULT,
                            .dtype = p->dtype,
                            .guided = true,
                            .task = p->edit ? TS_TASK_INPAINT : TS_TASK_TEXT,
                            .strength = p->edit ? 1 : 0},
                  .pictures = &picture,
                  .count = 1,
                  .keep_latents = true,
                  .on_picture = take,
                  .arg = o,
                  .trace = p->trace ? &trace : NULL,
                  .want_profile = p->trace};
    job.shape.parallel.warmup = 0;
    int tokens;
    ts_code rc = ts_model_check_params(m, &picture.params, e);
    if (!rc) rc = ts_model_measure_prompts(m, &picture.params, true, 4, &job.shape.chunks, &tokens, e);
    if (!rc) rc = ts_group_check(g, m, &job.shape, e);
    if (!rc) rc = ts_group_run(g, m, &job, e);
    if (!rc && o->rc) {
        *e = o->error;
        rc = o->rc;
    }
    if (!rc) rc = write_png(m, &job, o, e);
    free(job.profile);
    free(picture.latents_out);
    ts_trace_free(&trace);
    return rc;
}

static ts_code make(const plan *p, outcome *o, ts_error *e) {
    ts_model *model = NULL, *variant = NULL;
    ts_group *group = NULL;
    ts_source source = {0};
    ts_device_spec devices[TS_MAX_RANKS];
    int count;
    ts_code rc = ts_devices_parse(p->devices, devices, &count, e);
    if (!rc) rc = load(p, &model, e);
    if (!rc && p->variant) rc = ts_model_vary(model, &(ts_lora_use){p->variant, 0.5}, 1, &variant, e);
    if (!rc) rc = ts_group_open(devices, count, &group, e);
    if (!rc && p->edit) rc = read_source(&source, e);
    if (!rc) rc = shoot(p, group, variant ? variant : model, &source, o, e);
    ts_group_close(group);
    ts_model_free(variant);
    ts_model_free(model);
    ts_source_free(&source);
    return rc;
}

/* A kernel that could not be made may have been replaced by one that rounds otherwise. */
static int difference(const unsigned char *a, const unsigned char *b) {
    int most = 0;
    for (int i = 0; i < PIXELS; i++)
        if (abs(a[i] - b[i]) > most) most = abs(a[i] - b[i]);
    return most;
}

static bool complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
static bool complain(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "# ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    return false;
}

static bool right_failure(ts_code rc, const ts_error *e, const torture_place *place) {
    if (!place) return complain("nothing failed, and yet: %s", e->message);
    const bool memory = rc == TS_ENOMEM, system = rc == TS_EIO || rc == TS_EDEVICE;
    if (!memory && !(system && place->kind == TORTURE_SYSTEM))
        return complain("%s: %s", ts_code_name(rc), e->message);
    if (e->code != rc || !*e->message) return complain("%s without a word of why", ts_code_name(rc));
    return true;
}

static bool run(void *arg, const torture_place *place, bool lasting) {
    plan *p = arg;
    outcome o = {0};
    ts_error e = {0};
    (void)lasting;
    ts_code rc = make(p, &o, &e);
    bool good = true;
    if (rc)
        good = right_failure(rc, &e, place);
    else if (!place)
        memcpy(p->want, o.rgb, PIXELS);
    else if (difference(o.rgb, p->want) > 1)
        good = complain("another picture, %d levels away", difference(o.rgb, p->want));
    free(o.rgb);
    free(o.png);
    return good;
}

static void hold(plan p) {
    size_t places = 0;
    assert_true(torture_fail_each(&(torture_act){run, &p, TORTURE_DEPTH}, &places));
    print_message("# %zu places failed twice each\n", places);
    free(p.model);
    free(p.vae);
    free(p.embeddings);
    free(p.lora);
    free(p.variant);
}

static char *path(const char *name) {
    return fixture_path(name);
}

static void a_folder_with_embeddings_and_a_lora_on_two_devices(void **state) {
    (void)state;
    hold((plan){.model = path("pipeline_sd1"),
                .embeddings = path("embeddings"),
                .lora = path("loras/kohya_sd1.safetensors"),
                .prompt = "a (lake:1.2) at dawn, easyNegative, an orange sun over two mountain ranges",
                .devices = "cpu:2x1",
                .trace = true});
}

static void xl_in_bf16(void **state) {
    (void)state;
    hold((plan){.model = path("pipeline_xl"), .prompt = "a lake", .devices = "cpu:1x1", .dtype = TS_BF16});
}

static void an_edit_on_the_reference_kernels(void **state) {
    (void)state;
    hold((plan){.model = path("pipeline_sd1"), .prompt = "a lake", .devices = "ref:1", .edit = true});
}

static void a_checkpoint_with_its_vae_and_a_variant(void **state) {
    (void)state;
    char *file = workshop_make("sd1");
    hold((plan){.model = ts_strdup(file),
                .vae = path("pipeline_sd1/vae"),
                .variant = path("loras/adapter_unet"),
                .prompt = "a lake",
                .devices = "cpu:1x1"});
    workshop_discard(file);
}

static void files_of_pytorch(void **state) {
    (void)state;
    hold((plan){.model = path("pipeline_sd1"),
                .embeddings = path("torch/embeddings"),
                .lora = path("torch/loras/old.bin"),
                .prompt = "a lake, easyNegative",
                .devices = "cpu:1x1"});
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_folder_with_embeddings_and_a_lora_on_two_devices),
        cmocka_unit_test(xl_in_bf16),
        cmocka_unit_test(an_edit_on_the_reference_kernels),
        cmocka_unit_test(a_checkpoint_with_its_vae_and_a_variant),
        cmocka_unit_test(files_of_pytorch),
    };
    fixture_init(argc, argv);
    workshop_open(argc, argv);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    workshop_close();
    return failed;
}
