/* Scheduler configs as the tests write them. */
#ifndef TS_TESTS_SCHEDULE_TEXT_H
#define TS_TESTS_SCHEDULE_TEXT_H

#include "fixture.h"

#include "engine/schedule.h"

static inline ts_schedule_config config_of(const cJSON *json) {
    ts_schedule_config c;
    ts_error e = {0};
    must(ts_schedule_config_read(json, &c, &e), &e);
    return c;
}

static inline ts_schedule_config config_text(const char *text) {
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    ts_schedule_config c = config_of(json);
    cJSON_Delete(json);
    return c;
}

#endif
