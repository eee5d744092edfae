/* libmicrohttpd has a reader of forms too. It takes what stands behind the boundary in the content-type for a
 * part of it, and wants names in quotation marks, which .NET leaves out. */
#include "server/form_reader.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "base/alloc.h"

#define BOUNDARY_BYTES 200  /* RFC 2046 allows 70 */
#define HEADER_BYTES   4096 /* of a part's headers, at most */

typedef enum state {
    PREAMBLE,  /* before the first delimiter */
    DELIMITER, /* behind one: the last, or the end of its line */
    HEADERS,   /* from the end of the delimiter's line on */
    BODY,
    EPILOGUE /* behind the last delimiter */
} state;

struct ts_form_reader {
    state state;
    char delimiter[4 + BOUNDARY_BYTES + 1]; /* CR LF, "--" and the boundary */
    size_t delimiter_size;
    ts_buffer pending; /* what has come and cannot be told apart yet */
    bool begun;        /* BODY: pending begins with the end of the empty line before it */
    ts_form *form;
};

/* ---- "; name=value" ---- */

typedef struct parameter {
    const char *name;
    size_t name_size,
        value_size; /* of the value as it was sent, which may be longer than this has room for */
    char value[BOUNDARY_BYTES + 1];
} parameter;

/* A header may go on in lines that begin with a blank. */
#define BLANKS " \t\r\n"

static void skip_blanks(const char **at, const char *end) {
    while (*at < end && **at && strchr(BLANKS, **at)) ++*at;
}

static void put(parameter *p, char c) {
    if (p->value_size < BOUNDARY_BYTES) p->value[p->value_size] = c;
    p->value_size++;
}

/* A token, or what stands in quotation marks; \" and \\ there are the characters themselves. */
static bool read_value(const char **at, const char *end, parameter *p) {
    if (*at == end || **at != '"') {
        while (*at < end && !strchr(";" BLANKS, **at)) put(p, *(*at)++);
        return true;
    }
    for (++*at; *at < end && **at != '"'; ++*at) {
        if (**at == '\\' && *at + 1 < end && ((*at)[1] == '"' || (*at)[1] == '\\')) ++*at;
        put(p, **at);
    }
    return *at < end && *(*at)++ == '"';
}

/* The next one; false at the end and where something else stands there. */
static bool next_parameter(const char **at, const char *end, parameter *ret) {
    *ret = (parameter){0};
    skip_blanks(at, end);
    if (*at == end || *(*at)++ != ';') return false;
    skip_blanks(at, end);
    ret->name = *at;
    while (*at < end && !strchr("=;" BLANKS, **at)) ++*at;
    ret->name_size = (size_t)(*at - ret->name);
    skip_blanks(at, end);
    if (*at == end || *(*at)++ != '=') return false;
    skip_blanks(at, end);
    return read_value(at, end, ret);
}

static bool find_parameter(const char *at, const char *end, const char *name, parameter *ret) {
    while (next_parameter(&at, end, ret))
        if (ret->name_size == strlen(name) && !strncasecmp(ret->name, name, ret->name_size)) return true;
    return false;
}

/* What is behind `word`, case ignored, if the text begins with it and it ends there; NULL: it does not. */
static const char *behind(const char *text, const char *end, const char *word) {
    const size_t n = strlen(word);
    if ((size_t)(end - text) < n || strncasecmp(text, word, n) != 0) return NULL;
    return text + n == end || strchr(";" BLANKS, text[n]) ? text + n : NULL;
}

/* ---- the body ---- */

ts_code ts_form_reader_new(const char *content_type, ts_form_reader **ret, ts_error *e) {
    const char *end = content_type ? content_type + strlen(content_type) : NULL;
    const char *at = content_type ? behind(content_type, end, "multipart/form-data") : NULL;
    parameter boundary;
    if (!at) return ts_fail_param(e, TS_EMEDIATYPE, "", "the content-type must be multipart/form-data");
    if (!find_parameter(at, end, "boundary", &boundary) || !boundary.value_size ||
        boundary.value_size > BOUNDARY_BYTES)
        return ts_fail(e, TS_EINVAL, "the content-type names no boundary of 1 to %d bytes", BOUNDARY_BYTES);
    ts_form_reader *r = ts_new0(ts_form_reader);
    if (r) r->form = ts_new0(ts_form);
    if (!r || !r->form) {
        free(r);
        return ts_fail(e, TS_ENOMEM, "there is no memory for the form");
    }
    memcpy(r->delimiter, "\r\n--", 4);
    memcpy(r->delimiter + 4, boundary.value, boundary.value_size);
    r->delimiter_size = 4 + boundary.value_size;
    ts_buffer_init(&r->pending, SIZE_MAX);
    /* The first delimiter may be the first line. */
    if (ts_buffer_append(&r->pending, "\r\n", 2)) {
        ts_form_reader_free(r);
        return ts_fail(e, TS_ENOMEM, "there is no memory for the form");
    }
    *ret = r;
    return TS_OK;
}

void ts_form_reader_free(ts_form_reader *r) {
    if (!r) return;
    ts_buffer_free(&r->pending);
    ts_form_free(r->form);
    free(r);
}

