#include "base/png.h"

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/buffer.h"

#define MAX_TEXTS 8

/* What libpng said before it gave up. */
typedef struct complaint {
    char message[128];
    bool memory; /* it was refused some */
} complaint;

static void on_error(png_structp png, png_const_charp message) {
    complaint *c = png_get_error_ptr(png);
    strncpy(c->message, message, sizeof c->message - 1);
    longjmp(png_jmpbuf(png), 1);
}
static void on_warning(png_structp png, png_const_charp message) {
    (void)png;
    (void)message;
}
static png_voidp on_allocate(png_structp png, png_alloc_size_t n) {
    complaint *c = png_get_mem_ptr(png);
    void *memory = malloc(n);
    if (!memory) c->memory = true;
    return memory;
}
static void on_release(png_structp png, png_voidp memory) {
    (void)png;
    free(memory);
}
static void on_write(png_structp png, png_bytep data, size_t n) {
    if (!ts_buffer_append(png_get_io_ptr(png), data, n)) return;
    complaint *c = png_get_error_ptr(png);
    c->memory = true;
    png_error(png, "out of memory");
}
static void on_flush(png_structp png) {
    (void)png;
}

static bool is_ascii(const char *s) {
    while (*s)
        if ((unsigned char)*s++ >= 0x80) return false;
    return true;
}

/* Everything that libpng may leave by longjmp; no local of it is read afterwards. */
static bool write_all(png_structp png, png_infop info, const unsigned char *rgb, int width, int height,
                      png_text *texts, int text_count) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_set_IHDR(png, info, (png_uint_32)width, (png_uint_32)height, 8, PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_set_compression_level(png, 1);
    png_set_filter(png, 0, PNG_FILTER_SUB);
    if (text_count) png_set_text(png, info, texts, text_count);
    png_write_info(png, info);
    for (int y = 0; y < height; y++) png_write_row(png, rgb + (size_t)y * (size_t)width * 3);
    png_write_end(png, info);
    return true;
}

ts_code ts_png_encode(const unsigned char *rgb, int width, int height, const ts_png_text *texts,
                      int text_count, char **ret, size_t *ret_size, ts_error *e) {
    ts_assert(text_count >= 0 && text_count <= MAX_TEXTS);
    ts_buffer bytes;
    complaint said = {0};
    png_infop info = NULL;
    png_text chunks[MAX_TEXTS];
    ts_code rc = TS_OK;
    memset(chunks, 0, sizeof chunks);
    for (int i = 0; i < text_count; i++) {
        chunks[i].compression =
            is_ascii(texts[i].text) ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
        chunks[i].key = (char *)(size_t)texts[i].key;
        chunks[i].text = (char *)(size_t)texts[i].text;
        chunks[i].text_length = strlen(texts[i].text);
        chunks[i].itxt_length = chunks[i].text_length;
    }
    /* Deflate never grows pixels by more than a few bytes a row. */
    size_t bound = (size_t)width * (size_t)height * 3 + (size_t)height * 64 + ((size_t)1 << 20);
    for (int i = 0; i < text_count; i++) bound += chunks[i].text_length;
    ts_buffer_init(&bytes, bound);
    png_structp png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, &said, on_error, on_warning, &said,
                                                on_allocate, on_release);
    if (png) info = png_create_info_struct(png);
    if (!png || !info) {
        rc = ts_fail(e, TS_ENOMEM, "encoding a PNG");
        goto done;
    }
    png_set_write_fn(png, &bytes, on_write, on_flush);
    if (!write_all(png, info, rgb, width, height, chunks, text_count)) {
        rc = ts_fail(e, said.memory ? TS_ENOMEM : TS_EINTERNAL, "encoding a PNG: %s", said.message);
        goto done;
    }
    *ret = ts_buffer_take(&bytes, ret_size);
    if (!*ret) rc = ts_fail(e, TS_ENOMEM, "encoding a PNG");
done:
    png_destroy_write_struct(&png, &info);
    ts_buffer_free(&bytes);
    return rc;
}

/* ---- reading ---- */

/* What a file may make libpng keep besides the pixels: a chunk's bytes, and chunks. */
#define CHUNK_BYTES (1u << 20)
#define CHUNKS      64
#define MAX_SIDE    65535

typedef struct source {
    const char *bytes;
    size_t size, at;
    complaint said;
} source;

