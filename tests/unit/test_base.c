/* src/base: errors, allocation, buffers, files, mailbox, and the conversion of half-precision values. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/alloc.h"
#include "base/buffer.h"
#include "base/clock.h"
#include "base/dtype.h"
#include "base/error.h"
#include "base/file.h"
#include "base/mailbox.h"
#include "base/map.h"

/* ---- errors ---- */

static void every_code_has_a_name_a_status_and_a_sentence(void **state) {
    (void)state;
    for (int c = 0; c < TS_CODE_COUNT; c++) {
        ts_code code = (ts_code)c;
        assert_true(strlen(ts_code_name(code)) > 0 && strlen(ts_code_api(code)) > 0);
        assert_true(strlen(ts_code_sentence(code)) > 0);
        assert_in_range(ts_code_http(code), 200, 599);
        for (int d = 0; d < c; d++) assert_string_not_equal(ts_code_api(code), ts_code_api((ts_code)d));
    }
    assert_int_equal(ts_code_http(TS_EFULL), 429);
    assert_int_equal(ts_code_http(TS_CODE_COUNT), 500); /* a code that is none is still answered */
}

static void fail_returns_its_code_with_or_without_an_error_to_fill(void **state) {
    (void)state;
    assert_int_equal(ts_fail(NULL, TS_EIO, "x"), TS_EIO);
    ts_error e = {0};
    assert_int_equal(ts_fail_param(&e, TS_EINVAL, "steps", "steps is %d", 0), TS_EINVAL);
    assert_int_equal(e.code, TS_EINVAL);
    assert_string_equal(e.param, "steps");
    assert_string_equal(e.message, "steps is 0");
    assert_int_equal(ts_fail_errno(&e, TS_EIO, ENOENT, "opening %s", "f"), TS_EIO);
    assert_string_equal(e.message, "opening f: No such file or directory");
    assert_string_equal(e.param, "");
}

static void context_goes_before_the_message_and_keeps_the_param(void **state) {
    (void)state;
    ts_error e = {0};
    ts_fail_param(&e, TS_EFORMAT, "key", "is missing");
    ts_error_context(&e, TS_EFORMAT, "file %d", 7);
    assert_string_equal(e.message, "file 7: is missing");
    assert_string_equal(e.param, "key");
    assert_int_equal(ts_error_context(NULL, TS_EFORMAT, "x"), TS_EFORMAT);
}

static void an_error_may_be_made_from_its_own_message(void **state) {
    (void)state;
    ts_error e = {0};
    ts_fail_param(&e, TS_EIO, "p", "inner");
    ts_fail_param(&e, TS_EDEVICE, e.param, "outer (%s)", e.message);
    assert_string_equal(e.message, "outer (inner)");
    assert_string_equal(e.param, "p");
}

static void a_long_message_is_cut_and_terminated(void **state) {
    (void)state;
    char *text = malloc(2001);
    assert_non_null(text);
    memset(text, 'x', 2000);
    text[2000] = 0;
    ts_error e = {0};
    ts_fail_param(&e, TS_EINVAL, text, "%s", text);
    assert_int_equal(strlen(e.message), sizeof e.message - 1);
    assert_int_equal(strlen(e.param), sizeof e.param - 1);
    ts_error_context(&e, TS_EINVAL, "%s", text);
    assert_int_equal(strlen(e.message), sizeof e.message - 1);
    ts_fail_errno(&e, TS_EIO, EIO, "%s", text);
    assert_int_equal(strlen(e.message), sizeof e.message - 1);
    free(text);
}

/* ---- allocation ---- */

static void sizes_that_overflow_are_refused(void **state) {
    (void)state;
    size_t r = 42;
    assert_false(ts_mul_size(SIZE_MAX / 2 + 1, 2, &r));
    assert_false(ts_add_size(SIZE_MAX, 1, &r));
    assert_int_equal(r, 42);
    assert_true(ts_mul_size(6, 7, &r) && r == 42);
    assert_null(ts_alloc_aligned(SIZE_MAX));
    assert_null(ts_strndup("x", SIZE_MAX));
    int *items = NULL;
    size_t capacity = 0;
    assert_false(ts_grow(&items, &capacity, SIZE_MAX, sizeof *items));
    assert_false(ts_grow(&items, &capacity, SIZE_MAX / 2, sizeof *items));
    assert_null(items);
    assert_int_equal(capacity, 0);
}

