#include "engine/safetensors.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/buffer.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/tensors_internal.h"

#define HEADER_MAXIMUM 100000000u /* the reference implementation's own limit */
#define LENGTH_BYTES   8u

/* A tensor takes nine values or so: room for a hundred thousand of them. */
static const ts_json_limits limits = {.depth = 3, .values = 1000000, .integers = true};

typedef struct range {
    uint64_t begin, end;
    const char *name;
} range;

static int by_offset(const void *a, const void *b) {
    const range *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end); /* an empty tensor before the one that starts there */
}

/* A JSON number that is a whole number below 2^53, where doubles are exact. */
static bool whole(const cJSON *v, uint64_t *ret) {
    if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0 && v->valuedouble <= 0x1p53)) return false;
    uint64_t n = (uint64_t)v->valuedouble;
    if ((double)n != v->valuedouble) return false;
    *ret = n;
    return true;
}

/* One entry of the header. Fills *t but for data, *r, and *ret_type. */
static ts_code read_entry(const cJSON *entry, ts_file_tensor *t, range *r, const tensor_type **ret_type,
                          ts_error *e) {
    const char *name = entry->string;
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    if (!cJSON_IsObject(entry) || !cJSON_IsString(dtype) || !cJSON_IsArray(shape) || !cJSON_IsArray(offsets))
        return ts_fail(e, TS_EFORMAT, "tensor %.200s has no dtype, shape and data_offsets", name);

    const tensor_type *type = tensors_type(dtype->valuestring);
    if (!type)
        return ts_fail(e, TS_EFORMAT, "tensor %.200s has the unknown dtype %.32s", name, dtype->valuestring);

    const cJSON *v;
    uint64_t n;
    cJSON_ArrayForEach(v, shape) {
        if (t->rank == TS_FILE_RANK)
            return ts_fail(e, TS_EFORMAT, "tensor %.200s has more than %d dimensions", name, TS_FILE_RANK);
        if (!whole(v, &n)) return ts_fail(e, TS_EFORMAT, "tensor %.200s has a bad shape", name);
        t->shape[t->rank++] = (int64_t)n;
    }
    if (cJSON_GetArraySize(offsets) != 2 || !whole(cJSON_GetArrayItem(offsets, 0), &r->begin) ||
        !whole(cJSON_GetArrayItem(offsets, 1), &r->end) || r->begin > r->end)
        return ts_fail(e, TS_EFORMAT, "tensor %.200s has bad data_offsets", name);

    size_t elements, bits;
    if (!tensors_elements(t->shape, t->rank, &elements) || !ts_mul_size(elements, type->bits, &bits))
        return ts_fail(e, TS_EFORMAT, "the shape of tensor %.200s overflows", name);
    if (bits % 8 || bits / 8 != r->end - r->begin)
        return ts_fail(e, TS_EFORMAT,
                       "tensor %.200s: shape and dtype ask for %zu bytes, the offsets give %llu", name,
                       bits / 8, (unsigned long long)(r->end - r->begin));
    t->name = r->name = name;
    t->bytes = bits / 8;
    *ret_type = type;
    return TS_OK;
}

/* Every byte belongs to exactly one tensor. */
static ts_code check_cover(range *ranges, size_t n, size_t size, ts_error *e) {
    qsort(ranges, n, sizeof *ranges, by_offset);
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (ranges[i].end > size)
            return ts_fail(e, TS_EFORMAT, "tensor %.200s ends at byte %llu of %zu: the file is truncated",
                           ranges[i].name, (unsigned long long)ranges[i].end, size);
        if (ranges[i].begin != at)
            return ts_fail(e, TS_EFORMAT, "tensor %.200s %s", ranges[i].name,
                           ranges[i].begin < at ? "overlaps another one" : "leaves a hole before it");
        at = ranges[i].end;
    }
    if (at != size) return ts_fail(e, TS_EFORMAT, "%zu bytes after the last tensor", (size_t)(size - at));
    return TS_OK;
}

/* Text by text, or null. */
static ts_code check_metadata(const cJSON *metadata, ts_error *e) {
    bool good = cJSON_IsObject(metadata) || cJSON_IsNull(metadata);
    const cJSON *v;
    cJSON_ArrayForEach(v, metadata) good = good && cJSON_IsString(v);
    return good ? TS_OK : ts_fail(e, TS_EFORMAT, "__metadata__ holds something else than strings");
}

static ts_code read_header(ts_tensors *s, const cJSON *header, const unsigned char *data, size_t size,
                           ts_error *e) {
    size_t n = 0, covered = 0;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, header) n++;
    range *ranges = ts_array0(range, n);
    if (!ranges) return ts_fail(e, TS_ENOMEM, "the table of %zu tensors", n);
    ts_code rc = TS_OK;
    cJSON_ArrayForEach(entry, header) {
        if (strcmp(entry->string, "__metadata__") == 0) {
            rc = check_metadata(entry, e);
            if (rc) break;
            continue;
        }
        ts_file_tensor t = {0};
        const tensor_type *type = NULL;
        range *r = &ranges[covered];
        rc = read_entry(entry, &t, r, &type, e);
        if (rc) break;
        covered++;
        if (r->end > size) continue; /* too far: check_cover says so */
        t.data = data + r->begin;
        rc = tensors_add(s, type, &t, e);
        if (rc) break;
    }
    if (!rc) rc = check_cover(ranges, covered, size, e);
    free(ranges);
    return rc;
}

