#include "tokenize.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/buffer.h"
#include "base/json.h"
#include "engine/model.h"

static const char usage[] = "usage: tesserad tokenize --model MODEL <strings\n"
                            "Reads one JSON string a line, writes the ids of each text encoder's tokenizer "
                            "as one JSON object a line.\n";

/* Each byte of a text may be escaped: \u0041. */
#define LINE_MAXIMUM (6 * TS_TOKENIZER_TEXT + 16)

static unsigned hex4(const char *s) {
    unsigned v = 0;
    for (int i = 0; i < 4; i++) {
        unsigned c = (unsigned char)s[i];
        v = v << 4 | (c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return v;
}

static size_t put_utf8(char *out, unsigned c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00u >> n & 0xf0u) | c);
    return n;
}

/* The bytes of a JSON string that has been checked, from its opening quote; `text` has room for as many.
 * Unlike cJSON's strings these may hold NUL, which is as good a character as another to a tokenizer. */
static size_t unescape(const char *s, char *text) {
    static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
    char *out = text;
    for (s++; *s != '"'; s++) {
        if (*s != '\\') {
            *out++ = *s;
            continue;
        }
        const char *named = strchr(from, *++s);
        if (*s != 'u') {
            *out++ = named ? to[named - from] : *s;
            continue;
        }
        unsigned c = hex4(s + 1);
        s += 4;
        if (c >= 0xd800 && c < 0xdc00) { /* the check made sure of the pair */
            c = 0x10000 + ((c - 0xd800) << 10) + (hex4(s + 3) - 0xdc00);
            s += 6;
        }
        out += put_utf8(out, c);
    }
    return (size_t)(out - text);
}

/* Checks a line by the strict parser, which refuses \u0000: it is shown another control character there. */
static ts_code read_string(const char *line, size_t size, char **ret, size_t *ret_size, ts_error *e) {
    char *copy = ts_strndup(line, size);
    if (!copy) return ts_fail(e, TS_ENOMEM, "reading a string");
    for (char *s = copy; s < copy + size; s++)
        if (*s == '\\' && *++s == 'u' && !strncmp(s, "u0000", 5)) s[4] = '1';
    cJSON *json = NULL;
    ts_code rc = ts_json_parse(copy, size, (ts_json_limits){.depth = 1, .values = 1}, &json, e);
    if (!rc && !cJSON_IsString(json)) rc = ts_fail(e, TS_EINVAL, "not a JSON string");
    if (!rc) {
        *ret_size = unescape(memchr(line, '"', size), copy);
        *ret = copy;
    } else {
        free(copy);
    }
    cJSON_Delete(json);
    return rc;
}

/* All ids of a text: the room grows until nothing is cut off. */
static ts_code print_ids(const ts_tokenizer *t, const char *text, size_t size, ts_error *e) {
    int32_t *ids = NULL;
    int room = 0, count = 0;
    bool cut = true;
    ts_code rc = TS_OK;
    for (size_t n = size + 16; !rc && cut; n *= 2) {
        free(ids);
        room = (int)n;
        ids = ts_array0(int32_t, n);
        rc = ids ? ts_tokenizer_encode(t, text, size, room, ids, &count, &cut, e)
                 : ts_fail(e, TS_ENOMEM, "tokenizing");
    }
    for (int i = 0; !rc && i < count; i++) printf("%s%d", i ? "," : "", ids[i]);
    free(ids);
    return rc;
}

static ts_code print_line(const ts_model *m, const char *line, size_t size, ts_error *e) {
    char *text = NULL;
    size_t bytes = 0;
    ts_code rc = read_string(line, size, &text, &bytes, e);
    for (int i = 0; !rc && i < m->text_count; i++) {
        printf("%s:[", i ? ",\"tokenizer_2\"" : "{\"tokenizer\"");
        rc = print_ids(m->text[i].tokenizer, text, bytes, e);
        if (!rc) printf("]");
    }
    if (!rc) printf("}\n");
    free(text);
    return rc;
}

static ts_code read_lines(const ts_model *m, ts_error *e) {
    char *line = NULL;
    size_t capacity = 0, number = 0;
    ts_code rc = TS_OK;
    for (ssize_t n; !rc && (n = getline(&line, &capacity, stdin)) >= 0;) {
        number++;
        if (n && line[n - 1] == '\n') n--;
        rc = (size_t)n > LINE_MAXIMUM ? ts_fail(e, TS_ETOOLARGE, "longer than %zu bytes", LINE_MAXIMUM)
                                      : print_line(m, line, (size_t)n, e);
        if (rc) rc = ts_error_context(e, rc, "line %zu", number);
    }
    free(line);
    if (!rc && (fflush(stdout) || ferror(stdout) || ferror(stdin)))
        rc = ts_fail(e, TS_EIO, "reading or writing failed");
    return rc;
}

int ts_tokenize_main(int argc, char **argv) {
    static const struct option longs[] = {{"model", 1, 0, 'm'}, {"help", 0, 0, 'h'}, {0}};
    const char *path = NULL;
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'h') {
            fputs(usage, stdout);
            return 0;
        }
        if (c != 'm') return 2; /* getopt has said what */
        path = optarg;
    }
    if (!path || optind < argc) {
        fputs(usage, stderr);
        return 2;
    }
    ts_error e = {0};
    ts_model *model = NULL;
    ts_code rc = ts_model_load(path, NULL, &model, &e);
    if (!rc) rc = read_lines(model, &e);
    ts_model_free(model);
    if (rc) fprintf(stderr, "tesserad tokenize: %s\n", e.message[0] ? e.message : ts_code_sentence(rc));
    return rc ? 1 : 0;
}
