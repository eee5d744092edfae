/* Exchanges: what a handler can ask of a request, and how it answers. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "server/http_internal.h"

#define BLOCK_BYTES (16 * 1024) /* of a stream, at a time */

const char *ts_exchange_id(const ts_exchange *x) {
    return x->id;
}
const char *ts_exchange_method(const ts_exchange *x) {
    return x->method;
}
const char *ts_exchange_path(const ts_exchange *x) {
    return x->path;
}
const char *ts_exchange_body(const ts_exchange *x, size_t *ret_size) {
    *ret_size = x->body.size;
    return x->body.data ? x->body.data : "";
}
const char *ts_exchange_header(const ts_exchange *x, const char *name) {
    return MHD_lookup_connection_value(x->mhd, MHD_HEADER_KIND, name);
}

ts_form *ts_exchange_take_form(ts_exchange *x) {
    ts_form *form = x->form;
    x->form = NULL;
    return form;
}

void ts_exchange_on_end(ts_exchange *x, void (*on_end)(void *arg, bool gone), void *arg) {
    x->on_end = on_end;
    x->end_arg = arg;
}

void ts_exchange_note(ts_exchange *x, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(x->note, sizeof x->note, format, args);
    va_end(args);
}

void ts_exchange_set_failed(ts_exchange *x) {
    x->failed = true;
}
bool ts_exchange_failed(const ts_exchange *x) {
    return x->failed;
}

const char *ts_exchange_note_text(const ts_exchange *x) {
    return x->note;
}

ts_exchange *ts_exchange_new(ts_http *h, ts_connection *owner, struct MHD_Connection *mhd, const char *url,
                             const char *method) {
    ts_exchange *x = ts_new0(ts_exchange);
    if (x) x->path = ts_strdup(url);
    if (!x || !x->path) {
        free(x);
        return NULL;
    }
    x->http = h;
    x->owner = owner;
    x->mhd = mhd;
    x->started_ns = ts_now_ns();
    snprintf(x->method, sizeof x->method, "%s", method);
    /* Unique in this process, and not guessable from outside how many there were. */
    snprintf(x->id, sizeof x->id, "req_%016llx",
             (unsigned long long)(h->id_base ^ (h->id_next++ * 0x9e3779b97f4a7c15u)));
    h->exchange_count++;
    owner->exchange = x;
    return x;
}

void ts_exchange_free(ts_exchange *x) {
    x->http->exchange_count--;
    x->owner->exchange = NULL;
    ts_exchange_unwatch(x);
    if (x->response) MHD_destroy_response(x->response);
    ts_buffer_free(&x->body);
    ts_form_reader_free(x->reader);
    ts_form_free(x->form);
    free(x->path);
    free(x);
}

static bool add_headers(ts_exchange *x, const char *type, const ts_header *headers, size_t count) {
    struct MHD_Response *r = x->response;
    bool ok = MHD_add_response_header(r, "content-type", type) == MHD_YES &&
              MHD_add_response_header(r, "x-request-id", x->id) == MHD_YES &&
              MHD_add_response_header(r, "cache-control", "no-store") == MHD_YES;
    if (x->http->draining) ok = ok && MHD_add_response_header(r, "connection", "close") == MHD_YES;
    for (size_t i = 0; ok && i < count; i++)
        ok = MHD_add_response_header(r, headers[i].name, headers[i].value) == MHD_YES;
    if (!ok) {
        MHD_destroy_response(r);
        x->response = NULL;
    }
    return ok;
}

void ts_exchange_reply(ts_exchange *x, int status, const char *type, char *bytes, size_t n,
                       const ts_header *headers, size_t header_count) {
    ts_assert(!x->response);
    x->status = status;
    if (bytes) x->response = MHD_create_response_from_buffer(n, bytes, MHD_RESPMEM_MUST_FREE);
    if (!x->response) free(bytes);
    if (!x->response || !add_headers(x, type, headers, header_count)) x->gone = true;
    ts_exchange_resume(x);
}

static ssize_t on_read(void *arg, uint64_t position, char *to, size_t room) {
    (void)position;
    ts_exchange *x = arg;
    if (x->gone) return MHD_CONTENT_READER_END_WITH_ERROR;
    ssize_t n = x->read(x->read_arg, to, room);
    if (n > 0) return n;
    if (n == -1) return MHD_CONTENT_READER_END_OF_STREAM;
    if (n < 0) return MHD_CONTENT_READER_END_WITH_ERROR;
    /* Returning 0 without this would be asked again at once, for ever. */
    MHD_suspend_connection(x->mhd);
    x->suspended = true;
    return 0;
}

void ts_exchange_stream(ts_exchange *x, const char *type, ssize_t (*read)(void *arg, char *to, size_t room),
                        void *arg) {
    ts_assert(!x->response);
    /* Proxies that buffer would hold events back. */
    static const ts_header headers[] = {{"x-accel-buffering", "no"}};
    x->status = MHD_HTTP_OK;
    x->read = read;
    x->read_arg = arg;
    x->response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, on_read, x, NULL);
    if (!x->response || !add_headers(x, type, headers, 1)) x->gone = true;
    ts_exchange_resume(x);
}

void ts_exchange_wake(ts_exchange *x) {
    ts_exchange_resume(x);
}
