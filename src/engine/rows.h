/* Rows: how the rows of one tensor are dealt out to the patches of a picture.
 *
 * A patch is a contiguous run of rows. The split is made at the deepest level of the U-Net and doubled
 * upwards, so that every border is a border at every level; the last patch may lose a row at each level,
 * where the picture's height is odd there. */
#ifndef TS_ENGINE_ROWS_H
#define TS_ENGINE_ROWS_H

#include "engine/job.h"

typedef struct ts_rows {
    int n;                       /* patches */
    int bound[TS_MAX_RANKS + 1]; /* patch i has rows bound[i] .. bound[i + 1] - 1; bound[n] is the height */
} ts_rows;

/* Splits a tensor of `height` rows into n patches whose borders survive `levels` halvings (rounding up). The
 * deepest rows are dealt evenly, the first patches taking what is left over. Returns the number of patches
 * that got rows: n, or fewer when the deepest level has fewer rows than n. */
int ts_rows_split(int height, int levels, int n, ts_rows *ret);

ts_rows ts_rows_halve(ts_rows rows);              /* downsampling by two rounds up */
ts_rows ts_rows_double(ts_rows rows, int height); /* to height 2h or 2h - 1: the last patch loses a row */

static inline int ts_rows_of(const ts_rows *rows, int patch) {
    return rows->bound[patch + 1] - rows->bound[patch];
}
static inline int ts_rows_height(const ts_rows *rows) { return rows->bound[rows->n]; }

/* A run of tokens of the whole picture. */
typedef struct ts_span {
    long begin, end;
} ts_span;

/* The tokens that patch i attends to: its own T and ceil(partial * T) before and after, clamped to the
 * picture. partial INFINITY is every token. (PCPP, arXiv 2412.02962, section 3.) */
ts_span ts_rows_window(const ts_rows *rows, int width, int patch, double partial);

/* The part of `span` that patch j holds; begin == end when there is none. */
ts_span ts_rows_share(const ts_rows *rows, int width, int j, ts_span span);

#endif
