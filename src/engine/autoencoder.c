/* Between pixels and latents, on all ranks: fresh halos and statistics, gathered keys, so that the result is
 * the one that one device makes. */
#include <math.h>
#include <string.h>
#include "base/clock.h"
#include "engine/run.h"

/* One pass of a program of the autoencoder. Both sides are whole pictures, channels last. */
typedef struct pass {
    ts_run *run;
    ts_plan *plan;
    const float *input;
    const char *input_name, *output_name;
    const ts_vae_config *latents; /* of which the input is, or NULL */
    /* Takes a rank's rows of the output: n values, the first of which is value `at` of the whole. */
    void (*give)(void *to, size_t at, const float *from, size_t n);
    void *to;
    ts_code code[TS_MAX_RANKS];
    ts_error error[TS_MAX_RANKS];
} pass;

static void run_rank(void *arg, ts_rank *rank) {
    pass *a = arg;
    const int r = rank->index;
    ts_program *p = a->plan->program[r];
    const ts_rows *rows = &a->plan->layout.rows;
    ts_view in, out;
    float *input = ts_program_tensor(p, a->input_name, &in);
    const size_t row = (size_t)in.w * (size_t)in.c, first = (size_t)rows->bound[r];
    memcpy(input, a->input + first * row, (size_t)in.h * row * sizeof *input);
    if (a->latents) ts_vae_denormalise(a->latents, input, ts_view_tokens(&in));
    ts_transport *t = a->plan->branch[0];
    ts_code rc = ts_program_run(p, t, r, (ts_evaluation){.number = 1, .fresh = true}, &a->error[r]);
    a->code[r] = rc;
    if (rc) {
        if (t) t->ops->abort(t);
        return;
    }
    const float *output = ts_program_tensor(p, a->output_name, &out);
    /* Rows come out in the proportion in which they went in, here and in the ranks before this one. */
    const size_t before = first * (size_t)out.h / (size_t)in.h;
    a->give(a->to, before * (size_t)out.w * (size_t)out.c, output, ts_view_tokens(&out) * (size_t)out.c);
}

static ts_code run_pass(pass *a, ts_error *e) {
    ts_run *run = a->run;
    const int patches = a->plan->layout.patches;
    if (a->plan->branch[0]) a->plan->branch[0]->ops->reset(a->plan->branch[0], 0);
    for (int i = 0; i < patches; i++) ts_program_reset_stats(a->plan->program[i]);
    ts_group_each(run->group, patches, run_rank, a);
    for (int i = 0; i < patches; i++) {
        ts_program_stats s;
        ts_program_get_stats(a->plan->program[i], &s);
        run->job->stats.wait_s[i] += (double)s.wait_ns * 1e-9;
        run->job->stats.sent_bytes[i] += s.sent_bytes;
        run->job->stats.flops[i] += s.flops_fresh;
    }
    /* A rank that failed makes the others stop with TS_ECANCELLED: the cause is the code that is not that. */
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < patches; i++) {
            if (!a->code[i] || (round == 0 && a->code[i] == TS_ECANCELLED)) continue;
            if (e) *e = a->error[i];
            return a->code[i];
        }
    return TS_OK;
}

/* scale: rows and columns of the program's input for each of the latent. */
static ts_code plan_for(const ts_run *run, ts_plan_kind kind, int scale, ts_plan **ret, ts_error *e) {
    ts_layout layout = {.branches = 1};
    layout.patches = ts_rows_split(run->latent_h, 0, run->ranks, &layout.rows);
    for (int i = 1; i <= layout.patches; i++) layout.rows.bound[i] *= scale;
    ts_plan_key key = {.kind = kind,
                       .model = ts_model_owner(run->model, run->model->vae_weights),
                       .width = run->latent_w * scale,
                       .height = run->latent_h * scale,
                       .batch = 1,
                       .dtype = run->job->shape.dtype,
                       .patches = layout.patches,
                       .branches = 1};
    const uint64_t begin = ts_now_ns();
    ts_code rc = ts_plan_get(run->group, &key, &layout, ret, e);
    run->job->stats.compile_s += ts_seconds(ts_now_ns() - begin);
    return rc;
}

ts_code ts_decode_plan(const ts_run *run, ts_plan **ret, ts_error *e) {
    return plan_for(run, TS_PLAN_DECODER, 1, ret, e);
}
ts_code ts_encode_plan(const ts_run *run, ts_plan **ret, ts_error *e) {
    return plan_for(run, TS_PLAN_ENCODER, ts_model_scale(run->model), ret, e);
}

/* -1..1 to 0..255, as diffusers rounds: half to even, after clamping. */
static unsigned char to_byte(float x) {
    float v = x * 0.5f + 0.5f;
    v = v > 0 ? v : 0;
    v = v < 1 ? v : 1;
    return (unsigned char)rintf(v * 255.0f);
}

typedef struct decoded {
    unsigned char *pixels;
    atomic_bool nan; /* some value is none */
} decoded;

static void give_pixels(void *to, size_t at, const float *from, size_t n) {
    decoded *d = to;
    bool nan = false;
    for (size_t i = 0; i < n; i++) {
        d->pixels[at + i] = to_byte(from[i]);
        nan |= isnan(from[i]);
    }
    if (nan) atomic_store(&d->nan, true);
}

ts_code ts_decode(ts_run *run, int k, unsigned char *pixels, ts_error *e) {
    decoded d = {.pixels = pixels};
    pass a = {.run = run,
              .input = run->latents + (size_t)k * ts_run_elements(run),
              .input_name = "latent",
              .latents = &run->model->vae,
              .output_name = "pixels",
              .give = give_pixels,
              .to = &d};
    ts_code rc = ts_decode_plan(run, &a.plan, e);
    if (!rc) rc = run_pass(&a, e);
    if (!rc && atomic_load(&d.nan))
        rc = ts_fail(e, TS_ENONFINITE, "the decoded picture has values that are no numbers");
    return rc;
}

static void give_moments(void *to, size_t at, const float *from, size_t n) {
    memcpy((float *)to + at, from, n * sizeof *from);
}

ts_code ts_encode(ts_run *run, const float *pixels, float *moments, ts_error *e) {
    pass a = {.run = run,
              .input = pixels,
              .input_name = "pixels",
              .output_name = "moments",
              .give = give_moments,
              .to = moments};
    ts_code rc = ts_encode_plan(run, &a.plan, e);
    return rc ? rc : run_pass(&a, e);
}
