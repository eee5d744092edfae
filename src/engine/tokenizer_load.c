/* A tokenizer folder to a ts_tokenizer: the vocabulary, the merges, and the tokens that stand apart.
 *
 * Which of those are found in raw and which in normalised text follows transformers 5: tokens of
 * added_tokens_decoder (or, without it, of added_tokens.json and tokenizer.json) are registered by id, then
 * the named ones (bos, eos, unk, sep, pad, cls, mask) that are not among them. A later registration of the
 * same text replaces an earlier one. A name given as a plain string is not normalised; an object says so
 * itself. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/tokenizer_internal.h"
#include "engine/tokenizer_text.h"

#define FILE_MAXIMUM   ((size_t)64 << 20)
#define ADDED_MAXIMUM  4096
#define LENGTH_DEFAULT 77     /* CLIP's */
#define LENGTH_MAXIMUM 100000 /* "no limit" is written as 1e30 */

static const ts_json_limits limits = {.depth = 16, .values = 8000000};

enum { BOS, EOS, UNK, SEP, PAD, CLS, MASK, NAMES };
static const char *const names[NAMES] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                         "pad_token", "cls_token", "mask_token"};
static const char *const defaults[NAMES] = {
    [BOS] = "<|startoftext|>", [EOS] = "<|endoftext|>", [UNK] = "<|endoftext|>", [PAD] = "<|endoftext|>"};

/* A token as a file describes it; text points into the file's JSON or is a literal. */
typedef struct spec {
    const char *text;
    bool normalised;
    int64_t place; /* its id as the file has it: the order of registration */
} spec;

typedef struct loader {
    ts_tokenizer *t;
    const char *pad;                                 /* the caller's, or NULL */
    cJSON *tokenizer, *vocab, *config, *map, *added; /* the files; NULL where there is none */
    spec named[NAMES];                               /* text NULL: not named */
    spec *specs;                                     /* those with ids of their own */
    size_t spec_count, spec_capacity;
} loader;

/* The file's JSON, or NULL when there is no such file and it may be missing. */
static ts_code read_json(const char *dir, const char *name, bool optional, cJSON **ret, ts_error *e) {
    char *path = ts_path_join(dir, name);
    if (!path) return ts_fail(e, TS_ENOMEM, "reading %s", dir);
    ts_code rc = TS_OK;
    if (!optional || ts_file_exists(path)) rc = ts_json_file(path, FILE_MAXIMUM, limits, ret, e);
    if (!rc && *ret && !cJSON_IsObject(*ret)) rc = ts_fail(e, TS_EFORMAT, "%s is not an object", path);
    free(path);
    return rc;
}

static ts_code load_vocabulary(ts_bpe *b, const cJSON *vocab, ts_error *e) {
    const cJSON *v;
    int64_t place = 0;
    ts_code rc = cJSON_IsObject(vocab) || cJSON_IsArray(vocab)
                     ? TS_OK
                     : ts_fail(e, TS_EFORMAT, "there is no vocabulary");
    cJSON_ArrayForEach(v, vocab) {
        const char *text = cJSON_IsArray(vocab) ? cJSON_GetStringValue(v) : v->string;
        double id = cJSON_IsArray(vocab) ? (double)place++ : cJSON_IsNumber(v) ? v->valuedouble : -1;
        if (!text || !(id >= 0 && id <= TS_BPE_ID) || (double)(int64_t)id != id)
            rc = ts_fail(e, TS_EFORMAT, "vocabulary entry %.100s has no id that is a number",
                         text ? text : "?");
        else
            rc = ts_bpe_add_token(b, text, strlen(text), (int64_t)id, e);
        if (rc) return rc;
    }
    return rc ? rc : ts_bpe_seal(b, e);
}

/* "left right" */
static ts_code load_merge(ts_bpe *b, const char *line, size_t size, ts_error *e) {
    const char *gap = memchr(line, ' ', size);
    size_t left = gap ? (size_t)(gap - line) : 0, right = gap ? size - left - 1 : 0;
    if (!left || !right || memchr(gap + 1, ' ', right))
        return ts_fail(e, TS_EFORMAT, "not a merge of two words");
    return ts_bpe_add_merge(b, line, left, gap + 1, right, e);
}

