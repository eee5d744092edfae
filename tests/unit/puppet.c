#include "puppet.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/alloc.h"

struct puppet puppet = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

bool ts_shape_same_loras(const ts_shape *a, const ts_shape *b) {
    bool same = a->lora_count == b->lora_count;
    for (int i = 0; i < a->lora_count && same; i++)
        same = !strcmp(a->loras[i].name, b->loras[i].name) && a->loras[i].scale == b->loras[i].scale &&
               a->loras[i].stamp == b->loras[i].stamp;
    return same;
}

bool ts_shape_equal(const ts_shape *a, const ts_shape *b) {
    return a->width == b->width && a->height == b->height && a->steps == b->steps &&
           a->sampler == b->sampler && a->parallel.mode == b->parallel.mode &&
           a->parallel.ranks == b->parallel.ranks && a->dtype == b->dtype && a->guided == b->guided &&
           ts_shape_same_loras(a, b);
}

int ts_group_size(const ts_group *group) {
    return group->size;
}

ts_code ts_group_check(const ts_group *group, const ts_model *model, const ts_shape *shape, ts_error *e) {
    (void)model;
    if (shape->width % 8) return ts_fail_param(e, TS_EINVAL, "width", "not a multiple of 8");
    if (shape->parallel.ranks > group->size)
        return ts_fail_param(e, TS_EINVAL, "parallel.devices", "at most %d", group->size);
    return TS_OK;
}

char *ts_lora_find(const char *folder, const char *name) {
    return ts_format("%s/%s.safetensors", folder, name);
}

ts_code ts_lora_stamp(const char *path, uint64_t *ret, ts_error *e) {
    (void)path;
    (void)e;
    pthread_mutex_lock(&puppet.lock);
    *ret = puppet.stamp;
    pthread_mutex_unlock(&puppet.lock);
    return TS_OK;
}

void ts_lora_uses_free(ts_lora_use uses[TS_MAX_LORAS]) {
    for (int i = 0; i < TS_MAX_LORAS; i++) free((char *)(uintptr_t)uses[i].path);
}

ts_code ts_model_vary(ts_model *m, const ts_lora_use *loras, size_t n, ts_model **ret, ts_error *e) {
    for (;; usleep(500)) {
        pthread_mutex_lock(&puppet.lock);
        bool slow = puppet.slow;
        if (!slow) puppet.made++;
        pthread_cond_broadcast(&puppet.changed);
        pthread_mutex_unlock(&puppet.lock);
        if (!slow) break;
    }
    const char *path = loras[n - 1].path;
    if (strstr(path, "missing")) return ts_fail(e, TS_ENOTFOUND, "opening %s", path);
    if (strstr(path, "broken")) return ts_fail(e, TS_EFORMAT, "%s: key", path);
    if (strstr(path, "disk")) return ts_fail(e, TS_EIO, "reading");
    ts_model *v = ts_new0(ts_model);
    assert_non_null(v);
    v->base = m;
    strncpy(v->path, path, sizeof v->path - 1);
    pthread_mutex_lock(&puppet.lock);
    puppet.living++;
    pthread_mutex_unlock(&puppet.lock);
    *ret = v;
    return TS_OK;
}

size_t ts_model_variant_bytes(const ts_model *variant) {
    (void)variant;
    return VARIANT_BYTES;
}

void ts_group_forget(ts_group *group, const ts_model *variant) {
    (void)group;
    assert_int_equal(atomic_load(&((ts_model *)(uintptr_t)variant)->users), 0);
    atomic_fetch_add(&((ts_model *)(uintptr_t)variant)->forgotten, 1);
}

void ts_model_free(ts_model *m) {
    if (!m) return;
    assert_non_null(m->base);
    assert_int_equal(atomic_load(&m->users), 0);
    if (atomic_load(&m->ran)) assert_int_equal(atomic_load(&m->forgotten), puppet.groups);
    pthread_mutex_lock(&puppet.lock);
    puppet.living--;
    pthread_mutex_unlock(&puppet.lock);
    free(m);
}

int puppet_living(void) {
    pthread_mutex_lock(&puppet.lock);
    int n = puppet.living;
    pthread_mutex_unlock(&puppet.lock);
    return n;
}

