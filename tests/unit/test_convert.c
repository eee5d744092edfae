/* Element types to each other, by every table that this processor can run. */
#include "fixture.h"

#include <math.h>
#include "kernels/convert.h"
#include "kernels/cpu/vec.h"

/* binary16 by its definition (IEEE 754-2019, 3.4). */
static double half_value(unsigned h) {
    int exponent = (int)(h >> 10 & 31u), mantissa = (int)(h & 1023u);
    double v = exponent == 31  ? (mantissa ? NAN : INFINITY)
               : exponent == 0 ? ldexp(mantissa, -24)
                               : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000u ? -v : v;
}

/* All numbers of 16 bits, from an odd address, as long arrays are: what the vectors do. */
enum { ALL = 65536 };

static void from_halves(const ts_vec *vec, uint16_t *half, float *wide) {
    unsigned char *odd = malloc(2 * ALL + 1);
    assert_non_null(odd);
    for (unsigned h = 0; h < ALL; h++) half[h] = (uint16_t)h;
    memcpy(odd + 1, half, 2 * ALL);
    vec->convert(TS_F16, odd + 1, TS_F32, wide, ALL);
    free(odd);
}

static void halves_convert_as_the_standard_says(void **state) {
    const ts_vec *vec = *state;
    uint16_t *half = ts_array0(uint16_t, ALL), *back = ts_array0(uint16_t, ALL);
    float *wide = ts_array0(float, ALL);
    assert_true(half && back && wide);
    from_halves(vec, half, wide);
    vec->convert(TS_F32, wide, TS_F16, back, ALL);
    for (unsigned h = 0; h < ALL; h++) {
        const double want = half_value(h);
        if (isnan(want)) {
            assert_true(isnan(wide[h]) && (back[h] & 0x7fffu) > 0x7c00u);
        } else {
            assert_true((double)wide[h] == want && !signbit(wide[h]) == !signbit(want));
            assert_int_equal(back[h], h);
        }
    }
    free(half), free(back), free(wide);
}

/* Half-way to the next value goes to the even one; a little beyond goes up, a little less down. */
static void halves_round_to_even(void **state) {
    const ts_vec *vec = *state;
    float *f = ts_array0(float, 3 * ALL);
    uint16_t *have = ts_array0(uint16_t, 3 * ALL);
    assert_true(f && have);
    for (unsigned h = 0; h < ALL; h++) {
        if ((h & 0x7fffu) >= 0x7bffu) continue; /* those stay 0 */
        const double value = half_value(h), next = half_value(h + 1);
        const float middle = (float)((value + next) / 2);
        f[3 * h] = middle;
        f[3 * h + 1] = nextafterf(middle, (float)next);
        f[3 * h + 2] = nextafterf(middle, (float)value);
    }
    vec->convert(TS_F32, f, TS_F16, have, 3 * ALL);
    for (unsigned h = 0; h < ALL; h++) {
        if ((h & 0x7fffu) >= 0x7bffu) continue;
        assert_int_equal(have[3 * h], h & 1u ? h + 1 : h);
        assert_int_equal(have[3 * h + 1], h + 1);
        assert_int_equal(have[3 * h + 2], h);
    }
    const float edge[] = {65519.996f, 65520.0f, -1e30f};
    const uint16_t want[] = {0x7bff, 0x7c00, 0xfc00};
    vec->convert(TS_F32, edge, TS_F16, have, 3);
    assert_memory_equal(have, want, sizeof want);
    free(f), free(have);
}

/* base/dtype.h has the same rule for one value. */
static void bfloats_round_to_even(void **state) {
    const ts_vec *vec = *state;
    uint16_t *half = ts_array0(uint16_t, ALL), *have = ts_array0(uint16_t, ALL);
    float *f = ts_array0(float, ALL);
    assert_true(half && have && f);
    uint32_t x = 12345;
    for (int i = 0; i < ALL; i++) {
        x = x * 1664525u + 1013904223u; /* any bits */
        memcpy(&f[i], &x, sizeof x);
        if (i % 16 == 0) f[i] = 1 + (float)(i / 16) * 0x1p-8f; /* half of them half-way */
    }
    vec->convert(TS_F32, f, TS_BF16, have, ALL);
    for (int i = 0; i < ALL; i++) assert_int_equal(have[i], ts_f32_to_bf16(f[i]));
    vec->convert(TS_BF16, have, TS_F32, f, ALL);
    for (int i = 0; i < ALL; i++) {
        const float want = ts_bf16_to_f32(have[i]);
        assert_memory_equal(&f[i], &want, sizeof want);
    }
    /* From half to half, by way of a float. */
    from_halves(vec, half, f);
    vec->convert(TS_F16, half, TS_BF16, have, ALL);
    for (int i = 0; i < ALL; i++) assert_int_equal(have[i], ts_f32_to_bf16(f[i]));
    free(half), free(have), free(f);
}

