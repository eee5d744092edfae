#include "base/mailbox.h"

#include <pthread.h>
#include <stdlib.h>
#include "base/alloc.h"

struct ts_mailbox {
    pthread_mutex_t lock;
    ts_message *head, *tail;
    size_t count, capacity;
    void (*wake)(void *arg);
    void *arg;
};

ts_code ts_mailbox_new(size_t capacity, void (*wake)(void *arg), void *arg, ts_mailbox **ret) {
    ts_mailbox *box = ts_new0(ts_mailbox);
    if (!box) return TS_ENOMEM;
    pthread_mutex_init(&box->lock, NULL);
    box->capacity = capacity;
    box->wake = wake;
    box->arg = arg;
    *ret = box;
    return TS_OK;
}

void ts_mailbox_free(ts_mailbox *box) {
    if (!box) return;
    for (ts_message *m = box->head, *next; m; m = next) {
        next = m->next;
        if (m->discard) m->discard(m);
    }
    pthread_mutex_destroy(&box->lock);
    free(box);
}

ts_code ts_mailbox_post(ts_mailbox *box, ts_message *m) {
    pthread_mutex_lock(&box->lock);
    if (box->count == box->capacity) {
        pthread_mutex_unlock(&box->lock);
        return TS_EFULL;
    }
    m->next = NULL;
    if (box->tail) box->tail->next = m;
    else box->head = m;
    box->tail = m;
    int was_empty = box->count++ == 0;
    pthread_mutex_unlock(&box->lock);
    if (was_empty && box->wake) box->wake(box->arg);
    return TS_OK;
}

ts_message *ts_mailbox_take_all(ts_mailbox *box) {
    pthread_mutex_lock(&box->lock);
    ts_message *all = box->head;
    box->head = box->tail = NULL;
    box->count = 0;
    pthread_mutex_unlock(&box->lock);
    return all;
}
