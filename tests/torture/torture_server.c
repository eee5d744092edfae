/* The daemon with every call that can fail failing, from its start to its end and in every kind of request:
 * whatever becomes of the one request, the next one has its picture. */
#include "../unit/fixture.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/png.h"
#include "server/server.h"
#include "torture.h"

enum { SIDE = 64, ANSWER_BYTES = 1 << 20, PATIENCE_MS = 60000 };

static char folder[] = "/tmp/tessera-torture-XXXXXX";
static char *port_file, *model, *loras, *words;

/* ---- the daemon ---- */

typedef struct daemon_run {
    pthread_t thread;
    ts_code rc;
    ts_error error;
    atomic_bool ended;
} daemon_run;

static ts_code configure(ts_config *c, ts_error *e) {
    const char *const options[][3] = {
        {"server", "listen", "127.0.0.1:0"}, {"server", "port_file", port_file},
        {"log", "level", "error"},           {"models", "path", model},
        {"models", "lora_folder", loras},    {"models", "embeddings_folder", words},
        {"models", "lora_memory", "0"}, /* each request makes its own again */
        {"devices", "program_memory", "0"},  {"devices", "devices", "cpu:1x1"},
        {"devices", "dtype", "f32"},         {"scheduler", "max_wait_ms", "0"},
        {"compile", "shapes", "64x64:2"}};
    ts_code rc = TS_OK;
    for (size_t i = 0; !rc && i < sizeof options / sizeof *options; i++)
        rc = ts_config_set(c, options[i][0], options[i][1], options[i][2], e);
    return rc;
}

static void *serve(void *arg) {
    daemon_run *d = arg;
    ts_config *config = NULL;
    d->rc = ts_config_new(&config, &d->error);
    if (!d->rc) d->rc = configure(config, &d->error);
    if (!d->rc) d->rc = ts_server_check(config, &d->error);
    if (!d->rc) d->rc = ts_server_run(config, &d->error);
    ts_config_free(config);
    atomic_store(&d->ended, true);
    return NULL;
}

static int port_of_file(void) {
    int port = 0;
    FILE *f = fopen(port_file, "r");
    if (f && fscanf(f, "%d", &port) != 1) port = 0;
    if (f) fclose(f);
    return port;
}

/* ---- a client ---- */

typedef struct answer {
    int status; /* 0: none came whole */
    char *bytes, *body;
    size_t size, body_size;
    bool silent; /* nothing happened for too long */
} answer;

static void answer_free(answer *a) {
    free(a->bytes);
    *a = (answer){0};
}

static int connect_to(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && !connect(fd, (struct sockaddr *)&at, sizeof at)) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

/* Sends it all and reads until the daemon closes the connection, as each request here asks it to. */
static answer ask(int port, const char *request, size_t size) {
    static char room[ANSWER_BYTES + 1];
    answer a = {0};
    size_t n = 0;
    int fd = connect_to(port);
    if (fd < 0) return a;
    for (size_t at = 0; at < size;) {
        ssize_t some = send(fd, request + at, size - at, MSG_NOSIGNAL);
        if (some <= 0) break; /* it may have answered before it has heard all */
        at += (size_t)some;
    }
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, PATIENCE_MS) <= 0) {
            a.silent = true;
            break;
        }
        ssize_t some = recv(fd, room + n, ANSWER_BYTES - n, 0);
        if (some <= 0) break;
        n += (size_t)some;
    }
    close(fd);
    room[n] = 0;
    const char *end = strstr(room, "\r\n\r\n");
    if (!end || sscanf(room, "HTTP/1.1 %d", &a.status) != 1) return a;
    a.bytes = malloc(n + 1);
    assert_non_null(a.bytes);
    memcpy(a.bytes, room, n + 1);
    a.size = n;
    a.body = a.bytes + (end - room) + 4;
    a.body_size = n - (size_t)(a.body - a.bytes);
    const char *length = strcasestr(a.bytes, "content-length:");
    if (length && length < a.body && strtoull(length + 15, NULL, 10) != a.body_size) a.status = 0;
    return a;
}

#define CLOSE "Host: x\r\nConnection: close\r\n"

static char *post(const char *path, const char *headers, const char *body, size_t size, size_t *ret_size) {
    char *head = ts_format("POST %s HTTP/1.1\r\n" CLOSE "%sContent-Length: %zu\r\n\r\n", path, headers, size);
    assert_non_null(head);
    size_t n = strlen(head);
    char *all = realloc(head, n + size);
    assert_non_null(all);
    memcpy(all + n, body, size);
    *ret_size = n + size;
    return all;
}

#define PICTURES "/v1/images/generations"
#define JSON     "Content-Type: application/json\r\n"
#define PNG      JSON "Accept: image/png\r\n"