/* OCP 8-bit floating point (2023), 5.1: E4M3 has no infinities, E5M2 is the upper half of a binary16. */
static void bytes_convert_as_their_specification_says(void **state) {
    const ts_vec *vec = *state;
    unsigned char bytes[256];
    float four[256], five[256];
    for (unsigned b = 0; b < 256; b++) bytes[b] = (unsigned char)b;
    vec->convert(TS_F8_E4M3, bytes, TS_F32, four, 256);
    vec->convert(TS_F8_E5M2, bytes, TS_F32, five, 256);
    for (unsigned b = 0; b < 256; b++) {
        const int exponent = (int)(b >> 3 & 15u), mantissa = (int)(b & 7u);
        const double size = (b & 0x7fu) == 0x7fu ? NAN
                            : exponent == 0      ? ldexp(mantissa, -9)
                                                 : ldexp(8 + mantissa, exponent - 10);
        const double want[2] = {b & 0x80u ? -size : size, half_value(b << 8)};
        const float have[2] = {four[b], five[b]};
        for (int i = 0; i < 2; i++)
            if (isnan(want[i]) ? !isnan(have[i])
                               : (double)have[i] != want[i] || !signbit(have[i]) != !signbit(want[i]))
                fail_msg("byte %u is %g and not %g", b, (double)have[i], want[i]);
    }
}

static void doubles_round_to_floats(void **state) {
    const ts_vec *vec = *state;
    const double from[] = {1, 1 + 0x1p-24, 1 + 0x1.8p-23, -0x1p-149, 1e300, -INFINITY, -0.0, NAN};
    const float want[] = {1, 1, 1 + 0x1p-22f, -0x1p-149f, INFINITY, -INFINITY, -0.0f};
    unsigned char odd[sizeof from + 1];
    float have[8];
    uint16_t half[8];
    memcpy(odd + 1, from, sizeof from);
    vec->convert(TS_F64, odd + 1, TS_F32, have, 8);
    assert_memory_equal(have, want, sizeof want);
    assert_true(isnan(have[7]));
    vec->convert(TS_F64, odd + 1, TS_F16, half, 8);
    assert_true(half[0] == 0x3c00 && half[4] == 0x7c00 && half[6] == 0x8000);
}

/* Nothing is written behind the last one, whatever the length. */
static void no_more_than_n_are_written(void **state) {
    const ts_vec *vec = *state;
    enum { MOST = 1100 };
    static float f[MOST];
    static uint16_t have[MOST + 8];
    for (int i = 0; i < MOST; i++) f[i] = (float)i;
    for (size_t n = 0; n < MOST; n += n < 70 ? 1 : 101) {
        memset(have, 0xee, sizeof have);
        vec->convert(TS_F32, f, TS_F16, have, n);
        for (size_t i = 0; i < MOST + 8; i++)
            if (i < n)
                assert_true(half_value(have[i]) == (double)f[i]);
            else
                assert_int_equal(have[i], 0xeeee);
    }
}

static void equal_types_are_copied(void **state) {
    (void)state;
    const uint16_t from[] = {1, 2, 0x7fff};
    uint16_t to[3] = {0};
    ts_convert(TS_F16, from, TS_F16, to, 3);
    assert_memory_equal(from, to, sizeof to);
    ts_convert(TS_F32, NULL, TS_F32, NULL, 0);
    const float one = 1;
    ts_convert(TS_F32, &one, TS_BF16, to, 1);
    assert_int_equal(to[0], 0x3f80);
}

int main(void) {
    static const struct {
        const char *name;
        void (*test)(void **state);
    } claims[] = {
        {"halves convert as the standard says", halves_convert_as_the_standard_says},
        {"halves round to even", halves_round_to_even},
        {"bfloats round to even", bfloats_round_to_even},
        {"bytes convert as their specification says", bytes_convert_as_their_specification_says},
        {"doubles round to floats", doubles_round_to_floats},
        {"no more than n are written", no_more_than_n_are_written},
    };
    enum { CLAIMS = sizeof claims / sizeof *claims };
    const ts_vec *all[TS_VEC_TABLES];
    struct CMUnitTest tests[TS_VEC_TABLES * CLAIMS + 1];
    char names[TS_VEC_TABLES * CLAIMS][80];
    int n = 0;
    for (int i = 0, tables = ts_vec_all(all); i < tables; i++)
        for (int k = 0; k < CLAIMS; k++, n++) {
            snprintf(names[n], sizeof names[n], "%s: %s", all[i]->name, claims[k].name);
            tests[n] = (struct CMUnitTest){
                .name = names[n], .test_func = claims[k].test, .initial_state = (void *)(uintptr_t)all[i]};
        }
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(equal_types_are_copied);
    return _cmocka_run_group_tests("convert", tests, (size_t)n, NULL, NULL);
}
