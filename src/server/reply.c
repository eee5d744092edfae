#include "server/reply.h"

#include <stdlib.h>
#include <string.h>
#include "base/json.h"
#include "base/log.h"

#define ERROR_BYTES ((size_t)16 * 1024)
#define MAX_HEADERS 6

/* Bytes of the character at s, 1 and *ret_bad where it is not one. */
static size_t character(const char *s, bool *ret_bad) {
    unsigned char c = (unsigned char)*s;
    size_t n = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    *ret_bad = strnlen(s, n) < n || !ts_utf8_valid(s, n);
    return *ret_bad ? 1 : n;
}

ts_code ts_json_quote(ts_buffer *b, const char *text) {
    static const char escapes[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    if (!text) return ts_buffer_append(b, "null", 4);
    ts_code rc = ts_buffer_append(b, "\"", 1);
    for (const char *s = text; *s && !rc;) {
        bool bad;
        size_t n = character(s, &bad);
        const char *pair = NULL;
        for (const char *p = escapes; *p; p += 2)
            if (*p == *s) pair = p;
        if (bad)
            rc = ts_buffer_append(b, "\xef\xbf\xbd", 3);
        else if (pair)
            rc = ts_buffer_printf(b, "\\%c", pair[1]);
        else if ((unsigned char)*s < 32 || *s == 127)
            rc = ts_buffer_printf(b, "\\u%04x", (unsigned)*s);
        else
            rc = ts_buffer_append(b, s, n);
        s += n;
    }
    return rc ? rc : ts_buffer_append(b, "\"", 1);
}

static const char *error_type(int status) {
    return status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
}

ts_code ts_json_error(ts_buffer *b, const ts_error *error) {
    const char *message = error->message[0] ? error->message : ts_code_sentence(error->code);
    ts_code rc = ts_buffer_printf(b, "{\"error\": {\"message\": ");
    if (!rc) rc = ts_json_quote(b, message);
    if (!rc)
        rc = ts_buffer_printf(b, ", \"type\": \"%s\", \"param\": ", error_type(ts_code_http(error->code)));
    if (!rc) rc = ts_json_quote(b, error->param[0] ? error->param : NULL);
    if (!rc) rc = ts_buffer_printf(b, ", \"code\": \"%s\"}}", ts_code_api(error->code));
    return rc;
}

void ts_reply_failed(ts_exchange *x, const ts_error *error) {
    const bool ours =
        ts_code_http(error->code) >= 500 && error->code != TS_ELOADING && error->code != TS_ESHUTDOWN;
    ts_exchange_set_failed(x);
    static ts_log_limit limit;
    if (ours)
        ts_log_limited(&limit, 20, 10, TS_LOG_ERROR, "%s failed: %s", ts_exchange_id(x),
                       error->message[0] ? error->message : ts_code_sentence(error->code));
}

void ts_reply_error_headers(ts_exchange *x, const ts_error *error, const ts_header *headers, size_t count) {
    ts_buffer b;
    ts_header all[MAX_HEADERS + 2];
    size_t n = 0;
    int status = ts_code_http(error->code);
    ts_reply_failed(x, error);
    ts_assert(count <= MAX_HEADERS);
    for (; n < count; n++) all[n] = headers[n];
    /* The same request would meet the same bug, file, device or number again. */
    if (status == 500) all[n++] = (ts_header){"x-should-retry", "false"};
    if (status == 503) all[n++] = (ts_header){"retry-after", "5"};
    ts_buffer_init(&b, ERROR_BYTES);
    ts_code rc = ts_json_error(&b, error);
    if (!rc) rc = ts_buffer_append(&b, "\n", 1);
    size_t size = 0;
    char *text = rc ? NULL : ts_buffer_take(&b, &size);
    ts_buffer_free(&b);
    ts_exchange_reply(x, status, "application/json", text, size, all, n);
}

void ts_reply_error(ts_exchange *x, const ts_error *error) {
    ts_reply_error_headers(x, error, NULL, 0);
}

void ts_reply_buffer(ts_exchange *x, ts_code rc, const char *type, ts_buffer *b) {
    size_t size = 0;
    char *bytes = rc ? NULL : ts_buffer_take(b, &size);
    ts_buffer_free(b);
    if (bytes) {
        ts_exchange_reply(x, 200, type, bytes, size, NULL, 0);
        return;
    }
    ts_error error = {0};
    ts_fail(&error, rc ? rc : TS_ENOMEM, "%s", ts_code_sentence(rc ? rc : TS_ENOMEM));
    ts_reply_error(x, &error);
}
