/* base/json: what RFC 8259 and RFC 3629 allow is read, everything that cJSON lets pass beyond it is not. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/alloc.h"
#include "base/file.h"
#include "base/json.h"

static const ts_json_limits limits = {.depth = 16, .values = 1024};

/* With its size, so that NUL bytes can be in it. */
#define TEXT(s) s, sizeof(s) - 1

typedef struct sample {
    const char *text;
    size_t size;
} sample;

/* From a copy of exactly its size, so that a sanitizer sees a byte too far. */
static ts_code parse(const char *text, size_t size, cJSON **ret, ts_error *e) {
    char *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, text, size);
    ts_code rc = ts_json_parse(copy, size, limits, ret, e);
    free(copy);
    return rc;
}

static cJSON *good(const char *text) {
    cJSON *json = NULL;
    ts_error e = {0};
    if (parse(text, strlen(text), &json, &e)) fail_msg("%s: %s", text, e.message);
    return json;
}

static void bad(const char *text, size_t size) {
    cJSON *json = NULL;
    ts_error e = {0};
    ts_code rc = parse(text, size, &json, &e);
    if (rc != TS_EINVAL || json) fail_msg("%s is accepted: %s", text, ts_code_name(rc));
    assert_true(*e.message);
}

/* ---- what is JSON ---- */

static void strict_json_is_read(void **state) {
    (void)state;
    static const char *const texts[] = {
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-1.5e-3",
        "1E5",
        "1e+2",
        "\"\"",
        "[]",
        "{}",
        " \t\r\n[ ] \n",
        "[1 ,2]",
        "{\"a\" :1}",
        "{\"a\":{\"a\":1},\"b\":{\"a\":2}}",
        "{\"\":1}",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
        "\"\\ud83d\\ude00\"",
        "\"\x7f\"",
        "{\"a\":1,\"A\":2}",
        "9007199254740993",
        "1e308",
        "5e-324",
        "1e-999",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) cJSON_Delete(good(texts[i]));
}

static void escapes_become_the_characters_that_they_name(void **state) {
    (void)state;
    cJSON *json = good("\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\\n\\/\"");
    /* U+0041, U+00E9, U+20AC and U+1F600 in UTF-8 */
    assert_string_equal(json->valuestring, "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\n/");
    cJSON_Delete(json);
}

static void a_key_given_twice_is_refused_also_deep_inside_and_when_escaped(void **state) {
    (void)state;
    bad(TEXT("{\"a\":1,\"a\":2}"));
    bad(TEXT("{\"a\":1,\"b\":2,\"a\":1}"));
    bad(TEXT("[[{\"x\":{\"a\":1,\"a\":2}}]]"));
    bad(TEXT("{\"seed\":1,\"\\u0073eed\":2}"));
    ts_error e = {0};
    cJSON *json = NULL;
    parse(TEXT("{\"seed\":1,\"seed\":2}"), &json, &e);
    assert_string_equal(e.param, "seed");
}

static void what_is_no_json_is_refused(void **state) {
    (void)state;
    static const sample samples[] = {
        {TEXT("")},
        {TEXT("  ")},
        {TEXT("nul")},
        {TEXT("True")},
        {TEXT("NaN")},
        {TEXT("Infinity")},
        {TEXT("'a'")},
        {TEXT("[")},
        {TEXT("{")},
        {TEXT("[1")},
        {TEXT("[1,")},
        {TEXT("[1,]")},
        {TEXT("[,1]")},
        {TEXT("[1 2]")},
        {TEXT("]")},
        {TEXT("{\"a\"}")},
        {TEXT("{\"a\":}")},
        {TEXT("{\"a\":1,}")},
        {TEXT("{a:1}")},
        {TEXT("{1:1}")},
        {TEXT("[1}")},
        {TEXT("{\"a\":1]")},
        {TEXT("// c\n1")},
        {TEXT("1 // c")},
        {TEXT("/**/1")},
        {TEXT("\"a")},
        {TEXT("\"")},
        {TEXT("\"\\")},
        {TEXT("\"\\\"")},
        {TEXT("\"\\x41\"")},
        {TEXT("\"\\u12\"")},
        {TEXT("\"\\u12g4\"")},
        {TEXT("\v1")},
        {TEXT("\xc2\xa0"
              "1")},
    };
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) bad(samples[i].text, samples[i].size);
}

static void bytes_after_the_value_are_refused(void **state) {
    (void)state;
    bad(TEXT("{} x"));
    bad(TEXT("{}{}"));
    bad(TEXT("1 2"));
    bad(TEXT("{}\0"));
    bad(TEXT("{}\0{\"a\":1}"));
    bad(TEXT("\0"));
}

