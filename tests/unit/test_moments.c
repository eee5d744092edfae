/* engine/moments: GroupNorm statistics from those of patches, against the definition over all elements. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>
#include "engine/moments.h"

enum { PATCHES = 3, ELEMENTS = 40 };

static double draw(unsigned *dice) {
    *dice = *dice * 1664525u + 1013904223u;
    return (double)(*dice >> 8) / (1 << 24) * 4 - 1;
}

/* Patch p has ELEMENTS - 7 p elements. */
static int size_of(int p) {
    return ELEMENTS - 7 * p;
}

static void fill(double x[PATCHES][ELEMENTS], unsigned seed) {
    for (int p = 0; p < PATCHES; p++)
        for (int i = 0; i < size_of(p); i++) x[p][i] = draw(&seed) + p;
}

static void sums(const double *x, int n, double ret[2]) {
    ret[0] = ret[1] = 0;
    for (int i = 0; i < n; i++) {
        ret[0] += x[i];
        ret[1] += x[i] * x[i];
    }
}

static void close_to(double seen, double expected) {
    assert_true(fabs(seen - expected) <= 1e-12 * (1 + fabs(expected)));
}

static ts_moments merge_of(double own[2], double others[2][2]) {
    return (ts_moments){.batch = 1,
                        .groups = 1,
                        .own = own,
                        .own_count = size_of(0),
                        .others = 2,
                        .other = {others[0], others[1]},
                        .other_count = {size_of(1), size_of(2)}};
}

static void fresh_statistics_are_those_of_all_elements(void **state) {
    (void)state;
    double x[PATCHES][ELEMENTS], own[2], others[2][2], ret[2], mean = 0, variance = 0;
    int n = 0;
    fill(x, 5);
    sums(x[0], size_of(0), own);
    for (int p = 1; p < PATCHES; p++) sums(x[p], size_of(p), others[p - 1]);
    for (int p = 0; p < PATCHES; p++)
        for (int i = 0; i < size_of(p); i++, n++) mean += x[p][i];
    mean /= n;
    for (int p = 0; p < PATCHES; p++)
        for (int i = 0; i < size_of(p); i++) variance += (x[p][i] - mean) * (x[p][i] - mean);
    variance /= n; /* biased */
    ts_moments m = merge_of(own, others);
    ts_moments_merge(&m, ret);
    close_to(ret[0], mean);
    close_to(ret[1], variance);
}

static void corrected_statistics_are_the_old_ones_plus_the_full_own_change(void **state) {
    (void)state;
    double before[PATCHES][ELEMENTS], now[PATCHES][ELEMENTS], own[2], own_before[2], others[2][2], ret[2];
    fill(before, 5);
    fill(now, 6);
    sums(before[0], size_of(0), own_before);
    sums(now[0], size_of(0), own);
    double sum = own_before[0], squares = own_before[1], count = size_of(0);
    for (int p = 1; p < PATCHES; p++) {
        sums(before[p], size_of(p), others[p - 1]);
        sum += others[p - 1][0];
        squares += others[p - 1][1];
        count += size_of(p);
    }
    ts_moments m = merge_of(own, others);
    m.own_before = own_before;
    ts_moments_merge(&m, ret);
    double mean = sum / count + (own[0] - own_before[0]) / size_of(0);
    double square = squares / count + (own[1] - own_before[1]) / size_of(0);
    close_to(ret[0], mean);
    close_to(ret[1], square - mean * mean);
}

static void a_corrected_variance_keeps_three_quarters_of_what_is_known(void **state) {
    (void)state;
    /* Own elements fall from +-10 to 1 and 3, others' stay at 0: E[x^2] loses more than it had. */
    double own_before[2] = {0, 200}, own[2] = {4, 10}, other[2] = {0, 0}, ret[2];
    ts_moments m = {.batch = 1,
                    .groups = 1,
                    .own = own,
                    .own_count = 2,
                    .others = 1,
                    .other = {other},
                    .other_count = {2},
                    .own_before = own_before};
    ts_moments_merge(&m, ret);
    close_to(ret[0], 2);
    close_to(ret[1], 0.75 * 1.5); /* of 1, 3, 0 and 0 */
    /* From +-2 to 1 and 1, others' stay at +-sqrt 8: E[x^2] falls from 6 to 3, the mean rises to 1. */
    double small_before[2] = {0, 8}, small[2] = {2, 2}, wide[2] = {0, 16};
    m.own = small;
    m.own_before = small_before;
    m.other[0] = wide;
    ts_moments_merge(&m, ret);
    close_to(ret[0], 1);
    close_to(ret[1], 0.75 * (4.5 - 0.25));
}

static void local_statistics_know_of_nobody(void **state) {
    (void)state;
    double own[4] = {4, 10, 6, 20}, ret[4];
    ts_moments m = {.batch = 1, .groups = 2, .own = own, .own_count = 2};
    ts_moments_merge(&m, ret);
    close_to(ret[0], 2);
    close_to(ret[1], 1);
    close_to(ret[2], 3);
    close_to(ret[3], 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fresh_statistics_are_those_of_all_elements),
        cmocka_unit_test(corrected_statistics_are_the_old_ones_plus_the_full_own_change),
        cmocka_unit_test(a_corrected_variance_keeps_three_quarters_of_what_is_known),
        cmocka_unit_test(local_statistics_know_of_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
