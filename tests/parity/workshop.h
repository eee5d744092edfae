/* Where the tests of single files in the LDM/SGM layout put them together.
 *
 * The fixture says of each tensor of such a file what it is made of; diffusers' own conversion has read it
 * back. The files are made here, so that the weights are not kept twice. Failures fail the test. */
#ifndef TS_TESTS_WORKSHOP_H
#define TS_TESTS_WORKSHOP_H

#include "pictures.h"

typedef struct ts_source_file {
    char *folder;
    ts_tensors *file;
} ts_source_file;

typedef struct ts_workshop {
    cJSON *cases;
    char folder[64]; /* where the files are put */
    ts_source_file sources[16];
    int source_count;
    void *made[8192]; /* bytes that were put together */
    size_t made_count;
    ts_file_tensor tensors[4096]; /* of the next file; to be changed at will */
    size_t count;
} ts_workshop;

extern ts_workshop workshop;

void workshop_open(int argc, char **argv); /* the arguments of main */
void workshop_close(void);

const cJSON *workshop_case(const char *kind);          /* of the fixture: "sd1", "lcm" and so on */
const ts_tensors *workshop_source(const char *folder); /* a fixture's component */
char *workshop_room(size_t bytes);                     /* zeros, until the next gathering */

/* All tensors of a kind of file. */
void workshop_gather(const char *kind);
ts_file_tensor *workshop_tensor(const char *name);
void workshop_sift(const char *prefix, bool keep); /* keeps what begins with it, or drops it */

/* NAME.safetensors of the tensors; its path. */
char *workshop_write(const char *name);
/* NAME.json: the fixture's, with the folders of the tokenizers by their full path. */
void workshop_beside(const cJSON *c, const char *name);
char *workshop_make(const char *kind); /* gathers and writes both */
void workshop_discard(char *path);     /* removes both, frees the path; NULL is fine */

/* One tensor of a file becomes integers of as many bytes. */
void workshop_retype(const char *path, const char *name);

/* A folder of links to a pipeline's components with a model_index.json of its own; its path. */
char *workshop_folder(const char *pipeline, const char *index);
/* In such a folder: another fixture's folder in place of a component. */
void workshop_swap(const char *folder, const char *component, const char *fixture);
/* In such a folder: a component's tensors anew, without one of them (drop) or with it of another type. */
void workshop_spoil(const char *folder, const char *pipeline, const char *component, const char *name,
                    bool drop);
/* In such a folder: a file of a component, in place of what the fixture has of that name. Once a component. */
void workshop_put(const char *folder, const char *component, const char *file, const char *text);
void workshop_discard_folder(char *folder); /* and frees the path */

#endif
