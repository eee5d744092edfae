/* The folder whose LoRAs requests can name (ts_lora_find). */
#ifndef TS_SERVER_LORAS_H
#define TS_SERVER_LORAS_H

#include "engine/job.h"

/* Fills name and stamp of a name that a client sent; looks the file up, but does not open it. TS_EINVAL for
 * what is no name, TS_ENOTFOUND, both with the param "loras"; TS_EIO. */
ts_code ts_loras_find(const char *folder, const char *name, ts_lora_ref *ret, ts_error *e);

/* The names there are, in order. free() each and the list. TS_EIO, TS_ENOMEM. */
ts_code ts_loras_list(const char *folder, char ***ret, size_t *ret_count, ts_error *e);

#endif
