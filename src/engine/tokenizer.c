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
    free(t->rest);
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

ts_code ts_tokenizer_add_name(ts_tokenizer *t, const char *name, int count, ts_error *e) {
    ts_buffer b;
    ts_buffer_init(&b, 16 * TS_TOKENIZER_NAME);
    const size_t size = strlen(name);
    const bool good =
        size && size <= TS_TOKENIZER_NAME && ts_text_valid(name, size) && count >= 1 && count < 256;
    ts_code rc = good ? ts_text_normalise(name, size, &b) : TS_EFORMAT;
    size_t from = 0, to = b.size;
    while (from < to && b.data[from] == ' ') from++;
    while (from < to && b.data[to - 1] == ' ') to--;
    if (!rc && from == to) rc = TS_EFORMAT;
    if (rc) {
        ts_fail(e, rc, "%.*s is no name for an embedding", TS_TOKENIZER_NAME, good ? name : "that");
        goto done;
    }
    ts_added_token a = {
        .size = to - from, .id = t->size + (int32_t)t->rows, .normalised = true, .count = count};
    for (size_t i = 0; i < t->added_count && !rc; i++)
        if (t->added[i].size == a.size && !memcmp(t->added[i].text, b.data + from, a.size))
            rc = ts_fail(e, TS_ECONFLICT, "there is another %.*s", TS_TOKENIZER_NAME, name);
    if (rc) goto done;
    ts_added_token *added = realloc(t->added, (t->added_count + 1) * sizeof *added);
    if (added) t->added = added;
    a.text = ts_strndup(b.data + from, a.size);
    if (!added || !a.text || !ts_grow(&t->rest, &t->row_capacity, t->rows + (size_t)count, sizeof *t->rest)) {
        free(a.text);
        rc = ts_fail(e, TS_ENOMEM, "adding a name");
        goto done;
    }
    for (int i = 0; i < count; i++) t->rest[t->rows++] = (uint8_t)(count - i);
    t->begins[true][(unsigned char)*a.text] = true;
    t->added[t->added_count++] = a;
done:
    ts_buffer_free(&b);
    return rc;
}

int ts_tokenizer_row(const ts_tokenizer *t, int32_t id) {
    return id >= t->size && (size_t)(id - t->size) < t->rows ? (int)(id - t->size) : -1;
}

int ts_tokenizer_rest(const ts_tokenizer *t, int32_t id) {
    const int row = ts_tokenizer_row(t, id);
    return row < 0 ? 0 : t->rest[row];
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

/* No letter or number of the text goes on where the name begins or ends with one. */
static bool is_apart(const ts_added_token *a, const char *text, size_t size, size_t at) {
    return !(ts_text_word_at(a->text, a->size, 0) && ts_text_word_before(text, at)) &&
           !(ts_text_word_before(a->text, a->size) && ts_text_word_at(text, size, at + a->size));
}

/* The longest added token that begins here, or NULL. */
static const ts_added_token *match(const ts_tokenizer *t, bool normalised, const char *text, size_t size,
                                   size_t at) {
    const ts_added_token *found = NULL;
    if (!t->begins[normalised][(unsigned char)text[at]]) return NULL;
    for (size_t i = 0; i < t->added_count; i++) {
        const ts_added_token *a = &t->added[i];
        if (a->normalised == normalised && a->size <= size - at && (!found || a->size > found->size) &&
            memcmp(text + at, a->text, a->size) == 0 && (!a->count || is_apart(a, text, size, at)))
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
        const ts_added_token *a = match(o->t, normalised, text, size, at);
        if (!a) {
            at++;
            continue;
        }
        if (at > from) rc = rest(o, text + from, at - from);
        put(o, a->id);
        for (int i = 1; i < a->count; i++) put(o, a->id + i);
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
