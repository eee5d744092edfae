/* The store: parameters as the kernels of one memory want them, made once and shared.
 *
 * oneDNN reorders weights to suit a primitive; a bf16 kernel wants them converted. The result depends on the
 * parameter and on the layout asked for, and every program on that memory shares it. Entries live until their
 * parameter is dropped or the store freed. */
#ifndef TS_KERNELS_STORE_H
#define TS_KERNELS_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include "base/error.h"

typedef struct ts_store ts_store;
typedef struct ts_store_key {
    const void *param;   /* identity of the parameter */
    const void *layout;  /* bytes that tell one layout from another; copied */
    size_t layout_size;
} ts_store_key;

ts_code ts_store_new(ts_store **ret);
void ts_store_free(ts_store *store); /* NULL is fine. No kernel that uses an entry may run afterwards. */

/* Finds the entry or makes it: `make` fills `bytes` of TS_ALIGN-aligned memory. Any thread; makers run one at
 * a time. The answer is owned by the store. */
ts_code ts_store_get(ts_store *store, ts_store_key key, size_t bytes,
                     ts_code (*make)(void *memory, void *arg, ts_error *e), void *arg, const void **ret,
                     ts_error *e);

/* Memory for a maker to work in, TS_ALIGN aligned, kept from one to the next: pages that are fresh each time cost more than
 * what is done in them. Only inside a maker; good until it asks again or returns. TS_ENOMEM. */
ts_code ts_store_scratch(ts_store *store, size_t bytes, void **ret, ts_error *e);
/* Nothing is going to be made for now: gives that memory back. Any thread; NULL is fine. */
void ts_store_rest(ts_store *store);

/* Which parameters are meant; called with the store's lock held. */
typedef bool ts_store_choice(void *arg, const void *param);

/* Frees the entries of those parameters, before they die themselves: another may come to lie at the same address.
 * No kernel that uses them may run afterwards. Any thread. */
void ts_store_drop(ts_store *store, ts_store_choice *choice, void *arg);

size_t ts_store_bytes(ts_store *store, ts_store_choice *choice, void *arg); /* of their entries; NULL: of all */

#endif
