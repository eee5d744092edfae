/* The parts of a form, one a line as name=value, as JSON: what comes out is JSON, whatever the names say. An input that begins
 * with - is a body: its parts are the same in whatever pieces it comes. */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "server/form_reader.h"
#include "server/request.h"

static bool is_file(const char *name) {
    return !strcmp(name, "image") || !strcmp(name, "mask");
}

static void add_line(ts_form *form, const char *line, size_t n, ts_error *e) {
    char name[2 * TS_FORM_NAME];
    const char *equals = memchr(line, '=', n);
    size_t length = equals ? (size_t)(equals - line) : n;
    if (length >= sizeof name) length = sizeof name - 1;
    memcpy(name, line, length);
    name[length] = 0;
    const char *value = equals ? equals + 1 : line + n;
    if (ts_form_add(form, name, value, true, (size_t)(line + n - value), e) && !e->message[0])
        fuzz_fail("a part was refused without a word");
}

/* In pieces of at most `piece` bytes. */
static ts_form *read_body(const uint8_t *data, size_t size, size_t piece) {
    ts_form_reader *r = NULL;
    ts_form *form = NULL;
    ts_error e = {0};
    ts_code rc = ts_form_reader_new("multipart/form-data; boundary=B", &r, &e);
    for (size_t at = 0; at < size && !rc; at += piece)
        rc = ts_form_reader_feed(r, (const char *)data + at, size - at < piece ? size - at : piece, &e);
    if (!rc) rc = ts_form_reader_end(r, &form, &e);
    if (rc && !e.message[0]) fuzz_fail("an error without a word");
    ts_form_reader_free(r);
    return form;
}

static void compare(const uint8_t *data, size_t size) {
    static const size_t pieces[] = {1, 2, 7, 64};
    ts_form *whole = read_body(data, size, size);
    for (int i = 0; i < 4; i++) {
        ts_form *f = read_body(data, size, pieces[i]);
        if (!whole != !f || (f && whole->count != f->count)) fuzz_fail("pieces make another form");
        for (int k = 0; f && k < f->count; k++) {
            const ts_form_part *a = &whole->parts[k], *b = &f->parts[k];
            if (strcmp(a->name, b->name) != 0 || a->bytes.size != b->bytes.size ||
                (a->bytes.size && memcmp(a->bytes.data, b->bytes.data, a->bytes.size) != 0))
                fuzz_fail("pieces make another part");
        }
        ts_form_free(f);
    }
    ts_form_free(whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size && data[0] == '-') {
        compare(data, size);
        return 0;
    }
    ts_error e = {0};
    ts_form *form = calloc(1, sizeof *form);
    ts_buffer json;
    cJSON *parsed = NULL;
    if (!form) return 0;
    for (const char *at = (const char *)data, *end = at + size; at < end && !e.code;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        if (!stop) stop = end;
        add_line(form, at, (size_t)(stop - at), &e);
        at = stop + 1;
    }
    ts_buffer_init(&json, SIZE_MAX);
    e = (ts_error){0};
    if (ts_form_json(form, is_file, ts_images_field_is_text, SIZE_MAX, &json, &e)) {
        if (!e.message[0]) fuzz_fail("an error without a word");
    } else if (ts_json_parse(json.data, json.size, (ts_json_limits){8, 4096}, &parsed, &e) &&
               !strstr(e.message, "appears twice")) {
        fuzz_fail(e.message);
    }
    cJSON_Delete(parsed);
    ts_buffer_free(&json);
    ts_form_free(form);
    return 0;
}
