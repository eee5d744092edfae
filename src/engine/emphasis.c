#include "engine/emphasis.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/tokenizer_text.h"

#define NUMBER_BYTES 32 /* of a weight as it is written; longer ones are text */

typedef struct parser {
    const char *text;
    size_t size, at;
    size_t written;                    /* bytes of ret->text */
    size_t open[2][TS_EMPHASIS_DEPTH]; /* by kind of bracket: the run that the group begins with */
    int depth[2];
    ts_emphasis *ret;
    ts_error *e;
} parser;

enum { ROUND, SQUARE };
static const double factors[] = {[ROUND] = 1.1, [SQUARE] = 1 / 1.1};

void ts_emphasis_free(ts_emphasis *m) {
    free(m->text);
    free(m->runs);
    *m = (ts_emphasis){0};
}

static ts_code add_run(parser *p, const char *text, size_t size, bool ends_chunk) {
    ts_emphasis *m = p->ret;
    if (!size && !ends_chunk) return TS_OK;
    if (!ts_grow(&m->runs, &m->capacity, m->count + 1, sizeof *m->runs))
        return ts_fail(p->e, TS_ENOMEM, "reading emphasis");
    m->runs[m->count++] =
        (ts_emphasis_run){.begin = p->written, .size = size, .weight = 1, .ends_chunk = ends_chunk};
    memcpy(m->text + p->written, text, size);
    p->written += size;
    return TS_OK;
}

static void multiply(parser *p, size_t from, double factor) {
    for (size_t i = from; i < p->ret->count; i++) p->ret->runs[i].weight *= factor;
}

static ts_code open_group(parser *p, int kind) {
    if (p->depth[kind] == TS_EMPHASIS_DEPTH)
        return ts_fail(p->e, TS_EINVAL, "more than %d brackets in each other", TS_EMPHASIS_DEPTH);
    p->open[kind][p->depth[kind]++] = p->ret->count;
    return TS_OK;
}

static void close_group(parser *p, int kind, double factor) {
    multiply(p, p->open[kind][--p->depth[kind]], factor);
}

static size_t spaces(const char *text, size_t size) {
    size_t n = 0;
    while (n < size && strchr(" \t\n\v\f\r", text[n]) && text[n]) n++;
    return n;
}

/* ":1.3)" at the beginning of text: its length, 0 when it is none. */
static size_t read_weight(const char *text, size_t size, double *ret) {
    char number[NUMBER_BYTES + 1];
    size_t at = 1, n = 0, digits = 0, dots = 0;
    at += spaces(text + at, size - at);
    for (; at + n < size && n < NUMBER_BYTES; n++) {
        const char c = text[at + n];
        if (c == '.')
            dots++;
        else if (c >= '0' && c <= '9')
            digits++;
        else if (n || (c != '+' && c != '-'))
            break;
        number[n] = c;
    }
    number[n] = 0;
    if (!digits || dots > 1) return 0;
    at += n;
    at += spaces(text + at, size - at);
    if (at >= size || text[at] != ')') return 0;
    *ret = strtod(number, NULL);
    return at + 1;
}

/* Plain text up to where something else may begin, cut at each BREAK. */
static ts_code read_plain(parser *p) {
    static const char word[] = "BREAK";
    const size_t length = sizeof word - 1;
    const char *text = p->text + p->at;
    size_t size = p->text[p->at] == ':' ? 1 : 0, from = 0;
    if (!size)
        while (p->at + size < p->size && !memchr("\\()[]:", text[size], 6)) size++;
    if (!size) size = 1; /* a bracket that was not opened */
    ts_code rc = TS_OK;
    for (size_t i = 0; i + length <= size && !rc; i++) {
        if (memcmp(text + i, word, length) != 0) continue;
        if (ts_text_word_before(text, i) || ts_text_word_at(text, size, i + length)) continue;
        rc = add_run(p, text + from, i - from, false);
        if (!rc) rc = add_run(p, "", 0, true);
        from = i + length;
        i = from - 1;
    }
    p->at += size;
    return rc ? rc : add_run(p, text + from, size - from, false);
}

static ts_code read_escape(parser *p) {
    const bool pair = p->at + 1 < p->size && memchr("\\()[]", p->text[p->at + 1], 5);
    /* A backslash before anything else is not there. */
    ts_code rc = pair ? add_run(p, p->text + p->at + 1, 1, false) : TS_OK;
    p->at += pair ? 2 : 1;
    return rc;
}

static ts_code read_next(parser *p) {
    const char c = p->text[p->at];
    double weight;
    size_t n;
    if (c == '\\') return read_escape(p);
    if (c == '(' || c == '[') {
        p->at++;
        return open_group(p, c == '(' ? ROUND : SQUARE);
    }
    if (c == ':' && p->depth[ROUND] && (n = read_weight(p->text + p->at, p->size - p->at, &weight))) {
        p->at += n;
        close_group(p, ROUND, weight);
    } else if ((c == ')' && p->depth[ROUND]) || (c == ']' && p->depth[SQUARE])) {
        const int kind = c == ')' ? ROUND : SQUARE;
        p->at++;
        close_group(p, kind, factors[kind]);
    } else {
        return read_plain(p);
    }
    return TS_OK;
}

/* Runs of equal weight that follow each other become one: their text is tokenized together. */
static void merge(ts_emphasis *m) {
    size_t kept = 0;
    for (size_t i = 0; i < m->count; i++) {
        const ts_emphasis_run *r = &m->runs[i];
        ts_emphasis_run *last = kept ? &m->runs[kept - 1] : NULL;
        if (last && !last->ends_chunk && !r->ends_chunk && last->weight == r->weight)
            last->size += r->size;
        else
            m->runs[kept++] = *r;
    }
    m->count = kept;
}

ts_code ts_emphasis_parse(const char *text, size_t size, ts_emphasis *ret, ts_error *e) {
    if (!ts_text_valid(text, size)) return ts_fail(e, TS_EINVAL, "the text is not valid UTF-8");
    ts_emphasis m = {.text = ts_array0(char, size + 1)};
    if (!m.text) return ts_fail(e, TS_ENOMEM, "reading emphasis");
    parser p = {.text = text, .size = size, .ret = &m, .e = e};
    ts_code rc = TS_OK;
    while (!rc && p.at < p.size) rc = read_next(&p);
    /* What is still open goes to the end, the outermost first. */
    for (int kind = ROUND; kind <= SQUARE && !rc; kind++)
        for (int i = 0; i < p.depth[kind]; i++) multiply(&p, p.open[kind][i], factors[kind]);
    for (size_t i = 0; i < m.count && !rc; i++)
        if (!(fabs(m.runs[i].weight) <= TS_EMPHASIS_WEIGHT) && !m.runs[i].ends_chunk)
            rc = ts_fail(e, TS_EINVAL, "a weight of %g; they go from -%d to %d", m.runs[i].weight,
                         TS_EMPHASIS_WEIGHT, TS_EMPHASIS_WEIGHT);
    if (rc) {
        ts_emphasis_free(&m);
        return rc;
    }
    merge(&m);
    *ret = m;
    return TS_OK;
}
