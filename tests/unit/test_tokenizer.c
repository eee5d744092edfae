#include "fixture.h"

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "engine/tokenizer.h"

enum { LENGTH = 77 };

static ts_tokenizer *open_fixture(const char *name) {
    char *path = fixture_path(name);
    ts_error e = {0};
    ts_tokenizer *t = NULL;
    must(ts_tokenizer_open(path, &t, &e), &e);
    free(path);
    return t;
}

static void check_case(const ts_tokenizer *t, const char *folder, const char *text, size_t size,
                       const cJSON *one) {
    const cJSON *want = cJSON_GetObjectItemCaseSensitive(one, "ids");
    const cJSON *other = cJSON_GetObjectItemCaseSensitive(one, "pad0_ids");
    if (other && strcmp(folder, "files_pad0") == 0) want = other;
    int32_t ids[LENGTH];
    int count = 0, n = cJSON_GetArraySize(want);
    bool truncated = false;
    ts_error e = {0};
    must(ts_tokenizer_encode(t, text, size, LENGTH, ids, &count, &truncated, &e), &e);
    if (count != n) fail_msg("%s: \"%s\": %d ids, wanted %d", folder, text, count, n);
    if (!other && truncated != (json_value(one, "untruncated") > LENGTH))
        fail_msg("%s: \"%s\": truncated %d", folder, text, truncated);
    for (int i = 0; i < LENGTH; i++) {
        int id = i < n ? cJSON_GetArrayItem(want, i)->valueint : ts_tokenizer_pad(t);
        if (ids[i] != id) fail_msg("%s: \"%s\": id %d is %d, wanted %d", folder, text, i, ids[i], id);
    }
}

static void every_string_has_the_ids_of_transformers(void **state) {
    (void)state;
    static const char *const folders[] = {"files", "files_pad0", "json"};
    cJSON *json = fixture_json("tokenizer/cases.json");
    assert_int_equal((int)json_value(json, "length"), LENGTH);
    for (size_t f = 0; f < 3; f++) {
        char name[64];
        snprintf(name, sizeof name, "tokenizer/%s", folders[f]);
        ts_tokenizer *t = open_fixture(name);
        const cJSON *about =
            cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(json, "folders"), folders[f]);
        assert_int_equal(ts_tokenizer_start(t), (int)json_value(about, "bos"));
        assert_int_equal(ts_tokenizer_end(t), (int)json_value(about, "eos"));
        assert_int_equal(ts_tokenizer_pad(t), (int)json_value(about, "pad"));
        assert_int_equal(ts_tokenizer_size(t), (int)json_value(about, "size"));
        assert_int_equal(ts_tokenizer_max_length(t), LENGTH);
        const cJSON *one;
        int cases = 0;
        cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(json, "cases")) {
            const char *text = json_text(one, "text");
            check_case(t, folders[f], text, strlen(text), one);
            cases++;
        }
        assert_true(cases > 200);
        cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(json, "nul_cases")) {
            const char *hex = json_text(one, "utf8_hex");
            char text[64];
            size_t n = 0;
            for (unsigned byte; sscanf(hex + 2 * n, "%2x", &byte) == 1; n++) text[n] = (char)byte;
            check_case(t, folders[f], text, n, one);
        }
        ts_tokenizer_free(t);
    }
    cJSON_Delete(json);
}

