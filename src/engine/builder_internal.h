/* What the builder records and ts_program_compile reads. Private to builder*.c and program*.c. */
#ifndef TS_ENGINE_BUILDER_INTERNAL_H
#define TS_ENGINE_BUILDER_INTERNAL_H

#include "engine/builder.h"
#include "engine/transport.h"
#include "kernels/backend.h"

/* A tensor, before and after it has a place. */
typedef struct value {
    ts_view view; /* dense as recorded; pitch gets the halo rows when the tensor is placed */
    ts_rows rows; /* n == 1 and bound {0, h} where no patch divides it */
    bool padded;  /* has room for a row above and one below, because a 3x3 convolution reads it */
    bool halo_ready; /* its producer fills those rows (upsampling) */
    bool keep;    /* lives as long as the program: inputs, outputs, what is made once a job */
    const char *name; /* of inputs and outputs, else NULL */
    int first, last;  /* items that write it first and touch it last */
    size_t offset;    /* of the allocation in the arena */
} value;

typedef enum item_kind {
    ITEM_KERNEL,      /* run the kernel */
    ITEM_HALO_POST,   /* edge rows to the neighbours */
    ITEM_HALO_TAKE,   /* neighbours' rows, or zeros, into the halo of in[0] */
    ITEM_STATS,       /* kernel into the own slot, exchange, merge to out */
    ITEM_TOKENS_POST, /* own keys and values to those whose window or gather wants them */
    ITEM_ATTENTION    /* kernel over segments */
} item_kind;

enum { VIEW_ROWS, VIEW_HALO }; /* an operand begins at its own first row, or at the halo row above it */

typedef struct item {
    item_kind kind;
    bool once;
    ts_op op;             /* kernels only; op.name is owned by the item */
    int in[3], out;       /* values, -1: none */
    int in_start[3], out_start;
    int out_row;          /* rows by which the kernel's first output row lies after the start */
    int exchange, gather; /* indices, -1: none */
    int kv;               /* ATTENTION, TOKENS_POST: the value with keys and values */
    bool above, below;    /* HALO: which rows are wanted by whoever receives */
    bool fresh;           /* HALO: always of this evaluation */
    /* filled by ts_program_compile */
    ts_kernel *kernel;
    double flops_fresh, flops_displaced;
} item;

static inline bool item_has_kernel(const item *it) {
    return it->kind == ITEM_KERNEL || it->kind == ITEM_STATS || it->kind == ITEM_ATTENTION;
}

struct ts_builder {
    ts_build build;
    ts_weights *weights;
    value *values;
    size_t value_count, value_capacity;
    item *items;
    size_t item_count, item_capacity;
    ts_exchange *exchanges;
    size_t exchange_count, exchange_capacity;
    int gathers; /* attention layers so far: their parity picks one of two shared gather areas */
    bool once;
    ts_code code;
    ts_error error;
};

static inline value *value_of(const ts_builder *b, ts_buf x) { return &b->values[x.id]; }

#endif
