/* ts_group_run: one job from prompts to pictures. */
#include "engine/patch.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "engine/text.h"

static void run_layout(ts_run *run) {
    const ts_shape *s = &run->job->shape;
    const int scale = ts_model_scale(run->model);
    run->latent_h = s->height / scale;
    run->latent_w = s->width / scale;
    run->channels = run->model->vae.latent_channels;
    run->told = run->model->unet.in_channels > run->channels;
    run->layout = ts_layout_of(run->group, run->model, s);
    run->ranks = run->layout.patches * run->layout.branches;
    /* Nothing is ever stale with one patch, nor in sync mode; naive patches have no peers to be fresh from.
     */
    run->warmup = s->parallel.warmup;
    if (run->layout.patches == 1 || s->parallel.mode == TS_MODE_SYNC) run->warmup = INT_MAX - 1;
}

static size_t text_elements(const ts_run *run) {
    return (size_t)ts_shape_chunks(&run->job->shape) * (size_t)run->model->text[0].config.positions *
           (size_t)ts_model_text_width(run->model);
}

static ts_code allocate(ts_run *run, ts_error *e) {
    const ts_model *m = run->model;
    const int pictures = run->job->count;
    const size_t images = (size_t)pictures * (run->job->shape.guided ? 2 : 1);
    const size_t text = text_elements(run);
    run->noise = ts_array0(float, ts_run_elements(run) * (size_t)pictures);
    run->latents = ts_array0(float, ts_run_elements(run) * (size_t)pictures);
    run->text = ts_array0(float, images *text);
    run->pooled = ts_array0(float, images *(size_t)ts_model_pooled_width(m));
    run->rng = ts_array0(ts_rng, (size_t)pictures);
    if (!run->noise || !run->latents || !run->text || !run->pooled || !run->rng)
        return ts_fail(e, TS_ENOMEM, "starting a job");
    return TS_OK;
}

static ts_code make_trace(const ts_run *run, ts_error *e) {
    const ts_model *m = run->model;
    ts_trace *t = run->job->trace;
    if (run->job->count != 1) return ts_fail(e, TS_EINVAL, "a trace is of one picture");
    *t = (ts_trace){.images = run->job->shape.guided ? 2 : 1,
                    .tokens = ts_shape_chunks(&run->job->shape) * m->text[0].config.positions,
                    .text_width = ts_model_text_width(m),
                    .pooled_width = ts_model_pooled_width(m),
                    .channels = run->channels,
                    .height = run->latent_h,
                    .width = run->latent_w,
                    .evaluations = run->plan->rows};
    return ts_trace_make(t, e);
}

/* What is there before the first evaluation. */
static void trace_inputs(const ts_run *run) {
    ts_trace *t = run->job->trace;
    const size_t images = (size_t)t->images;
    memcpy(t->text, run->text, images * (size_t)t->tokens * (size_t)t->text_width * sizeof *t->text);
    memcpy(t->pooled, run->pooled, images * (size_t)t->pooled_width * sizeof *t->pooled);
    memcpy(t->noise, run->noise, ts_run_elements(run) * sizeof *t->noise);
}

static ts_code encode_texts(ts_run *run, ts_error *e) {
    const ts_model *m = run->model;
    const ts_job *job = run->job;
    const size_t text = text_elements(run);
    const int chunks = ts_shape_chunks(&job->shape);
    const size_t pooled = (size_t)ts_model_pooled_width(m);
    const int conditional = job->shape.guided ? job->count : 0;
    ts_code rc = TS_OK;
    for (int k = 0; k < job->count && !rc; k++) {
        const ts_picture *p = &job->pictures[k];
        const size_t u = (size_t)k, c = (size_t)(conditional + k);
        if (p->text_in && pooled) return ts_fail(e, TS_EUNSUPPORTED, "text_in for a model with pooled text");
        if (p->text_in) {
            const float *from = p->text_in;
            if (job->shape.guided) memcpy(run->text + u * text, from, text * sizeof *from), from += text;
            memcpy(run->text + c * text, from, text * sizeof *from);
            continue;
        }
        if (job->shape.guided)
            rc = ts_text_encode(run->group, m, job->shape.dtype, &p->params, true, chunks,
                                run->text + u * text, run->pooled + u * pooled, e);
        if (!rc)
            rc = ts_text_encode(run->group, m, job->shape.dtype, &p->params, false, chunks,
                                run->text + c * text, run->pooled + c * pooled, e);
    }
    return rc;
}

