/* openapi.yaml, built into the program. */
#ifndef TS_SERVER_OPENAPI_H
#define TS_SERVER_OPENAPI_H

#include <stddef.h>

extern const unsigned char ts_openapi[];
extern const size_t ts_openapi_size;

#endif