static void a_byte_order_mark_is_refused(void **state) {
    (void)state;
    bad(TEXT("\xef\xbb\xbf{}"));
    bad(TEXT("\xff\xfe{\0}\0"));
}

static void numbers_that_cjson_alone_would_take_are_refused(void **state) {
    (void)state;
    static const sample samples[] = {
        {TEXT("1e999")}, {TEXT("-1e999")}, {TEXT("[1e309]")}, {TEXT("01")},        {TEXT("-01")},
        {TEXT("00")},    {TEXT("1.")},     {TEXT(".5")},      {TEXT("-.5")},       {TEXT("+1")},
        {TEXT("-")},     {TEXT("1e")},     {TEXT("1e+")},     {TEXT("0x10")},      {TEXT("1.5.5")},
        {TEXT("1-1")},   {TEXT("--1")},    {TEXT("1e5e5")},   {TEXT("-Infinity")},
    };
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) bad(samples[i].text, samples[i].size);
    /* cJSON cuts a number at 63 characters: a long one is the number that it says or none. */
    for (int n = 2; n < 200; n++) {
        char text[256] = "0.";
        memset(text + 2, '1', (size_t)n);
        cJSON *json = NULL;
        if (parse(text, (size_t)n + 2, &json, NULL) == TS_OK)
            assert_true(json->valuedouble == strtod(text, NULL));
        cJSON_Delete(json);
    }
}

static void control_characters_in_a_string_are_refused(void **state) {
    (void)state;
    for (int c = 0; c < 0x20; c++) {
        char text[] = {'"', 'a', (char)c, 'b', '"'}, key[] = {'{', '"', (char)c, '"', ':', '1', '}'};
        bad(text, sizeof text);
        bad(key, sizeof key);
    }
}

static void an_escaped_nul_or_half_a_surrogate_pair_is_refused(void **state) {
    (void)state;
    bad(TEXT("\"a\\u0000b\""));
    bad(TEXT("{\"a\\u0000b\":1}"));
    bad(TEXT("\"\\ud83d\""));
    bad(TEXT("\"\\ud83dx\""));
    bad(TEXT("\"\\ud83d\\n\""));
    bad(TEXT("\"\\ud83d\\ud83d\""));
    bad(TEXT("\"\\ude00\""));
    bad(TEXT("\"\\ude00\\ud83d\""));
    bad(TEXT("\"\\ud83d\\u"));
}

/* ---- UTF-8 ---- */

/* The definition, written as arithmetic: decode, then refuse what has a shorter form, a surrogate, or too
 * much. */
static bool is_character(const unsigned char *s, size_t n) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t v;
    if (n == 1) return s[0] < 0x80;
    if (n > 4 || (uint32_t)s[0] >> (7 - n) != (1u << (n + 1)) - 2) return false;
    v = s[0] & ((1u << (7 - n)) - 1);
    for (size_t i = 1; i < n; i++) {
        if (s[i] >> 6 != 2) return false;
        v = v << 6 | (s[i] & 63);
    }
    return v >= least[n] && v <= 0x10ffff && !(v >= 0xd800 && v <= 0xdfff);
}

static void utf8_of_one_to_four_bytes_is_judged_as_its_definition_does(void **state) {
    (void)state;
    unsigned char s[4];
    for (int a = 1; a < 256; a++) {
        s[0] = (unsigned char)a;
        assert_int_equal(ts_utf8_valid((char *)s, 1), is_character(s, 1));
        for (int b = 0x80; b < 256; b++) {
            s[1] = (unsigned char)b;
            assert_int_equal(ts_utf8_valid((char *)s, 2), is_character(s, 2));
        }
    }
    /* Multi-byte leads with the values of each further byte around its bounds. */
    static const unsigned char edges[] = {0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff};
    enum { EDGES = sizeof edges };
    for (int a = 0xc0; a < 256; a++)
        for (int i = 0; i < EDGES * EDGES * EDGES; i++) {
            s[0] = (unsigned char)a;
            s[1] = edges[i % EDGES];
            s[2] = edges[i / EDGES % EDGES];
            s[3] = edges[i / EDGES / EDGES];
            bool three = is_character(s, 3) || (is_character(s, 2) && s[2] == 0x7f);
            bool four = is_character(s, 4) || (three && s[3] == 0x7f) ||
                        (is_character(s, 2) && (s[2] == 0x7f && s[3] == 0x7f));
            assert_int_equal(ts_utf8_valid((char *)s, 3), three);
            assert_int_equal(ts_utf8_valid((char *)s, 4), four);
        }
    assert_false(ts_utf8_valid("a\0b", 3));
    assert_true(ts_utf8_valid("", 0));
}

