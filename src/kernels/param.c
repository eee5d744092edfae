#include "kernels/param.h"

#include <stdlib.h>
#include "base/alloc.h"
#include "kernels/convert.h"

static bool is_split_right(const ts_param *p) {
    const ts_param *a = p->parts[0], *b = p->parts[1];
    bool same = b && a->rank == p->rank && b->rank == p->rank;
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

size_t ts_param_bytes(const ts_param *p) {
    if (p->parts[0]) return ts_param_bytes(p->parts[0]) + ts_param_bytes(p->parts[1]);
    return ts_param_count(p) * ts_dtype_size(p->dtype);
}

static ts_code load_made(const ts_param *p, ts_dtype wanted, void *ret, ts_error *e) {
    if (wanted == TS_F32) return p->make(p->source, ret, e);
    const size_t n = ts_param_count(p);
    float *made = ts_alloc_aligned(n * sizeof *made);
    ts_code rc = made ? p->make(p->source, made, e)
                      : ts_fail(e, TS_ENOMEM, "the parameter %s", p->name ? p->name : "");
    if (!rc) ts_convert(TS_F32, made, wanted, ret, n);
    free(made);
    return rc;
}

ts_code ts_param_load(const ts_param *p, ts_dtype wanted, void *ret, ts_error *e) {
    if (p->parts[0]) {
        const size_t first = ts_param_count(p->parts[0]) * ts_dtype_size(wanted);
        ts_code rc = ts_param_load(p->parts[0], wanted, ret, e);
        return rc ? rc : ts_param_load(p->parts[1], wanted, (char *)ret + first, e);
    }
    if (p->make) return load_made(p, wanted, ret, e);
    ts_convert(p->dtype, p->data, wanted, ret, ts_param_count(p));
    return TS_OK;
}

static size_t padded(const ts_param *p) {
    return (ts_param_count(p) + 15) & ~(size_t)15;
}

static ts_code make_f32(void *memory, void *arg, ts_error *e) {
    const ts_param *p = arg;
    size_t n = ts_param_count(p);
    memset((float *)memory + n, 0, (padded(p) - n) * sizeof(float));
    return ts_param_load(p, TS_F32, memory, e);
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
