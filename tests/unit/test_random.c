#include "fixture.h"

#include "engine/random.h"

static void expect(const ts_tensors *s, const char *name, ts_torch_rng *rng) {
    size_t n;
    float *want = fixture_floats(s, name, &n), *have = ts_array0(float, n);
    assert_non_null(have);
    ts_torch_randn(rng, have, n);
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(have[i] - want[i]) <= 1e-6f))
            fail_msg("%s[%zu]: %.9g, torch has %.9g", name, i, (double)have[i], (double)want[i]);
    free(want);
    free(have);
}

static void a_picture_starts_from_torchs_noise(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("torch_noise.safetensors");
    cJSON *json = fixture_json("torch_noise.json");
    const cJSON *one;
    int cases = 0;
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(json, "cases")) {
        ts_torch_rng rng;
        ts_torch_rng_seed(&rng, strtoull(json_text(one, "seed"), NULL, 10));
        expect(s, json_text(one, "name"), &rng);
        cases++;
    }
    assert_true(cases > 40);
    cJSON_Delete(json);
    ts_tensors_free(s);
}

static void draws_follow_one_another_as_torchs_do(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("torch_noise.safetensors");
    cJSON *json = fixture_json("torch_noise.json");
    const cJSON *one, *name;
    int cases = 0;
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(json, "sequences")) {
        ts_torch_rng rng;
        ts_torch_rng_seed(&rng, strtoull(json_text(one, "seed"), NULL, 10));
        cJSON_ArrayForEach(name, cJSON_GetObjectItemCaseSensitive(one, "names")) {
            expect(s, name->valuestring, &rng);
            cases++;
        }
    }
    assert_true(cases > 20);
    cJSON_Delete(json);
    ts_tensors_free(s);
}

static void nothing_drawn_changes_nothing(void **state) {
    (void)state;
    ts_torch_rng a, b;
    ts_torch_rng_seed(&a, 5);
    ts_torch_rng_seed(&b, 5);
    float x[20], y[20];
    ts_torch_randn(&a, x, 0);
    ts_torch_randn(&a, x, 20);
    ts_torch_randn(&b, y, 20);
    assert_memory_equal(x, y, sizeof x);
}

/* The known answers that come with the authors' own code (Random123, kat_vectors). */
static void philox_gives_its_known_answers(void **state) {
    (void)state;
    static const struct {
        uint64_t key;
        uint32_t counter[4], want[4];
    } cases[] = {
        {0, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX,
         {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {UINT64_C(0x299f31d0a4093822),
         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t have[4];
        ts_philox4x32(cases[i].key, cases[i].counter, have);
        assert_memory_equal(have, cases[i].want, sizeof have);
    }
}

/* What people have printed of torch.randn on GPUs: seed 0, 3 x 4 (AUTOMATIC1111's rng_philox.py); seed 1
 * and 9.5 million values on an H100 and an A100, where each thread has many elements (pytorch issue 143086).
 */
static void a_gpu_draws_what_pytorch_prints(void **state) {
    (void)state;
    static const float want[12] = {-0.92466259f, -0.42534415f, -2.6438457f,  0.14518388f,
                                   -0.12086647f, -0.57972564f, -0.62285122f, -0.32838709f,
                                   -1.07454231f, -0.36314407f, -1.67105067f, 2.26550497f};
    float have[12];
    ts_rng rng;
    ts_rng_seed(&rng, TS_RNG_TORCH_CUDA, 0);
    ts_rng_randn(&rng, have, 12);
    for (int i = 0; i < 12; i++) assert_float_equal(have[i], want[i], 1e-6);

    static const struct {
        unsigned threads;
        float head[3], tail[3];
    } gpus[] = {
        {132 * 2048, {-0.2963f, 2.6764f, -0.1408f}, {-0.6970f, -0.7780f, 0.3267f}},
        {108 * 2048, {-0.2963f, 2.6764f, -0.1408f}, {0.1549f, -0.6797f, -0.1656f}},
    };
    const size_t n = (size_t)49 * 12 * 112 * 144;
    float *x = ts_array0(float, n);
    assert_non_null(x);
    for (size_t i = 0; i < sizeof gpus / sizeof *gpus; i++) {
        ts_cuda_rng cuda;
        ts_cuda_rng_seed(&cuda, 1, gpus[i].threads);
        ts_cuda_randn(&cuda, x, n);
        for (int k = 0; k < 3; k++) {
            assert_float_equal(x[k], gpus[i].head[k], 0.6e-4);
            assert_float_equal(x[n - 3 + (size_t)k], gpus[i].tail[k], 0.6e-4);
        }
    }
    free(x);
}

static void a_generator_is_found_by_its_name(void **state) {
    (void)state;
    for (int i = 0; i < TS_RNG_KIND_COUNT; i++)
        assert_int_equal(ts_rng_kind_find(ts_rng_kind_name((ts_rng_kind)i)), i);
    assert_int_equal(ts_rng_kind_find("torch-cpu"), TS_RNG_TORCH_CPU);
    assert_int_equal(ts_rng_kind_find("torch-cuda"), TS_RNG_TORCH_CUDA);
    assert_int_equal(ts_rng_kind_find("torch"), -1);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_picture_starts_from_torchs_noise),
        cmocka_unit_test(draws_follow_one_another_as_torchs_do),
        cmocka_unit_test(nothing_drawn_changes_nothing),
        cmocka_unit_test(philox_gives_its_known_answers),
        cmocka_unit_test(a_gpu_draws_what_pytorch_prints),
        cmocka_unit_test(a_generator_is_found_by_its_name),
    };
    return cmocka_run_group_tests_name("random", tests, NULL, NULL);
}
