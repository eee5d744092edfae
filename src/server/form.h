/* A body of multipart/form-data (RFC 7578): texts, which become the JSON that the same request would have
 * been, and files. */
#ifndef TS_SERVER_FORM_H
#define TS_SERVER_FORM_H

#include <stdbool.h>
#include "base/buffer.h"

#define TS_FORM_PARTS 192 /* the longest list of levels, and every other field */
#define TS_FORM_NAME  64

typedef struct ts_form_part {
    char name[TS_FORM_NAME];
    ts_buffer bytes;
} ts_form_part;

typedef struct ts_form {
    ts_form_part parts[TS_FORM_PARTS];
    int count;
} ts_form;

/* n more bytes of a part, which may be 0: the first ones of the next part, or more of the last. TS_EINVAL for
 * too many parts and for a name that is none, TS_ENOMEM. A zeroed form has no part yet. */
ts_code ts_form_add(ts_form *form, const char *name, const char *bytes, bool first, size_t n, ts_error *e);
void ts_form_free(ts_form *form); /* NULL is fine */

/* The part of that name, or the first of "name[]"; NULL: there is none. *ret_count: how many there are. */
const ts_form_part *ts_form_find(const ts_form *form, const char *name, int *ret_count);

/* Whether a value of that field, or of that member of one, is a text even where it looks like something
 * else. */
typedef bool ts_form_is_text(const char *name, const char *value);

/* The parts that are not files as a JSON object. "a[b]" is the member b of an object a, "a[]" an element
 * of an array a, "a[][b]" the member b of the next object in an array a; all its members come as often. A
 * value that reads as a JSON number, true, false or null is that, unless is_text says that it is text;
 * everything else is a string. most: bytes of all of them. TS_EINVAL names the field, TS_ETOOLARGE, TS_ENOMEM. */
ts_code ts_form_json(const ts_form *form, bool (*is_file)(const char *name), ts_form_is_text *is_text, size_t most,
                     ts_buffer *out, ts_error *e);

#endif
