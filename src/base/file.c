#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/alloc.h"

ts_code ts_open_regular(const char *path, int *ret_fd, struct stat *ret, ts_error *e) {
    /* O_NONBLOCK: a FIFO in a model folder must not hang the daemon before fstat has refused it. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return ts_fail_errno(e, ts_errno_code(errno), errno, "opening %s", path);
    struct stat st;
    ts_code rc = TS_OK;
    if (fstat(fd, &st) != 0)
        rc = ts_fail_errno(e, TS_EIO, errno, "opening %s", path);
    else if (!S_ISREG(st.st_mode) || st.st_size < 0)
        rc = ts_fail(e, TS_EIO, "%s is not a regular file", path);
    if (rc) {
        close(fd);
        return rc;
    }
    *ret_fd = fd;
    *ret = st;
    return TS_OK;
}

ts_code ts_read_file(const char *path, size_t maximum, char **ret, size_t *ret_size, ts_error *e) {
    int fd;
    struct stat st;
    ts_code rc = ts_open_regular(path, &fd, &st, e);
    if (rc) return rc;
    const size_t size = (size_t)st.st_size;
    char *text = NULL;
    if (size > maximum) {
        rc = ts_fail(e, TS_ETOOLARGE, "%s has %zu bytes; at most %zu are read", path, size, maximum);
        goto done;
    }
    text = malloc(size + 1);
    if (!text) {
        rc = ts_fail(e, TS_ENOMEM, "reading %s", path);
        goto done;
    }
    size_t have = 0;
    while (have < size) {
        ssize_t n = read(fd, text + have, size - have);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            rc = n < 0 ? ts_fail_errno(e, TS_EIO, errno, "reading %s", path)
                       : ts_fail(e, TS_EIO, "%s shrank while it was read", path);
            goto done;
        }
        have += (size_t)n;
    }
    text[size] = 0;
    *ret = text;
    if (ret_size) *ret_size = size;
    text = NULL;
done:
    free(text);
    close(fd);
    return rc;
}

ts_code ts_write_file(const char *path, const void *bytes, size_t n, ts_error *e) {
    ts_code rc = TS_OK;
    int fd = -1;
    char *temporary = ts_format("%s.XXXXXX", path);
    if (!temporary) return ts_fail(e, TS_ENOMEM, "writing %s", path);
    fd = mkostemp(temporary, O_CLOEXEC);
    if (fd < 0) {
        rc = ts_fail_errno(e, TS_EIO, errno, "creating a file beside %s", path);
        free(temporary);
        return rc;
    }
    const char *p = bytes;
    while (n) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR) continue;
        if (w < 0) {
            rc = ts_fail_errno(e, TS_EIO, errno, "writing %s", path);
            goto done;
        }
        p += w;
        n -= (size_t)w;
    }
    mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd, 0666 & ~mask) != 0 || close(fd) != 0) {
        rc = ts_fail_errno(e, TS_EIO, errno, "writing %s", path);
        fd = -1;
        goto done;
    }
    fd = -1;
    if (rename(temporary, path) != 0) rc = ts_fail_errno(e, TS_EIO, errno, "renaming onto %s", path);
done:
    if (fd >= 0) close(fd);
    if (rc) unlink(temporary);
    free(temporary);
    return rc;
}

bool ts_folder_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool ts_file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

char *ts_path_join(const char *dir, const char *name) {
    size_t n = strlen(dir);
    return ts_format(n && dir[n - 1] == '/' ? "%s%s" : "%s/%s", dir, name);
}

int ts_path_extension(const char *name, const char *const extensions[], size_t *ret_stem) {
    const size_t n = strlen(name);
    for (int i = 0; extensions[i]; i++) {
        const size_t k = strlen(extensions[i]);
        if (n <= k || strcmp(name + n - k, extensions[i]) != 0) continue;
        *ret_stem = n - k;
        return i;
    }
    *ret_stem = n;
    return -1;
}
