/* Denoising: what one rank does for a job. (PCPP, arXiv 2412.02962; the steps in docs/ARCHITECTURE.md.) */
#include <string.h>
#include "base/clock.h"
#include "engine/combine.h"

/* Images that this rank's program runs side by side, as indices into run->text. */
static int images(const ts_patch *p, int ret[2 * TS_MAX_BATCH]) {
    const ts_run *run = p->run;
    const bool split = run->layout.branches == 2;
    const int conditional = run->job->shape.guided ? run->job->count : 0;
    int n = 0;
    if (run->guided && (!split || p->branch == 0))
        for (int k = 0; k < run->count; k++) ret[n++] = run->picture[k];
    if (!run->guided || !split || p->branch == 1)
        for (int k = 0; k < run->count; k++) ret[n++] = run->picture[k] + conditional;
    return n;
}

/* As float32 has it, like diffusers. */
static float told_scale(const ts_picture_params *params) {
    return (float)(params->guidance_scale - 1) * 1000;
}

/* What stays the same for the whole leg: the text, and what is computed from it once. */
static ts_code begin(ts_patch *p) {
    ts_run *run = p->run;
    int image[2 * TS_MAX_BATCH], n = images(p, image);
    p->program = run->unet->program[p->rank];
    p->transport = run->unet->branch[p->branch];
    ts_program_reset_stats(p->program);
    p->wait_ns = 0;
    ts_view v;
    float *text = ts_program_tensor(p->program, "text", &v);
    for (int i = 0; i < n; i++)
        memcpy(text + (size_t)i * v.pitch, run->text + (size_t)image[i] * v.pitch, v.pitch * sizeof *text);
    if (run->model->xl) {
        float *ids = ts_program_tensor(p->program, "time_ids", NULL);
        float *pooled = ts_program_tensor(p->program, "pooled", &v);
        for (int i = 0; i < n; i++) {
            memcpy(ids + 6 * i, run->time_ids[image[i] % run->job->count], sizeof run->time_ids[0]);
            memcpy(pooled + (size_t)i * v.pitch, run->pooled + (size_t)image[i] * v.pitch,
                   v.pitch * sizeof *pooled);
        }
    }
    float *guidance = ts_program_tensor(p->program, "guidance", NULL);
    for (int i = 0; guidance && i < n; i++)
        guidance[i] = told_scale(&run->job->pictures[image[i] % run->job->count].params);
    return ts_program_run_once(p->program, &run->error[p->rank]);
}

/* The U-Net's input where it is told of the mask: latent, mask, latent of what is kept. */
static void fill_told(const ts_patch *p, const ts_sampler_row *row, int k, float *sample) {
    const ts_run *run = p->run;
    const size_t c = (size_t)run->channels;
    const float *x = p->x + (size_t)k * p->elements,
                *mask = run->mask + ts_patch_own_rows(p, run->picture[k], 1);
    const float *masked = run->masked + ts_patch_own_rows(p, run->picture[k], run->channels);
    for (size_t i = 0; i < p->elements; i += c) {
        for (size_t j = 0; j < c; j++) *sample++ = row->c_in * x[i + j];
        *sample++ = mask[i / c];
        for (size_t j = 0; j < c; j++) *sample++ = masked[i + j];
    }
}

/* The row of each picture of the leg in evaluation i. */
typedef struct picture_rows {
    const ts_sampler_row *of[TS_MAX_BATCH];
} picture_rows;

static void fill_inputs(ts_patch *p, const picture_rows *rows) {
    ts_view v;
    const ts_run *run = p->run;
    float *sample = ts_program_tensor(p->program, "sample", &v);
    float *t = ts_program_tensor(p->program, "timestep", NULL);
    const size_t all = v.pitch * (size_t)run->count;
    for (int k = 0; k < run->count; k++) {
        float *to = sample + (size_t)k * v.pitch;
        const float *x = p->x + (size_t)k * p->elements;
        if (run->told)
            fill_told(p, rows->of[k], k, to);
        else
            for (size_t i = 0; i < p->elements; i++) to[i] = rows->of[k]->c_in * x[i];
    }
    if (v.b > run->count) memcpy(sample + all, sample, all * sizeof *sample);
    for (int i = 0; i < v.b; i++) t[i] = (float)rows->of[i % run->count]->timestep;
}

