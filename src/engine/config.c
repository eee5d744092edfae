#include "engine/config.h"

#include <string.h>

static const cJSON *member(const cJSON *json, const char *key) {
    const cJSON *m = cJSON_GetObjectItemCaseSensitive(json, key);
    return m && !cJSON_IsNull(m) ? m : NULL;
}

static ts_code refuse(const cJSON *m, const char *key, ts_error *e) {
    if (cJSON_IsString(m))
        return ts_fail_param(e, TS_EFORMAT, key, "%s: \"%.64s\" is not supported", key, m->valuestring);
    if (cJSON_IsNumber(m))
        return ts_fail_param(e, TS_EFORMAT, key, "%s: %g is not supported", key, m->valuedouble);
    return ts_fail_param(e, TS_EFORMAT, key, "%s: this value is not supported", key);
}

ts_code ts_config_count(const cJSON *value, const char *key, int high, int *ret, ts_error *e) {
    /* Not valueint: cJSON saturates it. NaN fails both comparisons. */
    const double v = cJSON_IsNumber(value) ? value->valuedouble : 0;
    if (!(v >= 1 && v <= high) || (double)(int)v != v) return refuse(value, key, e);
    *ret = (int)v;
    return TS_OK;
}

ts_code ts_config_levels(const cJSON *json, const char *key, int otherwise, int n, int *ret, ts_error *e) {
    const cJSON *m = member(json, key);
    const int high = 1 << 16;
    int one = otherwise, values[64];
    if (n > 64) return ts_fail_param(e, TS_EFORMAT, key, "%s: too many levels", key);
    if (cJSON_IsArray(m)) {
        if (cJSON_GetArraySize(m) != n)
            return ts_fail_param(e, TS_EFORMAT, key, "%s: %d values for %d levels", key,
                                 cJSON_GetArraySize(m), n);
        for (int i = 0; i < n; i++) {
            ts_code rc = ts_config_count(cJSON_GetArrayItem(m, i), key, high, &values[i], e);
            if (rc) return rc;
        }
    } else {
        ts_code rc = m ? ts_config_count(m, key, high, &one, e) : TS_OK;
        if (rc) return rc;
        for (int i = 0; i < n; i++) values[i] = one;
    }
    memcpy(ret, values, (size_t)n * sizeof *ret);
    return TS_OK;
}

ts_code ts_config_numbers(const cJSON *json, const char *key, int n, double low, float *ret, bool *ret_there,
                          ts_error *e) {
    const cJSON *m = member(json, key), *v;
    *ret_there = m != NULL;
    if (!m) return TS_OK;
    if (!cJSON_IsArray(m) || cJSON_GetArraySize(m) != n) return refuse(m, key, e);
    cJSON_ArrayForEach(v, m) {
        if (!cJSON_IsNumber(v) || !(v->valuedouble >= low && v->valuedouble <= 1e6)) return refuse(v, key, e);
        *ret++ = (float)v->valuedouble;
    }
    return TS_OK;
}

ts_code ts_config_only_string(const cJSON *json, const char *key, const char *value, const char *also,
                              ts_error *e) {
    const cJSON *m = member(json, key);
    if (!m) return TS_OK;
    if (cJSON_IsString(m) && (!strcmp(m->valuestring, value) || (also && !strcmp(m->valuestring, also))))
        return TS_OK;
    return refuse(m, key, e);
}

ts_code ts_config_only_false(const cJSON *json, const char *key, ts_error *e) {
    const cJSON *m = member(json, key);
    return !m || cJSON_IsFalse(m) ? TS_OK : refuse(m, key, e);
}

ts_code ts_config_only_null(const cJSON *json, const char *key, ts_error *e) {
    const cJSON *m = member(json, key);
    return m ? refuse(m, key, e) : TS_OK;
}

ts_code ts_config_only_number(const cJSON *json, const char *key, double value, ts_error *e) {
    const cJSON *m = member(json, key);
    return !m || (cJSON_IsNumber(m) && m->valuedouble == value) ? TS_OK : refuse(m, key, e);
}

ts_code ts_config_bool(const cJSON *json, const char *key, bool otherwise, bool *ret, ts_error *e) {
    return ts_json_bool(json, key, otherwise && !cJSON_GetObjectItemCaseSensitive(json, key), ret, e);
}

ts_code ts_config_int(const cJSON *json, const char *key, int high, int otherwise, int *ret, ts_error *e) {
    const cJSON *m = member(json, key);
    if (!m && otherwise > 0) {
        *ret = otherwise;
        return TS_OK;
    }
    if (!m) return ts_fail_param(e, TS_EFORMAT, key, "%s is missing", key);
    return ts_config_count(m, key, high, ret, e);
}
