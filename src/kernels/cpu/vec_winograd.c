/* The transforms of F(4x4, 3x3) (Winograd 1980; Lavin & Gray 2016, arXiv 1509.09308), a vector of channels at
 * a time.
 *
 * A tile of 6x6 inputs d and the kernel g give 4x4 outputs A^T [(G g G^T) * (B^T d B)] A. The points are 0,
 * +-a, +-b and infinity with a = sqrt(1/2), b = sqrt(2): the products a^2 b^2 = 1, a b^2 = b, b a^2 = a keep
 * the factors near one, which loses half as much as the usual 0, +-1, +-2 (cpu/winograd.c has G). */
#include "kernels/cpu/vec_math.h"

#include "kernels/cpu/vec_isa.h"

enum { IN = TS_WINOGRAD_IN, OUT = TS_WINOGRAD_OUT };

#define A 0.70710678f
#define B 1.41421356f

/* B^T d of one row or column of six. */
TS_INLINE void spread(const vf d[IN], vf ret[IN]) {
    vf even = d[4] - 2.0f * d[2], odd = A * d[3] - B * d[1];
    vf even_b = d[4] - 0.5f * d[2], odd_b = B * d[3] - A * d[1];
    ret[0] = d[0] - 2.5f * d[2] + d[4];
    ret[1] = even + odd;
    ret[2] = even - odd;
    ret[3] = even_b + odd_b;
    ret[4] = even_b - odd_b;
    ret[5] = d[1] - 2.5f * d[3] + d[5];
}

/* A^T m. */
TS_INLINE void gather(const vf m[IN], vf ret[OUT]) {
    vf sum = m[1] + m[2], difference = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    ret[0] = m[0] + sum + sum_b;
    ret[1] = A * difference + B * difference_b;
    ret[2] = 0.5f * sum + 2.0f * sum_b;
    ret[3] = (0.5f * A) * difference + (2.0f * B) * difference_b + m[5];
}

void TS_ISA_NAME(ts_winograd_spread)(const ts_tile *t, int c, float *v, size_t plane) {
    for (int i = 0; i < c; i += LANES) {
        vf rows[IN][IN]; /* [column][what was a row] */
        for (int x = 0; x < IN; x++) {
            vf d[IN];
            for (int y = 0; y < IN; y++)
                d[y] = y < t->rows && x >= t->left && x < t->right
                           ? load(t->x + (size_t)y * t->row + (size_t)(x - t->left) * t->ld + i)
                           : (vf){0};
            spread(d, rows[x]);
        }
        for (int y = 0; y < IN; y++) {
            vf d[IN], to[IN];
            for (int x = 0; x < IN; x++) d[x] = rows[x][y];
            spread(d, to);
            for (int x = 0; x < IN; x++) store(v + (size_t)(y * IN + x) * plane + i, to[x]);
        }
    }
}

void TS_ISA_NAME(ts_winograd_gather)(const float *m, size_t plane, int c, const float *bias,
                                     const ts_tile *t) {
    for (int i = 0; i < c; i += LANES) {
        vf columns[IN][OUT], add = bias ? load(bias + i) : (vf){0};
        for (int x = 0; x < IN; x++) {
            vf d[IN];
            for (int y = 0; y < IN; y++) d[y] = load(m + (size_t)(y * IN + x) * plane + i);
            gather(d, columns[x]);
        }
        for (int y = 0; y < OUT && y < t->rows; y++) {
            vf d[IN], to[OUT];
            for (int x = 0; x < IN; x++) d[x] = columns[x][y];
            gather(d, to);
            for (int x = 0; x < OUT && x < t->right; x++) {
                size_t at = (size_t)y * t->row + (size_t)x * t->ld + (size_t)i;
                vf sum = to[x] + add;
                if (t->r) sum += load(t->r + (size_t)y * t->row_r + (size_t)x * t->ld_r + i);
                store(t->y + at, sum);
            }
        }
    }
}
