/* The listening socket. */
#ifndef TS_SERVER_LISTEN_H
#define TS_SERVER_LISTEN_H

#include <stddef.h>
#include "base/error.h"

/* "ADDR:PORT" with an IPv4 address, an IPv6 address in brackets, or a name that resolves; port 0 takes a free
 * one. The socket is non-blocking and listens; close() it. TS_EINVAL for the text, TS_EIO. */
ts_code ts_listen(const char *address, int *ret_fd, ts_error *e);

/* Whether the text is one that ts_listen takes, names aside: TS_EINVAL. */
ts_code ts_listen_check(const char *address, ts_error *e);

/* The first socket that systemd passed to this process, -1 when there is none. */
int ts_listen_inherited(void);

/* "127.0.0.1:8080", "[::1]:8080"; *ret_port in host order. */
ts_code ts_listen_name(int fd, char *room, size_t size, int *ret_port, ts_error *e);

#endif