static void lengths_cut_and_pad_as_asked(void **state) {
    (void)state;
    ts_tokenizer *t = open_fixture("tokenizer/files");
    ts_error e = {0};
    int32_t long_ids[LENGTH], ids[8];
    int count;
    bool truncated;
    const char *text = "the quick brown fox jumps over the lazy dog";
    must(ts_tokenizer_encode(t, text, strlen(text), LENGTH, long_ids, &count, &truncated, &e), &e);
    assert_true(count == 16 && !truncated);
    for (int length = 2; length <= 8; length++) {
        must(ts_tokenizer_encode(t, text, strlen(text), length, ids, &count, &truncated, &e), &e);
        assert_true(count == length && truncated);
        assert_int_equal(ids[0], ts_tokenizer_start(t));
        assert_int_equal(ids[length - 1], ts_tokenizer_end(t));
        assert_memory_equal(ids + 1, long_ids + 1, (size_t)(length - 2) * sizeof *ids);
    }
    must(ts_tokenizer_encode(t, "", 0, 2, ids, &count, &truncated, &e), &e);
    assert_true(count == 2 && !truncated);
    assert_int_equal(ts_tokenizer_encode(t, text, 3, 1, ids, NULL, NULL, &e), TS_EINVAL);
    assert_int_equal(ts_tokenizer_encode(t, text, 3, -5, ids, NULL, NULL, NULL), TS_EINVAL);
    ts_tokenizer_free(t);
}

static void broken_utf8_and_endless_text_are_refused(void **state) {
    (void)state;
    ts_tokenizer *t = open_fixture("tokenizer/files");
    static const char *const bad[] = {"\x80",         "a\xff",    "\xc0\x80",
                                      "\xed\xa0\x80", "\xe2\x82", "\xf4\x90\x80\x80"};
    int32_t ids[LENGTH] = {-7};
    ts_error e = {0};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(ts_tokenizer_encode(t, bad[i], strlen(bad[i]), LENGTH, ids, NULL, NULL, &e),
                         TS_EINVAL);
        assert_int_equal(ids[0], -7);
    }
    char *text = calloc(1, TS_TOKENIZER_TEXT + 1);
    assert_int_equal(ts_tokenizer_encode(t, text, TS_TOKENIZER_TEXT + 1, LENGTH, ids, NULL, NULL, &e),
                     TS_ETOOLARGE);
    free(text);
    ts_tokenizer_free(t);
}

/* A mebibyte of each: one word; marks in descending order, which a naive ordering sorts in quadratic time;
 * code points that decompose into four; white space; half a special token again and again. */
static void a_mebibyte_of_anything_takes_moments(void **state) {
    (void)state;
    static const char *const units[] = {"a",
                                        "ab",
                                        "\xcc\x80\xcc\xa3",
                                        "\xcd\xa1\xcc\x80\xcc\xa8",
                                        "\xe1\xbe\x82",
                                        " ",
                                        "<|startoftext|",
                                        "'",
                                        "\xea\xb0\x81",
                                        "\xcc\xa1"};
    ts_tokenizer *t = open_fixture("tokenizer/files_pad0");
    char *text = malloc(TS_TOKENIZER_TEXT);
    assert_non_null(text);
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        size_t n = strlen(units[i]), size = TS_TOKENIZER_TEXT / n * n;
        for (size_t at = 0; at < size; at += n) memcpy(text + at, units[i], n);
        int32_t ids[LENGTH];
        ts_error e = {0};
        clock_t start = clock();
        must(ts_tokenizer_encode(t, text, size, LENGTH, ids, NULL, NULL, &e), &e);
        double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (seconds > 5) fail_msg("\"%s\" again and again takes %.1f s", units[i], seconds);
    }
    free(text);
    ts_tokenizer_free(t);
}

typedef struct folder {
    char path[64];
} folder;

static folder make_folder(void) {
    folder f = {"/tmp/ts_tokenizer_XXXXXX"};
    assert_non_null(mkdtemp(f.path));
    return f;
}

static void put_file(const folder *f, const char *name, const char *text) {
    char *path = ts_path_join(f->path, name);
    ts_error e = {0};
    if (text)
        must(ts_write_file(path, text, strlen(text), &e), &e);
    else
        unlink(path);
    free(path);
}

static void remove_folder(const folder *f) {
    static const char *const files[] = {"vocab.json",
                                        "merges.txt",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) put_file(f, files[i], NULL);
    rmdir(f->path);
}

