/* Textual inversion (Gal et al. 2022, arXiv 2208.01618): names that stand for vectors of a text encoder's
 * input. */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "base/alloc.h"
#include "base/file.h"
#include "engine/model.h"
#include "engine/tensors.h"

#define DEPTH   4    /* of folders in folders that are read */
#define MAXIMUM 1024 /* embeddings of a folder: every one is looked for in every prompt */

/* The same file may lie there in two forms; the first one counts. */
static const char *const extensions[] = {".safetensors", ".pt", ".bin", NULL};

/* One file: the vectors for each encoder, whose number is `encoders`. */
typedef struct embedding {
    const char *name;
    const ts_file_tensor *of[TS_TEXT_ENCODERS];
    int encoders;
} embedding;

/* Vectors of a tensor [n][width], or of one [width]. */
static int64_t vectors_of(const ts_file_tensor *t) {
    return t->rank == 2 ? t->shape[0] : 1;
}

static int64_t width_of(const ts_file_tensor *t) {
    return t->shape[t->rank - 1];
}

/* What the web UI calls its only tensor in a file of PyTorch's; the word of the training comes behind. */
static const char web_ui_prefix[] = "string_to_param.";

/* Tensors that cannot be read where there are no others; the web UI has the numbers of its words beside them.
 */
static const ts_file_other *unread_vectors(const ts_tensors *file) {
    static const char words[] = "string_to_token";
    const ts_file_other *other = NULL;
    for (size_t i = 0; !ts_tensors_count(file) && (other = ts_tensors_other(file, i)); i++)
        if (strncmp(other->name, words, sizeof words - 1) != 0) break;
    return other;
}

/* What the web UI and diffusers write: "emb_params" (or "*"), called as the file is; a tensor called as the
 * word is; a pair for XL's encoders. */
static ts_code recognise(const ts_tensors *file, const char *path, const char *stem, embedding *ret,
                         ts_error *e) {
    static const char *const anonymous[] = {"emb_params", "*"};
    embedding m = {.name = stem, .encoders = 1};
    for (size_t i = 0; i < 2 && !m.of[0]; i++) m.of[0] = ts_tensors_find(file, anonymous[i]);
    if (!m.of[0]) {
        m.of[0] = ts_tensors_find(file, "clip_l");
        m.of[1] = ts_tensors_find(file, "clip_g");
        m.encoders = 2;
    }
    if (!m.of[0] && !m.of[1] && ts_tensors_count(file) == 1) {
        m.of[0] = ts_tensors_at(file, 0);
        if (strncmp(m.of[0]->name, web_ui_prefix, sizeof web_ui_prefix - 1) != 0) m.name = m.of[0]->name;
        m.encoders = 1;
    }
    for (int i = 0; i < m.encoders; i++) {
        const ts_file_other *other = m.of[i] ? NULL : unread_vectors(file);
        if (other) return ts_error_context(e, ts_tensors_unread(e, other->name, other->type), "%s", path);
        if (!m.of[i])
            return ts_fail(e, TS_EFORMAT,
                           "%s is no embedding: emb_params, one tensor called as the word, or clip_l and "
                           "clip_g are wanted",
                           path);
        if (m.of[i]->rank < 1 || m.of[i]->rank > 2 || vectors_of(m.of[i]) < 1)
            return ts_fail(e, TS_EFORMAT, "%s: %.100s is not vectors x width", path, m.of[i]->name);
        if (vectors_of(m.of[i]) != vectors_of(m.of[0]))
            return ts_fail(e, TS_EFORMAT, "%s: clip_l and clip_g have different numbers of vectors", path);
    }
    *ret = m;
    return TS_OK;
}

static bool fits(const ts_model *m, const embedding *of) {
    bool good = of->encoders == m->text_count;
    for (int i = 0; i < m->text_count && good; i++) good = width_of(of->of[i]) == m->text[i].config.hidden;
    return good;
}

static ts_code add_vectors(ts_text_model *t, const ts_file_tensor *from, const char *name, const char *path,
                           ts_error *e) {
    const size_t n = (size_t)vectors_of(from), width = (size_t)t->config.hidden;
    if (!ts_grow(&t->vectors, &t->vector_capacity, (t->vector_count + n) * width, sizeof *t->vectors))
        return ts_fail(e, TS_ENOMEM, "loading %s", path);
    float *to = t->vectors + t->vector_count * width;
    ts_file_tensor_to_f32(from, to);
    for (size_t i = 0; i < n * width; i++)
        if (!isfinite(to[i])) return ts_fail(e, TS_EFORMAT, "%s: %.100s is not finite", path, from->name);
    ts_code rc = ts_tokenizer_add_name(t->tokenizer, name, (int)n, e);
    if (!rc) t->vector_count += n;
    return rc ? ts_error_context(e, rc, "%s", path) : TS_OK;
}

