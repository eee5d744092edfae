#include "server/loras.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/engine.h"
#include "engine/tensors.h"

/* Not a way to somewhere else, and nothing that <lora:NAME:SCALE> could not hold. */
static bool is_name(const char *name) {
    size_t n = strlen(name);
    if (!n || n >= TS_LORA_NAME_BYTES || *name == '.' || !ts_utf8_valid(name, n)) return false;
    for (const char *s = name; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 127 || strchr("/:<>", *s)) return false;
    return true;
}

ts_code ts_loras_find(const char *folder, const char *name, ts_lora_ref *ret, ts_error *e) {
    if (!is_name(name))
        return ts_fail_param(e, TS_EINVAL, "loras",
                             "a name of 1 to %d bytes as GET /v1/loras lists it is wanted",
                             TS_LORA_NAME_BYTES - 1);
    char *path = ts_lora_find(folder, name);
    /* Another file under the name is another LoRA: what was made of the old one is not used for it. */
    ts_code rc = path ? ts_lora_stamp(path, &ret->stamp, e)
                      : ts_fail(e, TS_ENOMEM, "there is no memory for the request");
    if (rc == TS_ENOTFOUND)
        rc = ts_fail_param(e, TS_ENOTFOUND, "loras", "there is no LoRA %s; GET /v1/loras lists them", name);
    free(path);
    if (!rc) strcpy(ret->name, name);
    return rc;
}

static int in_order(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

ts_code ts_loras_list(const char *folder, char ***ret, size_t *ret_count, ts_error *e) {
    char **names = NULL;
    size_t count = 0, capacity = 0;
    ts_code rc = TS_OK;
    DIR *d = opendir(folder);
    if (!d)
        return ts_fail_errno(e, errno == ENOMEM ? TS_ENOMEM : TS_EIO, errno,
                             "opening the folder of the LoRAs");
    for (const struct dirent *f; !rc && (f = readdir(d));) {
        /* A file's name without the extension, or a folder's. */
        size_t n, whole = strlen(f->d_name);
        ts_path_extension(f->d_name, ts_tensors_extensions, &n);
        char *name = ts_strndup(f->d_name, n);
        ts_lora_ref ignored;
        /* A plain file of tensors is there; thousands of them need not be looked at one by one. */
        const bool plain = f->d_type == DT_REG && n < whole && name && is_name(name);
        if (name && n < whole && !plain && ts_loras_find(folder, name, &ignored, NULL)) {
            free(name);
            name = ts_strndup(f->d_name, n = whole);
        }
        if (name && n == whole && ts_loras_find(folder, name, &ignored, NULL)) {
            free(name);
            continue;
        }
        if (name && ts_grow(&names, &capacity, count + 1, sizeof *names)) {
            names[count++] = name;
        } else {
            free(name);
            rc = ts_fail(e, TS_ENOMEM, "listing the LoRAs");
        }
    }
    closedir(d);
    if (rc) {
        while (count) free(names[--count]);
        free(names);
        return rc;
    }
    if (count) qsort(names, count, sizeof *names, in_order);
    size_t kept = 0; /* a file and a folder may have the same name */
    for (size_t i = 0; i < count; i++) {
        if (kept && !strcmp(names[i], names[kept - 1]))
            free(names[i]);
        else
            names[kept++] = names[i];
    }
    count = kept;
    *ret = names;
    *ret_count = count;
    return TS_OK;
}
