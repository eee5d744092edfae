#include "base/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"

/* ---- UTF-8 ---- */

/* Bytes of the well-formed character at s (n of them are there), 0 when it is not one. (RFC 3629, the table
 * of section 4.) */
static size_t utf8_char(const unsigned char *s, size_t n) {
    unsigned char a = s[0], low = 0x80, high = 0xbf;
    size_t size;
    if (a < 0x80) return 1;
    if (a >= 0xc2 && a <= 0xdf)
        size = 2;
    else if (a >= 0xe0 && a <= 0xef)
        size = 3;
    else if (a >= 0xf0 && a <= 0xf4)
        size = 4;
    else
        return 0;
    if (n < size) return 0;
    if (a == 0xe0) low = 0xa0;  /* overlong */
    if (a == 0xed) high = 0x9f; /* surrogates */
    if (a == 0xf0) low = 0x90;  /* overlong */
    if (a == 0xf4) high = 0x8f; /* beyond U+10FFFF */
    if (s[1] < low || s[1] > high) return 0;
    for (size_t i = 2; i < size; i++)
        if (s[i] < 0x80 || s[i] > 0xbf) return 0;
    return size;
}

bool ts_utf8_valid(const char *text, size_t size) {
    const unsigned char *s = (const unsigned char *)text;
    for (size_t i = 0, n; i < size; i += n) {
        n = utf8_char(s + i, size - i);
        if (n == 0 || s[i] == 0) return false;
    }
    return true;
}

/* ---- the scan ---- */

typedef struct scan {
    const unsigned char *s;
    size_t at, size, depth, values;
    ts_json_limits limits;
    const char *wrong;
} scan;

static bool fail(scan *p, const char *wrong) {
    if (!p->wrong) p->wrong = wrong;
    return false;
}

static int peek(const scan *p) {
    return p->at < p->size ? p->s[p->at] : -1;
}

static void space(scan *p) {
    while (p->at < p->size && strchr(" \t\r\n", p->s[p->at]) && p->s[p->at]) p->at++;
}

static bool digits(scan *p) {
    size_t begin = p->at;
    while (peek(p) >= '0' && peek(p) <= '9') p->at++;
    return p->at > begin || fail(p, "a digit is missing");
}

static bool number(scan *p) {
    size_t begin = p->at;
    if (peek(p) == '-') p->at++;
    if (peek(p) == '0') {
        p->at++;
        if (peek(p) >= '0' && peek(p) <= '9') return fail(p, "a number begins with 0");
    } else if (!digits(p))
        return false;
    const size_t end = p->at; /* of an integer */
    if (peek(p) == '.') {
        p->at++;
        if (!digits(p)) return false;
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        p->at++;
        if (peek(p) == '+' || peek(p) == '-') p->at++;
        if (!digits(p)) return false;
    }
    if (p->limits.integers && p->at > end) return fail(p, "not an integer");
    /* cJSON reads at most 63 characters of a number and then goes on as if it ended there. */
    char copy[64];
    size_t n = p->at - begin;
    if (n >= sizeof copy) return fail(p, "a number is too long");
    memcpy(copy, p->s + begin, n);
    copy[n] = 0;
    return isfinite(strtod(copy, NULL)) || fail(p, "a number is out of range");
}

static int hex4(const unsigned char *s) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
        int c = s[i], d = c >= '0' && c <= '9'                 ? c - '0'
                          : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                               : -1;
        if (d < 0) return -1;
        v = v * 16 + d;
    }
    return v;
}

static bool escape(scan *p) {
    int c = p->at + 1 < p->size ? p->s[p->at + 1] : -1;
    if (c != 'u') {
        if (c <= 0 || !strchr("\"\\/bfnrt", c)) return fail(p, "an unknown escape");
        p->at += 2;
        return true;
    }
    int v = p->size - p->at >= 6 ? hex4(p->s + p->at + 2) : -1;
    if (v < 0) return fail(p, "an incomplete \\u escape");
    if (v == 0) return fail(p, "\\u0000 is not accepted");
    if (v >= 0xdc00 && v <= 0xdfff) return fail(p, "half of a surrogate pair");
    p->at += 6;
    if (v < 0xd800 || v > 0xdbff) return true;
    int low =
        p->size - p->at >= 6 && p->s[p->at] == '\\' && p->s[p->at + 1] == 'u' ? hex4(p->s + p->at + 2) : -1;
    if (low < 0xdc00 || low > 0xdfff) return fail(p, "half of a surrogate pair");
    p->at += 6;
    return true;
}