ts_code tensors_parse_safetensors(ts_tensors *s, const unsigned char *bytes, size_t size, ts_error *e) {
    if (size < LENGTH_BYTES) return ts_fail(e, TS_EFORMAT, "%zu bytes are too few for a header", size);
    uint64_t length = 0;
    for (unsigned i = 0; i < LENGTH_BYTES; i++) length |= (uint64_t)bytes[i] << (8 * i);
    if (size > LENGTH_BYTES && bytes[LENGTH_BYTES] != '{')
        return ts_fail(e, TS_EFORMAT, "not a safetensors file: its header does not begin with a brace");
    if (length > HEADER_MAXIMUM)
        return ts_fail(e, TS_EFORMAT, "the header claims %llu bytes; at most %u are read",
                       (unsigned long long)length, HEADER_MAXIMUM);
    if (length > size - LENGTH_BYTES)
        return ts_fail(e, TS_EFORMAT, "the header claims %llu bytes of a file of %zu",
                       (unsigned long long)length, size);
    if (!length) return ts_fail(e, TS_EFORMAT, "the header is empty");

    cJSON *header = NULL;
    ts_code rc = ts_json_parse((const char *)bytes + LENGTH_BYTES, (size_t)length, limits, &header, e);
    if (rc) return rc == TS_ENOMEM ? rc : ts_error_context(e, TS_EFORMAT, "header");
    size_t start = LENGTH_BYTES + (size_t)length;
    rc = read_header(s, header, bytes + start, size - start, e);
    s->metadata = cJSON_DetachItemFromObjectCaseSensitive(header, "__metadata__");
    cJSON_Delete(header);
    return rc;
}

/* The name as a JSON string, quotes and escapes included; cJSON_free it. */
static char *quoted(const char *name) {
    cJSON *v = cJSON_CreateString(name);
    char *text = v ? cJSON_PrintUnformatted(v) : NULL;
    cJSON_Delete(v);
    return text;
}

static ts_code append_entry(ts_buffer *b, const ts_file_tensor *t, size_t at) {
    char *name = quoted(t->name);
    if (!name) return TS_ENOMEM;
    ts_code rc = ts_buffer_printf(b, "%c%s:{\"dtype\":\"%s\",\"shape\":[", b->size > LENGTH_BYTES ? ',' : '{',
                                  name, tensors_type_name(t->dtype));
    cJSON_free(name);
    for (int i = 0; !rc && i < t->rank; i++)
        rc = ts_buffer_printf(b, i ? ",%lld" : "%lld", (long long)t->shape[i]);
    if (!rc) rc = ts_buffer_printf(b, "],\"data_offsets\":[%zu,%zu]}", at, at + t->bytes);
    return rc;
}

static ts_code check_writable(const ts_file_tensor *tensors, size_t n, ts_error *e) {
    for (size_t i = 0; i < n; i++) {
        const ts_file_tensor *t = &tensors[i];
        size_t elements, bytes;
        if (!t->name || !*t->name || strcmp(t->name, "__metadata__") == 0 ||
            !ts_utf8_valid(t->name, strlen(t->name)))
            return ts_fail(e, TS_EINVAL, "tensor %zu has no usable name", i);
        if (t->rank < 0 || t->rank > TS_FILE_RANK || !tensors_elements(t->shape, t->rank, &elements) ||
            !ts_mul_size(elements, ts_dtype_size(t->dtype), &bytes) || bytes != t->bytes)
            return ts_fail(e, TS_EINVAL, "the bytes of tensor %.200s do not match its shape", t->name);
        for (size_t k = 0; k < i; k++)
            if (strcmp(tensors[k].name, t->name) == 0)
                return ts_fail(e, TS_EINVAL, "tensor %.200s comes twice", t->name);
    }
    return TS_OK;
}

ts_code ts_safetensors_write(const char *path, const ts_file_tensor *tensors, size_t n, ts_error *e) {
    ts_code rc = check_writable(tensors, n, e);
    if (rc) return rc;
    ts_buffer b;
    ts_buffer_init(&b, SIZE_MAX / 2);
    unsigned char length[LENGTH_BYTES] = {0};
    rc = ts_buffer_append(&b, length, sizeof length);
    size_t at = 0;
    for (size_t width = 8; !rc && width; width /= 2)
        for (size_t i = 0; !rc && i < n; i++) {
            if (ts_dtype_size(tensors[i].dtype) != width) continue;
            rc = append_entry(&b, &tensors[i], at);
            at += tensors[i].bytes;
        }
    if (!rc) rc = ts_buffer_append(&b, n ? "}" : "{}", n ? 1 : 2);
    while (!rc && b.size % 8) rc = ts_buffer_append(&b, " ", 1);
    if (rc) goto done;
    for (unsigned i = 0; i < LENGTH_BYTES; i++)
        b.data[i] = (char)(unsigned char)((uint64_t)(b.size - LENGTH_BYTES) >> (8 * i));
    for (size_t width = 8; !rc && width; width /= 2)
        for (size_t i = 0; !rc && i < n; i++)
            if (ts_dtype_size(tensors[i].dtype) == width)
                rc = ts_buffer_append(&b, tensors[i].data, tensors[i].bytes);
    if (rc) goto done;
    rc = ts_write_file(path, b.data, b.size, e);
    ts_buffer_free(&b);
    return rc;
done:
    ts_buffer_free(&b);
    return ts_fail(e, rc, "writing %s", path);
}
