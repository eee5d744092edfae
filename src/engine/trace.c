#include "engine/trace.h"

#include <stdlib.h>
#include "base/alloc.h"
#include "engine/safetensors.h"

static size_t latent(const ts_trace *t) {
    return (size_t)t->channels * (size_t)t->height * (size_t)t->width;
}

ts_code ts_trace_make(ts_trace *t, ts_error *e) {
    const size_t images = (size_t)t->images;
    t->text = ts_array0(float, images *(size_t)t->tokens *(size_t)t->text_width);
    t->pooled = ts_array0(float, images *(size_t)t->pooled_width);
    t->noise = ts_array0(float, latent(t));
    t->prediction = ts_array0(float, images *latent(t));
    t->latents = ts_array0(float, (size_t)t->evaluations *latent(t));
    return t->text && t->pooled && t->noise && t->prediction && t->latents
               ? TS_OK
               : ts_fail(e, TS_ENOMEM, "the trace of a run");
}

void ts_trace_free(ts_trace *t) {
    free(t->text);
    free(t->pooled);
    free(t->noise);
    free(t->prediction);
    free(t->latents);
    *t = (ts_trace){0};
}

/* [n][height][width][channels] to [n][channels][height][width]. */
static float *planes(const ts_trace *t, const float *from, int n) {
    const size_t c = (size_t)t->channels, plane = (size_t)t->height * (size_t)t->width;
    float *to = ts_array0(float, (size_t)n *latent(t));
    for (size_t k = 0; to && k < (size_t)n; k++)
        for (size_t i = 0; i < plane; i++)
            for (size_t j = 0; j < c; j++)
                to[k * latent(t) + j * plane + i] = from[k * latent(t) + i * c + j];
    return to;
}

static ts_file_tensor pictures(const ts_trace *t, const char *name, int n, const float *data) {
    return (ts_file_tensor){.name = name,
                            .dtype = TS_F32,
                            .rank = 4,
                            .shape = {n, t->channels, t->height, t->width},
                            .data = data,
                            .bytes = (size_t)n * latent(t) * sizeof(float)};
}

ts_code ts_trace_write(const ts_trace *t, const char *path, ts_error *e) {
    float *prediction = planes(t, t->prediction, t->images);
    float *latents = planes(t, t->latents, t->evaluations);
    const size_t text = (size_t)t->images * (size_t)t->tokens * (size_t)t->text_width;
    const size_t pooled = (size_t)t->images * (size_t)t->pooled_width;
    const ts_file_tensor tensors[] = {
        pictures(t, "noise", 1, t->noise),
        pictures(t, "prediction", t->images, prediction),
        pictures(t, "latents", t->evaluations, latents),
        {.name = "text",
         .dtype = TS_F32,
         .rank = 3,
         .shape = {t->images, t->tokens, t->text_width},
         .data = t->text,
         .bytes = text * sizeof(float)},
        {.name = "pooled",
         .dtype = TS_F32,
         .rank = 2,
         .shape = {t->images, t->pooled_width},
         .data = t->pooled,
         .bytes = pooled * sizeof(float)},
    };
    const size_t count = sizeof tensors / sizeof *tensors - (pooled ? 0 : 1);
    ts_code rc = prediction && latents ? ts_safetensors_write(path, tensors, count, e)
                                       : ts_fail(e, TS_ENOMEM, "writing %s", path);
    free(prediction);
    free(latents);
    return rc;
}
