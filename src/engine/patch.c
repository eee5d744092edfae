/* A rank's rows of a job: where they come from, what a mask keeps of them, where they go. */
#include "engine/patch.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"

/* to = scale * this rank's rows of a picture's noise, from channels first to channels last. */
static void take_rows(const ts_patch *p, float scale, const float *picture, float *to) {
    const ts_run *run = p->run;
    const size_t w = (size_t)run->latent_w, c = (size_t)run->channels, plane = (size_t)run->latent_h * w;
    const float *from = picture + (size_t)p->row * w;
    for (size_t i = 0; i < (size_t)p->rows * w; i++)
        for (size_t j = 0; j < c; j++) to[i * c + j] = scale * from[j * plane + i];
}

/* Where this rank's rows of picture k of the job begin in an array of whole pictures with c channels. */
size_t ts_patch_own_rows(const ts_patch *p, int k, int c) {
    const ts_run *run = p->run;
    return ((size_t)k * (size_t)run->latent_h + (size_t)p->row) * (size_t)run->latent_w * (size_t)c;
}

/* to = signal * this rank's rows of the picture that job picture k changes + noise * its starting noise. */
static void take_noisy(const ts_patch *p, int k, float signal, float noise, float *to) {
    const ts_run *run = p->run;
    take_rows(p, noise, run->noise + (size_t)k * ts_run_elements(run), to);
    const float *image = run->image ? run->image + ts_patch_own_rows(p, k, run->channels) : NULL;
    for (size_t i = 0; image && i < p->elements; i++) to[i] += signal * image[i];
}

static void take_start(ts_patch *p) {
    const ts_run *run = p->run;
    const ts_shape *s = &run->job->shape;
    /* Nothing of the picture is left where all steps of painting are run: that begins with noise alone. */
    const bool pure = s->task == TS_TASK_TEXT || (s->task == TS_TASK_INPAINT && s->strength >= 1);
    const ts_sampler_row *first = &run->plan->row[0];
    for (int k = 0; k < run->count; k++)
        take_noisy(p, run->picture[k], pure ? 0 : first->signal, pure ? run->plan->init_scale : first->noise,
                   p->x + (size_t)k * p->elements);
}

/* What the mask keeps becomes the picture again, as noisy as what row i + 1 sees. A U-Net that is told of it
 * does without. */
void ts_patch_keep_unmasked(ts_patch *p, int i) {
    const ts_run *run = p->run;
    if (!run->mask || run->told) return;
    const ts_sampler_row *next = i + 1 < run->plan->rows ? &run->plan->row[i + 1] : NULL;
    const size_t c = (size_t)run->channels;
    for (int k = 0; k < run->count; k++) {
        const float *mask = run->mask + ts_patch_own_rows(p, run->picture[k], 1);
        float *x = p->x + (size_t)k * p->elements;
        take_noisy(p, run->picture[k], next ? next->signal : 1, next ? next->noise : 0, p->kept);
        for (size_t j = 0; j < p->elements; j++) x[j] = (1 - mask[j / c]) * p->kept[j] + mask[j / c] * x[j];
    }
}

/* Fresh noise of each picture of the leg, from its own generator. */
void ts_patch_draw_noise(ts_patch *p) {
    const ts_run *run = p->run;
    for (int k = 0; k < run->count; k++) {
        ts_rng_randn(&p->rng[run->picture[k]], p->drawn, ts_run_elements(run));
        take_rows(p, 1, p->drawn, p->noise + (size_t)k * p->elements);
    }
}

void ts_patch_free(ts_patch *p) {
    if (!p) return;
    free(p->memory);
    free(p->drawn);
    free(p->rng);
    free(p);
}

ts_code ts_patch_new(ts_run *run, int rank, ts_patch **ret) {
    const ts_layout *l = &run->layout;
    ts_patch *p = ts_new0(ts_patch);
    if (!p) return ts_fail(&run->error[rank], TS_ENOMEM, "starting a job");
    *p = (ts_patch){.run = run, .rank = rank, .branch = rank / l->patches, .index = rank % l->patches};
    p->row = l->rows.bound[p->index];
    p->rows = ts_rows_of(&l->rows, p->index);
    p->elements = (size_t)p->rows * (size_t)run->latent_w * (size_t)run->channels;
    const size_t n = p->elements * (size_t)run->count;
    const bool draws = run->plan->draws_noise;
    const size_t buffers = 2 + (size_t)run->plan->history + (run->plan->saves_x ? 1 : 0) + (draws ? 1 : 0);
    p->memory = ts_array0(float, n *buffers + p->elements);
    if (draws) {
        p->drawn = ts_array0(float, ts_run_elements(run));
        p->rng = ts_array0(ts_rng, (size_t)run->job->count);
    }
    if (!p->memory || (draws && (!p->drawn || !p->rng))) {
        ts_patch_free(p);
        return ts_fail(&run->error[rank], TS_ENOMEM, "starting a job");
    }
    float *at = p->memory;
    p->x = at;
    p->out = at += n;
    for (int i = 0; i < run->plan->history; i++) p->hist[i] = at += n;
    if (run->plan->saves_x) p->saved = at += n;
    p->kept = at += n;
    if (draws) {
        p->noise = at + p->elements;
        memcpy(p->rng, run->rng, (size_t)run->job->count * sizeof *p->rng);
    }
    take_start(p);
    *ret = p;
    return TS_OK;
}

/* Moves the pictures that stay to the front: picture k of the smaller batch was old[k]. */
void ts_patch_keep(ts_patch *p, const int *old, int count) {
    float *const buffers[] = {p->x, p->saved, p->hist[0], p->hist[1], p->hist[2]};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        for (int k = 0; buffers[i] && k < count; k++)
            memmove(buffers[i] + (size_t)k * p->elements, buffers[i] + (size_t)old[k] * p->elements,
                    p->elements * sizeof(float));
}

/* A latent that has left the finite numbers fails its picture, not the others of the batch. */
void ts_patch_check_finite(ts_patch *p, int evaluation) {
    for (int k = 0; k < p->run->count; k++) {
        const float *x = p->x + (size_t)k * p->elements;
        float sum = 0; /* stays zero unless something in it is not finite: 0 * inf and 0 * nan are nan */
        for (size_t i = 0; i < p->elements; i++) sum += 0.0f * x[i];
        if (sum == 0) continue;
        int none = 0;
        atomic_compare_exchange_strong(&p->run->bad_step[p->run->picture[k]], &none, evaluation);
    }
}

void ts_patch_give(const ts_patch *p) {
    ts_run *run = p->run;
    const size_t row = (size_t)run->latent_w * (size_t)run->channels, picture = (size_t)run->latent_h * row;
    if (p->branch) return; /* both branches hold the same */
    for (int k = 0; k < run->count; k++)
        memcpy(run->latents + (size_t)run->picture[k] * picture + (size_t)p->row * row,
               p->x + (size_t)k * p->elements, p->elements * sizeof *p->x);
}
