#include "server/http_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "server/guard.h"
#include "server/reply.h"

#define POOL_BYTES (16 * 1024) /* of a connection; headers must fit */
#define SEND_BYTES (64 * 1024) /* SO_SNDBUF: a slow reader must not hold megabytes in the kernel */
/* A refused body is read and dropped up to here, so that the client gets to see the answer instead of a
 * reset. */
#define SWALLOW_BYTES   ((uint64_t)16 * 1024 * 1024)
#define SMALL_FORM      ((uint64_t)64 * 1024) /* that may arrive without being counted: memory of no account */
#define SWEEP_MS        500
#define RETRY_AFTER     "5" /* seconds, of a form that there is no room for */
#define USER_TIMEOUT_MS 30000

/* ---- the loop ---- */

static void pump(ts_http *h);

static void on_idle(uv_idle_t *idle) {
    pump(idle->data);
}
static void on_timer(uv_timer_t *timer) {
    pump(timer->data);
}
static void on_poll(uv_poll_t *poll, int status, int events) {
    (void)status;
    (void)events;
    pump(poll->data);
}

/* Lets libmicrohttpd work and asks when it wants to again. A timeout of 0 is an idle handle: a timer of 0
 * that is started from its own callback never lets the loop go on (libuv < 1.48). */
static void pump(ts_http *h) {
    if (h->closing) return;
    uv_idle_stop(&h->idle);
    MHD_run(h->daemon);
    MHD_UNSIGNED_LONG_LONG ms;
    if (MHD_get_timeout(h->daemon, &ms) != MHD_YES)
        uv_timer_stop(&h->timer);
    else if (ms == 0)
        uv_idle_start(&h->idle, on_idle);
    else
        uv_timer_start(&h->timer, on_timer, ms, 0);
}

/* Soon, and once for however many resumed connections: each run looks at all suspended ones. */
static void pump_soon(ts_http *h) {
    if (!h->closing) uv_idle_start(&h->idle, on_idle);
}

void ts_exchange_resume(ts_exchange *x) {
    if (!x->suspended) return;
    x->suspended = false;
    MHD_resume_connection(x->mhd);
    pump_soon(x->http);
}

/* ---- clients that go away ---- */

static void watch(ts_exchange *x) {
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.ptr = x};
    if (!x->watched) x->watched = epoll_ctl(x->http->watch_fd, EPOLL_CTL_ADD, x->owner->fd, &event) == 0;
}

void ts_exchange_unwatch(ts_exchange *x) {
    struct epoll_event event = {0};
    if (x->watched) epoll_ctl(x->http->watch_fd, EPOLL_CTL_DEL, x->owner->fd, &event);
    x->watched = false;
}

static void on_watch(uv_poll_t *poll, int status, int events) {
    (void)status;
    (void)events;
    ts_http *h = poll->data;
    struct epoll_event found[64];
    int n = epoll_wait(h->watch_fd, found, 64, 0);
    for (int i = 0; i < n; i++) {
        ts_exchange *x = found[i].data.ptr;
        x->gone = true;
        /* Where the rest of a body is awaited, libmicrohttpd may have slept through the end of the stream,
         * which came together with the last bytes: its epoll is edge-triggered and a short read disarms it.
         */
        if (!x->dispatched) shutdown(x->owner->fd, SHUT_RDWR);
        ts_exchange_resume(x);
    }
}

/* libmicrohttpd's own timeout does not stop a client that sends a byte now and then. */
static void on_sweep(uv_timer_t *timer) {
    ts_http *h = timer->data;
    uint64_t now = ts_now_ns();
    for (ts_connection *c = h->connections; c; c = c->next) {
        if (c->deadline_ns > now) continue;
        c->deadline_ns = UINT64_MAX;
        c->cut = true;
        shutdown(c->fd, SHUT_RDWR);
    }
}

static uint64_t in_seconds(unsigned seconds) {
    return ts_now_ns() + (uint64_t)seconds * 1000000000u;
}

/* ---- what libmicrohttpd calls ---- */

static bool matches(const char *pattern, const char *path) {
    const char *brace = strchr(pattern, '{');
    if (!brace) return !strcmp(pattern, path);
    size_t n = (size_t)(brace - pattern);
    return !strncmp(pattern, path, n) && path[n] && !strchr(path + n, '/');
}

