/* The scheduler alone, over an engine that is a puppet: its runs stop at a gate, its pictures are one colour,
 * and a prompt can ask it to fail. Linked instead of the engine, so that this also runs under
 * ThreadSanitizer. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "sched/sched.h"

/* ---- the puppet ---- */

struct ts_group {
    int size;
};
struct ts_model {
    const ts_model *base; /* of a variant */
    char path[64];        /* its last file */
    atomic_int users, forgotten; /* runs; groups that have forgotten it */
};

enum { MAX_RUNS = 4096, MAX_EVENTS = 65536 };

typedef struct run {
    const ts_group *group;
    const ts_model *model;
    char path[64];
    ts_shape shape;
    int count;
    uint64_t seeds[TS_MAX_BATCH];
    char prompts[TS_MAX_BATCH][16];
    double guidance[TS_MAX_BATCH];
} run;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closed; /* no evaluation passes */
    run runs[MAX_RUNS];
    int begun;
    bool slow; /* no variant is made */
    int made, living; /* variants */
} puppet = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

bool ts_shape_same_loras(const ts_shape *a, const ts_shape *b) {
    bool same = a->lora_count == b->lora_count;
    for (int i = 0; i < a->lora_count && same; i++)
        same = !strcmp(a->loras[i].name, b->loras[i].name) && a->loras[i].scale == b->loras[i].scale;
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

enum { VARIANT_BYTES = 100 };

size_t ts_model_variant_bytes(const ts_model *variant) {
    (void)variant;
    return VARIANT_BYTES;
}

void ts_group_forget(ts_group *group, const ts_model *variant) {
    (void)group;
    assert_int_equal(atomic_load(&((ts_model *)(uintptr_t)variant)->users), 0);
    atomic_fetch_add(&((ts_model *)(uintptr_t)variant)->forgotten, 1);
}

static int group_count_now;

void ts_model_free(ts_model *m) {
    if (!m) return;
    assert_non_null(m->base);
    assert_int_equal(atomic_load(&m->users), 0);
    assert_int_equal(atomic_load(&m->forgotten), group_count_now);
    pthread_mutex_lock(&puppet.lock);
    puppet.living--;
    pthread_mutex_unlock(&puppet.lock);
    free(m);
}

static int living(void) {
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
    ts_code rc = play(group, model, job, e);
    atomic_fetch_sub(&model->users, 1);
    return rc;
}

static void gate(bool closed) {
    pthread_mutex_lock(&puppet.lock);
    puppet.closed = closed;
    pthread_cond_broadcast(&puppet.changed);
    pthread_mutex_unlock(&puppet.lock);
}

static void await_runs(int n) {
    pthread_mutex_lock(&puppet.lock);
    while (puppet.begun < n) pthread_cond_wait(&puppet.changed, &puppet.lock);
    pthread_mutex_unlock(&puppet.lock);
}

static run run_at(int i) {
    pthread_mutex_lock(&puppet.lock);
    assert_true(i < puppet.begun);
    run r = puppet.runs[i];
    pthread_mutex_unlock(&puppet.lock);
    return r;
}

/* ---- what was heard ---- */

typedef struct heard {
    ts_event_kind kind;
    uint64_t token;
    int position, index, step, total, batch, colour; /* colour of the picture's first byte; -1 none */
    ts_code code;
    bool stats;
    double eta_s;
    char param[16], message[64];
} heard;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    heard events[MAX_EVENTS];
    int count;
    bool keep_rgb; /* do not take the pixels */
} ear = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void hear(void *arg, const ts_event *e) {
    (void)arg;
    heard h = {.kind = e->kind,
               .token = e->token,
               .position = e->position,
               .index = e->index,
               .step = e->step,
               .total = e->total,
               .batch = e->batch,
               .colour = -1,
               .stats = e->stats != NULL,
               .eta_s = e->eta_s};
    if (e->error) {
        h.code = e->error->code;
        snprintf(h.param, sizeof h.param, "%.15s", e->error->param);
        snprintf(h.message, sizeof h.message, "%.63s", e->error->message);
    }
    if (e->rgb && *e->rgb) {
        h.colour = **e->rgb;
        if (!ear.keep_rgb) {
            free(*e->rgb);
            *e->rgb = NULL;
        }
    }
    pthread_mutex_lock(&ear.lock);
    if (ear.count < MAX_EVENTS) ear.events[ear.count++] = h;
    pthread_cond_broadcast(&ear.changed);
    pthread_mutex_unlock(&ear.lock);
}

/* Copies the events of a token, at most `most`; returns how many there are. */
static int events_of(uint64_t token, heard *ret, int most) {
    int n = 0;
    pthread_mutex_lock(&ear.lock);
    for (int i = 0; i < ear.count; i++)
        if (ear.events[i].token == token) {
            if (n < most) ret[n] = ear.events[i];
            n++;
        }
    pthread_mutex_unlock(&ear.lock);
    return n;
}

