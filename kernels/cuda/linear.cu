// What is before products with quantized weights (gemm_integers.cu), rows of tables, and products with floating-point weights: every
// rounding and every order is the contract's, so one row of activations or eight, on whatever machine, give the same bits.
//
// Method: activations are rounded by 8 lanes for each block of 32; a warp dequantizes a row of a table for each token; products with
// floating-point weights take four lanes each, for the columns equal modulo 4: exactness, not speed (the fast profile is
// gemm_floats.cu). Minimum bytes: 4 + planes a value that is rounded; a row of the table and 4 a value for each token; the weights and
// 4 a value of activations and results. FLOPs: 2 rows cols tokens of a product. Source: our own; formats are ggml's.
#include "rounding.cuh"
#include "weights.cuh"

// Rounds activations in blocks of 32: 8 lanes for each block. Minimum bytes: 4 + planes a value.
CUCKOO_KERNEL(256) cuckoo_quantize_rows(const __grid_constant__ cuckoo_quantize a) {
  const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;  // of four values
  const bool inside = i < uint64_t(a.to.rows) * (a.to.cols / 4);
  const float4 v = inside ? at<const float4>(a.x)[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  const float x[4] = {v.x, v.y, v.z, v.w};
  round_block<4>(a.to, i / 8, x, inside);
}

// Rows of a table of integers, as ggml rounds them: a warp for each token.
template <class F>
__device__ __forceinline__ void embed(const cuckoo_embed_integers& a) {
  const unsigned lane = threadIdx.x % WARP, i = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (i >= a.count) return;
  const unsigned token = at<const uint32_t>(a.tokens)[i];
  if (token < a.first_row || token - a.first_row >= a.table.rows) return;
  const unsigned row = token - a.first_row, tile = row / TILE_ROWS, g = row % 8, second = row % TILE_ROWS / 8;
  for (unsigned block = lane; block < a.table.cols / BLOCK_COLS; block += WARP) {
    const Place from = place_of<F>(a.table, tile, block / SEGMENT_STEPS, block % SEGMENT_STEPS);
    const BlockScales<F> w = unpack(load_scales<F, Read::again>(from.scales, g), unpack(load_supers<F>(from.supers, g)));
    float* const out = at<float>(a.out) + uint64_t(i) * a.table.cols + block * BLOCK_COLS;
#pragma unroll
    for (unsigned t = 0; t < 4; t++) {
      uint32_t codes[4];
      unpack(load_codes<F, Read::again>(from.codes, g * 4 + t), codes);
#pragma unroll
      for (unsigned half = 0; half < 2; half++) {
        const uint32_t word = second ? codes[half * 2 + 1] : codes[half * 2];
        const float scale = second ? w.scale[1][half % F::GROUPS] : w.scale[0][half % F::GROUPS];
        const float minimum = second ? w.minimum[1][half % F::GROUPS] : w.minimum[0][half % F::GROUPS];
#pragma unroll
        for (unsigned c = 0; c < 4; c++) {
          const float v = scale * float(int8_t(word >> c * 8) / int(F::UNIT));
          // Not added where there is none: that would turn -0 into 0.
          out[half * 16 + t * 4 + c] = F::MINIMUMS ? v + minimum : v;
        }
      }
    }
  }
}

#define CUCKOO_EMBED(bits, scales, halves, minimums)                                                                      \
  CUCKOO_KERNEL(256)                                                                                                      \
  cuckoo_embed_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_embed_integers a) {               \
    embed<Format<bits, Scales::scales, halves, minimums>>(a);                                                             \
  }
CUCKOO_FORMATS(CUCKOO_EMBED)

