/* engine/rows: every split, its borders at every level, and windows token by token. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include "engine/rows.h"

static void every_split_covers_the_picture_with_no_empty_patch(void **state) {
    (void)state;
    for (int height = 1; height <= 130; height++)
        for (int levels = 0; levels <= 4; levels++)
            for (int n = 1; n <= TS_MAX_RANKS; n++) {
                ts_rows r;
                int patches = ts_rows_split(height, levels, n, &r);
                assert_int_equal(r.n, patches);
                assert_in_range(patches, 1, n);
                assert_int_equal(r.bound[0], 0);
                assert_int_equal(ts_rows_height(&r), height);
                for (int i = 0; i < patches; i++) assert_true(ts_rows_of(&r, i) > 0);
                /* Fewer than asked for only where the deepest level has fewer rows. */
                int deepest = (height + (1 << levels) - 1) >> levels;
                assert_int_equal(patches, n < deepest ? n : deepest);
            }
}

static void borders_survive_going_down_and_up_again(void **state) {
    (void)state;
    for (int height = 1; height <= 130; height++)
        for (int n = 1; n <= 8; n++) {
            enum { LEVELS = 3 };
            ts_rows at[LEVELS + 1];
            ts_rows_split(height, LEVELS, n, &at[0]);
            for (int l = 0; l < LEVELS; l++) {
                at[l + 1] = ts_rows_halve(at[l]);
                assert_int_equal(ts_rows_height(&at[l + 1]), (ts_rows_height(&at[l]) + 1) / 2);
                /* Inner borders are even, so that no 2x2 block is cut. */
                for (int i = 1; i < at[l].n; i++) assert_int_equal(at[l].bound[i] % 2, 0);
                for (int i = 0; i < at[l].n; i++) assert_true(ts_rows_of(&at[l + 1], i) > 0);
            }
            for (int l = LEVELS; l > 0; l--) {
                ts_rows up = ts_rows_double(at[l], ts_rows_height(&at[l - 1]));
                for (int i = 0; i <= up.n; i++) assert_int_equal(up.bound[i], at[l - 1].bound[i]);
            }
        }
}

static void patches_differ_by_one_row_of_the_deepest_level_at_most(void **state) {
    (void)state;
    for (int height = 8; height <= 128; height += 8)
        for (int n = 1; n <= 8; n++) {
            ts_rows r;
            int patches = ts_rows_split(height, 3, n, &r), least = height, most = 0;
            for (int i = 0; i < patches; i++) {
                int rows = ts_rows_of(&r, i);
                least = rows < least ? rows : least;
                most = rows > most ? rows : most;
            }
            assert_true(most - least <= 8);
        }
}

/* The definition, token by token: t is in the window if it is the patch's own, or among the w = ceil(p T)
 * tokens before its first or after its last one. */
static int in_window(long t, long begin, long end, double w) {
    if (t >= begin && t < end) return 1;
    return t < begin ? (double)(begin - t) <= w : (double)(t - end) < w;
}

static void windows_hold_exactly_the_tokens_of_the_definition(void **state) {
    (void)state;
    const double partials[] = {0, 0.1, 0.3, 0.5, 1, 1.7, 5, INFINITY};
    for (size_t k = 0; k < sizeof partials / sizeof *partials; k++)
        for (int height = 5; height <= 21; height += 8)
            for (int n = 1; n <= 4; n++) {
                enum { WIDTH = 7 };
                ts_rows r;
                ts_rows_split(height, 1, n, &r);
                for (int i = 0; i < r.n; i++) {
                    long begin = (long)r.bound[i] * WIDTH, end = (long)r.bound[i + 1] * WIDTH;
                    double w = ceil(partials[k] * (double)(end - begin));
                    ts_span s = ts_rows_window(&r, WIDTH, i, partials[k]);
                    long shared = 0;
                    for (long t = 0; t < (long)height * WIDTH; t++)
                        assert_int_equal(t >= s.begin && t < s.end, in_window(t, begin, end, w));
                    /* The shares of all patches are the window, each once. */
                    for (int j = 0; j < r.n; j++) {
                        ts_span part = ts_rows_share(&r, WIDTH, j, s);
                        assert_true(part.begin <= part.end);
                        if (part.begin == part.end) continue;
                        assert_int_equal(part.begin, s.begin + shared);
                        assert_true(part.begin >= (long)r.bound[j] * WIDTH);
                        assert_true(part.end <= (long)r.bound[j + 1] * WIDTH);
                        shared += part.end - part.begin;
                    }
                    assert_int_equal(shared, s.end - s.begin);
                }
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split_covers_the_picture_with_no_empty_patch),
        cmocka_unit_test(borders_survive_going_down_and_up_again),
        cmocka_unit_test(patches_differ_by_one_row_of_the_deepest_level_at_most),
        cmocka_unit_test(windows_hold_exactly_the_tokens_of_the_definition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