static bool string(scan *p) {
    if (peek(p) != '"') return fail(p, "a string is missing");
    p->at++;
    for (;;) {
        int c = peek(p);
        if (c < 0) return fail(p, "a string does not end");
        if (c == '"') break;
        if (c < 0x20) return fail(p, "a control character in a string");
        if (c == '\\') {
            if (!escape(p)) return false;
            continue;
        }
        size_t n = utf8_char(p->s + p->at, p->size - p->at);
        if (!n) return fail(p, "invalid UTF-8");
        p->at += n;
    }
    p->at++;
    return true;
}

static bool word(scan *p, const char *text) {
    size_t n = strlen(text);
    if (p->size - p->at < n || memcmp(p->s + p->at, text, n) != 0) return fail(p, "not a value");
    p->at += n;
    return true;
}

static bool value(scan *p);

/* After '[' or '{': members until the closing bracket. */
static bool members(scan *p, bool object) {
    const int close = object ? '}' : ']';
    if (++p->depth > p->limits.depth) return fail(p, "nested too deeply");
    p->at++;
    space(p);
    if (peek(p) == close) {
        p->at++;
        p->depth--;
        return true;
    }
    for (;;) {
        space(p);
        if (object) {
            if (!string(p)) return false;
            space(p);
            if (peek(p) != ':') return fail(p, "':' is missing");
            p->at++;
        }
        if (!value(p)) return false;
        space(p);
        int c = peek(p);
        if (c != ',' && c != close)
            return fail(p, object ? "',' or '}' is missing" : "',' or ']' is missing");
        p->at++;
        if (c == close) break;
    }
    p->depth--;
    return true;
}

/* Recursion is bounded by limits.depth. */
static bool value(scan *p) {
    if (++p->values > p->limits.values) return fail(p, "too many values");
    space(p);
    switch (peek(p)) {
    case '{': return members(p, true);
    case '[': return members(p, false);
    case '"': return string(p);
    case 't': return word(p, "true");
    case 'f': return word(p, "false");
    case 'n': return word(p, "null");
    case '-':
    case '0':
    case '1':
    case '2':
    case '3':
    case '4':
    case '5':
    case '6':
    case '7':
    case '8':
    case '9': return number(p);
    default: return fail(p, "not a value");
    }
}

/* ---- duplicate keys ---- */

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* TS_EINVAL names the key; sorted, so that a large vocabulary does not take quadratic time. */
static ts_code unique_keys(const cJSON *node, ts_error *e) {
    const cJSON *child = NULL;
    size_t n = 0;
    cJSON_ArrayForEach(child, node) {
        n++;
        if (child->child) {
            ts_code rc = unique_keys(child, e);
            if (rc) return rc;
        }
    }
    if (!cJSON_IsObject(node) || n < 2) return TS_OK;
    const char **keys = ts_array0(const char *, n);
    if (!keys) return ts_fail(e, TS_ENOMEM, "reading JSON");
    n = 0;
    cJSON_ArrayForEach(child, node) keys[n++] = child->string;
    qsort(keys, n, sizeof *keys, by_text);
    ts_code rc = TS_OK;
    for (size_t i = 1; i < n && !rc; i++)
        if (!strcmp(keys[i - 1], keys[i]))
            rc = ts_fail_param(e, TS_EINVAL, keys[i], "the key \"%.64s\" appears twice", keys[i]);
    free(keys);
    return rc;
}

ts_code ts_json_parse(const char *text, size_t size, ts_json_limits limits, cJSON **ret, ts_error *e) {
    scan p = {.s = (const unsigned char *)text, .size = size, .limits = limits};
    bool good = value(&p);
    if (good) {
        space(&p);
        if (p.at != size) good = fail(&p, "more text after the value");
    }
    if (!good) return ts_fail(e, TS_EINVAL, "invalid JSON at byte %zu: %s", p.at, p.wrong);
    const char *end = NULL;
    cJSON *json = cJSON_ParseWithLengthOpts(text, size, &end, 0);
    /* The scan accepts nothing that cJSON does not, so what is left is memory. */
    if (!json) return ts_fail(e, TS_ENOMEM, "reading JSON");
    ts_code rc = unique_keys(json, e);
    if (rc) {
        cJSON_Delete(json);
        return rc;
    }
    *ret = json;
    return TS_OK;
}

