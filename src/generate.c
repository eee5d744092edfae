#include "generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/png.h"
#include "base/source.h"
#include "engine/engine.h"
#include "engine/infotext.h"
#include "engine/safetensors.h"
#include "generate_options.h"

/* One run, for its callbacks. */
typedef struct session {
    const ts_generate_options *o;
    const ts_model *model;
    ts_job job;
    ts_picture pictures[TS_MAX_BATCH];
    ts_source source; /* what it begins with */
    ts_error error;   /* of the first picture that failed */
    float *latents;   /* kept, [batch][elements] */
    int latent_h, latent_w;
    size_t latent_elements;
    ts_trace trace;
    uint64_t started_ns;
    bool bar;
} session;

/* ---- callbacks, on threads of the group ---- */

static void on_step(void *arg, int step, int total) {
    session *s = arg;
    if (!s->bar) return;
    double seconds = ts_seconds(ts_now_ns() - s->started_ns);
    char bar[41];
    int filled = step * 40 / total;
    for (int i = 0; i < 40; i++) bar[i] = i < filled ? '#' : '.';
    bar[40] = 0;
    fprintf(stderr, "\r[%s] step %d of %d, %.1f s to go\x1b[K%s", bar, step, total,
            seconds / step * (total - step), step == total ? "\n" : "");
}

static char *picture_path(const ts_generate_options *o, int k) {
    if (o->batch == 1) return ts_strdup(o->out);
    const char *dot = strrchr(o->out, '.'), *slash = strrchr(o->out, '/');
    size_t stem = dot && (!slash || dot > slash) ? (size_t)(dot - o->out) : strlen(o->out);
    return ts_format("%.*s-%d%s", (int)stem, o->out, k, o->out + stem);
}

static ts_code write_picture(session *s, ts_picture *p, int k, ts_error *e) {
    char *path = picture_path(s->o, k), *text = NULL, *png = NULL;
    size_t size;
    ts_code rc = path ? ts_infotext(s->model, &s->job, p, &text) : TS_ENOMEM;
    if (rc) {
        ts_fail(e, rc, "writing a picture");
        goto done;
    }
    ts_png_text chunk = {.key = "parameters", .text = text};
    rc = ts_png_encode(p->rgb, s->job.shape.width, s->job.shape.height, &chunk, 1, &png, &size, e);
    if (!rc) rc = ts_write_file(path, png, size, e);
done:
    free(path);
    free(text);
    free(png);
    return rc;
}

static void on_picture(void *arg, ts_picture *p) {
    session *s = arg;
    int k = (int)(p - s->pictures);
    ts_error e = p->error;
    ts_code rc = e.code;
    if (!rc) rc = write_picture(s, p, k, &e);
    if (!rc && p->latents_out)
        memcpy(s->latents + (size_t)k * s->latent_elements, p->latents_out,
               s->latent_elements * sizeof(float));
    if (rc && !s->error.code) s->error = e;
}

/* ---- latents ---- */

static ts_code read_latents(const session *s, ts_tensors **ret_file, float **ret, ts_error *e) {
    const ts_generate_options *o = s->o;
    ts_tensors *file = NULL;
    ts_code rc = ts_tensors_open(o->latents_in, &file, e);
    if (rc) return rc;
    const ts_file_tensor *t = ts_tensors_find(file, "latents");
    if (!t || t->dtype != TS_F32 || t->rank != 4 ||
        ts_file_tensor_elements(t) != s->latent_elements * (size_t)o->batch || t->shape[0] != o->batch ||
        t->shape[1] != ts_model_get_info(s->model)->latent_channels || t->shape[2] != s->latent_h ||
        t->shape[3] != s->latent_w) {
        ts_tensors_free(file);
        return ts_fail(e, TS_EINVAL, "%s: no float32 tensor \"latents\" of %d x %d x %d x %d", o->latents_in,
                       o->batch, ts_model_get_info(s->model)->latent_channels, s->latent_h, s->latent_w);
    }
    float *values = ts_array0(float, ts_file_tensor_elements(t));
    if (values) ts_file_tensor_to_f32(t, values);
    *ret = values;
    *ret_file = file;
    return values ? ts_tensors_check(file, e) : ts_fail(e, TS_ENOMEM, "reading %s", o->latents_in);
}

static ts_code write_latents(const session *s, ts_error *e) {
    ts_file_tensor t = {
        .name = "latents",
        .dtype = TS_F32,
        .rank = 4,
        .shape = {s->o->batch, ts_model_get_info(s->model)->latent_channels, s->latent_h, s->latent_w},
        .data = s->latents,
        .bytes = (size_t)s->o->batch * s->latent_elements * sizeof(float)};
    return ts_safetensors_write(s->o->latents_out, &t, 1, e);
}

/* ---- the picture to begin with ---- */

#define MAX_PIXELS ((size_t)1 << 28)
#define MAX_FILE   ((size_t)1 << 30)

static int below(int side, int scale) {
    return side < scale ? scale : side - side % scale;
}

