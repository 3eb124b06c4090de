/* What a kernel is given: one structure a kind of launch, in plain C. CUDA, the emulator and Rust (src/cuda/args.rs, made by
 * bindgen) read this file, and nothing else is shared between them. Addresses are the device's. Never a pointer to the host. */
#ifndef CUCKOO_ARGS_H
#define CUCKOO_ARGS_H

#include <stdint.h>

typedef uint64_t cuckoo_address;

/* Consecutive rows of a step that stand in one KV block. */
typedef struct cuckoo_kv_rows {
  uint32_t first_row, rows;
  uint32_t position;       /* of the first row, in its sequence */
  uint32_t block;          /* of the cache */
} cuckoo_kv_rows;

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
typedef struct cuckoo_rounded {
  cuckoo_address q;        /* i8 [planes][rows][cols / 32][32]: columns 4 t .. 4 t + 3, then 16 on, of t from 0 to 3 */
  cuckoo_address factors;  /* [planes][rows][cols / 32]: scale and sum of a block's integers, f32 both */
  cuckoo_address halves;   /* likewise: scale, f32, and sums of its first 16 and its last 16, f16 both */
  uint32_t rows, cols;
  uint32_t planes;         /* 1, or 2: high then low; 0 where nobody asks for them */
  uint32_t padding;
} cuckoo_rounded;

typedef struct cuckoo_quantize {
  cuckoo_address x;        /* f32 [rows][cols] */
  cuckoo_rounded to;
} cuckoo_quantize;

