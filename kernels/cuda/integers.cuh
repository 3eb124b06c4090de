// What products with quantized weights have in common, for few tokens and for many: a tile of 16 rows meets 8 tokens in a step.
//
// Weights are the operand A of integer `mma`, activations B: of a step (a block of 32 columns) 16 rows by 8 tokens are one m16n8k32,
// or two m16n8k16 where a format's halves have scales of their own. Integer sums are exact, so the tensor core's order is nobody's to
// see. A lane gets four of the 128 sums and does with each what the contract says (kernels/NUMERICS.md), in floating point. Sums begin
// at the bits of a large number whose last bit is worth 1, so that their own bits, read as a float, are that number plus the sum: one
// subtraction makes the float, where a conversion would run at a quarter of the rate. Where codes are 16 times too large, the last
// bit of the large number is worth a 16th.
//
// Steps beyond the last column have zeros for scales, and so add 0 * 0: -0 becomes 0, which no total can tell.
#pragma once
#include "ptx.cuh"
#include "weights.cuh"

namespace integers {

constexpr unsigned THREADS = 256, WARPS = THREADS / WARP;

// What goes with a block of activations of so many tokens: what their scales are multiplied by, and what minimums are.
template <class F, unsigned TOKENS>
struct Factors {
  float scale[TOKENS];
  float minimum[TOKENS][F::GROUPS];
};

// A token's, from what cuckoo_quantize_rows leaves.
template <class F, unsigned TOKENS>
__device__ __forceinline__ void set(Factors<F, TOKENS>& factors, unsigned token, uint2 pair) {
  factors.scale[token] = __uint_as_float(pair.x);
#pragma unroll
  for (unsigned g = 0; g < F::GROUPS; g++) {
    const float sum = F::HALVES ? half_of_bits(uint16_t(pair.y >> g * 16)) : __uint_as_float(pair.y);
    factors.minimum[token][g] = F::MINIMUMS ? factors.scale[token] * sum : 0.0f;
  }
}

// A step of 16 rows by 8 tokens. sum[row][token] is that of row g or g + 8, and of the token in column 2 t or, with two tokens a
// lane, 2 t + 1.
template <class F, unsigned TOKENS>
__device__ __forceinline__ void add_step(const uint32_t (&codes)[4], const BlockScales<F>& w, const uint32_t (&x)[2],
                                         const Factors<F, TOKENS>& factors, float (&sum)[2][TOKENS]) {
  constexpr float WHOLE = 12582912.0f / F::UNIT;  // 1.5 * 2^23
  const int zero = int(__float_as_uint(WHOLE));
  const int zeros[4] = {zero, zero, zero, zero};
  int dots[F::GROUPS][4];
  if constexpr (F::HALVES) {
    mma_s8_k16(dots[0], codes[0], codes[1], x[0], zeros);
    mma_s8_k16(dots[1], codes[2], codes[3], x[1], zeros);
  } else {
    mma_s8_k32(dots[0], codes, x, zeros);
  }
#pragma unroll
  for (unsigned row = 0; row < 2; row++) {
#pragma unroll
    for (unsigned token = 0; token < TOKENS; token++) {
      float& into = sum[row][token];
#pragma unroll
      for (unsigned g = 0; g < F::GROUPS; g++) {
        into = fmaf(__int_as_float(dots[g][row * 2 + token]) - WHOLE, w.scale[row][g] * factors.scale[token], into);
      }
      if constexpr (F::MINIMUMS) {
#pragma unroll
        for (unsigned g = 0; g < F::GROUPS; g++) into = fmaf(w.minimum[row][g], factors.minimum[token][g], into);
      }
    }
  }
}

// Writes a product, or adds it.
__device__ __forceinline__ void put(const cuckoo_linear_integers& a, unsigned row, unsigned token, float total) {
  if (row >= a.w.rows || token >= a.tokens) return;
  float* const out = at<float>(a.out) + uint64_t(token) * a.out_cols + a.first_row + row;
  *out = a.add ? *out + total : total;
}

}  // namespace integers