static ts_code wait_for_peers(ts_patch *p, unsigned number) {
    for (int j = 0; p->transport && j < p->run->layout.patches; j++) {
        if (j == p->index) continue;
        ts_code rc = p->transport->ops->wait_finished(p->transport, p->index, j, number);
        if (rc) return ts_fail(&p->run->error[p->rank], rc, "waiting for rank %d", j);
    }
    return TS_OK;
}

/* Rank 0, before its evaluation i: ends the leg early if the batch has become too large. Nobody can begin i +
 * 2 before rank 0 has finished i + 1, so all ranks see the end in time. Naive ranks do not wait for each
 * other.
 */
static void consider_shrinking(ts_patch *p, int i) {
    ts_run *run = p->run;
    if (p->rank != 0 || i + 2 >= atomic_load(&run->end) || run->plan->rows - i < 2 + TS_WORTH_COMPILING)
        return;
    if (run->unet->key.naive || ts_run_alive(run) == run->count) return;
    atomic_store(&run->end, i + 2);
}

/* This rank's part of what a trace keeps of evaluation i. */
static void trace(const ts_patch *p, int i) {
    const ts_run *run = p->run;
    ts_trace *t = run->job->trace;
    int image[2 * TS_MAX_BATCH], n = i == 0 ? images(p, image) : 0;
    const float *predicted = ts_program_tensor(p->program, "out", NULL);
    for (int k = 0; k < n; k++)
        memcpy(t->prediction + ts_patch_own_rows(p, image[k], run->channels),
               predicted + (size_t)k * p->elements, p->elements * sizeof *predicted);
    if (!p->branch)
        memcpy(t->latents + ts_patch_own_rows(p, i, run->channels), p->x, p->elements * sizeof *p->x);
}

/* Each picture's row of evaluation i, by the variance of its x where the sampler wants that. */
static ts_code choose_rows(ts_patch *p, int i, picture_rows *ret) {
    const ts_run *run = p->run;
    ts_sums sums = {0};
    for (int k = 0; k < run->count; k++) ret->of[k] = &run->plan->row[i];
    if (!run->plan->row[i].count) return TS_OK;
    for (int k = 0; k < run->count; k++) {
        const float *x = p->x + (size_t)k * p->elements;
        for (size_t j = 0; j < p->elements; j++) {
            sums.of[k][0] += (double)x[j];
            sums.of[k][1] += (double)x[j] * (double)x[j];
        }
    }
    ts_code rc = ts_patch_add_up(p, (unsigned)i + 1, TS_SUM_VARIANCE, &sums);
    const double n = (double)(run->unet->key.naive ? p->elements : ts_run_elements(run));
    for (int k = 0; k < run->count && !rc; k++) {
        const double *s = sums.of[k];
        ret->of[k] = ts_sampler_choose(run->plan, i, (s[1] - s[0] * (s[0] / n)) / (n - 1));
    }
    return rc;
}

static void apply_rows(ts_patch *p, const picture_rows *rows) {
    for (int k = 0; k < p->run->count; k++) {
        const size_t at = (size_t)k * p->elements;
        float *hist[TS_SAMPLER_HISTORY];
        for (int h = 0; h < TS_SAMPLER_HISTORY; h++) hist[h] = p->hist[h] ? p->hist[h] + at : NULL;
        ts_sampler_apply(rows->of[k], p->x + at, p->out + at, hist, p->saved ? p->saved + at : NULL,
                         p->noise ? p->noise + at : NULL, p->elements);
    }
}

