#include "engine/tokenizer_text.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "base/alloc.h"

/* The most code points that one can become canonically, with room to spare (Unicode promises 4). */
#define EXPANSION 16

static utf8proc_ssize_t next_code(const char *text, size_t size, size_t at, int32_t *ret) {
    return utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(size - at), ret);
}

bool ts_text_valid(const char *text, size_t size) {
    for (size_t at = 0; at < size;) {
        int32_t code;
        utf8proc_ssize_t n = next_code(text, size, at, &code);
        if (n <= 0) return false;
        at += (size_t)n;
    }
    return true;
}

/* \s of the tokenizer's regular expressions: White_Space of Unicode. */
static bool is_space(int32_t c) {
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

typedef enum kind { SPACE, LETTER, NUMBER, OTHER } kind;

/* Letters and numbers of Unicode 15.1 and 16, which the tokenizer's regular expressions know and utf8proc
 * (15.0 in Debian 12) may not. */
static const struct {
    int32_t first, last;
    kind k;
} younger[] = {{0x1c89, 0x1c8a, LETTER},   {0xa7cb, 0xa7cd, LETTER},   {0xa7da, 0xa7dc, LETTER},
               {0x105c0, 0x105f3, LETTER}, {0x10d40, 0x10d49, NUMBER}, {0x10d4a, 0x10d65, LETTER},
               {0x10d6f, 0x10d85, LETTER}, {0x10ec2, 0x10ec4, LETTER}, {0x11380, 0x11389, LETTER},
               {0x1138b, 0x1138b, LETTER}, {0x1138e, 0x1138e, LETTER}, {0x11390, 0x113b5, LETTER},
               {0x113b7, 0x113b7, LETTER}, {0x113d1, 0x113d1, LETTER}, {0x113d3, 0x113d3, LETTER},
               {0x116d0, 0x116e3, NUMBER}, {0x11bc0, 0x11be0, LETTER}, {0x11bf0, 0x11bf9, NUMBER},
               {0x13460, 0x143fa, LETTER}, {0x16100, 0x1611d, LETTER}, {0x16130, 0x16139, NUMBER},
               {0x16d40, 0x16d6c, LETTER}, {0x16d70, 0x16d79, NUMBER}, {0x18cff, 0x18cff, LETTER},
               {0x1ccf0, 0x1ccf9, NUMBER}, {0x1e5d0, 0x1e5ed, LETTER}, {0x1e5f0, 0x1e5f0, LETTER},
               {0x1e5f1, 0x1e5fa, NUMBER}, {0x2ebf0, 0x2ee5d, LETTER}};

static kind kind_of(int32_t c) {
    if (is_space(c)) return SPACE;
    utf8proc_category_t k = utf8proc_category(c);
    if (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO) return LETTER;
    if (k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO) return NUMBER;
    if (k == UTF8PROC_CATEGORY_CN)
        for (size_t i = 0; i < sizeof younger / sizeof younger[0]; i++)
            if (c >= younger[i].first && c <= younger[i].last) return younger[i].k;
    return OTHER;
}

/* Simple lower case. The same goes for the capitals of Unicode 16 and 17. */
static int32_t lower(int32_t c) {
    static const struct {
        int32_t first, last, lower;
        int32_t stride; /* 2: every other one is a capital */
    } pairs[] = {
        {0x1c89, 0x1c89, 0x1c8a, 1},    {0xa7cb, 0xa7cb, 0x264, 1},     {0xa7cc, 0xa7ce, 0xa7cd, 2},
        {0xa7d2, 0xa7d4, 0xa7d3, 2},    {0xa7da, 0xa7da, 0xa7db, 1},    {0xa7dc, 0xa7dc, 0x19b, 1},
        {0x10d50, 0x10d65, 0x10d70, 1}, {0x16ea0, 0x16eb8, 0x16ebb, 1},
    };
    if (utf8proc_category(c) != UTF8PROC_CATEGORY_CN) return utf8proc_tolower(c);
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        if (c >= pairs[i].first && c <= pairs[i].last && (c - pairs[i].first) % pairs[i].stride == 0)
            return c - pairs[i].first + pairs[i].lower;
    return c;
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Combining marks of Unicode 10 and later. The tokenizer's NFC is of Unicode 9: it moves nothing past them
 * and composes nothing across them, as if they were letters. */
static bool is_young_mark(int32_t c) {
    static const struct {
        int32_t first, last;
    } marks[] = {{0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
                 {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},
                 {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},   {0x10d24, 0x10d27},
                 {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85},
                 {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
                 {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34},
                 {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45},
                 {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f},
                 {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}};
    if (c < marks[0].first) return false;
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++)
        if (c >= marks[i].first && c <= marks[i].last) return true;
    return false;
}

/* Canonical combining class; 0 for what marks are ordered after. */
static unsigned class_of(int32_t c) {
    unsigned k = c < 0x300 ? 0 : (unsigned)utf8proc_get_property(c)->combining_class;
    return k && is_young_mark(c) ? 0 : k;
}

/* Canonical ordering (Unicode, D109): combining marks between starters by class, stably. utf8proc's own does
 * this in quadratic time, which a text of nothing but marks would turn into minutes. */
static bool order_marks(int32_t *code, size_t n) {
    uint64_t *keys = NULL;
    size_t capacity = 0;
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n && class_of(code[end])) end++;
        if (end - i > 1) {
            if (!ts_grow(&keys, &capacity, end - i, sizeof *keys)) {
                free(keys);
                return false;
            }
            /* class, place, code point: 8 + 32 + 21 bits */
            for (size_t k = i; k < end; k++)
                keys[k - i] = (uint64_t)class_of(code[k]) << 53 | (uint64_t)(k - i) << 21 | (uint64_t)code[k];
            qsort(keys, end - i, sizeof *keys, by_value);
            for (size_t k = i; k < end; k++) code[k] = (int32_t)(keys[k - i] & 0x1fffff);
        }
        i = end > i ? end : i + 1;
    }
    free(keys);
    return true;
}

/* Canonical composition in place; the new count. */
static size_t compose_marks(int32_t *code, size_t count) {
    size_t kept = 0;
    for (size_t i = 0; i < count;) {
        size_t end = i + 1;
        while (end < count && !is_young_mark(code[end])) end++;
        utf8proc_ssize_t n = utf8proc_normalize_utf32(code + i, (utf8proc_ssize_t)(end - i),
                                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        size_t m = n > 0 ? (size_t)n : end - i;
        memmove(code + kept, code + i, m * sizeof *code);
        kept += m;
        i = end;
    }
    return kept;
}

/* The code points in NFC; free(*ret). */
static ts_code compose(const char *text, size_t size, int32_t **ret, size_t *ret_count) {
    int32_t *code = NULL;
    size_t capacity = 0, count = 0;
    for (size_t at = 0; at < size;) {
        int32_t c;
        utf8proc_ssize_t n = next_code(text, size, at, &c);
        if (n <= 0) goto invalid;
        at += (size_t)n;
        if (!ts_grow(&code, &capacity, count + EXPANSION, sizeof *code)) goto fail;
        utf8proc_ssize_t made = utf8proc_decompose_char(c, code + count, EXPANSION, UTF8PROC_COMPOSE, NULL);
        if (made < 0 || made > EXPANSION) goto invalid;
        count += (size_t)made;
    }
    if (!order_marks(code, count)) goto fail;
    *ret = code;
    *ret_count = compose_marks(code, count);
    return TS_OK;
invalid:
    free(code);
    return TS_EINVAL;
fail:
    free(code);
    return TS_ENOMEM;
}

static ts_code append_lower(ts_buffer *out, int32_t c) {
    /* The one code point whose lower case is two: capital I with a dot. */
    if (c == 0x130) return ts_buffer_append(out, "i\xcc\x87", 3);
    utf8proc_uint8_t bytes[4];
    utf8proc_ssize_t n = utf8proc_encode_char(lower(c), bytes);
    return ts_buffer_append(out, bytes, (size_t)n);
}

ts_code ts_text_normalise(const char *text, size_t size, ts_buffer *out) {
    int32_t *code = NULL;
    size_t count = 0;
    ts_code rc = compose(text, size, &code, &count);
    bool space = false;
    for (size_t i = 0; !rc && i < count; i++) {
        bool another = is_space(code[i]);
        if (!another)
            rc = append_lower(out, code[i]);
        else if (!space)
            rc = ts_buffer_append(out, " ", 1);
        space = another;
    }
    free(code);
    return rc;
}

bool ts_text_word_at(const char *text, size_t size, size_t at) {
    int32_t c;
    if (at >= size || next_code(text, size, at, &c) <= 0) return false;
    const kind k = kind_of(c);
    return c == '_' || k == LETTER || k == NUMBER;
}

bool ts_text_word_before(const char *text, size_t at) {
    if (!at) return false;
    size_t from = at - 1;
    while (from && (text[from] & 0xc0) == 0x80) from--;
    return ts_text_word_at(text, at, from);
}

static size_t starts_with(const char *text, size_t size, size_t at, const char *word) {
    size_t n = strlen(word);
    return n <= size - at && memcmp(text + at, word, n) == 0 ? n : 0;
}

/* Length of what is a word whatever follows: a contraction. */
static size_t contraction(const char *text, size_t size, size_t at) {
    static const char *const words[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    size_t n = 0;
    for (size_t i = 0; !n && text[at] == '\'' && i < sizeof words / sizeof words[0]; i++)
        n = starts_with(text, size, at, words[i]);
    return n;
}

/* Length of a special token's text that is ordinary text here (it was not cut out). One pattern takes it
 * whole and a second one, GPT-2's, apart at the bars; so what follows it does not run on from its last bar.
 */
static size_t spelled_token(const char *text, size_t size, size_t at) {
    size_t n = starts_with(text, size, at, "<|startoftext|>");
    return n ? n : starts_with(text, size, at, "<|endoftext|>");
}

/* A word of this kind begins at `at`; where it ends. */
static size_t run_end(const ts_words *w, size_t at, kind k) {
    size_t limit = at < w->stop ? w->stop : w->size, end = at;
    while (end < limit) {
        int32_t c;
        utf8proc_ssize_t n = next_code(w->text, limit, end, &c);
        if (n <= 0 || (end > at && kind_of(c) != k)) break;
        end += (size_t)n;
        if (k == NUMBER) break; /* digits stand alone */
    }
    return end;
}

const char *ts_words_next(ts_words *w, size_t *ret_length) {
    while (w->at < w->size) {
        size_t start = w->at, end;
        int32_t c;
        utf8proc_ssize_t n = next_code(w->text, w->size, start, &c);
        if (n <= 0) break;
        kind k = kind_of(c);
        if (k == SPACE) {
            w->at += (size_t)n;
            continue;
        }
        if (c == '<' && start >= w->stop) w->stop = start + spelled_token(w->text, w->size, start);
        end = start + contraction(w->text, w->size, start);
        if (end == start) end = run_end(w, start, k);
        w->at = end;
        *ret_length = end - start;
        return w->text + start;
    }
    return NULL;
}
