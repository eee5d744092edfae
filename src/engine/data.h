/* Files that come with the program: CLIP's vocabulary, for models that lack their own. */
#ifndef TS_ENGINE_DATA_H
#define TS_ENGINE_DATA_H

/* Where `name` lies, a file or folder of the data directory: $TESSERA_DATA if it is set, else where the
 * program was installed to, else in the source tree that it was built from, whichever has it first; the first
 * of them when none has. free() it; NULL when memory runs out. */
char *ts_data_path(const char *name);

#endif
