#include "workshop.h"

#include <unistd.h>

ts_workshop workshop;

const cJSON *workshop_case(const char *kind) {
    const cJSON *c;
    cJSON_ArrayForEach(c, workshop.cases) if (!strcmp(json_text(c, "kind"), kind)) return c;
    fail_msg("no case %s", kind);
    return NULL;
}

const ts_tensors *workshop_source(const char *folder) {
    for (int i = 0; i < workshop.source_count; i++)
        if (!strcmp(workshop.sources[i].folder, folder)) return workshop.sources[i].file;
    assert_true(workshop.source_count < 16);
    bool text = strstr(folder, "text_encoder") != NULL;
    char *name = ts_format("%s/%s.safetensors", folder, text ? "model" : "diffusion_pytorch_model");
    ts_source_file *s = &workshop.sources[workshop.source_count++];
    *s = (ts_source_file){.folder = ts_strdup(folder), .file = fixture_tensors(name)};
    free(name);
    return s->file;
}

char *workshop_room(size_t bytes) {
    assert_true(workshop.made_count < sizeof workshop.made / sizeof *workshop.made);
    char *m = calloc(bytes ? bytes : 1, 1);
    assert_non_null(m);
    workshop.made[workshop.made_count++] = m;
    return m;
}

/* The tensors named in `of` one behind the other. */
static void put_tensor(const cJSON *entry) {
    const ts_tensors *from = workshop_source(json_text(entry, "folder"));
    const cJSON *of = cJSON_GetObjectItemCaseSensitive(entry, "of"), *v;
    ts_file_tensor *t = &workshop.tensors[workshop.count++];
    assert_true(workshop.count < sizeof workshop.tensors / sizeof *workshop.tensors);
    *t = (ts_file_tensor){.name = json_text(entry, "key")};
    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(entry, "shape")) t->shape[t->rank++] = v->valueint;
    cJSON_ArrayForEach(v, of) {
        const ts_file_tensor *part = ts_tensors_find(from, v->valuestring);
        if (!part) fail_msg("no tensor %s", v->valuestring);
        t->dtype = part->dtype;
        t->bytes += part->bytes;
    }
    char *bytes = workshop_room(t->bytes), *at = bytes;
    t->data = bytes;
    cJSON_ArrayForEach(v, of) {
        const ts_file_tensor *part = ts_tensors_find(from, v->valuestring);
        memcpy(at, part->data, part->bytes);
        at += part->bytes;
    }
    if (!cJSON_GetObjectItemCaseSensitive(entry, "transposed")) return;
    char *turned = workshop_room(t->bytes);
    size_t rows = (size_t)t->shape[0], columns = (size_t)t->shape[1], size = ts_dtype_size(t->dtype);
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < columns; k++)
            memcpy(turned + (i * columns + k) * size, bytes + (k * rows + i) * size, size);
    t->data = turned;
}

static void put_tensors(const cJSON *c, const char *but) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(c, "tensors")) {
        if (!but || strncmp(json_text(entry, "key"), but, strlen(but)) != 0) put_tensor(entry);
    }
}

/* All tensors of a kind of file. 2.x shares all but its text encoder with 1.x here. */
void workshop_gather(const char *kind) {
    while (workshop.made_count) free(workshop.made[--workshop.made_count]);
    workshop.count = 0;
    put_tensors(workshop_case(kind), NULL);
    if (!strcmp(kind, "sd2")) put_tensors(workshop_case("sd1"), "cond_stage_model.");
}

char *workshop_write(const char *name) {
    char *path = ts_format("%s/%s.safetensors", workshop.folder, name);
    ts_error e = {0};
    assert_non_null(path);
    must(ts_safetensors_write(path, workshop.tensors, workshop.count, &e), &e);
    return path;
}

/* NAME.json: the fixture's, with the folders of the tokenizers by their full path. */
void workshop_beside(const cJSON *c, const char *name) {
    cJSON *json = cJSON_Duplicate(cJSON_GetObjectItemCaseSensitive(c, "beside"), true);
    static const char *const keys[] = {"tokenizer", "tokenizer_2"};
    for (int i = 0; i < 2; i++) {
        const cJSON *folder = cJSON_GetObjectItemCaseSensitive(json, keys[i]);
        if (!folder) continue;
        char *inner = ts_format("%s/%s", json_text(c, "pipeline"), folder->valuestring);
        char *relative = fixture_path(inner), *full = realpath(relative, NULL);
        assert_non_null(full);
        cJSON_ReplaceItemInObjectCaseSensitive(json, keys[i], cJSON_CreateString(full));
        free(inner);
        free(relative);
        free(full);
    }
    char *text = cJSON_PrintUnformatted(json), *path = ts_format("%s/%s.json", workshop.folder, name);
    ts_error e = {0};
    must(ts_write_file(path, text, strlen(text), &e), &e);
    cJSON_free(text);
    free(path);
    cJSON_Delete(json);
}

char *workshop_make(const char *kind) {
    workshop_gather(kind);
    workshop_beside(workshop_case(kind), kind);
    return workshop_write(kind);
}

void workshop_discard(char *path) {
    if (!path) return;
    char *beside = ts_format("%.*s.json", (int)(strlen(path) - strlen(".safetensors")), path);
    unlink(beside);
    unlink(path);
    free(beside);
    free(path);
}

/* Keeps what begins with `prefix`, or drops it. */
void workshop_sift(const char *prefix, bool keep) {
    size_t kept = 0;
    for (size_t i = 0; i < workshop.count; i++)
        if ((strncmp(workshop.tensors[i].name, prefix, strlen(prefix)) == 0) == keep)
            workshop.tensors[kept++] = workshop.tensors[i];
    workshop.count = kept;
}

ts_file_tensor *workshop_tensor(const char *name) {
    for (size_t i = 0; i < workshop.count; i++)
        if (!strcmp(workshop.tensors[i].name, name)) return &workshop.tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

void workshop_open(int argc, char **argv) {
    fixture_init(argc, argv);
    strcpy(workshop.folder, "/tmp/tessera-files-XXXXXX");
    assert_non_null(mkdtemp(workshop.folder));
    workshop.cases = fixture_json("single_file.json");
}

void workshop_close(void) {
    for (int i = 0; i < workshop.source_count; i++) {
        ts_tensors_free(workshop.sources[i].file);
        free(workshop.sources[i].folder);
    }
    for (size_t i = 0; i < workshop.made_count; i++) free(workshop.made[i]);
    cJSON_Delete(workshop.cases);
    rmdir(workshop.folder);
}