static void a_string_or_key_that_is_not_utf8_is_refused(void **state) {
    (void)state;
    static const sample samples[] = {
        {TEXT("\x80")},
        {TEXT("\xc0\x80")},
        {TEXT("\xc1\xbf")},
        {TEXT("\xc3")},
        {TEXT("\xe0\x80\x80")},
        {TEXT("\xe2\x82")},
        {TEXT("\xed\xa0\x80")},
        {TEXT("\xf0\x80\x80\x80")},
        {TEXT("\xf0\x9f\x98")},
        {TEXT("\xf4\x90\x80\x80")},
        {TEXT("\xf8\x88\x80\x80\x80")},
        {TEXT("\xff")},
    };
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        char text[32];
        int n = snprintf(text, sizeof text, "\"%.*s\"", (int)samples[i].size, samples[i].text);
        bad(text, (size_t)n);
        n = snprintf(text, sizeof text, "{\"%.*s\":1}", (int)samples[i].size, samples[i].text);
        bad(text, (size_t)n);
        n = snprintf(text, sizeof text, "\"%.*s", (int)samples[i].size, samples[i].text);
        bad(text, (size_t)n); /* cut off in the middle */
    }
}

/* ---- limits ---- */

static void depth_is_bounded(void **state) {
    (void)state;
    char text[4096];
    for (size_t depth = 1; depth < 1000; depth += depth < 20 ? 1 : 97) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        cJSON *json = NULL;
        assert_int_equal(parse(text, 2 * depth, &json, NULL), depth <= limits.depth ? TS_OK : TS_EINVAL);
        cJSON_Delete(json);
    }
    memset(text, '[', sizeof text);
    bad(text, sizeof text);
    for (size_t i = 0; i + 5 <= sizeof text; i += 5) memcpy(text + i, "{\"a\":", 5);
    bad(text, sizeof text / 5 * 5);
}

static void the_number_of_values_is_bounded(void **state) {
    (void)state;
    char text[4096];
    for (size_t n = 1020; n < 1027; n++) { /* an array of n is n + 1 values */
        size_t at = 0;
        text[at++] = '[';
        for (size_t i = 0; i < n; i++) {
            if (i) text[at++] = ',';
            text[at++] = '0';
        }
        text[at++] = ']';
        cJSON *json = NULL;
        assert_int_equal(parse(text, at, &json, NULL), n + 1 <= limits.values ? TS_OK : TS_EINVAL);
        cJSON_Delete(json);
    }
}

static void a_fraction_or_an_exponent_is_refused_where_integers_are_asked_for(void **state) {
    (void)state;
    ts_json_limits integers = limits;
    integers.integers = true;
    static const char *const yes[] = {"0", "-7", "[1,-20]", "18446744073709551615", "{\"1.5\":\"2e3\"}"};
    static const char *const no[] = {"1.5", "1.0", "[1,2e0]", "-1E3", "{\"a\":0e0}"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        cJSON *json = NULL;
        assert_int_equal(ts_json_parse(yes[i], strlen(yes[i]), integers, &json, NULL), TS_OK);
        cJSON_Delete(json);
    }
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
        cJSON *json = NULL;
        ts_error e = {0};
        assert_int_equal(ts_json_parse(no[i], strlen(no[i]), integers, &json, &e), TS_EINVAL);
        assert_non_null(strstr(e.message, "not an integer"));
    }
}

static void the_message_says_at_which_byte(void **state) {
    (void)state;
    ts_error e = {0};
    cJSON *json = NULL;
    assert_int_equal(parse(TEXT("{\"a\": tru}"), &json, &e), TS_EINVAL);
    assert_non_null(strstr(e.message, "byte 6"));
}

static void every_prefix_and_every_changed_byte_of_a_text_is_read_or_refused_in_order(void **state) {
    (void)state;
    static const char whole[] = "{\"prompt\":\"a l\\u00e4ke \xc3\xa9 "
                                "\\ud83d\\ude00\",\"n\":4,\"x\":[-1.5e-3,true,null,{\"y\":[[]]}]}";
    char text[sizeof whole];
    size_t n = sizeof whole - 1;
    for (size_t i = 0; i < n; i++) bad(whole, i);
    for (size_t i = 0; i < n; i++)
        for (int c = 0; c < 256; c++) {
            memcpy(text, whole, n);
            text[i] = (char)c;
            cJSON *json = NULL;
            ts_code rc = parse(text, n, &json, NULL);
            assert_true(rc == TS_OK || rc == TS_EINVAL);
            assert_true((rc == TS_OK) == (json != NULL));
            cJSON_Delete(json);
        }
}

