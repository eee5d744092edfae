/* The scheduler alone, over an engine that is a puppet. */
#include "stage.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"

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
    run r = puppet_run(0);
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
    puppet_gate(false);
    for (int i = 0; i < 6; i++) {
        await((uint64_t)i + 2, TS_EVENT_END);
        run seen = puppet_run(i + 1);
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
    puppet_gate(false);
    await(2, TS_EVENT_END);
    assert_int_equal(puppet_run(1).count, 4);
    assert_int_equal(puppet_run(2).count, 4);
    assert_int_equal(puppet_run(3).count, 2);
    check_order(2, 10);
    for (int k = 0; k < 10; k++) assert_int_equal(puppet_run(1 + k / 4).seeds[k % 4], 20 + k);
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
    puppet_gate(false);
    await(3, TS_EVENT_END);
    await(4, TS_EVENT_END);
    assert_int_equal(puppet_run(1).count, 2);
    assert_int_equal(puppet_run(1).seeds[1], 40);
    assert_int_equal(puppet_run(2).seeds[0], 30);
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
    puppet_gate(false);
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
    puppet_gate(false);
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
    puppet_gate(false);
    await(1, TS_EVENT_END);
    assert_int_equal(puppet.begun, 1);
    ts_sched_free(s);
}

static void a_cancelled_picture_leaves_its_batch_mates_alone(void **state) {
    (void)state;
    ts_sched *s = start(8, 2, LONG_MS, 1);
    puppet_gate(true);
    submit(s, ask(1));
    submit(s, ask(2));
    puppet_await_runs(1);
    ts_sched_cancel(s, 1);
    heard end;
    assert_int_equal(count_kind(1, TS_EVENT_END, &end), 1); /* already, while the mate still runs */
    assert_int_equal(end.code, TS_ECANCELLED);
    assert_int_equal(count_kind(2, TS_EVENT_END, NULL), 0);
    ts_sched_cancel(s, 1); /* has ended: ignored */
    puppet_gate(false);
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
    puppet_gate(true);
    ts_request r = ask(1);
    r.n = 5;
    submit(s, r);
    puppet_await_runs(1);
    ts_sched_cancel(s, 1);
    ts_sched_cancel(s, 1);
    assert_int_equal(await(1, TS_EVENT_END).code, TS_ECANCELLED);
    check_order(1, 5);
    puppet_gate(false);
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
    puppet_gate(true);
    submit(s, ask(1));
    submit(s, ask(2));
    puppet_await_runs(2); /* neither can have ended */
    assert_ptr_not_equal(puppet_run(0).group, puppet_run(1).group);
    ts_sched_stats st;
    ts_sched_get_stats(s, &st);
    assert_int_equal(st.groups, 2);
    assert_int_equal(st.groups_busy, 2);
    assert_int_equal(st.running, 2);
    puppet_gate(false);
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
        if (puppet_run(i).shape.parallel.ranks == 2) assert_ptr_equal(puppet_run(i).group, &pair);
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
    const char *field[] = {"model",
                           "model",
                           "prompt",
                           "n",
                           "n",
                           "width",
                           "guidance_scale",
                           "guidance_rescale",
                           "guidance_rescale",
                           "guidance_interval",
                           "guidance_interval"};
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
    puppet_gate(true);
    for (uint64_t token = 1; token <= 6; token++) submit(s, ask(token));
    puppet_await_runs(1);
    ts_sched_free(s);
    for (uint64_t token = 1; token <= 6; token++) {
        heard end;
        assert_int_equal(count_kind(token, TS_EVENT_END, &end), 1);
        assert_int_equal(end.code, TS_ESHUTDOWN);
    }
    puppet_gate(false);
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
    puppet_gate(false);
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
        cmocka_unit_test(in_a_storm_every_accepted_request_ends_exactly_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
