/* Tensors by name, read in place from a mapping of the file that they are in; those of PyTorch's that do not
 * lie row by row there are copied.
 *
 * Two formats are read, told apart by their first bytes: safetensors, and the zip files that torch.save
 * writes (.pt, .bin, .ckpt). Nothing in a file is trusted: whatever is handed out lies inside the mapping or
 * is such a copy, and the pickle in torch's files is read as data, never run. A file that is written to while
 * it is open (base/map.h) gives bytes that mean nothing, which ts_tensors_check tells.
 *
 * Tensors of a ts_dtype are handed out. The formats' other types (position_ids is I64) are checked
 * like the rest and then left out, but for readers that must know all that is in a file
 * (ts_tensors_other). An open file is immutable: any number of threads may read it. */
#ifndef TS_ENGINE_TENSORS_H
#define TS_ENGINE_TENSORS_H

#include <stddef.h>
#include <stdint.h>
#include "base/dtype.h"
#include "base/error.h"

#define TS_FILE_RANK 8 /* the most dimensions of a tensor */

/* How the names of such files end; for ts_path_extension. */
extern const char *const ts_tensors_extensions[];

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

/* A tensor of a type that is none of ours: where it lies, and what safetensors calls its type. */
typedef struct ts_file_other {
    const char *name, *type;
    const void *data;
    size_t bytes;
} ts_file_other;

typedef struct ts_tensors ts_tensors;

/* TS_ENOTFOUND, TS_EIO; TS_EFORMAT for anything wrong inside, with the tensor's name in the message;
 * TS_EUNSUPPORTED for a way of storing them that is known and not read; TS_ENOMEM. */
ts_code ts_tensors_open(const char *path, ts_tensors **ret, ts_error *e);

/* The same from bytes of the caller's, which must outlive the result. `path` is for messages only. */
ts_code ts_tensors_parse(const char *path, const void *bytes, size_t size, ts_tensors **ret, ts_error *e);

/* After reading from a file's tensors, before what was read is trusted: TS_EIO when the file was changed or
 * could not be read, which stays so. Any thread. */
ts_code ts_tensors_check(const ts_tensors *s, ts_error *e);
void ts_tensors_free(ts_tensors *s); /* NULL is fine; unmaps: tensors of it die too */

size_t ts_tensors_size(const ts_tensors *s); /* of the file, in bytes */
size_t ts_tensors_count(const ts_tensors *s);
const ts_file_tensor *ts_tensors_at(const ts_tensors *s, size_t i); /* i < count; in order of name */
const ts_file_tensor *ts_tensors_find(const ts_tensors *s, const char *name); /* NULL when absent */

/* Those that were left out, in no order; NULL beyond the last. */
const ts_file_other *ts_tensors_other(const ts_tensors *s, size_t i);

/* TS_EUNSUPPORTED: who wanted a tensor found it among the others. */
ts_code ts_tensors_unread(ts_error *e, const char *name, const char *type);

/* A text of a safetensors header's __metadata__; NULL when absent. */
const char *ts_tensors_metadata(const ts_tensors *s, const char *key);

/* ts_map_rest of the file. */
void ts_tensors_rest(const ts_tensors *s);

/* Number of elements; the file's own check made sure that it fits. */
size_t ts_file_tensor_elements(const ts_file_tensor *t);

/* All elements as float32 to `out`, which has room for ts_file_tensor_elements(t). */
void ts_file_tensor_to_f32(const ts_file_tensor *t, float *out);

/* TS_EUNSUPPORTED where tensors lie beside weights that they have to be multiplied by (scaled F8), which nobody here does. */
ts_code ts_tensors_check_scales(const ts_tensors *s, ts_error *e);

#endif
