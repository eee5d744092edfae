#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *api, *sentence;
    int status;
} codes[TS_CODE_COUNT] = {
#define X(name, status, api, sentence) {#name, api, sentence, status},
    TS_CODES(X)
#undef X
};

const char *ts_code_name(ts_code code) { return code < TS_CODE_COUNT ? codes[code].name : "?"; }
int ts_code_http(ts_code code) { return code < TS_CODE_COUNT ? codes[code].status : 500; }
const char *ts_code_api(ts_code code) { return code < TS_CODE_COUNT ? codes[code].api : "internal_error"; }
const char *ts_code_sentence(ts_code code) { return code < TS_CODE_COUNT ? codes[code].sentence : "?"; }

static void fill(ts_error *e, ts_code code, const char *param, const char *format, va_list args) {
    if (!e) return;
    /* The arguments may point into e itself, so the new text is made beside the old one. */
    char text[sizeof e->message];
    vsnprintf(text, sizeof text, format, args);
    char name[sizeof e->param];
    snprintf(name, sizeof name, "%s", param ? param : "");
    e->code = code;
    memcpy(e->message, text, sizeof text);
    memcpy(e->param, name, sizeof name);
}

ts_code ts_errno_code(int err) {
    switch (err) {
    case ENOENT:
    case ENOTDIR:
    case ENAMETOOLONG:
    case ELOOP: return TS_ENOTFOUND;
    case ENOMEM: return TS_ENOMEM;
    default: return TS_EIO;
    }
}

ts_code ts_fail(ts_error *e, ts_code code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fill(e, code, NULL, format, args);
    va_end(args);
    return code;
}

ts_code ts_fail_param(ts_error *e, ts_code code, const char *param, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fill(e, code, param, format, args);
    va_end(args);
    return code;
}

ts_code ts_fail_errno(ts_error *e, ts_code code, int err, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fill(e, code, NULL, format, args);
    va_end(args);
    if (e) {
        size_t used = strlen(e->message);
        char why[128];
        /* The GNU strerror_r is the thread-safe one that is always there. */
        snprintf(e->message + used, sizeof e->message - used, ": %s", strerror_r(err, why, sizeof why));
    }
    return code;
}

ts_code ts_error_context(ts_error *e, ts_code code, const char *format, ...) {
    if (!e) return code;
    char text[sizeof e->message];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (n > 0 && (size_t)n < sizeof text - 3)
        snprintf(text + n, sizeof text - (size_t)n, ": %.*s", (int)(sizeof text - 3 - (size_t)n), e->message);
    e->code = code;
    memcpy(e->message, text, sizeof text);
    return code;
}

void ts_error_hide_folder(ts_error *e, const char *folder, int length) {
    char prefix[sizeof e->message];
    int n = e && length ? snprintf(prefix, sizeof prefix, "%.*s/", length, folder) : 0;
    if (n <= 0 || (size_t)n >= sizeof prefix) return;
    for (char *at; (at = strstr(e->message, prefix));) memmove(at, at + n, strlen(at + n) + 1);
}

_Noreturn void ts_assert_failed(const char *cond, const char *file, int line) {
    fprintf(stderr, "tessera: assertion failed: %s (%s:%d)\n", cond, file, line);
    abort();
}
