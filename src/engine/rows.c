#include "engine/rows.h"

#include <math.h>

int ts_rows_split(int height, int levels, int n, ts_rows *ret) {
    int deepest = height;
    for (int l = 0; l < levels; l++) deepest = (deepest + 1) / 2;
    if (n > deepest) n = deepest;
    ts_rows r = {.n = n};
    for (int i = 0, at = 0; i < n; i++) {
        at += deepest / n + (i < deepest % n);
        int full = at << levels;
        r.bound[i + 1] = full < height ? full : height;
    }
    *ret = r;
    return n;
}

ts_rows ts_rows_halve(ts_rows rows) {
    for (int i = 1; i <= rows.n; i++) rows.bound[i] = (rows.bound[i] + 1) / 2;
    return rows;
}

ts_rows ts_rows_double(ts_rows rows, int height) {
    for (int i = 1; i < rows.n; i++) rows.bound[i] *= 2;
    rows.bound[rows.n] = height;
    return rows;
}

ts_span ts_rows_window(const ts_rows *rows, int width, int patch, double partial) {
    long own_begin = (long)rows->bound[patch] * width, own_end = (long)rows->bound[patch + 1] * width;
    long all = (long)ts_rows_height(rows) * width;
    double w = ceil(partial * (double)(own_end - own_begin));
    if (!(w < (double)all)) return (ts_span){0, all};
    long reach = (long)w;
    return (ts_span){own_begin > reach ? own_begin - reach : 0,
                     own_end + reach < all ? own_end + reach : all};
}

ts_span ts_rows_share(const ts_rows *rows, int width, int j, ts_span span) {
    long begin = (long)rows->bound[j] * width, end = (long)rows->bound[j + 1] * width;
    ts_span s = {span.begin > begin ? span.begin : begin, span.end < end ? span.end : end};
    if (s.end < s.begin) s.end = s.begin;
    return s;
}
