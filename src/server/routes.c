/* What is served. openapi.yaml describes exactly these; a test holds one against the other. */
#include "server/server_internal.h"

const ts_route ts_routes[] = {
    {"POST", "/v1/images/generations", ts_images_handle, TS_BODY_FIELDS, .makes_pictures = true},
    {"POST", "/v1/images/edits", ts_images_edit_handle, TS_BODY_FORM, .makes_pictures = true},
    {"GET", "/v1/models", ts_models_handle, TS_BODY_NONE},
    {"GET", "/v1/models/{id}", ts_model_handle, TS_BODY_NONE},
    {"GET", "/v1/loras", ts_loras_handle, TS_BODY_NONE},
    {"GET", "/sdapi/v1/samplers", ts_sdapi_samplers_handle, TS_BODY_NONE},
    {"GET", "/sdapi/v1/schedulers", ts_sdapi_schedulers_handle, TS_BODY_NONE},
    {"GET", "/health", ts_health_handle, TS_BODY_NONE},
    {"GET", "/metrics", ts_metrics_handle, TS_BODY_NONE},
    {"GET", "/openapi.yaml", ts_openapi_handle, TS_BODY_NONE},
};

const size_t ts_route_count = sizeof ts_routes / sizeof *ts_routes;
