#include "workshop.h"

#include <dirent.h>
#include <sys/stat.h>
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

/* What only this kind has, and the rest from another. */
void workshop_gather(const char *kind) {
    while (workshop.made_count) free(workshop.made[--workshop.made_count]);
    workshop.count = 0;
    const cJSON *c = workshop_case(kind);
    put_tensors(c, NULL);
    if (cJSON_HasObjectItem(c, "rest")) put_tensors(workshop_case(json_text(c, "rest")), json_text(c, "own"));
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

void workshop_retype(const char *path, const char *name) {
    char *bytes = NULL, *entry = ts_format("\"%s\":{\"dtype\":\"", name);
    size_t size;
    ts_error e = {0};
    must(ts_read_file(path, SIZE_MAX / 2, &bytes, &size, &e), &e);
    char *at = memmem(bytes, size, entry, strlen(entry));
    assert_non_null(at);
    at[strlen(entry)] = 'I';
    must(ts_write_file(path, bytes, size, &e), &e);
    free(entry);
    free(bytes);
}

static const char *const parts[] = {"unet",      "vae",         "text_encoder", "text_encoder_2",
                                    "tokenizer", "tokenizer_2", "scheduler"};
enum { PARTS = sizeof parts / sizeof *parts };

/* folder/name becomes a link to the fixture, if that is there. */
static void link_as(const char *fixture, const char *folder, const char *name) {
    char *there = parity_path(fixture), *full = realpath(there, NULL),
         *here = ts_format("%s/%s", folder, name);
    if (full) assert_int_equal(symlink(full, here), 0);
    free(there), free(full), free(here);
}

static void link_to(const char *fixture, const char *folder, const char *name) {
    char *inner = ts_format("%s/%s", fixture, name);
    link_as(inner, folder, name);
    free(inner);
}

char *workshop_folder(const char *pipeline, const char *index) {
    char *folder = ts_format("%s/folder", workshop.folder), *path = ts_format("%s/model_index.json", folder);
    ts_error e = {0};
    assert_int_equal(mkdir(folder, 0700), 0);
    for (int k = 0; k < PARTS; k++) link_to(pipeline, folder, parts[k]);
    must(ts_write_file(path, index, strlen(index), &e), &e);
    free(path);
    return folder;
}

void workshop_swap(const char *folder, const char *component, const char *fixture) {
    char *part = ts_format("%s/%s", folder, component);
    assert_int_equal(unlink(part), 0);
    link_as(fixture, folder, component);
    free(part);
}

void workshop_spoil(const char *folder, const char *pipeline, const char *component, const char *name,
                    bool drop) {
    char *part = ts_format("%s/%s", folder, component), *from = ts_format("%s/%s", pipeline, component);
    char *path = ts_format("%s/model.safetensors", part);
    const ts_tensors *all = workshop_source(from);
    size_t kept = 0;
    ts_error e = {0};
    assert_non_null(ts_tensors_find(all, name));
    for (size_t i = 0; i < ts_tensors_count(all); i++)
        if (!drop || strcmp(ts_tensors_at(all, i)->name, name) != 0)
            workshop.tensors[kept++] = *ts_tensors_at(all, i);
    assert_int_equal(unlink(part), 0);
    assert_int_equal(mkdir(part, 0700), 0);
    link_to(from, part, "config.json");
    must(ts_safetensors_write(path, workshop.tensors, kept, &e), &e);
    if (!drop) workshop_retype(path, name);
    free(part), free(from), free(path);
}

void workshop_put(const char *folder, const char *component, const char *file, const char *text) {
    char *part = ts_format("%s/%s", folder, component), *path = ts_format("%s/%s", part, file);
    char *fixture = realpath(part, NULL);
    DIR *listed = fixture ? opendir(fixture) : NULL;
    ts_error e = {0};
    assert_true(listed && !unlink(part) && !mkdir(part, 0700));
    for (const struct dirent *d; (d = readdir(listed));) {
        char *from = ts_format("%s/%s", fixture, d->d_name), *to = ts_format("%s/%s", part, d->d_name);
        if (d->d_name[0] != '.' && strcmp(d->d_name, file) != 0) assert_int_equal(symlink(from, to), 0);
        free(from), free(to);
    }
    must(ts_write_file(path, text, strlen(text), &e), &e);
    closedir(listed);
    free(part), free(path), free(fixture);
}

static void discard_component(const char *path) {
    if (!unlink(path)) return; /* a link, not a folder of our own */
    DIR *listed = opendir(path);
    for (const struct dirent *d; listed && (d = readdir(listed));)
        if (d->d_name[0] != '.') unlinkat(dirfd(listed), d->d_name, 0);
    if (listed) closedir(listed);
    rmdir(path);
}

void workshop_discard_folder(char *folder) {
    for (int k = 0; k < PARTS; k++) {
        char *part = ts_format("%s/%s", folder, parts[k]);
        discard_component(part);
        free(part);
    }
    char *index = ts_format("%s/model_index.json", folder);
    unlink(index);
    assert_int_equal(rmdir(folder), 0);
    free(index);
    free(folder);
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
