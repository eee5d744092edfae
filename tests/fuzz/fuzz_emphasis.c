/* A prompt with emphasis. */
#include "fuzz.h"

#include <math.h>
#include "engine/emphasis.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ts_emphasis m;
    ts_error e = {0};
    if (ts_emphasis_parse((const char *)data, size, &m, &e)) {
        if (!e.message[0]) fuzz_fail("an error without a word");
        return 0;
    }
    size_t at = 0;
    for (size_t i = 0; i < m.count; i++) {
        const ts_emphasis_run *r = &m.runs[i];
        if (r->begin != at || (!r->size && !r->ends_chunk)) fuzz_fail("runs that do not follow each other");
        if (!r->ends_chunk && !(fabs(r->weight) <= TS_EMPHASIS_WEIGHT))
            fuzz_fail("a weight beyond the limit");
        at += r->size;
    }
    if (at > size) fuzz_fail("more text than there was");
    ts_emphasis_free(&m);
    return 0;
}
