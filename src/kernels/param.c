#include "kernels/param.h"

#include "base/alloc.h"

ts_code ts_param_check(const ts_param *p, ts_error *e) {
    const char *name = p->name ? p->name : "";
    if (p->rank < 1 || p->rank > 4 || !p->data) return ts_fail_param(e, TS_EINVAL, name, "not a parameter");
    if ((int)p->dtype < 0 || p->dtype >= TS_DTYPE_COUNT)
        return ts_fail_param(e, TS_EINVAL, name, "unknown dtype of a parameter");
    if (p->more && (p->first < 1 || p->first >= p->shape[0]))
        return ts_fail_param(e, TS_EINVAL, name, "a parameter's second part is out of range");
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

static void widen(ts_dtype dtype, const void *data, size_t first, size_t n, float *ret) {
    const unsigned char *from = (const unsigned char *)data + first * ts_dtype_size(dtype);
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

void ts_param_load(const ts_param *p, size_t first, size_t n, float *ret) {
    const size_t edge = p->more ? ts_param_count(p) / (size_t)p->shape[0] * (size_t)p->first : SIZE_MAX;
    const size_t here = first >= edge ? 0 : n < edge - first ? n : edge - first;
    if (here) widen(p->dtype, p->data, first, here, ret);
    if (here < n) widen(p->dtype, p->more, first + here - edge, n - here, ret + here);
}

static size_t padded(const ts_param *p) {
    return (ts_param_count(p) + 15) & ~(size_t)15;
}

static ts_code make_f32(void *memory, void *arg, ts_error *e) {
    const ts_param *p = arg;
    size_t n = ts_param_count(p);
    (void)e;
    ts_param_load(p, 0, n, memory);
    memset((float *)memory + n, 0, (padded(p) - n) * sizeof(float));
    return TS_OK;
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
