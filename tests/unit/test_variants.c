/* Models with LoRA files in the scheduler: who makes them, who shares them, when they go. */
#include "stage.h"

#include <string.h>
#include <unistd.h>

static void a_variant_is_made_once_and_serves_all_who_ask_for_it(void **state) {
    (void)state;
    ts_sched *s = start(8, 4, 0, 1);
    submit(s, ask_lora(1, "a", 1));
    await(1, TS_EVENT_END);
    submit(s, ask(2));
    await(2, TS_EVENT_END);
    submit(s, ask_lora(3, "a", 1));
    assert_int_equal(await(3, TS_EVENT_END).code, TS_OK);
    assert_string_equal(puppet_run(0).path, "/srv/loras/a.safetensors");
    assert_ptr_equal(puppet_run(1).model, &models[0]);
    assert_ptr_equal(puppet_run(2).model, puppet_run(0).model);
    assert_int_equal(puppet.made, 1);
    ts_sched_stats st;
    ts_sched_get_stats(s, &st);
    assert_int_equal(st.variants, 1);
    ts_sched_free(s);
    assert_int_equal(puppet_living(), 0);
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
    puppet_gate(false);
    for (uint64_t t = 2; t <= 6; t++) assert_int_equal(await(t, TS_EVENT_END).code, TS_OK);
    const int counts[] = {2, 1, 1, 1};
    const uint64_t seeds[] = {20, 30, 40, 50};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(puppet_run(1 + i).count, counts[i]);
        assert_int_equal(puppet_run(1 + i).seeds[0], seeds[i]);
    }
    assert_int_equal(puppet_run(1).seeds[1], 60);
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
    for (int i = 0; i < 2000 && puppet_living() != 2; i++) usleep(1000);
    assert_int_equal(puppet_living(), 2);
    assert_int_equal(puppet.made, 4); /* a, b, c, and b again */
    ts_sched_free(s);
    assert_int_equal(puppet_living(), 0);
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
    puppet_gate(false);
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

static void set_stamp(uint64_t stamp) {
    pthread_mutex_lock(&puppet.lock);
    puppet.stamp = stamp;
    pthread_mutex_unlock(&puppet.lock);
}

static ts_request ask_stamped(uint64_t token, uint64_t stamp) {
    ts_request r = ask_lora(token, "a", 1);
    r.shape.loras[0].stamp = stamp;
    return r;
}

/* Replaced while its request waited, then put back: what was made of the other file is not taken for it. */
static void a_variant_serves_the_file_that_it_was_made_of(void **state) {
    (void)state;
    ts_sched *s = start(64, 4, 0, 1);
    occupy(s, 1);
    submit(s, ask_stamped(2, 10));
    set_stamp(20);
    puppet_gate(false);
    assert_int_equal(await(2, TS_EVENT_END).code, TS_OK);
    submit(s, ask_stamped(3, 20));
    assert_int_equal(await(3, TS_EVENT_END).code, TS_OK);
    assert_int_equal(puppet.made, 1);
    set_stamp(10);
    submit(s, ask_stamped(4, 10));
    assert_int_equal(await(4, TS_EVENT_END).code, TS_OK);
    assert_int_equal(puppet.made, 2);
    assert_ptr_not_equal(puppet_run(3).model, puppet_run(2).model);
    set_stamp(0);
    ts_sched_free(s);
}

/* Two groups make variants of one name whose file is replaced meanwhile: each gets its own out of the list
 * again. */
static void files_that_change_while_two_groups_read_them_mix_nothing_up(void **state) {
    (void)state;
    for (int i = 0; i < 20; i++) {
        ts_sched *s = start(64, 4, 0, 2);
        pthread_mutex_lock(&puppet.lock);
        puppet.slow = true;
        puppet.stamp = 10;
        pthread_mutex_unlock(&puppet.lock);
        submit(s, ask_stamped(1, 10));
        await(1, TS_EVENT_STARTED);
        usleep(500 * (unsigned)(i % 4));
        set_stamp(20);
        ts_request twin = i % 2 ? ask_lora(2, "disk", 1) : ask_stamped(2, 20);
        twin.shape.width = 24;
        submit(s, twin);
        await(2, TS_EVENT_STARTED);
        pthread_mutex_lock(&puppet.lock);
        puppet.slow = false;
        pthread_mutex_unlock(&puppet.lock);
        assert_int_equal(await(1, TS_EVENT_END).code, TS_OK);
        assert_int_equal(await(2, TS_EVENT_END).code, i % 2 ? TS_EIO : TS_OK);
        submit(s, ask_stamped(3, 20));
        assert_int_equal(await(3, TS_EVENT_END).code, TS_OK);
        ts_sched_free(s);
        assert_int_equal(puppet_living(), 0);
    }
    set_stamp(0);
}

/* Requests that came before a file was replaced take the model that is there by now. */
static void requests_with_an_old_stamp_share_one_variant(void **state) {
    (void)state;
    ts_sched *s = start(64, 1, 0, 1);
    occupy(s, 1);
    for (uint64_t t = 2; t <= 5; t++) submit(s, ask_stamped(t, 10));
    set_stamp(20);
    puppet_gate(false);
    for (uint64_t t = 2; t <= 5; t++) assert_int_equal(await(t, TS_EVENT_END).code, TS_OK);
    assert_int_equal(puppet.made, 1);
    set_stamp(0);
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

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_variant_is_made_once_and_serves_all_who_ask_for_it),
        cmocka_unit_test(only_equal_loras_share_a_batch),
        cmocka_unit_test(the_least_recently_used_variants_beyond_the_budget_go),
        cmocka_unit_test(a_lora_that_cannot_be_had_fails_only_those_who_name_it),
        cmocka_unit_test(making_a_variant_holds_up_neither_submit_nor_another_group),
        cmocka_unit_test(a_variant_serves_the_file_that_it_was_made_of),
        cmocka_unit_test(files_that_change_while_two_groups_read_them_mix_nothing_up),
        cmocka_unit_test(requests_with_an_old_stamp_share_one_variant),
        cmocka_unit_test(loras_without_a_folder_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
