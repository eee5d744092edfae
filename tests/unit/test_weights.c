/* Weights of a component: one file, shards, variants, and what is not accepted of them. */
#include "fixture.h"

#include <dirent.h>
#include <unistd.h>
#include "engine/weights.h"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/tessera-weights-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    DIR *d = opendir(folder);
    if (!d) return -1;
    for (const struct dirent *f; (f = readdir(d));)
        if (f->d_name[0] != '.') {
            char *path = ts_path_join(folder, f->d_name);
            if (path) unlink(path);
            free(path);
        }
    closedir(d);
    return rmdir(folder);
}

/* One tensor of two numbers, `value` and the next, in a file of its own. */
static void put_tensor(const char *file, const char *tensor, float value) {
    const float data[2] = {value, value + 1};
    ts_file_tensor t = {.name = tensor, .dtype = TS_F32, .rank = 1, .shape = {2}, .data = data, .bytes = 8};
    char *path = ts_path_join(folder, file);
    ts_error e = {0};
    must(ts_safetensors_write(path, &t, 1, &e), &e);
    free(path);
}

static void put_text(const char *file, const char *text) {
    char *path = ts_path_join(folder, file);
    ts_error e = {0};
    must(ts_write_file(path, text, strlen(text), &e), &e);
    free(path);
}

static void holds(const char *tensor, float value) {
    ts_error e = {0};
    ts_weights *w = NULL;
    must(ts_weights_open(folder, &w, &e), &e);
    const ts_param *p = ts_weights_find(w, tensor);
    if (!p) fail_msg("no %s", tensor);
    float have[2];
    memcpy(have, p->data, sizeof have);
    assert_true(have[0] == value && have[1] == value + 1);
    ts_weights_free(w);
}

static void fails(ts_code code, const char *word) {
    ts_error e = {0};
    ts_weights *w = NULL;
    assert_int_equal(ts_weights_open(folder, &w, &e), code);
    assert_null(w);
    if (!strstr(e.message, word)) fail_msg("\"%s\" does not speak of %s", e.message, word);
}

static void any_published_name_opens(void **state) {
    (void)state;
    static const char *const names[] = {
        "diffusion_pytorch_model.safetensors",      "model.safetensors",      "model.fp16.safetensors",
        "diffusion_pytorch_model.fp16.safetensors", "model.bf16.safetensors",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        put_tensor(names[i], "a", 1);
        holds("a", 1);
        char *path = ts_path_join(folder, names[i]);
        unlink(path);
        free(path);
    }
}

static void the_plain_file_wins_over_a_variant(void **state) {
    (void)state;
    put_tensor("model.fp16.safetensors", "a", 1);
    put_tensor("model.safetensors", "a", 5);
    holds("a", 5);
}

static void the_shards_of_an_index_are_one_set(void **state) {
    (void)state;
    put_tensor("model-00001-of-00002.safetensors", "b", 1);
    put_tensor("model-00002-of-00002.safetensors", "a", 7);
    put_text("model.safetensors.index.json",
             "{\"metadata\":{\"total_size\":16},\"weight_map\":{"
             "\"b\":\"model-00001-of-00002.safetensors\",\"a\":\"model-00002-of-00002.safetensors\"}}");
    holds("a", 7);
    holds("b", 1);
    ts_weights *w = NULL;
    ts_error e = {0};
    must(ts_weights_open(folder, &w, &e), &e);
    assert_int_equal(ts_weights_elements(w), 4);
    ts_weights_free(w);
}

/* Both spellings that diffusers has had for the index of a variant. */
static void sharded_variants_open(void **state) {
    (void)state;
    static const char map[] = "{\"weight_map\":{\"a\":\"m.fp16-00001-of-00001.safetensors\"}}";
    put_tensor("m.fp16-00001-of-00001.safetensors", "a", 3);
    put_text("diffusion_pytorch_model.safetensors.index.fp16.json", map);
    holds("a", 3);
    char *path = ts_path_join(folder, "diffusion_pytorch_model.safetensors.index.fp16.json");
    unlink(path);
    free(path);
    put_text("diffusion_pytorch_model.fp16.safetensors.index.json", map);
    holds("a", 3);
}

static void shards_may_be_of_pytorch(void **state) {
    (void)state;
    put_tensor("1.bin", "a", 4);
    put_text("pytorch_model.bin.index.json", "{\"weight_map\":{\"a\":\"1.bin\"}}");
    holds("a", 4);
    put_tensor("model.safetensors", "a", 5); /* counts before it */
    holds("a", 5);
}

static void a_missing_shard_is_named(void **state) {
    (void)state;
    put_text("model.safetensors.index.json", "{\"weight_map\":{\"a\":\"model-00009.safetensors\"}}");
    fails(TS_ENOTFOUND, "model-00009.safetensors");
}

static void a_tensor_of_two_shards_is_refused(void **state) {
    (void)state;
    put_tensor("1.safetensors", "a", 1);
    put_tensor("2.safetensors", "a", 1);
    put_text("model.safetensors.index.json",
             "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}");
    fails(TS_EFORMAT, "comes twice");
}

static void a_shard_outside_the_folder_is_refused(void **state) {
    (void)state;
    static const char *const maps[] = {
        "{\"weight_map\":{\"a\":\"../secret.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"/etc/passwd\"}}",
        "{\"weight_map\":{\"a\":\".safetensors\"}}",
        "{\"weight_map\":{\"a\":7}}",
        "{\"weight_map\":[]}",
        "{}",
        "[]",
        "7",
    };
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) {
        put_text("model.safetensors.index.json", maps[i]);
        fails(TS_EFORMAT, "weight_map");
    }
}

/* What they have to be multiplied by would be overlooked, as any tensor that a model has no use for. */
static void weights_with_scales_beside_them_are_refused(void **state) {
    (void)state;
    static const char *const names[] = {"a.weight_scale", "a.scale_weight", "a.comfy_quant"};
    for (int i = 0; i < 3; i++) {
        put_tensor("model.safetensors", names[i], 1);
        fails(TS_EUNSUPPORTED, names[i]);
    }
    put_tensor("model.safetensors", "scale_shift", 1);
    holds("scale_shift", 1);
}

static void a_folder_without_weights_is_not_found(void **state) {
    (void)state;
    fails(TS_ENOTFOUND, "model.safetensors");
}

#define claim(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        claim(any_published_name_opens),
        claim(the_plain_file_wins_over_a_variant),
        claim(the_shards_of_an_index_are_one_set),
        claim(shards_may_be_of_pytorch),
        claim(sharded_variants_open),
        claim(a_missing_shard_is_named),
        claim(a_tensor_of_two_shards_is_refused),
        claim(a_shard_outside_the_folder_is_refused),
        claim(weights_with_scales_beside_them_are_refused),
        claim(a_folder_without_weights_is_not_found),
    };
    return cmocka_run_group_tests_name("weights", tests, NULL, NULL);
}
