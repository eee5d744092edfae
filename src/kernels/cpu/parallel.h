/* Work split over the threads of a device: OpenMP where oneDNN brings it, otherwise one thread. */
#ifndef TS_KERNELS_CPU_PARALLEL_H
#define TS_KERNELS_CPU_PARALLEL_H

#include <stddef.h>

/* Calls fn(arg, part, begin, end) for consecutive ranges that cover [0, n), each of `grain` items at least
 * (but for the last), at most one a thread; part counts them from 0. Returns when all have ended. */
void ts_parallel_for(int threads, size_t n, size_t grain,
                     void (*fn)(void *arg, int part, size_t begin, size_t end), void *arg);

/* The parts that ts_parallel_for makes. */
int ts_parallel_parts(int threads, size_t n, size_t grain);

/* Sets the number of threads that oneDNN uses when called on this thread; returns the one before. */
int ts_parallel_set(int threads);

#endif
