#include "engine/job.h"

#include <string.h>

#define X(name, text) text,
static const char *const tasks[] = {TS_TASKS(X)};
static const char *const modes[] = {TS_MODES(X)};
static const char *const group_norm_modes[] = {TS_GROUP_NORM_MODES(X)};
static const char *const cfg_splits[] = {TS_CFG_SPLITS(X)};
#undef X

static int find(const char *const *names, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

const char *ts_task_name(ts_task task) {
    return tasks[task];
}
const char *ts_mode_name(ts_mode mode) {
    return modes[mode];
}
const char *ts_group_norm_mode_name(ts_group_norm_mode mode) {
    return group_norm_modes[mode];
}
const char *ts_cfg_split_name(ts_cfg_split split) {
    return cfg_splits[split];
}
int ts_mode_find(const char *name) {
    return find(modes, TS_MODE_COUNT, name);
}
int ts_group_norm_mode_find(const char *name) {
    return find(group_norm_modes, TS_GROUP_NORM_MODE_COUNT, name);
}
int ts_cfg_split_find(const char *name) {
    return find(cfg_splits, TS_CFG_SPLIT_COUNT, name);
}

static bool levels_equal(const ts_level_list *a, const ts_level_list *b) {
    return a->count == b->count && !memcmp(a->at, b->at, (size_t)a->count * sizeof *a->at);
}

bool ts_shape_same_loras(const ts_shape *a, const ts_shape *b) {
    if (a->lora_count != b->lora_count) return false;
    for (int i = 0; i < a->lora_count; i++) {
        const ts_lora_ref *x = &a->loras[i], *y = &b->loras[i];
        if (strcmp(x->name, y->name) != 0 || x->scale != y->scale || x->stamp != y->stamp) return false;
    }
    return true;
}

int ts_shape_chunks(const ts_shape *s) {
    return s->chunks ? s->chunks : 1;
}

bool ts_shape_equal(const ts_shape *a, const ts_shape *b) {
    const ts_parallel *p = &a->parallel, *q = &b->parallel;
    return a->width == b->width && a->height == b->height && a->steps == b->steps &&
           a->sampler == b->sampler && a->scheduler == b->scheduler && levels_equal(&a->levels, &b->levels) &&
           a->has_eta == b->has_eta && (!a->has_eta || a->eta == b->eta) &&
           a->dtype == b->dtype && a->guided == b->guided && a->task == b->task && a->strength == b->strength &&
           p->mode == q->mode && p->ranks == q->ranks && p->partial == q->partial && p->warmup == q->warmup &&
           p->group_norm == q->group_norm && p->cfg_split == q->cfg_split && ts_shape_same_loras(a, b) &&
           ts_shape_chunks(a) == ts_shape_chunks(b);
}

int ts_shape_begin(const ts_shape *s) {
    return s->task == TS_TASK_TEXT ? 0 : s->steps - (int)(s->steps * s->strength);
}