static void a_broken_folder_is_an_error_that_names_the_file(void **state) {
    (void)state;
#define V "{\"a\":0,\"b</w>\":1,\"ab</w>\":2,\"<|endoftext|>\":3,\"<|startoftext|>\":4}"
    static const struct {
        const char *vocab, *merges, *json, *config, *why;
    } cases[] = {
        {NULL, "", NULL, NULL, "vocab.json"},
        {V, NULL, NULL, NULL, "merges.txt"},
        {"{", "", NULL, NULL, "vocab.json"},
        {"[]", "", NULL, NULL, "vocab.json"},
        {"{}", "", NULL, NULL, "vocab.json"},
        {"{\"a\":\"0\"}", "", NULL, NULL, "vocab.json"},
        {"{\"a\":-1}", "", NULL, NULL, "vocab.json"},
        {"{\"a\":1.5}", "", NULL, NULL, "vocab.json"},
        {"{\"a\":1e300}", "", NULL, NULL, "vocab.json"},
        {"{\"a\":99999999}", "", NULL, NULL, "vocab.json"},
        {"{\"a\":0}", "", NULL, NULL, "unknown token"},
        {V, "#version: 0.2\na b</w>\na\n", NULL, NULL, "merges.txt:3"},
        {V, "a b c\n", NULL, NULL, "merges.txt:1"},
        {V, " a\n", NULL, NULL, "merges.txt:1"},
        {V, "a z\n", NULL, NULL, "the right one"},
        {V, "z a\n", NULL, NULL, "the left one"},
        {V, "a a\n", NULL, NULL, "the result"},
        {V, "a b</w>\n", NULL, "[", "tokenizer_config.json"},
        {V, "a b</w>\n", NULL, "{\"tokenizer_class\":\"T5Tokenizer\"}", "T5Tokenizer"},
        {V, "a b</w>\n", NULL, "{\"padding_side\":\"left\"}", "padding_side"},
        {V, "a b</w>\n", NULL, "{\"model_max_length\":\"77\"}", "model_max_length"},
        {V, "a b</w>\n", NULL, "{\"bos_token\":3}", "bos_token"},
        {V, "a b</w>\n", NULL, "{\"bos_token\":{}}", "bos_token"},
        {V, "a b</w>\n", NULL, "{\"bos_token\":\"\"}", "empty"},
        {V, "a b</w>\n", NULL, "{\"pad_token\":{\"content\":\"x\",\"lstrip\":true}}", "lstrip"},
        {V, "a b</w>\n", NULL, "{\"added_tokens_decoder\":{\"3\":7}}", "added_tokens_decoder"},
        {V, "a b</w>\n", NULL, "{\"additional_special_tokens\":[\"a b\"]}", "additional_special_tokens"},
        {V, "a b</w>\n", NULL, "{\"extra_special_tokens\":{\"x\":\"a b\"}}", "extra_special_tokens"},
        {V, "a b</w>\n", NULL, "{\"split_special_tokens\":true}", "tokenizer_config.json"},
        {NULL, NULL, "{}", NULL, "tokenizer.json"},
        {NULL, NULL, "{\"model\":{\"type\":\"Unigram\"}}", NULL, "Unigram"},
        {NULL, NULL, "{\"model\":{\"type\":\"BPE\",\"vocab\":" V "}}", NULL, "merges"},
        {NULL, NULL, "{\"model\":{\"type\":\"BPE\",\"vocab\":" V ",\"merges\":[[\"a\"]]}}", NULL, "merge"},
        {NULL, NULL, "{\"model\":{\"type\":\"BPE\",\"vocab\":" V ",\"merges\":[\"ab\"]}}", NULL, "merge"},
        {NULL, NULL, "{\"model\":{\"type\":\"BPE\",\"vocab\":" V ",\"merges\":[]},\"added_tokens\":[3]}",
         NULL, "added_tokens"},
    };
    folder f = make_folder();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put_file(&f, "vocab.json", cases[i].vocab);
        put_file(&f, "merges.txt", cases[i].merges);
        put_file(&f, "tokenizer.json", cases[i].json);
        put_file(&f, "tokenizer_config.json", cases[i].config);
        ts_tokenizer *t = NULL;
        ts_error e = {0};
        ts_code rc = ts_tokenizer_open(f.path, &t, &e);
        if (!rc || t || e.code != rc || !strstr(e.message, f.path) || !strstr(e.message, cases[i].why))
            fail_msg("case %zu (%s): %s, %s", i, cases[i].why, ts_code_name(rc), e.message);
    }
    remove_folder(&f);
}

