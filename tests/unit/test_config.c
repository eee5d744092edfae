/* base/config: conf/tesserad.conf against the table, both ways, and what a file may not say. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/alloc.h"
#include "base/config.h"
#include "base/file.h"

static char folder[] = "/tmp/test_config.XXXXXX";
static char path[64];

static int make_folder(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/t.conf", folder);
    return 0;
}
static int remove_folder(void **state) {
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static ts_config *defaults(void) {
    ts_config *c = NULL;
    ts_error e = {0};
    if (ts_config_new(&c, &e)) fail_msg("%s", e.message);
    return c;
}

static ts_code read_bytes(ts_config *c, const char *text, size_t n, ts_error *e) {
    assert_int_equal(ts_write_file(path, text, n, NULL), TS_OK);
    return ts_config_read(c, path, e);
}

static ts_code read_text(ts_config *c, const char *text, ts_error *e) {
    return read_bytes(c, text, strlen(text), e);
}

static const ts_option *option(const char *section, const char *key) {
    for (size_t i = 0; i < ts_config_option_count(); i++) {
        const ts_option *o = &ts_config_options()[i];
        if (!strcmp(o->section, section) && !strcmp(o->key, key)) return o;
    }
    return NULL;
}

/* Fails unless the option has the same value in both. */
static void assert_same(const ts_option *o, const ts_config *a, const ts_config *b) {
    const char *x = (const char *)a + o->offset, *y = (const char *)b + o->offset;
    switch (o->type) {
    case TS_OPTION_INT:
    case TS_OPTION_INT_OR_ALL: assert_int_equal(*(const int64_t *)x, *(const int64_t *)y); break;
    case TS_OPTION_NUMBER:
    case TS_OPTION_NUMBER_OR_ALL: assert_true(*(const double *)x == *(const double *)y); break;
    case TS_OPTION_BOOL: assert_int_equal(*(const bool *)x, *(const bool *)y); break;
    case TS_OPTION_TEXT:
    case TS_OPTION_CHOICE: assert_string_equal(*(char *const *)x, *(char *const *)y); break;
    case TS_OPTION_SIZE: assert_memory_equal(x, y, sizeof(ts_size)); break;
    case TS_OPTION_LIST: {
        const ts_text_list *p = (const void *)x, *q = (const void *)y;
        assert_int_equal(p->count, q->count);
        for (size_t i = 0; i < p->count; i++) assert_string_equal(p->items[i], q->items[i]);
        break;
    }
    }
}

/* ---- conf/tesserad.conf ---- */

typedef struct documented {
    char section[32], key[32], value[64], comment[512]; /* comment: the lines right above, joined */
} documented;

static char *conf_text(void) {
    const char *source = getenv("TS_SOURCE");
    char *file = ts_path_join(source ? source : ".", "conf/tesserad.conf"), *text = NULL;
    size_t n;
    ts_error e = {0};
    assert_non_null(file);
    if (ts_read_file(file, 1u << 20, &text, &n, &e)) fail_msg("%s", e.message);
    free(file);
    return text;
}

/* Options are written "#key = value", what is said about them "# ...". */
static size_t read_conf(documented *ret, size_t room) {
    char *text = conf_text(), *rest = text, section[32] = "", comment[512] = "";
    size_t n = 0;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char *equals = strchr(line, '=');
        if (sscanf(line, "[%31[a-z_]]", section) == 1) continue;
        if (line[0] == '#' && line[1] == ' ') {
            size_t used = strlen(comment);
            snprintf(comment + used, sizeof comment - used, "%s%s", used ? " " : "", line + 2);
        } else if (!*line) {
            comment[0] = 0;
        } else {
            assert_true(line[0] == '#' && equals && n < room);
            documented *d = &ret[n++];
            memset(d, 0, sizeof *d);
            assert_int_equal(sscanf(line, "#%31[a-z_] =", d->key), 1);
            assert_true(equals[1] == 0 || equals[1] == ' ');
            snprintf(d->value, sizeof d->value, "%s", equals[1] ? equals + 2 : "");
            snprintf(d->section, sizeof d->section, "%s", section);
            memcpy(d->comment, comment, sizeof comment);
            comment[0] = 0;
        }
    }
    free(text);
    return n;
}