/* ---- members and files ---- */

static void members_have_their_type_and_range_or_are_refused_by_name(void **state) {
    (void)state;
    cJSON *o =
        good("{\"i\":7,\"f\":7.5,\"big\":9007199254740993e3,\"s\":\"x\",\"b\":true,\"z\":null,\"l\":[]}");
    ts_error e = {0};
    int64_t i = -1;
    double d = -1;
    bool b = false;
    const char *s = NULL;
    assert_int_equal(ts_json_int(o, "i", 0, 10, 3, &i, &e), TS_OK);
    assert_int_equal(i, 7);
    assert_int_equal(ts_json_int(o, "absent", 0, 10, 3, &i, &e), TS_OK);
    assert_int_equal(i, 3);
    assert_int_equal(ts_json_int(o, "z", 0, 10, 4, &i, &e), TS_OK);
    assert_int_equal(i, 4);
    static const char *const wrong[] = {"f", "big", "s", "b", "l"};
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        assert_int_equal(ts_json_int(o, wrong[k], INT64_MIN, INT64_MAX, 3, &i, &e), TS_EINVAL);
        assert_string_equal(e.param, wrong[k]);
    }
    assert_int_equal(ts_json_int(o, "i", 0, 6, 3, &i, &e), TS_EINVAL);
    assert_int_equal(ts_json_int(o, "i", 8, 9, 3, &i, &e), TS_EINVAL);
    assert_int_equal(i, 4); /* untouched by all of them */

    assert_int_equal(ts_json_number(o, "f", 0, 10, 3, &d, &e), TS_OK);
    assert_true(d == 7.5);
    assert_int_equal(ts_json_number(o, "f", 0, 7, 3, &d, &e), TS_EINVAL);
    assert_int_equal(ts_json_number(o, "s", 0, 7, 3, &d, &e), TS_EINVAL);
    assert_int_equal(ts_json_bool(o, "b", false, &b, &e), TS_OK);
    assert_true(b);
    assert_int_equal(ts_json_bool(o, "i", false, &b, &e), TS_EINVAL);
    assert_int_equal(ts_json_string(o, "s", NULL, &s, &e), TS_OK);
    assert_string_equal(s, "x");
    assert_int_equal(ts_json_string(o, "b", NULL, &s, &e), TS_EINVAL);
    assert_int_equal(ts_json_string(o, "absent", "y", &s, &e), TS_OK);
    assert_string_equal(s, "y");
    cJSON_Delete(o);
}

static void a_bad_file_is_named(void **state) {
    (void)state;
    char path[] = "/tmp/test_json.XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "{\"a\":1,}", 8), 8);
    close(fd);
    cJSON *json = NULL;
    ts_error e = {0};
    assert_int_equal(ts_json_file(path, 1024, limits, &json, &e), TS_EFORMAT);
    assert_non_null(strstr(e.message, path));
    assert_int_not_equal(ts_json_file(path, 7, limits, &json, &e), TS_OK); /* larger than allowed */
    assert_null(json);
    unlink(path);
    assert_int_equal(ts_json_file(path, 1024, limits, &json, &e), TS_ENOTFOUND);
    assert_non_null(strstr(e.message, path));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strict_json_is_read),
        cmocka_unit_test(escapes_become_the_characters_that_they_name),
        cmocka_unit_test(a_key_given_twice_is_refused_also_deep_inside_and_when_escaped),
        cmocka_unit_test(what_is_no_json_is_refused),
        cmocka_unit_test(bytes_after_the_value_are_refused),
        cmocka_unit_test(a_byte_order_mark_is_refused),
        cmocka_unit_test(numbers_that_cjson_alone_would_take_are_refused),
        cmocka_unit_test(control_characters_in_a_string_are_refused),
        cmocka_unit_test(an_escaped_nul_or_half_a_surrogate_pair_is_refused),
        cmocka_unit_test(utf8_of_one_to_four_bytes_is_judged_as_its_definition_does),
        cmocka_unit_test(a_string_or_key_that_is_not_utf8_is_refused),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(the_number_of_values_is_bounded),
        cmocka_unit_test(a_fraction_or_an_exponent_is_refused_where_integers_are_asked_for),
        cmocka_unit_test(the_message_says_at_which_byte),
        cmocka_unit_test(every_prefix_and_every_changed_byte_of_a_text_is_read_or_refused_in_order),
        cmocka_unit_test(members_have_their_type_and_range_or_are_refused_by_name),
        cmocka_unit_test(a_bad_file_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
