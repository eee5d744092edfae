/* What a job begins with: each picture's noise, the picture that it changes, and what of that is painted
 * anew.
 *
 * Random numbers are drawn in the order of diffusers' pipelines, from the picture's own generator: the sample
 * of the encoded picture, the starting noise, and, when painting into a mask, the sample of the encoded
 * picture without what is painted. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/run.h"

/* Pixels [8h][8w][3], -1..1, as moments [h][w][2 * channels]; those of the picture and mask that were last
 * encoded, for the pictures of a request share theirs. */
typedef struct encoded {
    const unsigned char *rgb, *mask; /* NULL: nothing yet */
    float *moments;
} encoded;

/* What encoding needs, kept from one picture to the next. */
typedef struct encoder {
    ts_run *run;
    float *pixels;
    float *drawn; /* [channels][h][w] */
    encoded whole, masked;
} encoder;

/* Places of a picture's latent; an encoded one has as many, channels last. */
static size_t plane(const ts_run *run) {
    return (size_t)run->latent_h * (size_t)run->latent_w;
}

/* Bytes to -1..1, as diffusers normalises; what a mask says is painted becomes grey (0). */
static void take_pixels(encoder *c, const unsigned char *rgb, const unsigned char *mask) {
    const ts_shape *s = &c->run->job->shape;
    const size_t n = (size_t)s->width * (size_t)s->height;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < 3; j++) {
            float v = 2.0f * ((float)rgb[3 * i + j] / 255.0f) - 1.0f;
            c->pixels[3 * i + j] = mask && ts_mask_paints(mask[i]) ? 0 : v;
        }
}

static ts_code encode(encoder *c, encoded *to, const unsigned char *rgb, const unsigned char *mask,
                      ts_error *e) {
    if (to->rgb == rgb && to->mask == mask) return TS_OK;
    take_pixels(c, rgb, mask);
    ts_code rc = ts_encode(c->run, c->pixels, to->moments, e);
    if (rc) return rc;
    to->rgb = rgb;
    to->mask = mask;
    return TS_OK;
}

/* A sample of the encoder's distribution, times the latents' scale: mean + e^(log variance / 2) * noise, the
 * logarithm clamped as diffusers does. (Kingma & Welling 2014, arXiv 1312.6114) */
static void sample(encoder *c, const encoded *from, ts_rng *rng, float *latent) {
    const ts_run *run = c->run;
    const size_t n = plane(run), channels = (size_t)run->channels;
    const float scale = (float)run->model->vae.scaling_factor;
    ts_rng_randn(rng, c->drawn, n * channels);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < channels; j++) {
            const float *m = from->moments + i * 2 * channels + j;
            float log_variance = fminf(fmaxf(m[channels], -30), 20);
            latent[i * channels + j] = scale * (m[0] + expf(0.5f * log_variance) * c->drawn[j * n + i]);
        }
    ts_vae_normalise(&run->model->vae, latent, n);
}

static void make_mask(ts_run *run, const unsigned char *mask, float *ret) {
    const size_t scale = (size_t)ts_model_scale(run->model), width = (size_t)run->job->shape.width;
    for (size_t y = 0; y < (size_t)run->latent_h; y++)
        for (size_t x = 0; x < (size_t)run->latent_w; x++)
            *ret++ = ts_mask_paints(mask[y * scale * width + x * scale]);
}

/* The starting noise of a picture is PyTorch's for its seed and generator, whatever the devices, the batch or
 * the dtype. Where it is given, the generator still begins at the seed, for what else is drawn. */
static void make_noise(ts_run *run, int k) {
    const size_t n = ts_run_elements(run);
    const float *given = run->job->pictures[k].latents_in;
    float *to = run->noise + (size_t)k * n;
    if (given)
        memcpy(to, given, n * sizeof *to);
    else
        ts_rng_randn(&run->rng[k], to, n);
}

static ts_code start_picture(encoder *c, int k, ts_error *e) {
    ts_run *run = c->run;
    const ts_picture_params *p = &run->job->pictures[k].params;
    const size_t n = ts_run_elements(run), at = (size_t)k;
    ts_code rc = run->image ? encode(c, &c->whole, p->image, NULL, e) : TS_OK;
    if (!rc && run->masked) rc = encode(c, &c->masked, p->image, p->mask, e);
    if (rc) return rc;
    if (run->image) sample(c, &c->whole, &run->rng[k], run->image + at * n);
    make_noise(run, k);
    if (!run->mask) return TS_OK;
    make_mask(run, p->mask, run->mask + at * plane(run));
    if (run->masked)
        sample(c, &c->masked, &run->rng[k], run->masked + at * n);
    else
        ts_rng_randn(&run->rng[k], c->drawn, n); /* diffusers encodes it all the same, and draws */
    return TS_OK;
}

/* A U-Net that is told what is kept needs the picture itself only to begin from. */
static bool needs_image(const ts_run *run) {
    const ts_shape *s = &run->job->shape;
    return s->task == TS_TASK_IMAGE || (s->task == TS_TASK_INPAINT && !(run->told && s->strength >= 1));
}

ts_code ts_start(ts_run *run, ts_error *e) {
    const ts_job *job = run->job;
    const size_t pictures = (size_t)job->count, n = ts_run_elements(run);
    encoder c = {.run = run};
    ts_code rc = TS_OK;
    for (int k = 0; k < job->count; k++) {
        const ts_picture_params *p = &job->pictures[k].params;
        ts_rng_seed(&run->rng[k], p->rng, p->seed);
        if (job->shape.task != TS_TASK_TEXT && !p->image)
            return ts_fail_param(e, TS_EINVAL, "image", "there is no picture to begin with");
        if (job->shape.task == TS_TASK_INPAINT && !p->mask)
            return ts_fail_param(e, TS_EINVAL, "mask", "there is no mask");
    }
    if (job->shape.task != TS_TASK_TEXT) {
        const bool inpaint = job->shape.task == TS_TASK_INPAINT;
        c.pixels = ts_array0(float, (size_t)job->shape.width *(size_t)job->shape.height * 3);
        c.whole.moments = ts_array0(float, 2 * n);
        c.masked.moments = ts_array0(float, 2 * n);
        c.drawn = ts_array0(float, n);
        if (needs_image(run)) run->image = ts_array0(float, pictures *n);
        if (inpaint) run->mask = ts_array0(float, pictures *plane(run));
        if (inpaint && run->told) run->masked = ts_array0(float, pictures *n);
        if (!c.pixels || !c.whole.moments || !c.masked.moments || !c.drawn ||
            (needs_image(run) && !run->image) || (inpaint && (!run->mask || (run->told && !run->masked))))
            rc = ts_fail(e, TS_ENOMEM, "starting a job");
    }
    for (int k = 0; k < job->count && !rc; k++) rc = start_picture(&c, k, e);
    free(c.pixels);
    free(c.whole.moments);
    free(c.masked.moments);
    free(c.drawn);
    return rc;
}