static void every_option_is_in_the_conf_file_once_with_its_default_help_and_range(void **state) {
    (void)state;
    documented all[128];
    size_t n = read_conf(all, 128);
    for (size_t i = 0; i < ts_config_option_count(); i++) {
        const ts_option *o = &ts_config_options()[i];
        const documented *found = NULL;
        for (size_t k = 0; k < n; k++) {
            if (strcmp(all[k].section, o->section) || strcmp(all[k].key, o->key)) continue;
            if (found) fail_msg("[%s] %s is there twice", o->section, o->key);
            found = &all[k];
        }
        if (!found) fail_msg("conf/tesserad.conf lacks [%s] %s", o->section, o->key);
        assert_string_equal(found->value, o->otherwise);
        if (strncmp(found->comment, o->help, strlen(o->help)))
            fail_msg("[%s] %s is explained as \"%s\"", o->section, o->key, found->comment);
        char range[64];
        if (o->type <= TS_OPTION_NUMBER_OR_ALL) {
            bool whole = o->type <= TS_OPTION_INT_OR_ALL;
            snprintf(range, sizeof range, whole ? "(%.0f to %.0f)" : "(%g to %g)", o->low, o->high);
            if (!strstr(found->comment, range)) fail_msg("[%s] %s: not %s", o->section, o->key, range);
        }
        for (const char *c = o->choices; c && *c; c += strcspn(c, "|"), c += *c == '|') {
            snprintf(range, sizeof range, "%.*s", (int)strcspn(c, "|"), c);
            if (!strstr(found->comment, range)) fail_msg("[%s] %s: not %s", o->section, o->key, range);
        }
    }
}

static void the_conf_file_holds_nothing_but_options(void **state) {
    (void)state;
    documented all[128];
    size_t n = read_conf(all, 128);
    assert_int_equal(n, ts_config_option_count());
    for (size_t k = 0; k < n; k++)
        if (!option(all[k].section, all[k].key)) fail_msg("no option [%s] %s", all[k].section, all[k].key);
}

static void the_conf_file_says_the_defaults_with_and_without_its_comment_signs(void **state) {
    (void)state;
    char *text = conf_text(), *to = text;
    ts_config *plain = defaults(), *as_it_is = defaults(), *uncommented = defaults();
    ts_error e = {0};
    if (read_text(as_it_is, text, &e)) fail_msg("%s", e.message);
    for (const char *s = text; *s; s++)
        if (!(*s == '#' && s[1] >= 'a' && s[1] <= 'z')) *to++ = *s;
    *to = 0;
    if (read_text(uncommented, text, &e)) fail_msg("%s", e.message);
    for (size_t i = 0; i < ts_config_option_count(); i++) {
        assert_same(&ts_config_options()[i], plain, as_it_is);
        assert_same(&ts_config_options()[i], plain, uncommented);
    }
    ts_config_free(plain);
    ts_config_free(as_it_is);
    ts_config_free(uncommented);
    free(text);
}

static void the_table_has_no_option_twice_and_its_defaults_lie_in_its_ranges(void **state) {
    (void)state;
    ts_config *c = defaults();
    for (size_t i = 0; i < ts_config_option_count(); i++) {
        const ts_option *o = &ts_config_options()[i];
        assert_ptr_equal(option(o->section, o->key), o);
        assert_true(*o->help && o->offset < sizeof(ts_config));
        assert_true(!o->choices == (o->type != TS_OPTION_CHOICE));
        char where[128];
        assert_string_equal(ts_config_where(c, o->section, o->key, where, sizeof where), "default");
    }
    /* What quickstart and the clients count on. */
    assert_string_equal(c->server.listen, "127.0.0.1:8080");
    assert_int_equal(c->models.path.count, 0);
    assert_string_equal(c->devices.devices, "auto");
    assert_string_equal(c->defaults.mode, "pcpp");
    assert_string_equal(c->defaults.group_norm, "corrected");
    assert_true(c->defaults.partial == 0.3 && c->defaults.guidance_scale == 5);
    assert_int_equal(c->defaults.steps, 20);
    assert_int_equal(c->defaults.warmup_steps, 4);
    assert_int_equal(c->limits.max_n, 10);
    ts_config_free(c);
}

