/* What the tensors of a module come to: their shapes, and the change of a parameter. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "engine/lora.h"
#include "kernels/gemm.h"

/* Of a side; the product of two fits into 64 bits. */
#define MOST ((int64_t)1 << 30)

/* ---- shapes ---- */

typedef struct extent {
    int64_t rows, channels, kernel, rank;
} extent;

/* [rows][columns] or [rows][columns][k][k], not empty. */
static bool is_matrix(const ts_file_tensor *t) {
    if (t->rank != 2 && (t->rank != 4 || t->shape[2] != t->shape[3])) return false;
    for (int i = 0; i < t->rank; i++)
        if (t->shape[i] < 1 || t->shape[i] > MOST) return false;
    return true;
}

static int64_t kernel_of(const ts_file_tensor *t) {
    return t->rank == 4 ? t->shape[2] : 1;
}

/* A Tucker core stands between matrices without a kernel; LoHa's and LoKr's a is turned then. */
static bool measure_core(const ts_lora_matrix *x, bool turned, extent *ret) {
    const ts_file_tensor *a = x->a, *b = x->b, *core = x->core;
    if (!is_matrix(core) || kernel_of(a) != 1 || kernel_of(b) != 1) return false;
    /* Its product with one side is larger than either: no trainer's rank is more than both sides. */
    const int64_t rows = a->shape[turned ? 1 : 0], most = rows > b->shape[1] ? rows : b->shape[1];
    if (core->shape[0] > most || core->shape[1] > most) return false;
    if (core->shape[0] != a->shape[turned ? 0 : 1] || core->shape[1] != b->shape[0]) return false;
    *ret = (extent){rows, b->shape[1], kernel_of(core), b->shape[0]};
    return true;
}

static bool measure_matrix(const ts_lora_matrix *x, ts_lora_kind kind, extent *ret) {
    const ts_file_tensor *a = x->a, *b = x->b, *w = x->whole;
    *ret = (extent){0};
    if (w && (a || b || x->core)) return false;
    if (w && w->rank == 1 && kind == TS_LORA_DIFFERENCE) {
        *ret = (extent){w->shape[0], 1, 1, 0};
        return w->shape[0] >= 1 && w->shape[0] <= MOST;
    }
    if (w) {
        if (is_matrix(w)) *ret = (extent){w->shape[0], w->shape[1], kernel_of(w), 0};
        if (w->rank == 2 && kind == TS_LORA_KRONECKER) ret->kernel = 0;
        return is_matrix(w);
    }
    if (!a || !b || !is_matrix(a) || !is_matrix(b)) return false;
    if (x->core) return measure_core(x, kind != TS_LORA_PLAIN, ret);
    *ret = (extent){a->shape[0], b->shape[1], kernel_of(b), b->shape[0]};
    /* LyCORIS and ComfyUI write the kernel of a convolution into the columns. */
    if (b->rank == 2) ret->kernel = 0;
    return kernel_of(a) == 1 && a->shape[1] == b->shape[0];
}

static int64_t columns_of(const extent *x) {
    return x->kernel ? x->channels * x->kernel * x->kernel : x->channels;
}

static ts_code misfit(const ts_lora_module *m, ts_error *e) {
    return ts_fail(e, TS_EFORMAT, "%.200s: the layer's matrices do not fit together, or one is missing",
                   m->key);
}

ts_code ts_lora_measure(ts_lora_module *m, ts_error *e) {
    const bool two = m->kind == TS_LORA_HADAMARD || m->kind == TS_LORA_KRONECKER;
    extent x[2] = {{0}};
    for (int i = 0; i < 1 + two; i++)
        if (!measure_matrix(&m->matrix[i], m->kind, &x[i]) || x[i].kernel > 64) return misfit(m, e);
    m->rows = x[0].rows;
    m->columns = columns_of(&x[0]);
    m->kernel = x[0].kernel;
    m->rank = x[0].rank ? x[0].rank : x[1].rank;
    if (m->kind == TS_LORA_HADAMARD && (x[1].rows != m->rows || columns_of(&x[1]) != m->columns))
        return misfit(m, e);
    if (m->columns > MOST || columns_of(&x[1]) > MOST) return misfit(m, e);
    if (m->kind == TS_LORA_KRONECKER) {
        if (x[0].kernel > 1) return misfit(m, e);
        m->rows *= x[1].rows;
        m->columns *= columns_of(&x[1]);
        m->kernel = x[1].kernel;
    }
    return m->rows > MOST || m->columns > MOST ? misfit(m, e) : TS_OK;
}

/* ---- elements ---- */

static ts_code no_memory(ts_error *e) {
    return ts_fail(e, TS_ENOMEM, "fusing a LoRA");
}

static float *widen(const ts_file_tensor *t, double factor) {
    size_t n = ts_file_tensor_elements(t);
    float *ret = ts_array0(float, n);
    if (!ret) return NULL;
    ts_file_tensor_to_f32(t, ret);
    for (size_t i = 0; factor != 1 && i < n; i++) ret[i] = (float)((double)ret[i] * factor);
    return ret;
}

static float *turn(float *x, size_t rows, size_t columns) {
    float *ret = x ? ts_array0(float, rows *columns) : NULL;
    for (size_t i = 0; ret && i < rows; i++)
        for (size_t k = 0; k < columns; k++) ret[k * rows + i] = x[i * columns + k];
    free(x);
    return ret;
}

