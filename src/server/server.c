#include "server/server.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>
#include "base/alloc.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "server/listen.h"
#include "server/server_internal.h"

#define TICK_MS 250
/* For those whose pictures are cancelled at the end to be told so. */
#define LAST_WORDS_NS ((uint64_t)2 * 1000000000u)

ts_code ts_server_check(const ts_config *config, ts_error *e) {
    ts_setup setup;
    ts_code rc = ts_listen_check(config->server.listen, e);
    return rc ? rc : ts_setup_make(config, &setup, e);
}

/* ---- the end ---- */

static void on_closed(uv_handle_t *handle) {
    (void)handle;
}

/* Those that were made. */
static void close_handles(ts_server *s) {
    uv_handle_t *const handles[] = {(uv_handle_t *)&s->wake,   (uv_handle_t *)&s->sigterm,
                                    (uv_handle_t *)&s->sigint, (uv_handle_t *)&s->sighup,
                                    (uv_handle_t *)&s->tick,   (uv_handle_t *)&s->flush};
    for (size_t i = 0; i < sizeof handles / sizeof *handles; i++)
        if (uv_handle_get_type(handles[i]) != UV_UNKNOWN_HANDLE) uv_close(handles[i], on_closed);
}

/* The loop ends by itself when the last handle is closed and the pool has nothing more to do. */
static void stop(ts_server *s) {
    if (s->stopping) return;
    s->stopping = true;
    if (s->http) ts_http_close(s->http, NULL, NULL);
    s->http = NULL;
    close_handles(s);
}

static bool finished(ts_server *s) {
    return !s->loading && s->generation_count == 0 && ts_http_exchanges(s->http) == 0 &&
           (!s->sched || ts_sched_idle(s->sched));
}

static void cancel_all(ts_server *s) {
    if (s->cancelled_ns) return;
    s->cancelled_ns = ts_now_ns();
    ts_images_cancel_all(s);
}

static void on_signal(uv_signal_t *signal, int number) {
    ts_server *s = signal->data;
    if (s->state == TS_STATE_DRAINING) {
        ts_log(TS_LOG_WARNING, "a second signal: what still runs is cancelled");
        cancel_all(s);
        return;
    }
    ts_sched_stats stats = {0};
    if (s->sched) ts_sched_get_stats(s->sched, &stats);
    stats.waiting += s->edit_pictures;
    ts_log(TS_LOG_INFO, "signal %d: %d pictures run and %d wait; the server stops after them", number,
           stats.running, stats.waiting);
    sd_notifyf(0, "STOPPING=1\nSTATUS=finishing %d pictures", stats.running + stats.waiting);
    atomic_store(&s->abandon, true);
    ts_http_drain(s->http);
    s->state = TS_STATE_DRAINING;
    s->signalled_ns = ts_now_ns();
    ts_server_drain_sched(s);
}

void ts_server_drain_sched(ts_server *s) {
    if (s->state == TS_STATE_DRAINING && s->sched && !s->edit_pictures) ts_sched_drain(s->sched);
}

/* ---- every quarter of a second ---- */

static void feed_watchdog(ts_server *s, uint64_t now) {
    if (!s->watchdog_ns || now - s->fed_ns < s->watchdog_ns) return;
    if (s->sched) {
        ts_sched_stats stats;
        ts_sched_get_stats(s->sched, &stats);
        uint64_t last = atomic_load_explicit(&s->last_event_ns, memory_order_relaxed);
        if (stats.groups_busy && now > last &&
            now - last > (uint64_t)s->config->server.stall_timeout * 1000000000u) {
            static ts_log_limit limit;
            ts_log_limited(&limit, 1, 10, TS_LOG_ERROR, "no progress for %lld s: the watchdog is not fed",
                           (long long)s->config->server.stall_timeout);
            return;
        }
    }
    s->fed_ns = now;
    sd_notify(0, "WATCHDOG=1");
}

