/* HTTP/1.1: libmicrohttpd inside the libuv loop.
 *
 * Everything here, and every callback, is on the loop's thread. A request reaches its route's `handle` when its
 * headers are good and its body is complete; a form is taken apart as it arrives. The handler answers at once
 * (ts_exchange_reply), or later from the loop (nothing is held meanwhile but the connection), or with a
 * stream that it is asked for piece by piece. Exactly one on_end follows, when the answer has left or the
 * client has; the exchange is gone after it.
 *
 * A client that goes away is noticed also while its connection is idle on our side: on_end says so. Requests
 * that arrive too slowly, bodies beyond the route's limit and ambiguous framing never reach a handler. */
#ifndef TS_SERVER_HTTP_H
#define TS_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>
#include "base/error.h"
#include "server/form.h"

typedef struct ts_http ts_http;
typedef struct ts_exchange ts_exchange;

/* How large a body a route reads. */
typedef enum ts_body {
    TS_BODY_NONE,
    TS_BODY_FIELDS, /* body_limit */
    TS_BODY_FORM    /* upload_limit: multipart/form-data, with pictures */
} ts_body;

typedef struct ts_route {
    const char *method; /* GET answers HEAD too */
    const char *path;   /* may end with a name in braces, which stands for one part that is not empty */
    void (*handle)(void *arg, ts_exchange *x);
    ts_body body;
    bool makes_pictures; /* its answers' seconds are counted */
} ts_route;

typedef enum ts_ending {
    TS_ENDING_WHOLE,
    TS_ENDING_LEFT, /* the client did, before the end */
    TS_ENDING_CUT,  /* we did: it was too slow, or what it sent is no HTTP */
    TS_ENDING_FAILED /* we did: the rest could not be made */
} ts_ending;

typedef struct ts_http_config {
    uv_loop_t *loop;
    int fd; /* listens; the daemon's from now on */
    unsigned connection_limit;
    unsigned header_timeout, body_timeout, idle_timeout; /* seconds */
    size_t body_limit, upload_limit;                     /* bytes */
    const ts_route *routes;
    size_t route_count;
    void *arg; /* of the handlers, on_done and admit */
    /* Once for every answer that left or could not; for the log and the counters. route < 0: none matched. */
    void (*on_done)(void *arg, const ts_exchange *x, int route, int status, double seconds, ts_ending ending);
    /* Of a route with a form that says that it is large, or becomes it: whether there is room for what it asks
     * for, beside the forms that are already counted. */
    ts_code (*admit)(void *arg, ts_error *e);
} ts_http_config;

typedef struct ts_header {
    const char *name, *value;
} ts_header;

/* TS_ENOMEM, TS_EIO. */
ts_code ts_http_new(const ts_http_config *config, ts_http **ret, ts_error *e);

/* Ends every connection (on_end says `gone`), closes the socket and all handles; the loop must run once more
 * before `closed` is called, after which the memory is gone. */
void ts_http_close(ts_http *http, void (*closed)(void *arg), void *arg);

size_t ts_http_connections(const ts_http *http);
size_t ts_http_exchanges(const ts_http *http); /* requests whose answer has not left */
size_t ts_http_forms(const ts_http *http);     /* those of them whose form is still arriving, and large */

/* Answers from now on close their connection. */
void ts_http_drain(ts_http *http);

const char *ts_exchange_id(const ts_exchange *x); /* "req_..." unique; in the header x-request-id */
const char *ts_exchange_method(const ts_exchange *x);
const char *ts_exchange_path(const ts_exchange *x);
const char *ts_exchange_body(const ts_exchange *x, size_t *ret_size); /* empty where the body is a form */
ts_form *
ts_exchange_take_form(ts_exchange *x); /* once, where the body is a form: the caller's from then on */
const char *ts_exchange_header(const ts_exchange *x, const char *name); /* NULL when absent */

/* A word of the handler's for the log line; copied, cut to 160 bytes. The text is "" when there is none. */
void ts_exchange_note(ts_exchange *x, const char *format, ...) __attribute__((format(printf, 2, 3)));

const char *ts_exchange_note_text(const ts_exchange *x);

/* Whether the answer is a failure, though its status may have left before that was known. */
void ts_exchange_set_failed(ts_exchange *x);
bool ts_exchange_failed(const ts_exchange *x);

/* arg of on_end; may be called once, before the handler returns. */
void ts_exchange_on_end(ts_exchange *x, void (*on_end)(void *arg, bool gone), void *arg);

/* The whole answer; `bytes` is malloc'ed and taken, also on failure. At most 8 headers besides content-type.
 * When memory runs out the connection is closed without an answer. */
void ts_exchange_reply(ts_exchange *x, int status, const char *type, char *bytes, size_t n,
                       const ts_header *headers, size_t header_count);

/* An answer of unknown length, status 200. read() fills up to `room` bytes: > 0 that many, 0 none yet (until
 * ts_exchange_wake), -1 the end, -2 cut it off. */
void ts_exchange_stream(ts_exchange *x, const char *type, ssize_t (*read)(void *arg, char *to, size_t room),
                        void *arg);
void ts_exchange_wake(ts_exchange *x);

#endif
