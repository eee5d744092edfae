#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[64];
static char path[512];

static void remove_folder(void) {
    DIR *d = opendir(folder);
    if (!d) return;
    for (const struct dirent *f; (f = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", folder, f->d_name);
        if (f->d_name[0] != '.') unlink(path);
    }
    closedir(d);
    rmdir(folder);
}

const char *fuzz_folder(void) {
    if (folder[0]) return folder;
    strcpy(folder, "/dev/shm/tessera-fuzz-XXXXXX");
    if (!mkdtemp(folder)) fuzz_fail("no folder in /dev/shm");
    atexit(remove_folder);
    return folder;
}

const char *fuzz_put(const char *name, const void *data, size_t size) {
    snprintf(path, sizeof path, "%s/%s", fuzz_folder(), name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) fuzz_fail("a file cannot be written");
    return path;
}

void fuzz_fail(const char *what) {
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}