static ts_code evaluate(ts_patch *p, int i) {
    ts_run *run = p->run;
    const ts_sampler_row *row = &run->plan->row[i];
    const unsigned number = (unsigned)i + 1;
    const bool fresh = i <= run->warmup;
    ts_evaluation ev = {.number = number, .fresh = fresh};
    ev.next_displaced = i + 1 < run->plan->rows && i + 1 > run->warmup;
    ts_program_stats before, after;
    ts_program_get_stats(p->program, &before);
    picture_rows rows;
    ts_code rc = choose_rows(p, i, &rows);
    if (rc) return rc;
    fill_inputs(p, &rows);
    rc = ts_program_run(p->program, p->transport, p->index, ev, &run->error[p->rank]);
    if (!rc) rc = ts_patch_predict(p, number);
    if (rc) return rc;
    if (row->x_from_noise != 0) ts_patch_draw_noise(p);
    apply_rows(p, &rows);
    ts_patch_keep_unmasked(p, i);
    if (run->job->trace) trace(p, i);
    ts_patch_check_finite(p, i + 1);
    if (p->transport) p->transport->ops->finished(p->transport, p->index, number);
    ts_program_get_stats(p->program, &after);
    ts_job_stats *stats = &run->job->stats;
    if (p->rank == 0 && fresh && !run->unet->key.naive) stats->synchronous++;
    stats->flops[p->rank] += fresh ? after.flops_fresh : after.flops_displaced;
    stats->sent_bytes[p->rank] += after.sent_bytes - before.sent_bytes;
    /* A steady evaluation is an asynchronous one that another follows; where there are none, any. */
    if ((!fresh && ev.next_displaced) || run->warmup >= run->plan->rows)
        stats->sent_steady[p->rank] = after.sent_bytes - before.sent_bytes;
    return TS_OK;
}

static void abort_link(ts_link *l) {
    if (l->transport) l->transport->ops->abort(l->transport);
}

/* Peers that wait for this rank must not wait for ever. */
static void abort_all(ts_run *run) {
    for (int i = 0; i < 2; i++)
        if (run->unet->branch[i]) run->unet->branch[i]->ops->abort(run->unet->branch[i]);
    for (int i = 0; i < run->ranks; i++) {
        abort_link(&run->unet->noise[i]);
        abort_link(&run->unet->sums[i]);
    }
}

static ts_code leg(ts_patch *p) {
    ts_run *run = p->run;
    ts_code rc = begin(p);
    for (int i = run->next; i < run->plan->rows && !rc; i++) {
        rc = wait_for_peers(p, (unsigned)i);
        if (rc || i >= atomic_load(&run->end)) break;
        if (!ts_run_alive(run)) return ts_fail(&run->error[p->rank], TS_ECANCELLED, "cancelled");
        consider_shrinking(p, i);
        rc = evaluate(p, i);
        if (!rc && p->rank == 0 && run->job->on_step)
            run->job->on_step(run->job->arg, i + 1, run->plan->rows);
    }
    return rc;
}

void ts_denoise_rank(void *arg, ts_rank *rank) {
    ts_run *run = arg;
    const int r = rank->index;
    ts_code rc = run->patch[r] ? TS_OK : ts_patch_new(run, r, &run->patch[r]);
    if (!rc) rc = leg(run->patch[r]);
    if (rc)
        abort_all(run);
    else if (atomic_load(&run->end) == run->plan->rows)
        ts_patch_give(run->patch[r]);
    run->code[r] = rc;
    if (!run->patch[r]) return;
    ts_program_stats s;
    ts_program_get_stats(run->unet->program[r], &s);
    ts_job_stats *stats = &run->job->stats;
    stats->wait_s[r] += ts_seconds(s.wait_ns + run->patch[r]->wait_ns);
    stats->flops[r] += s.flops_once;
    if (s.arena_bytes + s.inbox_bytes > stats->arena_bytes[r])
        stats->arena_bytes[r] = s.arena_bytes + s.inbox_bytes;
}