static ts_code add(ts_model *m, const embedding *of, const char *path, ts_error *e) {
    const int room = m->text[0].config.positions - 2;
    if (vectors_of(of->of[0]) > room)
        return ts_fail(e, TS_EFORMAT, "%s has more than the %d vectors that fit into a text", path, room);
    if (m->info.embedding_count == MAXIMUM)
        return ts_fail(e, TS_EFORMAT, "%s: %d embeddings at most", path, MAXIMUM);
    size_t capacity = m->embedding_capacity;
    if (!ts_grow(&m->embeddings, &capacity, (size_t)m->info.embedding_count + 1, sizeof *m->embeddings))
        return ts_fail(e, TS_ENOMEM, "loading %s", path);
    m->embedding_capacity = capacity;
    m->info.embeddings = (const char *const *)m->embeddings;
    ts_code rc = TS_OK;
    for (int i = 0; i < m->text_count && !rc; i++)
        rc = add_vectors(&m->text[i], of->of[i], of->name, path, e);
    if (rc) return rc;
    char *name = ts_strdup(of->name);
    if (!name) return ts_fail(e, TS_ENOMEM, "loading %s", path);
    m->embeddings[m->info.embedding_count++] = name;
    return TS_OK;
}

/* file_name: its path from the folder on. */
static ts_code add_file(ts_model *m, const char *folder, const char *file_name, ts_error *e) {
    const char *slash = strrchr(file_name, '/'), *name = slash ? slash + 1 : file_name;
    size_t n;
    ts_path_extension(name, extensions, &n);
    char *path = ts_path_join(folder, file_name);
    char *stem = ts_strndup(name, n);
    ts_tensors *file = NULL;
    embedding of = {0};
    ts_code rc = path && stem ? TS_OK : ts_fail(e, TS_ENOMEM, "reading the embeddings");
    if (!rc) rc = ts_tensors_open(path, &file, e);
    if (!rc) rc = recognise(file, path, stem, &of, e);
    if (!rc && fits(m, &of)) rc = add(m, &of, path, e);
    if (!rc) rc = ts_tensors_check(file, e);
    ts_tensors_free(file);
    free(stem);
    free(path);
    return rc;
}

/* Whether the same name is there with an extension that counts before this one's. */
static bool is_second(char *const *names, size_t count, const char *file_name) {
    size_t n, k;
    const int own = ts_path_extension(file_name, extensions, &n);
    for (size_t i = 0; own && i < count; i++)
        if (ts_path_extension(names[i], extensions, &k) < own && k == n && !strncmp(names[i], file_name, n))
            return true;
    return false;
}

static int in_order(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Files below the folder by their paths from it. */
typedef struct listing {
    const char *folder;
    char **names;
    size_t count, capacity;
    struct stat on_the_way[DEPTH + 1]; /* the folders that lead here */
} listing;

static ts_code list(listing *l, const char *below, int depth, ts_error *e);

static ts_code list_entry(listing *l, const char *below, const char *name, int depth, ts_error *e) {
    size_t n;
    char *path = *below ? ts_path_join(below, name) : ts_strdup(name);
    char *whole = path ? ts_path_join(l->folder, path) : NULL;
    ts_code rc = whole ? TS_OK : ts_fail(e, TS_ENOMEM, "listing the embeddings");
    if (!rc && ts_folder_exists(whole)) {
        rc = depth < DEPTH ? list(l, path, depth + 1, e) : TS_OK;
    } else if (!rc && ts_path_extension(name, extensions, &n) >= 0) {
        if (ts_grow(&l->names, &l->capacity, l->count + 1, sizeof *l->names)) {
            l->names[l->count++] = path;
            path = NULL;
        } else {
            rc = ts_fail(e, TS_ENOMEM, "listing the embeddings");
        }
    }
    free(whole);
    free(path);
    return rc;
}

/* Whether a link in the folder leads to one that it is in. */
static bool leads_back(listing *l, int descriptor, int depth) {
    struct stat *here = &l->on_the_way[depth];
    if (fstat(descriptor, here)) return false;
    for (int i = 0; i < depth; i++)
        if (l->on_the_way[i].st_dev == here->st_dev && l->on_the_way[i].st_ino == here->st_ino) return true;
    return false;
}

static ts_code list(listing *l, const char *below, int depth, ts_error *e) {
    char *path = ts_path_join(l->folder, below);
    if (!path) return ts_fail(e, TS_ENOMEM, "listing the embeddings");
    ts_code rc = TS_OK;
    DIR *d = opendir(path);
    /* A folder of somebody else's in it, lost+found for one, is none of ours. */
    if (!d && (errno != EACCES || !depth))
        rc = ts_fail_errno(e, ts_errno_code(errno), errno, "opening %s, of the embeddings", path);
    free(path);
    if (d && leads_back(l, dirfd(d), depth)) {
        closedir(d);
        return TS_OK;
    }
    if (!d) return rc;
    for (const struct dirent *f; !rc && (f = readdir(d));)
        if (f->d_name[0] != '.') rc = list_entry(l, below, f->d_name, depth, e);
    closedir(d);
    return rc;
}

ts_code ts_model_add_embeddings(ts_model *m, const char *folder, ts_error *e) {
    listing l = {.folder = folder};
    ts_code rc = list(&l, "", 0, e);
    if (l.count) qsort(l.names, l.count, sizeof *l.names, in_order);
    for (size_t i = 0; i < l.count && !rc; i++)
        if (!is_second(l.names, l.count, l.names[i])) rc = add_file(m, folder, l.names[i], e);
    while (l.count) free(l.names[--l.count]);
    free(l.names);
    return rc;
}
