#include "generate.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/png.h"
#include "engine/engine.h"
#include "engine/infotext.h"
#include "engine/safetensors.h"

static const char usage[] =
    "usage: tesserad generate --model MODEL --prompt TEXT -o OUT.png [options]\n"
    "  --vae FILE             an autoencoder in place of the model's\n"
    "  --negative TEXT        what the picture should not show\n"
    "  --seed N               of the first picture; the next ones count up (default 0)\n"
    "  --rng NAME             torch-cpu or torch-cuda: whose noise the seed means (default torch-cpu)\n"
    "  --steps N              (default 20)\n"
    "  --guidance X           1 or less: none (default 5)\n"
    "  --size WxH             multiples of 8 (default: the model's)\n"
    "  --batch N              pictures in one run; OUT-0.png, OUT-1.png, ... (default 1)\n"
    "  --sampler NAME         (default: the model's)\n"
    "  --scheduler NAME       default, karras, exponential, leading, trailing or linspace (default: the model's)\n"
    "  --mode NAME            pcpp, distrifusion, sync, naive or single (default pcpp)\n"
    "  --ranks N              devices that take part (default all)\n"
    "  --partial P            keys seen before and after a patch, as a share of its own; or \"all\" (default "
    "0.3)\n"
    "  --warmup N             synchronous evaluations before the last one (default 4)\n"
    "  --group-norm NAME      sync, stale, corrected or local (default corrected)\n"
    "  --cfg-split NAME       auto, on or off (default auto)\n"
    "  --devices SPEC         cpu:N, cpu:NxT (T threads each) or auto (default auto)\n"
    "  --dtype NAME           f32, bf16 or auto (default auto)\n"
    "  --latents-in FILE      unit-normal starting noise, tensor \"latents\", N x C x H x W float32\n"
    "  --latents-out FILE     keeps the final latents likewise\n"
    "  --json                 figures on stdout\n"
    "  --profile              time by op of rank 0 on stderr\n";

typedef struct options {
    const char *model, *vae, *prompt, *negative, *out, *devices, *sampler, *latents_in, *latents_out;
    uint64_t seed;
    ts_rng_kind rng;
    ts_scheduler scheduler;
    int steps, width, height, batch, dtype; /* dtype -1: auto */
    double guidance;
    ts_parallel parallel;
    bool json, profile;
} options;

/* One run, for its callbacks. */
typedef struct session {
    const options *o;
    const ts_model *model;
    ts_job job;
    ts_picture pictures[TS_MAX_BATCH];
    ts_error error; /* of the first picture that failed */
    float *latents; /* kept, [batch][elements] */
    int latent_h, latent_w;
    size_t latent_elements;
    uint64_t started_ns;
    bool bar;
} session;

static int bad(const char *format, const char *value) {
    fprintf(stderr, "tesserad generate: ");
    fprintf(stderr, format, value);
    fprintf(stderr, "\n");
    return 2;
}

static bool as_long(const char *text, long low, long high, int *ret) {
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    if (end == text || *end || errno || v < low || v > high) return false;
    *ret = (int)v;
    return true;
}

static bool as_double(const char *text, double low, double high, double *ret) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= low && v <= high)) return false;
    *ret = v;
    return true;
}

static bool as_seed(const char *text, uint64_t *ret) {
    char *end;
    errno = 0;
    if (*text < '0' || *text > '9') return false;
    unsigned long long v = strtoull(text, &end, 10);
    if (*end || errno) return false;
    *ret = v;
    return true;
}

static bool as_size(const char *text, options *o) {
    char *x = strchr(text, 'x'), first[16];
    if (!x || (size_t)(x - text) >= sizeof first) return false;
    memcpy(first, text, (size_t)(x - text));
    first[x - text] = 0;
    return as_long(first, 8, 16384, &o->width) && as_long(x + 1, 8, 16384, &o->height);
}

static bool as_name(const char *text, int (*find)(const char *), int *ret) {
    int v = find(text);
    if (v >= 0) *ret = v;
    return v >= 0;
}

static int find_dtype(const char *name) {
    return !strcmp(name, "f32") ? TS_F32 : !strcmp(name, "bf16") ? TS_BF16 : -1;
}

enum {
    OPT_MODEL = 256,
    OPT_VAE,
    OPT_PROMPT,
    OPT_NEGATIVE,
    OPT_SEED,
    OPT_RNG,
    OPT_SCHEDULER,
    OPT_STEPS,
    OPT_GUIDANCE,
    OPT_SIZE,
    OPT_BATCH,
    OPT_SAMPLER,
    OPT_MODE,
    OPT_RANKS,
    OPT_PARTIAL,
    OPT_WARMUP,
    OPT_GROUP_NORM,
    OPT_CFG_SPLIT,
    OPT_DEVICES,
    OPT_DTYPE,
    OPT_LATENTS_IN,
    OPT_LATENTS_OUT,
    OPT_JSON,
    OPT_PROFILE,
    OPT_HELP
};

