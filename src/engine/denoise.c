/* Denoising: what one rank does for a job. (PCPP, arXiv 2412.02962; the steps in docs/ARCHITECTURE.md.) */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "engine/run.h"

/* A rank's own rows of everything the sampler touches; one allocation a job. */
typedef struct patch {
    ts_run *run;
    ts_program *program;
    ts_transport *transport; /* between the patches of the branch, or NULL */
    int rank, branch, index;
    int row, rows;   /* of the latent */
    size_t elements; /* of one picture's rows */
    float *memory;
    float *x, *out, *saved, *hist[TS_SAMPLER_HISTORY];
    float *other; /* the other branch's prediction */
    uint64_t noise_wait_ns;
} patch;

bool ts_run_picture_over(ts_run *run, int k) {
    return atomic_load(&run->job->pictures[k].cancelled) || atomic_load(&run->bad_step[k]);
}

static bool all_over(ts_run *run) {
    for (int k = 0; k < run->job->count; k++)
        if (!ts_run_picture_over(run, k)) return false;
    return true;
}

static ts_code patch_open(patch *p, ts_run *run, const ts_rank *rank) {
    const ts_layout *l = &run->layout;
    *p = (patch){.run = run,
                 .rank = rank->index,
                 .branch = rank->index / l->patches,
                 .index = rank->index % l->patches,
                 .program = run->unet->program[rank->index]};
    p->transport = run->unet->branch[p->branch];
    p->row = l->rows.bound[p->index];
    p->rows = ts_rows_of(&l->rows, p->index);
    p->elements = (size_t)p->rows * (size_t)run->latent_w * (size_t)run->channels;
    const size_t n = p->elements * (size_t)run->job->count;
    const int buffers = 3 + run->plan->history + run->plan->saves_x;
    p->memory = ts_array0(float, n *(size_t)buffers);
    if (!p->memory) return ts_fail(&run->error[p->rank], TS_ENOMEM, "starting a job");
    float *at = p->memory;
    p->x = at;
    p->out = at += n;
    p->other = at += n;
    for (int i = 0; i < run->plan->history; i++) p->hist[i] = at += n;
    if (run->plan->saves_x) p->saved = at + n;
    return TS_OK;
}

/* x = init_scale * noise: this rank's rows, from channels first to channels last. */
static void take_noise(patch *p) {
    const ts_run *run = p->run;
    const int w = run->latent_w, c = run->channels;
    const size_t plane = (size_t)run->latent_h * (size_t)w;
    for (int k = 0; k < run->job->count; k++) {
        const float *from = run->noise + (size_t)k * plane * (size_t)c + (size_t)p->row * (size_t)w;
        float *to = p->x + (size_t)k * p->elements;
        for (size_t i = 0; i < (size_t)p->rows * (size_t)w; i++)
            for (int j = 0; j < c; j++)
                to[i * (size_t)c + (size_t)j] = run->plan->init_scale * from[(size_t)j * plane + i];
    }
}

/* Images that this rank's program runs side by side: [first, first + batch) of the job's. */
static int images(const patch *p, int *ret_first) {
    const ts_job *job = p->run->job;
    *ret_first = p->run->layout.branches == 2 ? p->branch * job->count : 0;
    return job->shape.guided && p->run->layout.branches == 1 ? 2 * job->count : job->count;
}

/* What stays the same for the whole job: the text, and what is computed from it once. */
static ts_code begin(patch *p) {
    ts_run *run = p->run;
    int first, n = images(p, &first);
    ts_view v;
    float *text = ts_program_tensor(p->program, "text", &v);
    memcpy(text, run->text + (size_t)first * v.pitch, (size_t)n * v.pitch * sizeof *text);
    if (run->model->xl) {
        float *pooled = ts_program_tensor(p->program, "pooled", &v);
        memcpy(pooled, run->pooled + (size_t)first * v.pitch, (size_t)n * v.pitch * sizeof *pooled);
        float *ids = ts_program_tensor(p->program, "time_ids", NULL);
        for (int i = 0; i < n; i++) memcpy(ids + 6 * i, run->time_ids, sizeof run->time_ids);
    }
    take_noise(p);
    return ts_program_run_once(p->program, &run->error[p->rank]);
}

static void fill_inputs(patch *p, const ts_sampler_row *row) {
    int first, n = images(p, &first);
    const size_t all = p->elements * (size_t)p->run->job->count;
    float *sample = ts_program_tensor(p->program, "sample", NULL);
    float *t = ts_program_tensor(p->program, "timestep", NULL);
    for (size_t i = 0; i < all; i++) sample[i] = row->c_in * p->x[i];
    if (n > p->run->job->count) memcpy(sample + all, sample, all * sizeof *sample);
    for (int i = 0; i < n; i++) t[i] = (float)row->timestep;
}

/* p->out = the prediction that the sampler gets: guided where the job is (Ho & Salimans 2022, arXiv
 * 2207.12598). */
