#include "parity.h"

static void channels_before_tokens(tensor t) {
    const size_t c = (size_t)t.c, w = (size_t)t.w;
    float *image = ts_array0(float, c *w);
    assert_non_null(image);
    for (int n = 0; n < t.n; n++) {
        float *at = t.data + (size_t)n * c * w;
        memcpy(image, at, c * w * sizeof *at);
        for (size_t i = 0; i < c; i++)
            for (size_t j = 0; j < w; j++) at[i * w + j] = image[j * c + i];
    }
    free(image);
}

tensor tensor_of(const ts_tensors *s, const char *format, ...) {
    char name[160];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    const ts_file_tensor *t = ts_tensors_find(s, name);
    if (!t) fail_msg("no tensor %s", name);
    const int64_t *d = t->shape;
    tensor r = {1, 1, 1, 1, fixture_floats(s, name, NULL)};
    switch (t->rank) {
    case 4: r.n = (int)d[0], r.c = (int)d[1], r.h = (int)d[2], r.w = (int)d[3]; break;
    case 3: r.n = (int)d[0], r.w = (int)d[1], r.c = (int)d[2]; break;
    case 2: r.n = (int)d[0], r.c = (int)d[1]; break;
    case 1: r.n = (int)d[0]; break;
    default: fail_msg("%s has %d dimensions", name, t->rank);
    }
    if (t->rank == 3) channels_before_tokens(r);
    return r;
}

void tensor_free(tensor t) {
    free(t.data);
}

static size_t elements(tensor t) {
    return (size_t)t.n * (size_t)t.c * (size_t)t.h * (size_t)t.w;
}

static bool same_shape(tensor a, tensor b) {
    return a.n == b.n && a.c == b.c && a.h == b.h && a.w == b.w;
}

static double squared_distance(tensor a, tensor b) {
    double sum = 0;
    for (size_t i = 0; i < elements(a); i++) {
        double d = (double)a.data[i] - (double)b.data[i];
        sum += d * d;
    }
    return sum;
}

double relative_l2(tensor have, tensor want) {
    if (!same_shape(have, want)) return INFINITY;
    double norm = 0;
    for (size_t i = 0; i < elements(want); i++) norm += (double)want.data[i] * (double)want.data[i];
    double r = sqrt(squared_distance(have, want) / norm);
    return isfinite(r) ? r : INFINITY;
}

double psnr(tensor have, tensor want, double peak) {
    if (!same_shape(have, want)) return 0;
    return 10 * log10(peak * peak * (double)elements(want) / squared_distance(have, want));
}

void assert_close(const char *what, tensor have, tensor want, double limit) {
    if (!same_shape(have, want))
        fail_msg("%s: %d x %d x %d x %d, not %d x %d x %d x %d", what, have.n, have.c, have.h, have.w, want.n,
                 want.c, want.h, want.w);
    double r = relative_l2(have, want);
    /* TS_PARITY_VERBOSE: the figures themselves, for the documentation. */
    if (getenv("TS_PARITY_VERBOSE")) print_message("# %s: %.2e\n", what, r);
    if (!(r <= limit)) fail_msg("%s: relative L2 %.3e exceeds %.1e", what, r, limit);
}