/* Expected ids by hand, from the rules. */
static void a_vocabulary_with_gaps_uses_its_unknown_token(void **state) {
    (void)state;
    folder f = make_folder();
    put_file(&f, "vocab.json", V);
    put_file(&f, "merges.txt", "#version: 0.2\r\na b</w>\r\n\r\n");
    put_file(&f, "tokenizer_config.json",
             "{\"model_max_length\":1000000000000000019884624838656,\"pad_token\":\"<pad>\","
             "\"added_tokens_decoder\":{\"9\":{\"content\":\"Q R\",\"normalized\":true,\"special\":false}}}");
    ts_tokenizer *t = NULL;
    ts_error e = {0};
    must(ts_tokenizer_open(f.path, &t, &e), &e);
    assert_int_equal(ts_tokenizer_max_length(t), 77);
    /* "Q R" and "<pad>" are new: ids 5 and 6. x is unknown (3); "q   r" is "q r" once normalised. */
    int32_t ids[12];
    int count;
    const char *text = "AB x q \t r<pad>aab";
    must(ts_tokenizer_encode(t, text, strlen(text), 12, ids, &count, NULL, &e), &e);
    assert_int_equal(ts_tokenizer_size(t), 7);
    const int32_t expected[12] = {4, 2, 3, 5, 6, 0, 2, 3, 6, 6, 6, 6};
    assert_int_equal(count, 8);
    assert_memory_equal(ids, expected, sizeof ids);
    ts_tokenizer_free(t);
    remove_folder(&f);
}

/* AddedToken's own default: what is special is looked for as it is written, what is not in lower case. */
static void an_added_token_that_does_not_say_is_normalised_unless_it_is_special(void **state) {
    (void)state;
    folder f = make_folder();
    put_file(&f, "vocab.json", V);
    put_file(&f, "merges.txt", "a b</w>\n");
    put_file(&f, "tokenizer_config.json",
             "{\"additional_special_tokens\":[\"<S>\"],\"added_tokens_decoder\":{"
             "\"9\":{\"content\":\"<S>\",\"special\":true},\"10\":{\"content\":\"<N>\",\"special\":false}}}");
    ts_tokenizer *t = NULL;
    ts_error e = {0};
    must(ts_tokenizer_open(f.path, &t, &e), &e);
    static const struct {
        const char *text;
        size_t count;
    } cases[] = {{"<S>", 1}, {"<s>", 3}, {"<N>", 1}, {"<n>", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t ids[8];
        size_t count;
        must(ts_tokenizer_ids(t, cases[i].text, strlen(cases[i].text), ids, 8, &count, &e), &e);
        if (count != cases[i].count) fail_msg("%s: %zu ids", cases[i].text, count);
    }
    ts_tokenizer_free(t);
    remove_folder(&f);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_string_has_the_ids_of_transformers),
        cmocka_unit_test(lengths_cut_and_pad_as_asked),
        cmocka_unit_test(broken_utf8_and_endless_text_are_refused),
        cmocka_unit_test(a_mebibyte_of_anything_takes_moments),
        cmocka_unit_test(a_broken_folder_is_an_error_that_names_the_file),
        cmocka_unit_test(a_vocabulary_with_gaps_uses_its_unknown_token),
        cmocka_unit_test(an_added_token_that_does_not_say_is_normalised_unless_it_is_special),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