static void on_read(png_structp png, png_bytep to, size_t n) {
    source *s = png_get_io_ptr(png);
    if (n > s->size - s->at) png_error(png, "it ends too early");
    memcpy(to, s->bytes + s->at, n);
    s->at += n;
}

static bool read_head(png_structp png, png_infop info) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_set_user_limits(png, MAX_SIDE, MAX_SIDE);
    png_set_chunk_malloc_max(png, CHUNK_BYTES);
    png_set_chunk_cache_max(png, CHUNKS);
    /* Texts and profiles, which a few bytes can make large, are skipped: of what is not pixels, only the
     * palette and the transparent colour are read. */
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_read_info(png, info);
    return true;
}

/* rows: room for as many as the picture has, each of width RGBA pixels. */
static bool read_pixels(png_structp png, png_infop info, png_bytep *rows) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_set_expand(png); /* palettes, low depths, and transparent colours to alpha */
    png_set_scale_16(png);
    png_set_gray_to_rgb(png);
    png_set_add_alpha(png, 255, PNG_FILLER_AFTER);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    if (png_get_rowbytes(png, info) != (size_t)png_get_image_width(png, info) * 4)
        png_error(png, "its rows are of an unknown kind");
    png_read_image(png, rows);
    png_read_end(png, NULL);
    return true;
}

static ts_code refuse(const source *s, ts_error *e) {
    if (s->said.memory) return ts_fail(e, TS_ENOMEM, "reading a PNG");
    return ts_fail(e, TS_EINVAL, "it is not a good PNG: %s", s->said.message);
}

static ts_code open_source(source *s, png_structp *ret_png, png_infop *ret_info, ts_error *e) {
    if (s->size < 8 || png_sig_cmp((png_const_bytep)s->bytes, 0, 8))
        return ts_fail(e, TS_EINVAL, "it is not a PNG");
    *ret_png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &s->said, on_error, on_warning, &s->said,
                                        on_allocate, on_release);
    *ret_info = *ret_png ? png_create_info_struct(*ret_png) : NULL;
    if (!*ret_info) return ts_fail(e, TS_ENOMEM, "reading a PNG");
    png_set_read_fn(*ret_png, s, on_read);
    return read_head(*ret_png, *ret_info) ? TS_OK : refuse(s, e);
}

ts_code ts_png_size(const char *bytes, size_t size, int *ret_width, int *ret_height, ts_error *e) {
    source s = {.bytes = bytes, .size = size};
    png_structp png = NULL;
    png_infop info = NULL;
    ts_code rc = open_source(&s, &png, &info, e);
    if (!rc) {
        *ret_width = (int)png_get_image_width(png, info);
        *ret_height = (int)png_get_image_height(png, info);
    }
    png_destroy_read_struct(&png, &info, NULL);
    return rc;
}

ts_code ts_png_decode(const char *bytes, size_t size, size_t max_pixels, ts_image *ret, ts_error *e) {
    source s = {.bytes = bytes, .size = size};
    png_structp png = NULL;
    png_infop info = NULL;
    png_bytep *rows = NULL;
    ts_image image = {.channels = 4};
    ts_code rc = open_source(&s, &png, &info, e);
    if (rc) goto done;
    image.width = (int)png_get_image_width(png, info);
    image.height = (int)png_get_image_height(png, info);
    size_t pixels = (size_t)image.width * (size_t)image.height;
    if (pixels > max_pixels) {
        rc = ts_fail(e, TS_ETOOLARGE, "%d x %d are more than %zu pixels", image.width, image.height,
                     max_pixels);
        goto done;
    }
    image.pixels = malloc(pixels * 4);
    rows = ts_array0(png_bytep, (size_t)image.height);
    if (!image.pixels || !rows) {
        rc = ts_fail(e, TS_ENOMEM, "a picture of %d x %d", image.width, image.height);
        goto done;
    }
    for (size_t y = 0; y < (size_t)image.height; y++) rows[y] = image.pixels + y * (size_t)image.width * 4;
    if (!read_pixels(png, info, rows)) {
        rc = refuse(&s, e);
        goto done;
    }
    *ret = image;
    image = (ts_image){0};
done:
    png_destroy_read_struct(&png, &info, NULL);
    free(rows);
    ts_image_free(&image);
    return rc;
}