static int count_kind(uint64_t token, ts_event_kind kind, heard *ret_last) {
    int n = 0;
    pthread_mutex_lock(&ear.lock);
    for (int i = 0; i < ear.count; i++)
        if (ear.events[i].token == token && ear.events[i].kind == kind) {
            if (ret_last) *ret_last = ear.events[i];
            n++;
        }
    pthread_mutex_unlock(&ear.lock);
    return n;
}

static heard await(uint64_t token, ts_event_kind kind) {
    heard last = {0};
    for (;;) {
        if (count_kind(token, kind, &last)) return last;
        pthread_mutex_lock(&ear.lock);
        struct timespec soon;
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_sec++;
        pthread_cond_timedwait(&ear.changed, &ear.lock, &soon);
        pthread_mutex_unlock(&ear.lock);
    }
}

/* ---- a scheduler for a test ---- */

static ts_group pair = {2}, one = {1};
static ts_model models[2];
enum { LONG_MS = 600000 }; /* a wait that would outlast the test */

static ts_sched *start(int max_queue, int max_batch, int max_wait_ms, int group_count) {
    gate(false);
    puppet.begun = puppet.made = 0;
    group_count_now = group_count;
    ear.count = 0;
    ear.keep_rgb = false;
    ts_sched_config config = {
        .max_queue = max_queue, .max_batch = max_batch, .max_wait_ms = max_wait_ms, .on_event = hear,
        .lora_folder = "/srv/loras", .lora_bytes = 2 * VARIANT_BYTES};
    ts_model *const m[] = {&models[0], &models[1]};
    ts_group *const g[] = {&pair, &one};
    ts_sched *s = NULL;
    ts_error e = {0};
    assert_int_equal(ts_sched_new(&config, m, 2, g, group_count, &s, &e), TS_OK);
    return s;
}

static ts_request ask(uint64_t token) {
    return (ts_request){.shape = {.width = 16, .height = 16, .steps = 3, .parallel = TS_PARALLEL_DEFAULT},
                        .params.prompt = "a lake",
                        .params.seed = token * 10,
                        .params.guidance_scale = 5,
                        .n = 1,
                        .token = token};
}

static void submit(ts_sched *s, ts_request r) {
    ts_error e = {0};
    assert_int_equal(ts_sched_submit(s, &r, &e), TS_OK);
}

/* Occupies the first group until the gate opens, with a shape that nobody else has. */
static void occupy(ts_sched *s, uint64_t token) {
    gate(true);
    ts_request r = ask(token);
    r.shape.height = 808;
    submit(s, r);
    await_runs(1);
}

static void check_order(uint64_t token, int pictures) {
    heard h[256];
    int n = events_of(token, h, 256), seen = 0;
    assert_in_range(n, 1, 256);
    ts_event_kind at = TS_EVENT_QUEUED;
    for (int i = 0; i < n; i++) {
        if (at == TS_EVENT_PICTURE && h[i].kind == TS_EVENT_STEP) at = TS_EVENT_STEP; /* a second batch */
        assert_true(h[i].kind >= at);
        at = h[i].kind;
        seen += at == TS_EVENT_PICTURE;
        if (at == TS_EVENT_END) assert_int_equal(i, n - 1);
    }
    assert_int_equal(at, TS_EVENT_END);
    assert_int_equal(seen, pictures);
}

/* The same with a LoRA. */
static ts_request ask_lora(uint64_t token, const char *name, double scale) {
    ts_request r = ask(token);
    r.shape.lora_count = 1;
    strcpy(r.shape.loras[0].name, name);
    r.shape.loras[0].scale = scale;
    return r;
}

/* ---- claims ---- */

static void a_request_passes_queued_started_steps_picture_end(void **state) {
    (void)state;
    ts_sched *s = start(8, 4, 0, 1);
    submit(s, ask(7));
    heard end = await(7, TS_EVENT_END), h[8];
    assert_int_equal(events_of(7, h, 8), 7);
    const ts_event_kind kinds[] = {TS_EVENT_QUEUED, TS_EVENT_STARTED, TS_EVENT_STEP, TS_EVENT_STEP,
                                   TS_EVENT_STEP,   TS_EVENT_PICTURE, TS_EVENT_END};
    for (int i = 0; i < 7; i++) assert_int_equal(h[i].kind, kinds[i]);
    assert_int_equal(h[0].position, 0);
    assert_int_equal(h[2].step, 1);
    assert_int_equal(h[4].step, 3);
    assert_int_equal(h[4].total, 3);
    assert_true(h[2].eta_s >= 0);
    assert_int_equal(h[5].colour, 70);
    assert_int_equal(h[5].batch, 1);
    assert_true(h[5].stats && end.stats);
    assert_int_equal(end.code, TS_OK);
    ts_sched_free(s);
}