static const ts_route *find_route(const ts_http *h, const char *path, const char *method, ts_error *e) {
    const ts_route *same_path = NULL;
    /* HEAD is GET without the body; libmicrohttpd leaves it out. */
    const char *wanted = strcmp(method, "HEAD") ? method : "GET";
    for (size_t i = 0; i < h->c.route_count; i++) {
        const ts_route *r = &h->c.routes[i];
        if (!matches(r->path, path)) continue;
        same_path = r;
        if (!strcmp(r->method, wanted)) return r;
    }
    if (same_path)
        ts_fail(e, TS_EMETHOD, "%.200s is for %s, not %.16s", path, same_path->method, method);
    else
        ts_fail(e, TS_ENOTFOUND, "there is nothing at %.200s", path);
    return same_path;
}

static enum MHD_Result queue(ts_exchange *x) {
    if (x->gone || !x->response) return MHD_NO;
    x->queued = true;
    /* While the answer is on its way nobody waits for the client; libmicrohttpd's timeout sees slow readers.
     */
    x->owner->deadline_ns = UINT64_MAX;
    return MHD_queue_response(x->mhd, (unsigned)x->status, x->response);
}

static enum MHD_Result refuse(ts_exchange *x, bool close) {
    ts_header headers[3];
    size_t n = 0;
    if (x->refusal.code == TS_EFULL) headers[n++] = (ts_header){"retry-after", RETRY_AFTER};
    if (x->refusal.code == TS_EMETHOD)
        headers[n++] = (ts_header){"allow", strcmp(x->route->method, "GET") ? x->route->method : "GET, HEAD"};
    if (close && !x->http->draining) headers[n++] = (ts_header){"connection", "close"};
    ts_reply_error_headers(x, &x->refusal, headers, n);
    return queue(x);
}

/* A form that is large, or becomes it, needs room, and takes it while it arrives. */
static ts_code admit_form(ts_exchange *x, uint64_t bytes) {
    return bytes <= SMALL_FORM ? TS_OK : x->http->c.admit(x->http->c.arg, &x->refusal);
}

static ts_code count_form(ts_exchange *x) {
    if (x->counted) return TS_OK;
    ts_code rc = admit_form(x, x->body_bytes);
    x->counted = !rc && x->body_bytes > SMALL_FORM;
    return rc;
}

/* The headers are there, the body is not. */
static enum MHD_Result on_headers(ts_exchange *x, const char *url, const char *method, const char *version) {
    ts_http *h = x->http;
    x->owner->deadline_ns = in_seconds(h->c.body_timeout);
    if (ts_guard(x->mhd, url, method, version, &x->refusal)) return refuse(x, true);
    if (x->owner->zero) {
        ts_fail(&x->refusal, TS_EINVAL, "the path holds a zero byte");
        return refuse(x, true);
    }

    const char *length = ts_exchange_header(x, "content-length");
    uint64_t announced = length ? strtoull(length, NULL, 10) : 0;
    x->route = find_route(h, url, method, &x->refusal);
    if (!x->refusal.code) {
        const size_t limits[] = {0, h->c.body_limit, h->c.upload_limit};
        x->body_limit = limits[x->route->body];
        ts_buffer_init(&x->body, x->body_limit);
        if (announced > x->body_limit && x->body_limit)
            ts_fail(&x->refusal, TS_ETOOLARGE, "the body has %llu bytes; the limit is %zu",
                    (unsigned long long)announced, x->body_limit);
        else if (x->route->body == TS_BODY_FORM && !admit_form(x, announced))
            ts_form_reader_new(ts_exchange_header(x, "content-type"), &x->reader, &x->refusal);
    }
    bool waits = ts_exchange_header(x, "expect") != NULL;
    if (x->refusal.code && (announced > SWALLOW_BYTES || (announced && waits))) return refuse(x, true);
    watch(x);
    return MHD_YES;
}

static enum MHD_Result on_body(ts_exchange *x, const char *bytes, size_t *size) {
    size_t n = *size;
    *size = 0;
    x->body_bytes += n;
    if (x->body_bytes > SWALLOW_BYTES + x->body_limit) return MHD_NO;
    if (x->refusal.code || !x->body_limit) return MHD_YES;
    if (x->body_bytes > x->body_limit)
        ts_fail(&x->refusal, TS_ETOOLARGE, "the body is larger than the limit of %zu bytes", x->body_limit);
    else if (x->reader)
        (void)(count_form(x) || ts_form_reader_feed(x->reader, bytes, n, &x->refusal));
    else if (ts_buffer_append(&x->body, bytes, n))
        ts_fail(&x->refusal, TS_ENOMEM, "there is no memory for the body");
    if (!x->refusal.code) return MHD_YES;
    ts_buffer_free(&x->body);
    ts_form_reader_free(x->reader);
    x->reader = NULL;
    return MHD_YES;
}

