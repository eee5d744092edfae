/* Parameters as the backends read them: checked, converted to float32, kept in the store. Any thread. */
#ifndef TS_KERNELS_PARAM_H
#define TS_KERNELS_PARAM_H

#include "kernels/op.h"
#include "kernels/store.h"

/* TS_EINVAL for a rank, shape, dtype or address that cannot be. */
ts_code ts_param_check(const ts_param *p, ts_error *e);

size_t ts_param_count(const ts_param *p); /* elements */

/* All elements, row-major, in the type that is wanted. The errors of p's make, TS_ENOMEM. */
ts_code ts_param_load(const ts_param *p, ts_dtype wanted, void *ret, ts_error *e);

/* The whole parameter as float32 from the store, zeros behind it up to a multiple of 16. NULL p gives NULL.
 */
ts_code ts_param_f32(ts_store *store, const ts_param *p, const float **ret, ts_error *e);

/* Bytes of it as it lies in the model file, or of what it is made in place of. */
size_t ts_param_bytes(const ts_param *p);

#endif
