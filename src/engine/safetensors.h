/* safetensors files: tensors by name, read in place from a mapping of the file.
 *
 * The format: a little-endian u64 header length, a JSON header {name: {dtype, shape, data_offsets}}, bytes.
 * Nothing in a file is trusted. Opening checks the header's length against the file and a maximum, every
 * shape times its type against its offsets, and that the tensors cover the bytes exactly, without overlap
 * or hole, so that whatever is handed out afterwards lies inside the mapping. A file that is written to while
 * it is open (base/map.h) gives bytes that mean nothing, which ts_safetensors_check tells.
 *
 * F32, F16 and BF16 tensors are handed out. The format's other types (position_ids is I64) are checked like
 * the rest and then left out, but for readers that must know all that is in a file (ts_safetensors_other). An
 * open file is immutable: any number of threads may read it. */
#ifndef TS_ENGINE_SAFETENSORS_H
#define TS_ENGINE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "base/error.h"

#define TS_FILE_RANK 8 /* the most dimensions of a tensor */

/* `data` is row-major, little-endian and may lie at any address, odd ones included: read it through memcpy,
 * ts_file_tensor_to_f32 or ts_convert, never through a float pointer. */
typedef struct ts_file_tensor {
    const char *name;
    ts_dtype dtype;
    int rank;
    int64_t shape[TS_FILE_RANK];
    const void *data;
    size_t bytes;
} ts_file_tensor;

/* A tensor of a type that is none of ours: where it lies, and what the format calls its type. */
typedef struct ts_file_other {
    const char *name, *type;
    const void *data;
    size_t bytes;
} ts_file_other;

typedef struct ts_safetensors ts_safetensors;

/* TS_ENOTFOUND, TS_EIO; TS_EFORMAT for anything wrong inside, with the tensor's name in the message;
 * TS_ENOMEM. */
ts_code ts_safetensors_open(const char *path, ts_safetensors **ret, ts_error *e);

/* The same from bytes of the caller's, which must outlive the result. `path` is for messages only. */
ts_code ts_safetensors_parse(const char *path, const void *bytes, size_t size, ts_safetensors **ret,
                             ts_error *e);

/* After reading from a file's tensors, before what was read is trusted: TS_EIO when the file was changed or
 * could not be read, which stays so. Any thread. */
ts_code ts_safetensors_check(const ts_safetensors *s, ts_error *e);
void ts_safetensors_free(ts_safetensors *s); /* NULL is fine; unmaps: tensors of it die too */

size_t ts_safetensors_count(const ts_safetensors *s);
const ts_file_tensor *ts_safetensors_at(const ts_safetensors *s, size_t i); /* i < count; in order of name */
const ts_file_tensor *ts_safetensors_find(const ts_safetensors *s, const char *name); /* NULL when absent */

/* Those that were left out, in no order; NULL beyond the last. */
const ts_file_other *ts_safetensors_other(const ts_safetensors *s, size_t i);

/* A text of the header's __metadata__; NULL when absent. */
const char *ts_safetensors_metadata(const ts_safetensors *s, const char *key);

/* ts_map_rest of the file. */
void ts_safetensors_rest(const ts_safetensors *s);

/* Number of elements; the file's own check made sure that it fits. */
size_t ts_file_tensor_elements(const ts_file_tensor *t);

/* All elements as float32 to `out`, which has room for ts_file_tensor_elements(t). */
void ts_file_tensor_to_f32(const ts_file_tensor *t, float *out);

/* Writes n tensors to a new file that replaces `path` at once when it is complete. Header padded to eight
 * bytes, wider types first, so that every tensor is aligned for its type. TS_EINVAL when a tensor's bytes
 * are not its shape times its type, or a name is empty or comes twice; TS_EIO, TS_ENOMEM. */
ts_code ts_safetensors_write(const char *path, const ts_file_tensor *tensors, size_t n, ts_error *e);

#endif