static void equal_shapes_of_two_requests_share_a_batch(void **state) {
    (void)state;
    ts_sched *s = start(8, 3, LONG_MS, 1);
    ts_request a = ask(1), b = ask(2);
    a.n = 2;
    b.params.prompt = "a field";
    b.params.guidance_scale = 3;
    submit(s, a);
    submit(s, b);
    await(1, TS_EVENT_END);
    heard picture = {0};
    await(2, TS_EVENT_END);
    run r = run_at(0);
    assert_int_equal(r.count, 3);
    const uint64_t seeds[] = {10, 11, 20};
    for (int i = 0; i < 3; i++) assert_int_equal(r.seeds[i], seeds[i]);
    assert_string_equal(r.prompts[1], "a lake");
    assert_string_equal(r.prompts[2], "a field");
    assert_true(r.guidance[1] == 5 && r.guidance[2] == 3);
    assert_int_equal(count_kind(2, TS_EVENT_PICTURE, &picture), 1);
    assert_int_equal(picture.batch, 3);
    assert_int_equal(picture.colour, 20);
    assert_int_equal(count_kind(1, TS_EVENT_STEP, NULL), 3);
    ts_sched_free(s);
}

static void whatever_differs_in_shape_or_model_runs_apart(void **state) {
    (void)state;
    ts_sched *s = start(64, 16, 0, 1);
    occupy(s, 1);
    ts_request r[6];
    for (int i = 0; i < 6; i++) r[i] = ask((uint64_t)i + 2);
    r[1].shape.width = 24;
    r[2].shape.steps = 4;
    r[3].shape.guided = true;
    r[4].shape.parallel.mode = TS_MODE_SYNC;
    r[5].model = 1;
    for (int i = 0; i < 6; i++) submit(s, r[i]);
    gate(false);
    for (int i = 0; i < 6; i++) {
        await((uint64_t)i + 2, TS_EVENT_END);
        run seen = run_at(i + 1);
        assert_int_equal(seen.count, 1);
        assert_int_equal(seen.seeds[0], r[i].params.seed);
        assert_ptr_equal(seen.model, &models[r[i].model]);
    }
    ts_sched_free(s);
}

static void a_batch_never_exceeds_max_batch(void **state) {
    (void)state;
    ts_sched *s = start(64, 4, 0, 1);
    occupy(s, 1);
    ts_request r = ask(2);
    r.n = 10;
    submit(s, r);
    gate(false);
    await(2, TS_EVENT_END);
    assert_int_equal(run_at(1).count, 4);
    assert_int_equal(run_at(2).count, 4);
    assert_int_equal(run_at(3).count, 2);
    check_order(2, 10);
    for (int k = 0; k < 10; k++) assert_int_equal(run_at(1 + k / 4).seeds[k % 4], 20 + k);
    ts_sched_free(s);
}

static void a_younger_twin_joins_the_oldest_batch_past_another_shape(void **state) {
    (void)state;
    ts_sched *s = start(64, 4, 0, 1);
    occupy(s, 1);
    ts_request other = ask(3);
    other.shape.width = 64;
    submit(s, ask(2));
    submit(s, other);
    submit(s, ask(4));
    gate(false);
    await(3, TS_EVENT_END);
    await(4, TS_EVENT_END);
    assert_int_equal(run_at(1).count, 2);
    assert_int_equal(run_at(1).seeds[1], 40);
    assert_int_equal(run_at(2).seeds[0], 30);
    ts_sched_free(s);
}

static void a_lone_picture_waits_for_company_no_longer_than_told(void **state) {
    (void)state;
    ts_sched *s = start(8, 4, 80, 1);
    uint64_t from = ts_now_ns();
    submit(s, ask(1));
    await(1, TS_EVENT_END);
    double waited = ts_seconds(ts_now_ns() - from);
    assert_true(waited >= 0.079);
    assert_true(waited < 5);
    ts_sched_free(s);
}

static void waiting_for_company_ends_when_it_would_delay_another_shape(void **state) {
    (void)state;
    ts_sched *s = start(8, 4, LONG_MS, 1);
    ts_request other = ask(2);
    other.shape.width = 64;
    submit(s, ask(1));
    usleep(20000);
    assert_int_equal(count_kind(1, TS_EVENT_STARTED, NULL), 0);
    submit(s, other);
    await(1, TS_EVENT_END);
    ts_sched_free(s);
}