static ts_code load_merges_json(ts_bpe *b, const cJSON *merges, ts_error *e) {
    if (!cJSON_IsArray(merges)) return ts_fail(e, TS_EFORMAT, "there are no merges");
    const cJSON *m;
    ts_code rc = TS_OK;
    cJSON_ArrayForEach(m, merges) {
        const cJSON *left = cJSON_IsArray(m) ? m->child : NULL, *right = left ? left->next : NULL;
        if (cJSON_IsString(m))
            rc = load_merge(b, m->valuestring, strlen(m->valuestring), e);
        else if (cJSON_IsString(left) && cJSON_IsString(right) && !right->next)
            rc = ts_bpe_add_merge(b, left->valuestring, strlen(left->valuestring), right->valuestring,
                                  strlen(right->valuestring), e);
        else
            rc = ts_fail(e, TS_EFORMAT, "a merge is not two strings");
        if (rc) break;
    }
    return rc;
}

static ts_code load_merges_text(ts_bpe *b, const char *dir, ts_error *e) {
    char *path = ts_path_join(dir, "merges.txt"), *text = NULL;
    size_t size = 0, number = 0;
    if (!path) return ts_fail(e, TS_ENOMEM, "reading %s", dir);
    ts_code rc = ts_read_file(path, FILE_MAXIMUM, &text, &size, e);
    for (size_t at = 0; !rc && at < size;) {
        const char *line = text + at, *end = memchr(line, '\n', size - at);
        size_t n = end ? (size_t)(end - line) : size - at;
        at += n + 1;
        number++;
        if (n && line[n - 1] == '\r') n--;
        if (!n || (n >= 8 && memcmp(line, "#version", 8) == 0)) continue;
        rc = load_merge(b, line, n, e);
        if (rc) rc = ts_error_context(e, rc, "%s:%zu", path, number);
    }
    free(text);
    free(path);
    return rc;
}

static ts_code load_bpe(loader *l, const char *dir, ts_error *e) {
    ts_bpe *b = l->t->bpe;
    ts_code rc;
    if (!l->tokenizer) {
        rc = load_vocabulary(b, l->vocab, e);
        return rc ? ts_error_context(e, rc, "%s/vocab.json", dir) : load_merges_text(b, dir, e);
    }
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(l->tokenizer, "model");
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(model, "type"));
    if (type && strcmp(type, "BPE") != 0)
        rc = ts_fail_param(e, TS_EUNSUPPORTED, "model.type", "model.type: %.64s is not offered", type);
    else {
        rc = load_vocabulary(b, cJSON_GetObjectItemCaseSensitive(model, "vocab"), e);
        if (!rc) rc = load_merges_json(b, cJSON_GetObjectItemCaseSensitive(model, "merges"), e);
    }
    return rc ? ts_error_context(e, rc, "%s/tokenizer.json", dir) : TS_OK;
}

/* A token that is a string or an object. special: what one is that does not say; a special one that does not
 * say that either is not normalised. */
static ts_code read_spec(const cJSON *v, const char *key, bool special, spec *ret, ts_error *e) {
    spec s = {0};
    if (cJSON_IsString(v))
        s.text = v->valuestring;
    else {
        static const char *const others[] = {"lstrip", "rstrip", "single_word"};
        ts_code rc = TS_OK;
        const char *text = NULL;
        if (!cJSON_IsObject(v)) return ts_fail_param(e, TS_EINVAL, key, "%s is not a token", key);
        rc = ts_json_string(v, "content", NULL, &text, e);
        if (!rc) rc = ts_json_bool(v, "special", special, &special, e);
        if (!rc) rc = ts_json_bool(v, "normalized", !special, &s.normalised, e);
        for (size_t i = 0; !rc && i < sizeof others / sizeof others[0]; i++) {
            bool on = false;
            rc = ts_json_bool(v, others[i], false, &on, e);
            if (!rc && on)
                rc = ts_fail_param(e, TS_EUNSUPPORTED, others[i], "%s: true is not offered", others[i]);
        }
        if (!rc && !text) rc = ts_fail_param(e, TS_EINVAL, key, "a token without content");
        if (rc) return ts_error_context(e, rc, "%s", key);
        s.text = text;
    }
    *ret = s;
    return TS_OK;
}

