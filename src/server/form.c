#include "server/form.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "server/reply.h"

/* ---- parts ---- */

ts_code ts_form_add(ts_form *form, const char *name, const char *bytes, bool first, size_t n, ts_error *e) {
    if (first) {
        if (form->count == TS_FORM_PARTS)
            return ts_fail(e, TS_EINVAL, "the form has more than %d parts", TS_FORM_PARTS);
        size_t length = strlen(name);
        if (!length || length >= TS_FORM_NAME)
            return ts_fail(e, TS_EINVAL, "a part of the form has no name, or one of more than %d bytes",
                           TS_FORM_NAME - 1);
        ts_form_part *part = &form->parts[form->count++];
        memcpy(part->name, name, length + 1);
        ts_buffer_init(&part->bytes, SIZE_MAX); /* the body, which it is a part of, has a limit */
    }
    if (!form->count) return ts_fail(e, TS_EINVAL, "the form does not begin with a part");
    if (ts_buffer_append(&form->parts[form->count - 1].bytes, bytes, n))
        return ts_fail(e, TS_ENOMEM, "there is no memory for the form");
    return TS_OK;
}

void ts_form_free(ts_form *form) {
    if (!form) return;
    for (int i = 0; i < form->count; i++) ts_buffer_free(&form->parts[i].bytes);
    free(form);
}

const ts_form_part *ts_form_find(const ts_form *form, const char *name, int *ret_count) {
    const ts_form_part *found = NULL;
    const size_t n = strlen(name);
    *ret_count = 0;
    for (int i = 0; i < form->count; i++) {
        const ts_form_part *part = &form->parts[i];
        if (strncmp(part->name, name, n) != 0 || (part->name[n] && strcmp(part->name + n, "[]") != 0))
            continue;
        if (!found) found = part;
        ++*ret_count;
    }
    return found;
}

/* ---- as JSON ---- */

/* Numbers, true, false and null stand for themselves where the field is not text. TS_ENOMEM. */
static ts_code is_literal(const char *text, bool *ret) {
    *ret = false;
    if (!*text || strchr("\"[{ \t\r\n", *text)) return TS_OK;
    cJSON *json = NULL;
    ts_code rc = ts_json_parse(text, strlen(text), (ts_json_limits){1, 1}, &json, NULL);
    *ret = rc == TS_OK;
    cJSON_Delete(json);
    return rc == TS_ENOMEM ? rc : TS_OK;
}

/* As a text of the field `name`, or as what it reads as. */
static ts_code put_value(const ts_form_part *part, const char *name, ts_form_is_text *is_text, ts_buffer *out,
                         ts_error *e) {
    ts_buffer copy;
    ts_buffer_init(&copy, SIZE_MAX);
    ts_code rc = ts_buffer_append(&copy, part->bytes.data, part->bytes.size);
    const char *text = rc ? NULL : ts_buffer_text(&copy);
    bool literal = false;
    if (!text || (!is_text(name, text) && is_literal(text, &literal)))
        rc = ts_fail(e, TS_ENOMEM, "reading the form");
    else if (!ts_utf8_valid(text, part->bytes.size))
        rc = ts_fail_param(e, TS_EINVAL, part->name, "%s is not UTF-8 text", part->name);
    else if (literal)
        rc = ts_buffer_append(out, text, part->bytes.size);
    else
        rc = ts_json_quote(out, text);
    ts_buffer_free(&copy);
    return rc;
}

/* What a name says: "a", "a[b]", "a[]", "a[][b]". */
typedef enum shape { PLAIN, MEMBER, ELEMENT, ELEMENT_MEMBER } shape;

static bool is_member(const char *s) {
    const size_t n = strlen(s);
    return n > 2 && *s == '[' && s[n - 1] == ']' && strcspn(s + 1, "[]") == n - 2;
}

/* Of the name, and of "a" in it: how long it is. */
static shape shape_of(const char *name, size_t *ret) {
    const size_t at = strcspn(name, "[");
    const char *rest = name + at;
    const shape s = !at                                              ? PLAIN
                    : !strcmp(rest, "[]")                            ? ELEMENT
                    : is_member(rest)                                ? MEMBER
                    : !strncmp(rest, "[]", 2) && is_member(rest + 2) ? ELEMENT_MEMBER
                                                                     : PLAIN;
    *ret = s == PLAIN ? strlen(name) : at;
    return s;
}

static bool same_stem(const char *a, const char *b, size_t n) {
    size_t length;
    return shape_of(b, &length) != PLAIN && length == n && !strncmp(a, b, n);
}

static void copy_member(const char *name, char ret[TS_FORM_NAME]) {
    const char *open = strrchr(name, '[');
    snprintf(ret, TS_FORM_NAME, "%.*s", (int)(strlen(open) - 2), open + 1);
}

/* "name": of an object. */
static ts_code put_member(const ts_form_part *part, ts_form_is_text *is_text, ts_buffer *out, ts_error *e) {
    char member[TS_FORM_NAME];
    copy_member(part->name, member);
    ts_code rc = ts_json_quote(out, member);
    if (!rc) rc = ts_buffer_append(out, ": ", 2);
    return rc ? rc : put_value(part, member, is_text, out, e);
}

