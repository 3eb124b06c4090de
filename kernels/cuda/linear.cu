// Products with weights: every rounding and every order is the contract's, so one row of activations or eight, on whatever
// machine, give the same bits.
#include "weights.cuh"

// Rounds activations in blocks of 32: a warp for each block. See quantize_activations of src/quant.rs.
CUCKOO_KERNEL(256) cuckoo_quantize_rows(const __grid_constant__ cuckoo_quantize a) {
  const unsigned lane = threadIdx.x % WARP;
  const uint64_t block = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  const uint64_t blocks = uint64_t(a.rows) * (a.cols / BLOCK_COLS);
  if (block >= blocks) return;
  const float x = at<const float>(a.x)[block * BLOCK_COLS + lane];
  // As integers, magnitudes are in order, and NaNs are the largest.
  unsigned largest = __float_as_uint(x) & 0x7fffffffu;
#pragma unroll
  for (unsigned apart = WARP / 2; apart > 0; apart /= 2) {
    const unsigned other = __shfl_xor_sync(ALL_LANES, largest, apart);
    largest = other > largest ? other : largest;
  }
  const float steps = a.planes == 2 ? 16256.0f : 127.0f;
  float scale = __uint_as_float(largest) / steps;
  const bool usable = largest < 0x7f800000u && scale >= 1.17549435e-38f;
  if (largest >= 0x7f800000u) scale = __uint_as_float(0x7fc00000u);
  else if (!usable) scale = 0.0f;
  const float inverse = usable ? 1.0f / scale : 0.0f;
  const int q = usable ? __float2int_rn(x * inverse) : 0;
  int8_t* const out = at<int8_t>(a.q);
  float* const scales = at<float>(a.scales);
  if (a.planes == 1) {
    out[block * BLOCK_COLS + lane] = int8_t(q);
    if (lane == 0) scales[block] = scale;
    return;
  }
  const uint64_t low = uint64_t(a.rows) * a.cols;
  const int high = __float2int_rn(float(q) * (1.0f / 128.0f));
  out[block * BLOCK_COLS + lane] = int8_t(high);
  out[low + block * BLOCK_COLS + lane] = int8_t(q - 128 * high);
  if (lane == 0) {
    scales[block] = 128.0f * scale;
    scales[blocks + block] = scale;
  }
}

// What a block of weights and one of activations add to a segment's sum.
template <class F>
__device__ __forceinline__ float add_block(const Block<F>& w, int offset, const uint32_t (&x)[8], float x_scale, float sum) {
  int dots[F::GROUPS] = {}, sums[F::GROUPS] = {};
  constexpr unsigned WORDS = 8 / F::GROUPS;
#pragma unroll
  for (unsigned i = 0; i < 8; i++) {
    dots[i / WORDS] = __dp4a(int(w.codes[i]), int(x[i]), dots[i / WORDS]);
    sums[i / WORDS] = __dp4a(0x01010101, int(x[i]), sums[i / WORDS]);
  }
#pragma unroll
  for (unsigned g = 0; g < F::GROUPS; g++) sum = fmaf(float(dots[g] - offset * sums[g]), w.scale[g] * x_scale, sum);
  if constexpr (F::MINIMUMS) {
#pragma unroll
    for (unsigned g = 0; g < F::GROUPS; g++) sum = fmaf(w.minimum[g], x_scale * float(sums[g]), sum);
  }
  return sum;
}