static ts_code read_names(loader *l, const cJSON *json, bool special, ts_error *e) {
    ts_code rc = TS_OK;
    for (int i = 0; !rc && i < NAMES; i++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(json, names[i]);
        if (v && !cJSON_IsNull(v)) rc = read_spec(v, names[i], special, &l->named[i], e);
    }
    return rc;
}

static ts_code add_spec(loader *l, spec s, int64_t place, ts_error *e) {
    if (l->spec_count == ADDED_MAXIMUM)
        return ts_fail(e, TS_EFORMAT, "more than %d added tokens", ADDED_MAXIMUM);
    if (!ts_grow(&l->specs, &l->spec_capacity, l->spec_count + 1, sizeof *l->specs))
        return ts_fail(e, TS_ENOMEM, "added tokens");
    s.place = place;
    l->specs[l->spec_count++] = s;
    return TS_OK;
}

static bool is_named(const loader *l, const char *text) {
    for (int i = 0; i < NAMES; i++)
        if (l->named[i].text && strcmp(l->named[i].text, text) == 0) return true;
    return false;
}

/* The tokens with ids of their own, from whichever file has them. */
static ts_code read_specs(loader *l, const cJSON *decoder, ts_error *e) {
    const cJSON *v;
    ts_code rc = TS_OK;
    spec s;
    cJSON_ArrayForEach(v, decoder) {
        rc = read_spec(v, "added_tokens_decoder", false, &s, e);
        if (!rc) rc = add_spec(l, s, strtoll(v->string, NULL, 10), e);
        if (rc) return ts_error_context(e, rc, "tokenizer_config.json");
    }
    if (decoder) return TS_OK;
    cJSON_ArrayForEach(v, l->added) {
        if (!cJSON_IsNumber(v))
            return ts_fail(e, TS_EFORMAT, "added_tokens.json: %.100s has no id", v->string);
        s = (spec){.text = v->string, .normalised = !is_named(l, v->string)};
        rc = add_spec(l, s, v->valueint, e);
        if (rc) return rc;
    }
    cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(l->tokenizer, "added_tokens")) {
        int64_t id;
        rc = read_spec(v, "added_tokens", false, &s, e);
        if (!rc) rc = ts_json_int(v, "id", 0, TS_BPE_ID, 0, &id, e);
        if (!rc) rc = add_spec(l, s, id, e);
        if (rc) return ts_error_context(e, rc, "tokenizer.json: added_tokens");
    }
    return TS_OK;
}

static int by_place(const void *a, const void *b) {
    const spec *x = a, *y = b;
    return (x->place > y->place) - (x->place < y->place);
}

static const spec *find_spec(const loader *l, const char *text) {
    const spec *found = NULL;
    for (size_t i = 0; i < l->spec_count; i++)
        if (strcmp(l->specs[i].text, text) == 0) found = &l->specs[i];
    return found;
}

static const char *text_of(const cJSON *token) {
    if (cJSON_IsString(token)) return token->valuestring;
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(token, "content"));
}

/* Further special tokens, which would cut texts elsewhere, unless they are among the tokens that have been
 * read. */
static ts_code check_more(const loader *l, const cJSON *json, ts_error *e) {
    static const char *const keys[] = {"additional_special_tokens", "extra_special_tokens"};
    const cJSON *v;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        cJSON_ArrayForEach(v, cJSON_GetObjectItemCaseSensitive(json, keys[i])) {
            const char *text = text_of(v);
            if (text && (find_spec(l, text) || is_named(l, text))) continue;
            return ts_fail_param(e, TS_EUNSUPPORTED, keys[i], "%s: \"%.64s\" is not offered", keys[i],
                                 text ? text : "?");
        }
    return TS_OK;
}

