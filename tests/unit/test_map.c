/* src/base/map: files that change while they are mapped. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/map.h"

#define PAGES 64

static char path[64];
static size_t page;

static int make_file(void **state) {
    (void)state;
    page = (size_t)sysconf(_SC_PAGESIZE);
    strcpy(path, "/tmp/ts_map_XXXXXX");
    int fd = mkstemp(path);
    char *bytes = malloc(PAGES * page);
    if (fd < 0 || !bytes) return -1;
    memset(bytes, 7, PAGES * page);
    bool good = write(fd, bytes, PAGES * page) == (ssize_t)(PAGES * page);
    free(bytes);
    return close(fd) || !good;
}

static int remove_file(void **state) {
    (void)state;
    return unlink(path);
}

static ts_map mapped(void) {
    ts_map map;
    ts_error e = {0};
    if (ts_map_open(path, &map, &e)) fail_msg("%s", e.message);
    return map;
}

static unsigned char at_page(const ts_map *map, size_t n) {
    return *(volatile const unsigned char *)(map->data + n * page);
}

static void assert_changed(const ts_map *map) {
    ts_error e = {0};
    assert_int_equal(ts_map_check(map, &e), TS_EIO);
    if (!strstr(e.message, path)) fail_msg("\"%s\" does not name %s", e.message, path);
}

static void a_file_left_alone_is_itself(void **state) {
    (void)state;
    ts_map map = mapped();
    assert_int_equal(at_page(&map, PAGES - 1), 7);
    assert_int_equal(ts_map_check(&map, NULL), TS_OK);
    ts_map_close(&map);
}

static void what_a_shrunk_file_has_lost_reads_as_zeros_and_is_told(void **state) {
    (void)state;
    ts_map map = mapped();
    assert_int_equal(truncate(path, (off_t)(3 * page)), 0);
    assert_int_equal(at_page(&map, 2), 7);
    assert_int_equal(at_page(&map, 5), 0);
    assert_int_equal(at_page(&map, PAGES - 1), 0);
    assert_int_equal(at_page(&map, 2), 7);
    assert_changed(&map);
    /* It stays so, even when the file gets its size back. */
    assert_int_equal(truncate(path, (off_t)map.size), 0);
    assert_changed(&map);
    ts_map_close(&map);
}

static void a_file_that_lost_less_than_a_page_is_told(void **state) {
    (void)state;
    ts_map map = mapped();
    assert_int_equal(truncate(path, (off_t)(map.size - 1)), 0);
    assert_int_equal(map.data[map.size - 1], 0);
    assert_changed(&map);
    ts_map_close(&map);
}

static void a_file_overwritten_in_place_is_told(void **state) {
    (void)state;
    ts_map map = mapped();
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0 && pwrite(fd, "x", 1, 0) == 1);
    /* The two may fall into one tick of the file system's clock. */
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1, .tv_nsec = 1}};
    assert_int_equal(futimens(fd, times), 0);
    close(fd);
    assert_changed(&map);
    ts_map_close(&map);
}

static void a_file_replaced_by_renaming_changes_nothing(void **state) {
    (void)state;
    char old[64];
    strcpy(old, path);
    ts_map map = mapped();
    make_file(NULL);
    assert_int_equal(truncate(path, 1), 0);
    assert_int_equal(rename(path, old), 0);
    strcpy(path, old);
    assert_int_equal(at_page(&map, PAGES - 1), 7);
    assert_int_equal(ts_map_check(&map, NULL), TS_OK);
    ts_map_close(&map);
}

static void only_the_mapping_that_lost_bytes_is_blamed(void **state) {
    (void)state;
    char first[64];
    strcpy(first, path);
    ts_map lost = mapped();
    make_file(NULL);
    ts_map kept = mapped();
    assert_int_equal(truncate(first, 0), 0);
    assert_int_equal(at_page(&lost, 0), 0);
    assert_int_equal(at_page(&kept, 0), 7);
    assert_int_equal(ts_map_check(&lost, NULL), TS_EIO);
    assert_int_equal(ts_map_check(&kept, NULL), TS_OK);
    ts_map_close(&lost);
    /* What the next one takes over from the one before it is no longer lost. */
    ts_map again = mapped();
    assert_int_equal(at_page(&again, PAGES - 1), 7);
    assert_int_equal(ts_map_check(&again, NULL), TS_OK);
    ts_map_close(&again);
    ts_map_close(&kept);
    unlink(first);
}

static void *read_all(void *arg) {
    const ts_map *map = arg;
    size_t sevens = 0;
    for (size_t i = 0; i < PAGES; i++) sevens += at_page(map, (i * 37) % PAGES) == 7;
    return (void *)sevens;
}

/* Mappings come and go while the handler looks for the one that lost its bytes. */
static void *map_and_unmap(void *arg) {
    (void)arg;
    for (int i = 0; i < 200; i++) {
        ts_map map;
        if (ts_map_open("/proc/self/exe", &map, NULL)) return arg;
        ts_map_close(&map);
    }
    return NULL;
}

static void every_thread_that_reads_goes_on(void **state) {
    (void)state;
    ts_map map = mapped();
    assert_int_equal(truncate(path, (off_t)(10 * page)), 0);
    pthread_t readers[4], other;
    assert_int_equal(pthread_create(&other, NULL, map_and_unmap, &map), 0);
    for (int i = 0; i < 4; i++) assert_int_equal(pthread_create(&readers[i], NULL, read_all, &map), 0);
    for (int i = 0; i < 4; i++) {
        void *sevens;
        pthread_join(readers[i], &sevens);
        assert_int_equal((size_t)sevens, 10);
    }
    void *failed;
    pthread_join(other, &failed);
    assert_null(failed);
    assert_changed(&map);
    ts_map_close(&map);
}

/* In a child, which ends by the signal that nobody of ours expects. */
static void ends_of(void (*fault)(const char *file)) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGBUS, SIG_DFL);
        if (!freopen("/dev/null", "w", stderr)) _exit(2);
        ts_map map;
        if (ts_map_open("/proc/self/exe", &map, NULL)) _exit(2);
        fault(path);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

static void read_a_strangers_mapping(const char *file) {
    int fd = open(file, O_RDONLY);
    volatile const char *data = mmap(NULL, PAGES * page, PROT_READ, MAP_PRIVATE, fd, 0);
    if (fd < 0 || data == MAP_FAILED || truncate(file, 0)) _exit(2);
    (void)data[0];
}

static void be_sent_the_signal(const char *file) {
    (void)file;
    raise(SIGBUS);
}

static void the_signal_still_ends_the_process_for_any_other_cause(void **state) {
    (void)state;
    ends_of(read_a_strangers_mapping);
    ends_of(be_sent_the_signal);
}

#define claim(name) cmocka_unit_test_setup_teardown(name, make_file, remove_file)

int main(void) {
    const struct CMUnitTest tests[] = {
        claim(the_signal_still_ends_the_process_for_any_other_cause),
        claim(a_file_left_alone_is_itself),
        claim(what_a_shrunk_file_has_lost_reads_as_zeros_and_is_told),
        claim(a_file_that_lost_less_than_a_page_is_told),
        claim(a_file_overwritten_in_place_is_told),
        claim(a_file_replaced_by_renaming_changes_nothing),
        claim(only_the_mapping_that_lost_bytes_is_blamed),
        claim(every_thread_that_reads_goes_on),
    };
    return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
