#include "base/zip.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"

/* Of each record: what it begins with, and its bytes before what varies in length. */
#define LOCAL_SIGN     0x04034b50u
#define LOCAL_BYTES    30u
#define CENTRAL_SIGN   0x02014b50u
#define CENTRAL_BYTES  46u
#define END_SIGN       0x06054b50u
#define END_BYTES      22u
#define END64_SIGN     0x06064b50u
#define END64_BYTES    56u
#define LOCATOR_SIGN   0x07064b50u
#define LOCATOR_BYTES  20u
#define COMMENT_LENGTH 0xffffu
#define ELSEWHERE      0xffffffffu /* a number that the ZIP64 field has */
#define EXTRA_ZIP64    1u

typedef struct file {
    const unsigned char *bytes;
    size_t size;
} file;

static uint64_t little(const unsigned char *p, unsigned n) {
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}
static unsigned u16(const unsigned char *p) {
    return (unsigned)little(p, 2);
}
static uint64_t u32(const unsigned char *p) {
    return little(p, 4);
}

/* `n` bytes at `at`, which begin with `sign`; NULL when they are not there. */
static const unsigned char *record(file f, uint64_t at, size_t n, uint64_t sign) {
    if (at > f.size || n > f.size - at || u32(f.bytes + at) != sign) return NULL;
    return f.bytes + at;
}

typedef struct directory {
    uint64_t at, size, count;
} directory;

/* The end record is the last thing in a file, but for a comment of which it tells the length. */
static ts_code find_directory(file f, directory *ret, ts_error *e) {
    const unsigned char *end = NULL;
    size_t at = 0;
    for (size_t comment = 0; !end && comment <= COMMENT_LENGTH && f.size >= END_BYTES + comment; comment++) {
        at = f.size - END_BYTES - comment;
        end = record(f, at, END_BYTES, END_SIGN);
        if (end && u16(end + 20) != comment) end = NULL;
    }
    if (!end) return ts_fail(e, TS_EFORMAT, "a zip file without its end: it is truncated");
    directory d = {.at = u32(end + 16), .size = u32(end + 12), .count = u16(end + 10)};
    const unsigned char *locator =
        at >= LOCATOR_BYTES ? record(f, at - LOCATOR_BYTES, LOCATOR_BYTES, LOCATOR_SIGN) : NULL;
    if (locator) {
        const unsigned char *end64 = record(f, little(locator + 8, 8), END64_BYTES, END64_SIGN);
        if (!end64) return ts_fail(e, TS_EFORMAT, "a zip file whose ZIP64 record is missing");
        d = (directory){
            .at = little(end64 + 48, 8), .size = little(end64 + 40, 8), .count = little(end64 + 32, 8)};
    }
    if (d.at > f.size || d.size > f.size - d.at || d.count > d.size / CENTRAL_BYTES)
        return ts_fail(e, TS_EFORMAT, "a zip file whose directory is outside of it");
    *ret = d;
    return TS_OK;
}

/* Takes from the entry's ZIP64 field what its numbers leave to it. They come in this order. */
static bool read_zip64(const unsigned char *extra, size_t n, uint64_t *numbers[3]) {
    while (n >= 4) {
        const size_t length = u16(extra + 2);
        if (length > n - 4) return false;
        if (u16(extra) == EXTRA_ZIP64) {
            size_t at = 4;
            for (int i = 0; i < 3; i++) {
                if (*numbers[i] != ELSEWHERE) continue;
                if (at + 8 > length + 4) return false;
                *numbers[i] = little(extra + at, 8);
                at += 8;
            }
            return true;
        }
        extra += length + 4;
        n -= length + 4;
    }
    return true;
}

/* The entry whose record is at `at` of the directory; moves on. */
static ts_code read_entry(file f, directory d, uint64_t *at, ts_zip_entry *ret, ts_error *e) {
    const unsigned char *r = record(f, *at, CENTRAL_BYTES, CENTRAL_SIGN);
    if (!r) return ts_fail(e, TS_EFORMAT, "a zip file whose directory is broken");
    const size_t name = u16(r + 28), extra = u16(r + 30), length = CENTRAL_BYTES + name + extra + u16(r + 32);
    if (length > d.at + d.size - *at) return ts_fail(e, TS_EFORMAT, "a zip file whose directory is cut off");
    const char *text = (const char *)r + CENTRAL_BYTES;
    const int shown = name < 200 ? (int)name : 200;
    uint64_t size = u32(r + 24), packed = u32(r + 20), local = u32(r + 42);
    if (!read_zip64(r + CENTRAL_BYTES + name, extra, (uint64_t *[]){&size, &packed, &local}))
        return ts_fail(e, TS_EFORMAT, "%.*s: its ZIP64 field is broken", shown, text);
    if (u16(r + 10) || (u16(r + 8) & 1) || size != packed)
        return ts_fail(e, TS_EUNSUPPORTED, "%.*s is compressed or encrypted, which is not read", shown, text);
    const unsigned char *l = record(f, local, LOCAL_BYTES, LOCAL_SIGN);
    if (!l) return ts_fail(e, TS_EFORMAT, "%.*s has no header", shown, text);
    const uint64_t begin = local + LOCAL_BYTES + u16(l + 26) + u16(l + 28);
    if (begin > d.at || size > d.at - begin)
        return ts_fail(e, TS_EFORMAT, "%.*s is not inside the file", shown, text);
    *ret = (ts_zip_entry){.name = text, .name_length = name, .data = f.bytes + begin, .size = (size_t)size};
    *at += length;
    return TS_OK;
}

static int by_name(const void *a, const void *b) {
    const ts_zip_entry *x = a, *y = b;
    const size_t n = x->name_length < y->name_length ? x->name_length : y->name_length;
    const int order = memcmp(x->name, y->name, n);
    return order ? order : (x->name_length > y->name_length) - (x->name_length < y->name_length);
}

ts_code ts_zip_open(const void *bytes, size_t size, ts_zip *ret, ts_error *e) {
    const file f = {bytes, size};
    directory d = {0};
    ts_code rc = find_directory(f, &d, e);
    if (rc) return rc;
    ts_zip z = {.entries = ts_array0(ts_zip_entry, (size_t)d.count)};
    if (!z.entries) return ts_fail(e, TS_ENOMEM, "the directory of a zip file");
    uint64_t at = d.at;
    while (!rc && z.count < d.count) rc = read_entry(f, d, &at, &z.entries[z.count++], e);
    if (rc) {
        ts_zip_free(&z);
        return rc;
    }
    if (z.count) qsort(z.entries, z.count, sizeof *z.entries, by_name);
    *ret = z;
    return TS_OK;
}

void ts_zip_free(ts_zip *z) {
    free(z->entries);
    *z = (ts_zip){0};
}

const ts_zip_entry *ts_zip_find(const ts_zip *z, const char *name, size_t length) {
    const ts_zip_entry key = {.name = name, .name_length = length};
    return z->count ? bsearch(&key, z->entries, z->count, sizeof key, by_name) : NULL;
}
