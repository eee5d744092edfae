#include "engine/data.h"

#include <stdlib.h>
#include <unistd.h>
#include "base/alloc.h"
#include "base/file.h"

char *ts_data_path(const char *name) {
    static const char *const places[] = {TS_DATA_INSTALLED, TS_DATA_SOURCE};
    const char *set = getenv("TESSERA_DATA");
    if (set && *set) return ts_path_join(set, name);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char *path = ts_path_join(places[i], name);
        if (!path || access(path, R_OK) == 0) return path;
        free(path);
    }
    return ts_path_join(places[0], name);
}
