/* Denoising: what one rank does for a job. (PCPP, arXiv 2412.02962; the steps in docs/ARCHITECTURE.md.) */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "engine/guidance.h"
#include "engine/run.h"

/* A smaller batch is worth compiling only for this many evaluations at least. */
#define WORTH_SHRINKING 3

/* A rank's own rows of everything the sampler touches; one allocation a job. */
struct ts_patch {
    ts_run *run;
    ts_program *program;
    ts_transport *transport; /* between the patches of the branch, or NULL */
    int rank, branch, index;
    int row, rows;   /* of the latent */
    size_t elements; /* of one picture's rows */
    float *memory;
    float *x, *out, *saved, *hist[TS_SAMPLER_HISTORY];
    float *kept; /* one picture's rows, of what a mask keeps */
    /* Where the sampler draws noise: every rank draws all of a picture's and keeps its rows, so that nothing
     * need be sent and the picture is the same on any number of ranks. */
    float *noise, *drawn;
    ts_rng *rng;      /* by picture of the job */
    uint64_t wait_ns; /* for peers, beside what the program waits */
};

bool ts_run_picture_over(ts_run *run, int k) {
    return atomic_load(&run->job->pictures[k].cancelled) || atomic_load(&run->bad_step[k]);
}

/* Pictures of the leg's batch that still want work. */
static int alive(ts_run *run) {
    int n = 0;
    for (int k = 0; k < run->count; k++) n += !ts_run_picture_over(run, run->picture[k]);
    return n;
}

/* ---- the patch ---- */

/* to = scale * this rank's rows of a picture's noise, from channels first to channels last. */
static void take_rows(const ts_patch *p, float scale, const float *picture, float *to) {
    const ts_run *run = p->run;
    const size_t w = (size_t)run->latent_w, c = (size_t)run->channels, plane = (size_t)run->latent_h * w;
    const float *from = picture + (size_t)p->row * w;
    for (size_t i = 0; i < (size_t)p->rows * w; i++)
        for (size_t j = 0; j < c; j++) to[i * c + j] = scale * from[j * plane + i];
}

/* Where this rank's rows of picture k of the job begin in an array of whole pictures with c channels. */
static size_t own_rows(const ts_patch *p, int k, int c) {
    const ts_run *run = p->run;
    return ((size_t)k * (size_t)run->latent_h + (size_t)p->row) * (size_t)run->latent_w * (size_t)c;
}