static void growing_keeps_what_is_there(void **state) {
    (void)state;
    int *items = NULL;
    size_t capacity = 0;
    for (int i = 0; i < 1000; i++) {
        assert_true(ts_grow(&items, &capacity, (size_t)i + 1, sizeof *items));
        items[i] = i;
    }
    for (int i = 0; i < 1000; i++) assert_int_equal(items[i], i);
    free(items);
}

static void tensors_are_aligned_and_strings_copied(void **state) {
    (void)state;
    for (size_t n = 0; n < 200; n += 33) {
        char *p = ts_alloc_aligned(n);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % TS_ALIGN, 0);
        if (n) memset(p, 1, n);
        free(p);
    }
    assert_null(ts_strdup(NULL));
    char *s = ts_strndup("tessera", 4);
    assert_string_equal(s, "tess");
    free(s);
    s = ts_format("%d-%s", 3, "x");
    assert_string_equal(s, "3-x");
    free(s);
}

/* ---- buffers ---- */

static void a_buffer_refuses_what_goes_beyond_its_maximum_and_keeps_the_rest(void **state) {
    (void)state;
    ts_buffer b;
    ts_buffer_init(&b, 10);
    assert_int_equal(ts_buffer_append(&b, "12345678", 8), TS_OK);
    assert_int_equal(ts_buffer_append(&b, "abc", 3), TS_ETOOLARGE);
    assert_int_equal(ts_buffer_printf(&b, "%d", 123), TS_ETOOLARGE);
    assert_int_equal(ts_buffer_append(&b, "x", SIZE_MAX), TS_ETOOLARGE);
    assert_string_equal(ts_buffer_text(&b), "12345678");
    assert_int_equal(ts_buffer_printf(&b, "%d", 90), TS_OK);
    assert_string_equal(ts_buffer_text(&b), "1234567890");
    assert_int_equal(b.size, 10);
    ts_buffer_free(&b);
    assert_int_equal(b.size, 0);
    assert_int_equal(ts_buffer_append(&b, "again", 5), TS_OK);
    ts_buffer_free(&b);
    ts_buffer_free(NULL);
}

static void taken_bytes_leave_the_buffer_empty_and_usable(void **state) {
    (void)state;
    ts_buffer b;
    ts_buffer_init(&b, 100000);
    for (int i = 0; i < 5000; i++) assert_int_equal(ts_buffer_printf(&b, "%04d;", i), TS_OK);
    size_t n = 0;
    char *text = ts_buffer_take(&b, &n);
    assert_int_equal(n, 25000);
    assert_int_equal(strlen(text), n);
    assert_memory_equal(text + 24990, "4998;4999;", 10);
    free(text);
    assert_int_equal(b.size, 0);
    text = ts_buffer_take(&b, &n);
    assert_string_equal(text, "");
    free(text);
    ts_buffer_free(&b);
}

/* ---- files ---- */

static char folder[] = "/tmp/tessera-base-XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return rmdir(folder);
}

static void a_file_written_reads_back_and_maps(void **state) {
    (void)state;
    char *path = ts_path_join(folder, "f");
    ts_error e = {0};
    assert_int_equal(ts_write_file(path, "old", 3, &e), TS_OK);
    assert_int_equal(ts_write_file(path, "new\0text", 8, &e), TS_OK);
    char *text = NULL;
    size_t n = 0;
    assert_int_equal(ts_read_file(path, 8, &text, &n, &e), TS_OK);
    assert_int_equal(n, 8);
    assert_memory_equal(text, "new\0text", 9); /* terminated */
    free(text);
    text = NULL;
    assert_int_equal(ts_read_file(path, 7, &text, &n, &e), TS_ETOOLARGE);
    assert_null(text);
    ts_map map = {0};
    assert_int_equal(ts_map_open(path, &map, &e), TS_OK);
    assert_int_equal(map.size, 8);
    assert_memory_equal(map.data, "new\0text", 8);
    ts_map_close(&map);
    ts_map_close(&map);
    ts_map_close(NULL);
    assert_true(ts_file_exists(path));
    assert_false(ts_file_exists(folder));
    unlink(path);
    assert_false(ts_file_exists(path));
    free(path);
}

