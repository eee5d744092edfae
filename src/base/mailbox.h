/* A mailbox: any thread posts messages, one thread takes them all.
 *
 * Posting never blocks on the reader. `wake` is called after a post that made the box non-empty, on the
 * posting thread, and must only signal (uv_async_send, eventfd). Messages are owned by the box between post
 * and take. Bounded: a full box refuses, and says so. */
#ifndef TS_BASE_MAILBOX_H
#define TS_BASE_MAILBOX_H

#include <stddef.h>
#include "base/error.h"

/* Embedded as the first member of what is sent. */
typedef struct ts_message {
    struct ts_message *next;
    void (*discard)(struct ts_message *m); /* frees a message that was never taken */
} ts_message;

typedef struct ts_mailbox ts_mailbox;

/* capacity > 0, in messages; wake may be NULL. TS_OK and *ret, or TS_ENOMEM and *ret left alone. */
ts_code ts_mailbox_new(size_t capacity, void (*wake)(void *arg), void *arg, ts_mailbox **ret);
void ts_mailbox_free(ts_mailbox *box); /* NULL is fine; discards what was never taken */

/* Any thread. TS_EFULL: not taken, the caller still owns m. */
ts_code ts_mailbox_post(ts_mailbox *box, ts_message *m);
ts_message *ts_mailbox_take_all(ts_mailbox *box); /* reader's thread; a list in order of posting, or NULL */

#endif
