/* Weights: the parameters of one model component, by name, as the kernels take them (ts_param).
 *
 * A 1x1 convolution's weight is a matrix and is handed out as one. Parameters that a layer computes together
 * (keys and values) can be joined once and are kept. The address of a ts_param is its identity for the
 * store. Opening and reading happen on one thread; joins are guarded, so that ranks may compile at once. */
#ifndef TS_ENGINE_WEIGHTS_H
#define TS_ENGINE_WEIGHTS_H

#include <stdbool.h>
#include "base/error.h"
#include "engine/tensors.h"
#include "kernels/op.h"

typedef struct ts_weights ts_weights;

/* Opens the component's tensors in `folder`, as the libraries that write such folders name them: one file or
 * the shards that an index lists, of the plain kind or of a variant (fp16, bf16, fp32), the plain kind first,
 * and in each safetensors before PyTorch's .bin. TS_ENOTFOUND, TS_EFORMAT (also for a tensor that two shards
 * hold), TS_ENOMEM. */
ts_code ts_weights_open(const char *folder, ts_weights **ret, ts_error *e);

/* A set of one's own: new, add each, seal, and only then find. `path` is for messages. */
ts_code ts_weights_new(const char *path, ts_weights **ret, ts_error *e);
/* Under a name that is copied; t's data must outlive w. A tensor of more than four dimensions is left out: no
 * layer's parameter has as many, so a layer that wants it says that it is missing. TS_ENOMEM. */
ts_code ts_weights_add(ts_weights *w, const char *name, const ts_file_tensor *t, ts_error *e);
/* One of a type that is not read, with safetensors' name for the type, which is static. TS_ENOMEM. */
ts_code ts_weights_add_unread(ts_weights *w, const char *name, const char *type, ts_error *e);
const char *ts_weights_unread(const ts_weights *w, const char *name); /* its type; NULL: there is none */
const char *ts_weights_unread_at(const ts_weights *w, size_t i, const char **ret_type); /* a name; NULL beyond the last */
/* A parameter of like's name, shape and type that is made when a kernel wants it (ts_param). The source, of
 * so many bytes, is w's and freed with it, at the latest. */
ts_code ts_weights_add_made(ts_weights *w, const ts_param *like,
                            ts_code (*make)(const void *source, float *ret, ts_error *e), void *source,
                            size_t bytes, ts_error *e);
/* Memory that w frees when it dies, for what was made rather than mapped; freed at once when it fails. */
ts_code ts_weights_keep(ts_weights *w, void *bytes, ts_error *e);
/* The file is w's from now on and dies with it; closed at once when that fails. TS_ENOMEM. */
ts_code ts_weights_hold(ts_weights *w, ts_tensors *file, ts_error *e);
/* What w's tensors are in is somebody else's file, which outlives w. */
void ts_weights_lean_on(ts_weights *w, const ts_tensors *file);
/* A layer over `base`: a parameter that is added to it stands in place of base's of that name, the rest are
 * base's own, with their addresses and their joins, so that whatever was made of them is shared. base must
 * outlive it, unless the layer adopts it: then they die together. TS_ENOMEM. */
ts_code ts_weights_over(ts_weights *base, ts_weights **ret, ts_error *e);
void ts_weights_adopt_base(ts_weights *w);
/* TS_EFORMAT for a name that came twice. */
ts_code ts_weights_seal(ts_weights *w, ts_error *e);
void ts_weights_free(ts_weights *w); /* NULL is fine; every ts_param of it dies too */

/* NULL when there is none. Any thread. */
const ts_param *ts_weights_find(const ts_weights *w, const char *name);

/* All of them, of a layer those that stand in base's place among them; in order of name. */
size_t ts_weights_count(const ts_weights *w);
const ts_param *ts_weights_at(const ts_weights *w, size_t i); /* i < count */

/* Rows of a, then rows of b (both [n][c] or both [n], of the same c), as one parameter, which is
 * read from both; made once for each pair. TS_EFORMAT when they do not fit together, TS_ENOMEM. Any thread.
 */
ts_code ts_weights_join(ts_weights *w, const ts_param *a, const ts_param *b, const ts_param **ret,
                        ts_error *e);

/* Of a layer: whether a parameter is its own, or was joined of its own. Any thread. */
bool ts_weights_owns(ts_weights *w, const void *param);
size_t ts_weights_source_bytes(const ts_weights *w); /* of all ts_weights_add_made */

size_t ts_weights_elements(const ts_weights *w); /* in all parameters together */
const char *ts_weights_path(const ts_weights *w);

/* TS_EIO when one of the files that w holds has changed since it was opened (ts_tensors_check). Any
 * thread. */
ts_code ts_weights_check(const ts_weights *w, ts_error *e);
void ts_weights_rest(const ts_weights *w); /* ts_map_rest of each of them, and of what w leans on */

#endif
