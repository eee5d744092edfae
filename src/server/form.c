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

static ts_code put_value(const ts_form_part *part, bool text_only, ts_buffer *out, ts_error *e) {
    ts_buffer copy;
    ts_buffer_init(&copy, SIZE_MAX);
    ts_code rc = ts_buffer_append(&copy, part->bytes.data, part->bytes.size);
    const char *text = rc ? NULL : ts_buffer_text(&copy);
    bool literal = false;
    if (!text || (!text_only && is_literal(text, &literal)))
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

/* Length of the name before its bracket, if it has one that is closed at the end. */
static size_t stem(const char *name, bool *ret_bracket) {
    const size_t n = strlen(name), at = strcspn(name, "[");
    *ret_bracket = at > 0 && at < n && name[n - 1] == ']' && at + 1 == n - strlen(strrchr(name, '[') + 1);
    return *ret_bracket ? at : n;
}

static bool same_stem(const char *a, const char *b, size_t n) {
    bool bracket;
    return !strncmp(a, b, n) && stem(b, &bracket) == n && bracket;
}

/* "a[b]" and "a[]": all parts of the same a, at the first of them. */
static ts_code put_group(const ts_form *form, int first, size_t n, ts_buffer *out, ts_error *e) {
    const char *name = form->parts[first].name;
    const bool array = !strcmp(name + n, "[]");
    ts_code rc = ts_buffer_append(out, array ? "[" : "{", 1);
    for (int i = first; i < form->count && !rc; i++) {
        const ts_form_part *part = &form->parts[i];
        if (!same_stem(name, part->name, n)) continue;
        if (array != !strcmp(part->name + n, "[]"))
            return ts_fail_param(e, TS_EINVAL, part->name, "%s and %s do not go together", name, part->name);
        char member[TS_FORM_NAME];
        snprintf(member, sizeof member, "%.*s", (int)(strlen(part->name) - n - 2), part->name + n + 1);
        if (i > first) rc = ts_buffer_append(out, ", ", 2);
        if (!rc && !array) rc = ts_json_quote(out, member);
        if (!rc && !array) rc = ts_buffer_append(out, ": ", 2);
        if (!rc) rc = put_value(part, false, out, e);
    }
    return rc ? rc : ts_buffer_append(out, array ? "]" : "}", 1);
}

static bool is_first(const ts_form *form, int at, size_t n) {
    for (int i = 0; i < at; i++)
        if (same_stem(form->parts[at].name, form->parts[i].name, n)) return false;
    return true;
}

ts_code ts_form_json(const ts_form *form, bool (*is_file)(const char *name),
                     bool (*is_text)(const char *name), ts_buffer *out, ts_error *e) {
    ts_code rc = ts_buffer_append(out, "{", 1);
    bool some = false;
    for (int i = 0; i < form->count && !rc; i++) {
        const ts_form_part *part = &form->parts[i];
        bool bracket;
        const size_t n = stem(part->name, &bracket);
        char name[TS_FORM_NAME];
        snprintf(name, sizeof name, "%.*s", (int)n, part->name);
        if (is_file(name) || (bracket && !is_first(form, i, n))) continue;
        if (some) rc = ts_buffer_append(out, ", ", 2);
        some = true;
        if (!rc) rc = ts_json_quote(out, name);
        if (!rc) rc = ts_buffer_append(out, ": ", 2);
        if (!rc) rc = bracket ? put_group(form, i, n, out, e) : put_value(part, is_text(name), out, e);
    }
    if (!rc) rc = ts_buffer_append(out, "}", 1);
    if (rc == TS_ENOMEM && e && !e->code) return ts_fail(e, rc, "reading the form");
    return rc;
}