static void on_tick(uv_timer_t *timer) {
    ts_server *s = timer->data;
    uint64_t now = ts_now_ns();
    feed_watchdog(s, now);
    ts_images_ping(s);
    /* Loading may take longer than systemd would wait for READY. */
    if (s->loading) sd_notify(0, "EXTEND_TIMEOUT_USEC=30000000");
    if (s->state != TS_STATE_DRAINING) return;
    uint64_t limit = (uint64_t)s->config->server.drain_timeout * 1000000000u;
    if (finished(s) || (s->cancelled_ns && now - s->cancelled_ns > LAST_WORDS_NS)) {
        stop(s);
    } else if (!s->loading && !s->cancelled_ns && now - s->signalled_ns > limit) {
        ts_log(TS_LOG_WARNING, "the drain timeout has passed: what still runs is cancelled");
        cancel_all(s);
    }
}

/* ---- loading ---- */

static void load(uv_work_t *work) {
    ts_server *s = work->data;
    ts_server_load(s, &s->load_error);
}

static void loaded(uv_work_t *work, int status) {
    ts_server *s = work->data;
    (void)status;
    s->loading = false;
    if (s->state == TS_STATE_DRAINING) s->load_error = (ts_error){0}; /* it was told to give up */
    if (s->stopping) return;
    if (s->state == TS_STATE_DRAINING) {
        stop(s);
        return;
    }
    if (s->load_error.code) {
        stop(s);
        return;
    }
    s->sched = s->loaded;
    s->state = TS_STATE_READY;
    ts_log(TS_LOG_INFO, "ready after %.2f s", ts_seconds(ts_now_ns() - s->started_ns));
    sd_notify(0, "READY=1\nSTATUS=ready");
}

/* ---- the beginning ---- */

static void on_wake(uv_async_t *async) {
    ts_images_take_events(async->data);
}

static void wake(void *arg) {
    ts_server *s = arg;
    uv_async_send(&s->wake);
}

static void on_done(void *arg, const ts_exchange *x, int route, int status, double seconds,
                    ts_ending ending) {
    static const char *const endings[] = {[TS_ENDING_WHOLE] = "",
                                          [TS_ENDING_LEFT] = ", the client left",
                                          [TS_ENDING_CUT] = ", cut off: too slow, or no HTTP",
                                          [TS_ENDING_FAILED] = ", broken off"};
    ts_server *s = arg;
    ts_metrics_count(&s->metrics, route, status, ending == TS_ENDING_LEFT);
    if (route >= 0 && ts_routes[route].makes_pictures && status == 200 && ending == TS_ENDING_WHOLE &&
        !ts_exchange_failed(x))
        ts_metrics_time(&s->metrics, seconds);
    if (!s->config->log.requests) return;
    const char *note = ts_exchange_note_text(x);
    ts_log(TS_LOG_INFO, "%s %s %.200s %d %.1f ms%s%s%s", ts_exchange_id(x), ts_exchange_method(x),
           ts_exchange_path(x), status, seconds * 1e3, *note ? ", " : "", note, endings[ending]);
}

static ts_code open_socket(const ts_config *c, int *ret_fd, ts_error *e) {
    char name[160];
    int port, fd = ts_listen_inherited();
    ts_code rc = fd >= 0 ? TS_OK : ts_listen(c->server.listen, &fd, e);
    if (rc) return rc;
    rc = ts_listen_name(fd, name, sizeof name, &port, e);
    if (!rc) ts_log(TS_LOG_INFO, "tesserad %s listens on %s", TS_VERSION, name);
    if (!rc && *c->server.port_file) {
        char text[16];
        int n = snprintf(text, sizeof text, "%d\n", port);
        rc = ts_write_file(c->server.port_file, text, (size_t)n, e);
    }
    if (rc) {
        close(fd);
        return rc;
    }
    *ret_fd = fd;
    return TS_OK;
}

static ts_code start_http(ts_server *s, ts_error *e) {
    const ts_config *c = s->config;
    int fd;
    ts_code rc = open_socket(c, &fd, e);
    if (rc) return rc;
    const ts_http_config http = {.loop = &s->loop,
                                 .fd = fd,
                                 .connection_limit = (unsigned)c->server.connection_limit,
                                 .header_timeout = (unsigned)c->server.header_timeout,
                                 .body_timeout = (unsigned)c->server.body_timeout,
                                 .idle_timeout = (unsigned)c->server.idle_timeout,
                                 .body_limit = (size_t)c->server.body_limit,
                                 .upload_limit = (size_t)c->server.upload_limit,
                                 .routes = ts_routes,
                                 .route_count = ts_route_count,
                                 .arg = s,
                                 .on_done = on_done,
                                 .admit = ts_images_admit};
    return ts_http_new(&http, &s->http, e);
}

