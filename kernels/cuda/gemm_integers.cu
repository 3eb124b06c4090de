// Products of quantized weights with many tokens: out[t][r] = w[r] . x[t], every rounding and every order the contract's
// (kernels/NUMERICS.md), so that a product of one token or of a thousand, of whatever shape of tiles, gives the same bits.
//
// Method. integers.cuh says how a tile meets a step. Eight warps share a block's rows and tokens, each 32 by 32 or 64. All that a
// unit of 512 bytes of codes for each of 8 tiles of 16 rows needs is copied to one of three stages in shared memory by cp.async, two
// units ahead. Codes and activations lie in the order in which lanes take them, so every load meets each bank once. Sums and totals
// are in registers.
//
// Least work of R rows, C columns and T tokens: 2 R C T operations; R C (bits + 8 * bytes of scales / 32) / 8 bytes. For 16 rows by 8
// tokens by 32 columns a warp issues one mma and 12 instructions that the contract wants (16 with minimums): a subtraction, a product
// of scales and a fma for each sum. So FP32 units decide, not tensor cores: on an H200 33.5e12 lanes a second are at best 33.5e12 / 3
// * 64 = 700 TOP/s, or 530 with minimums. What is besides them is shared out: unpacking by the tokens of a warp, activations by its
// rows. Compiled for 9.0 the largest tile takes 22 instructions an mma in all in Q4_0, 28 in Q4_K: 390 and 310 TOP/s. Not measured yet.
// Bytes from the cache: R rows by T tokens read R / 2 of weights (4 bits) and T of activations a column, at most 8 a clock.
//
// Source: our own. Weights as the wide operand is the swap of A and B of kernels for few tokens (Marlin's, CUTLASS').
#include "integers.cuh"

namespace gemm_integers {

using integers::add_step;
using integers::Factors;
using integers::put;
using integers::THREADS;
using integers::WARPS;

constexpr unsigned STAGES = 3, STAGE_BYTES = 16384;

// How warps share a block's rows and tokens: M by N of them, each with tiles of 16 rows and of 8 tokens.
template <unsigned M_, unsigned N_, unsigned ROW_TILES_, unsigned TOKEN_TILES_>
struct Shape {
  static constexpr unsigned M = M_, N = N_, ROW_TILES = ROW_TILES_, TOKEN_TILES = TOKEN_TILES_;
  static constexpr unsigned TILES = M * ROW_TILES, TOKENS = N * TOKEN_TILES * 8;
  static_assert(M * N == WARPS && TILES == WARPS, "each warp copies a tile's codes");
};
using Many = Shape<4, 2, 2, 4>;  // 128 rows by 64 tokens
using Most = Shape<4, 2, 2, 8>;  // 128 by 128, of one plane

// Where things lie in a stage, in bytes. A unit is so many steps that a tile's codes are 512 bytes.
template <class F, class S>
struct Stage {
  static constexpr unsigned STEPS = 8 / F::BITS, UNITS = SEGMENT_STEPS / STEPS;
  static constexpr unsigned UNIT_CODES = STEPS * F::STEP_CODES, UNIT_SCALES = STEPS * F::STEP_SCALES;
  static constexpr unsigned SCALES = WARPS * UNIT_CODES;
  static constexpr unsigned SUPERS = SCALES + WARPS * UNIT_SCALES;
  static constexpr unsigned X = SUPERS + (F::SUPERS ? WARPS * SUPER_BYTES : 0);
  // Of a plane of activations: codes by step and token, factors by step and token.
  static constexpr unsigned CHUNKS = S::TOKENS * STEPS * 2;  // of 16 bytes
  static constexpr unsigned FACTORS = CHUNKS * 16;
  static constexpr unsigned PLANE = FACTORS + STEPS * S::TOKENS * 8;
  static_assert(X + (S::TOKENS == 64 ? 2 : 1) * PLANE <= STAGE_BYTES, "a stage holds its planes");
};

// Where a thread's copies come from, in what is copied at once: 16 bytes, or 8. Of what is outside, nothing is left.
template <class F, class S>
class Loader {
  using L = Stage<F, S>;
  static constexpr unsigned EACH = (L::CHUNKS + THREADS - 1) / THREADS;
  const cuckoo_linear_integers& a;
  unsigned codes, tile_inside;     // the first unit of the warp's tile; whether there is such a tile
  unsigned x[EACH], x_left[EACH];  // the thread's first chunks; blocks from there on
  unsigned factors, factors_left;  // likewise of scales and sums

