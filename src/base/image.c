#include "base/image.h"

#include <math.h>
#include <stdlib.h>
#include "base/alloc.h"

void ts_image_free(ts_image *image) {
    free(image->pixels);
    *image = (ts_image){0};
}

static size_t places(const ts_image *image) {
    return (size_t)image->width * (size_t)image->height;
}

static ts_code image_new(int width, int height, int channels, ts_image *ret, ts_error *e) {
    ts_image image = {.width = width, .height = height, .channels = channels};
    size_t bytes;
    if (ts_mul_size(places(&image), (size_t)channels, &bytes)) image.pixels = malloc(bytes);
    if (!image.pixels) return ts_fail(e, TS_ENOMEM, "a picture of %d x %d", width, height);
    *ret = image;
    return TS_OK;
}

ts_code ts_image_colours(const ts_image *rgba, ts_image *ret, ts_error *e) {
    ts_image image;
    ts_code rc = image_new(rgba->width, rgba->height, 3, &image, e);
    if (rc) return rc;
    for (size_t i = 0; i < places(rgba); i++)
        for (size_t c = 0; c < 3; c++) image.pixels[3 * i + c] = rgba->pixels[4 * i + c];
    *ret = image;
    return TS_OK;
}

bool ts_image_transparent(const ts_image *rgba) {
    for (size_t i = 0; i < places(rgba); i++)
        if (rgba->pixels[4 * i + 3] != 255) return true;
    return false;
}

ts_code ts_image_mask(const ts_image *rgba, ts_image *ret, ts_error *e) {
    ts_image image;
    ts_code rc = image_new(rgba->width, rgba->height, 1, &image, e);
    if (rc) return rc;
    const bool transparent = ts_image_transparent(rgba);
    for (size_t i = 0; i < places(rgba); i++) {
        const unsigned char *p = rgba->pixels + 4 * i;
        /* Rec. 601 luma in 16 bits. */
        unsigned luma = (p[0] * 19595u + p[1] * 38470u + p[2] * 7471u + 0x8000u) >> 16;
        image.pixels[i] = (unsigned char)(transparent ? 255u - p[3] : luma);
    }
    *ret = image;
    return TS_OK;
}

/* ---- resampling, one direction at a time ---- */

static double lanczos(double x) {
    if (x == 0) return 1;
    if (!(fabs(x) < 3)) return 0;
    double a = M_PI * x, b = a / 3;
    return sin(a) / a * (sin(b) / b);
}

#define PRECISION 22 /* bits: 8 for a byte and 2 for what overshoots are left */

/* For each place of a line of `to`: where in a line of `from` its weights begin, and the weights. */
typedef struct weights {
    int count; /* of each place */
    int *first;
    int32_t *weight; /* of 1 << PRECISION, rounded as Pillow does: ties decide which side of a mask a pixel is
                        on */
} weights;

static void weights_free(weights *w) {
    free(w->first);
    free(w->weight);
}

static ts_code weights_new(int from, int to, weights *ret, ts_error *e) {
    const double scale = (double)from / to, wide = scale > 1 ? scale : 1, reach = 3 * wide;
    weights w = {.count = 2 * (int)ceil(reach) + 1};
    size_t n;
    double *exact = ts_array0(double, (size_t)w.count); /* of one place */
    w.first = ts_array0(int, (size_t)to);
    if (ts_mul_size((size_t)to, (size_t)w.count, &n)) w.weight = ts_array0(int32_t, n);
    if (!exact || !w.first || !w.weight) {
        free(exact);
        weights_free(&w);
        return ts_fail(e, TS_ENOMEM, "resampling a picture");
    }
    for (int i = 0; i < to; i++) {
        int32_t *weight = w.weight + (size_t)i * (size_t)w.count;
        double centre = (i + 0.5) * scale, sum = 0;
        int first = (int)(centre - reach + 0.5), end = (int)(centre + reach + 0.5);
        first = first > 0 ? first : 0;
        end = end < from ? end : from;
        for (int k = 0; k < end - first; k++)
            sum += exact[k] = lanczos((first + k - centre + 0.5) * (1 / wide));
        for (int k = 0; k < end - first; k++) weight[k] = (int32_t)round(exact[k] / sum * (1 << PRECISION));
        w.first[i] = first;
        /* Weights beyond the picture are zero; reading must stay inside all the same. */
        if (first + w.count > from) {
            int back = first + w.count - from;
            back = back < first ? back : first;
            for (int k = w.count - 1; k >= 0; k--) weight[k] = k >= back ? weight[k - back] : 0;
            w.first[i] = first - back;
        }
    }
    if (w.count > from) {
        /* A picture smaller than the filter: every place reads all of it. */
        for (int i = 0; i < to; i++)
            for (int k = 0; k < from; k++)
                w.weight[(size_t)i * (size_t)from + (size_t)k] =
                    w.weight[(size_t)i * (size_t)w.count + (size_t)k];
        w.count = from;
    }
    free(exact);
    *ret = w;
    return TS_OK;
}

/* One line: places `stride` bytes apart. */
static void resample(const weights *w, int to, const unsigned char *from, unsigned char *out, size_t stride) {
    for (int i = 0; i < to; i++) {
        const int32_t *weight = w->weight + (size_t)i * (size_t)w->count;
        int32_t sum = 1 << (PRECISION - 1);
        for (int k = 0; k < w->count; k++) sum += weight[k] * from[(size_t)(w->first[i] + k) * stride];
        sum >>= PRECISION;
        out[(size_t)i * stride] = (unsigned char)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
    }
}

/* Every line of `from`, of to's height. */
static void across(const weights *w, const ts_image *from, ts_image *to) {
    const size_t c = (size_t)from->channels;
    for (size_t y = 0; y < (size_t)from->height; y++)
        for (size_t k = 0; k < c; k++)
            resample(w, to->width, from->pixels + y * (size_t)from->width * c + k,
                     to->pixels + y * (size_t)to->width * c + k, c);
}

/* Every column of `from`, of to's width. */
static void down(const weights *w, const ts_image *from, ts_image *to) {
    const size_t line = (size_t)from->width * (size_t)from->channels;
    for (size_t x = 0; x < line; x++) resample(w, to->height, from->pixels + x, to->pixels + x, line);
}

ts_code ts_image_resize(const ts_image *image, int width, int height, ts_image *ret, ts_error *e) {
    /* Between the two passes there are bytes, so that their order shows. It is Pillow 13's; 11.3 always does
     * the lines first. */
    const int lower = image->height - height;
    const bool down_first = lower > 0 && lower > 2 * (image->width - width);
    weights by_line = {0}, by_column = {0};
    ts_image between = {0}, out = {0};
    ts_code rc = weights_new(image->width, width, &by_line, e);
    if (!rc) rc = weights_new(image->height, height, &by_column, e);
    if (!rc)
        rc = image_new(down_first ? image->width : width, down_first ? height : image->height,
                       image->channels, &between, e);
    if (!rc) rc = image_new(width, height, image->channels, &out, e);
    if (!rc) {
        if (down_first)
            down(&by_column, image, &between), across(&by_line, &between, &out);
        else
            across(&by_line, image, &between), down(&by_column, &between, &out);
        *ret = out;
        out = (ts_image){0};
    }
    ts_image_free(&out);
    ts_image_free(&between);
    weights_free(&by_line);
    weights_free(&by_column);
    return rc;
}