/* text as it came; its id is the vocabulary's, or the next new one. */
static ts_code register_token(ts_tokenizer *t, size_t *fresh, const spec *s, ts_error *e) {
    size_t n = strlen(s->text), i = 0;
    if (!n) return TS_OK;
    while (i < t->added_count && strcmp(t->added[i].text, s->text) != 0) i++;
    if (i < t->added_count) {
        t->added[i].normalised = s->normalised;
        return TS_OK;
    }
    ts_added_token a = {.text = ts_strdup(s->text), .size = n, .normalised = s->normalised};
    if (!a.text) return ts_fail(e, TS_ENOMEM, "added tokens");
    a.id = ts_bpe_find(t->bpe, s->text, n);
    if (a.id < 0) a.id = (int32_t)(ts_bpe_count(t->bpe) + (*fresh)++);
    t->added[t->added_count++] = a;
    if (a.id >= t->size) t->size = a.id + 1;
    return TS_OK;
}

/* Normalised ones are looked for by their normalised form. */
static ts_code finish_added(ts_tokenizer *t, ts_error *e) {
    for (size_t i = 0; i < t->added_count; i++) {
        ts_added_token *a = &t->added[i];
        if (a->normalised) {
            ts_buffer b;
            ts_buffer_init(&b, FILE_MAXIMUM);
            ts_code rc =
                ts_text_valid(a->text, a->size) ? ts_text_normalise(a->text, a->size, &b) : TS_EFORMAT;
            char *text = rc ? NULL : ts_buffer_take(&b, &a->size);
            ts_buffer_free(&b);
            if (!text) return ts_fail(e, rc ? rc : TS_ENOMEM, "added token %zu", i);
            free(a->text);
            a->text = text;
        }
        t->begins[a->normalised][(unsigned char)*a->text] = true;
    }
    return TS_OK;
}

static int32_t id_of(const ts_tokenizer *t, const char *text) {
    for (size_t i = 0; i < t->added_count; i++)
        if (strcmp(t->added[i].text, text) == 0) return t->added[i].id;
    return -1;
}

static ts_code load_added(loader *l, ts_error *e) {
    ts_tokenizer *t = l->t;
    const cJSON *decoder = cJSON_GetObjectItemCaseSensitive(l->config, "added_tokens_decoder");
    if (!cJSON_IsObject(decoder)) decoder = NULL;
    ts_code rc = read_names(l, l->config, false, e);
    if (rc) return ts_error_context(e, rc, "tokenizer_config.json");
    if (!decoder && (rc = read_names(l, l->map, true, e)))
        return ts_error_context(e, rc, "special_tokens_map.json");
    if (l->pad) l->named[PAD] = (spec){.text = l->pad};
    if (!rc) rc = read_specs(l, decoder, e);
    if (!rc) rc = check_more(l, l->config, e);
    if (!rc) rc = check_more(l, l->map, e);
    if (rc) return rc;
    if (l->spec_count) qsort(l->specs, l->spec_count, sizeof *l->specs, by_place);
    for (int i = 0; i < NAMES; i++)
        if (!l->named[i].text && defaults[i]) l->named[i] = (spec){.text = defaults[i]};

    t->size = ts_bpe_largest(t->bpe) + 1;
    t->added = ts_array0(ts_added_token, l->spec_count + NAMES);
    if (!t->added) return ts_fail(e, TS_ENOMEM, "added tokens");
    size_t fresh = 0;
    for (size_t i = 0; !rc && i < l->spec_count; i++) rc = register_token(t, &fresh, &l->specs[i], e);
    for (int i = 0; !rc && i < NAMES; i++)
        if (l->named[i].text && !find_spec(l, l->named[i].text))
            rc = register_token(t, &fresh, &l->named[i], e);
    if (rc) return rc;
    t->start = id_of(t, l->named[BOS].text);
    t->end = id_of(t, l->named[EOS].text);
    t->pad = id_of(t, l->named[PAD].text);
    t->comma = ts_bpe_find(t->bpe, ",</w>", 5);
    if (t->start < 0 || t->end < 0 || t->pad < 0)
        return ts_fail(e, TS_EFORMAT, "the start, end or padding token is empty");
    const char *unknown = l->named[UNK].text;
    rc = ts_bpe_finish(t->bpe, ts_bpe_find(t->bpe, unknown, strlen(unknown)), e);
    return rc ? rc : finish_added(t, e);
}

