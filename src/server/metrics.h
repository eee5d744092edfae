/* Counters and gauges, in Prometheus' text format (version 0.0.4). */
#ifndef TS_SERVER_METRICS_H
#define TS_SERVER_METRICS_H

#include <stdbool.h>
#include <stdint.h>
#include "base/buffer.h"
#include "sched/sched.h"

#define TS_METRIC_ROUTES   32 /* the last one: no route */
#define TS_METRIC_STATUSES 24

/* Loop thread. Zero is a good start. */
typedef struct ts_metrics {
    struct {
        int status; /* 0: unused */
        uint64_t count;
    } answers[TS_METRIC_ROUTES][TS_METRIC_STATUSES];
    uint64_t refused; /* requests that the scheduler has not heard of, for want of room */
    uint64_t gone;                               /* clients that left before their answer */
    uint64_t seconds_buckets[16], seconds_count; /* of pictures' requests that were answered with 200 */
    double seconds_sum;
} ts_metrics;

/* route < 0: none; status 0: no answer. */
void ts_metrics_count(ts_metrics *m, int route, int status, bool gone);
void ts_metrics_time(ts_metrics *m, double seconds);

/* What is true now, besides the counters. */
typedef struct ts_metrics_now {
    const char *const *route_names; /* by route */
    int route_count;
    const ts_sched_stats *sched; /* NULL while loading */
    int ready, models;
    size_t connections;
    double uptime_s;
} ts_metrics_now;

ts_code ts_metrics_write(ts_buffer *b, const ts_metrics *m, const ts_metrics_now *now);

#endif