/* The order of diffusers. Both branches of guidance get the same. */
static void fill_time_ids(ts_run *run) {
    const ts_shape *shape = &run->job->shape;
    for (int k = 0; k < run->job->count; k++) {
        const ts_size_condition *s = &run->job->pictures[k].params.sizes;
        const bool original = s->original_width > 0, target = s->target_width > 0;
        const int ids[6] = {original ? s->original_height : shape->height,
                            original ? s->original_width : shape->width,
                            s->crop_top,
                            s->crop_left,
                            target ? s->target_height : shape->height,
                            target ? s->target_width : shape->width};
        for (int i = 0; i < 6; i++) run->time_ids[k][i] = (float)ids[i];
    }
}

static ts_code copy_latents(const ts_run *run, int k, ts_picture *picture, ts_error *e) {
    const size_t n = ts_run_elements(run), plane = n / (size_t)run->channels, c = (size_t)run->channels;
    const float *from = run->latents + (size_t)k * n;
    picture->latents_out = malloc(n * sizeof(float));
    if (!picture->latents_out) return ts_fail(e, TS_ENOMEM, "keeping the latent");
    for (size_t i = 0; i < plane; i++)
        for (size_t j = 0; j < c; j++) picture->latents_out[j * plane + i] = from[i * c + j];
    return TS_OK;
}

static ts_code make_picture(ts_run *run, int k, ts_picture *picture, ts_error *e) {
    const ts_shape *s = &run->job->shape;
    int bad = atomic_load(&run->bad_step[k]);
    if (atomic_load(&picture->cancelled)) return ts_fail(e, TS_ECANCELLED, "the picture was cancelled");
    if (bad)
        return ts_fail(e, TS_ENONFINITE, "the latent was no longer finite after evaluation %d of %d", bad,
                       run->plan->rows);
    if (run->job->keep_latents) {
        ts_code rc = copy_latents(run, k, picture, e);
        if (rc) return rc;
    }
    picture->rgb = malloc((size_t)s->width * (size_t)s->height * 3);
    if (!picture->rgb) return ts_fail(e, TS_ENOMEM, "a picture of %d x %d", s->width, s->height);
    ts_code rc = ts_decode(run, k, picture->rgb, e);
    /* The decoder may have been compiled since the last look. */
    return rc ? rc : ts_model_check(run->model, e);
}

static void give_picture(ts_run *run, int k, ts_code rc, const ts_error *error) {
    ts_picture *picture = &run->job->pictures[k];
    picture->error = (ts_error){.code = rc};
    if (rc) {
        picture->error = *error;
        picture->error.code = rc;
        free(picture->rgb);
        free(picture->latents_out);
        picture->rgb = NULL;
        picture->latents_out = NULL;
    }
    if (run->job->on_picture) run->job->on_picture(run->job->arg, picture);
    free(picture->rgb);
    free(picture->latents_out);
    picture->rgb = NULL;
    picture->latents_out = NULL;
}

static void write_profile(ts_run *run) {
    ts_buffer text;
    ts_buffer_init(&text, (size_t)1 << 22);
    if (ts_program_profile(run->unet->program[0], &text) == TS_OK)
        run->job->profile = ts_buffer_take(&text, NULL);
    ts_buffer_free(&text);
}

static ts_code prepare(ts_run *run, ts_error *e) {
    ts_job *job = run->job;
    if (job->count < 1 || job->count > TS_MAX_BATCH)
        return ts_fail(e, TS_EINVAL, "a job has 1 to %d pictures, not %d", TS_MAX_BATCH, job->count);
    ts_code rc = ts_group_check(run->group, run->model, &job->shape, e);
    if (rc) return rc;
    run_layout(run);
    run->count = job->count;
    for (int k = 0; k < job->count; k++) run->picture[k] = k;
    const ts_schedule_config schedule = ts_schedule_for(run->model, &job->shape);
    rc = ts_sampler_plan_new(job->shape.sampler, &schedule, job->shape.steps,
                             ts_begin_for(run->model, &job->shape), &run->plan, e);
    if (!rc) rc = allocate(run, e);
    if (!rc && job->trace) rc = make_trace(run, e);
    return rc;
}

