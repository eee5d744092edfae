#include "pictures.h"

#include <math.h>

static studio open_with(const char *path, const char *vae, const ts_backend *backend, int ranks) {
    studio s = {0};
    ts_error e = {0};
    ts_device_spec devices[TS_MAX_RANKS];
    for (int i = 0; i < ranks; i++)
        devices[i] = (ts_device_spec){.backend = backend, .index = i, .threads = 1};
    must(ts_model_load(path, vae, &s.model, &e), &e);
    must(ts_group_open(devices, ranks, &s.group, &e), &e);
    return s;
}

studio studio_open(const char *fixture, const ts_backend *backend, int ranks) {
    char *path = parity_path(fixture);
    studio s = open_with(path, NULL, backend, ranks);
    free(path);
    return s;
}

studio studio_open_with(const char *path, const char *vae, int ranks) {
    return open_with(path, vae, &ts_backend_cpu, ranks);
}

void studio_close(studio s) {
    ts_group_close(s.group);
    ts_model_free(s.model);
}

static void take(void *arg, ts_picture *picture) {
    shot *s = arg;
    s->error = picture->error;
    s->latents.data = picture->latents_out;
    s->rgb = picture->rgb;
    picture->latents_out = NULL;
    picture->rgb = NULL;
}

shot studio_shoot(studio s, const ts_shape *shape, const ts_picture *request) {
    const ts_model_info *info = ts_model_get_info(s.model);
    const int scale = ts_model_scale(s.model);
    shot r = {.latents = {1, info->latent_channels, shape->height / scale, shape->width / scale, NULL}};
    ts_picture picture = {
        .params = request->params, .text_in = request->text_in, .latents_in = request->latents_in};
    ts_job job = {.shape = *shape,
                  .pictures = &picture,
                  .count = 1,
                  .keep_latents = true,
                  .on_picture = take,
                  .arg = &r};
    ts_error e = {0};
    must(ts_group_run(s.group, s.model, &job, &e), &e);
    must(r.error.code, &r.error);
    assert_true(r.latents.data && r.rgb);
    r.stats = job.stats;
    return r;
}

void shot_free(shot s) {
    tensor_free(s.latents);
    free(s.rgb);
}

unsigned char *studio_source(int width, int height) {
    unsigned char *rgb = malloc((size_t)width * (size_t)height * 3), *at = rgb;
    assert_non_null(rgb);
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < 3; c++) *at++ = (unsigned char)(3 * x + 5 * y + 40 * c + x * y / 7);
    return rgb;
}

/* The fixture's bytes are those that diffusers writes: round(255 * clamp(x / 2 + 1 / 2)). */
void studio_hold(const char *name, const unsigned char *rgb, tensor image) {
    size_t plane = (size_t)image.h * (size_t)image.w, different = 0;
    for (size_t i = 0; i < 3 * plane; i++) {
        float x = image.data[i] / 2 + 0.5f;
        int want = (int)rintf(255 * fminf(fmaxf(x, 0), 1));
        int have = rgb[i % plane * 3 + i / plane];
        if (abs(have - want) > 1) fail_msg("%s: byte %zu is %d, not %d", name, i, have, want);
        different += have != want;
    }
    /* Only what lies on the edge of two values may fall to the other side. */
    if (different > 3 * plane / 1000) fail_msg("%s: %zu of %zu bytes differ", name, different, 3 * plane);
}
