/* Groups: opening devices, and one thread for each. */
#include "engine/group.h"

#include <math.h>
#include <stdlib.h>
#include "base/alloc.h"
#include "engine/text.h"

#define PLAN_BYTES ((size_t)4 << 30)

static void *rank_main(void *arg) {
    ts_rank *r = arg;
    ts_group *g = r->group;
    unsigned seen = 0;
    r->device->backend->thread_begin(r->device);
    pthread_mutex_lock(&g->lock);
    for (;;) {
        while (!g->stop && (g->round == seen || r->index >= g->task_ranks))
            pthread_cond_wait(&g->work, &g->lock);
        if (g->stop) break;
        seen = g->round;
        pthread_mutex_unlock(&g->lock);
        g->task(g->task_arg, r);
        pthread_mutex_lock(&g->lock);
        if (--g->remaining == 0) pthread_cond_signal(&g->done);
    }
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

void ts_group_each(ts_group *g, int ranks, void (*task)(void *arg, ts_rank *rank), void *arg) {
    pthread_mutex_lock(&g->lock);
    g->task = task;
    g->task_arg = arg;
    g->task_ranks = g->remaining = ranks;
    g->round++;
    pthread_cond_broadcast(&g->work);
    while (g->remaining) pthread_cond_wait(&g->done, &g->lock);
    /* Ranks beyond this round's must not take it for theirs when a later one is wider. */
    g->task_ranks = 0;
    pthread_mutex_unlock(&g->lock);
}

ts_code ts_group_open(const ts_device_spec *devices, int count, ts_group **ret, ts_error *e) {
    if (count < 1 || count > TS_MAX_RANKS)
        return ts_fail_param(e, TS_EINVAL, "devices", "a group has 1 to %d devices, not %d", TS_MAX_RANKS,
                             count);
    ts_group *g = ts_new0(ts_group);
    if (!g) return ts_fail(e, TS_ENOMEM, "opening a group");
    g->plan_bytes = PLAN_BYTES;
    pthread_mutex_init(&g->lock, NULL);
    pthread_mutex_init(&g->kept, NULL);
    pthread_cond_init(&g->work, NULL);
    pthread_cond_init(&g->done, NULL);
    ts_code rc = TS_OK;
    for (int i = 0; i < count; i++) {
        ts_rank *r = &g->ranks[i];
        *r = (ts_rank){.group = g, .index = i};
        g->count = i + 1;
        rc = devices[i].backend->open(devices[i].index, devices[i].threads, &r->device, e);
        if (!rc) rc = ts_arena_new(r->device, &r->arena, e);
        if (!rc && pthread_create(&r->thread, NULL, rank_main, r) != 0)
            rc = ts_fail(e, TS_ENOMEM, "starting the thread of device %d", i);
        if (rc) {
            ts_group_close(g);
            return rc;
        }
        r->started = true;
    }
    *ret = g;
    return TS_OK;
}

void ts_group_close(ts_group *g) {
    if (!g) return;
    ts_plans_free(g, NULL);
    ts_texts_free(g, NULL);
    pthread_mutex_lock(&g->lock);
    g->stop = true;
    pthread_cond_broadcast(&g->work);
    pthread_mutex_unlock(&g->lock);
    for (int i = 0; i < g->count; i++) {
        if (g->ranks[i].started) pthread_join(g->ranks[i].thread, NULL);
        ts_arena_free(g->ranks[i].arena);
        if (g->ranks[i].device) g->ranks[i].device->backend->close(g->ranks[i].device);
    }
    pthread_mutex_destroy(&g->lock);
    pthread_mutex_destroy(&g->kept);
    pthread_cond_destroy(&g->work);
    pthread_cond_destroy(&g->done);
    free(g);
}

void ts_group_forget(ts_group *g, const ts_model *variant) {
    ts_plans_free(g, variant);
    ts_texts_free(g, variant);
}

void ts_group_set_program_bytes(ts_group *g, size_t bytes) {
    g->plan_bytes = bytes;
}

int ts_group_size(const ts_group *g) {
    return g->count;
}

bool ts_group_prefers_bf16(const ts_group *g) {
    return g->ranks[0].device->backend->prefers(TS_BF16);
}

ts_layout ts_layout_of(const ts_group *g, const ts_model *m, const ts_shape *s) {
    const ts_parallel *p = &s->parallel;
    int ranks = p->ranks ? p->ranks : g->count;
    if (p->mode == TS_MODE_SINGLE) ranks = 1;
    ts_layout l = {.branches = 1};
    bool split = p->cfg_split == TS_CFG_SPLIT_ON || (p->cfg_split == TS_CFG_SPLIT_AUTO && ranks >= 4);
    if (split && s->guided && ranks % 2 == 0) l.branches = 2;
    l.patches = ts_rows_split(s->height / ts_model_scale(m), m->unet.levels - 1, ranks / l.branches, &l.rows);
    return l;
}

static bool is_lower_part(const ts_model *m, const ts_shape *s) {
    return m->consistent && s->task == TS_TASK_IMAGE && s->scheduler != TS_SCHEDULER_TIMESTEPS &&
           s->sampler == ts_sampler_find("lcm");
}

ts_schedule_config ts_schedule_for(const ts_model *m, const ts_shape *s) {
    ts_schedule_config c = m->schedule;
    ts_schedule_place(&c, s->scheduler, &s->levels, m->xl);
    if (s->has_eta) c.eta = s->eta;
    if (is_lower_part(m, s)) c.origin_share = s->strength;
    return c;
}

int ts_begin_for(const ts_model *m, const ts_shape *s) {
    return is_lower_part(m, s) ? 0 : ts_shape_begin(s);
}

/* A U-Net holds about this many bytes for each latent pixel and channel of its top level; a picture whose
 * tensors could not be addressed is refused before anything is computed from its size. */
#define MAX_SIDE 16384

/* What a task needs of the model. */
static ts_code check_task(const ts_model *m, const ts_shape *s, ts_error *e) {
    const bool told = m->unet.in_channels > m->vae.latent_channels;
    if (told && s->task != TS_TASK_INPAINT)
        return ts_fail_param(e, TS_EUNSUPPORTED, "model", "%s only paints into masks", m->info.id);
    if (s->task == TS_TASK_TEXT) return TS_OK;
    if (!ts_weights_find(m->vae_weights, "encoder.conv_in.weight"))
        return ts_fail_param(e, TS_EUNSUPPORTED, "image", "the autoencoder of %s has no encoder", m->info.id);
    if (!(s->strength > 0 && s->strength <= 1))
        return ts_fail_param(e, TS_EINVAL, "strength", "strength must be more than 0 and at most 1");
    if (ts_begin_for(m, s) >= s->steps)
        return ts_fail_param(e, TS_EINVAL, "strength", "a strength of %g leaves none of %d steps",
                             s->strength, s->steps);
    return TS_OK;
}

ts_code ts_group_check(const ts_group *g, const ts_model *m, const ts_shape *s, ts_error *e) {
    const ts_parallel *p = &s->parallel;
    const int scale = ts_model_scale(m);
    const struct {
        const char *name;
        int value;
    } sides[] = {{"width", s->width}, {"height", s->height}};
    for (int i = 0; i < 2; i++)
        if (sides[i].value < scale || sides[i].value > MAX_SIDE || sides[i].value % scale)
            return ts_fail_param(e, TS_EINVAL, sides[i].name,
                                 "%s must be a multiple of %d from %d to %d, not %d", sides[i].name, scale,
                                 scale, MAX_SIDE, sides[i].value);
    if (s->chunks < 0 || s->chunks > TS_MAX_CHUNKS)
        return ts_fail_param(e, TS_EINVAL, "prompt", "a text of %d chunks; at most %d are possible",
                             s->chunks, TS_MAX_CHUNKS);
    if (!s->sampler) return ts_fail_param(e, TS_EINVAL, "sampler", "no sampler was chosen");
    if (s->dtype != TS_F32 && s->dtype != TS_BF16)
        return ts_fail_param(e, TS_EINVAL, "dtype", "dtype must be f32 or bf16");
    if (!g->ranks[0].device->backend->supports(s->dtype))
        return ts_fail_param(e, TS_EUNSUPPORTED, "dtype", "this machine does not compute in %s",
                             ts_dtype_name(s->dtype));
    if (p->ranks < 0 || p->ranks > g->count)
        return ts_fail_param(e, TS_EINVAL, "parallel.devices", "there are %d devices, not %d", g->count,
                             p->ranks);
    if (!(p->partial >= 0))
        return ts_fail_param(e, TS_EINVAL, "parallel.partial", "partial must not be negative");
    if (p->warmup < 0 || p->warmup > TS_MAX_STEPS)
        return ts_fail_param(e, TS_EINVAL, "parallel.warmup_steps", "warmup_steps must be 0 to %d",
                             TS_MAX_STEPS);
    int ranks = p->mode == TS_MODE_SINGLE ? 1 : p->ranks ? p->ranks : g->count;
    if (p->cfg_split == TS_CFG_SPLIT_ON && (!s->guided || ranks < 2 || ranks % 2))
        return ts_fail_param(e, TS_EINVAL, "parallel.cfg_split",
                             "cfg_split needs guidance and an even number of devices, at least two");
    ts_sampler_plan *plan = NULL;
    const ts_schedule_config schedule = ts_schedule_for(m, s);
    ts_code rc = ts_sampler_takes(s->sampler, s->scheduler, e);
    if (!rc) rc = check_task(m, s, e);
    if (!rc) rc = ts_sampler_plan_new(s->sampler, &schedule, s->steps, ts_begin_for(m, s), &plan, e);
    free(plan);
    return rc;
}