static const struct option longs[] = {{"model", 1, 0, OPT_MODEL},
                                      {"vae", 1, 0, OPT_VAE},
                                      {"prompt", 1, 0, OPT_PROMPT},
                                      {"negative", 1, 0, OPT_NEGATIVE},
                                      {"seed", 1, 0, OPT_SEED},
                                      {"rng", 1, 0, OPT_RNG},
                                      {"scheduler", 1, 0, OPT_SCHEDULER},
                                      {"steps", 1, 0, OPT_STEPS},
                                      {"guidance", 1, 0, OPT_GUIDANCE},
                                      {"size", 1, 0, OPT_SIZE},
                                      {"batch", 1, 0, OPT_BATCH},
                                      {"sampler", 1, 0, OPT_SAMPLER},
                                      {"mode", 1, 0, OPT_MODE},
                                      {"ranks", 1, 0, OPT_RANKS},
                                      {"partial", 1, 0, OPT_PARTIAL},
                                      {"warmup", 1, 0, OPT_WARMUP},
                                      {"group-norm", 1, 0, OPT_GROUP_NORM},
                                      {"cfg-split", 1, 0, OPT_CFG_SPLIT},
                                      {"devices", 1, 0, OPT_DEVICES},
                                      {"dtype", 1, 0, OPT_DTYPE},
                                      {"latents-in", 1, 0, OPT_LATENTS_IN},
                                      {"latents-out", 1, 0, OPT_LATENTS_OUT},
                                      {"json", 0, 0, OPT_JSON},
                                      {"profile", 0, 0, OPT_PROFILE},
                                      {"help", 0, 0, OPT_HELP},
                                      {0}};

/* True when the option's value is acceptable. */
static bool take_option(options *o, int option, const char *v) {
    ts_parallel *p = &o->parallel;
    int n = 0;
    bool good = true;
    switch (option) {
    case OPT_MODEL: o->model = v; break;
    case OPT_VAE: o->vae = v; break;
    case OPT_PROMPT: o->prompt = v; break;
    case OPT_NEGATIVE: o->negative = v; break;
    case OPT_SAMPLER: o->sampler = v; break;
    case OPT_DEVICES: o->devices = v; break;
    case OPT_LATENTS_IN: o->latents_in = v; break;
    case OPT_LATENTS_OUT: o->latents_out = v; break;
    case 'o': o->out = v; break;
    case OPT_JSON: o->json = true; break;
    case OPT_PROFILE: o->profile = true; break;
    case OPT_SEED: return as_seed(v, &o->seed);
    case OPT_STEPS: return as_long(v, 1, TS_MAX_STEPS, &o->steps);
    case OPT_GUIDANCE: return as_double(v, 0, 1000, &o->guidance);
    case OPT_SIZE: return as_size(v, o);
    case OPT_BATCH: return as_long(v, 1, TS_MAX_BATCH, &o->batch);
    case OPT_RANKS: return as_long(v, 1, TS_MAX_RANKS, &p->ranks);
    case OPT_WARMUP: return as_long(v, 0, TS_MAX_STEPS, &p->warmup);
    case OPT_PARTIAL:
        if (!strcmp(v, "all"))
            p->partial = INFINITY;
        else
            good = as_double(v, 0, 1000, &p->partial);
        break;
    case OPT_RNG:
        good = as_name(v, ts_rng_kind_find, &n);
        if (good) o->rng = (ts_rng_kind)n;
        break;
    case OPT_SCHEDULER:
        good = as_name(v, ts_scheduler_find, &n);
        if (good) o->scheduler = (ts_scheduler)n;
        break;
    case OPT_MODE:
        good = as_name(v, ts_mode_find, &n);
        if (good) p->mode = (ts_mode)n;
        break;
    case OPT_GROUP_NORM:
        good = as_name(v, ts_group_norm_mode_find, &n);
        if (good) p->group_norm = (ts_group_norm_mode)n;
        break;
    case OPT_CFG_SPLIT:
        good = as_name(v, ts_cfg_split_find, &n);
        if (good) p->cfg_split = (ts_cfg_split)n;
        break;
    case OPT_DTYPE:
        if (!strcmp(v, "auto"))
            o->dtype = -1;
        else
            good = as_name(v, find_dtype, &o->dtype);
        break;
    }
    return good;
}

static int parse(int argc, char **argv, options *o) {
    int c, at = 0;
    *o = (options){.steps = 20,
                   .batch = 1,
                   .dtype = -1,
                   .guidance = 5,
                   .devices = "auto",
                   .parallel = TS_PARALLEL_DEFAULT};
    optind = 1;
    while ((c = getopt_long(argc, argv, "o:", longs, &at)) != -1) {
        if (c == '?') return 2; /* getopt has said what */
        if (c == OPT_HELP) {
            fputs(usage, stdout);
            return -1;
        }
        if (!take_option(o, c, optarg)) {
            fprintf(stderr, "tesserad generate: --%s: \"%s\" is not acceptable\n",
                    c == 'o' ? "o" : longs[at].name, optarg);
            return 2;
        }
    }
    if (optind < argc) return bad("unexpected \"%s\"", argv[optind]);
    if (!o->model) return bad("%s is missing", "--model");
    if (!o->prompt) return bad("%s is missing", "--prompt");
    if (!o->out) return bad("%s is missing", "-o");
    return 0;
}

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