/* The picture that a daemon in good order makes. */
static answer plain_picture(int port) {
    static const char body[] = "{\"prompt\":\"a lake\",\"size\":\"64x64\",\"steps\":2,\"seed\":1}";
    size_t size;
    char *request = post(PICTURES, PNG, body, sizeof body - 1, &size);
    answer a = ask(port, request, size);
    free(request);
    return a;
}

static answer want; /* plain_picture's, before anything failed */

static bool complain(const char *what, const answer *a) {
    fprintf(stderr, "# %s: %d %.300s\n", what, a->status, a->bytes ? a->bytes : "");
    return false;
}

static bool is_well(int port) {
    answer a = plain_picture(port);
    bool good = a.status == 200 && a.body_size == want.body_size && !memcmp(a.body, want.body, a.body_size);
    if (!good) complain("the next request", &a);
    answer_free(&a);
    return good;
}

/* ---- start and end ---- */

static int wait_for_port(daemon_run *d) {
    int port = 0;
    while (!port && !atomic_load(&d->ended)) {
        usleep(1000);
        port = port_of_file();
    }
    return port;
}

/* Whether it came up: it says so, or ends. One that cannot answer for want of memory gets it again. */
static bool wait_until_ready(int port, daemon_run *d) {
    static const char health[] = "GET /health HTTP/1.1\r\n" CLOSE "\r\n";
    for (uint64_t t0 = ts_now_ns(); ts_seconds(ts_now_ns() - t0) < 60;) {
        answer a = ask(port, health, sizeof health - 1);
        const int status = a.status;
        answer_free(&a);
        if (status == 200) return true;
        if (!status) torture_relent();
        if (atomic_load(&d->ended)) return false;
        usleep(1000);
    }
    return false;
}

static bool start_and_end(void *arg, const torture_place *place, bool lasting) {
    daemon_run d = {0};
    (void)arg;
    unlink(port_file);
    if (pthread_create(&d.thread, NULL, serve, &d)) return false;
    int port = wait_for_port(&d);
    bool ready = port && wait_until_ready(port, &d);
    torture_relent();
    bool good = true;
    if (ready) {
        if (!want.bytes) want = plain_picture(port);
        good = is_well(port);
    }
    if (!atomic_load(&d.ended)) kill(getpid(), SIGTERM);
    pthread_join(d.thread, NULL);
    if (!d.rc && !ready) good = false, fprintf(stderr, "# it ended well without having been ready\n");
    if (d.rc && (d.error.code != d.rc || !*d.error.message))
        good = false, fprintf(stderr, "# no word of why\n");
    const bool memory = d.rc == TS_ENOMEM, system = d.rc == TS_EIO || d.rc == TS_EDEVICE;
    if (d.rc && (!place || !(memory || (system && place->kind == TORTURE_SYSTEM)))) {
        fprintf(stderr, "# %s: %s\n", ts_code_name(d.rc), d.error.message);
        good = false;
    }
    (void)lasting;
    return good;
}

static void the_daemon_starts_or_says_why_not(void **state) {
    (void)state;
    size_t places;
    assert_true(torture_fail_each(&(torture_act){start_and_end, NULL, 3}, &places));
    print_message("# %zu places failed twice each\n", places);
}

/* ---- requests ---- */

typedef struct request {
    int port;
    char *bytes;
    size_t size;
    int status; /* where nothing fails */
} request;

static bool run_request(void *arg, const torture_place *place, bool lasting) {
    const request *r = arg;
    (void)lasting;
    answer a = ask(r->port, r->bytes, r->size);
    torture_relent();
    bool good = a.status == r->status;
    /* A request that cannot even be refused loses its connection; it is never said to be the client's fault.
     */
    if (place && !good)
        good = a.status == 0 || a.status == 503 || (a.status == 500 && place->kind == TORTURE_SYSTEM);
    if (a.silent) good = false;
    if (!good) complain(a.silent ? "silence" : "an answer that is wrong", &a);
    answer_free(&a);
    return is_well(r->port) && good;
}

/* The daemon that all requests go to. */
static daemon_run shared;
static int shared_port;

static void need_shared(void) {
    if (shared_port) return;
    unlink(port_file);
    assert_int_equal(pthread_create(&shared.thread, NULL, serve, &shared), 0);
    shared_port = wait_for_port(&shared);
    assert_true(shared_port && wait_until_ready(shared_port, &shared));
}

static int end_shared(void **state) {
    (void)state;
    answer_free(&want);
    if (!shared_port) return 0;
    kill(getpid(), SIGTERM);
    pthread_join(shared.thread, NULL);
    return shared.rc ? -1 : 0;
}

