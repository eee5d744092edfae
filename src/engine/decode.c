/* Decoding a latent to pixels on all ranks: fresh halos and statistics, gathered keys, so that the picture is
 * the one that one device makes. */
#include <math.h>
#include <string.h>
#include "engine/run.h"

typedef struct decoding {
    ts_run *run;
    ts_plan *plan;
    int picture;
    unsigned char *pixels;
    ts_code code[TS_MAX_RANKS];
    ts_error error[TS_MAX_RANKS];
} decoding;

/* -1..1 to 0..255, as diffusers rounds: half to even, after clamping. */
static unsigned char to_byte(float x) {
    float v = x * 0.5f + 0.5f;
    v = v > 0 ? v : 0; /* a NaN becomes 0 here; the latent was checked before */
    v = v < 1 ? v : 1;
    return (unsigned char)rintf(v * 255.0f);
}

static void decode_rank(void *arg, ts_rank *rank) {
    decoding *d = arg;
    const ts_run *run = d->run;
    ts_program *p = d->plan->program[rank->index];
    const ts_rows *rows = &d->plan->layout.rows;
    const size_t row = (size_t)run->latent_w * (size_t)run->channels;
    const float *latent =
        run->latents + ((size_t)d->picture * (size_t)run->latent_h + (size_t)rows->bound[rank->index]) * row;
    memcpy(ts_program_tensor(p, "latent", NULL), latent,
           (size_t)ts_rows_of(rows, rank->index) * row * sizeof *latent);
    ts_transport *t = d->plan->branch[0];
    ts_code rc = ts_program_run(p, t, rank->index, (ts_evaluation){.number = 1, .fresh = true},
                                &d->error[rank->index]);
    d->code[rank->index] = rc;
    if (rc) {
        if (t) t->ops->abort(t);
        return;
    }
    ts_view v;
    const float *from = ts_program_tensor(p, "pixels", &v);
    const size_t n = ts_view_tokens(&v) * 3, scale = (size_t)ts_model_scale(run->model);
    unsigned char *to = d->pixels + (size_t)rows->bound[rank->index] * scale * (size_t)v.w * 3;
    for (size_t i = 0; i < n; i++) to[i] = to_byte(from[i]);
}

ts_code ts_decode_plan(const ts_run *run, ts_plan **ret, ts_error *e) {
    ts_layout layout = {.branches = 1};
    layout.patches = ts_rows_split(run->latent_h, 0, run->ranks, &layout.rows);
    ts_plan_key key = {.kind = TS_PLAN_DECODER,
                       .model = run->model,
                       .width = run->latent_w,
                       .height = run->latent_h,
                       .batch = 1,
                       .dtype = run->job->shape.dtype,
                       .patches = layout.patches,
                       .branches = 1};
    return ts_plan_get(run->group, &key, &layout, ret, e);
}

ts_code ts_decode(ts_run *run, int picture, unsigned char *pixels, ts_error *e) {
    decoding d = {.run = run, .picture = picture, .pixels = pixels};
    ts_code rc = ts_decode_plan(run, &d.plan, e);
    if (rc) return rc;
    const int patches = d.plan->layout.patches;
    if (d.plan->branch[0]) d.plan->branch[0]->ops->reset(d.plan->branch[0], 0);
    for (int i = 0; i < patches; i++) ts_program_reset_stats(d.plan->program[i]);
    ts_group_each(run->group, patches, decode_rank, &d);
    for (int i = 0; i < patches; i++) {
        ts_program_stats s;
        ts_program_get_stats(d.plan->program[i], &s);
        run->job->stats.wait_s[i] += (double)s.wait_ns * 1e-9;
        run->job->stats.sent_bytes[i] += s.sent_bytes;
        run->job->stats.flops[i] += s.flops_fresh;
    }
    /* A rank that failed makes the others stop with TS_ECANCELLED: the cause is the code that is not that. */
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < patches; i++) {
            if (!d.code[i] || (pass == 0 && d.code[i] == TS_ECANCELLED)) continue;
            if (e) *e = d.error[i];
            return d.code[i];
        }
    return TS_OK;
}