/* All but the timers want descriptors. */
static ts_code init_handles(ts_server *s, ts_error *e) {
    int status = uv_async_init(&s->loop, &s->wake, on_wake);
    if (!status) status = uv_signal_init(&s->loop, &s->sigterm);
    if (!status) status = uv_signal_init(&s->loop, &s->sigint);
    if (!status) status = uv_signal_init(&s->loop, &s->sighup);
    if (status) return ts_fail_errno(e, TS_EIO, -status, "the event loop");
    uv_timer_init(&s->loop, &s->tick);
    uv_timer_init(&s->loop, &s->flush);
    s->wake.data = s->sigterm.data = s->sigint.data = s->sighup.data = s->tick.data = s->flush.data = s;
    s->load.data = s;
    return TS_OK;
}

/* As nohup leaves it. */
static bool is_ignored(int signal) {
    struct sigaction now;
    return sigaction(signal, NULL, &now) == 0 && now.sa_handler == SIG_IGN;
}

static ts_code start(ts_server *s, ts_error *e) {
    uint64_t interval;
    /* Signals first: who sees the port may already want to stop us. */
    if (uv_signal_start(&s->sigterm, on_signal, SIGTERM) || uv_signal_start(&s->sigint, on_signal, SIGINT) ||
        (!is_ignored(SIGHUP) && uv_signal_start(&s->sighup, on_signal, SIGHUP)) ||
        uv_timer_start(&s->tick, on_tick, TICK_MS, TICK_MS))
        return ts_fail(e, TS_EINTERNAL, "starting the loop");
    ts_code rc = start_http(s, e);
    if (rc) return rc;
    if (uv_queue_work(&s->loop, &s->load, load, loaded)) return ts_fail(e, TS_EINTERNAL, "starting to load");
    s->loading = true;
    if (sd_watchdog_enabled(0, &interval) > 0) s->watchdog_ns = interval * 1000 / 2;
    return TS_OK;
}

/* As many descriptors as connections may want; beyond the hard limit that is for the operator to know. */
static void raise_descriptors(const ts_config *c) {
    enum { OTHERS = 128 }; /* files of models and LoRAs, the loop's own */
    const rlim_t wanted = (rlim_t)c->server.connection_limit + OTHERS;
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= wanted) return;
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    if (setrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur < wanted)
        ts_log(TS_LOG_WARNING, "the limit of open files, %llu, is too low for connection_limit = %lld",
               (unsigned long long)limit.rlim_cur, (long long)c->server.connection_limit);
}

ts_code ts_server_run(const ts_config *config, ts_error *e) {
    ts_server s = {.config = config, .started_ns = ts_now_ns(), .started_at = (int64_t)time(NULL)};
    if (!config->models.path.count)
        return ts_fail_param(e, TS_EINVAL, "path", "no model is given: --model DIR, or path in [models]");
    ts_code rc = ts_setup_make(config, &s.setup, e);
    if (rc) return rc;
    signal(SIGPIPE, SIG_IGN);
    raise_descriptors(config);
    pthread_mutex_init(&s.events, NULL);
    if (uv_loop_init(&s.loop)) {
        pthread_mutex_destroy(&s.events);
        return ts_fail(e, TS_ENOMEM, "the event loop");
    }
    rc = init_handles(&s, e);
    if (!rc && (rc = ts_mailbox_new(SIZE_MAX, wake, &s, &s.mailbox))) ts_fail(e, rc, "the mailbox");
    if (!rc) rc = start(&s, e);
    if (rc) stop(&s);
    uv_run(&s.loop, UV_RUN_DEFAULT);

    /* What was cut off ends now, with events that nobody waits for. */
    ts_server_unload(&s);
    s.loading = false;
    if (s.mailbox) ts_images_take_events(&s);
    uv_run(&s.loop, UV_RUN_DEFAULT);
    ts_mailbox_free(s.mailbox);
    ts_assert(uv_loop_close(&s.loop) == 0);
    pthread_mutex_destroy(&s.events);
    if (!rc && s.load_error.code) {
        if (e) *e = s.load_error;
        rc = s.load_error.code;
    }
    if (!rc) ts_log(TS_LOG_INFO, "stopped");
    return rc;
}