static void release(ts_run *run) {
    for (int i = 0; i < run->ranks; i++) ts_patch_free(run->patch[i]);
    free(run->plan);
    free(run->noise);
    free(run->image);
    free(run->mask);
    free(run->masked);
    free(run->rng);
    free(run->latents);
    free(run->text);
    free(run->pooled);
}

ts_code ts_group_run(ts_group *g, ts_model *model, ts_job *job, ts_error *e) {
    ts_error local;
    if (!e) e = &local;
    ts_run run = {.group = g, .model = model, .job = job};
    ts_job_stats *stats = &job->stats;
    memset(stats, 0, sizeof *stats);
    job->profile = NULL;
    uint64_t t0 = ts_now_ns(), t1;
    double compiled;
    ts_code rc = prepare(&run, e), cause = TS_ECANCELLED;
    ts_error why = {0};
    if (rc) goto done;
    t1 = ts_now_ns();
    rc = ts_start(&run, e);
    if (rc) goto done;
    stats->encode_s = ts_seconds(ts_now_ns() - t1) - stats->compile_s;
    t1 = ts_now_ns();
    fill_time_ids(&run);
    rc = encode_texts(&run, e);
    if (!rc) rc = ts_model_check(model, e);
    if (rc) goto done;
    if (job->trace) trace_inputs(&run);
    stats->text_s = ts_seconds(ts_now_ns() - t1);
    stats->ranks = run.ranks;
    stats->patches = run.layout.patches;
    stats->evaluations = run.plan->rows;
    compiled = stats->compile_s;
    t1 = ts_now_ns();
    rc = ts_denoise(&run, e);
    stats->denoise_s = ts_seconds(ts_now_ns() - t1) - (stats->compile_s - compiled);
    if (!rc && job->want_profile) write_profile(&run);
done:
    t1 = ts_now_ns();
    compiled = stats->compile_s;
    for (int k = 0; k < job->count; k++) {
        ts_error error = *e;
        ts_code one = rc;
        /* After cancelling, each picture says for itself whether it was cancelled or had failed. */
        if (!rc || (rc == TS_ECANCELLED && run.plan)) {
            ts_code made = make_picture(&run, k, &job->pictures[k], &error);
            one = made ? made : rc;
            if (one != TS_ECANCELLED) cause = one, why = error;
        }
        stats->decode_s = ts_seconds(ts_now_ns() - t1) - (stats->compile_s - compiled);
        stats->total_s = ts_seconds(ts_now_ns() - t0);
        give_picture(&run, k, one, &error);
    }
    release(&run);
    /* Pictures that failed by themselves leave a job as cancelled ones do; then that is what went wrong. */
    if (rc == TS_ECANCELLED && cause != TS_ECANCELLED) {
        *e = why;
        rc = cause;
    }
    return rc;
}

/* Everything that the first job of the shape would have to make: U-Net, decoder and text encoders. */
ts_code ts_group_compile(ts_group *g, ts_model *model, const ts_shape *shape, int count, ts_error *e) {
    ts_job job = {.shape = *shape, .count = count};
    ts_run run = {.group = g, .model = model, .job = &job};
    ts_plan *plan;
    ts_code rc = prepare(&run, e);
    if (!rc) rc = ts_denoise_plan(&run, &plan, e);
    if (!rc) rc = ts_decode_plan(&run, &plan, e);
    if (!rc && shape->task != TS_TASK_TEXT) rc = ts_encode_plan(&run, &plan, e);
    const ts_picture_params nothing = {.prompt = ""};
    if (!rc) rc = ts_text_encode(g, model, shape->dtype, &nothing, false, 1, run.text, run.pooled, e);
    if (!rc) rc = ts_model_check(model, e);
    release(&run);
    return rc;
}
