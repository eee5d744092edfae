/* safetensors files, written; engine/tensors.h reads them.
 *
 * The format: a little-endian u64 header length, a JSON header {name: {dtype, shape, data_offsets}}, bytes.
 * Reading checks the header's length against the file and a maximum, every shape times its type against its
 * offsets, and that the tensors cover the bytes exactly, without overlap or hole. */
#ifndef TS_ENGINE_SAFETENSORS_H
#define TS_ENGINE_SAFETENSORS_H

#include "engine/tensors.h"

/* Writes n tensors to a new file that replaces `path` at once when it is complete. Header padded to eight
 * bytes, wider types first, so that every tensor is aligned for its type. TS_EINVAL when a tensor's bytes
 * are not its shape times its type, or a name is empty or comes twice; TS_EIO, TS_ENOMEM. */
ts_code ts_safetensors_write(const char *path, const ts_file_tensor *tensors, size_t n, ts_error *e);

#endif