/* ---- typed members ---- */

static const cJSON *member(const cJSON *object, const char *key) {
    const cJSON *m = cJSON_GetObjectItemCaseSensitive(object, key);
    return m && !cJSON_IsNull(m) ? m : NULL;
}

ts_code ts_json_number(const cJSON *object, const char *key, double low, double high, double otherwise,
                       double *ret, ts_error *e) {
    const cJSON *m = member(object, key);
    if (m && !cJSON_IsNumber(m)) return ts_fail_param(e, TS_EINVAL, key, "%s must be a number", key);
    double v = m ? m->valuedouble : otherwise;
    if (m && !(v >= low && v <= high))
        return ts_fail_param(e, TS_EINVAL, key, "%s must be from %g to %g, not %g", key, low, high, v);
    *ret = v;
    return TS_OK;
}

ts_code ts_json_int(const cJSON *object, const char *key, int64_t low, int64_t high, int64_t otherwise,
                    int64_t *ret, ts_error *e) {
    const cJSON *m = member(object, key);
    /* Beyond 2^53 a double no longer tells one integer from the next. */
    const double exact = 9007199254740992.0;
    if (!m) {
        *ret = otherwise;
        return TS_OK;
    }
    double v = cJSON_IsNumber(m) ? m->valuedouble : NAN;
    if (!(v >= -exact && v <= exact) || v != floor(v))
        return ts_fail_param(e, TS_EINVAL, key, "%s must be an integer", key);
    if ((int64_t)v < low || (int64_t)v > high)
        return ts_fail_param(e, TS_EINVAL, key, "%s must be from %lld to %lld, not %.0f", key, (long long)low,
                             (long long)high, v);
    *ret = (int64_t)v;
    return TS_OK;
}

ts_code ts_json_bool(const cJSON *object, const char *key, bool otherwise, bool *ret, ts_error *e) {
    const cJSON *m = member(object, key);
    if (m && !cJSON_IsBool(m)) return ts_fail_param(e, TS_EINVAL, key, "%s must be true or false", key);
    *ret = m ? cJSON_IsTrue(m) : otherwise;
    return TS_OK;
}

ts_code ts_json_string(const cJSON *object, const char *key, const char *otherwise, const char **ret,
                       ts_error *e) {
    const cJSON *m = member(object, key);
    if (m && !cJSON_IsString(m)) return ts_fail_param(e, TS_EINVAL, key, "%s must be a string", key);
    *ret = m ? m->valuestring : otherwise;
    return TS_OK;
}

static void ease_python(char *text, size_t size) {
    static const struct {
        const char *word, *is;
    } words[] = {{"-Infinity", "-1e300"}, {"Infinity", "1e300"}, {"NaN", "{}"}};
    bool quoted = false;
    for (size_t i = 0; i < size; i++) {
        if (quoted && text[i] == '\\')
            i++;
        else if (text[i] == '"')
            quoted = !quoted;
        else if (!quoted && strchr("-IN", text[i]))
            for (size_t k = 0; k < sizeof words / sizeof *words; k++) {
                const size_t n = strlen(words[k].word), m = strlen(words[k].is);
                if (n > size - i || memcmp(text + i, words[k].word, n) != 0) continue;
                memcpy(text + i, words[k].is, m);
                memset(text + i + m, ' ', n - m);
                i += n - 1;
                break;
            }
    }
}

static ts_code read_file(const char *path, size_t maximum, ts_json_limits limits, bool python, cJSON **ret,
                         ts_error *e) {
    char *text;
    size_t size;
    ts_code rc = ts_read_file(path, maximum, &text, &size, e);
    if (rc) return rc;
    if (python) ease_python(text, size);
    rc = ts_json_parse(text, size, limits, ret, e);
    free(text);
    return rc ? ts_error_context(e, rc == TS_EINVAL ? TS_EFORMAT : rc, "%s", path) : TS_OK;
}

ts_code ts_json_file(const char *path, size_t maximum, ts_json_limits limits, cJSON **ret, ts_error *e) {
    return read_file(path, maximum, limits, false, ret, e);
}
ts_code ts_json_python_file(const char *path, size_t maximum, ts_json_limits limits, cJSON **ret,
                            ts_error *e) {
    return read_file(path, maximum, limits, true, ret, e);
}