/* ---- reading ---- */

static void a_file_sets_what_it_names_and_nothing_else(void **state) {
    (void)state;
    ts_config *c = defaults(), *plain = defaults();
    ts_error e = {0};
    ts_code rc = read_text(c,
                           "; a comment\n"
                           "# another\n"
                           "\n"
                           "[server]\n"
                           "listen = [::1]:0\n"
                           "  body_limit=4096   ; a comment behind the value\n"
                           "[models]\r\n"
                           "path = /m/a b\r\n"
                           "path = /m/\xc3\xa9\n"
                           "[defaults]\n"
                           "partial = all\n"
                           "guidance_scale = 7.5\n"
                           "devices = 2\n"
                           "size = 768x512\n"
                           "mode = sync\n"
                           "[log]\n"
                           "requests = no", /* the last line may lack its end */
                           &e);
    if (rc) fail_msg("%s", e.message);
    assert_string_equal(c->server.listen, "[::1]:0");
    assert_int_equal(c->server.body_limit, 4096);
    assert_int_equal(c->models.path.count, 2);
    assert_string_equal(c->models.path.items[0], "/m/a b");
    assert_string_equal(c->models.path.items[1], "/m/\xc3\xa9");
    assert_true(isinf(c->defaults.partial) && c->defaults.partial > 0);
    assert_true(c->defaults.guidance_scale == 7.5);
    assert_int_equal(c->defaults.devices, 2);
    assert_int_equal(c->defaults.size.width, 768);
    assert_int_equal(c->defaults.size.height, 512);
    assert_string_equal(c->defaults.mode, "sync");
    assert_false(c->log.requests);
    assert_same(option("scheduler", "max_queue"), c, plain);
    assert_same(option("defaults", "steps"), c, plain);

    char where[128], expected[128];
    snprintf(expected, sizeof expected, "%s:5", path);
    assert_string_equal(ts_config_where(c, "server", "listen", where, sizeof where), expected);
    assert_string_equal(ts_config_where(c, "defaults", "steps", where, sizeof where), "default");
    ts_config_free(c);
    ts_config_free(plain);
}

static const struct bad {
    const char *text;
    int line;
    const char *says; /* part of the message */
} bad_files[] = {
    {"[server]\nlisten = a:1\nlisen = a:1\n", 3, "lisen"},
    {"[sever]\nlisten = a:1\n", 0, "sever"},
    {"\n\n[nonsense]\n", 3, "nonsense"},
    {"listen = a:1\n", 1, "section"},
    {"[server]\nmax_queue = 4\n", 2, "max_queue"}, /* an option of another section */
    {"[server]\nListen = a:1\n", 2, "Listen"},
    {"[server]\nnot an option\n", 2, "key = value"},
    {"[server\nlisten = a:1\n", 1, ""},
    {"[server] listen = a:1\n", 1, "behind [server]"},
    {"[server]\nlisten = a:1\n\nlisten = b:2\n", 4, "twice"},
    {"[server]\nlisten = a:1\n[log]\n[server]\nlisten = b:2\n", 5, "twice"},
    {"[scheduler]\nmax_queue = 0\n", 2, "max_queue"},
    {"[scheduler]\nmax_queue = -3\n", 2, "max_queue"},
    {"[scheduler]\nmax_queue = 4.5\n", 2, "max_queue"},
    {"[scheduler]\nmax_queue = 4 4\n", 2, "max_queue"},
    {"[scheduler]\nmax_queue = 0x10\n", 2, "max_queue"},
    {"[scheduler]\nmax_queue = 99999999999999999999\n", 2, "max_queue"},
    {"[scheduler]\nmax_queue = all\n", 2, "max_queue"},
    {"[scheduler]\nmax_queue =\n", 2, "max_queue"},
    {"[scheduler]\nmax_batch = 17\n", 2, "16"},
    {"[defaults]\npartial = -0.1\n", 2, "partial"},
    {"[defaults]\npartial = nan\n", 2, "partial"},
    {"[defaults]\npartial = inf\n", 2, "partial"},
    {"[defaults]\npartial = 0x1p3\n", 2, "partial"},
    {"[defaults]\npartial = 1e999\n", 2, "partial"},
    {"[defaults]\npartial = 0,3\n", 2, "partial"},
    {"[defaults]\nguidance_scale = all\n", 2, "guidance_scale"},
    {"[defaults]\nmode = pcp\n", 2, "distrifusion"},
    {"[defaults]\nmode = pcpp|sync\n", 2, "mode"},
    {"[defaults]\nmode =\n", 2, "mode"},
    {"[defaults]\nsize = 513x512\n", 2, "multiples of 8"},
    {"[defaults]\nsize = 512\n", 2, "size"},
    {"[defaults]\nsize = 512x512x512\n", 2, "size"},
    {"[defaults]\nsize = 0x512\n", 2, "size"},
    {"[defaults]\nsize = 512x-512\n", 2, "size"},
    {"[defaults]\nsize = 99999999x8\n", 2, "size"},
    {"[log]\nrequests = maybe\n", 2, "yes or no"},
    {"[log]\nlevel = INFO\n", 2, "level"},
    {"[models]\npath = /m/\xff\n", 2, "UTF-8"},
    {"[models]\npath = /m/\xed\xa0\x80\n", 2, "UTF-8"},
};

