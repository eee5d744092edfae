#include "kernels/param.h"

#include <stdlib.h>
#include "base/alloc.h"

static bool is_split_right(const ts_param *p) {
    const ts_param *a = p->parts[0], *b = p->parts[1];
    bool same = b && a->rank == p->rank && b->rank == p->rank && a->dtype == p->dtype && b->dtype == p->dtype;
    for (int i = 1; same && i < p->rank; i++) same = a->shape[i] == p->shape[i] && b->shape[i] == p->shape[i];
    return same && a->shape[0] > 0 && a->shape[0] < p->shape[0] && b->shape[0] == p->shape[0] - a->shape[0];
}

ts_code ts_param_check(const ts_param *p, ts_error *e) {
    const char *name = p->name ? p->name : "";
    if (p->rank < 1 || p->rank > 4 || !(p->data || p->make || p->parts[0]))
        return ts_fail_param(e, TS_EINVAL, name, "not a parameter");
    if ((int)p->dtype < 0 || p->dtype >= TS_DTYPE_COUNT)
        return ts_fail_param(e, TS_EINVAL, name, "unknown dtype of a parameter");
    if (p->parts[0] && !is_split_right(p))
        return ts_fail_param(e, TS_EINVAL, name, "a parameter is not what its parts are together");
    size_t n = 4;
    for (int i = 0; i < p->rank; i++)
        if (p->shape[i] < 1 || !ts_mul_size(n, (size_t)p->shape[i], &n) || n > PTRDIFF_MAX)
            return ts_fail_param(e, TS_EINVAL, name, "a parameter's shape is out of range");
    return TS_OK;
}

size_t ts_param_count(const ts_param *p) {
    size_t n = 1;
    for (int i = 0; i < p->rank; i++) n *= (size_t)p->shape[i];
    return n;
}

static void widen(ts_dtype dtype, const void *data, size_t n, float *ret) {
    const unsigned char *from = data;
    if (dtype == TS_F32) {
        memcpy(ret, from, n * sizeof *ret);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, from + 2 * i, sizeof h);
        ret[i] = dtype == TS_BF16 ? ts_bf16_to_f32(h) : ts_f16_to_f32(h);
    }
}

ts_code ts_param_load(const ts_param *p, float *ret, ts_error *e) {
    const size_t n = ts_param_count(p);
    if (p->parts[0]) {
        ts_code rc = ts_param_load(p->parts[0], ret, e);
        return rc ? rc : ts_param_load(p->parts[1], ret + ts_param_count(p->parts[0]), e);
    }
    if (p->data) {
        widen(p->dtype, p->data, n, ret);
        return TS_OK;
    }
    if (p->dtype == TS_F32) return p->make(p->source, ret, e);
    void *narrow = ts_alloc_aligned(n * ts_dtype_size(p->dtype));
    if (!narrow) return ts_fail(e, TS_ENOMEM, "the parameter %s", p->name ? p->name : "");
    ts_code rc = p->make(p->source, narrow, e);
    if (!rc) widen(p->dtype, narrow, n, ret);
    free(narrow);
    return rc;
}

static size_t padded(const ts_param *p) {
    return (ts_param_count(p) + 15) & ~(size_t)15;
}

static ts_code make_f32(void *memory, void *arg, ts_error *e) {
    const ts_param *p = arg;
    size_t n = ts_param_count(p);
    memset((float *)memory + n, 0, (padded(p) - n) * sizeof(float));
    return ts_param_load(p, memory, e);
}

ts_code ts_param_f32(ts_store *store, const ts_param *p, const float **ret, ts_error *e) {
    static const char layout[] = "f32";
    const void *entry = NULL;
    if (!p) {
        *ret = NULL;
        return TS_OK;
    }
    ts_code rc = ts_store_get(store, (ts_store_key){p, layout, sizeof layout}, padded(p) * sizeof(float),
                              make_f32, (void *)(uintptr_t)p, &entry, e);
    if (rc == TS_OK) *ret = entry;
    return rc;
}