/* out[t][first_row + r] = w[r] . x[t], or added to it. */
typedef struct cuckoo_linear_integers {
  cuckoo_integers w;
  cuckoo_address q;        /* as in cuckoo_rounded */
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

/* RMS norm of rows, or of heads in place. */
typedef struct cuckoo_norm {
  cuckoo_address x, weight, out;
  cuckoo_rounded rounded;  /* of whole rows: what is written, as integers */
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
  cuckoo_rounded rounded;  /* of activations: what is written, as integers */
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
  cuckoo_address groups;   /* cuckoo_kv_rows: all rows of the step */
  cuckoo_address qkv;      /* f32 [row][query + 2 kv heads][dim] */
  cuckoo_kv kv;
  uint32_t query_heads;
  uint32_t pairs;          /* that turn */
  uint32_t halves;         /* whether pairs are (i, i + pairs) rather than (2i, 2i + 1) */
  uint32_t padding;
} cuckoo_rope_store;

/* Work for a block of threads of an attention: consecutive rows of one span, over some of the splits that they see. */
typedef struct cuckoo_tile {
  uint32_t first_row, rows;
  uint32_t position;       /* of the first row, in its sequence */
  uint32_t first_block;    /* where the sequence's block table begins */
  uint32_t span_end;       /* position after the last row of the span */
  uint32_t split, split_end;
  uint32_t part;           /* where the sums of the first of these splits go, in rows of `parts`: those of the next lie `rows` on;
                              ~0 where all splits are summed here, in order, and the result is what goes out */
} cuckoo_tile;

typedef struct cuckoo_attention {
  cuckoo_address tiles;    /* cuckoo_tile [tiles] */
  cuckoo_address blocks;   /* u32: block tables */
  cuckoo_address qkv;
  cuckoo_kv kv;
  cuckoo_address sinks;    /* f32 [query heads], or 0 */
  cuckoo_address parts;    /* f32 [row of a split][query head][dim + 4]: sums, then max and total */
  cuckoo_address out;      /* f32 [count][query heads][dim] */
  cuckoo_rounded rounded;  /* that as integers, where heads are whole blocks of 32 */
  uint32_t query_heads;
  uint32_t heads_each;     /* query heads of one key/value head, that a block of threads takes */
  uint32_t window;         /* 0: everything */
  uint32_t causal;
  float scale, softcap;    /* softcap 0: none */
} cuckoo_attention;

/* Products with 16-bit floating-point weights on tensor cores: the fast profile's. */

/* What the tensor memory accelerator is told of a matrix: the driver's CUtensorMap, or the emulator's tensor_map. */
typedef struct cuckoo_tensor_map {
  uint64_t words[16];
} __attribute__((aligned(64))) cuckoo_tensor_map;

/* Activations as the weights' kind of numbers. */
typedef struct cuckoo_narrow {
  cuckoo_address x;        /* f32 [rows][cols] */
  cuckoo_address out;      /* u16 [rows][cols] */
  cuckoo_address scales;   /* f32 [rows]: powers of two by which rows of halves were divided; 0 for bfloat16 */
  uint32_t rows, cols;     /* cols: a multiple of 32 */
} cuckoo_narrow;

/* out[t][first_row + r] = w[r] . x[t], or added to it. */
typedef struct cuckoo_gemm {
  cuckoo_floats w;         /* u16 [rows][cols] */
  cuckoo_address x;        /* u16 [tokens][cols] */
  cuckoo_address scales;   /* f32 [tokens] by which results are multiplied, or 0 */
  cuckoo_address out;      /* f32 [tokens][out_cols] */
  uint32_t tokens, out_cols, first_row, add;
} cuckoo_gemm;

/* The same, of which tiles are loaded by their number. */
typedef struct cuckoo_gemm_mapped {
  cuckoo_tensor_map x_map, w_map;
  cuckoo_gemm gemm;
  uint64_t padding;
} cuckoo_gemm_mapped;

/* Some of the words of a launch's lists. */
typedef struct cuckoo_list {
  uint32_t first, count;   /* of words, and entries of one word or two */
} cuckoo_list;

/* What a request does to its row of logits before a token is drawn: see src/sampling.rs. Every token is one of the row's. */
typedef struct cuckoo_changes {
  uint32_t row;            /* of the logits */
  uint32_t masked;         /* whether there is a mask */
  cuckoo_list mask;        /* words of bits; tokens beyond them are not in it */
  cuckoo_list allowed;     /* tokens */
  cuckoo_list biases;      /* (token, bits of a float), those of a token together */
  cuckoo_list seen;        /* (token, how often in the output), no token twice */
  cuckoo_list repeated;    /* (token, bits of its penalty), no token twice */
  cuckoo_list bad;         /* tokens, none twice */
  cuckoo_list forbidden;   /* tokens, none twice */
  float repetition, presence, frequency;
  uint32_t padding;
} cuckoo_changes;

/* out[i] = logits[row of request i], changed. A block of threads for each request. */
typedef struct cuckoo_adjust {
  cuckoo_address logits;   /* f32 [rows][cols] */
  cuckoo_address requests; /* cuckoo_changes [requests] */
  cuckoo_address lists;    /* u32 */
  cuckoo_address out;      /* f32 [requests][cols] */
  uint32_t cols, padding;
} cuckoo_adjust;

/* One draw. */
typedef struct cuckoo_draw {
  cuckoo_address logits;   /* f32 [cols], as its request changes them */
  double temperature;      /* 0: the highest logit */
  double top_p;            /* of all weight; 1: all */
  double xtc;              /* of all weight, what a top choice has; below 0: nothing is excluded */
  uint32_t seed[2];        /* low, high */
  uint32_t position[2];
  uint32_t top_k;          /* 0: all */
  uint32_t to;             /* place of its token */
  float least;             /* how far from the highest a logit may be, by min-p; minus infinity: as far as can be */
  float sharpness;         /* f32(1 / temperature) */
  float near;              /* (logit - highest) * sharpness of what top-p may leave: all that are less are too few together */
  uint32_t padding;
} cuckoo_draw;

/* A token for each draw. A block of threads for each. */
typedef struct cuckoo_sample {
  cuckoo_address draws;    /* cuckoo_draw [draws] */
  cuckoo_address tokens;   /* u32; a number of cuckoo_no_token where there is none */
  uint32_t cols, padding;
} cuckoo_sample;

/* tokens[pair.row] = drawn[pair.draw], for each pair; 0 where that is no token of the vocabulary. */
typedef struct cuckoo_take_drawn {
  cuckoo_address tokens;   /* u32 */
  cuckoo_address drawn;    /* u32, as cuckoo_sample leaves them */
  cuckoo_address pairs;    /* u32 [count][2]: row, draw */
  uint32_t count, vocabulary;
} cuckoo_take_drawn;

/* How probable a row holds a token. */
typedef struct cuckoo_question {
  uint32_t row, token;
  uint32_t top;            /* how many of the most probable are named */
  uint32_t first;          /* place of the first of them */
} cuckoo_question;

typedef struct cuckoo_answer {
  double sum;              /* of exp(x - highest) */
  float highest, own;      /* logits */
  uint32_t rank;
  uint32_t found;          /* of the most probable, or a number of cuckoo_no_token */
} cuckoo_answer;

typedef struct cuckoo_logprobs {
  cuckoo_address logits;       /* f32 [rows][cols] */
  cuckoo_address questions;    /* cuckoo_question [questions] */
  cuckoo_address answers;      /* cuckoo_answer [questions] */
  cuckoo_address top;          /* u32 [][2]: token and bits of its logit, in any order */
  cuckoo_address exponentials; /* f64 [questions][cols] */
  uint32_t cols, padding;
} cuckoo_logprobs;

/* One expert that a row uses. */
typedef struct cuckoo_routed {
  uint32_t expert;
  float weight;
} cuckoo_routed;

/* The experts that rows choose: a warp for each row. */
typedef struct cuckoo_route {
  cuckoo_address logits;   /* f32 [rows][cols] */
  cuckoo_address out;      /* cuckoo_routed [rows][used] */
  uint32_t rows, cols;
  uint32_t used;
  uint32_t gating;         /* 0 softmax of all, 1 sigmoid, 2 softmax of the chosen */
  uint32_t normalize;      /* whether weights are divided by their sum */
  float scale;
} cuckoo_route;

/* In place of a token. */
enum cuckoo_no_token { CUCKOO_BROKEN = 0xffffffffu, CUCKOO_NOTHING_ALLOWED = 0xfffffffeu };

/* Blocks of a cache, of all layers, to or from a piece of memory that holds them one after the other. */
typedef struct cuckoo_kv_copy {
  cuckoo_address planes[4];  /* [layer][block] of keys, values, and the scales of both; 0 where there are none */
  cuckoo_address packed;     /* [count][layer] of a block's keys, values and scales */
  cuckoo_address blocks;     /* u32 [count]: which blocks */
  uint32_t bytes[4];         /* of a block of one layer in each plane: multiples of 16 */
  uint32_t layers, cache_blocks;
  uint32_t count;
  uint32_t back;             /* whether they are copied back: no block stands there twice then */
} cuckoo_kv_copy;

#endif
