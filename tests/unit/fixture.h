/* What the tests share: where the fixtures lie, and reading them or stopping the test. */
#ifndef TS_TESTS_FIXTURE_H
#define TS_TESTS_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/alloc.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/safetensors.h"

static const char *fixture_dir = "tests/fixtures";

/* argv[1], else TS_FIXTURES, else tests/fixtures below the working directory. */
static inline void fixture_init(int argc, char **argv) {
    const char *env = getenv("TS_FIXTURES");
    if (argc > 1)
        fixture_dir = argv[1];
    else if (env && *env)
        fixture_dir = env;
}

static inline char *fixture_path(const char *name) {
    char *path = ts_path_join(fixture_dir, name);
    assert_non_null(path);
    return path;
}

static inline void must(ts_code rc, const ts_error *e) {
    if (rc) fail_msg("%s: %s", ts_code_name(rc), e->message);
}

static inline cJSON *fixture_json(const char *name) {
    char *path = fixture_path(name);
    ts_error e = {0};
    cJSON *v = NULL;
    must(ts_json_file(path, 64u << 20, (ts_json_limits){.depth = 32, .values = 4000000}, &v, &e), &e);
    free(path);
    return v;
}

static inline ts_tensors *fixture_tensors(const char *name) {
    char *path = fixture_path(name);
    ts_error e = {0};
    ts_tensors *s = NULL;
    must(ts_tensors_open(path, &s, &e), &e);
    free(path);
    return s;
}

/* A tensor's elements as floats; free() them. */
static inline float *fixture_floats(const ts_tensors *s, const char *name, size_t *ret_count) {
    const ts_file_tensor *t = ts_tensors_find(s, name);
    if (!t) fail_msg("no tensor %s", name);
    size_t n = ts_file_tensor_elements(t);
    float *f = ts_array0(float, n);
    assert_non_null(f);
    ts_file_tensor_to_f32(t, f);
    if (ret_count) *ret_count = n;
    return f;
}

static inline const char *json_text(const cJSON *object, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!cJSON_IsString(v)) fail_msg("no string %s", key);
    return v->valuestring;
}

static inline double json_value(const cJSON *object, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!cJSON_IsNumber(v)) fail_msg("no number %s", key);
    return v->valuedouble;
}

#endif
