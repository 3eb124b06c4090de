// What the kernels of products on tensor cores have in common: in which order tiles are computed, and where results go.
#pragma once
#include "platform.cuh"

// Numbers of a tile of the product.
struct GemmTile {
  unsigned row, token;  // the tile's, not its first row's
};

// Tile `i` of row_tiles * token_tiles. Tiles that run at the same time share operands: 8 neighbouring row tiles go through all
// tokens together, so that the second level of cache holds their weights while they are used ("grouped" order, as in Triton's
// tutorial).
__device__ __forceinline__ GemmTile gemm_tile(unsigned i, unsigned row_tiles, unsigned token_tiles) {
  constexpr unsigned GROUP = 8;
  const unsigned first = i / (GROUP * token_tiles) * GROUP;
  const unsigned size = row_tiles - first < GROUP ? row_tiles - first : GROUP;
  const unsigned rest = i - first * token_tiles;
  return {first + rest % size, rest / size};
}

__device__ __forceinline__ unsigned tiles_of(unsigned n, unsigned each) { return (n + each - 1) / each; }

// By which a token's results are multiplied.
__device__ __forceinline__ float gemm_scale(const cuckoo_gemm& a, unsigned token) {
  return a.scales != 0 && token < a.tokens ? at<const float>(a.scales)[token] : 1.0f;
}

// One value of the product, if there is such a place.
__device__ __forceinline__ void gemm_store(const cuckoo_gemm& a, unsigned token, unsigned row, float value) {
  if (token >= a.tokens || row >= a.w.rows) return;
  float* const out = at<float>(a.out) + uint64_t(token) * a.out_cols + a.first_row + row;
  *out = a.add ? *out + value : value;
}

// Kinds of 16-bit numbers: which product of a warp is theirs.
struct Bf16 {};
struct F16 {};