// Formats of floating-point numbers: column `c` of a row as a float, rounded once where it has a scale.
struct F32Row {
  const float* values;
  __device__ F32Row(const cuckoo_floats& w, uint64_t row) : values(at<const float>(w.values) + row * w.cols) {}
  __device__ float operator[](unsigned c) const { return values[c]; }
};
struct F16Row {
  const __half* values;
  __device__ F16Row(const cuckoo_floats& w, uint64_t row) : values(at<const __half>(w.values) + row * w.cols) {}
  __device__ float operator[](unsigned c) const { return __half2float(values[c]); }
};
struct Bf16Row {
  const uint16_t* values;
  __device__ Bf16Row(const cuckoo_floats& w, uint64_t row) : values(at<const uint16_t>(w.values) + row * w.cols) {}
  __device__ float operator[](unsigned c) const { return __uint_as_float(uint32_t(values[c]) << 16); }
};
// Blocks of 32 columns: a float, then bytes of E4M3, which are halves 256 times smaller.
struct Fp8Row {
  const unsigned char* blocks;
  __device__ Fp8Row(const cuckoo_floats& w, uint64_t row)
      : blocks(at<const unsigned char>(w.values) + row * (w.cols / BLOCK_COLS) * (4 + BLOCK_COLS)) {}
  __device__ float operator[](unsigned c) const {
    const unsigned char* const block = blocks + c / BLOCK_COLS * (4 + BLOCK_COLS);
    const unsigned code = block[4 + c % BLOCK_COLS];
    const uint16_t bits = uint16_t((code & 0x80u) << 8 | (code & 0x7fu) << 7);
    return half_of_bits(bits) * 256.0f * *reinterpret_cast<const float*>(block);
  }
};

// Four lanes for each product: sums of the columns equal modulo 4.
template <class W>
__device__ __forceinline__ void product(const cuckoo_linear_floats& a) {
  const unsigned lane = threadIdx.x % 4, row = (blockIdx.x * blockDim.x + threadIdx.x) / 4, token = blockIdx.y;
  const bool inside = row < a.w.rows;
  const W w(a.w, inside ? row : 0);
  const float* const x = at<const float>(a.x) + uint64_t(token) * a.w.cols;
  float sum = 0.0f;
  for (unsigned c = lane; c < a.w.cols; c += 4) sum = fmaf(w[c], x[c], sum);
  sum += __shfl_xor_sync(ALL_LANES, sum, 1);
  sum += __shfl_xor_sync(ALL_LANES, sum, 2);
  if (lane != 0 || !inside) return;
  float* const out = at<float>(a.out) + uint64_t(token) * a.out_cols + a.first_row + row;
  sum = a.scale * sum;
  *out = a.add ? *out + sum : sum;
}
CUCKOO_KERNEL(256) cuckoo_linear_f32(const __grid_constant__ cuckoo_linear_floats a) { product<F32Row>(a); }
CUCKOO_KERNEL(256) cuckoo_linear_f16(const __grid_constant__ cuckoo_linear_floats a) { product<F16Row>(a); }
CUCKOO_KERNEL(256) cuckoo_linear_bf16(const __grid_constant__ cuckoo_linear_floats a) { product<Bf16Row>(a); }
CUCKOO_KERNEL(256) cuckoo_linear_fp8(const __grid_constant__ cuckoo_linear_floats a) { product<Fp8Row>(a); }

template <class W>
__device__ __forceinline__ void embed(const cuckoo_embed_floats& a) {
  const unsigned token = at<const uint32_t>(a.tokens)[blockIdx.x];
  if (token < a.first_row || token - a.first_row >= a.table.rows) return;
  const W w(a.table, token - a.first_row);
  float* const out = at<float>(a.out) + uint64_t(blockIdx.x) * a.table.cols;
  for (unsigned c = threadIdx.x; c < a.table.cols; c += blockDim.x) out[c] = w[c];
}
CUCKOO_KERNEL(256) cuckoo_embed_f32(const __grid_constant__ cuckoo_embed_floats a) { embed<F32Row>(a); }
CUCKOO_KERNEL(256) cuckoo_embed_f16(const __grid_constant__ cuckoo_embed_floats a) { embed<F16Row>(a); }
CUCKOO_KERNEL(256) cuckoo_embed_bf16(const __grid_constant__ cuckoo_embed_floats a) { embed<Bf16Row>(a); }
CUCKOO_KERNEL(256) cuckoo_embed_fp8(const __grid_constant__ cuckoo_embed_floats a) { embed<Fp8Row>(a); }