static ts_code load_config(loader *l, ts_error *e) {
    static const char *const sides[] = {"padding_side", "truncation_side"};
    const char *text;
    double length;
    ts_code rc = ts_json_string(l->config, "tokenizer_class", "CLIPTokenizer", &text, e);
    if (!rc && strcmp(text, "CLIPTokenizer") != 0 && strcmp(text, "CLIPTokenizerFast") != 0)
        rc = ts_fail_param(e, TS_EUNSUPPORTED, "tokenizer_class", "tokenizer_class: %.64s is not offered",
                           text);
    for (size_t i = 0; !rc && i < 2; i++) {
        rc = ts_json_string(l->config, sides[i], "right", &text, e);
        if (!rc && strcmp(text, "right") != 0)
            rc = ts_fail_param(e, TS_EUNSUPPORTED, sides[i], "%s: %.64s is not offered", sides[i], text);
    }
    bool split = false;
    if (!rc) rc = ts_json_bool(l->config, "split_special_tokens", false, &split, e);
    if (!rc && split)
        rc = ts_fail_param(e, TS_EUNSUPPORTED, "split_special_tokens",
                           "split_special_tokens: true is not offered");
    if (!rc) rc = ts_json_number(l->config, "model_max_length", 2, 1e40, LENGTH_DEFAULT, &length, e);
    if (rc) return rc;
    l->t->max_length = length > LENGTH_MAXIMUM ? LENGTH_DEFAULT : (int)length;
    return TS_OK;
}

static ts_code load(loader *l, const char *dir, ts_error *e) {
    ts_code rc = read_json(dir, "tokenizer.json", true, &l->tokenizer, e);
    if (!rc && !l->tokenizer) rc = read_json(dir, "vocab.json", false, &l->vocab, e);
    if (!rc) rc = read_json(dir, "tokenizer_config.json", true, &l->config, e);
    if (!rc) rc = read_json(dir, "special_tokens_map.json", true, &l->map, e);
    if (!rc) rc = read_json(dir, "added_tokens.json", true, &l->added, e);
    if (!rc) rc = load_bpe(l, dir, e);
    if (rc) return rc;
    rc = load_config(l, e);
    if (rc) return ts_error_context(e, rc, "%s/tokenizer_config.json", dir);
    rc = load_added(l, e);
    return rc ? ts_error_context(e, rc, "%s", dir) : TS_OK;
}

ts_code ts_tokenizer_open(const char *dir, ts_tokenizer **ret, ts_error *e) {
    return ts_tokenizer_open_padded(dir, NULL, ret, e);
}

ts_code ts_tokenizer_open_padded(const char *dir, const char *pad, ts_tokenizer **ret, ts_error *e) {
    loader l = {.t = ts_new0(ts_tokenizer), .pad = pad};
    ts_code rc = l.t ? ts_bpe_new(&l.t->bpe, e) : ts_fail(e, TS_ENOMEM, "opening %s", dir);
    if (!rc) rc = load(&l, dir, e);
    cJSON_Delete(l.tokenizer);
    cJSON_Delete(l.vocab);
    cJSON_Delete(l.config);
    cJSON_Delete(l.map);
    cJSON_Delete(l.added);
    free(l.specs);
    if (rc) {
        ts_tokenizer_free(l.t);
        return rc;
    }
    *ret = l.t;
    return TS_OK;
}
