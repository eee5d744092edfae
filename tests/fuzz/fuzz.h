/* What the fuzzers share. Each is a libFuzzer target: LLVMFuzzerTestOneInput takes bytes as they would come
 * from a file or a client, and what it finds is a crash, a leak, or a word of AddressSanitizer or UBSan. */
#ifndef TS_TESTS_FUZZ_H
#define TS_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A folder in memory for readers that take a path; made once, gone when the process ends. */
const char *fuzz_folder(void);
/* Puts a file there. Returns its path, which lives until the next call. */
const char *fuzz_put(const char *name, const void *data, size_t size);

/* Stops the fuzzer: the input broke a promise that no sanitizer knows of. */
_Noreturn void fuzz_fail(const char *what);

#endif
