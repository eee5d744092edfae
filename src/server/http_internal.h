/* What http.c, which talks with libmicrohttpd and the loop, and exchange.c, which answers, share. */
#ifndef TS_SERVER_HTTP_INTERNAL_H
#define TS_SERVER_HTTP_INTERNAL_H

#include <microhttpd.h>
#include "base/buffer.h"
#include "server/form_reader.h"
#include "server/http.h"

#define TS_NOTE_BYTES 160

typedef struct ts_connection {
    ts_http *http;
    struct ts_connection *next, *previous;
    ts_exchange *exchange; /* the request that it carries now, or NULL */
    int fd;
    bool cut;             /* it has been */
    bool zero;            /* its path says %00, where what we get of it ends */
    uint64_t deadline_ns; /* when it is cut off; UINT64_MAX while we are the ones who are awaited */
} ts_connection;

struct ts_exchange {
    ts_http *http;
    ts_connection *owner;
    struct MHD_Connection *mhd;
    const ts_route *route;
    char id[24], method[16], *path, note[TS_NOTE_BYTES];
    uint64_t started_ns, body_bytes;
    size_t body_limit;
    ts_buffer body;
    ts_form_reader *reader; /* of a form, until it is complete */
    ts_form *form;          /* then, until it is taken */
    ts_error refusal;       /* code: answered once the body has been swallowed */
    struct MHD_Response *response;
    int status;
    bool dispatched, suspended, watched, gone, queued, failed;
    bool counted; /* a form that takes room while it arrives (ts_http_forms) */
    ssize_t (*read)(void *arg, char *to, size_t room);
    void *read_arg;
    void (*on_end)(void *arg, bool gone);
    void *end_arg;
};

struct ts_http {
    ts_http_config c;
    struct MHD_Daemon *daemon;
    ts_connection *connections;
    size_t connection_count, exchange_count;
    int watch_fd; /* epoll of the connections whose client we wait with */
    uint64_t id_base, id_next;
    bool draining, closing;
    uv_poll_t poll, watch;
    uv_timer_t timer, sweep;
    uv_idle_t idle;
    int open_handles;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* A request whose headers have been read; NULL: no memory. */
ts_exchange *ts_exchange_new(ts_http *http, ts_connection *owner, struct MHD_Connection *mhd, const char *url,
                             const char *method);
void ts_exchange_free(ts_exchange *x);

/* Lets libmicrohttpd go on with a suspended connection, soon. */
void ts_exchange_resume(ts_exchange *x);
/* Whether the client leaves is no longer watched. */
void ts_exchange_unwatch(ts_exchange *x);

#endif