/* Which of the parts of its very name it is, from 0; *ret_count: how many there are. */
static int ordinal(const ts_form *form, int part, int *ret_count) {
    int before = 0;
    *ret_count = 0;
    for (int i = 0; i < form->count; i++)
        if (!strcmp(form->parts[i].name, form->parts[part].name)) {
            before += i < part;
            ++*ret_count;
        }
    return before;
}

/* Clients write all the b before the first c, so that the k-th of each belong together, and all must have as
 * many. */
static ts_code put_objects(const ts_form *form, int first, size_t n, ts_form_is_text *is_text, ts_buffer *out,
                           ts_error *e) {
    enum { OTHER = -1 };
    const char *name = form->parts[first].name;
    int element[TS_FORM_PARTS], elements, count;
    ts_code rc = TS_OK;
    ordinal(form, first, &elements);
    for (int i = first; i < form->count; i++) {
        const char *other = form->parts[i].name;
        element[i] = OTHER;
        if (!same_stem(name, other, n)) continue;
        element[i] = ordinal(form, i, &count);
        if (count != elements)
            return ts_fail_param(e, TS_EINVAL, other, "%s comes %d times and %s %d times", name, elements,
                                 other, count);
    }
    for (int k = 0; k < elements && !rc; k++) {
        bool some = false;
        rc = ts_buffer_printf(out, k ? ", {" : "{");
        for (int i = first; i < form->count && !rc; i++) {
            if (element[i] != k) continue;
            if (some) rc = ts_buffer_append(out, ", ", 2);
            if (!rc) rc = put_member(&form->parts[i], is_text, out, e);
            some = true;
        }
        if (!rc) rc = ts_buffer_append(out, "}", 1);
    }
    return rc;
}

/* All parts of the same a, at the first of them. */
static ts_code put_group(const ts_form *form, int first, shape kind, size_t n, ts_form_is_text *is_text,
                         ts_buffer *out, ts_error *e) {
    const char *name = form->parts[first].name;
    char stem[TS_FORM_NAME];
    snprintf(stem, sizeof stem, "%.*s", (int)n, name);
    for (int i = first; i < form->count; i++) {
        const char *other = form->parts[i].name;
        size_t length;
        if (same_stem(name, other, n) && shape_of(other, &length) != kind)
            return ts_fail_param(e, TS_EINVAL, other, "%s and %s do not go together", name, other);
    }
    ts_code rc = ts_buffer_append(out, kind == MEMBER ? "{" : "[", 1);
    if (!rc && kind == ELEMENT_MEMBER) rc = put_objects(form, first, n, is_text, out, e);
    for (int i = first; kind != ELEMENT_MEMBER && i < form->count && !rc; i++) {
        const ts_form_part *part = &form->parts[i];
        if (!same_stem(name, part->name, n)) continue;
        if (i > first) rc = ts_buffer_append(out, ", ", 2);
        if (!rc)
            rc = kind == MEMBER ? put_member(part, is_text, out, e) : put_value(part, stem, is_text, out, e);
    }
    return rc ? rc : ts_buffer_append(out, kind == MEMBER ? "}" : "]", 1);
}

static bool is_first(const ts_form *form, int at, size_t n) {
    for (int i = 0; i < at; i++)
        if (same_stem(form->parts[at].name, form->parts[i].name, n)) return false;
    return true;
}

/* What is read as a body of JSON is no larger than one may be. */
static ts_code check_texts(const ts_form *form, bool (*is_file)(const char *name), size_t most, ts_error *e) {
    size_t bytes = 0;
    for (int i = 0; i < form->count; i++) {
        const ts_form_part *part = &form->parts[i];
        size_t n;
        char name[TS_FORM_NAME];
        shape_of(part->name, &n);
        snprintf(name, sizeof name, "%.*s", (int)n, part->name);
        if (!is_file(name)) bytes += part->bytes.size;
    }
    return bytes <= most
               ? TS_OK
               : ts_fail(e, TS_ETOOLARGE, "the form's texts have %zu bytes; the limit is %zu", bytes, most);
}

ts_code ts_form_json(const ts_form *form, bool (*is_file)(const char *name), ts_form_is_text *is_text,
                     size_t most, ts_buffer *out, ts_error *e) {
    ts_code rc = check_texts(form, is_file, most, e);
    if (!rc) rc = ts_buffer_append(out, "{", 1);
    bool some = false;
    for (int i = 0; i < form->count && !rc; i++) {
        const ts_form_part *part = &form->parts[i];
        size_t n;
        const shape kind = shape_of(part->name, &n);
        char name[TS_FORM_NAME];
        snprintf(name, sizeof name, "%.*s", (int)n, part->name);
        if (is_file(name)) {
            if (kind == PLAIN || kind == ELEMENT) continue;
            return ts_fail_param(e, TS_EINVAL, part->name, "there is no field %s", part->name);
        }
        if (kind != PLAIN && !is_first(form, i, n)) continue;
        if (some) rc = ts_buffer_append(out, ", ", 2);
        some = true;
        if (!rc) rc = ts_json_quote(out, name);
        if (!rc) rc = ts_buffer_append(out, ": ", 2);
        if (rc) break;
        rc = kind == PLAIN ? put_value(part, name, is_text, out, e)
                           : put_group(form, i, kind, n, is_text, out, e);
    }
    if (!rc) rc = ts_buffer_append(out, "}", 1);
    if (rc == TS_ENOMEM && e && !e->code) return ts_fail(e, rc, "reading the form");
    return rc;
}
