/* engine/torch, engine/pickle and base/zip: the files of torch.save. */
#include "fixture.h"

#include "engine/lora.h"
#include "engine/pickle.h"
#include "engine/weights.h"

static char *file_of(const char *name, size_t *ret_size) {
    char *path = fixture_path(name), *bytes = NULL;
    ts_error e = {0};
    must(ts_read_file(path, 1u << 20, &bytes, ret_size, &e), &e);
    free(path);
    return bytes;
}

static void same_readable(const ts_tensors *have, const ts_tensors *want) {
    assert_int_equal(ts_tensors_count(have), ts_tensors_count(want));
    for (size_t i = 0; i < ts_tensors_count(want); i++) {
        const ts_file_tensor *a = ts_tensors_at(have, i), *b = ts_tensors_at(want, i);
        assert_string_equal(a->name, b->name);
        assert_true(a->dtype == b->dtype && a->rank == b->rank && a->bytes == b->bytes);
        for (int k = 0; k < b->rank; k++) assert_true(a->shape[k] == b->shape[k]);
        if (b->bytes) assert_memory_equal(a->data, b->data, b->bytes);
    }
}

static void same_tensors(const ts_tensors *have, const ts_tensors *want) {
    same_readable(have, want);
    size_t others = 0;
    while (ts_tensors_other(want, others)) others++;
    for (size_t i = 0; i < others; i++) {
        const ts_file_other *b = ts_tensors_other(want, i), *a = NULL;
        for (size_t k = 0; !a && ts_tensors_other(have, k); k++)
            if (strcmp(ts_tensors_other(have, k)->name, b->name) == 0) a = ts_tensors_other(have, k);
        assert_non_null(a);
        assert_string_equal(a->type, b->type);
        assert_true(a->bytes == b->bytes);
        assert_memory_equal(a->data, b->data, b->bytes);
    }
    assert_null(ts_tensors_other(have, others));
}

static void a_file_holds_what_it_held_in_pytorch(void **state) {
    (void)state;
    static const char *const files[] = {"torch/state.pt", "torch/protocol4.pt",
                                        "torch/component/diffusion_pytorch_model.bin"};
    ts_tensors *want = fixture_tensors("torch/state.safetensors");
    assert_true(ts_tensors_count(want) > 10);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        ts_tensors *have = fixture_tensors(files[i]);
        same_tensors(have, want);
        assert_null(ts_tensors_metadata(have, "format"));
        ts_tensors_free(have);
    }
    ts_tensors_free(want);
}

static void tensors_that_do_not_lie_row_by_row_are_put_in_order(void **state) {
    (void)state;
    ts_tensors *have = fixture_tensors("torch/strided.pt"),
               *want = fixture_tensors("torch/strided.safetensors");
    same_tensors(have, want);
    ts_tensors_free(have);
    ts_tensors_free(want);
}

/* What nobody can read here is there under its name, so that who wants it can say so. */
static void tensors_that_are_made_otherwise_are_read_or_named(void **state) {
    (void)state;
    static const char *const names[] = {"array", "of_array", "quantised", "sparse", "unknown"};
    ts_tensors *have = fixture_tensors("torch/otherwise.pt"),
               *want = fixture_tensors("torch/otherwise.safetensors");
    assert_int_equal(ts_tensors_count(want), 5);
    same_readable(have, want);
    size_t objects = 0;
    const ts_file_other *o;
    for (size_t i = 0; (o = ts_tensors_other(have, i)); i++) {
        if (strcmp(o->type, "object") != 0) {
            assert_string_equal(o->name, "u16");
            assert_string_equal(o->type, "U16");
            continue;
        }
        bool known = false;
        for (int k = 0; k < 5; k++) known = known || !strcmp(o->name, names[k]);
        assert_true(known);
        objects++;
    }
    assert_int_equal(objects, 5);
    ts_tensors_free(have);
    ts_tensors_free(want);
}

static void a_folder_may_hold_them(void **state) {
    (void)state;
    char *path = fixture_path("torch/component");
    ts_weights *w = NULL;
    ts_error e = {0};
    must(ts_weights_open(path, &w, &e), &e);
    const ts_param *p = ts_weights_find(w, "view.rows");
    assert_non_null(p);
    assert_true(p->rank == 2 && p->shape[0] == 3 && p->shape[1] == 4);
    ts_weights_free(w);
    free(path);
}