static ts_code read_choice(const ts_option *o, const char *value, size_t n) {
    char text[200];
    ts_config *c = defaults();
    ts_error e = {0};
    snprintf(text, sizeof text, "[%s]\n%s = %.*s\n", o->section, o->key, (int)n, value);
    ts_code rc = read_text(c, text, &e);
    ts_config_free(c);
    return rc;
}

/* Tables are indexed with what is found under such a name. */
static void several_choices_in_one_are_none(void **state) {
    (void)state;
    for (size_t i = 0; i < ts_config_option_count(); i++) {
        const ts_option *o = &ts_config_options()[i];
        for (const char *s = o->choices; s; s = s[strcspn(s, "|")] ? s + strcspn(s, "|") + 1 : NULL) {
            const size_t one = strcspn(s, "|");
            assert_int_equal(read_choice(o, s, one), TS_OK);
            if (s[one] && read_choice(o, s, strlen(s)) != TS_EINVAL) fail_msg("%s = %s is taken", o->key, s);
        }
    }
    assert_true(ts_config_choice("all|auto", "auto") && ts_config_choice("all|auto", "all"));
    assert_false(ts_config_choice("all|auto", "all|auto") || ts_config_choice("all|auto", "all|"));
    assert_false(ts_config_choice("all|auto", "al") || ts_config_choice("all|auto", ""));
}

static void each_bad_file_is_refused_with_its_line_and_what_is_wrong(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bad_files / sizeof *bad_files; i++) {
        const struct bad *b = &bad_files[i];
        ts_config *c = defaults();
        ts_error e = {0};
        ts_code rc = read_text(c, b->text, &e);
        if (rc != TS_EINVAL) fail_msg("\"%s\" is accepted: %s", b->text, ts_code_name(rc));
        char where[128];
        snprintf(where, sizeof where, "%s:%d:", path, b->line);
        if ((b->line && strncmp(e.message, where, strlen(where))) || !strstr(e.message, b->says))
            fail_msg("\"%s\" says: %s", b->text, e.message);
        ts_config_free(c);
    }
}

static void a_line_that_is_too_long_is_refused_and_not_cut(void **state) {
    (void)state;
    char text[1024];
    for (int n = 150; n < 700; n++) {
        int used = snprintf(text, sizeof text, "[log]\n[models]\npath = /%0*d\n[log]\nlevel = debug\n", n, 7);
        assert_true(used > 0 && (size_t)used < sizeof text);
        ts_config *c = defaults();
        ts_error e = {0};
        ts_code rc = read_text(c, text, &e);
        if (rc) {
            char where[128];
            snprintf(where, sizeof where, "%s:3:", path);
            assert_int_equal(rc, TS_EINVAL);
            if (strncmp(e.message, where, strlen(where))) fail_msg("%s", e.message);
        } else {
            assert_int_equal(c->models.path.count, 1);
            assert_int_equal(strlen(c->models.path.items[0]), n + 1);
            assert_string_equal(c->log.level, "debug");
        }
        if (n == 150) assert_int_equal(rc, TS_OK);
        ts_config_free(c);
    }
}

