/* The recording calls that builder_ops.c makes of builder.c. Private to the builder. */
#ifndef TS_ENGINE_BUILDER_RECORD_H
#define TS_ENGINE_BUILDER_RECORD_H

#include "engine/builder_internal.h"

/* "<scope>.<name>"; absent: the builder fails and the answer is NULL. */
const ts_param *builder_param(ts_builder *b, ts_scope s, const char *name);

/* A new tensor with the rows' share of this patch; TS_NO_BUF once the builder has failed. */
ts_buf builder_value(ts_builder *b, ts_rows rows, int w, int c, ts_dtype dtype);
ts_rows builder_undivided(int height);

/* A new item that reads x0..x2 and writes out; NULL once the builder has failed. Valid until the next one. */
item *builder_item(ts_builder *b, item_kind kind, ts_scope s, ts_buf x0, ts_buf x1, ts_buf x2, ts_buf out);
void builder_touch_kv(ts_builder *b, item *it, ts_buf kv);
int builder_exchange(ts_builder *b, ts_exchange_kind kind); /* index, or -1 once the builder has failed */
bool builder_divided(const ts_builder *b, ts_buf x);

#endif
