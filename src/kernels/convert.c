#include "kernels/convert.h"

#include <string.h>
#include "kernels/cpu/vec.h"

void ts_convert(ts_dtype from, const void *src, ts_dtype to, void *dst, size_t n) {
    if (from != to)
        ts_vec_best()->convert(from, src, to, dst, n);
    else if (n)
        memcpy(dst, src, n * ts_dtype_size(from));
}