static void draining_refuses_newcomers_and_finishes_the_rest(void **state) {
    (void)state;
    ts_sched *s = start(8, 4, LONG_MS, 1);
    submit(s, ask(1)); /* would wait for company */
    assert_false(ts_sched_idle(s));
    ts_sched_drain(s);
    ts_request late = ask(2);
    ts_error e = {0};
    assert_int_equal(ts_sched_submit(s, &late, &e), TS_ESHUTDOWN);
    assert_int_equal(await(1, TS_EVENT_END).code, TS_OK);
    for (int i = 0; i < 1000 && !ts_sched_idle(s); i++) usleep(1000);
    assert_true(ts_sched_idle(s));
    assert_int_equal(events_of(2, NULL, 0), 0);
    ts_sched_free(s);
}

static void a_full_queue_refuses_and_room_lets_in_again(void **state) {
    (void)state;
    ts_sched *s = start(2, 4, 0, 1);
    occupy(s, 1);
    ts_request r = ask(2);
    r.n = 2;
    submit(s, r);
    ts_request late = ask(3);
    ts_error e = {0};
    assert_int_equal(ts_sched_submit(s, &late, &e), TS_EFULL);
    assert_int_equal(e.code, TS_EFULL);
    assert_true(ts_sched_retry_after(s) >= 1);
    ts_sched_cancel(s, 2);
    submit(s, late);
    gate(false);
    assert_int_equal(await(3, TS_EVENT_END).code, TS_OK);
    ts_sched_stats st;
    ts_sched_get_stats(s, &st);
    assert_int_equal(st.refused, 1);
    assert_int_equal(st.accepted, 3);
    assert_int_equal(st.cancelled, 1);
    ts_sched_free(s);
}

static void positions_are_told_only_to_those_whose_place_changed(void **state) {
    (void)state;
    ts_sched *s = start(32, 4, 0, 1);
    occupy(s, 1);
    ts_request r = ask(2);
    r.n = 3;
    r.shape.width = 64;
    submit(s, r);      /* pictures 0..2 of the queue */
    submit(s, ask(3)); /* 3 ahead */
    submit(s, ask(4)); /* 4 ahead */
    heard h[8];
    assert_int_equal(events_of(2, h, 8), 1);
    assert_int_equal(h[0].position, 0);
    assert_int_equal(events_of(4, h, 8), 1);
    assert_int_equal(h[0].position, 4);
    ts_sched_cancel(s, 3);
    assert_int_equal(events_of(2, h, 8), 1);
    assert_int_equal(events_of(4, h, 8), 2);
    assert_int_equal(h[1].position, 3);
    gate(false);
    await(4, TS_EVENT_END);
    assert_int_equal(events_of(4, h, 8), 9); /* three places, started, three steps, picture, end */
    assert_int_equal(h[2].kind, TS_EVENT_QUEUED);
    assert_int_equal(h[2].position, 0);
    ts_sched_free(s);
}

static void a_waiting_request_ends_at_once_when_cancelled_and_never_runs(void **state) {
    (void)state;
    ts_sched *s = start(8, 4, 0, 1);
    occupy(s, 1);
    submit(s, ask(2));
    ts_sched_cancel(s, 2);
    heard end;
    assert_int_equal(count_kind(2, TS_EVENT_END, &end), 1); /* already, with the gate still closed */
    assert_int_equal(end.code, TS_ECANCELLED);
    assert_int_equal(count_kind(2, TS_EVENT_STARTED, NULL), 0);
    gate(false);
    await(1, TS_EVENT_END);
    assert_int_equal(puppet.begun, 1);
    ts_sched_free(s);
}

static void a_cancelled_picture_leaves_its_batch_mates_alone(void **state) {
    (void)state;
    ts_sched *s = start(8, 2, LONG_MS, 1);
    gate(true);
    submit(s, ask(1));
    submit(s, ask(2));
    await_runs(1);
    ts_sched_cancel(s, 1);
    heard end;
    assert_int_equal(count_kind(1, TS_EVENT_END, &end), 1); /* already, while the mate still runs */
    assert_int_equal(end.code, TS_ECANCELLED);
    assert_int_equal(count_kind(2, TS_EVENT_END, NULL), 0);
    ts_sched_cancel(s, 1); /* has ended: ignored */
    gate(false);
    assert_int_equal(await(2, TS_EVENT_END).code, TS_OK);
    assert_int_equal(count_kind(1, TS_EVENT_END, NULL), 1);
    assert_int_equal(count_kind(1, TS_EVENT_STEP, NULL), 0);
    heard picture;
    assert_int_equal(count_kind(2, TS_EVENT_PICTURE, &picture), 1);
    assert_int_equal(picture.colour, 20);
    ts_sched_free(s);
}

