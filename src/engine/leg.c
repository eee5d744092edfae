/* The legs of a job: which images the U-Net runs from where to where, and how one leg goes on from another.
 */
#include <math.h>
#include "base/clock.h"
#include "engine/guidance.h"
#include "engine/patch.h"

static ts_plan_key key_of(const ts_run *run, int pictures, bool guided) {
    const ts_shape *s = &run->job->shape;
    const ts_parallel *p = &s->parallel;
    const bool together = run->layout.patches > 1 && p->mode != TS_MODE_NAIVE;
    const bool displaced = together && p->mode != TS_MODE_SYNC;
    ts_plan_key key = {.kind = TS_PLAN_UNET,
                       .model = ts_model_owner(run->model, run->model->unet_weights),
                       .width = run->latent_w,
                       .height = run->latent_h,
                       .batch = pictures * (guided && run->layout.branches == 1 ? 2 : 1),
                       .chunks = ts_shape_chunks(s),
                       .dtype = s->dtype,
                       .patches = run->layout.patches,
                       .branches = run->layout.branches,
                       .naive = p->mode == TS_MODE_NAIVE && run->layout.patches > 1,
                       .displaced = displaced,
                       .group_norm = displaced ? p->group_norm : TS_GROUP_NORM_SYNC};
    if (displaced) key.partial = p->mode == TS_MODE_DISTRIFUSION ? INFINITY : p->partial;
    return key;
}

ts_code ts_denoise_plan(const ts_run *run, ts_plan **ret, ts_error *e) {
    const ts_plan_key key = key_of(run, run->job->count, run->job->shape.guided);
    return ts_plan_get(run->group, &key, &run->layout, ret, e);
}

bool ts_run_picture_over(ts_run *run, int k) {
    return atomic_load(&run->job->pictures[k].cancelled) || atomic_load(&run->bad_step[k]);
}

int ts_run_alive(ts_run *run) {
    int n = 0;
    for (int k = 0; k < run->count; k++) n += !ts_run_picture_over(run, run->picture[k]);
    return n;
}

/* ---- where guidance begins and ends ---- */

bool ts_run_guides(const ts_run *run, int k, int i) {
    const int of_step = run->job->shape.sampler->evaluations;
    return ts_guidance_acts(run->job->pictures[run->picture[k]].params.guidance_interval, i / of_step,
                            (run->plan->rows + of_step - 1) / of_step);
}

static bool any_guided(const ts_run *run, int i) {
    for (int k = 0; k < run->count; k++)
        if (ts_run_guides(run, k, i)) return true;
    return false;
}

/* Where the evaluations without guidance that begin with i end, if a leg of them is possible and worth it;
 * else i.
 *
 * Unconditional images that come back later must not miss what their ranks would have sent each other
 * meanwhile: the evaluation in which they do has to be synchronous. So a picture does not depend on the
 * others of its batch, whose guidance keeps the unconditional images there for longer. */
static int unguided_until(const ts_run *run, int i) {
    int end = i;
    while (end < run->plan->rows && !any_guided(run, end)) end++;
    const bool stale = run->layout.patches > 1 && run->job->shape.parallel.mode != TS_MODE_NAIVE;
    if (end - i < TS_WORTH_COMPILING || (stale && end < run->plan->rows && end > run->warmup)) return i;
    return end;
}

/* Sets guided and end of the leg that begins with run->next. Where ranks share out the branches nobody would
 * be faster without one, and a trace has both. */
static void plan_leg(ts_run *run) {
    int end = run->plan->rows;
    run->guided = run->job->shape.guided;
    if (run->guided && run->layout.branches == 1 && !run->job->trace) {
        end = unguided_until(run, run->next);
        run->guided = end == run->next;
        while (run->guided && end < run->plan->rows && unguided_until(run, end) == end) end++;
    }
    atomic_store(&run->end, end);
}

/* ---- from leg to leg ---- */

/* The pictures of the leg become its pictures keep[0..count). */
static void keep_pictures(ts_run *run, const int *keep, int count) {
    if (count == run->count) return;
    for (int k = 0; k < count; k++) run->picture[k] = run->picture[keep[k]];
    for (int r = 0; r < run->ranks; r++) ts_patch_keep(run->patch[r], keep, count);
    run->count = count;
}

/* Goes on with the programs of `plan`, which take over what peers had sent to those of run->unet, where the
 * leg had `count` pictures, of which keep[] are there now. */
static void adopt(ts_run *run, ts_plan *plan, const int *keep, int count, bool guided) {
    int image[2 * TS_MAX_BATCH];
    const bool halves = run->layout.branches == 1;
    const int had = halves && guided ? count : 0; /* unconditional images, which come first */
    const int has = halves && run->guided ? run->count : 0;
    ts_assert(had || !has || run->next <= run->warmup || run->job->shape.parallel.mode == TS_MODE_NAIVE);
    for (int k = 0; k < has; k++) image[k] = had ? keep[k] : TS_NO_IMAGE;
    for (int k = 0; k < run->count; k++) image[has + k] = had + keep[k];
    for (int r = 0; r < run->ranks; r++) ts_program_adopt(plan->program[r], run->unet->program[r], image);
}

/* Begins a leg at run->next with those pictures of the one before that are not over. */
static ts_code next_leg(ts_run *run, ts_error *e) {
    int keep[TS_MAX_BATCH], count = 0;
    for (int k = 0; k < run->count; k++)
        if (!run->unet || !ts_run_picture_over(run, run->picture[k])) keep[count++] = k;
    if (!count) return ts_fail(e, TS_ECANCELLED, "cancelled");
    const int had = run->count;
    const bool guided = run->guided;
    keep_pictures(run, keep, count);
    plan_leg(run);
    const uint64_t t0 = ts_now_ns();
    const ts_plan_key key = key_of(run, run->count, run->guided);
    ts_plan *plan;
    ts_code rc = ts_plan_get(run->group, &key, &run->layout, &plan, e);
    if (!rc) rc = ts_model_check(run->model, e);
    run->job->stats.compile_s += ts_seconds(ts_now_ns() - t0);
    if (rc) return rc;
    /* The same programs: one image each, or nothing that is stale. */
    if (run->unet && plan != run->unet) adopt(run, plan, keep, had, guided);
    run->unet = plan;
    return TS_OK;
}

static void reset_link(ts_link *l, unsigned evaluation) {
    if (l->transport) l->transport->ops->reset(l->transport, evaluation);
}

/* One leg on all ranks. The cause of a failure is the first code that is not the echo of another rank's. */
static ts_code run_leg(ts_run *run, ts_error *e) {
    ts_plan *plan = run->unet;
    for (int i = 0; i < run->layout.branches; i++)
        if (plan->branch[i]) plan->branch[i]->ops->reset(plan->branch[i], (unsigned)run->next);
    for (int i = 0; i < run->ranks; i++) {
        reset_link(&plan->noise[i], (unsigned)run->next);
        reset_link(&plan->sums[i], (unsigned)run->next);
    }
    ts_group_each(run->group, run->ranks, ts_denoise_rank, run);
    run->next = atomic_load(&run->end);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < run->ranks; i++) {
            if (!run->code[i] || (pass == 0 && run->code[i] == TS_ECANCELLED)) continue;
            if (e) *e = run->error[i];
            return run->code[i];
        }
    return TS_OK;
}

ts_code ts_denoise(ts_run *run, ts_error *e) {
    ts_code rc = TS_OK;
    while (!rc && run->next < run->plan->rows) {
        rc = next_leg(run, e);
        if (!rc) rc = run_leg(run, e);
    }
    return rc;
}
