#include "engine/tensors.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/tensors_internal.h"
#include "kernels/convert.h"

const char *const ts_tensors_extensions[] = {".safetensors", ".ckpt", ".pt", ".bin", NULL};

static const tensor_type types[] = {
    {"F32", 32, true, TS_F32},     {"F16", 16, true, TS_F16},        {"BF16", 16, true, TS_BF16},
    {"F64", 64, true, TS_F64},     {"I64", 64, false, TS_F32},       {"U64", 64, false, TS_F32},
    {"I32", 32, false, TS_F32},    {"U32", 32, false, TS_F32},       {"I16", 16, false, TS_F32},
    {"U16", 16, false, TS_F32},    {"I8", 8, false, TS_F32},         {"U8", 8, false, TS_F32},
    {"BOOL", 8, false, TS_F32},    {"F8_E4M3", 8, true, TS_F8_E4M3}, {"F8_E5M2", 8, true, TS_F8_E5M2},
    {"F8_E8M0", 8, false, TS_F32}, {"C64", 64, false, TS_F32},       {"F4", 4, false, TS_F32},
    {"F6_E2M3", 6, false, TS_F32}, {"F6_E3M2", 6, false, TS_F32},
};

const tensor_type *tensors_type(const char *name) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].name, name) == 0) return &types[i];
    return NULL;
}

const char *tensors_type_name(ts_dtype dtype) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].used && types[i].dtype == dtype) return types[i].name;
    return NULL;
}

bool tensors_elements(const int64_t *shape, int rank, size_t *ret) {
    size_t n = 1;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0 || !ts_mul_size(n, (size_t)shape[i], &n)) return false;
    }
    *ret = n;
    return true;
}

ts_code tensors_add(ts_tensors *s, const tensor_type *type, const ts_file_tensor *t, ts_error *e) {
    char *name = ts_strdup(t->name);
    const bool room =
        name && (type->used ? ts_grow(&s->tensors, &s->capacity, s->count + 1, sizeof *s->tensors)
                            : ts_grow(&s->others, &s->other_capacity, s->other_count + 1, sizeof *s->others));
    if (!room) {
        free(name);
        return ts_fail(e, TS_ENOMEM, "the table of %zu tensors", s->count + s->other_count);
    }
    if (type->used) {
        ts_file_tensor *to = &s->tensors[s->count++];
        *to = *t;
        to->name = name;
        to->dtype = type->dtype;
    } else
        s->others[s->other_count++] =
            (ts_file_other){.name = name, .type = type->name, .data = t->data, .bytes = t->bytes};
    return TS_OK;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const ts_file_tensor *)a)->name, ((const ts_file_tensor *)b)->name);
}

static ts_code put_in_order(ts_tensors *s, ts_error *e) {
    if (s->count) qsort(s->tensors, s->count, sizeof *s->tensors, by_name);
    for (size_t i = 1; i < s->count; i++)
        if (strcmp(s->tensors[i - 1].name, s->tensors[i].name) == 0)
            return ts_fail(e, TS_EFORMAT, "tensor %.200s comes twice", s->tensors[i].name);
    return TS_OK;
}

/* A zip file's first bytes would also be the length of a safetensors header of 67 MB, but for its brace. */
static bool is_zip(const unsigned char *bytes, size_t size) {
    return size > 8 && memcmp(bytes, "PK\3\4", 4) == 0 && bytes[8] != '{';
}

