/* A tokenizer's folder and a text. The first byte says which form: 'j' tokenizer.json, else vocab.json. What
 * follows is parted by NUL, which JSON cannot hold: that file, merges.txt, tokenizer_config.json,
 * added_tokens.json, text. */
#include "fuzz.h"

#include <string.h>
#include <unistd.h>
#include "engine/tokenizer.h"

static const uint8_t *next, *end;

static void part(const uint8_t **ret, size_t *ret_size) {
    const uint8_t *gap = next < end ? memchr(next, 0, (size_t)(end - next)) : NULL;
    *ret = next;
    *ret_size = (size_t)((gap ? gap : end) - next);
    next = gap ? gap + 1 : end;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {NULL, "merges.txt", "tokenizer_config.json", "added_tokens.json"};
    if (!size) return 0;
    next = data + 1;
    end = data + size;
    const uint8_t *bytes;
    size_t n;
    for (int i = 0; i < 4; i++) {
        part(&bytes, &n);
        const char *name = i ? names[i] : data[0] == 'j' ? "tokenizer.json" : "vocab.json";
        const char *path = fuzz_put(name, bytes, n);
        if (i > 1 && !n) unlink(path); /* these may be missing */
    }
    /* The text may hold NUL. */
    bytes = next;
    n = (size_t)(end - next);
    ts_tokenizer *t = NULL;
    ts_error e = {0};
    if (!ts_tokenizer_open(fuzz_folder(), &t, &e)) {
        int32_t ids[77];
        int count = 0;
        bool cut = false;
        if (!ts_tokenizer_encode(t, (const char *)bytes, n, 77, ids, &count, &cut, &e)) {
            if (count < 2 || count > 77 || (cut && count != 77)) fuzz_fail("a count that cannot be");
            for (int i = 0; i < 77; i++)
                if (ids[i] < 0 || ids[i] >= ts_tokenizer_size(t)) fuzz_fail("an id beyond the vocabulary");
        }
        ts_tokenizer_free(t);
    }
    unlink(fuzz_put("tokenizer.json", "", 0));
    return 0;
}
