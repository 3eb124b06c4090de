/* What a kernel is given: one structure a kind of launch, in plain C. CUDA, the emulator and Rust (src/cuda/args.rs, made by
 * bindgen) read this file, and nothing else is shared between them. Addresses are the device's. Never a pointer to the host. */
#ifndef CUCKOO_ARGS_H
#define CUCKOO_ARGS_H

#include <stdint.h>

typedef uint64_t cuckoo_address;

/* Where a row of a step stands: see StepLayout. */
typedef struct cuckoo_row {
  uint32_t position;       /* in its sequence */
  uint32_t first_block;    /* where its sequence's block table begins */
  uint32_t span_end;       /* position after the last row of its span */
} cuckoo_row;

/* A part of a matrix in integers, as src/cuda/matrix.rs packs it. */
typedef struct cuckoo_integers {
  cuckoo_address codes;    /* [tile of 16 rows][segment][step][lane] of what a lane holds of the tile, 8 or 16 bytes */
  cuckoo_address scales;   /* [tile][segment][step][row, in pairs 8 apart] of the kind's scales */
  cuckoo_address supers;   /* [tile][segment][row, likewise] of two halves d, dmin; 0 where the kind has none */
  uint32_t rows, cols;
} cuckoo_integers;

/* A part of a matrix in floating-point numbers, row-major as in the file. */
typedef struct cuckoo_floats {
  cuckoo_address values;
  uint32_t rows, cols;
} cuckoo_floats;

/* out[i] = table[tokens[i]] */
typedef struct cuckoo_embed_integers {
  cuckoo_integers table;
  cuckoo_address tokens;   /* u32 [count] */
  cuckoo_address out;      /* f32 [count][cols] */
  uint32_t count;
  uint32_t first_row;      /* of the table, that this part holds; other tokens are left to other parts */
} cuckoo_embed_integers;

typedef struct cuckoo_embed_floats {
  cuckoo_floats table;
  cuckoo_address tokens, out;
  uint32_t count, first_row;
} cuckoo_embed_floats;

/* Activations in blocks of 32 as integers, in one plane or two. */
typedef struct cuckoo_quantize {
  cuckoo_address x;        /* f32 [rows][cols] */
  cuckoo_address q;        /* i8 [planes][rows][cols / 32][32]: columns 4 t .. 4 t + 3, then 16 on, of t from 0 to 3 */
  cuckoo_address factors;  /* [planes][rows][cols / 32]: scale and sum of a block's integers, f32 both */
  cuckoo_address halves;   /* likewise: scale, f32, and sums of its first 16 and its last 16, f16 both */
  uint32_t rows, cols;
  uint32_t planes;         /* 1, or 2: high then low */
  uint32_t padding;
} cuckoo_quantize;

/* out[t][first_row + r] = w[r] . x[t], or added to it. */
typedef struct cuckoo_linear_integers {
  cuckoo_integers w;
  cuckoo_address q;        /* as cuckoo_quantize leaves them */
  cuckoo_address factors;  /* `halves` where the format's halves have scales of their own */
  cuckoo_address out;      /* f32 [tokens][out_cols] */
  uint32_t tokens, planes;
  uint32_t out_cols, first_row;
  uint32_t add;            /* whether products are added to what is there */
  uint32_t tile;           /* cuckoo_linear: segments whose activations are in shared memory at once, a multiple of 8;
                              cuckoo_gemm: tokens of a block, 16 or 32; cuckoo_gemm_wide: 64, or 128 in one plane */
} cuckoo_linear_integers;

typedef struct cuckoo_linear_floats {
  cuckoo_floats w;
  cuckoo_address x;        /* f32 [tokens][cols] */
  cuckoo_address out;
  uint32_t tokens, out_cols, first_row, add;
  float scale;             /* of the products */
  uint32_t padding;
} cuckoo_linear_floats;

/* RMS norm of rows, or of heads in place: a warp for each. */
typedef struct cuckoo_norm {
  cuckoo_address x, weight, out;
  uint32_t rows, cols;     /* what is normed at once: cols values, rows of them */
  uint32_t heads;          /* consecutive norms in a row of `stride` values; 1 for whole rows */
  uint32_t first_head;
  uint32_t stride;         /* values from one row to the next */
  float epsilon;
} cuckoo_norm;

typedef struct cuckoo_layer_norm {
  cuckoo_address x, weight, bias, out;
  uint32_t rows, cols;
  float epsilon;
  uint32_t padding;
} cuckoo_layer_norm;

/* Element by element. */
typedef struct cuckoo_elementwise {
  cuckoo_address x;        /* what is read */
  cuckoo_address y;        /* what else is read */
  cuckoo_address out;      /* what is written, and read where something is added */
  uint32_t rows, cols;     /* of out */
  uint32_t kind;           /* which activation; whether there is a soft-cap */
  float a, b;              /* factor and cap; the activation's parameters */
  uint32_t padding;
} cuckoo_elementwise;

/* Rows copied or added by number. */
typedef struct cuckoo_rows {
  cuckoo_address x, out;
  cuckoo_address numbers;  /* u32 [count]; [count][2] of where ranges begin and end */
  cuckoo_address weights;  /* f32 [count] */
  uint32_t count, cols;
} cuckoo_rows;

/* Keys and values of one layer, as src/kv.rs says. Scales are there where values are bytes: one for `scale_block` of them. */
typedef struct cuckoo_kv {
  cuckoo_address keys;         /* [block][kv head][dim][16] */
  cuckoo_address values;       /* [block][kv head][16][dim] */
  cuckoo_address key_scales;   /* f16 [block][kv head][dim / scale_block][16] */
  cuckoo_address value_scales; /* f16 [block][kv head][16][dim / scale_block] */
  uint32_t kind;               /* 0 f16, 1 bf16, 2 bytes with scales */
  uint32_t scale_block;
  uint32_t kv_heads, dim;
} cuckoo_kv;

typedef struct cuckoo_rope_store {
  cuckoo_address turns;    /* f32 [positions][pairs][2]: cosine, sine; 0 where nothing turns */
  cuckoo_address rows;     /* cuckoo_row [count] */
  cuckoo_address blocks;   /* u32: block tables */
  cuckoo_address qkv;      /* f32 [count][query + 2 kv heads][dim] */
  cuckoo_kv kv;
  uint32_t count;
  uint32_t query_heads;
  uint32_t pairs;          /* that turn */
  uint32_t halves;         /* whether pairs are (i, i + pairs) rather than (2i, 2i + 1) */
} cuckoo_rope_store;

typedef struct cuckoo_attention {
  cuckoo_address rows, blocks, qkv;
  cuckoo_kv kv;
  cuckoo_address sinks;    /* f32 [query heads], or 0 */
  cuckoo_address parts;    /* f32 [count][query head][split][dim + 2]: sums, then max and total of a split */
  cuckoo_address out;      /* f32 [count][query heads][dim] */
  uint32_t count;
  uint32_t query_heads;
  uint32_t splits;         /* of the longest context in the step */
  uint32_t window;         /* 0: everything */
  uint32_t causal;
  float scale, softcap;    /* softcap 0: none */
  uint32_t padding;
} cuckoo_attention;

#endif
