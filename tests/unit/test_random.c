#include "fixture.h"

#include "engine/random.h"

static void expect(const ts_safetensors *s, const char *name, ts_torch_rng *rng) {
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
    ts_safetensors *s = fixture_tensors("torch_noise.safetensors");
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
    ts_safetensors_free(s);
}

static void draws_follow_one_another_as_torchs_do(void **state) {
    (void)state;
    ts_safetensors *s = fixture_tensors("torch_noise.safetensors");
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
    ts_safetensors_free(s);
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

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_picture_starts_from_torchs_noise),
        cmocka_unit_test(draws_follow_one_another_as_torchs_do),
        cmocka_unit_test(nothing_drawn_changes_nothing),
    };
    return cmocka_run_group_tests_name("random", tests, NULL, NULL);
}