static char *picture_path(const options *o, int k) {
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

static ts_code read_latents(const session *s, ts_safetensors **ret_file, float **ret, ts_error *e) {
    const options *o = s->o;
    ts_safetensors *file = NULL;
    ts_code rc = ts_safetensors_open(o->latents_in, &file, e);
    if (rc) return rc;
    const ts_file_tensor *t = ts_safetensors_find(file, "latents");
    if (!t || t->dtype != TS_F32 || t->rank != 4 ||
        ts_file_tensor_elements(t) != s->latent_elements * (size_t)o->batch || t->shape[0] != o->batch ||
        t->shape[1] != ts_model_get_info(s->model)->latent_channels || t->shape[2] != s->latent_h ||
        t->shape[3] != s->latent_w) {
        ts_safetensors_free(file);
        return ts_fail(e, TS_EINVAL, "%s: no float32 tensor \"latents\" of %d x %d x %d x %d", o->latents_in,
                       o->batch, ts_model_get_info(s->model)->latent_channels, s->latent_h, s->latent_w);
    }
    float *values = ts_array0(float, ts_file_tensor_elements(t));
    if (values) ts_file_tensor_to_f32(t, values);
    *ret = values;
    *ret_file = file;
    return values ? TS_OK : ts_fail(e, TS_ENOMEM, "reading %s", o->latents_in);
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
    printf(
        "  \"load_s\": %.4f, \"compile_s\": %.4f, \"text_s\": %.4f, \"denoise_s\": %.4f, \"decode_s\": %.4f, "
        "\"total_s\": %.4f,\n",
        load_s, t->compile_s, t->text_s, t->denoise_s, t->decode_s, t->total_s);
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
    const options *o = s->o;
    const ts_model_info *info = ts_model_get_info(s->model);
    const char *sampler = o->sampler ? o->sampler : info->default_sampler;
    ts_dtype dtype = o->dtype >= 0 ? (ts_dtype)o->dtype : ts_group_prefers_bf16(group) ? TS_BF16 : TS_F32;
    s->job = (ts_job){.pictures = s->pictures,
                      .count = o->batch,
                      .keep_latents = o->latents_out != NULL,
                      .on_step = on_step,
                      .on_picture = on_picture,
                      .arg = s,
                      .want_profile = o->profile};
    s->job.shape = (ts_shape){.width = o->width ? o->width : info->default_width,
                              .height = o->height ? o->height : info->default_height,
                              .steps = o->steps,
                              .sampler = ts_sampler_find(sampler),
                              .scheduler = o->scheduler,
                              .parallel = o->parallel,
                              .dtype = dtype,
                              .guided = o->guidance > 1};
    if (!s->job.shape.sampler) return ts_fail(e, TS_EINVAL, "--sampler: there is no \"%s\"", sampler);
    s->latent_h = s->job.shape.height / info->scale;
    s->latent_w = s->job.shape.width / info->scale;
    s->latent_elements = (size_t)info->latent_channels * (size_t)s->latent_h * (size_t)s->latent_w;
    for (int k = 0; k < o->batch; k++)
        s->pictures[k] = (ts_picture){.params = {.prompt = o->prompt,
                                                 .negative = o->negative,
                                                 .seed = o->seed + (uint64_t)k,
                                                 .rng = o->rng,
                                                 .guidance_scale = o->guidance}};
    return ts_group_check(group, s->model, &s->job.shape, e);
}

static ts_code run(const options *o, ts_error *e) {
    session s = {.o = o, .bar = isatty(STDERR_FILENO) == 1};
    ts_model *model = NULL;
    ts_group *group = NULL;
    ts_safetensors *file = NULL;
    float *noise = NULL;
    ts_device_spec devices[TS_MAX_RANKS];
    int count;
    uint64_t t0 = ts_now_ns();
    double load_s;
    ts_code rc = ts_devices_parse(o->devices, devices, &count, e);
    if (!rc) rc = ts_model_load(o->model, &model, e);
    if (!rc && o->vae) rc = ts_model_replace_vae(model, o->vae, e);
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
    if (!rc && o->json) print_figures(&s, load_s);
    if (s.job.profile) fputs(s.job.profile, stderr);
done:
    free(s.job.profile);
    free(s.latents);
    free(noise);
    ts_safetensors_free(file);
    ts_group_close(group);
    ts_model_free(model);
    return rc;
}

int ts_generate_main(int argc, char **argv) {
    options o;
    int status = parse(argc, argv, &o);
    if (status) return status < 0 ? 0 : status;
    ts_error e = {0};
    ts_code rc = run(&o, &e);
    if (rc) fprintf(stderr, "tesserad generate: %s\n", e.message[0] ? e.message : ts_code_sentence(rc));
    return rc ? 1 : 0;
}