/* to = signal * this rank's rows of the picture that job picture k changes + noise * its starting noise. */
static void take_noisy(const ts_patch *p, int k, float signal, float noise, float *to) {
    const ts_run *run = p->run;
    take_rows(p, noise, run->noise + (size_t)k * ts_run_elements(run), to);
    const float *image = run->image ? run->image + own_rows(p, k, run->channels) : NULL;
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
static void keep_unmasked(ts_patch *p, int i) {
    const ts_run *run = p->run;
    if (!run->mask || run->told) return;
    const ts_sampler_row *next = i + 1 < run->plan->rows ? &run->plan->row[i + 1] : NULL;
    const size_t c = (size_t)run->channels;
    for (int k = 0; k < run->count; k++) {
        const float *mask = run->mask + own_rows(p, run->picture[k], 1);
        float *x = p->x + (size_t)k * p->elements;
        take_noisy(p, run->picture[k], next ? next->signal : 1, next ? next->noise : 0, p->kept);
        for (size_t j = 0; j < p->elements; j++) x[j] = (1 - mask[j / c]) * p->kept[j] + mask[j / c] * x[j];
    }
}

/* Fresh noise of each picture of the leg, from its own generator. */
static void draw_noise(ts_patch *p) {
    const ts_run *run = p->run;
    for (int k = 0; k < run->count; k++) {
        ts_rng_randn(&p->rng[run->picture[k]], p->drawn, ts_run_elements(run));
        take_rows(p, 1, p->drawn, p->noise + (size_t)k * p->elements);
    }
}

static void patch_free(ts_patch *p) {
    if (!p) return;
    free(p->memory);
    free(p->drawn);
    free(p->rng);
    free(p);
}

static ts_code patch_new(ts_run *run, int rank, ts_patch **ret) {
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
        patch_free(p);
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

void ts_denoise_free(ts_run *run) {
    for (int i = 0; i < run->ranks; i++) {
        patch_free(run->patch[i]);
        run->patch[i] = NULL;
    }
}

/* Moves the pictures that stay to the front: picture k of the smaller batch was old[k]. */
static void keep_pictures(ts_patch *p, const int *old, int count) {
    float *const buffers[] = {p->x, p->saved, p->hist[0], p->hist[1], p->hist[2]};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        for (int k = 0; buffers[i] && k < count; k++)
            memmove(buffers[i] + (size_t)k * p->elements, buffers[i] + (size_t)old[k] * p->elements,
                    p->elements * sizeof(float));
}

void ts_denoise_shrink(ts_run *run, ts_plan *plan, const int *keep, int count) {
    int image[2 * TS_MAX_BATCH];
    for (int k = 0; k < count; k++) run->picture[k] = run->picture[keep[k]];
    /* A program runs the unconditional images before the conditional ones, or the images of one branch. */
    for (int i = 0; i < plan->key.batch; i++) image[i] = i < count ? keep[i] : run->count + keep[i - count];
    for (int r = 0; r < run->ranks; r++) {
        keep_pictures(run->patch[r], keep, count);
        ts_program_adopt(plan->program[r], run->unet->program[r], image);
    }
    run->count = count;
    run->unet = plan;
}

/* ---- a leg ---- */

/* Images that this rank's program runs side by side, as indices into run->text. */
static int images(const ts_patch *p, int ret[2 * TS_MAX_BATCH]) {
    const ts_run *run = p->run;
    const bool guided = run->job->shape.guided, split = run->layout.branches == 2;
    int n = 0;
    if (guided && (!split || p->branch == 0))
        for (int k = 0; k < run->count; k++) ret[n++] = run->picture[k];
    if (!guided || !split || p->branch == 1)
        for (int k = 0; k < run->count; k++) ret[n++] = run->picture[k] + (guided ? run->job->count : 0);
    return n;
}

/* What stays the same for the whole job: the text, and what is computed from it once. */
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
    return ts_program_run_once(p->program, &run->error[p->rank]);
}

/* The U-Net's input where it is told of the mask: latent, mask, latent of what is kept. */
static void fill_told(const ts_patch *p, const ts_sampler_row *row, int k, float *sample) {
    const ts_run *run = p->run;
    const size_t c = (size_t)run->channels;
    const float *x = p->x + (size_t)k * p->elements, *mask = run->mask + own_rows(p, run->picture[k], 1);
    const float *masked = run->masked + own_rows(p, run->picture[k], run->channels);
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

/* Sends to peer `to` of the link what this rank, `me` there, has. */
static ts_code send(ts_patch *p, ts_link *l, int me, int to, unsigned number, const void *source) {
    p->run->job->stats.sent_bytes[p->rank] += l->exchange.to[to].run_bytes;
    return l->transport->ops->post(l->transport, me, to, 0, number, source, 0);
}

/* What peer `from` has sent in this evaluation, in the inbox. */
static ts_code receive(ts_patch *p, ts_link *l, int me, int from, unsigned number, const void **ret) {
    const uint64_t t0 = ts_now_ns();
    ts_code rc = l->transport->ops->wait(l->transport, me, from, 0, number);
    p->wait_ns += ts_now_ns() - t0;
    *ret = l->inbox + l->exchange.from[from].offset[number & 1];
    return rc;
}

/* Twice in an evaluation the patches may add something up: the first is posted as number
 * FIRST_SUM(evaluation), which the transport takes for an evaluation of its own. */
#define FIRST_SUM(number)  (2 * (number))
#define SECOND_SUM(number) (2 * (number) + 1)

/* Adds up, for each picture of the leg, what each patch has of it. Always in the order of the patches: all
 * ranks get the same, whichever branch they are of. Naive patches keep their own. */
static ts_code add_up(ts_patch *p, unsigned number, ts_sums *sums) {
    ts_run *run = p->run;
    ts_link *l = &run->unet->sums[p->rank];
    if (!l->transport) return TS_OK;
    ts_sums total = {0};
    ts_code rc = TS_OK;
    for (int j = 0; j < run->layout.patches && !rc; j++)
        if (j != p->index) rc = send(p, l, p->index, j, number, sums);
    for (int j = 0; j < run->layout.patches && !rc; j++) {
        const void *found = sums;
        if (j != p->index) rc = receive(p, l, p->index, j, number, &found);
        for (int k = 0; k < run->count && !rc; k++)
            for (int i = 0; i < TS_PICTURE_SUMS; i++) total.of[k][i] += ((const ts_sums *)found)->of[k][i];
    }
    if (rc) return ts_fail(&run->error[p->rank], rc, "adding up over the patches");
    *sums = total;
    return TS_OK;
}

/* Of the picture at place k of the leg. */
static const ts_picture_params *params_of(const ts_run *run, int k) {
    return &run->job->pictures[run->picture[k]].params;
}

/* Whether the picture at place k has its prediction guided in evaluation `number`, from 1. The evaluations of
 * a step stay together. */
static bool guided(const ts_run *run, int k, unsigned number) {
    const int of_step = run->job->shape.sampler->evaluations;
    return ts_guidance_acts(params_of(run, k)->guidance_interval, ((int)number - 1) / of_step,
                            (run->plan->rows + of_step - 1) / of_step);
}

/* Brings p->out to the spread of cond, where pictures ask for it. */
static ts_code rescale(ts_patch *p, unsigned number, const float *cond) {
    ts_run *run = p->run;
    ts_sums sums = {0};
    bool wanted = false;
    for (int k = 0; k < run->count; k++) {
        if (params_of(run, k)->guidance_rescale == 0 || !guided(run, k, number)) continue;
        const size_t at = (size_t)k * p->elements;
        const ts_guidance_sums s = ts_guidance_sum(cond + at, p->out + at, p->elements);
        memcpy(sums.of[k], &s, sizeof s);
        wanted = true;
    }
    if (!wanted) return TS_OK;
    ts_code rc = add_up(p, SECOND_SUM(number), &sums);
    if (rc) return rc;
    const size_t n = run->unet->key.naive ? p->elements : ts_run_elements(run);
    for (int k = 0; k < run->count; k++) {
        if (params_of(run, k)->guidance_rescale == 0 || !guided(run, k, number)) continue;
        ts_guidance_sums s;
        memcpy(&s, sums.of[k], sizeof s);
        const float factor = ts_guidance_factor(params_of(run, k)->guidance_rescale, &s, n);
        float *out = p->out + (size_t)k * p->elements;
        for (size_t i = 0; i < p->elements; i++) out[i] *= factor;
    }
    return TS_OK;
}

/* p->out = the prediction that the sampler gets: guided where the job is. */
static ts_code collect(ts_patch *p, unsigned number) {
    ts_run *run = p->run;
    const size_t all = p->elements * (size_t)run->count;
    const float *own = ts_program_tensor(p->program, "out", NULL);
    const float *uncond = own, *cond = own + all;
    if (!run->job->shape.guided) {
        memcpy(p->out, own, all * sizeof *own);
        return TS_OK;
    }
    if (run->layout.branches == 2) {
        ts_link *l = &run->unet->noise[p->rank];
        const int me = p->branch, peer = !me;
        const void *other = NULL;
        ts_code rc = send(p, l, me, peer, number, own);
        if (!rc) rc = receive(p, l, me, peer, number, &other);
        if (rc) return ts_fail(&run->error[p->rank], rc, "exchanging the guidance branches");
        uncond = me == 0 ? own : other;
        cond = me == 0 ? other : own;
    }
    for (int k = 0; k < run->count; k++) {
        const size_t at = (size_t)k * p->elements;
        if (guided(run, k, number))
            ts_guide((float)params_of(run, k)->guidance_scale, uncond + at, cond + at, p->out + at,
                     p->elements);
        else
            memcpy(p->out + at, cond + at, p->elements * sizeof *cond);
    }
    return rescale(p, number, cond);
}

/* A latent that has left the finite numbers fails its picture, not the others of the batch. */
static void check_finite(ts_patch *p, int evaluation) {
    for (int k = 0; k < p->run->count; k++) {
        const float *x = p->x + (size_t)k * p->elements;
        float sum = 0; /* stays zero unless something in it is not finite: 0 * inf and 0 * nan are nan */
        for (size_t i = 0; i < p->elements; i++) sum += 0.0f * x[i];
        if (sum == 0) continue;
        int none = 0;
        atomic_compare_exchange_strong(&p->run->bad_step[p->run->picture[k]], &none, evaluation);
    }
}

static ts_code wait_for_peers(ts_patch *p, unsigned number) {
    for (int j = 0; p->transport && j < p->run->layout.patches; j++) {
        if (j == p->index) continue;
        ts_code rc = p->transport->ops->wait_finished(p->transport, p->index, j, number);
        if (rc) return ts_fail(&p->run->error[p->rank], rc, "waiting for rank %d", j);
    }
    return TS_OK;
}

/* Rank 0, before its evaluation i: ends the leg if the batch has become too large. Nobody can begin i + 2
 * before rank 0 has finished i + 1, so all ranks see the end in time. Naive ranks do not wait for each other.
 */
static void consider_shrinking(ts_patch *p, int i) {
    ts_run *run = p->run;
    if (p->rank != 0 || atomic_load(&run->stop_at) != INT_MAX || run->plan->rows - i < 2 + WORTH_SHRINKING)
        return;
    if (run->unet->key.naive || alive(run) == run->count) return;
    atomic_store(&run->stop_at, i + 2);
}

/* This rank's part of what a trace keeps of evaluation i. */
static void trace(const ts_patch *p, int i) {
    const ts_run *run = p->run;
    ts_trace *t = run->job->trace;
    int image[2 * TS_MAX_BATCH], n = i == 0 ? images(p, image) : 0;
    const float *predicted = ts_program_tensor(p->program, "out", NULL);
    for (int k = 0; k < n; k++)
        memcpy(t->prediction + own_rows(p, image[k], run->channels), predicted + (size_t)k * p->elements,
               p->elements * sizeof *predicted);
    if (!p->branch) memcpy(t->latents + own_rows(p, i, run->channels), p->x, p->elements * sizeof *p->x);
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
    ts_code rc = add_up(p, FIRST_SUM((unsigned)i + 1), &sums);
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
    if (!rc) rc = collect(p, number);
    if (rc) return rc;
    if (row->x_from_noise != 0) draw_noise(p);
    apply_rows(p, &rows);
    keep_unmasked(p, i);
    if (run->job->trace) trace(p, i);
    check_finite(p, i + 1);
    if (p->transport) p->transport->ops->finished(p->transport, p->index, number);
    ts_program_get_stats(p->program, &after);
    ts_job_stats *stats = &run->job->stats;
    stats->flops[p->rank] += fresh ? after.flops_fresh : after.flops_displaced;
    stats->sent_bytes[p->rank] += after.sent_bytes - before.sent_bytes;
    /* A steady evaluation is an asynchronous one that another follows; where there are none, any. */
    if ((!fresh && ev.next_displaced) || run->warmup >= run->plan->rows)
        stats->sent_steady[p->rank] = after.sent_bytes - before.sent_bytes;
    return TS_OK;
}

static void give_latents(const ts_patch *p) {
    ts_run *run = p->run;
    const size_t row = (size_t)run->latent_w * (size_t)run->channels, picture = (size_t)run->latent_h * row;
    if (p->branch) return; /* both branches hold the same */
    for (int k = 0; k < run->count; k++)
        memcpy(run->latents + (size_t)run->picture[k] * picture + (size_t)p->row * row,
               p->x + (size_t)k * p->elements, p->elements * sizeof *p->x);
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
        if (rc || i >= atomic_load(&run->stop_at)) break;
        if (!alive(run)) return ts_fail(&run->error[p->rank], TS_ECANCELLED, "cancelled");
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
    ts_code rc = run->patch[r] ? TS_OK : patch_new(run, r, &run->patch[r]);
    if (!rc) rc = leg(run->patch[r]);
    if (rc)
        abort_all(run);
    else if (atomic_load(&run->stop_at) == INT_MAX)
        give_latents(run->patch[r]);
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
