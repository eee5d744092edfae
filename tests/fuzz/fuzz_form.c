/* The parts of a form, one a line as name=value, as JSON: what comes out is JSON, whatever the names say. */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "server/form.h"
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
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
    if (ts_form_json(form, is_file, ts_images_field_is_text, &json, &e)) {
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