static void what_is_no_regular_file_is_an_error_not_a_hang(void **state) {
    (void)state;
    ts_error e = {0};
    char *text = NULL;
    ts_map map = {0};
    assert_int_equal(ts_read_file("/nonexistent/x", 10, &text, NULL, &e), TS_ENOTFOUND);
    assert_non_null(strstr(e.message, "/nonexistent/x"));
    assert_int_equal(ts_map_open(folder, &map, &e), TS_EIO);
    char *fifo = ts_path_join(folder, "fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(ts_map_open(fifo, &map, &e), TS_EIO);
    assert_int_equal(ts_read_file(fifo, 10, &text, NULL, &e), TS_EIO);
    unlink(fifo);
    free(fifo);
    assert_int_equal(ts_write_file("/nonexistent/x", "a", 1, &e), TS_EIO);
    assert_null(text);
}

static void an_empty_file_is_fine(void **state) {
    (void)state;
    char *path = ts_path_join(folder, "empty");
    ts_error e = {0};
    assert_int_equal(ts_write_file(path, NULL, 0, &e), TS_OK);
    ts_map map = {.size = 9};
    assert_int_equal(ts_map_open(path, &map, &e), TS_OK);
    assert_int_equal(map.size, 0);
    ts_map_close(&map);
    char *text = NULL;
    assert_int_equal(ts_read_file(path, 0, &text, NULL, &e), TS_OK);
    assert_string_equal(text, "");
    free(text);
    unlink(path);
    free(path);
}

static void paths_join_with_one_slash(void **state) {
    (void)state;
    const char *dirs[] = {"a", "a/"};
    for (int i = 0; i < 2; i++) {
        char *p = ts_path_join(dirs[i], "b");
        assert_string_equal(p, "a/b");
        free(p);
    }
}

/* ---- mailbox ---- */

typedef struct letter {
    ts_message base;
    int from, number;
} letter;

static atomic_int discarded, woken;

static void discard(ts_message *m) {
    atomic_fetch_add(&discarded, 1);
    free(m);
}

static void wake(void *arg) {
    atomic_fetch_add((atomic_int *)arg, 1);
}

static letter *write_letter(int from, int number) {
    letter *l = ts_new0(letter);
    assert_non_null(l);
    l->base.discard = discard;
    l->from = from;
    l->number = number;
    return l;
}

static void a_full_box_refuses_and_wakes_only_when_it_was_empty(void **state) {
    (void)state;
    ts_mailbox *box;
    atomic_store(&woken, 0);
    atomic_store(&discarded, 0);
    assert_int_equal(ts_mailbox_new(2, wake, &woken, &box), TS_OK);
    assert_null(ts_mailbox_take_all(box));
    for (int i = 0; i < 2; i++) assert_int_equal(ts_mailbox_post(box, &write_letter(0, i)->base), TS_OK);
    assert_int_equal(atomic_load(&woken), 1);
    letter *refused = write_letter(0, 2);
    assert_int_equal(ts_mailbox_post(box, &refused->base), TS_EFULL);
    ts_message *m = ts_mailbox_take_all(box);
    for (int i = 0; i < 2; i++) {
        ts_message *next = m->next;
        assert_int_equal(((letter *)m)->number, i);
        free(m);
        m = next;
    }
    assert_null(m);
    assert_int_equal(ts_mailbox_post(box, &refused->base), TS_OK);
    assert_int_equal(atomic_load(&woken), 2);
    ts_mailbox_free(box);
    assert_int_equal(atomic_load(&discarded), 1);
    ts_mailbox_free(NULL);
}

enum { WRITERS = 4, LETTERS = 2000 };
static ts_mailbox *shared;

static void *writer(void *arg) {
    int from = *(const int *)arg;
    for (int i = 0; i < LETTERS; i++) {
        letter *l = write_letter(from, i);
        while (ts_mailbox_post(shared, &l->base)) usleep(50);
    }
    return NULL;
}

static void letters_of_many_writers_arrive_once_and_in_each_ones_order(void **state) {
    (void)state;
    assert_int_equal(ts_mailbox_new(64, wake, &woken, &shared), TS_OK);
    pthread_t threads[WRITERS];
    int from[WRITERS], next[WRITERS] = {0}, got = 0;
    for (int i = 0; i < WRITERS; i++) {
        from[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, writer, &from[i]), 0);
    }
    while (got < WRITERS * LETTERS) {
        ts_message *m = ts_mailbox_take_all(shared);
        if (!m) usleep(50);
        while (m) {
            letter *l = (letter *)m;
            m = m->next;
            assert_int_equal(l->number, next[l->from]++);
            got++;
            free(l);
        }
    }
    for (int i = 0; i < WRITERS; i++) pthread_join(threads[i], NULL);
    assert_null(ts_mailbox_take_all(shared));
    ts_mailbox_free(shared);
}