static enum MHD_Result on_complete(ts_exchange *x) {
    if (x->gone) return MHD_NO;
    x->dispatched = true;
    x->owner->deadline_ns = UINT64_MAX;
    if (x->reader && !x->refusal.code) ts_form_reader_end(x->reader, &x->form, &x->refusal);
    if (x->refusal.code) return refuse(x, false);
    x->route->handle(x->http->c.arg, x);
    if (x->response || x->gone) return queue(x);
    /* Suspend first: from then on a resume may come. */
    MHD_suspend_connection(x->mhd);
    x->suspended = true;
    return MHD_YES;
}

static enum MHD_Result on_access(void *arg, struct MHD_Connection *mhd, const char *url, const char *method,
                                 const char *version, const char *upload, size_t *upload_size,
                                 void **exchange) {
    ts_http *h = arg;
    ts_exchange *x = *exchange;
    if (!x) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        if (!info || !info->socket_context) return MHD_NO;
        x = ts_exchange_new(h, info->socket_context, mhd, url, method);
        if (!x) return MHD_NO;
        *exchange = x;
        return on_headers(x, url, method, version);
    }
    if (*upload_size) return on_body(x, upload, upload_size);
    return x->dispatched ? queue(x) : on_complete(x);
}

static void on_completed(void *arg, struct MHD_Connection *mhd, void **exchange,
                         enum MHD_RequestTerminationCode code) {
    (void)mhd;
    ts_http *h = arg;
    ts_exchange *x = *exchange;
    if (!x) return;
    *exchange = NULL;
    /* Who leaves with the last byte in hand has got all of it, whatever the watch says. */
    bool gone = code != MHD_REQUEST_TERMINATED_COMPLETED_OK;
    const bool cut =
        x->owner->cut || (!x->gone && (code == MHD_REQUEST_TERMINATED_TIMEOUT_REACHED ||
                                       (code == MHD_REQUEST_TERMINATED_WITH_ERROR && !x->dispatched)));
    const ts_ending ending = !gone                   ? TS_ENDING_WHOLE
                             : cut                   ? TS_ENDING_CUT
                             : x->failed && !x->gone ? TS_ENDING_FAILED
                                                     : TS_ENDING_LEFT;
    x->owner->deadline_ns = in_seconds(h->c.idle_timeout);
    if (x->on_end) x->on_end(x->end_arg, gone);
    int route = x->route && x->refusal.code != TS_EMETHOD ? (int)(x->route - h->c.routes) : -1;
    h->c.on_done(h->c.arg, x, route, x->queued ? x->status : 0, ts_seconds(ts_now_ns() - x->started_ns),
                 ending);
    ts_exchange_free(x);
}

/* The request line is there: the headers have so long and no longer. */
static void *on_request_line(void *arg, const char *uri, struct MHD_Connection *mhd) {
    ts_http *h = arg;
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    ts_connection *c = info ? info->socket_context : NULL;
    if (!c) return NULL;
    c->deadline_ns = in_seconds(h->c.header_timeout);
    c->zero = memmem(uri, strcspn(uri, "?"), "%00", 3) != NULL;
    return NULL;
}

static void set_up_socket(int fd) {
    int bytes = SEND_BYTES;
    unsigned ms = USER_TIMEOUT_MS;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
}

static void on_connection(void *arg, struct MHD_Connection *mhd, void **context,
                          enum MHD_ConnectionNotificationCode code) {
    ts_http *h = arg;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        ts_connection *c = info ? ts_new0(ts_connection) : NULL;
        if (!c) return; /* without a context its first request is refused */
        c->http = h;
        c->fd = info->connect_fd;
        c->deadline_ns = in_seconds(h->c.header_timeout);
        c->next = h->connections;
        if (c->next) c->next->previous = c;
        h->connections = c;
        if (++h->connection_count == h->c.connection_limit) {
            static ts_log_limit limit;
            ts_log_limited(&limit, 1, 60, TS_LOG_WARNING,
                           "connection_limit is reached: %u connections are open", h->c.connection_limit);
        }
        set_up_socket(c->fd);
        *context = c;
    } else {
        ts_connection *c = *context;
        if (!c) return;
        *context = NULL;
        if (c->previous)
            c->previous->next = c->next;
        else
            h->connections = c->next;
        if (c->next) c->next->previous = c->previous;
        h->connection_count--;
        free(c);
        /* At its limit of connections or descriptors libmicrohttpd no longer listens, and begins to again in
         * the run after that in which one has closed, which nothing else may bring about. */
        pump_soon(h);
    }
}

static void on_mhd_log(void *arg, const char *format, va_list args) {
    (void)arg;
    static ts_log_limit limit;
    char text[400];
    int n = vsnprintf(text, sizeof text, format, args);
    while (n > 0 && n < (int)sizeof text && text[n - 1] == '\n') text[--n] = 0;
    ts_log_limited(&limit, 10, 10, TS_LOG_DEBUG, "http: %s", text);
}