static void cancelling_what_half_runs_and_half_waits_ends_every_picture_once(void **state) {
    (void)state;
    ts_sched *s = start(16, 2, 0, 1);
    gate(true);
    ts_request r = ask(1);
    r.n = 5;
    submit(s, r);
    await_runs(1);
    ts_sched_cancel(s, 1);
    ts_sched_cancel(s, 1);
    assert_int_equal(await(1, TS_EVENT_END).code, TS_ECANCELLED);
    check_order(1, 5);
    gate(false);
    ts_sched_stats st;
    ts_sched_get_stats(s, &st);
    assert_int_equal(st.waiting, 0);
    assert_int_equal(st.cancelled, 1);
    assert_int_equal(st.pictures, 0);
    ts_sched_free(s);
    assert_int_equal(puppet.begun, 1);
}

static void one_failed_picture_fails_only_its_request(void **state) {
    (void)state;
    ts_sched *s = start(8, 2, LONG_MS, 1);
    ts_request bad = ask(2);
    bad.params.prompt = "nan";
    submit(s, ask(1));
    submit(s, bad);
    assert_int_equal(await(1, TS_EVENT_END).code, TS_OK);
    assert_int_equal(await(2, TS_EVENT_END).code, TS_ENONFINITE);
    ts_sched_stats st;
    ts_sched_get_stats(s, &st);
    assert_int_equal(st.completed, 1);
    assert_int_equal(st.failed, 1);
    ts_sched_free(s);
}

static void a_failed_run_ends_all_its_pictures_and_the_next_one_works(void **state) {
    (void)state;
    ts_sched *s = start(8, 2, LONG_MS, 1);
    ts_request bad = ask(2);
    bad.params.prompt = "device";
    submit(s, ask(1));
    submit(s, bad);
    assert_int_equal(await(1, TS_EVENT_END).code, TS_EDEVICE);
    assert_int_equal(await(2, TS_EVENT_END).code, TS_EDEVICE);
    ts_request good = ask(3);
    good.n = 2;
    submit(s, good);
    assert_int_equal(await(3, TS_EVENT_END).code, TS_OK);
    ts_sched_free(s);
}

static void a_picture_that_the_engine_forgets_is_an_error_not_a_hang(void **state) {
    (void)state;
    ts_sched *s = start(8, 2, 0, 1);
    ts_request r = ask(1);
    r.params.prompt = "silence";
    submit(s, r);
    assert_int_equal(await(1, TS_EVENT_END).code, TS_EINTERNAL);
    ts_sched_free(s);
}

static void two_groups_run_two_batches_at_once(void **state) {
    (void)state;
    ts_sched *s = start(8, 1, 0, 2);
    gate(true);
    submit(s, ask(1));
    submit(s, ask(2));
    await_runs(2); /* neither can have ended */
    assert_ptr_not_equal(run_at(0).group, run_at(1).group);
    ts_sched_stats st;
    ts_sched_get_stats(s, &st);
    assert_int_equal(st.groups, 2);
    assert_int_equal(st.groups_busy, 2);
    assert_int_equal(st.running, 2);
    gate(false);
    await(1, TS_EVENT_END);
    await(2, TS_EVENT_END);
    ts_sched_free(s);
}

static void a_shape_goes_only_to_a_group_that_can_run_it(void **state) {
    (void)state;
    ts_sched *s = start(32, 1, 0, 2);
    for (uint64_t token = 1; token <= 8; token++) {
        ts_request r = ask(token);
        r.shape.parallel.ranks = token % 2 ? 2 : 1;
        submit(s, r);
    }
    for (uint64_t token = 1; token <= 8; token++) assert_int_equal(await(token, TS_EVENT_END).code, TS_OK);
    for (int i = 0; i < 8; i++)
        if (run_at(i).shape.parallel.ranks == 2) assert_ptr_equal(run_at(i).group, &pair);
    ts_request r = ask(9);
    r.shape.parallel.ranks = 3;
    ts_error e = {0};
    assert_int_equal(ts_sched_submit(s, &r, &e), TS_EINVAL);
    assert_string_equal(e.param, "parallel.devices");
    assert_non_null(strstr(e.message, "2")); /* the larger group's word */
    ts_sched_free(s);
}

