/* Arrays of one element type to another.
 *
 * Sources and destinations may lie at any address: model files do not align their tensors. Rounding is to nearest, ties to
 * even, f64 by way of f32; beyond the range of f16 is infinity; a NaN stays a NaN. Any thread. */
#ifndef TS_KERNELS_CONVERT_H
#define TS_KERNELS_CONVERT_H

#include <stddef.h>
#include "base/dtype.h"

/* n elements from `src` to `dst`, which do not overlap. To f32, bf16 or f16, or to the type that they have. */
void ts_convert(ts_dtype from, const void *src, ts_dtype to, void *dst, size_t n);

#endif