/* Without --size the picture has the size of the one that it begins with, rounded down to what the model
 * takes. */
static ts_code read_source(session *s, ts_error *e) {
    const ts_generate_options *o = s->o;
    const int scale = ts_model_get_info(s->model)->scale;
    ts_shape *shape = &s->job.shape;
    char *image = NULL, *mask = NULL;
    size_t image_size = 0, mask_size = 0;
    int width = 0, height = 0;
    ts_code rc = ts_read_file(o->init, MAX_FILE, &image, &image_size, e);
    if (!rc) rc = ts_png_size(image, image_size, &width, &height, e);
    if (rc) rc = ts_error_context(e, rc, "--init %s", o->init);
    if (!rc && o->mask) rc = ts_read_file(o->mask, MAX_FILE, &mask, &mask_size, e);
    if (!rc) {
        shape->width = o->width ? o->width : below(width, scale);
        shape->height = o->height ? o->height : below(height, scale);
        rc = ts_source_read(image, image_size, mask, mask_size, shape->width, shape->height, MAX_PIXELS,
                            &s->source, e);
    }
    if (!rc) {
        shape->task = s->source.mask ? TS_TASK_INPAINT : TS_TASK_IMAGE;
        shape->strength = o->strength > 0  ? o->strength
                          : s->source.mask ? TS_STRENGTH_INPAINT
                                           : TS_STRENGTH_IMAGE;
    }
    free(image);
    free(mask);
    return rc;
}

/* ---- figures ---- */

static void print_list(const char *name, const uint64_t *values, int n) {
    printf("  \"%s\": [", name);
    for (int i = 0; i < n; i++) printf("%s%llu", i ? ", " : "", (unsigned long long)values[i]);
    printf("],\n");
}

static void print_figures(const session *s, double load_s) {
    const ts_job_stats *t = &s->job.stats;
    const ts_shape *h = &s->job.shape;
    printf("{\n  \"width\": %d, \"height\": %d, \"steps\": %d, \"batch\": %d, \"dtype\": \"%s\", \"mode\": "
           "\"%s\",\n",
           h->width, h->height, h->steps, s->job.count, ts_dtype_name(h->dtype),
           ts_mode_name(h->parallel.mode));
    printf("  \"ranks\": %d, \"patches\": %d, \"evaluations\": %d, \"synchronous\": %d,\n", t->ranks,
           t->patches, t->evaluations, t->synchronous);
    printf("  \"load_s\": %.4f, \"compile_s\": %.4f, \"text_s\": %.4f, \"encode_s\": %.4f, \"denoise_s\": "
           "%.4f, \"decode_s\": %.4f, "
           "\"total_s\": %.4f,\n",
           load_s, t->compile_s, t->text_s, t->encode_s, t->denoise_s, t->decode_s, t->total_s);
    printf("  \"wait_s\": [");
    for (int i = 0; i < t->ranks; i++) printf("%s%.4f", i ? ", " : "", t->wait_s[i]);
    printf("],\n  \"flops\": [");
    for (int i = 0; i < t->ranks; i++) printf("%s%.6g", i ? ", " : "", t->flops[i]);
    printf("],\n");
    print_list("sent_bytes", t->sent_bytes, t->ranks);
    print_list("sent_bytes_steady_evaluation", t->sent_steady, t->ranks);
    print_list("arena_bytes", t->arena_bytes, t->ranks);
    printf("  \"seconds_per_evaluation\": %.5f\n}\n", t->evaluations ? t->denoise_s / t->evaluations : 0.0);
}