static void hold(char *bytes, size_t size, int status) {
    need_shared();
    request r = {shared_port, bytes, size, status};
    size_t places = 0;
    assert_true(torture_fail_each(&(torture_act){run_request, &r, TORTURE_DEPTH}, &places));
    print_message("# %zu places failed twice each\n", places);
    free(bytes);
}

static void hold_json(const char *headers, const char *body, int status) {
    size_t size;
    char *bytes = post(PICTURES, headers, body, strlen(body), &size);
    hold(bytes, size, status);
}

static void a_picture_with_a_lora_and_an_embedding(void **state) {
    (void)state;
    hold_json(PNG,
              "{\"prompt\":\"a (lake:1.2), easyNegative\",\"negative_prompt\":\"blurry\",\"emphasis\":true,"
              "\"size\":\"64x64\",\"steps\":2,\"seed\":1,\"loras\":[{\"name\":\"kohya_sd1\",\"scale\":0.5}],"
              "\"sampler\":\"euler_a\",\"scheduler\":\"karras\",\"parallel\":{\"mode\":\"single\"}}",
              200);
}

static void a_stream_of_two_pictures(void **state) {
    (void)state;
    hold_json(
        JSON,
        "{\"prompt\":\"a lake\",\"size\":\"64x64\",\"steps\":2,\"n\":2,\"stream\":true,\"progress\":true}",
        200);
}

static void what_is_refused(void **state) {
    (void)state;
    hold_json(JSON, "{\"prompt\":\"a lake\",\"steps\":100000}", 400);
    hold_json(JSON, "{\"prompt\":", 400);
    hold_json(JSON, "{\"prompt\":\"a lake\",\"model\":\"none\"}", 404);
    hold_json(JSON, "{\"prompt\":\"a lake\",\"loras\":[\"none\"]}", 404);
}

static void an_edit_with_a_mask(void **state) {
    (void)state;
    static unsigned char rgb[3 * SIDE * SIDE];
    for (size_t i = 0; i < sizeof rgb; i++) rgb[i] = (unsigned char)(i * 7);
    char *png = NULL;
    size_t png_size = 0;
    ts_error e = {0};
    must(ts_png_encode(rgb, SIDE, SIDE, NULL, 0, &png, &png_size, &e), &e);
    static char body[1 << 16];
    size_t n = 0;
    static const struct {
        const char *name, *value; /* NULL: the PNG */
    } parts[] = {{"image", NULL},   {"mask", NULL}, {"prompt", "a lake"},
                 {"size", "64x64"}, {"steps", "2"}, {"seed", "1"}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const char *v = parts[i].value;
        n += (size_t)sprintf(body + n, "--b\r\nContent-Disposition: form-data; name=\"%s\"%s\r\n\r\n",
                             parts[i].name, v ? "" : "; filename=\"a.png\"\r\nContent-Type: image/png");
        memcpy(body + n, v ? v : png, v ? strlen(v) : png_size);
        n += v ? strlen(v) : png_size;
        n += (size_t)sprintf(body + n, "\r\n");
    }
    n += (size_t)sprintf(body + n, "--b--\r\n");
    free(png);
    size_t size;
    char *bytes =
        post("/v1/images/edits", "Content-Type: multipart/form-data; boundary=b\r\nAccept: image/png\r\n",
             body, n, &size);
    hold(bytes, size, 200);
}

static void what_is_asked_for(void **state) {
    (void)state;
    static const char *const paths[] = {"/v1/models",         "/v1/models/pipeline_sd1", "/v1/loras",
                                        "/sdapi/v1/samplers", "/sdapi/v1/schedulers",    "/health",
                                        "/metrics",           "/openapi.yaml",           "/nothing"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        char *bytes = ts_format("GET %s HTTP/1.1\r\n" CLOSE "\r\n", paths[i]);
        hold(bytes, strlen(bytes), strcmp(paths[i], "/nothing") ? 200 : 404);
    }
}

int main(int argc, char **argv) {
    fixture_init(argc, argv);
    torture_spare();
    if (!mkdtemp(folder)) return 1;
    port_file = ts_path_join(folder, "port");
    model = fixture_path("pipeline_sd1");
    loras = fixture_path("loras");
    words = fixture_path("embeddings");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_daemon_starts_or_says_why_not),
        cmocka_unit_test(a_picture_with_a_lora_and_an_embedding),
        cmocka_unit_test(a_stream_of_two_pictures),
        cmocka_unit_test(an_edit_with_a_mask),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(what_is_asked_for),
    };

    int failed = cmocka_run_group_tests(tests, NULL, end_shared);
    unlink(port_file);
    rmdir(folder);
    free(port_file);
    free(model);
    free(loras);
    free(words);
    return failed;
}
