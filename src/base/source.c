#include "base/source.h"

#include <stdlib.h>
#include <string.h>
#include "base/png.h"

void ts_source_free(ts_source *s) {
    free(s->rgb);
    free(s->mask);
    *s = (ts_source){0};
}

static ts_code about(const char *param, ts_code rc, ts_error *e) {
    if (!rc || !e) return rc;
    ts_error cause = *e;
    return ts_fail_param(e, rc, param, "%s: %s", param, cause.message);
}

/* Takes the image over; its pixels in the wanted size are *ret. */
static ts_code fit(ts_image *image, int width, int height, unsigned char **ret, ts_error *e) {
    ts_code rc = TS_OK;
    if (image->width != width || image->height != height) {
        ts_image resized;
        rc = ts_image_resize(image, width, height, &resized, e);
        ts_image_free(image);
        if (rc) return rc;
        *image = resized;
    }
    *ret = image->pixels;
    *image = (ts_image){0};
    return TS_OK;
}

ts_code ts_source_read(const char *image, size_t image_size, const char *mask, size_t mask_size, int width,
                       int height, size_t max_pixels, ts_source *ret, ts_error *e) {
    ts_image picture = {0}, stencil = {0}, flat = {0}, paint = {0};
    ts_source s = {0};
    const char *param = "image";
    ts_code rc = ts_png_decode(image, image_size, max_pixels, &picture, e);
    if (!rc && mask) {
        param = "mask";
        rc = ts_png_decode(mask, mask_size, max_pixels, &stencil, e);
        if (!rc && (stencil.width != picture.width || stencil.height != picture.height))
            rc = ts_fail(e, TS_EINVAL, "it is %d x %d, the picture is %d x %d", stencil.width, stencil.height,
                         picture.width, picture.height);
        if (!rc) rc = ts_image_mask(&stencil, &paint, e);
    } else if (!rc && ts_image_transparent(&picture)) {
        rc = ts_image_mask(&picture, &paint, e);
    }
    if (!rc) rc = ts_image_colours(&picture, &flat, e);
    if (!rc) rc = fit(&flat, width, height, &s.rgb, e);
    if (!rc && paint.pixels) rc = fit(&paint, width, height, &s.mask, e);
    if (!rc) {
        *ret = s;
        s = (ts_source){0};
    }
    ts_source_free(&s);
    ts_image_free(&picture);
    ts_image_free(&stencil);
    ts_image_free(&flat);
    ts_image_free(&paint);
    return about(param, rc, e);
}