static ts_code collect(patch *p, unsigned number) {
    ts_run *run = p->run;
    const ts_job *job = run->job;
    const size_t all = p->elements * (size_t)job->count;
    const float *own = ts_program_tensor(p->program, "out", NULL);
    const float *uncond = own, *cond = own + all;
    if (!job->shape.guided) {
        memcpy(p->out, own, all * sizeof *own);
        return TS_OK;
    }
    if (run->layout.branches == 2) {
        ts_transport *t = run->unet->noise[p->rank];
        const int me = p->branch, peer = !me;
        ts_code rc = t->ops->post(t, me, peer, 0, number, own, 0);
        uint64_t t0 = ts_now_ns();
        if (!rc) rc = t->ops->wait(t, me, peer, 0, number);
        p->noise_wait_ns += ts_now_ns() - t0;
        if (rc) return ts_fail(&run->error[p->rank], rc, "exchanging the guidance branches");
        const ts_slot *slot = &run->unet->noise_exchange[p->rank].from[peer];
        memcpy(p->other, run->unet->noise_inbox[p->rank] + slot->offset[number & 1], all * sizeof *own);
        uncond = me == 0 ? own : p->other;
        cond = me == 0 ? p->other : own;
    }
    for (int k = 0; k < job->count; k++) {
        const float g = (float)job->pictures[k].guidance_scale;
        const size_t at = (size_t)k * p->elements;
        for (size_t i = at; i < at + p->elements; i++) p->out[i] = uncond[i] + g * (cond[i] - uncond[i]);
    }
    return TS_OK;
}

/* A latent that has left the finite numbers fails its picture, not the others of the batch. */
static void check_finite(patch *p, int evaluation) {
    for (int k = 0; k < p->run->job->count; k++) {
        const float *x = p->x + (size_t)k * p->elements;
        float sum = 0; /* stays finite unless something in it is not: 0 * inf and 0 * nan are nan */
        for (size_t i = 0; i < p->elements; i++) sum += 0.0f * x[i];
        if (sum == 0) continue;
        int none = 0;
        atomic_compare_exchange_strong(&p->run->bad_step[k], &none, evaluation);
    }
}

static ts_code wait_for_peers(patch *p, unsigned number) {
    for (int j = 0; p->transport && j < p->run->layout.patches; j++) {
        if (j == p->index) continue;
        ts_code rc = p->transport->ops->wait_finished(p->transport, p->index, j, number);
        if (rc) return ts_fail(&p->run->error[p->rank], rc, "waiting for rank %d", j);
    }
    return TS_OK;
}

static ts_code evaluate(patch *p, int i) {
    ts_run *run = p->run;
    const ts_sampler_row *row = &run->plan->row[i];
    const unsigned number = (unsigned)i + 1;
    const bool fresh = i <= run->warmup;
    ts_evaluation ev = {.number = number, .fresh = fresh};
    ev.next_displaced = i + 1 < run->plan->rows && i + 1 > run->warmup;
    ts_program_stats before, after;
    ts_program_get_stats(p->program, &before);
    ts_code rc = wait_for_peers(p, number - 1);
    if (rc) return rc;
    fill_inputs(p, row);
    rc = ts_program_run(p->program, p->transport, p->index, ev, &run->error[p->rank]);
    if (!rc) rc = collect(p, number);
    if (rc) return rc;
    ts_sampler_apply(row, p->x, p->out, p->hist, p->saved, NULL, p->elements * (size_t)run->job->count);
    check_finite(p, i + 1);
    if (p->transport) p->transport->ops->finished(p->transport, p->index, number);
    ts_program_get_stats(p->program, &after);
    /* A steady evaluation is an asynchronous one that another follows; where there are none, any. */
    if ((!fresh && ev.next_displaced) || run->warmup >= run->plan->rows)
        run->job->stats.sent_steady[p->rank] = after.sent_bytes - before.sent_bytes;
    return TS_OK;
}

static void give_latents(const patch *p) {
    ts_run *run = p->run;
    const size_t picture = (size_t)run->latent_h * (size_t)run->latent_w * (size_t)run->channels;
    const size_t at = (size_t)p->row * (size_t)run->latent_w * (size_t)run->channels;
    if (p->branch) return; /* both branches hold the same */
    for (int k = 0; k < run->job->count; k++)
        memcpy(run->latents + (size_t)k * picture + at, p->x + (size_t)k * p->elements,
               p->elements * sizeof *p->x);
}

/* Peers that wait for this rank must not wait for ever. */
static void abort_all(ts_run *run) {
    for (int i = 0; i < 2; i++)
        if (run->unet->branch[i]) run->unet->branch[i]->ops->abort(run->unet->branch[i]);
    for (int i = 0; i < run->layout.patches; i++)
        if (run->unet->noise[i]) run->unet->noise[i]->ops->abort(run->unet->noise[i]);
}

void ts_denoise_rank(void *arg, ts_rank *rank) {
    ts_run *run = arg;
    patch p;
    ts_code rc = patch_open(&p, run, rank);
    ts_program_reset_stats(run->unet->program[rank->index]);
    if (!rc) rc = begin(&p);
    for (int i = 0; i < run->plan->rows && !rc; i++) {
        if (all_over(run))
            rc = ts_fail(&run->error[rank->index], TS_ECANCELLED, "cancelled");
        else
            rc = evaluate(&p, i);
        if (!rc && rank->index == 0 && run->job->on_step)
            run->job->on_step(run->job->arg, i + 1, run->plan->rows);
    }
    if (rc)
        abort_all(run);
    else
        give_latents(&p);
    ts_program_stats s;
    ts_program_get_stats(run->unet->program[rank->index], &s);
    ts_job_stats *stats = &run->job->stats;
    const int fresh = run->warmup < run->plan->rows ? run->warmup + 1 : run->plan->rows;
    stats->wait_s[rank->index] = ts_seconds(s.wait_ns + p.noise_wait_ns);
    stats->sent_bytes[rank->index] = s.sent_bytes;
    stats->arena_bytes[rank->index] = s.arena_bytes + s.inbox_bytes;
    stats->flops[rank->index] =
        s.flops_once + fresh * s.flops_fresh + (run->plan->rows - fresh) * s.flops_displaced;
    free(p.memory);
    run->code[rank->index] = rc;
}