// A block of threads takes `rows_each` rows of weights and `T` rows of activations. A lane sums a segment, leaves the sum in
// shared memory, and then a thread for each row adds up its segments in order.
template <class F, unsigned T>
__device__ __forceinline__ void product(const cuckoo_linear_integers& a) {
  CUCKOO_SHARED(float, sums);  // [T][items]
  const unsigned per_row = segments(a.w), blocks = a.w.cols / BLOCK_COLS;
  const unsigned first = blockIdx.x * a.rows_each, first_token = blockIdx.y * T;
  const unsigned items = a.rows_each * per_row;
  const uint64_t first_item = uint64_t(first) * per_row;
  for (unsigned i = threadIdx.x; i < items; i += blockDim.x) {
    const Item item = {unsigned((first_item + i) / WARP), unsigned((first_item + i) % WARP)};
    const unsigned row = first + i / per_row, first_block = i % per_row * SEGMENT_STEPS;
    const unsigned left = blocks - first_block, steps = row >= a.w.rows ? 0 : left < SEGMENT_STEPS ? left : SEGMENT_STEPS;
    float sum[T] = {};
    for (unsigned step = 0; step < steps; step++) {
      const Block<F> w = load_block<F>(a.w, item, step);
#pragma unroll
      for (unsigned t = 0; t < T; t++) {
        if (first_token + t >= a.tokens) break;
        for (unsigned plane = 0; plane < a.planes; plane++) {
          const uint64_t block = (uint64_t(plane) * a.tokens + first_token + t) * blocks + first_block + step;
          const uint4* const words = at<const uint4>(a.q) + block * 2;
          const uint4 low = words[0], high = words[1];
          const uint32_t x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
          sum[t] = add_block<F>(w, a.w.offset, x, at<const float>(a.scales)[block], sum[t]);
        }
      }
    }
#pragma unroll
    for (unsigned t = 0; t < T; t++) sums[t * items + i] = sum[t];
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < a.rows_each * T; i += blockDim.x) {
    const unsigned row = i % a.rows_each, t = i / a.rows_each;
    if (first + row >= a.w.rows || first_token + t >= a.tokens) continue;
    float total = 0.0f;
    for (unsigned s = 0; s < per_row; s++) total += sums[t * items + row * per_row + s];
    float* const out = at<float>(a.out) + uint64_t(first_token + t) * a.out_cols + a.first_row + first + row;
    *out = a.add ? *out + total : total;
  }
}

#define CUCKOO_LINEAR(bits, scales, halves, minimums)                                                                     \
  CUCKOO_KERNEL(256)                                                                                                      \
  cuckoo_linear_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_linear_integers a) {             \
    using F = Format<bits, Scales::scales, halves, minimums>;                                                             \
    if (a.tokens_each == 1) product<F, 1>(a);                                                                             \
    else if (a.tokens_each == 2) product<F, 2>(a);                                                                        \
    else if (a.tokens_each == 4) product<F, 4>(a);                                                                        \
    else product<F, 8>(a);                                                                                                \
  }
CUCKOO_FORMATS(CUCKOO_LINEAR)

// Rows of a table of integers, as ggml rounds them: a warp for each token.
template <class F>
__device__ __forceinline__ void embed(const cuckoo_embed_integers& a) {
  const unsigned lane = threadIdx.x % WARP, i = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (i >= a.count) return;
  const unsigned token = at<const uint32_t>(a.tokens)[i];
  if (token < a.first_row || token - a.first_row >= a.table.rows) return;
  for (unsigned block = lane; block < a.table.cols / BLOCK_COLS; block += WARP) {
    const Item item = item_of(a.table, token - a.first_row, block / SEGMENT_STEPS);
    const Block<F> w = load_block<F>(a.table, item, block % SEGMENT_STEPS);
    float* const out = at<float>(a.out) + uint64_t(i) * a.table.cols + block * BLOCK_COLS;
#pragma unroll
    for (unsigned c = 0; c < BLOCK_COLS; c++) {
      const unsigned g = c * F::GROUPS / BLOCK_COLS;
      const int code = int8_t(w.codes[c / 4] >> c % 4 * 8) - a.table.offset;
      const float v = w.scale[g] * float(code);
      // Not added where there is none: that would turn -0 into 0.
      out[c] = F::MINIMUMS ? v + w.minimum[g] : v;
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
