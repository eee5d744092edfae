/* Strict JSON on top of cJSON, for bodies and files that come from outside.
 *
 * cJSON alone accepts duplicate keys, 1e999, raw control characters, invalid UTF-8, a byte-order mark and
 * trailing bytes, and takes forty times the text in heap. A scan before the parse refuses all of that and
 * bounds depth and the number of values (RFC 8259, RFC 3629). */
#ifndef TS_BASE_JSON_H
#define TS_BASE_JSON_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/error.h"

typedef struct ts_json_limits {
    size_t depth;  /* arrays and objects inside each other */
    size_t values; /* scalars, arrays and objects in all */
    bool integers; /* numbers have neither a fraction nor an exponent */
} ts_json_limits;

/* TS_EINVAL with the byte offset for anything that is not strict JSON or beyond the limits, TS_ENOMEM.
 * cJSON_Delete the result. */
ts_code ts_json_parse(const char *text, size_t size, ts_json_limits limits, cJSON **ret, ts_error *e);

/* True when the bytes are well-formed UTF-8 (no surrogates, no overlong forms, no NUL). */
bool ts_utf8_valid(const char *text, size_t size);

/* Typed members of an object, for configuration files: absent or null gives the default; another type, or a
 * number outside [low, high], is TS_EINVAL with the key as param. Strings point into the object. */
ts_code ts_json_int(const cJSON *object, const char *key, int64_t low, int64_t high, int64_t otherwise,
                    int64_t *ret, ts_error *e);
ts_code ts_json_number(const cJSON *object, const char *key, double low, double high, double otherwise,
                       double *ret, ts_error *e);
ts_code ts_json_bool(const cJSON *object, const char *key, bool otherwise, bool *ret, ts_error *e);
ts_code ts_json_string(const cJSON *object, const char *key, const char *otherwise, const char **ret,
                       ts_error *e);

/* Reads, checks and parses a file of at most `maximum` bytes. Errors name the path. */
ts_code ts_json_file(const char *path, size_t maximum, ts_json_limits limits, cJSON **ret, ts_error *e);

/* The same for a file that Python's json module has written, which has words for numbers that JSON has
 * not: infinities are read as 1e300 and -1e300, beyond any range, and NaN as {}, which is no number. */
ts_code ts_json_python_file(const char *path, size_t maximum, ts_json_limits limits, cJSON **ret, ts_error *e);

#endif
