#include "fixture.h"

#include <unistd.h>

/* A file in memory: the header as it stands, and n bytes counting up from 0. */
static unsigned char *file_of(const char *header, size_t n, size_t *ret_size) {
    size_t length = strlen(header);
    unsigned char *f = malloc(8 + length + n + 1);
    assert_non_null(f);
    for (unsigned i = 0; i < 8; i++) f[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(f + 8, header, length);
    for (size_t i = 0; i < n; i++) f[8 + length + i] = (unsigned char)i;
    *ret_size = 8 + length + n;
    return f;
}

static ts_code parse(const char *header, size_t n, ts_tensors **ret, ts_error *e) {
    size_t size;
    unsigned char *f = file_of(header, n, &size);
    ts_code rc = ts_tensors_parse("a test", f, size, ret, e);
    free(f);
    return rc;
}

static void a_file_of_the_reference_library_is_read(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("torch_noise.safetensors");
    assert_true(ts_tensors_count(s) > 50);
    const ts_file_tensor *t = ts_tensors_find(s, "seed42_13x17");
    assert_non_null(t);
    assert_int_equal(t->dtype, TS_F32);
    assert_int_equal(t->rank, 4);
    assert_true(t->shape[0] == 1 && t->shape[1] == 4 && t->shape[2] == 13 && t->shape[3] == 17);
    assert_int_equal(ts_file_tensor_elements(t), 4 * 13 * 17);
    assert_null(ts_tensors_find(s, "seed42_13x1"));
    assert_null(ts_tensors_find(s, ""));
    for (size_t i = 0; i < ts_tensors_count(s); i++) {
        const ts_file_tensor *each = ts_tensors_at(s, i);
        assert_ptr_equal(ts_tensors_find(s, each->name), each);
    }
    /* The first value that torch.manual_seed(42); torch.randn(1, 4, 64, 64) prints. */
    float *x = fixture_floats(s, "seed42_64x64", NULL);
    assert_float_equal(x[0], 1.9269153f, 1e-6f);
    free(x);
    ts_tensors_free(s);
}

static void other_types_are_checked_and_left_out(void **state) {
    (void)state;
    ts_tensors *s = NULL;
    ts_error e = {0};
    must(parse("{\"__metadata__\":{\"format\":\"pt\"},"
               "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[16,20]},"
               "\"position_ids\":{\"dtype\":\"I64\",\"shape\":[1,2],\"data_offsets\":[0,16]},"
               "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,5],\"data_offsets\":[20,20]},"
               "\"scalar\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[20,22]}}   ",
               22, &s, &e),
         &e);
    assert_int_equal(ts_tensors_count(s), 3);
    assert_null(ts_tensors_find(s, "position_ids"));
    assert_int_equal(ts_tensors_find(s, "empty")->bytes, 0);
    assert_int_equal(ts_file_tensor_elements(ts_tensors_find(s, "scalar")), 1);
    assert_string_equal(ts_tensors_at(s, 0)->name, "b");
    ts_tensors_free(s);

    s = NULL;
    assert_int_equal(parse("{\"p\":{\"dtype\":\"I64\",\"shape\":[1,2],\"data_offsets\":[0,8]}}", 8, &s, &e),
                     TS_EFORMAT);
    assert_null(s);
}

static void files_of_other_kinds_say_so(void **state) {
    (void)state;
    static const struct {
        const char *bytes, *why;
    } cases[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"},
        {"\x89PNG\r\n\x1a\n and so on, for some bytes", "not a safetensors file"},
        {"<!DOCTYPE html><html>404", "not a safetensors file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ts_tensors *s = NULL;
        ts_error e = {0};
        assert_int_equal(ts_tensors_parse("a test", cases[i].bytes, strlen(cases[i].bytes), &s, &e),
                         TS_EFORMAT);
        assert_null(s);
        if (!strstr(e.message, cases[i].why)) fail_msg("%s, not %s", e.message, cases[i].why);
    }
}

static void hostile_headers_are_refused_with_the_reason(void **state) {
    (void)state;
#define T(dtype, shape, offsets)                                                                             \
    "{\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
    static const struct {
        const char *header;
        size_t bytes;
        const char *why;
    } cases[] = {
        {"", 0, ""},
        {"[]", 0, "brace"},
        {"{", 0, ""},
        {"{\"a\":1}", 0, "dtype"},
        {"{\"a\":{}}", 0, "dtype"},
        {T("F31", "[1]", "[0,4]"), 4, "unknown dtype"},
        {T("F32", "[1.5]", "[0,4]"), 4, "not an integer"},
        {T("F32", "[-1]", "[0,4]"), 4, "shape"},
        {T("F32", "[\"1\"]", "[0,4]"), 4, "shape"},
        {T("F32", "[1e300]", "[0,4]"), 4, "not an integer"},
        {T("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, "dimensions"},
        {T("F32", "[9007199254740992,9007199254740992]", "[0,4]"), 4, "overflows"},
        {T("F32", "[4294967296,2147483648]", "[0,4]"), 4, "overflows"},
        {T("F32", "[4294967296,4294967296]", "[0,0]"), 0, "overflows"},
        {T("F32", "[1]", "[0]"), 4, "data_offsets"},
        {T("F32", "[1]", "[0,4,8]"), 4, "data_offsets"},
        {T("F32", "[1]", "[4,0]"), 4, "data_offsets"},
        {T("F32", "[1]", "[-4,0]"), 4, "data_offsets"},
        {T("F32", "[1]", "[0,5]"), 5, "offsets give 5"},
        {T("F32", "[2]", "[0,8]"), 4, "truncated"},
        {T("F32", "[1]", "[4,8]"), 8, "hole"},
        {T("F32", "[1]", "[0,4]"), 5, "after the last"},
        {T("F32", "[1]", "[9007199254740988,9007199254740992]"), 4, "truncated"},
        {T("F4", "[1]", "[0,0]"), 0, "offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[2,6]}}",
         6, "overlaps"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, ""},
    };
#undef T
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ts_tensors *s = NULL;
        ts_error e = {0};
        ts_code rc = parse(cases[i].header, cases[i].bytes, &s, &e);
        if (rc != TS_EFORMAT || s || e.code != rc || !strstr(e.message, cases[i].why))
            fail_msg("%s: %s, %s", cases[i].header, ts_code_name(rc), e.message);
        assert_int_equal(parse(cases[i].header, cases[i].bytes, &s, NULL), TS_EFORMAT);
    }
}

static void every_truncation_and_every_flipped_byte_is_survived(void **state) {
    (void)state;
    size_t size;
    unsigned char *f = file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                               "\"b\":{\"dtype\":\"F16\",\"shape\":[1,3],\"data_offsets\":[8,14]}}",
                               14, &size);
    ts_error e;
    for (size_t n = 0; n < size; n++) {
        unsigned char *cut = malloc(n ? n : 1); /* its own block, so that a read beyond it is seen */
        memcpy(cut, f, n);
        ts_tensors *s = NULL;
        assert_int_equal(ts_tensors_parse("cut", cut, n, &s, &e), TS_EFORMAT);
        free(cut);
    }
    for (size_t n = 0; n < size; n++)
        for (unsigned bit = 0; bit < 8; bit++) {
            f[n] ^= (unsigned char)(1u << bit);
            ts_tensors *s = NULL;
            float out[8];
            if (!ts_tensors_parse("flipped", f, size, &s, &e)) {
                for (size_t i = 0; i < ts_tensors_count(s); i++)
                    if (ts_file_tensor_elements(ts_tensors_at(s, i)) <= 8)
                        ts_file_tensor_to_f32(ts_tensors_at(s, i), out);
                ts_tensors_free(s);
            }
            f[n] ^= (unsigned char)(1u << bit);
        }
    unsigned char huge[16] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    ts_tensors *s = NULL;
    assert_int_equal(ts_tensors_parse("huge", huge, sizeof huge, &s, &e), TS_EFORMAT);
    free(f);
}

static unsigned char *unhex(const char *text, size_t *ret_size) {
    const size_t n = strlen(text) / 2;
    unsigned char *bytes = malloc(n ? n : 1); /* its own block, so that a read beyond it is seen */
    assert_non_null(bytes);
    for (size_t i = 0; i < n; i++) {
        const char pair[3] = {text[2 * i], text[2 * i + 1], 0};
        bytes[i] = (unsigned char)strtoul(pair, NULL, 16);
    }
    *ret_size = n;
    return bytes;
}

static bool opens(const unsigned char *bytes, size_t size, ts_error *e) {
    ts_tensors *s = NULL;
    ts_code rc = ts_tensors_parse("a test", bytes, size, &s, e);
    ts_tensors_free(s);
    if (rc && (rc != TS_EFORMAT || strlen(e->message) < sizeof "a test: ")) fail_msg("%s", e->message);
    return !rc;
}

static void what_the_reference_refuses_is_refused_and_nothing_else(void **state) {
    (void)state;
    cJSON *fixture = fixture_json("safetensors_cases.json"), *c;
    ts_error e = {0};
    size_t size, wrong = 0;
    cJSON_ArrayForEach(c, cJSON_GetObjectItemCaseSensitive(fixture, "cases")) {
        unsigned char *bytes = unhex(json_text(c, "file"), &size);
        const char *verdict = json_text(c, "verdict");
        const bool open = opens(bytes, size, &e);
        if (open != (strcmp(verdict, "ok") == 0)) {
            print_error("%s: %s, but %s\n", json_text(c, "name"), verdict, open ? "it opens" : e.message);
            wrong++;
        }
        free(bytes);
    }
    unsigned char *base = unhex(json_text(fixture, "base"), &size);
    const char *flips = json_text(fixture, "flips");
    assert_int_equal(strlen(flips), 8 * size);
    for (size_t i = 0; i < 8 * size; i++) {
        base[i / 8] ^= (unsigned char)(1u << i % 8);
        if (opens(base, size, &e) != (flips[i] == '1')) {
            print_error("bit %zu of byte %zu: %s\n", i % 8, i / 8, flips[i] == '1' ? e.message : "it opens");
            wrong++;
        }
        base[i / 8] ^= (unsigned char)(1u << i % 8);
    }
    free(base);
    cJSON_Delete(fixture);
    assert_int_equal(wrong, 0);
}

static void what_is_written_is_read_back(void **state) {
    (void)state;
    char path[] = "/tmp/ts_safetensors_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    const float f[3] = {1.5f, -2, 3};
    const uint16_t h[2] = {0x3c00, 0xc000};
    const ts_file_tensor tensors[] = {
        {.name = "half \"q\"\n\xc3\xa9",
         .dtype = TS_F16,
         .rank = 1,
         .shape = {2},
         .data = h,
         .bytes = sizeof h},
        {.name = "latents", .dtype = TS_F32, .rank = 2, .shape = {1, 3}, .data = f, .bytes = sizeof f},
        {.name = "none", .dtype = TS_BF16, .rank = 1, .shape = {0}, .data = NULL, .bytes = 0},
    };
    ts_error e = {0};
    must(ts_safetensors_write(path, tensors, 3, &e), &e);
    ts_tensors *s = NULL;
    must(ts_tensors_open(path, &s, &e), &e);
    assert_int_equal(ts_tensors_count(s), 3);
    const ts_file_tensor *t = ts_tensors_find(s, "latents");
    assert_int_equal((uintptr_t)t->data % 8, 0);
    assert_memory_equal(t->data, f, sizeof f);
    t = ts_tensors_find(s, tensors[0].name);
    assert_non_null(t);
    float out[2];
    ts_file_tensor_to_f32(t, out);
    assert_true(out[0] == 1 && out[1] == -2);
    ts_tensors_free(s);

    must(ts_safetensors_write(path, NULL, 0, &e), &e);
    must(ts_tensors_open(path, &s, &e), &e);
    assert_int_equal(ts_tensors_count(s), 0);
    assert_null(ts_tensors_find(s, "a"));
    ts_tensors_free(s);

    ts_file_tensor bad[2] = {tensors[1], tensors[1]};
    assert_int_equal(ts_safetensors_write(path, bad, 2, &e), TS_EINVAL);
    bad[0].bytes = 8;
    assert_int_equal(ts_safetensors_write(path, bad, 1, &e), TS_EINVAL);
    assert_int_equal(ts_safetensors_write("/nonexistent/x", tensors, 2, &e), TS_EIO);
    unlink(path);
    assert_int_equal(ts_tensors_open(path, &s, &e), TS_ENOTFOUND);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_of_the_reference_library_is_read),
        cmocka_unit_test(other_types_are_checked_and_left_out),
        cmocka_unit_test(files_of_other_kinds_say_so),
        cmocka_unit_test(hostile_headers_are_refused_with_the_reason),
        cmocka_unit_test(every_truncation_and_every_flipped_byte_is_survived),
        cmocka_unit_test(what_the_reference_refuses_is_refused_and_nothing_else),
        cmocka_unit_test(what_is_written_is_read_back),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
