#include "engine/moments.h"

void ts_moments_merge(const ts_moments *m, double *ret) {
    for (int i = 0; i < m->batch * m->groups; i++) {
        const double *own = m->own + 2 * i;
        const double *base = m->own_before ? m->own_before + 2 * i : own;
        double count = m->own_count, sum = base[0], squares = base[1];
        for (int j = 0; j < m->others; j++) {
            count += m->other_count[j];
            sum += m->other[j][2 * i];
            squares += m->other[j][2 * i + 1];
        }
        double mean = sum / count, square = squares / count;
        if (m->own_before) {
            mean += (own[0] - base[0]) / m->own_count;
            square += (own[1] - base[1]) / m->own_count;
        }
        double variance = square - mean * mean;
        if (variance < 0 && m->own_before) {
            double own_mean = own[0] / m->own_count;
            variance = own[1] / m->own_count - own_mean * own_mean;
        }
        ret[2 * i] = mean;
        ret[2 * i + 1] = variance > 0 ? variance : 0;
    }
}
