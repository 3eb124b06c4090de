// Activations as integers, for products with quantized weights: blocks of 32 columns with a scale, as quantize_activations of
// src/quant.rs rounds them. Whoever writes activations may leave them so beside what it writes.
#pragma once
#include "platform.cuh"

constexpr unsigned ROUNDED_COLS = 32;

// The integers of a block of a plane, `V` neighbouring ones each lane's, and what goes with them: `first` is the column of a lane's
// first one in the block.
template <unsigned V>
__device__ __forceinline__ void put_block(const cuckoo_rounded& a, unsigned plane, uint64_t block, unsigned first, const int (&q)[V],
                                          float scale, bool inside) {
  const uint64_t place = uint64_t(plane) * a.rows * (a.cols / ROUNDED_COLS) + block;
  // What a lane gives to `mma` as operand B lies together.
  int8_t* const out = at<int8_t>(a.q) + place * ROUNDED_COLS + first % 16 / 4 * 8 + first / 16 * 4 + first % 4;
  int half = 0;
  uint32_t word = 0;
#pragma unroll
  for (unsigned i = 0; i < V; i++) {
    half += q[i];
    word |= (uint32_t(q[i]) & 0xffu) << 8 * i;
  }
#pragma unroll
  for (unsigned apart = WARP / 4 / V; apart > 0; apart /= 2) half += __shfl_xor_sync(ALL_LANES, half, apart);
  const int other = __shfl_xor_sync(ALL_LANES, half, WARP / 2 / V);
  if (!inside) return;
  if constexpr (V == 4) *reinterpret_cast<uint32_t*>(out) = word;
  else if constexpr (V == 2) *reinterpret_cast<uint16_t*>(out) = uint16_t(word);
  else *out = int8_t(word);
  if (first != 0) return;
  at<float2>(a.factors)[place] = make_float2(scale, float(half + other));
  // Sums of 16 bytes are below 2^11: halves hold them.
  at<float>(a.halves)[place * 2] = scale;
  __half* const halves = at<__half>(a.halves) + place * 4 + 2;
  halves[0] = __float2half_rn(float(half));
  halves[1] = __float2half_rn(float(other));
}

// Rounds a block, whose columns the 32 / V neighbouring lanes have that the numbers of lanes end in. Every lane of the warp takes
// part; what is not `inside` is not written.
template <unsigned V>
__device__ __forceinline__ void round_block(const cuckoo_rounded& a, uint64_t block, const float (&x)[V], bool inside) {
  static_assert(V == 1 || V == 2 || V == 4, "neighbours that are written at once");
  const unsigned first = threadIdx.x % (WARP / V) * V;
  // As integers, magnitudes are in order, and NaNs are the largest.
  unsigned largest = 0;
#pragma unroll
  for (unsigned i = 0; i < V; i++) {
    const unsigned magnitude = __float_as_uint(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
#pragma unroll
  for (unsigned apart = WARP / 2 / V; apart > 0; apart /= 2) {
    const unsigned other = __shfl_xor_sync(ALL_LANES, largest, apart);
    largest = other > largest ? other : largest;
  }
  float scale = __uint_as_float(largest) / (a.planes == 2 ? 16256.0f : 127.0f);
  const bool usable = largest < 0x7f800000u && scale >= 1.17549435e-38f;
  if (largest >= 0x7f800000u) scale = __uint_as_float(0x7fc00000u);
  else if (!usable) scale = 0.0f;
  const float inverse = usable ? 1.0f / scale : 0.0f;
  int q[V], high[V];
#pragma unroll
  for (unsigned i = 0; i < V; i++) {
    q[i] = usable ? __float2int_rn(x[i] * inverse) : 0;
    high[i] = __float2int_rn(float(q[i]) * (1.0f / 128.0f));
  }
  if (a.planes == 1) {
    put_block<V>(a, 0, block, first, q, scale, inside);
    return;
  }
#pragma unroll
  for (unsigned i = 0; i < V; i++) q[i] -= 128 * high[i];
  put_block<V>(a, 0, block, first, high, 128.0f * scale, inside);
  put_block<V>(a, 1, block, first, q, scale, inside);
}