static void what_is_not_read_is_refused_with_the_reason(void **state) {
    (void)state;
    static const struct {
        const char *name;
        ts_code code;
        const char *why;
    } cases[] = {
        {"repeated.pt", TS_EUNSUPPORTED, "tensor a repeats what it is made of"},
        {"list.pt", TS_EFORMAT, "no tensors by name"},
        {"alone.pt", TS_EFORMAT, "no tensors by name"},
        {"old.pt", TS_EUNSUPPORTED, "before 1.6"},
        {"packed.pt", TS_EUNSUPPORTED, "is compressed"},
        {"big.pt", TS_EUNSUPPORTED, "big-endian"},
        {"other.zip", TS_EFORMAT, "no data.pkl"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *name = ts_format("torch/refused/%s", cases[i].name), *path = fixture_path(name);
        ts_tensors *s = NULL;
        ts_error e = {0};
        const ts_code rc = ts_tensors_open(path, &s, &e);
        if (rc != cases[i].code || s || !strstr(e.message, cases[i].why) || !strstr(e.message, cases[i].name))
            fail_msg("%s: %s, %s", cases[i].name, ts_code_name(rc), e.message);
        free(path);
        free(name);
    }
}

/* Opens it if it can be, and reads all that it then offers. */
static void survive(const char *bytes, size_t size) {
    char *own = malloc(size ? size : 1); /* its own block, so that a read beyond it is seen */
    assert_non_null(own);
    memcpy(own, bytes, size);
    ts_tensors *s = NULL;
    ts_error e = {0};
    if (!ts_tensors_parse("a test", own, size, &s, &e)) {
        for (size_t i = 0; i < ts_tensors_count(s); i++) {
            const ts_file_tensor *t = ts_tensors_at(s, i);
            float *out = ts_array0(float, ts_file_tensor_elements(t));
            assert_non_null(out);
            ts_file_tensor_to_f32(t, out);
            free(out);
        }
        ts_tensors_free(s);
    } else
        assert_true(e.message[0]);
    free(own);
}

/* Whoever uses a LoRA copies it: no more than the file has bytes. */
static void a_lora_whose_modules_are_views_of_each_other_is_refused(void **state) {
    (void)state;
    char *path = fixture_path("torch/refused/shared_lora.pt");
    ts_lora *l = NULL;
    ts_error e = {0};
    assert_int_equal(ts_lora_open(path, &l, &e), TS_EUNSUPPORTED);
    assert_non_null(strstr(e.message, "share their bytes"));
    free(path);
}

/* Scripts save alphas as Python's numbers. Left out, they would be the ranks. */
static void a_number_is_an_alpha_too(void **state) {
    (void)state;
    char *path = fixture_path("torch/loras/numbers.pt"), *same = fixture_path("loras/kohya_sd1.safetensors");
    char *strange = fixture_path("torch/refused/strange_alpha.pt");
    ts_lora *have = NULL, *want = NULL, *none = NULL;
    ts_error e = {0};
    must(ts_lora_open(path, &have, &e), &e);
    must(ts_lora_open(same, &want, &e), &e);
    assert_int_equal(ts_lora_count(have), 2);
    for (size_t i = 0, found = 0; i < ts_lora_count(want); i++) {
        const ts_lora_module *b = ts_lora_at(want, i);
        for (size_t k = 0; k < 2; k++) {
            const ts_lora_module *a = ts_lora_at(have, k);
            if (strcmp(a->layer, b->layer) != 0) continue;
            assert_true(a->factor == b->factor && a->factor != 1);
            found++;
        }
        if (i + 1 == ts_lora_count(want)) assert_int_equal(found, 2);
    }
    assert_int_equal(ts_lora_open(strange, &none, &e), TS_EFORMAT);
    assert_non_null(strstr(e.message, ".alpha is not one number"));
    ts_lora_free(have);
    ts_lora_free(want);
    free(path), free(same), free(strange);
}

static void every_truncation_and_every_changed_byte_is_survived(void **state) {
    (void)state;
    size_t size;
    char *bytes = file_of("torch/state.pt", &size);
    for (size_t n = 0; n < size; n++) {
        ts_tensors *s = NULL;
        assert_true(ts_tensors_parse("cut", bytes, n, &s, NULL) != TS_OK);
        if (n % 16 == 0) survive(bytes, n);
    }
    static const unsigned char others[] = {1, 0x20, 0x80, 0xff};
    for (size_t n = 0; n < size; n++)
        for (size_t k = 0; k < sizeof others; k++) {
            bytes[n] ^= (char)others[k];
            survive(bytes, size);
            bytes[n] ^= (char)others[k];
        }
    free(bytes);
}

static void pickles_that_are_broken_are_refused(void **state) {
    (void)state;
#define P(text, why)                                                                                         \
    { text, sizeof text - 1, why }
    static const struct {
        const char *bytes;
        size_t size;
        const char *why;
    } cases[] = {
        P("", "cut off"),
        P("\x80", "cut off"),
        P(".", "no single value"),
        P("NN.", "no single value"),
        P("N(.", "no single value"),
        P("N", "cut off"),
        P("\x80\2X\xff\xff\xff\xff"
          "abc.",
          "cut off"),
        P("\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "cut off"),
        P("\x8b\xff\xff\xff\xff.", "cut off"),
        P("G\0\0\0.", "cut off"),
        P("ctorch\nFloat", "cut off"),
        P("a.", "stack is empty"),
        P("N(a.", "stack is empty"),
        P("NNs.", "stack is empty"),
        P("}(Nu.", "without a value"),
        P("t.", "stack is empty"),
        P("NNNs.", "holds none"),
        P("]NNs.", "holds none"),
        P("}Na.", "holds none"),
        P("R.", "stack is empty"),
        P("b.", "stack is empty"),
        P("Nb.", "stack is empty"),
        P("NN\x93.", "no name"),
        P("h\0.", "memo"),
        P("q\0.", "stack is empty"),
        P("Nr\xff\xff\xff\xff.", "memo"),
        P("Nq\1h\0.", "memo"),
        P("i\n.", "unknown instruction"),
        P("\xff.", "unknown instruction"),
    };
#undef P
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ts_pickle *p = NULL;
        ts_error e = {0};
        const ts_code rc = ts_pickle_parse(cases[i].bytes, cases[i].size, &p, &e);
        if (rc != TS_EFORMAT || p || !strstr(e.message, cases[i].why))
            fail_msg("pickle %zu: %s, %s", i, ts_code_name(rc), e.message);
    }
}

static void a_pickle_is_read_as_python_would(void **state) {
    (void)state;
    /* pickle.dumps([1, -2, 70000, 2**70, 1.5, "é", (), {"k": None}, True], protocol=2) by Python 3.11 */
    static const char bytes[] =
        "\x80\x02]q\x00(K\x01J\xfe\xff\xff\xffJp\x11\x01\x00\x8a\t\x00\x00\x00\x00\x00\x00\x00\x00@"
        "G?\xf8\x00\x00\x00\x00\x00\x00X\x02\x00\x00\x00\xc3\xa9q\x01)}q\x02X\x01\x00\x00\x00kq\x03Ns\x88"
        "e.";
    ts_pickle *p = NULL;
    ts_error e = {0};
    must(ts_pickle_parse(bytes, sizeof bytes - 1, &p, &e), &e);
    const ts_pickle_value *root = ts_pickle_root(p), *at[9];
    assert_int_equal(root->kind, TS_PICKLE_LIST);
    assert_int_equal(root->count, 9);
    size_t n = 0;
    for (const ts_pickle_item *i = root->first; i; i = i->next) at[n++] = i->value;
    assert_true(at[0]->kind == TS_PICKLE_INTEGER && at[0]->integer == 1);
    assert_true(at[1]->kind == TS_PICKLE_INTEGER && at[1]->integer == -2);
    assert_true(at[2]->integer == 70000);
    assert_int_equal(at[3]->kind, TS_PICKLE_NONE); /* beyond 64 bits */
    assert_true(at[4]->kind == TS_PICKLE_NUMBER && at[4]->number == 1.5);
    assert_string_equal(at[5]->text, "é");
    assert_true(at[6]->kind == TS_PICKLE_TUPLE && at[6]->count == 0);
    assert_true(at[7]->kind == TS_PICKLE_DICT && at[7]->count == 1);
    assert_string_equal(at[7]->first->key->text, "k");
    assert_int_equal(at[7]->first->value->kind, TS_PICKLE_NONE);
    assert_true(at[8]->integer == 1);
    ts_pickle_free(p);
}

static void a_pickle_of_too_many_values_is_refused(void **state) {
    (void)state;
    const size_t n = 1100000;
    char *bytes = malloc(n);
    assert_non_null(bytes);
    memset(bytes, 'N', n);
    ts_pickle *p = NULL;
    assert_int_equal(ts_pickle_parse(bytes, n, &p, NULL), TS_ETOOLARGE);
    assert_null(p);
    free(bytes);
}

/* A zip file with one stored entry, a/data.pkl, of the n < 2^24 bytes of a pickle. big: its numbers are in a
 * ZIP64 field, of so many bytes. free() it. */
static char *zip_of(const char *pickle, size_t n, unsigned big, size_t *ret_size) {
    static const char name[] = "a/data.pkl";
    const unsigned k = sizeof name - 1, extra = big ? 4 + big : 0;
    const size_t directory = 30 + k + n, size = directory + 46 + k + extra + 22;
    unsigned char *f = calloc(1, size);
    assert_non_null(f);
    unsigned char *entry = f + directory, *field = entry + 46 + k, *end = field + extra;
    memcpy(f, "PK\3\4", 4);
    memcpy(entry, "PK\1\2", 4);
    memcpy(end, "PK\5\6", 4);
    f[26] = entry[28] = (unsigned char)k;
    memcpy(f + 30, name, k);
    memcpy(entry + 46, name, k);
    memcpy(f + 30 + k, pickle, n);
    for (unsigned i = 0; i < 3; i++) {
        entry[20 + i] = entry[24 + i] = (unsigned char)(n >> (8 * i));
        end[16 + i] = (unsigned char)(directory >> (8 * i));
    }
    if (big) {
        memset(entry + 20, 0xff, 8);
        memset(entry + 42, 0xff, 4);
        entry[30] = (unsigned char)extra;
        field[0] = 1;
        field[2] = (unsigned char)big;
        for (unsigned i = 0; i < 3 && big >= 24; i++)
            field[4 + i] = field[12 + i] = (unsigned char)(n >> (8 * i)); /* and 0: where it begins */
    }
    end[8] = end[10] = 1;
    end[12] = (unsigned char)(46 + k + extra);
    *ret_size = size;
    return (char *)f;
}

static void numbers_may_be_in_a_zip64_field(void **state) {
    (void)state;
    static const char pickle[] = "]."; /* no tensors: it has been read, then */
    static const struct {
        unsigned big;
        const char *why;
    } cases[] = {{0, "no tensors"}, {24, "no tensors"}, {32, "no tensors"}, {16, "ZIP64"}, {1, "ZIP64"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t size;
        char *bytes = zip_of(pickle, sizeof pickle - 1, cases[i].big, &size);
        ts_tensors *s = NULL;
        ts_error e = {0};
        const ts_code rc = ts_tensors_parse("a test", bytes, size, &s, &e);
        if (rc != TS_EFORMAT || !strstr(e.message, cases[i].why))
            fail_msg("%u: %s, %s", cases[i].big, ts_code_name(rc), e.message);
        free(bytes);
    }
}

static void values_in_values_without_end_are_refused(void **state) {
    (void)state;
    /* d = {"a": d}; and ten dicts of ten times the one before. */
    static const char itself[] = "}q\0X\1\0\0\0ah\0s.";
    char wide[4096], *bytes;
    size_t n = 0, size;
    n += (size_t)snprintf(wide + n, sizeof wide - n, "}q%c", 1);
    for (char level = 2; level < 12; level++) {
        n += (size_t)snprintf(wide + n, sizeof wide - n, "}q%c", level);
        for (int i = 0; i < 10; i++) {
            memcpy(wide + n, "X\1\0\0\0", 5);
            n += 5;
            wide[n++] = (char)('a' + i);
            wide[n++] = 'h';
            wide[n++] = (char)(level - 1);
            wide[n++] = 's';
        }
        wide[n++] = '0'; /* both off, and the new one back from the memo: one value is to be left */
        wide[n++] = '0';
        wide[n++] = 'h';
        wide[n++] = level;
    }
    wide[n++] = '.';
    const struct {
        const char *pickle;
        size_t size;
    } cases[] = {{itself, sizeof itself - 1}, {wide, n}};
    for (size_t i = 0; i < 2; i++) {
        ts_tensors *s = NULL;
        ts_error e = {0};
        bytes = zip_of(cases[i].pickle, cases[i].size, 0, &size);
        const ts_code rc = ts_tensors_parse("a test", bytes, size, &s, &e);
        if (rc != TS_ETOOLARGE || s) fail_msg("case %zu: %s, %s", i, ts_code_name(rc), e.message);
        free(bytes);
    }
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_holds_what_it_held_in_pytorch),
        cmocka_unit_test(tensors_that_do_not_lie_row_by_row_are_put_in_order),
        cmocka_unit_test(tensors_that_are_made_otherwise_are_read_or_named),
        cmocka_unit_test(a_folder_may_hold_them),
        cmocka_unit_test(what_is_not_read_is_refused_with_the_reason),
        cmocka_unit_test(a_lora_whose_modules_are_views_of_each_other_is_refused),
        cmocka_unit_test(a_number_is_an_alpha_too),
        cmocka_unit_test(every_truncation_and_every_changed_byte_is_survived),
        cmocka_unit_test(pickles_that_are_broken_are_refused),
        cmocka_unit_test(a_pickle_is_read_as_python_would),
        cmocka_unit_test(a_pickle_of_too_many_values_is_refused),
        cmocka_unit_test(numbers_may_be_in_a_zip64_field),
        cmocka_unit_test(values_in_values_without_end_are_refused),
    };
    return cmocka_run_group_tests_name("torch", tests, NULL, NULL);
}