/* What torch.save wrote before PyTorch 1.6: a pickle of a number that none else begins with. */
static bool is_old_torch(const unsigned char *bytes, size_t size) {
    return size > 14 && memcmp(bytes, "\x80\2\x8a\n\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14) == 0;
}

static bool is_lfs_pointer(const unsigned char *bytes, size_t size) {
    static const char first[] = "version https://git-lfs";
    return size >= sizeof first - 1 && memcmp(bytes, first, sizeof first - 1) == 0;
}

static ts_code parse(ts_tensors *s, const unsigned char *bytes, size_t size, ts_error *e) {
    if (is_zip(bytes, size)) return tensors_parse_torch(s, bytes, size, e);
    if (is_old_torch(bytes, size))
        return ts_fail(e, TS_EUNSUPPORTED, "a file of PyTorch before 1.6, which is not read: save it again");
    if (is_lfs_pointer(bytes, size))
        return ts_fail(e, TS_EFORMAT, "a Git LFS pointer in place of the file: `git lfs pull` fetches it");
    return tensors_parse_safetensors(s, bytes, size, e);
}

ts_code ts_tensors_parse(const char *path, const void *bytes, size_t size, ts_tensors **ret, ts_error *e) {
    ts_tensors *s = ts_new0(ts_tensors);
    if (!s) return ts_fail(e, TS_ENOMEM, "reading %s", path);
    s->size = size;
    ts_code rc = parse(s, bytes, size, e);
    if (!rc) rc = put_in_order(s, e);
    if (rc) {
        ts_tensors_free(s);
        return ts_error_context(e, rc, "%s", path);
    }
    *ret = s;
    return TS_OK;
}

ts_code ts_tensors_open(const char *path, ts_tensors **ret, ts_error *e) {
    ts_map map = {0};
    ts_code rc = ts_map_open(path, &map, e);
    if (rc) return rc;
    ts_tensors *s = NULL;
    rc = ts_tensors_parse(path, map.data, map.size, &s, e);
    /* A header that was lost or changed under the parser says nothing of the file. */
    ts_code changed = ts_map_check(&map, e);
    if (changed) rc = changed;
    if (rc) {
        ts_tensors_free(s);
        ts_map_close(&map);
        return rc;
    }
    s->map = map;
    *ret = s;
    return TS_OK;
}

size_t ts_tensors_size(const ts_tensors *s) {
    return s->size;
}

ts_code ts_tensors_check(const ts_tensors *s, ts_error *e) {
    return ts_map_check(&s->map, e);
}

void ts_tensors_free(ts_tensors *s) {
    if (!s) return;
    ts_map_close(&s->map);
    cJSON_Delete(s->metadata);
    for (size_t i = 0; i < s->count; i++) free((char *)(uintptr_t)s->tensors[i].name);
    for (size_t i = 0; i < s->other_count; i++) free((char *)(uintptr_t)s->others[i].name);
    for (size_t i = 0; i < s->owned_count; i++) free(s->owned[i]);
    free(s->owned);
    free(s->tensors);
    free(s->others);
    free(s);
}

size_t ts_tensors_count(const ts_tensors *s) {
    return s->count;
}

const ts_file_tensor *ts_tensors_at(const ts_tensors *s, size_t i) {
    ts_assert(i < s->count);
    return &s->tensors[i];
}

const ts_file_tensor *ts_tensors_find(const ts_tensors *s, const char *name) {
    if (!s->count) return NULL;
    ts_file_tensor key = {.name = name};
    return bsearch(&key, s->tensors, s->count, sizeof key, by_name);
}

void ts_tensors_rest(const ts_tensors *s) {
    ts_map_rest(&s->map);
}

const ts_file_other *ts_tensors_other(const ts_tensors *s, size_t i) {
    return i < s->other_count ? &s->others[i] : NULL;
}

ts_code ts_tensors_unread(ts_error *e, const char *name, const char *type) {
    return ts_fail(e, TS_EUNSUPPORTED, "%.200s is of type %s, and only F32, F16, BF16, F64 and F8 are read",
                   name, type);
}

static bool is_scale(const char *name) {
    static const char *const ends[] = {".scale_weight", ".weight_scale", ".comfy_quant"};
    const size_t n = strlen(name);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        const size_t k = strlen(ends[i]);
        if (n >= k && !strcmp(name + n - k, ends[i])) return true;
    }
    return false;
}

ts_code ts_tensors_check_scales(const ts_tensors *s, ts_error *e) {
    const char *name = NULL;
    for (size_t i = 0; i < s->count && !name; i++)
        if (is_scale(s->tensors[i].name)) name = s->tensors[i].name;
    for (size_t i = 0; i < s->other_count && !name; i++)
        if (is_scale(s->others[i].name)) name = s->others[i].name;
    return name
               ? ts_fail(e, TS_EUNSUPPORTED, "weights with scales beside them (%.200s) are not offered", name)
               : TS_OK;
}

const char *ts_tensors_metadata(const ts_tensors *s, const char *key) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(s->metadata, key));
}

size_t ts_file_tensor_elements(const ts_file_tensor *t) {
    return t->bytes / ts_dtype_size(t->dtype);
}

void ts_file_tensor_to_f32(const ts_file_tensor *t, float *out) {
    ts_convert(t->dtype, t->data, TS_F32, out, ts_file_tensor_elements(t));
}
