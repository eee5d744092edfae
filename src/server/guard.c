#include "server/guard.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

typedef struct seen {
    int hosts, lengths, encodings, expectations;
    bool empty; /* the length is 0 */
    const char *wrong;
} seen;

/* tchar of RFC 9110, 5.6.2 */
static bool is_token(const char *s, size_t n) {
    if (!n) return false;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        bool alphanumeric = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
        if (!alphanumeric && (!c || !strchr("!#$%&'*+-.^_`|~", c))) return false;
    }
    return true;
}

static bool is_digits(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (s[i] < '0' || s[i] > '9') return false;
    return n > 0 && n <= 18;
}

static bool is(const char *name, size_t n, const char *what) {
    return n == strlen(what) && !strncasecmp(name, what, n);
}

static enum MHD_Result on_header(void *arg, enum MHD_ValueKind kind, const char *name, size_t name_size,
                                 const char *value, size_t value_size) {
    (void)kind;
    seen *s = arg;
    if (!value) value = "", value_size = 0;
    if (!is_token(name, name_size))
        s->wrong = "the name of a header is not a token";
    else if (memchr(value, 0, value_size))
        s->wrong = "a header holds a zero byte";
    else if (is(name, name_size, "host"))
        s->hosts++;
    else if (is(name, name_size, "content-length")) {
        s->lengths++;
        if (!is_digits(value, value_size)) s->wrong = "Content-Length is not a number";
        s->empty = strspn(value, "0") == value_size;
    } else if (is(name, name_size, "expect"))
        s->expectations++;
    else if (is(name, name_size, "transfer-encoding")) {
        s->encodings++;
        if (!is(value, value_size, "chunked")) s->wrong = "Transfer-Encoding is not chunked";
    }
    return s->wrong ? MHD_NO : MHD_YES;
}

ts_code ts_guard(struct MHD_Connection *connection, const char *url, const char *method, const char *version,
                 ts_error *e) {
    seen s = {0};
    const bool old = !strcmp(version, "HTTP/1.0"); /* what proxies speak where nobody told them otherwise */
    MHD_get_connection_values_n(connection, MHD_HEADER_KIND, on_header, &s);
    if (s.wrong)
        ;
    else if (!old && strcmp(version, "HTTP/1.1"))
        s.wrong = "only HTTP/1.1 is spoken here, and 1.0";
    else if (!is_token(method, strlen(method)))
        s.wrong = "the method is not a token";
    else if (url[0] != '/' || strstr(url, "/.."))
        s.wrong = "the path is not a plain absolute path";
    else if (s.hosts > 1 || (!s.hosts && !old))
        s.wrong = "exactly one Host is wanted";
    else if (s.encodings && old)
        s.wrong = "HTTP/1.0 has no Transfer-Encoding";
    else if (s.lengths > 1)
        s.wrong = "more than one Content-Length";
    else if (s.encodings > 1 || (s.encodings && s.lengths))
        s.wrong = "Transfer-Encoding comes once, and never with Content-Length";
    else if (s.expectations && (!s.lengths || s.empty) &&
             !s.encodings) /* the parser loses what comes behind it */
        s.wrong = "Expect goes with a body";
    return s.wrong ? ts_fail(e, TS_EINVAL, "%s", s.wrong) : TS_OK;
}