static void bad_requests_name_their_field_and_make_no_event(void **state) {
    (void)state;
    ts_sched *s = start(4, 4, 0, 1);
    ts_request r[11];
    const char *field[] = {"model", "model", "prompt", "n", "n", "width", "guidance_scale", "guidance_rescale",
                           "guidance_rescale", "guidance_interval", "guidance_interval"};
    for (int i = 0; i < 11; i++) r[i] = ask(1);
    r[0].model = 2;
    r[1].model = -1;
    r[2].params.prompt = NULL;
    r[3].n = 0;
    r[4].n = 5; /* more than the queue can ever hold */
    r[5].shape.width = 17;
    r[6].params.guidance_scale = (double)INFINITY;
    r[7].params.guidance_rescale = 1.5;
    r[8].params.guidance_rescale = (double)NAN;
    r[9].params.guidance_interval.to = 1.1;
    r[10].params.guidance_interval = (ts_interval){0.5, 0.5};
    for (int i = 0; i < 11; i++) {
        ts_error e = {0};
        assert_int_equal(ts_sched_submit(s, &r[i], &e), TS_EINVAL);
        assert_string_equal(e.param, field[i]);
    }
    assert_int_equal(events_of(1, NULL, 0), 0);
    ts_sched_free(s);
}

static void freeing_ends_everything_once_with_shutdown(void **state) {
    (void)state;
    ts_sched *s = start(32, 2, 0, 1);
    gate(true);
    for (uint64_t token = 1; token <= 6; token++) submit(s, ask(token));
    await_runs(1);
    ts_sched_free(s);
    for (uint64_t token = 1; token <= 6; token++) {
        heard end;
        assert_int_equal(count_kind(token, TS_EVENT_END, &end), 1);
        assert_int_equal(end.code, TS_ESHUTDOWN);
    }
    gate(false);
    ts_sched_free(NULL);
}

static void pixels_that_nobody_takes_are_freed(void **state) { /* a leak shows under AddressSanitizer */
    (void)state;
    ts_sched *s = start(8, 4, 0, 1);
    ear.keep_rgb = true;
    submit(s, ask(1));
    await(1, TS_EVENT_END);
    ts_sched_free(s);
}

static void bad_configurations_are_refused(void **state) {
    (void)state;
    ts_model *const m[] = {&models[0]};
    ts_group *const g[] = {&pair};
    const ts_sched_config good = {.max_queue = 1, .max_batch = 1, .on_event = hear};
    const char *field[] = {"max_queue", "max_batch", "max_batch", "max_wait_ms", "models", "groups"};
    for (int i = 0; i < 6; i++) {
        ts_sched_config c = good;
        if (i == 0) c.max_queue = 0;
        if (i == 1) c.max_batch = 0;
        if (i == 2) c.max_batch = TS_MAX_BATCH + 1;
        if (i == 3) c.max_wait_ms = -1;
        ts_sched *s = NULL;
        ts_error e = {0};
        assert_int_equal(ts_sched_new(&c, m, i != 4, g, i != 5, &s, &e), TS_EINVAL);
        assert_string_equal(e.param, field[i]);
        assert_null(s);
    }
}

static void figures_add_up(void **state) {
    (void)state;
    ts_sched *s = start(32, 4, 0, 1);
    occupy(s, 1);
    ts_request r = ask(2);
    r.n = 4;
    submit(s, r);
    gate(false);
    await(2, TS_EVENT_END);
    for (int i = 0; i < 1000 && !ts_sched_idle(s); i++) usleep(1000);
    ts_sched_stats st;
    ts_sched_get_stats(s, &st);
    assert_int_equal(st.pictures, 5);
    assert_int_equal(st.batches, 2);
    assert_int_equal(st.evaluations, 6);
    assert_int_equal(st.synchronous, 2);
    assert_true(st.wait_s == 0.5);
    assert_true(st.busy_s > 0);
    assert_int_equal(st.waiting + st.running + st.groups_busy, 0);
    ts_sched_free(s);
}

/* ---- a storm ---- */

/* ---- LoRAs ---- */

static void a_variant_is_made_once_and_serves_all_who_ask_for_it(void **state) {
    (void)state;
    ts_sched *s = start(8, 4, 0, 1);
    submit(s, ask_lora(1, "a", 1));
    await(1, TS_EVENT_END);
    submit(s, ask(2));
    await(2, TS_EVENT_END);
    submit(s, ask_lora(3, "a", 1));
    assert_int_equal(await(3, TS_EVENT_END).code, TS_OK);
    assert_string_equal(run_at(0).path, "/srv/loras/a.safetensors");
    assert_ptr_equal(run_at(1).model, &models[0]);
    assert_ptr_equal(run_at(2).model, run_at(0).model);
    assert_int_equal(puppet.made, 1);
    ts_sched_stats st;
    ts_sched_get_stats(s, &st);
    assert_int_equal(st.variants, 1);
    ts_sched_free(s);
    assert_int_equal(living(), 0);
}

