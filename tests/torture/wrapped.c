/* What stands between the program's own code and the calls that can fail: `ld --wrap=NAME` sends them here.
 * (Mutexes and condition variables are not among them: glibc's cannot fail to be made.) */
#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include "torture.h"
#ifdef TS_HAVE_ONEDNN
#include <dnnl.h>
#endif
#ifdef TS_HAVE_SERVER
#include <microhttpd.h>
#include <uv.h>
#endif

/* result name(parameters): `failed`, and errno of `code`, when it is struck. */
#define WRAP(result, name, parameters, arguments, kind, code, failed)                                        \
    result __real_##name parameters;                                                                         \
    result __wrap_##name parameters;                                                                         \
    result __wrap_##name parameters {                                                                        \
        if (!torture_strikes(#name, kind)) return __real_##name arguments;                                   \
        errno = code;                                                                                        \
        return failed;                                                                                       \
    }
#define MEMORY(result, name, parameters, arguments, failed)                                                  \
    WRAP(result, name, parameters, arguments, TORTURE_MEMORY, ENOMEM, failed)
#define SYSTEM(result, name, parameters, arguments, code, failed)                                            \
    WRAP(result, name, parameters, arguments, TORTURE_SYSTEM, code, failed)

MEMORY(void *, malloc, (size_t n), (n), NULL)
MEMORY(void *, calloc, (size_t n, size_t size), (n, size), NULL)
MEMORY(void *, realloc, (void *old, size_t n), (old, n), NULL)
MEMORY(void *, aligned_alloc, (size_t alignment, size_t n), (alignment, n), NULL)
MEMORY(int, vasprintf, (char **ret, const char *format, va_list args), (ret, format, args), -1)
MEMORY(DIR *, opendir, (const char *path), (path), NULL)

SYSTEM(int, pthread_create, (pthread_t * ret, const pthread_attr_t *a, void *(*run)(void *), void *arg),
       (ret, a, run, arg), EAGAIN, EAGAIN)
SYSTEM(void *, mmap64, (void *at, size_t n, int protection, int flags, int fd, off_t offset),
       (at, n, protection, flags, fd, offset), ENOMEM, MAP_FAILED)
SYSTEM(int, fstat64, (int fd, struct stat *ret), (fd, ret), EIO, -1)
SYSTEM(ssize_t, read, (int fd, void *to, size_t n), (fd, to, n), EIO, -1)
SYSTEM(ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n), EIO, -1)
SYSTEM(FILE *, fopen64, (const char *path, const char *mode), (path, mode), EMFILE, NULL)

int __real_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...);
int __wrap_open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list args;
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    if (!torture_strikes("open", TORTURE_SYSTEM)) return __real_open64(path, flags, mode);
    errno = EMFILE;
    return -1;
}

#ifdef TS_HAVE_ONEDNN
#define DNNL(name, parameters, arguments)                                                                    \
    MEMORY(dnnl_status_t, dnnl_##name, parameters, arguments, dnnl_out_of_memory)
DNNL(memory_create, (dnnl_memory_t * m, const dnnl_memory_desc_t *d, dnnl_engine_t e, void *h), (m, d, e, h))
DNNL(post_ops_create, (dnnl_post_ops_t * p), (p))
DNNL(primitive_attr_create, (dnnl_primitive_attr_t * a), (a))
DNNL(primitive_create, (dnnl_primitive_t * p, const_dnnl_primitive_desc_t d), (p, d))
DNNL(primitive_desc_create,
     (dnnl_primitive_desc_t * r, const_dnnl_op_desc_t d, const_dnnl_primitive_attr_t a, dnnl_engine_t e,
      const_dnnl_primitive_desc_t hint),
     (r, d, a, e, hint))
DNNL(reorder_primitive_desc_create,
     (dnnl_primitive_desc_t * r, const dnnl_memory_desc_t *from, dnnl_engine_t fe,
      const dnnl_memory_desc_t *to, dnnl_engine_t te, const_dnnl_primitive_attr_t a),
     (r, from, fe, to, te, a))
DNNL(stream_create, (dnnl_stream_t * s, dnnl_engine_t e, unsigned flags), (s, e, flags))
DNNL(primitive_execute, (const_dnnl_primitive_t p, dnnl_stream_t s, int n, const dnnl_exec_arg_t *args),
     (p, s, n, args))
#endif

#ifdef TS_HAVE_SERVER
SYSTEM(int, epoll_create1, (int flags), (flags), EMFILE, -1)
SYSTEM(int, socket, (int family, int type, int protocol), (family, type, protocol), EMFILE, -1)
SYSTEM(int, uv_async_init, (uv_loop_t * l, uv_async_t *h, uv_async_cb f), (l, h, f), EMFILE, UV_EMFILE)
SYSTEM(int, uv_signal_init, (uv_loop_t * l, uv_signal_t *h), (l, h), EMFILE, UV_EMFILE)
MEMORY(enum MHD_Result, MHD_add_response_header,
       (struct MHD_Response * r, const char *name, const char *value), (r, name, value), MHD_NO)
MEMORY(struct MHD_Response *, MHD_create_response_from_buffer,
       (size_t n, void *bytes, enum MHD_ResponseMemoryMode mode), (n, bytes, mode), NULL)
MEMORY(struct MHD_Response *, MHD_create_response_from_callback,
       (uint64_t size, size_t block, MHD_ContentReaderCallback read, void *arg,
        MHD_ContentReaderFreeCallback drop),
       (size, block, read, arg, drop), NULL)
MEMORY(enum MHD_Result, MHD_queue_response,
       (struct MHD_Connection * c, unsigned status, struct MHD_Response *r), (c, status, r), MHD_NO)
#endif

/* cJSON is a shared library, which no wrapper reaches; it takes its memory from whom it is told. */
__attribute__((constructor)) static void give_cjson_memory(void) {
    cJSON_Hooks hooks = {.malloc_fn = __wrap_malloc, .free_fn = free};
    cJSON_InitHooks(&hooks);
}