/* ---- begin and end ---- */

static ts_code start_daemon(ts_http *h, ts_error *e) {
    const ts_http_config *c = &h->c;
    /* The logger first: reading the other options may log. */
    /* clang-format off */
    h->daemon = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
                                 on_access, h,
                                 MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL,
                                 MHD_OPTION_LISTEN_SOCKET, c->fd,
                                 MHD_OPTION_CONNECTION_LIMIT, c->connection_limit,
                                 MHD_OPTION_CONNECTION_TIMEOUT, c->idle_timeout,
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)POOL_BYTES,
                                 MHD_OPTION_URI_LOG_CALLBACK, on_request_line, h,
                                 MHD_OPTION_NOTIFY_CONNECTION, on_connection, h,
                                 MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
                                 MHD_OPTION_END);
    /* clang-format on */
    return h->daemon ? TS_OK : ts_fail_errno(e, TS_EIO, errno, "starting libmicrohttpd");
}

ts_code ts_http_new(const ts_http_config *config, ts_http **ret, ts_error *e) {
    ts_http *h = ts_new0(ts_http);
    if (!h) return ts_fail(e, TS_ENOMEM, "the HTTP server");
    h->c = *config;
    if (getrandom(&h->id_base, sizeof h->id_base, 0) != sizeof h->id_base) h->id_base = ts_now_ns();
    h->watch_fd = epoll_create1(EPOLL_CLOEXEC);
    if (h->watch_fd < 0) {
        ts_fail_errno(e, TS_EIO, errno, "the HTTP server");
        goto fail;
    }
    if (start_daemon(h, e)) goto fail;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    uv_loop_t *loop = config->loop;
    /* None of these fails on Linux with descriptors that epoll takes. */
    ts_assert(info && info->epoll_fd >= 0);
    ts_assert(uv_poll_init(loop, &h->poll, info->epoll_fd) == 0);
    ts_assert(uv_poll_init(loop, &h->watch, h->watch_fd) == 0);
    uv_timer_init(loop, &h->timer);
    uv_timer_init(loop, &h->sweep);
    uv_idle_init(loop, &h->idle);
    h->poll.data = h->watch.data = h->timer.data = h->sweep.data = h->idle.data = h;
    uv_poll_start(&h->poll, UV_READABLE, on_poll);
    uv_poll_start(&h->watch, UV_READABLE, on_watch);
    uv_timer_start(&h->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    pump(h);
    *ret = h;
    return TS_OK;
fail:
    if (h->daemon)
        MHD_stop_daemon(h->daemon);
    else
        close(config->fd);
    if (h->watch_fd >= 0) close(h->watch_fd);
    ts_code rc = e && e->code ? e->code : TS_EIO;
    free(h);
    return rc;
}

void ts_http_drain(ts_http *h) {
    h->draining = true;
}
size_t ts_http_connections(const ts_http *h) {
    return h->connection_count;
}
size_t ts_http_exchanges(const ts_http *h) {
    return h->exchange_count;
}
size_t ts_http_forms(const ts_http *h) {
    size_t n = 0;
    for (const ts_connection *c = h->connections; c; c = c->next)
        n += c->exchange && c->exchange->counted && !c->exchange->dispatched && !c->exchange->refusal.code;
    return n;
}

static void on_handle_closed(uv_handle_t *handle) {
    ts_http *h = handle->data;
    if (--h->open_handles) return;
    close(h->watch_fd);
    void (*closed)(void *arg) = h->closed;
    void *arg = h->closed_arg;
    free(h);
    if (closed) closed(arg);
}

void ts_http_close(ts_http *h, void (*closed)(void *arg), void *arg) {
    /* libmicrohttpd must not be stopped with suspended connections. */
    for (ts_connection *c = h->connections; c; c = c->next) {
        if (!c->exchange) continue;
        c->exchange->gone = true;
        ts_exchange_resume(c->exchange);
    }
    MHD_run(h->daemon);
    h->closing = true;
    MHD_stop_daemon(h->daemon);
    h->closed = closed;
    h->closed_arg = arg;
    uv_handle_t *handles[] = {(uv_handle_t *)&h->poll, (uv_handle_t *)&h->watch, (uv_handle_t *)&h->timer,
                              (uv_handle_t *)&h->sweep, (uv_handle_t *)&h->idle};
    h->open_handles = (int)(sizeof handles / sizeof *handles);
    for (size_t i = 0; i < sizeof handles / sizeof *handles; i++) uv_close(handles[i], on_handle_closed);
}