/* core[i][j][e] and b[j][c] to [i][c][e]. */
static float *through_core(const ts_file_tensor *core, const ts_file_tensor *b) {
    const size_t ranks = (size_t)core->shape[0], inner = (size_t)core->shape[1],
                 columns = (size_t)b->shape[1];
    const size_t area = (size_t)(kernel_of(core) * kernel_of(core));
    float *g = widen(core, 1), *v = widen(b, 1), *ret = ts_array0(float, ranks *columns *area);
    for (size_t i = 0; g && v && ret && i < ranks; i++)
        for (size_t j = 0; j < inner; j++)
            for (size_t c = 0; c < columns; c++)
                for (size_t k = 0; k < area; k++)
                    ret[(i * columns + c) * area + k] += g[(i * inner + j) * area + k] * v[j * columns + c];
    if (!g || !v) {
        free(ret);
        ret = NULL;
    }
    free(g);
    free(v);
    return ret;
}

/* y[rows][columns] += factor * the matrix. */
static ts_code add_matrix(const ts_lora_matrix *x, bool turned, double factor, size_t rows, size_t columns,
                          float *y, ts_error *e) {
    if (x->whole) {
        float *w = widen(x->whole, factor);
        for (size_t i = 0; w && i < rows * columns; i++) y[i] += w[i];
        free(w);
        return w ? TS_OK : no_memory(e);
    }
    float *a = widen(x->a, factor), *b = x->core ? through_core(x->core, x->b) : widen(x->b, 1);
    if (x->core && turned) a = turn(a, (size_t)x->a->shape[0], (size_t)x->a->shape[1]);
    const size_t inner = (size_t)(x->core ? x->core->shape[0] : x->b->shape[0]);
    ts_code rc = a && b ? ts_gemm_add(y, rows, columns, a, inner, b) : TS_ENOMEM;
    free(a);
    free(b);
    return rc ? no_memory(e) : TS_OK;
}

/* One of two matrices alone. free() it. */
static ts_code expand(const ts_lora_module *m, int i, double factor, size_t *ret_rows, size_t *ret_columns,
                      float **ret, ts_error *e) {
    extent x;
    const bool fits = measure_matrix(&m->matrix[i], m->kind, &x);
    ts_assert(fits);
    *ret_rows = (size_t)x.rows;
    *ret_columns = (size_t)columns_of(&x);
    *ret = ts_array0(float, *ret_rows **ret_columns);
    if (!*ret) return no_memory(e);
    return add_matrix(&m->matrix[i], true, factor, *ret_rows, *ret_columns, *ret, e);
}

static void add_product(const float *a, const float *b, size_t n, float *y) {
    for (size_t i = 0; i < n; i++) y[i] += a[i] * b[i];
}

static void add_kronecker(const float *a, size_t rows, size_t columns, const float *b, size_t inner_rows,
                          size_t inner_columns, float *y) {
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < inner_rows; k++)
            for (size_t j = 0; j < columns; j++, y += inner_columns)
                for (size_t l = 0; l < inner_columns; l++)
                    y[l] += a[i * columns + j] * b[k * inner_columns + l];
}

/* y += factor * D. */
static ts_code add_change(const ts_lora_module *m, double factor, float *y, ts_error *e) {
    const size_t rows = (size_t)m->rows, columns = (size_t)m->columns;
    if (m->kind == TS_LORA_PLAIN || m->kind == TS_LORA_DIFFERENCE)
        return add_matrix(&m->matrix[0], false, factor, rows, columns, y, e);
    float *a = NULL, *b = NULL;
    size_t r[2], c[2];
    ts_code rc = expand(m, 0, factor, &r[0], &c[0], &a, e);
    if (!rc) rc = expand(m, 1, 1, &r[1], &c[1], &b, e);
    if (!rc && m->kind == TS_LORA_HADAMARD) add_product(a, b, rows * columns, y);
    if (!rc && m->kind == TS_LORA_KRONECKER) add_kronecker(a, r[0], c[0], b, r[1], c[1], y);
    free(a);
    free(b);
    return rc;
}

/* ---- magnitudes ---- */

/* v becomes magnitude * v / |v|: of each row, or of each of `channels` runs of columns that a channel has. */
static ts_code set_magnitude(const ts_lora_module *m, bool by_row, float *v, ts_error *e) {
    const size_t rows = (size_t)m->rows, columns = (size_t)m->columns;
    const size_t count = ts_file_tensor_elements(m->magnitude), run = by_row ? columns : columns / count;
    float *magnitude = widen(m->magnitude, 1);
    double *sums = ts_array0(double, count);
    for (size_t i = 0; magnitude && sums && i < rows * columns; i++)
        sums[by_row ? i / run : i % columns / run] += (double)v[i] * (double)v[i];
    for (size_t i = 0; magnitude && sums && i < count; i++)
        sums[i] = (double)magnitude[i] / (sqrt(sums[i]) + (double)FLT_EPSILON);
    for (size_t i = 0; magnitude && sums && i < rows * columns; i++)
        v[i] = (float)((double)v[i] * sums[by_row ? i / run : i % columns / run]);
    const bool good = magnitude && sums;
    free(magnitude);
    free(sums);
    return good ? TS_OK : no_memory(e);
}

ts_code ts_lora_apply(const ts_lora_module *m, double scale, bool by_row, float *w, ts_error *e) {
    const size_t n = (size_t)m->rows * (size_t)m->columns;
    if (!m->magnitude || !m->interpolated) {
        ts_code rc = add_change(m, scale * m->factor, w, e);
        return rc || !m->magnitude ? rc : set_magnitude(m, by_row, w, e);
    }
    float *v = ts_array0(float, n);
    if (!v) return no_memory(e);
    memcpy(v, w, n * sizeof *v);
    ts_code rc = add_change(m, m->factor, v, e);
    if (!rc) rc = set_magnitude(m, by_row, v, e);
    for (size_t i = 0; !rc && i < n; i++) w[i] += (float)(scale * ((double)v[i] - (double)w[i]));
    free(v);
    return rc;
}