static void a_nul_byte_is_refused(void **state) {
    (void)state;
    static const char text[] = "[server]\nlisten = a:1\0; rm\n[log]\n";
    ts_config *c = defaults();
    ts_error e = {0};
    assert_int_equal(read_bytes(c, text, sizeof text - 1, &e), TS_EINVAL);
    assert_non_null(strstr(e.message, "t.conf:2:"));
    ts_config_free(c);
}

static void a_file_that_is_absent_or_a_folder_is_an_error_that_names_it(void **state) {
    (void)state;
    ts_config *c = defaults();
    ts_error e = {0};
    char absent[96];
    snprintf(absent, sizeof absent, "%s/absent", folder);
    assert_int_equal(ts_config_read(c, absent, &e), TS_ENOTFOUND);
    assert_non_null(strstr(e.message, absent));
    assert_int_not_equal(ts_config_read(c, folder, &e), TS_OK);
    assert_non_null(strstr(e.message, folder));
    ts_config_free(c);
}

/* ---- the command line ---- */

static void the_command_line_wins_and_its_models_replace_the_files(void **state) {
    (void)state;
    ts_config *c = defaults();
    ts_error e = {0};
    assert_int_equal(read_text(c, "[server]\nlisten = a:1\n[models]\npath = /a\npath = /b\n", &e), TS_OK);
    assert_int_equal(ts_config_set(c, "server", "listen", "b:2", &e), TS_OK);
    assert_string_equal(c->server.listen, "b:2");
    assert_int_equal(ts_config_set(c, "models", "path", "/c", &e), TS_OK);
    assert_int_equal(ts_config_set(c, "models", "path", "/d", &e), TS_OK);
    assert_int_equal(c->models.path.count, 2);
    assert_string_equal(c->models.path.items[0], "/c");
    assert_string_equal(c->models.path.items[1], "/d");
    char where[128];
    assert_string_equal(ts_config_where(c, "server", "listen", where, sizeof where), "command line");
    ts_config_free(c);
}

static void a_bad_value_of_the_command_line_changes_nothing(void **state) {
    (void)state;
    ts_config *c = defaults(), *plain = defaults();
    ts_error e = {0};
    assert_int_equal(ts_config_set(c, "scheduler", "max_queue", "0", &e), TS_EINVAL);
    assert_string_equal(e.param, "max_queue");
    assert_int_equal(ts_config_set(c, "defaults", "mode", "none", &e), TS_EINVAL);
    assert_int_equal(ts_config_set(c, "defaults", "nothing", "1", &e), TS_EINVAL);
    assert_int_equal(ts_config_set(c, "defaults", "size", "7x7", &e), TS_EINVAL);
    for (size_t i = 0; i < ts_config_option_count(); i++) assert_same(&ts_config_options()[i], plain, c);
    ts_config_free(c);
    ts_config_free(plain);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_option_is_in_the_conf_file_once_with_its_default_help_and_range),
        cmocka_unit_test(the_conf_file_holds_nothing_but_options),
        cmocka_unit_test(the_conf_file_says_the_defaults_with_and_without_its_comment_signs),
        cmocka_unit_test(the_table_has_no_option_twice_and_its_defaults_lie_in_its_ranges),
        cmocka_unit_test(a_file_sets_what_it_names_and_nothing_else),
        cmocka_unit_test(several_choices_in_one_are_none),
        cmocka_unit_test(each_bad_file_is_refused_with_its_line_and_what_is_wrong),
        cmocka_unit_test(a_line_that_is_too_long_is_refused_and_not_cut),
        cmocka_unit_test(a_nul_byte_is_refused),
        cmocka_unit_test(a_file_that_is_absent_or_a_folder_is_an_error_that_names_it),
        cmocka_unit_test(the_command_line_wins_and_its_models_replace_the_files),
        cmocka_unit_test(a_bad_value_of_the_command_line_changes_nothing),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