static void only_equal_loras_share_a_batch(void **state) {
    (void)state;
    ts_sched *s = start(64, 16, 0, 1);
    occupy(s, 1);
    submit(s, ask_lora(2, "a", 1));
    submit(s, ask_lora(3, "a", 0.5));
    submit(s, ask(4));
    submit(s, ask_lora(5, "b", 1));
    submit(s, ask_lora(6, "a", 1));
    gate(false);
    for (uint64_t t = 2; t <= 6; t++) assert_int_equal(await(t, TS_EVENT_END).code, TS_OK);
    const int counts[] = {2, 1, 1, 1};
    const uint64_t seeds[] = {20, 30, 40, 50};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(run_at(1 + i).count, counts[i]);
        assert_int_equal(run_at(1 + i).seeds[0], seeds[i]);
    }
    assert_int_equal(run_at(1).seeds[1], 60);
    assert_int_equal(puppet.made, 3);
    ts_sched_free(s);
}

/* The puppet's models say when they go while a group runs or remembers them. */
static void the_least_recently_used_variants_beyond_the_budget_go(void **state) {
    (void)state;
    ts_sched *s = start(64, 4, 0, 2);
    const char *const names[] = {"a", "b", "a", "c", "a", "b"};
    for (int i = 0; i < 6; i++) {
        submit(s, ask_lora((uint64_t)i + 1, names[i], 1));
        await((uint64_t)i + 1, TS_EVENT_END);
    }
    /* Giving back is over once the next job of the same group has begun: two are kept. */
    for (int i = 0; i < 2000 && living() != 2; i++) usleep(1000);
    assert_int_equal(living(), 2);
    assert_int_equal(puppet.made, 4); /* a, b, c, and b again */
    ts_sched_free(s);
    assert_int_equal(living(), 0);
}

static void a_lora_that_cannot_be_had_fails_only_those_who_name_it(void **state) {
    (void)state;
    ts_sched *s = start(64, 4, 0, 1);
    occupy(s, 1);
    submit(s, ask_lora(2, "missing", 1));
    submit(s, ask_lora(3, "broken", 1));
    submit(s, ask_lora(4, "disk", 1));
    submit(s, ask_lora(5, "a", 1));
    submit(s, ask(6));
    gate(false);
    const ts_code codes[] = {TS_ENOTFOUND, TS_EINVAL, TS_EIO, TS_OK, TS_OK};
    for (uint64_t t = 2; t <= 6; t++) {
        assert_int_equal(await(t, TS_EVENT_END).code, codes[t - 2]);
        check_order(t, 1);
    }
    heard h = {0};
    count_kind(3, TS_EVENT_END, &h);
    assert_string_equal(h.param, "loras");
    assert_string_equal(h.message, "broken.safetensors: key");
    ts_sched_free(s);
}

static void making_a_variant_holds_up_neither_submit_nor_another_group(void **state) {
    (void)state;
    ts_sched *s = start(64, 4, 0, 2);
    pthread_mutex_lock(&puppet.lock);
    puppet.slow = true;
    pthread_mutex_unlock(&puppet.lock);
    submit(s, ask_lora(1, "a", 1));
    await(1, TS_EVENT_STARTED);
    submit(s, ask(2));
    await(2, TS_EVENT_END);
    /* The second group waits for the same variant, which is made once. */
    ts_request twin = ask_lora(3, "a", 1);
    twin.shape.width = 24;
    submit(s, twin);
    await(3, TS_EVENT_STARTED);
    assert_int_equal(count_kind(1, TS_EVENT_STEP, NULL), 0);
    pthread_mutex_lock(&puppet.lock);
    puppet.slow = false;
    pthread_mutex_unlock(&puppet.lock);
    await(1, TS_EVENT_END);
    await(3, TS_EVENT_END);
    assert_int_equal(puppet.made, 1);
    ts_sched_free(s);
}

static void loras_without_a_folder_are_refused(void **state) {
    (void)state;
    const ts_sched_config config = {.max_queue = 1, .max_batch = 1, .on_event = hear};
    ts_model *const m[] = {&models[0]};
    ts_group *const g[] = {&one};
    ts_sched *s = NULL;
    ts_error e = {0};
    assert_int_equal(ts_sched_new(&config, m, 1, g, 1, &s, &e), TS_OK);
    ts_request r = ask_lora(1, "a", 1);
    assert_int_equal(ts_sched_submit(s, &r, &e), TS_EINVAL);
    assert_string_equal(e.param, "loras");
    ts_sched_free(s);
}

enum { STORM_THREADS = 4, STORM_EACH = 150 };
static ts_sched *storm_sched;
static bool accepted[STORM_THREADS * STORM_EACH];

