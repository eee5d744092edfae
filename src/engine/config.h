/* Reading a model's config files: the few shapes that values take there. Errors are TS_EFORMAT and name the
 * key. Absent keys take the default given, as in diffusers' own classes. */
#ifndef TS_ENGINE_CONFIG_H
#define TS_ENGINE_CONFIG_H

#include <cjson/cJSON.h>
#include "base/error.h"
#include "base/json.h"

/* An integer in 1..high; key is for the error. */
ts_code ts_config_count(const cJSON *value, const char *key, int high, int *ret, ts_error *e);

/* A number for all levels, or a list with one for each: fills ret[0..n-1]. */
ts_code ts_config_levels(const cJSON *json, const char *key, int otherwise, int n, int *ret, ts_error *e);

/* Fails unless the key is absent, null, or one of the values; `also` names what else is accepted, or NULL. For
 * keys whose other values would change the picture in a way that is not built. */
ts_code ts_config_only_string(const cJSON *json, const char *key, const char *value, const char *also,
                              ts_error *e);
ts_code ts_config_only_false(const cJSON *json, const char *key, ts_error *e);
ts_code ts_config_only_null(const cJSON *json, const char *key, ts_error *e);
ts_code ts_config_only_number(const cJSON *json, const char *key, double value, ts_error *e);

/* Absent: `otherwise`; null, which Python takes for false, is that. */
ts_code ts_config_bool(const cJSON *json, const char *key, bool otherwise, bool *ret, ts_error *e);

/* n numbers in low..1e6, *ret_there; or absent or null. */
ts_code ts_config_numbers(const cJSON *json, const char *key, int n, double low, float *ret, bool *ret_there,
                          ts_error *e);

/* An integer in 1..high that must be there (or null, with a default > 0). */
ts_code ts_config_int(const cJSON *json, const char *key, int high, int otherwise, int *ret, ts_error *e);

#endif