/* ---- element types ---- */

static void bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    /* Patterns worked out by hand from the bit layout: 1 + 2^-8 lies between 0x3f80 and 0x3f81. */
    assert_int_equal(ts_f32_to_bf16(1.0f), 0x3f80);
    assert_int_equal(ts_f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);
    assert_int_equal(ts_f32_to_bf16(1.0f + 0x3p-8f), 0x3f82);
    assert_int_equal(ts_f32_to_bf16(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);
    assert_int_equal(ts_f32_to_bf16(-2.5f), 0xc020);
    assert_int_equal(ts_f32_to_bf16(INFINITY), 0x7f80);
    assert_int_equal(ts_f32_to_bf16(3.4e38f), 0x7f80); /* rounds up to infinity */
    assert_true(isnan(ts_bf16_to_f32(ts_f32_to_bf16(NAN))));
    for (uint32_t h = 0; h < 0x7f80; h++) assert_int_equal(ts_f32_to_bf16(ts_bf16_to_f32((uint16_t)h)), h);
}

static void time_goes_forward(void **state) {
    (void)state;
    uint64_t a = ts_now_ns();
    usleep(2000);
    double s = ts_seconds(ts_now_ns() - a);
    assert_true(s >= 0.002 && s < 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_has_a_name_a_status_and_a_sentence),
        cmocka_unit_test(fail_returns_its_code_with_or_without_an_error_to_fill),
        cmocka_unit_test(context_goes_before_the_message_and_keeps_the_param),
        cmocka_unit_test(an_error_may_be_made_from_its_own_message),
        cmocka_unit_test(a_long_message_is_cut_and_terminated),
        cmocka_unit_test(sizes_that_overflow_are_refused),
        cmocka_unit_test(growing_keeps_what_is_there),
        cmocka_unit_test(tensors_are_aligned_and_strings_copied),
        cmocka_unit_test(a_buffer_refuses_what_goes_beyond_its_maximum_and_keeps_the_rest),
        cmocka_unit_test(taken_bytes_leave_the_buffer_empty_and_usable),
        cmocka_unit_test(a_file_written_reads_back_and_maps),
        cmocka_unit_test(what_is_no_regular_file_is_an_error_not_a_hang),
        cmocka_unit_test(an_empty_file_is_fine),
        cmocka_unit_test(paths_join_with_one_slash),
        cmocka_unit_test(a_full_box_refuses_and_wakes_only_when_it_was_empty),
        cmocka_unit_test(letters_of_many_writers_arrive_once_and_in_each_ones_order),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(time_goes_forward),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