static void give_back(ts_job *job, bool *given, int i, ts_code code) {
    ts_picture *p = &job->pictures[i];
    given[i] = true;
    if (code) {
        ts_fail(&p->error, code, "the puppet's %s", ts_code_name(code));
    } else {
        size_t bytes = (size_t)job->shape.width * (size_t)job->shape.height * 3;
        p->rgb = malloc(bytes);
        assert_non_null(p->rgb);
        memset(p->rgb, (int)(p->params.seed & 255), bytes);
    }
    job->on_picture(job->arg, p);
    free(p->rgb);
    p->rgb = NULL;
}

static void note_run(const ts_group *group, const ts_model *model, const ts_job *job) {
    pthread_mutex_lock(&puppet.lock);
    run *r = &puppet.runs[puppet.begun++ % MAX_RUNS];
    *r = (run){.group = group, .model = model, .shape = job->shape, .count = job->count};
    if (model->base) strcpy(r->path, model->path);
    for (int i = 0; i < job->count; i++) {
        r->seeds[i] = job->pictures[i].params.seed;
        r->guidance[i] = job->pictures[i].params.guidance_scale;
        strncpy(r->prompts[i], job->pictures[i].params.prompt, sizeof r->prompts[i] - 1);
    }
    pthread_cond_broadcast(&puppet.changed);
    pthread_mutex_unlock(&puppet.lock);
}

static bool asks(const ts_job *job, const char *prompt) {
    for (int i = 0; i < job->count; i++)
        if (!strcmp(job->pictures[i].params.prompt, prompt)) return true;
    return false;
}

/* Gives back what was cancelled; returns how many go on. */
static int drop_cancelled(ts_job *job, bool *given) {
    int left = 0;
    for (int i = 0; i < job->count; i++) {
        if (!given[i] && atomic_load(&job->pictures[i].cancelled)) give_back(job, given, i, TS_ECANCELLED);
        left += !given[i];
    }
    return left;
}

static bool gate_closed(void) {
    pthread_mutex_lock(&puppet.lock);
    bool closed = puppet.closed;
    pthread_mutex_unlock(&puppet.lock);
    return closed;
}

static ts_code play(ts_group *group, ts_model *model, ts_job *job, ts_error *e) {
    bool given[TS_MAX_BATCH] = {false};
    note_run(group, model, job);
    for (int step = 1; step <= job->shape.steps; step++) {
        /* A real evaluation ends by itself, and then sees the flags; so does one at the gate. */
        while (gate_closed() && drop_cancelled(job, given)) usleep(500);
        if (!drop_cancelled(job, given)) return TS_OK;
        job->on_step(job->arg, step, job->shape.steps);
    }
    job->stats = (ts_job_stats){.ranks = group->size,
                                .patches = group->size,
                                .evaluations = job->shape.steps,
                                .synchronous = 1,
                                .wait_s = {0.25}};
    if (asks(job, "silence")) return TS_OK;
    if (asks(job, "device")) return ts_fail(e, TS_EDEVICE, "the puppet fell over");
    for (int i = 0; i < job->count; i++)
        if (!given[i])
            give_back(job, given, i, strcmp(job->pictures[i].params.prompt, "nan") ? TS_OK : TS_ENONFINITE);
    return TS_OK;
}

ts_code ts_group_run(ts_group *group, ts_model *model, ts_job *job, ts_error *e) {
    atomic_fetch_add(&model->users, 1);
    atomic_fetch_add(&model->ran, 1);
    ts_code rc = play(group, model, job, e);
    atomic_fetch_sub(&model->users, 1);
    return rc;
}

void puppet_gate(bool closed) {
    pthread_mutex_lock(&puppet.lock);
    puppet.closed = closed;
    pthread_cond_broadcast(&puppet.changed);
    pthread_mutex_unlock(&puppet.lock);
}

void puppet_await_runs(int n) {
    pthread_mutex_lock(&puppet.lock);
    while (puppet.begun < n) pthread_cond_wait(&puppet.changed, &puppet.lock);
    pthread_mutex_unlock(&puppet.lock);
}

run puppet_run(int i) {
    pthread_mutex_lock(&puppet.lock);
    assert_true(i < puppet.begun);
    run r = puppet.runs[i];
    pthread_mutex_unlock(&puppet.lock);
    return r;
}
