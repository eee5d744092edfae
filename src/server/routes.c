/* What is served. openapi.yaml describes exactly these; a test holds one against the other. */
#include "server/server_internal.h"

const ts_route ts_routes[] = {
    [TS_ROUTE_IMAGES] = {"POST", "/v1/images/generations", ts_images_handle, SIZE_MAX},
    {"GET", "/v1/models", ts_models_handle, 0},
    {"GET", "/v1/models/{id}", ts_model_handle, 0},
    {"GET", "/health", ts_health_handle, 0},
    {"GET", "/metrics", ts_metrics_handle, 0},
    {"GET", "/openapi.yaml", ts_openapi_handle, 0},
};

const size_t ts_route_count = sizeof ts_routes / sizeof *ts_routes;
