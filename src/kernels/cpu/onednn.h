/* What the kernels that use oneDNN share. */
#ifndef TS_KERNELS_CPU_ONEDNN_H
#define TS_KERNELS_CPU_ONEDNN_H

#include <dnnl.h>
#include <stdbool.h>
#include "base/alloc.h"
#include "base/error.h"

/* The next place for tensors in a scratch. */
static inline size_t ts_align_up(size_t n) {
    return (n + TS_ALIGN - 1) & ~(size_t)(TS_ALIGN - 1);
}

/* What a failure of oneDNN is: that memory ran out, or that the device failed. */
ts_code ts_dnnl_code(dnnl_status_t status);

/* Of a description that was asked for with that status: TS_EUNSUPPORTED where oneDNN has no more than its
 * scalar reference for it, or nothing; TS_ENOMEM, TS_EDEVICE. *ret_name: what oneDNN calls what it has, which is static. */
ts_code ts_dnnl_usable(dnnl_status_t status, dnnl_primitive_desc_t desc, const char **ret_name);

/* The process's engine, made by the first op; NULL when memory runs out. Any thread. */
dnnl_engine_t ts_dnnl_engine(void);

/* Puts `from`, laid out as `md`, into `to`, laid out as `wanted`: zeros where that pads. Any thread. */
dnnl_status_t ts_dnnl_reorder(const dnnl_memory_desc_t *md, const void *from,
                              const dnnl_memory_desc_t *wanted, void *to);

/* One of the primitive's memories over `data`, *ret; none, and untouched, where the primitive has no use for
 * it. */
dnnl_status_t ts_dnnl_memory(dnnl_primitive_desc_t desc, dnnl_query_t what, int index, const void *data,
                             dnnl_memory_t *ret);

#endif
