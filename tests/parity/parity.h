/* What the parity tests share: programs of one rank or several, fed from and held against fixtures.
 *
 * Fixtures are N x C x H x W and whole; a program's tensors are channels last, and each rank has its own
 * rows. Whatever goes wrong fails the running test, so nothing here returns a code. */
#ifndef TS_TESTS_PARITY_H
#define TS_TESTS_PARITY_H

#include "../unit/fixture.h"
#include "engine/program.h"

/* ---- tensors ---- */

typedef struct tensor {
    int n, c, h, w;
    float *data; /* n x c x h x w */
} tensor;

/* From the fixture, rank 1 to 4: [n][c][h][w], [n][tokens][c] (w counts the tokens), [n][c], [n]. */
tensor tensor_of(const ts_tensors *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
void tensor_free(tensor t);

/* |a - b| / |b|; infinite when the shapes differ or anything is not a number. */
double relative_l2(tensor have, tensor want);
double psnr(tensor have, tensor want, double peak);

/* Fails with the figure when relative_l2 is not below the limit. */
void assert_close(const char *what, tensor have, tensor want, double limit);

/* ---- programs ---- */

/* fixture_init for this library, beside the test's own. */
void parity_init(int argc, char **argv);
char *parity_path(const char *fixture); /* free() it */

/* One safetensors file, as ts_weights_open wants it. */
ts_weights *parity_weights(const char *fixture);
ts_weights *parity_weights_folder(const char *fixture_folder);

typedef struct parity parity;

typedef struct parity_spec {
    const ts_backend *backend;
    ts_weights *weights;
    ts_build build; /* dtype, batch, rows and what else the program is built for; patch is filled in */
    void (*model)(ts_builder *b, void *arg);
    void *arg;
} parity_spec;

/* Compiles the model for every patch of build.rows, each on a device of its own. */
parity *parity_new(const parity_spec *spec);
void parity_free(parity *p);

/* A picture: each rank gets its rows. A flat input (or anything that is no picture): all ranks get the same
 * n elements of four bytes, float32 or int32. */
void parity_put(parity *p, const char *name, tensor t);
void parity_put_flat(parity *p, const char *name, const void *data, size_t n);

/* A job from its beginning: the ops that run once. */
void parity_begin(parity *p);
/* One evaluation, each rank on a thread of its own. The first failure by rank. */
ts_code parity_evaluate(parity *p, ts_evaluation evaluation, ts_error *e);
/* Both: evaluations 1..count, all synchronous, which must not fail. */
void parity_run(parity *p, int count);
ts_program *parity_program(parity *p, int rank);
ts_transport *parity_transport(parity *p); /* NULL where nobody talks to anybody */

/* The ranks' rows of an output put together, as float32. */
tensor parity_get(parity *p, const char *name);

/* ---- lists of tests ---- */

/* cmocka tests with names made at run time, so that each case of a fixture counts as one. */
typedef struct test_list {
    struct CMUnitTest *items;
    void **states; /* the copies */
    size_t count, capacity, state_capacity;
} test_list;

/* A copy of the `size` bytes at `state` is handed to the test as *state; size 0: the pointer itself. */
void test_add(test_list *l, void (*test)(void **state), const void *state, size_t size, const char *format,
              ...) __attribute__((format(printf, 5, 6)));
/* Runs them, or those that TS_PARITY_FILTER matches, and frees the list. The number of failures. */
int test_run(test_list *l, const char *group);

#endif
