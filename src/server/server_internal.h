/* What the parts of the server share. Loop thread, unless something says otherwise. */
#ifndef TS_SERVER_SERVER_INTERNAL_H
#define TS_SERVER_SERVER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <uv.h>
#include "base/config.h"
#include "base/mailbox.h"
#include "sched/sched.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/setup.h"

typedef enum ts_state { TS_STATE_LOADING, TS_STATE_READY, TS_STATE_DRAINING } ts_state;

typedef struct ts_generation ts_generation;

typedef struct ts_server {
    const ts_config *config;
    ts_setup setup;
    uv_loop_t loop;
    ts_http *http;
    ts_state state;
    bool stopping; /* the last round: handles are being closed */
    uint64_t started_ns, signalled_ns;
    uint64_t cancelled_ns; /* when the rest was given up; 0: not yet */
    int64_t started_at;    /* seconds since 1970 */

    /* The loading thread's until the loop gets it back and sets sched. */
    ts_model **models;
    int model_count;
    ts_group **groups;
    int group_count;
    ts_sched *loaded;
    ts_sched *sched; /* NULL until everything is there */
    ts_error load_error;
    atomic_bool abandon; /* loading ends as soon as it can */
    uv_work_t load;
    bool loading;

    /* From the scheduler's threads. */
    ts_mailbox *mailbox;
    uv_async_t wake;
    pthread_mutex_t events;         /* over the shared part of every generation */
    _Atomic uint64_t last_event_ns; /* for the watchdog */

    ts_generation *generations;
    size_t generation_count;
    struct ts_edit *edits, **edits_end; /* that wait to be decoded, oldest first */
    int decoding, edit_pictures; /* edits that are being; pictures that those and the waiting ones ask for */

    ts_metrics metrics;
    uv_signal_t sigterm, sigint, sighup;
    uv_timer_t tick;      /* a second: pings, drain, watchdog */
    uv_timer_t flush;     /* streams that have something new to say */
    uint64_t watchdog_ns; /* half of systemd's interval; 0: none */
    uint64_t fed_ns;
} ts_server;

/* server.c */
void ts_server_drain_sched(ts_server *s); /* where it drains, once the scheduler has all that was accepted */

/* images.c */
void ts_images_handle(void *server, ts_exchange *x);
void ts_images_edit_handle(void *server, ts_exchange *x);
ts_code ts_images_admit(void *server, ts_error *e); /* room for an edit: TS_EFULL */

/* generation.c */
void ts_images_take_events(ts_server *s); /* after the mailbox has woken the loop */
void ts_images_flush(ts_server *s);
void ts_images_ping(ts_server *s);
void ts_images_cancel_all(ts_server *s);                      /* clients are told that the server stops */
void ts_images_on_event(void *server, const ts_event *event); /* any thread */

/* info.c */
ts_code ts_server_ready(const ts_server *s,
                        ts_error *e); /* TS_OK when requests are taken; TS_ELOADING, TS_ESHUTDOWN */
void ts_models_handle(void *server, ts_exchange *x);
void ts_sdapi_samplers_handle(void *server, ts_exchange *x);
void ts_sdapi_schedulers_handle(void *server, ts_exchange *x);
void ts_model_handle(void *server, ts_exchange *x);
void ts_loras_handle(void *server, ts_exchange *x);
void ts_health_handle(void *server, ts_exchange *x);
void ts_metrics_handle(void *server, ts_exchange *x);
void ts_openapi_handle(void *server, ts_exchange *x);

/* routes.c */
extern const ts_route ts_routes[];
extern const size_t ts_route_count;

/* load.c: any thread while nobody else touches models, groups and sched. */
ts_code ts_server_load(ts_server *s, ts_error *e);
void ts_server_unload(ts_server *s);

#endif
