#include "server/metrics.h"

#include <stdio.h>
#include <unistd.h>
#ifdef TS_HAVE_JEMALLOC
#include <jemalloc/jemalloc.h>
#endif

static const double bounds[16] = {0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300};

void ts_metrics_count(ts_metrics *m, int route, int status, bool gone) {
    int r = route >= 0 && route < TS_METRIC_ROUTES - 1 ? route : TS_METRIC_ROUTES - 1;
    if (gone) m->gone++;
    if (!status) return;
    for (int i = 0; i < TS_METRIC_STATUSES; i++) {
        if (m->answers[r][i].status && m->answers[r][i].status != status) continue;
        m->answers[r][i].status = status;
        m->answers[r][i].count++;
        return;
    }
}

void ts_metrics_time(ts_metrics *m, double seconds) {
    for (int i = 0; i < 16; i++) m->seconds_buckets[i] += seconds <= bounds[i];
    m->seconds_count++;
    m->seconds_sum += seconds;
}

static double resident_bytes(void) {
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    if (fscanf(f, "%*s %ld", &pages) != 1) pages = 0;
    fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static double allocated_bytes(void) {
#ifdef TS_HAVE_JEMALLOC
    uint64_t epoch = 1;
    size_t size = sizeof epoch, bytes = 0, bytes_size = sizeof bytes;
    mallctl("epoch", &epoch, &size, &epoch, size);
    if (mallctl("stats.allocated", &bytes, &bytes_size, NULL, 0) == 0) return (double)bytes;
#endif
    return -1;
}

static ts_code head(ts_buffer *b, const char *name, const char *type, const char *help) {
    return ts_buffer_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static ts_code answers(ts_buffer *b, const ts_metrics *m, const ts_metrics_now *now) {
    ts_code rc = head(b, "tessera_http_answers_total", "counter", "Answers by route and status.");
    for (int r = 0; r < TS_METRIC_ROUTES; r++)
        for (int i = 0; i < TS_METRIC_STATUSES && m->answers[r][i].status && !rc; i++)
            rc = ts_buffer_printf(b, "tessera_http_answers_total{route=\"%s\",status=\"%d\"} %llu\n",
                                  r < now->route_count ? now->route_names[r] : "other",
                                  m->answers[r][i].status, (unsigned long long)m->answers[r][i].count);
    return rc;
}

static ts_code times(ts_buffer *b, const ts_metrics *m) {
    ts_code rc = head(b, "tessera_request_seconds", "histogram",
                      "From a request's headers to the end of its answer, pictures only.");
    for (int i = 0; i < 16 && !rc; i++)
        rc = ts_buffer_printf(b, "tessera_request_seconds_bucket{le=\"%g\"} %llu\n", bounds[i],
                              (unsigned long long)m->seconds_buckets[i]);
    if (!rc)
        rc = ts_buffer_printf(b,
                              "tessera_request_seconds_bucket{le=\"+Inf\"} %llu\n"
                              "tessera_request_seconds_sum %.6f\ntessera_request_seconds_count %llu\n",
                              (unsigned long long)m->seconds_count, m->seconds_sum,
                              (unsigned long long)m->seconds_count);
    return rc;
}

typedef struct row {
    const char *name, *type, *help;
    double value; /* < 0: left out */
} row;

ts_code ts_metrics_write(ts_buffer *b, const ts_metrics *m, const ts_metrics_now *now) {
    const ts_sched_stats none = {0}, *s = now->sched ? now->sched : &none;
    const row rows[] = {
        {"tessera_ready", "gauge", "1 while requests are accepted.", now->ready},
        {"tessera_uptime_seconds", "gauge", "Since the start.", now->uptime_s},
        {"tessera_models", "gauge", "Models that are loaded.", now->models},
        {"tessera_connections", "gauge", "Open connections.", (double)now->connections},
        {"tessera_clients_gone_total", "counter", "Clients that left before their answer.", (double)m->gone},
        {"tessera_requests_accepted_total", "counter", "Requests for pictures that were queued.",
         (double)s->accepted},
        {"tessera_requests_refused_total", "counter",
         "Requests that found the queue full or the server stopping.", (double)(s->refused + m->refused)},
        {"tessera_requests_completed_total", "counter", "Requests whose pictures were all made.",
         (double)s->completed},
        {"tessera_requests_failed_total", "counter", "Requests that failed.", (double)s->failed},
        {"tessera_requests_cancelled_total", "counter", "Requests that were cancelled.",
         (double)s->cancelled},
        {"tessera_pictures_total", "counter", "Pictures made.", (double)s->pictures},
        {"tessera_batches_total", "counter", "Batches run; pictures by batches is the mean batch.",
         (double)s->batches},
        {"tessera_evaluations_total", "counter", "Evaluations of the U-Net.", (double)s->evaluations},
        {"tessera_evaluations_synchronous_total", "counter", "Those of them in which all devices met.",
         (double)s->synchronous},
        {"tessera_device_busy_seconds_total", "counter", "Device seconds of running jobs.", s->busy_s},
        {"tessera_device_wait_seconds_total", "counter", "Those of them spent waiting for other devices.",
         s->wait_s},
        {"tessera_pictures_waiting", "gauge", "Pictures in the queue.", s->waiting},
        {"tessera_pictures_running", "gauge", "Pictures being made.", s->running},
        {"tessera_lora_variants", "gauge", "Models with LoRA files that are kept.", s->variants},
        {"tessera_groups", "gauge", "Groups of devices.", s->groups},
        {"tessera_groups_busy", "gauge", "Groups that run a batch.", s->groups_busy},
        {"tessera_resident_bytes", "gauge", "Memory of the process.", resident_bytes()},
        {"tessera_allocated_bytes", "gauge", "Memory handed out by the allocator.", allocated_bytes()},
    };
    ts_code rc = ts_buffer_printf(b,
                                  "# HELP tessera_info Which server this is.\n# TYPE tessera_info gauge\n"
                                  "tessera_info{version=\"%s\"} 1\n",
                                  TS_VERSION);
    for (size_t i = 0; i < sizeof rows / sizeof *rows && !rc; i++) {
        if (rows[i].value < 0) continue;
        rc = head(b, rows[i].name, rows[i].type, rows[i].help);
        if (!rc) rc = ts_buffer_printf(b, "%s %.15g\n", rows[i].name, rows[i].value);
    }
    if (!rc) rc = answers(b, m, now);
    return rc ? rc : times(b, m);
}