  // The first block of `place`, of all [step][token], and how many there are from there on.
  __device__ __forceinline__ unsigned block_of(unsigned place, unsigned first_token, unsigned& left) const {
    const unsigned blocks = a.w.cols / BLOCK_COLS, token = first_token + place % S::TOKENS, step = place / S::TOKENS;
    left = token < a.tokens && step < blocks ? blocks - step : 0;
    return token * blocks + step;
  }

 public:
  // Of rows from `first_tile` on, and tokens from `first_token` on.
  __device__ __forceinline__ Loader(const cuckoo_linear_integers& a, unsigned first_tile, unsigned first_token) : a(a) {
    const unsigned tile = first_tile + threadIdx.x / WARP;
    codes = tile * segments(a.w) * L::UNITS;
    tile_inside = tile * TILE_ROWS < a.w.rows;
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) {
      x[i] = block_of((threadIdx.x + i * THREADS) / 2, first_token, x_left[i]) * 2 + threadIdx.x % 2;
    }
    factors = block_of(threadIdx.x, first_token, factors_left);
  }

  // Begins to copy a unit, counted from the row's first.
  __device__ __forceinline__ void copy(unsigned char* stage, unsigned unit) const {
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    {
      const unsigned from = codes + unit;
      cp_async<16>(stage + threadIdx.x * 16, at<const uint4>(a.w.codes) + (from * (L::UNIT_CODES / 16) + lane), tile_inside);
      if (lane < L::UNIT_SCALES / 16) {
        const uint4* const scales = at<const uint4>(a.w.scales) + (from * (L::UNIT_SCALES / 16) + lane);
        cp_async<16>(stage + L::SCALES + warp * L::UNIT_SCALES + lane * 16, scales, tile_inside);
      }
      if (F::SUPERS && unit % L::UNITS == 0 && lane < SUPER_BYTES / 16) {
        const uint4* const supers = at<const uint4>(a.w.supers) + (from / L::UNITS * (SUPER_BYTES / 16) + lane);
        cp_async<16>(stage + L::SUPERS + warp * SUPER_BYTES + lane * 16, supers, tile_inside);
      }
    }
    const unsigned blocks = a.tokens * (a.w.cols / BLOCK_COLS), later = unit * L::STEPS;
    unsigned char* to = stage + L::X + threadIdx.x * 16;
    unsigned skipped = later;
#pragma unroll 1
    for (unsigned plane = 0; plane < a.planes; plane++, to += L::PLANE, skipped += blocks) {
#pragma unroll
      for (unsigned i = 0; i < EACH; i++) {
        if (threadIdx.x + i * THREADS >= L::CHUNKS) break;
        cp_async<16>(to + i * THREADS * 16, at<const uint4>(a.q) + (skipped * 2 + x[i]), later < x_left[i]);
      }
      if (threadIdx.x >= S::TOKENS * L::STEPS) continue;
      cp_async<8>(to + L::FACTORS - threadIdx.x * 8, at<const uint2>(a.factors) + (skipped + factors), later < factors_left);
    }
  }
};

// What a lane has of its warp's tiles: of each, two rows by two tokens.
template <class S>
struct Sums {
  float sum[S::ROW_TILES][S::TOKEN_TILES][2][2];
  float total[S::ROW_TILES][S::TOKEN_TILES][2][2];
  LaneSupers supers[S::ROW_TILES];
};

// Where a warp stands among its block's rows and tokens.
template <class S>
struct Warp {
  unsigned lane, g, t, first_tile, first_token;
  __device__ Warp() {
    const unsigned warp = threadIdx.x / WARP;
    lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    first_tile = warp / S::N * S::ROW_TILES, first_token = warp % S::N * S::TOKEN_TILES * 8;
  }
};

// The steps of a unit.
template <class F, class S>
__device__ __forceinline__ void multiply(const unsigned char* stage, const Warp<S>& warp, unsigned planes, Sums<S>& sums) {
  using L = Stage<F, S>;
#pragma unroll
  for (unsigned step = 0; step < L::STEPS; step++) {
    uint32_t codes[S::ROW_TILES][4];
    BlockScales<F> scales[S::ROW_TILES];
#pragma unroll
    for (unsigned m = 0; m < S::ROW_TILES; m++) {
      const unsigned tile = warp.first_tile + m;
      unpack(load_codes<F, Read::again>(stage + tile * L::UNIT_CODES + step * F::STEP_CODES, warp.lane), codes[m]);
      const unsigned char* const of_step = stage + L::SCALES + tile * L::UNIT_SCALES + step * F::STEP_SCALES;
      scales[m] = unpack(load_scales<F, Read::again>(of_step, warp.g), unpack(sums.supers[m]));
    }
    const unsigned place = step * S::TOKENS + warp.first_token;
    const unsigned char* x = stage + L::X + place * BLOCK_COLS + warp.lane * 8;
    const unsigned char* factors_of = stage + L::X + L::FACTORS + place * 8 + warp.t * 16;
#pragma unroll 1
    for (unsigned plane = 0; plane < planes; plane++, x += L::PLANE, factors_of += L::PLANE) {
#pragma unroll
      for (unsigned n = 0; n < S::TOKEN_TILES; n++) {
        const uint2 words = *reinterpret_cast<const uint2*>(x + n * 8 * BLOCK_COLS);
        const uint32_t b[2] = {words.x, words.y};
        const uint4 both = *reinterpret_cast<const uint4*>(factors_of + n * 64);
        Factors<F, 2> factors;
        set(factors, 0, uint2{both.x, both.y});
        set(factors, 1, uint2{both.z, both.w});
#pragma unroll
        for (unsigned m = 0; m < S::ROW_TILES; m++) add_step(codes[m], scales[m], b, factors, sums.sum[m][n]);
      }
    }
  }
}