static void *storm(void *arg) {
    int base = *(const int *)arg;
    unsigned dice = (unsigned)base + 1;
    for (int i = 0; i < STORM_EACH; i++) {
        ts_request r = ask((uint64_t)(base + i + 1));
        dice = dice * 1103515245u + 12345u;
        r.n = 1 + (int)(dice >> 16) % 4;
        r.shape.width = dice >> 20 & 1 ? 16 : 24;
        r.shape.parallel.ranks = (int)(dice >> 21) % 3;
        if (dice >> 24 & 1) r.params.prompt = "nan";
        r.shape.lora_count = (int)(dice >> 26) & 1;
        snprintf(r.shape.loras[0].name, TS_LORA_NAME_BYTES, "%s", dice >> 27 & 1 ? "missing" : "a");
        r.shape.loras[0].scale = dice >> 28;
        accepted[base + i] = ts_sched_submit(storm_sched, &r, NULL) == TS_OK;
        if (dice >> 25 & 1) ts_sched_cancel(storm_sched, r.token);
        if (i > 4) ts_sched_cancel(storm_sched, r.token - 4);
        ts_sched_stats st;
        ts_sched_get_stats(storm_sched, &st);
        ts_sched_retry_after(storm_sched);
        if (!accepted[base + i]) usleep(500);
    }
    return NULL;
}

static void in_a_storm_every_accepted_request_ends_exactly_once(void **state) {
    (void)state;
    storm_sched = start(24, 3, 1, 2);
    pthread_t threads[STORM_THREADS];
    int base[STORM_THREADS];
    for (int i = 0; i < STORM_THREADS; i++) {
        base[i] = i * STORM_EACH;
        assert_int_equal(pthread_create(&threads[i], NULL, storm, &base[i]), 0);
    }
    for (int i = 0; i < STORM_THREADS; i++) pthread_join(threads[i], NULL);
    ts_sched_drain(storm_sched);
    for (int i = 0; i < 20000 && !ts_sched_idle(storm_sched); i++) usleep(1000);
    assert_true(ts_sched_idle(storm_sched));
    ts_sched_stats st;
    ts_sched_get_stats(storm_sched, &st);
    uint64_t taken = 0;
    for (int i = 0; i < STORM_THREADS * STORM_EACH; i++) {
        taken += accepted[i];
        assert_int_equal(count_kind((uint64_t)i + 1, TS_EVENT_END, NULL), accepted[i]);
    }
    assert_int_equal(st.accepted, taken);
    assert_int_equal(st.completed + st.failed + st.cancelled, taken);
    assert_int_equal(st.accepted + st.refused, STORM_THREADS * STORM_EACH);
    ts_sched_free(storm_sched);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_passes_queued_started_steps_picture_end),
        cmocka_unit_test(equal_shapes_of_two_requests_share_a_batch),
        cmocka_unit_test(whatever_differs_in_shape_or_model_runs_apart),
        cmocka_unit_test(a_batch_never_exceeds_max_batch),
        cmocka_unit_test(a_younger_twin_joins_the_oldest_batch_past_another_shape),
        cmocka_unit_test(a_lone_picture_waits_for_company_no_longer_than_told),
        cmocka_unit_test(waiting_for_company_ends_when_it_would_delay_another_shape),
        cmocka_unit_test(draining_refuses_newcomers_and_finishes_the_rest),
        cmocka_unit_test(a_full_queue_refuses_and_room_lets_in_again),
        cmocka_unit_test(positions_are_told_only_to_those_whose_place_changed),
        cmocka_unit_test(a_waiting_request_ends_at_once_when_cancelled_and_never_runs),
        cmocka_unit_test(a_cancelled_picture_leaves_its_batch_mates_alone),
        cmocka_unit_test(cancelling_what_half_runs_and_half_waits_ends_every_picture_once),
        cmocka_unit_test(one_failed_picture_fails_only_its_request),
        cmocka_unit_test(a_failed_run_ends_all_its_pictures_and_the_next_one_works),
        cmocka_unit_test(a_picture_that_the_engine_forgets_is_an_error_not_a_hang),
        cmocka_unit_test(two_groups_run_two_batches_at_once),
        cmocka_unit_test(a_shape_goes_only_to_a_group_that_can_run_it),
        cmocka_unit_test(bad_requests_name_their_field_and_make_no_event),
        cmocka_unit_test(freeing_ends_everything_once_with_shutdown),
        cmocka_unit_test(pixels_that_nobody_takes_are_freed),
        cmocka_unit_test(bad_configurations_are_refused),
        cmocka_unit_test(figures_add_up),
        cmocka_unit_test(a_variant_is_made_once_and_serves_all_who_ask_for_it),
        cmocka_unit_test(only_equal_loras_share_a_batch),
        cmocka_unit_test(the_least_recently_used_variants_beyond_the_budget_go),
        cmocka_unit_test(a_lora_that_cannot_be_had_fails_only_those_who_name_it),
        cmocka_unit_test(making_a_variant_holds_up_neither_submit_nor_another_group),
        cmocka_unit_test(loras_without_a_folder_are_refused),
        cmocka_unit_test(in_a_storm_every_accepted_request_ends_exactly_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
