/* base/image and the reader of base/png, against PIL (tools/parity/images.py). */
#include "fixture.h"

#include "base/file.h"
#include "base/image.h"
#include "base/png.h"

#define PIXELS 100000

/* float32 in the fixture, [height][width][channels] or [height][width]. */
static ts_image image_of(const ts_tensors *s, const char *name) {
    const ts_file_tensor *t = ts_tensors_find(s, name);
    if (!t) fail_msg("there is no %s", name);
    ts_image image = {.width = (int)t->shape[1],
                      .height = (int)t->shape[0],
                      .channels = t->rank == 3 ? (int)t->shape[2] : 1};
    size_t n;
    float *values = fixture_floats(s, name, &n);
    image.pixels = malloc(n);
    assert_non_null(image.pixels);
    for (size_t i = 0; i < n; i++) image.pixels[i] = (unsigned char)values[i];
    free(values);
    return image;
}

static void assert_within(const char *name, const ts_image *have, const ts_image *want, int most) {
    assert_int_equal(have->width, want->width);
    assert_int_equal(have->height, want->height);
    assert_int_equal(have->channels, want->channels);
    size_t n = (size_t)want->width * (size_t)want->height * (size_t)want->channels;
    for (size_t i = 0; i < n; i++)
        if (abs(have->pixels[i] - want->pixels[i]) > most)
            fail_msg("%s: byte %zu is %d, not %d", name, i, have->pixels[i], want->pixels[i]);
}

static char *read_png(const char *kind, size_t *ret_size) {
    char *name = ts_format("images/%s.png", kind), *path = fixture_path(name), *bytes = NULL;
    ts_error e = {0};
    must(ts_read_file(path, 1 << 20, &bytes, ret_size, &e), &e);
    free(name);
    free(path);
    return bytes;
}

static void png_of_every_kind_is_what_pil_reads(void **state) {
    (void)state;
    static const char *const kinds[] = {
        "rgb", "rgba", "grey", "grey_alpha", "bits", "palette", "palette_transparent", "colour_transparent"};
    ts_tensors *s = fixture_tensors("images.safetensors");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t size;
        char *bytes = read_png(kinds[i], &size), name[64];
        ts_image have = {0};
        ts_error e = {0};
        int w = 0, h = 0;
        must(ts_png_decode(bytes, size, PIXELS, &have, &e), &e);
        must(ts_png_size(bytes, size, &w, &h, &e), &e);
        assert_int_equal(w, have.width);
        assert_int_equal(h, have.height);
        snprintf(name, sizeof name, "png.%s", kinds[i]);
        ts_image want = image_of(s, name);
        assert_within(name, &have, &want, 0);
        ts_image_free(&have);
        ts_image_free(&want);
        free(bytes);
    }
    ts_tensors_free(s);
}

static void a_png_cut_anywhere_or_damaged_is_refused_or_read_but_never_more(void **state) {
    (void)state;
    size_t size;
    char *bytes = read_png("rgba", &size);
    for (size_t n = 0; n < size; n++) {
        /* A copy of its own, so that a byte too far is seen. */
        char *cut = malloc(n ? n : 1);
        assert_non_null(cut);
        memcpy(cut, bytes, n);
        ts_image image = {0};
        ts_error e = {0};
        assert_int_equal(ts_png_decode(cut, n, PIXELS, &image, &e), TS_EINVAL);
        assert_true(e.message[0]);
        assert_null(image.pixels);
        free(cut);
    }
    for (size_t i = 0; i < size; i++) {
        ts_image image = {0};
        ts_error e = {0};
        bytes[i] = (char)(bytes[i] ^ 0x10);
        ts_code rc = ts_png_decode(bytes, size, PIXELS, &image, &e);
        assert_true(rc == TS_OK || rc == TS_EINVAL || rc == TS_ETOOLARGE);
        ts_image_free(&image);
        bytes[i] = (char)(bytes[i] ^ 0x10);
    }
    free(bytes);
}

static void a_png_of_too_many_pixels_is_refused(void **state) {
    (void)state;
    size_t size;
    char *bytes = read_png("rgb", &size);
    ts_image image = {0};
    ts_error e = {0};
    assert_int_equal(ts_png_decode(bytes, size, 7 * 11 - 1, &image, &e), TS_ETOOLARGE);
    must(ts_png_decode(bytes, size, 7 * 11, &image, &e), &e);
    ts_image_free(&image);
    free(bytes);
}

static void resampling_is_that_of_pil_within_one(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("images.safetensors");
    for (int i = 0; i < 7; i++) {
        char from_name[32], to_name[32];
        snprintf(from_name, sizeof from_name, "resize.%d.from", i);
        snprintf(to_name, sizeof to_name, "resize.%d.to", i);
        ts_image from = image_of(s, from_name), want = image_of(s, to_name), have = {0};
        ts_error e = {0};
        must(ts_image_resize(&from, want.width, want.height, &have, &e), &e);
        assert_within(to_name, &have, &want, 0);
        ts_image_free(&from);
        ts_image_free(&want);
        ts_image_free(&have);
    }
    ts_tensors_free(s);
}

static ts_image with_alpha(const ts_image *rgb, unsigned char alpha) {
    size_t n = (size_t)rgb->width * (size_t)rgb->height;
    ts_image image = {.width = rgb->width, .height = rgb->height, .channels = 4, .pixels = malloc(4 * n)};
    assert_non_null(image.pixels);
    for (size_t i = 0; i < n; i++) {
        memcpy(image.pixels + 4 * i, rgb->pixels + 3 * i, 3);
        image.pixels[4 * i + 3] = alpha;
    }
    return image;
}

static void a_mask_is_where_it_is_transparent_or_else_its_luma(void **state) {
    (void)state;
    ts_tensors *s = fixture_tensors("images.safetensors");
    ts_image rgb = image_of(s, "luma.from"), luma = image_of(s, "luma.to"), rgba = with_alpha(&rgb, 255),
             mask = {0};
    ts_error e = {0};
    assert_false(ts_image_transparent(&rgba));
    must(ts_image_mask(&rgba, &mask, &e), &e);
    assert_within("luma", &mask, &luma, 0);
    ts_image_free(&mask);
    rgba.pixels[4 * 7 + 3] = 40;
    assert_true(ts_image_transparent(&rgba));
    must(ts_image_mask(&rgba, &mask, &e), &e);
    for (int i = 0; i < 30; i++) assert_int_equal(mask.pixels[i], i == 7 ? 215 : 0);
    ts_image_free(&mask);
    ts_image colours = {0};
    must(ts_image_colours(&rgba, &colours, &e), &e);
    assert_within("colours", &colours, &rgb, 0);
    ts_image_free(&colours);
    ts_image_free(&rgba);
    ts_image_free(&rgb);
    ts_image_free(&luma);
    ts_tensors_free(s);
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(png_of_every_kind_is_what_pil_reads),
        cmocka_unit_test(a_png_cut_anywhere_or_damaged_is_refused_or_read_but_never_more),
        cmocka_unit_test(a_png_of_too_many_pixels_is_refused),
        cmocka_unit_test(resampling_is_that_of_pil_within_one),
        cmocka_unit_test(a_mask_is_where_it_is_transparent_or_else_its_luma),
    };
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
