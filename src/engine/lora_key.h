/* Keys of LoRA files, in all the ways that engine/lora.h lists. Private to lora.c. */
#ifndef TS_ENGINE_LORA_KEY_H
#define TS_ENGINE_LORA_KEY_H

#include "engine/lora.h"

/* What a tensor is to its module. */
typedef enum ts_lora_role {
    TS_LORA_WHOLE,
    TS_LORA_A,
    TS_LORA_B,
    TS_LORA_CORE,
    TS_LORA_MAGNITUDE, /* PEFT's */
    TS_LORA_SCALE,     /* LyCORIS' */
    TS_LORA_ALPHA
} ts_lora_role;

typedef struct ts_lora_key {
    ts_lora_part part;
    ts_lora_role role;
    ts_lora_kind kind; /* of what is in a matrix */
    int matrix;
    char *layer;      /* free() it; as in ts_lora_module, in today's words */
    const char *name; /* as it stands in the key, name_bytes long */
    size_t name_bytes;
    bool adapter; /* as PEFT itself writes it */
} ts_lora_key;

/* TS_EFORMAT for what is no key of a LoRA, TS_EUNSUPPORTED for one of a kind that is not offered, both naming
 * it; TS_ENOMEM. *ret is good only after TS_OK. Any thread. */
ts_code ts_lora_key_read(const char *key, ts_lora_key *ret, ts_error *e);

#endif