static void take(ts_form_reader *r, size_t n) {
    r->pending.size -= n;
    memmove(r->pending.data, r->pending.data + n, r->pending.size);
}

static ts_code malformed(ts_error *e) {
    return ts_fail(e, TS_EINVAL, "the form is malformed, or ends too early");
}

/* Whether the delimiter has come; if so it is taken, with what was before it. That, or all that can be no
 * part of a delimiter, goes to the form where it is of a part. */
static ts_code to_delimiter(ts_form_reader *r, bool *ret_found, ts_error *e) {
    const ts_buffer *b = &r->pending;
    const char *at = memmem(b->data, b->size, r->delimiter, r->delimiter_size);
    const size_t keep = r->delimiter_size - 1,
                 skipped = r->begun ? 2 : 0; /* of the empty line before the body */
    size_t n = at ? (size_t)(at - b->data) : b->size > keep ? b->size - keep : 0;
    if (!at && n < skipped) n = 0;
    ts_code rc = TS_OK;
    if (n > skipped && r->state == BODY)
        rc = ts_form_add(r->form, "", b->data + skipped, false, n - skipped, e);
    if (at || n) r->begun = false;
    *ret_found = at != NULL;
    take(r, at ? n + r->delimiter_size : n);
    return rc;
}

/* Where a header ends: at a CR LF that no blank follows. */
static const char *line_end(const char *at, const char *end) {
    const char *stop;
    while ((stop = memmem(at, (size_t)(end - at), "\r\n", 2)) && end - stop > 2 &&
           (stop[2] == ' ' || stop[2] == '\t'))
        at = stop + 2;
    return stop ? stop : end;
}

/* "name" of the Content-Disposition among a part's headers, each of which has a CR LF before it. */
static ts_code begin_part(ts_form_reader *r, const char *at, const char *end, ts_error *e) {
    static const char header[] = "content-disposition:";
    parameter name = {0};
    while (at < end) {
        at += 2;
        const char *line = at, *stop = line_end(at, end);
        at = stop;
        if ((size_t)(stop - line) < sizeof header - 1 || strncasecmp(line, header, sizeof header - 1) != 0)
            continue;
        line += sizeof header - 1;
        skip_blanks(&line, stop);
        const char *parameters = behind(line, stop, "form-data");
        if (!parameters || !find_parameter(parameters, stop, "name", &name)) name = (parameter){0};
    }
    /* What a name cannot hold makes it none. */
    if (memchr(name.value, 0, name.value_size < BOUNDARY_BYTES ? name.value_size : BOUNDARY_BYTES))
        name.value[0] = 0;
    return ts_form_add(r->form, name.value, "", true, 0, e);
}

/* One step; *ret_more: another may be possible without more bytes. */
static ts_code step(ts_form_reader *r, bool *ret_more, ts_error *e) {
    const ts_buffer *b = &r->pending;
    *ret_more = false;
    switch (r->state) {
    case PREAMBLE:
    case BODY: {
        ts_code rc = to_delimiter(r, ret_more, e);
        if (*ret_more) r->state = DELIMITER;
        return rc;
    }
    case DELIMITER: {
        size_t blanks = 0;
        while (blanks < b->size && (b->data[blanks] == ' ' || b->data[blanks] == '\t')) blanks++;
        if (blanks > HEADER_BYTES) return malformed(e);
        if (b->size - blanks < 2) return TS_OK;
        if (!blanks && memcmp(b->data, "--", 2) == 0) {
            r->state = EPILOGUE;
            *ret_more = true;
            return TS_OK;
        }
        if (memcmp(b->data + blanks, "\r\n", 2) != 0) return malformed(e);
        take(r, blanks);
        r->state = HEADERS;
        *ret_more = true;
        return TS_OK;
    }
    case HEADERS: {
        const char *end = memmem(b->data, b->size, "\r\n\r\n", 4);
        const size_t n = end ? (size_t)(end - b->data) : b->size > 3 ? b->size - 3 : 0; /* at least */
        if (n > HEADER_BYTES)
            return ts_fail(e, TS_EINVAL, "a part of the form has more than %d bytes of headers",
                           HEADER_BYTES);
        if (!end) return TS_OK;
        ts_code rc = begin_part(r, b->data, end, e);
        /* The empty line's end may be that of an empty part's delimiter: it stays until that is known. */
        take(r, n + 2);
        r->begun = true;
        r->state = BODY;
        *ret_more = true;
        return rc;
    }
    case EPILOGUE: take(r, b->size); return TS_OK;
    }
    return TS_EINTERNAL;
}

ts_code ts_form_reader_feed(ts_form_reader *r, const char *bytes, size_t n, ts_error *e) {
    if (ts_buffer_append(&r->pending, bytes, n))
        return ts_fail(e, TS_ENOMEM, "there is no memory for the form");
    bool more = true;
    ts_code rc = TS_OK;
    while (!rc && more) rc = step(r, &more, e);
    return rc;
}

ts_code ts_form_reader_end(ts_form_reader *r, ts_form **ret, ts_error *e) {
    if (r->state != EPILOGUE) return malformed(e);
    *ret = r->form;
    r->form = NULL;
    return TS_OK;
}
