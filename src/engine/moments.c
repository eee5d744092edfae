#include "engine/moments.h"

#include <math.h>

/* The least share that a corrected variance has of what is known to be there. Without one, a patch that calms
 * down takes the whole picture's variance down with it, divides by what is left, and some latents run away.
 * How this figure was found: docs/benchmarks.md. */
#define LEAST_SHARE 0.75

static double variance_of(double mean, double square) {
    return fmax(square - mean * mean, 0);
}

void ts_moments_merge(const ts_moments *m, double *ret) {
    for (int i = 0; i < m->batch * m->groups; i++) {
        const double *own = m->own + 2 * i, *before = m->own_before ? m->own_before + 2 * i : own;
        double count = m->own_count, sum = own[0], squares = own[1];
        for (int j = 0; j < m->others; j++) {
            count += m->other_count[j];
            sum += m->other[j][2 * i];
            squares += m->other[j][2 * i + 1];
        }
        double mean = sum / count, variance = variance_of(mean, squares / count);
        if (m->own_before) {
            const double change[2] = {own[0] - before[0], own[1] - before[1]};
            const double square = (squares - change[1]) / count + change[1] / m->own_count;
            mean = (sum - change[0]) / count + change[0] / m->own_count;
            variance = fmax(square - mean * mean, LEAST_SHARE * variance);
        }
        ret[2 * i] = mean;
        ret[2 * i + 1] = variance;
    }
}
