#include "stage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct ear ear = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

void hear(void *arg, const ts_event *e) {
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

int events_of(uint64_t token, heard *ret, int most) {
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

int count_kind(uint64_t token, ts_event_kind kind, heard *ret_last) {
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

heard await(uint64_t token, ts_event_kind kind) {
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

ts_group pair = {2}, one = {1};
ts_model models[2];

ts_sched *start(int max_queue, int max_batch, int max_wait_ms, int group_count) {
    puppet_gate(false);
    puppet.begun = puppet.made = 0;
    puppet.groups = group_count;
    ear.count = 0;
    ear.keep_rgb = false;
    ts_sched_config config = {.max_queue = max_queue,
                              .max_batch = max_batch,
                              .max_wait_ms = max_wait_ms,
                              .on_event = hear,
                              .lora_folder = "/srv/loras",
                              .lora_bytes = 2 * VARIANT_BYTES};
    ts_model *const m[] = {&models[0], &models[1]};
    ts_group *const g[] = {&pair, &one};
    ts_sched *s = NULL;
    ts_error e = {0};
    assert_int_equal(ts_sched_new(&config, m, 2, g, group_count, &s, &e), TS_OK);
    return s;
}

ts_request ask(uint64_t token) {
    return (ts_request){.shape = {.width = 16, .height = 16, .steps = 3, .parallel = TS_PARALLEL_DEFAULT},
                        .params.prompt = "a lake",
                        .params.seed = token * 10,
                        .params.guidance_scale = 5,
                        .n = 1,
                        .token = token};
}

void submit(ts_sched *s, ts_request r) {
    ts_error e = {0};
    assert_int_equal(ts_sched_submit(s, &r, &e), TS_OK);
}

void occupy(ts_sched *s, uint64_t token) {
    puppet_gate(true);
    ts_request r = ask(token);
    r.shape.height = 808;
    submit(s, r);
    puppet_await_runs(1);
}

void check_order(uint64_t token, int pictures) {
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

ts_request ask_lora(uint64_t token, const char *name, double scale) {
    ts_request r = ask(token);
    r.shape.lora_count = 1;
    strcpy(r.shape.loras[0].name, name);
    r.shape.loras[0].scale = scale;
    return r;
}
