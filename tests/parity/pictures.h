/* What the tests of whole pictures share: a model, a group, and a job of one picture. Failures fail the test.
 */
#ifndef TS_TESTS_PICTURES_H
#define TS_TESTS_PICTURES_H

#include "engine/model.h"
#include "parity.h"

typedef struct studio {
    ts_model *model;
    ts_group *group;
} studio;

/* fixture: the model's folder. ranks devices of one thread each. */
studio studio_open(const char *fixture, const ts_backend *backend, int ranks);
/* path: of a model; vae: NULL or another autoencoder's. CPU devices. */
studio studio_open_with(const char *path, const char *vae, int ranks);
void studio_close(studio s);

typedef struct shot {
    ts_error error; /* of the run */
    tensor latents; /* after the last evaluation; data NULL where there was an error */
    unsigned char *rgb;
    ts_job_stats stats;
} shot;

/* Runs a job of one picture; `request` is the picture's input. A run that fails fails the test. */
shot studio_shoot(studio s, const ts_shape *shape, const ts_picture *request);
void shot_free(shot s);

/* The picture that edits begin with, the formula of tools/parity/edits.py; free() it. */
unsigned char *studio_source(int width, int height);

/* Holds the bytes to the fixture's picture, -1..1. */
void studio_hold(const char *name, const unsigned char *rgb, tensor image);

#endif
