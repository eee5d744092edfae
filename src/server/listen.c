#include "server/listen.h"

#include <errno.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define BACKLOG 512

/* Splits "HOST:PORT" at the last colon; brackets belong to IPv6. */
static bool split(const char *address, char host[256], char port[8]) {
    const char *colon = strrchr(address, ':');
    if (!colon || colon == address) return false;
    size_t n = (size_t)(colon - address), digits = strlen(colon + 1);
    if (digits < 1 || digits > 5 || strspn(colon + 1, "0123456789") != digits) return false;
    if (address[0] == '[') {
        if (n < 3 || address[n - 1] != ']') return false;
        address++;
        n -= 2;
    } else if (memchr(address, ':', n))
        return false;
    if (n >= 256) return false;
    memcpy(host, address, n);
    host[n] = 0;
    memcpy(port, colon + 1, digits + 1);
    int value = 0;
    return sscanf(port, "%d", &value) == 1 && value <= 65535;
}

static int try_listen(const struct addrinfo *a) {
    int one = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0 &&
        bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    int err = errno;
    close(fd);
    errno = err;
    return -1;
}

static ts_code read_address(const char *address, char host[256], char port[8], ts_error *e) {
    if (split(address, host, port)) return TS_OK;
    return ts_fail_param(e, TS_EINVAL, "listen",
                         "listen: \"%.100s\" is not ADDRESS:PORT, with [brackets] around IPv6", address);
}

ts_code ts_listen_check(const char *address, ts_error *e) {
    char host[256], port[8];
    return read_address(address, host, port, e);
}

ts_code ts_listen(const char *address, int *ret_fd, ts_error *e) {
    char host[256], port[8];
    ts_code bad = read_address(address, host, port, e);
    if (bad) return bad;
    struct addrinfo *found = NULL, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    int rc = getaddrinfo(host, port, &hints, &found);
    if (rc) return ts_fail_param(e, TS_EINVAL, "listen", "listen: %.100s: %s", address, gai_strerror(rc));
    int fd = -1;
    for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) fd = try_listen(a);
    int err = errno;
    freeaddrinfo(found);
    if (fd < 0) return ts_fail_errno(e, TS_EIO, err, "listening on %.100s", address);
    *ret_fd = fd;
    return TS_OK;
}

int ts_listen_inherited(void) {
    if (sd_listen_fds(1) < 1 || sd_is_socket(SD_LISTEN_FDS_START, AF_UNSPEC, SOCK_STREAM, 1) <= 0) return -1;
    return SD_LISTEN_FDS_START;
}

ts_code ts_listen_name(int fd, char *room, size_t size, int *ret_port, ts_error *e) {
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    char host[128], port[16];
    if (getsockname(fd, (struct sockaddr *)&address, &length))
        return ts_fail_errno(e, TS_EIO, errno, "the listening socket");
    if (getnameinfo((struct sockaddr *)&address, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV)) {
        /* A socket of another family, by socket activation. */
        snprintf(room, size, "a socket");
        *ret_port = 0;
        return TS_OK;
    }
    snprintf(room, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    *ret_port = 0;
    sscanf(port, "%d", ret_port);
    return TS_OK;
}