static ts_code fill_job(session *s, const ts_group *group, ts_error *e) {
    const ts_generate_options *o = s->o;
    const ts_model_info *info = ts_model_get_info(s->model);
    const char *sampler = o->sampler ? o->sampler : info->default_sampler;
    ts_dtype dtype = o->dtype >= 0 ? (ts_dtype)o->dtype : ts_group_prefers_bf16(group) ? TS_BF16 : TS_F32;
    const ts_level_list *list = o->sigmas.count ? &o->sigmas : &o->timesteps;
    s->job = (ts_job){.pictures = s->pictures,
                      .count = o->batch,
                      .keep_latents = o->latents_out != NULL,
                      .on_step = on_step,
                      .on_picture = on_picture,
                      .arg = s,
                      .trace = o->dump ? &s->trace : NULL,
                      .want_profile = o->profile};
    s->job.shape = (ts_shape){.width = o->width ? o->width : info->default_width,
                              .height = o->height ? o->height : info->default_height,
                              .steps = o->steps      ? o->steps
                                       : list->count ? list->count
                                                     : 20,
                              .sampler = ts_sampler_find(sampler),
                              .scheduler = (ts_scheduler)o->scheduler,
                              .levels = *list,
                              .has_eta = o->eta >= 0,
                              .eta = o->eta >= 0 ? o->eta : 0,
                              .parallel = o->parallel,
                              .dtype = dtype,
                              .guided = ts_model_guides(s->model, o->guidance)};
    if ((o->sigmas.count > 0) + (o->timesteps.count > 0) + (o->scheduler != TS_SCHEDULER_DEFAULT) > 1)
        return ts_fail(e, TS_EINVAL, "--scheduler, --sigmas and --timesteps exclude each other");
    if (list->count) s->job.shape.scheduler = o->sigmas.count ? TS_SCHEDULER_SIGMAS : TS_SCHEDULER_TIMESTEPS;
    if (!s->job.shape.sampler) return ts_fail(e, TS_EINVAL, "--sampler: there is no \"%s\"", sampler);
    ts_code rc = o->init ? read_source(s, e) : TS_OK;
    if (rc) return rc;
    s->latent_h = s->job.shape.height / info->scale;
    s->latent_w = s->job.shape.width / info->scale;
    s->latent_elements = (size_t)info->latent_channels * (size_t)s->latent_h * (size_t)s->latent_w;
    for (int k = 0; k < o->batch; k++)
        s->pictures[k] = (ts_picture){.params = {.prompt = o->prompt,
                                                 .negative = o->negative,
                                                 .emphasis = o->emphasis,
                                                 .truncate = o->truncate,
                                                 .seed = o->seed + (uint64_t)k,
                                                 .rng = (ts_rng_kind)o->rng,
                                                 .guidance_scale = o->guidance,
                                                 .clip_skip = o->clip_skip,
                                                 .guidance_rescale = o->guidance_rescale,
                                                 .guidance_interval = o->guidance_interval,
                                                 .sizes = o->sizes,
                                                 .image = s->source.rgb,
                                                 .mask = s->source.mask}};
    int tokens;
    const ts_picture_params *params = &s->pictures[0].params;
    rc = ts_model_check_params(s->model, params, e);
    if (!rc)
        rc = ts_model_measure_prompts(s->model, params, s->job.shape.guided, TS_MAX_CHUNKS,
                                      &s->job.shape.chunks, &tokens, e);
    return rc ? rc : ts_group_check(group, s->model, &s->job.shape, e);
}

static ts_code fuse(ts_model *model, const char *const *texts, ts_error *e) {
    ts_lora_use uses[TS_MAX_LORAS];
    size_t n = 0;
    while (texts[n]) n++;
    ts_code rc = ts_lora_uses_parse(texts, n, uses, e);
    if (!rc) rc = ts_model_fuse(model, uses, n, e);
    ts_lora_uses_free(uses);
    return rc;
}

static ts_code run(const ts_generate_options *o, ts_error *e) {
    session s = {.o = o, .bar = isatty(STDERR_FILENO) == 1};
    ts_model *model = NULL;
    ts_group *group = NULL;
    ts_tensors *file = NULL;
    float *noise = NULL;
    ts_device_spec devices[TS_MAX_RANKS];
    int count;
    uint64_t t0 = ts_now_ns();
    double load_s;
    ts_code rc = ts_devices_parse(o->devices, devices, &count, e);
    if (!rc) rc = ts_model_load(o->model, o->vae, &model, e);
    if (!rc) rc = fuse(model, o->loras, e);
    if (!rc && o->embeddings) rc = ts_model_add_embeddings(model, o->embeddings, e);
    if (!rc) rc = ts_group_open(devices, count, &group, e);
    load_s = ts_seconds(ts_now_ns() - t0);
    s.model = model;
    if (!rc) rc = fill_job(&s, group, e);
    if (rc) goto done;
    s.latents = ts_array0(float, (size_t)o->batch *s.latent_elements);
    if (!s.latents) {
        rc = ts_fail(e, TS_ENOMEM, "starting");
        goto done;
    }
    if (o->latents_in) rc = read_latents(&s, &file, &noise, e);
    if (rc) goto done;
    for (int k = 0; noise && k < o->batch; k++)
        s.pictures[k].latents_in = noise + (size_t)k * s.latent_elements;
    s.started_ns = ts_now_ns();
    rc = ts_group_run(group, model, &s.job, e);
    if (!rc && s.error.code) {
        *e = s.error;
        rc = s.error.code;
    }
    if (!rc && o->latents_out) rc = write_latents(&s, e);
    if (!rc && o->dump) rc = ts_trace_write(&s.trace, o->dump, e);
    if (!rc && o->json) print_figures(&s, load_s);
    if (s.job.profile) fputs(s.job.profile, stderr);
done:
    free(s.job.profile);
    free(s.latents);
    ts_trace_free(&s.trace);
    ts_source_free(&s.source);
    free(noise);
    ts_tensors_free(file);
    ts_group_close(group);
    ts_model_free(model);
    return rc;
}

int ts_generate_main(int argc, char **argv) {
    ts_generate_options o;
    int status = ts_generate_options_parse(argc, argv, &o);
    if (status >= 0) return status;
    ts_error e = {0};
    ts_code rc = run(&o, &e);
    if (rc) fprintf(stderr, "tesserad generate: %s\n", e.message[0] ? e.message : ts_code_sentence(rc));
    return rc ? 1 : 0;
}