// Calls `f` with each of a lane's elements and its number.
template <class S, class Each>
__device__ __forceinline__ void for_each(Each f) {
#pragma unroll
  for (unsigned m = 0; m < S::ROW_TILES; m++) {
#pragma unroll
    for (unsigned n = 0; n < S::TOKEN_TILES; n++) {
#pragma unroll
      for (unsigned i = 0; i < 4; i++) f(m, n, i / 2, i % 2);
    }
  }
}

// Rows by blockIdx.y, tokens by blockIdx.x, so that blocks that run together read the same weights.
template <class F, class S>
__device__ __forceinline__ void product(const cuckoo_linear_integers& a) {
  CUCKOO_SHARED(unsigned char, shared);  // [STAGES][STAGE_BYTES]
  using L = Stage<F, S>;
  const Warp<S> warp;
  const unsigned first_tile = blockIdx.y * S::TILES, first_token = blockIdx.x * S::TOKENS;
  // The last segment is as long as any: weights beyond the last column are zeros.
  const unsigned units = segments(a.w) * L::UNITS;
  const Loader<F, S> loader(a, first_tile, first_token);
#pragma unroll
  for (unsigned unit = 0; unit < STAGES - 1; unit++) {
    loader.copy(shared + unit * STAGE_BYTES, unit);  // a segment has more units than there are stages
    cp_async_commit();
  }
  Sums<S> sums = {};
  unsigned char *reading = shared, *writing = shared + (STAGES - 1) * STAGE_BYTES;
  const auto move = [&](unsigned char*& stage) { stage = stage == shared + (STAGES - 1) * STAGE_BYTES ? shared : stage + STAGE_BYTES; };
#pragma unroll 1
  for (unsigned unit = 0; unit < units; unit++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    // Into the stage of the unit before, which all have done with.
    const unsigned next = unit + STAGES - 1;
    if (next < units) loader.copy(writing, next);
    cp_async_commit();
    move(writing);
    if (unit % L::UNITS == 0) {
#pragma unroll
      for (unsigned m = 0; m < S::ROW_TILES; m++) {
        sums.supers[m] = load_supers<F>(reading + L::SUPERS + (warp.first_tile + m) * SUPER_BYTES, warp.g);
      }
    }
    if (unit * L::STEPS * BLOCK_COLS < a.w.cols) multiply<F, S>(reading, warp, a.planes, sums);
    if (unit % L::UNITS == L::UNITS - 1) {
      for_each<S>([&](auto m, auto n, auto i, auto j) {
        sums.total[m][n][i][j] += sums.sum[m][n][i][j];
        sums.sum[m][n][i][j] = 0.0f;
      });
    }
    move(reading);
  }
  for_each<S>([&](auto m, auto n, auto i, auto j) {
    const unsigned row = (first_tile + warp.first_tile + m) * TILE_ROWS + warp.g + i * 8;
    put(a, row, first_token + warp.first_token + n * 8 + 2 * warp.t + j, sums.total[m][n][i][j]);
  });
}

}  // namespace gemm_integers

// Sums and totals of the largest tiles take more registers than two blocks of a multiprocessor have.
#define CUCKOO_GEMM_WIDE(bits, scales, halves, minimums)                                                                  \
  extern "C" __global__ void __launch_bounds__(256, 1)                                                                    \
  cuckoo_gemm_wide_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_linear_integers a) {          \
    using F = Format<bits, Scales::scales, halves, minimums>;                                                             \
    if (a.tile == 128) gemm_integers::product<F, gemm_integers::Most>(a);                                                 \
    else gemm_integers::product<F, gemm_integers::Many>(a);                                                               \
  }
CUCKOO_FORMATS(CUCKOO_GEMM_WIDE)
