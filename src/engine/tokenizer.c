#include "engine/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/tokenizer_internal.h"
#include "engine/tokenizer_text.h"

void ts_tokenizer_free(ts_tokenizer *t) {
    if (!t) return;
    for (size_t i = 0; i < t->added_count; i++) free(t->added[i].text);
    free(t->added);
    ts_bpe_free(t->bpe);
    free(t);
}

int ts_tokenizer_max_length(const ts_tokenizer *t) {
    return t->max_length;
}
int32_t ts_tokenizer_size(const ts_tokenizer *t) {
    return t->size;
}
int32_t ts_tokenizer_start(const ts_tokenizer *t) {
    return t->start;
}
int32_t ts_tokenizer_end(const ts_tokenizer *t) {
    return t->end;
}
int32_t ts_tokenizer_pad(const ts_tokenizer *t) {
    return t->pad;
}
int32_t ts_tokenizer_comma(const ts_tokenizer *t) {
    return t->comma;
}

/* The ids of one text as they come. count beyond room says that the text is longer than that: nothing more
 * needs to be read. */
typedef struct output {
    const ts_tokenizer *t;
    int32_t *ids;
    size_t room, count;
    ts_bpe_scratch scratch;
    ts_buffer normalised;
} output;

static bool full(const output *o) {
    return o->count > o->room;
}

static void put(output *o, int32_t id) {
    if (o->count < o->room) o->ids[o->count] = id;
    o->count++;
}

/* The longest added token that begins here, or NULL. */
static const ts_added_token *match(const ts_tokenizer *t, bool normalised, const char *text, size_t size) {
    const ts_added_token *found = NULL;
    if (!t->begins[normalised][(unsigned char)*text]) return NULL;
    for (size_t i = 0; i < t->added_count; i++) {
        const ts_added_token *a = &t->added[i];
        if (a->normalised == normalised && a->size <= size && (!found || a->size > found->size) &&
            memcmp(text, a->text, a->size) == 0)
            found = a;
    }
    return found;
}

/* Cuts added tokens of one kind out of text, and hands what lies between them to `rest`. */
static ts_code cut(output *o, bool normalised, const char *text, size_t size,
                   ts_code (*rest)(output *o, const char *text, size_t size)) {
    size_t from = 0, at = 0;
    ts_code rc = TS_OK;
    while (!rc && at < size && !full(o)) {
        const ts_added_token *a = match(o->t, normalised, text + at, size - at);
        if (!a) {
            at++;
            continue;
        }
        if (at > from) rc = rest(o, text + from, at - from);
        put(o, a->id);
        from = at += a->size;
    }
    if (!rc && from < size && !full(o)) rc = rest(o, text + from, size - from);
    return rc;
}

static ts_code encode_words(output *o, const char *text, size_t size) {
    ts_words words = {.text = text, .size = size};
    const char *word;
    size_t n;
    while (!full(o) && (word = ts_words_next(&words, &n))) {
        size_t count, used = o->count < o->room ? o->count : o->room;
        ts_code rc = ts_bpe_word(o->t->bpe, &o->scratch, word, n, o->ids + used, o->room - used, &count);
        if (rc) return rc;
        o->count += count;
    }
    return TS_OK;
}

static ts_code encode_raw(output *o, const char *text, size_t size) {
    o->normalised.size = 0;
    ts_code rc = ts_text_normalise(text, size, &o->normalised);
    return rc ? rc : cut(o, true, o->normalised.data, o->normalised.size, encode_words);
}

ts_code ts_tokenizer_ids(const ts_tokenizer *t, const char *text, size_t size, int32_t *ids, size_t room,
                         size_t *ret_count, ts_error *e) {
    if (size > TS_TOKENIZER_TEXT)
        return ts_fail(e, TS_ETOOLARGE, "a text of %zu bytes; at most %zu are read", size, TS_TOKENIZER_TEXT);
    if (!ts_text_valid(text, size)) return ts_fail(e, TS_EINVAL, "the text is not valid UTF-8");
    output o = {.t = t, .ids = ids, .room = room};
    ts_buffer_init(&o.normalised, 16 * TS_TOKENIZER_TEXT);
    ts_code rc = cut(&o, false, text, size, encode_raw);
    if (rc)
        ts_fail(e, rc, "tokenizing a text of %zu bytes", size);
    else
        *ret_count = o.count;
    ts_bpe_scratch_free(&o.scratch);
    ts_buffer_free(&o.normalised);
    return rc;
}

ts_code ts_tokenizer_encode(const ts_tokenizer *t, const char *text, size_t size, int max_length,
                            int32_t *ids, int *ret_count, bool *ret_truncated, ts_error *e) {
    if (max_length < 2)
        return ts_fail(e, TS_EINVAL, "%d ids have no room for the start and the end", max_length);
    const size_t room = (size_t)max_length - 2;
    size_t count = 0;
    int32_t *own = ts_array0(int32_t, room);
    if (!own) return ts_fail(e, TS_ENOMEM, "tokenizing a text of %zu bytes", size);
    ts_code rc = ts_tokenizer_ids(t, text, size, own, room, &count, e);
    if (rc) goto done;
    const size_t kept = count < room ? count : room;
    ids[0] = t->start;
    memcpy(ids + 1, own, kept * sizeof *ids);
    ids[kept + 1] = t->end;
    for (size_t i = kept + 2; i < (size_t)max_length; i++) ids[i] = t->pad;
    if (ret_count) *ret_count = (int)kept + 2;
    if (ret_truncated) *ret_truncated = count > room;
done:
    free(own);
    return rc;
}
