// Products of quantized weights with many tokens: out[t][r] = w[r] . x[t], every rounding and every order the contract's
// (kernels/NUMERICS.md), so that a product of one token or of a thousand, of whatever shape of tiles, gives the same bits.
//
// Method. integers.cuh says how a tile meets a step. Eight warps share a block's rows and tokens, and, where there are few of them,
// several segments of columns: those of a segment each leave their sums to the first ones, who add them up in order. All that a unit
// of 512 bytes of codes for each of 8 tiles of 16 rows needs is copied to one of three stages in shared memory by cp.async, two units
// ahead. Codes and activations lie in the order in which lanes take them, so every load meets each bank once.
//
// Least work of R rows, C columns and T tokens: 2 R C T operations; R C (bits + 8 * bytes of scales / 32) / 8 bytes. For 16 rows by 8
// tokens by 32 columns a warp issues one mma and 12 instructions that the contract wants (16 with minimums): a subtraction, a product
// of scales and a fma for each sum. So FP32 units decide, not tensor cores: on an H200 33.5e12 lanes a second are at best 33.5e12 / 3
// * 64 = 700 TOP/s, or 530 with minimums. What is besides them is shared out: unpacking by the tokens of a warp, activations by its
// rows. Compiled for 9.0 the largest tile takes 22 instructions an mma in all in Q4_0, 25 in Q4_K: about 370 and 330 TOP/s.
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

// How warps share a block's tile: M by N of them in K segments at once. A warp has tiles of 16 rows and of 8 tokens.
template <unsigned M_, unsigned N_, unsigned K_, unsigned ROW_TILES_, unsigned TOKEN_TILES_>
struct Shape {
  static constexpr unsigned M = M_, N = N_, K = K_, ROW_TILES = ROW_TILES_, TOKEN_TILES = TOKEN_TILES_;
  static constexpr unsigned TILES = M * ROW_TILES, TOKENS = N * TOKEN_TILES * 8;
  // Rows of activations in a stage.
  static constexpr unsigned SLOTS = TOKENS * K;
  static_assert(M * N * K == WARPS && TILES * K == WARPS && SLOTS % 64 == 0, "each warp copies a tile's codes");
  static_assert((K - 1) * TILES * TILE_ROWS * TOKENS * 4 <= STAGE_BYTES, "sums of segments fit a stage");
};
using Some = Shape<2, 2, 2, 2, 2>;  // 64 rows by 32 tokens
using Many = Shape<4, 2, 1, 2, 4>;  // 128 by 64
using Most = Shape<4, 2, 1, 2, 8>;  // 128 by 128, of one plane

// Where things lie in a stage, in bytes. A unit is so many steps that a tile's codes are 512 bytes.
template <class F, class S>
struct Stage {
  static constexpr unsigned STEPS = 8 / F::BITS, UNITS = SEGMENT_STEPS / STEPS;
  static constexpr unsigned UNIT_CODES = STEPS * F::STEP_CODES, UNIT_SCALES = STEPS * F::STEP_SCALES;
  static constexpr unsigned SCALES = WARPS * UNIT_CODES;
  static constexpr unsigned SUPERS = SCALES + WARPS * UNIT_SCALES;
  static constexpr unsigned X = SUPERS + (F::SUPERS ? WARPS * SUPER_BYTES : 0);
  // Of a plane of activations: codes by step and slot, factors by step and slot.
  static constexpr unsigned CHUNKS = S::SLOTS * STEPS * 2;  // of 16 bytes
  static constexpr unsigned FACTORS = CHUNKS * 16;
  static constexpr unsigned PLANE = FACTORS + STEPS * S::SLOTS * 8;
  static_assert(X + (S::SLOTS == 64 ? 2 : 1) * PLANE <= STAGE_BYTES, "a stage holds its planes");
};

// Where a thread's copies come from, in what is copied at once: 16 bytes, or 8. Of what is outside, nothing is left.
template <class F, class S>
class Loader {
  using L = Stage<F, S>;
  static constexpr unsigned EACH = (L::CHUNKS + THREADS - 1) / THREADS;
  const cuckoo_linear_integers& a;
  unsigned codes, segments_left;        // the unit of the warp's tile in its first segment; segments from there on
  unsigned x[EACH], x_left[EACH];       // the thread's chunks in their first segments; blocks from there on
  unsigned factors, factors_left;       // likewise of scales and sums

  // The block of `place`, of all [step][slot], in its first segment, and how many there are from there on.
  __device__ __forceinline__ unsigned block_of(unsigned place, unsigned first_token, unsigned& left) const {
    const unsigned blocks = a.w.cols / BLOCK_COLS, slot = place % S::SLOTS;
    const unsigned token = first_token + slot % S::TOKENS, block = slot / S::TOKENS * SEGMENT_STEPS + place / S::SLOTS;
    left = token < a.tokens && block < blocks ? blocks - block : 0;
    return token * blocks + block;
  }

 public:
  // Of rows from `first_tile` on, and tokens from `first_token` on.
  __device__ __forceinline__ Loader(const cuckoo_linear_integers& a, unsigned first_tile, unsigned first_token) : a(a) {
    const unsigned per_row = segments(a.w);
    const unsigned k = threadIdx.x / WARP / S::TILES, tile = first_tile + threadIdx.x / WARP % S::TILES;
    codes = (tile * per_row + k) * L::UNITS;
    segments_left = tile * TILE_ROWS < a.w.rows && k < per_row ? per_row - k : 0;
#pragma unroll
    for (unsigned i = 0; i < EACH; i++) {
      x[i] = block_of((threadIdx.x + i * THREADS) / 2, first_token, x_left[i]) * 2 + threadIdx.x % 2;
    }
    factors = block_of(threadIdx.x, first_token, factors_left);
  }

  // Begins to copy what comes `segment` segments and `step` steps later.
  __device__ __forceinline__ void copy(unsigned char* stage, unsigned segment, unsigned step) const {
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    {
      const bool inside = segment < segments_left;
      const unsigned unit = codes + segment * L::UNITS + step / L::STEPS;
      cp_async<16>(stage + threadIdx.x * 16, at<const uint4>(a.w.codes) + (unit * (L::UNIT_CODES / 16) + lane), inside);
      if (lane < L::UNIT_SCALES / 16) {
        const uint4* const scales = at<const uint4>(a.w.scales) + (unit * (L::UNIT_SCALES / 16) + lane);
        cp_async<16>(stage + L::SCALES + warp * L::UNIT_SCALES + lane * 16, scales, inside);
      }
      if (F::SUPERS && step == 0 && lane < SUPER_BYTES / 16) {
        const uint4* const supers = at<const uint4>(a.w.supers) + (unit / L::UNITS * (SUPER_BYTES / 16) + lane);
        cp_async<16>(stage + L::SUPERS + warp * SUPER_BYTES + lane * 16, supers, inside);
      }
    }
    const unsigned blocks = a.tokens * (a.w.cols / BLOCK_COLS), later = segment * SEGMENT_STEPS + step;
    unsigned char* to = stage + L::X + threadIdx.x * 16;
    unsigned skipped = later;
#pragma unroll 1
    for (unsigned plane = 0; plane < a.planes; plane++, to += L::PLANE, skipped += blocks) {
#pragma unroll
      for (unsigned i = 0; i < EACH; i++) {
        if (threadIdx.x + i * THREADS >= L::CHUNKS) break;
        cp_async<16>(to + i * THREADS * 16, at<const uint4>(a.q) + (skipped * 2 + x[i]), later < x_left[i]);
      }
      if (threadIdx.x >= S::SLOTS * L::STEPS) continue;
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

// Where a warp stands in the block's tile.
template <class S>
struct Warp {
  unsigned lane, g, t, m, n, k;
  __device__ Warp() {
    const unsigned warp = threadIdx.x / WARP;
    lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    m = warp % (S::M * S::N) / S::N, n = warp % S::N, k = warp / (S::M * S::N);
  }
  // Of its row tile and its token tile, the unit of codes and the slot.
  __device__ unsigned unit(unsigned row_tile) const { return k * S::TILES + m * S::ROW_TILES + row_tile; }
  __device__ unsigned slot(unsigned token_tile) const { return k * S::TOKENS + (n * S::TOKEN_TILES + token_tile) * 8; }
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
      const unsigned unit = warp.unit(m);
      unpack(load_codes<F, Read::again>(stage + unit * L::UNIT_CODES + step * F::STEP_CODES, warp.lane), codes[m]);
      const unsigned char* const of_step = stage + L::SCALES + unit * L::UNIT_SCALES + step * F::STEP_SCALES;
      scales[m] = unpack(load_scales<F, Read::again>(of_step, warp.g), unpack(sums.supers[m]));
    }
    const unsigned char* x = stage + L::X + step * S::SLOTS * BLOCK_COLS + warp.slot(0) * BLOCK_COLS + warp.lane * 8;
    const unsigned char* factors_of = stage + L::X + L::FACTORS + step * S::SLOTS * 8 + warp.slot(0) * 8 + warp.t * 16;
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

// Sums of the round's segments, of which there are `many`, join the totals of those warps that have the first one, in order.
// `room` is a stage that is free but for the barrier.
template <class S>
__device__ __forceinline__ void end_segments(unsigned char* room, const Warp<S>& warp, unsigned many, Sums<S>& sums) {
  constexpr unsigned GROUP = THREADS / S::K, EACH = S::ROW_TILES * S::TOKEN_TILES * 4;
  if constexpr (S::K > 1) {
    float* const places = reinterpret_cast<float*>(room) + threadIdx.x % GROUP;
    const auto place = [](unsigned k, unsigned m, unsigned n, unsigned i, unsigned j) {
      return ((k - 1) * EACH + (m * S::TOKEN_TILES + n) * 4 + i * 2 + j) * GROUP;
    };
    __syncthreads();
    if (warp.k > 0) for_each<S>([&](auto m, auto n, auto i, auto j) { places[place(warp.k, m, n, i, j)] = sums.sum[m][n][i][j]; });
    __syncthreads();
    if (warp.k == 0) {
      for_each<S>([&](auto m, auto n, auto i, auto j) { sums.total[m][n][i][j] += sums.sum[m][n][i][j]; });
      for (unsigned k = 1; k < many; k++) {
        for_each<S>([&](auto m, auto n, auto i, auto j) { sums.total[m][n][i][j] += places[place(k, m, n, i, j)]; });
      }
    }
  } else {
    for_each<S>([&](auto m, auto n, auto i, auto j) { sums.total[m][n][i][j] += sums.sum[m][n][i][j]; });
  }
  for_each<S>([&](auto m, auto n, auto i, auto j) { sums.sum[m][n][i][j] = 0.0f; });
}

// A block's tile: rows by blockIdx.y, tokens by blockIdx.x, so that blocks that run together read the same weights.
template <class F, class S>
__device__ __forceinline__ void product(const cuckoo_linear_integers& a) {
  CUCKOO_SHARED(unsigned char, shared);  // [STAGES][STAGE_BYTES]
  using L = Stage<F, S>;
  const Warp<S> warp;
  const unsigned first_tile = blockIdx.y * S::TILES, first_token = blockIdx.x * S::TOKENS;
  const unsigned per_row = segments(a.w), units = (per_row + S::K - 1) / S::K * L::UNITS;
  const Loader<F, S> loader(a, first_tile, first_token);
#pragma unroll
  for (unsigned unit = 0; unit < STAGES - 1; unit++) {
    loader.copy(shared + unit * STAGE_BYTES, 0, unit * L::STEPS);  // a segment has more units than there are stages
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
    if (next < units) loader.copy(writing, next / L::UNITS * S::K, next % L::UNITS * L::STEPS);
    cp_async_commit();
    move(writing);
    if (unit % L::UNITS == 0) {
#pragma unroll
      for (unsigned m = 0; m < S::ROW_TILES; m++) {
        sums.supers[m] = load_supers<F>(reading + L::SUPERS + warp.unit(m) * SUPER_BYTES, warp.g);
      }
    }
    // Whether anything is left of the round's first segment, and so of any.
    const unsigned first_step = unit / L::UNITS * S::K * SEGMENT_STEPS + unit % L::UNITS * L::STEPS;
    if (first_step * BLOCK_COLS < a.w.cols) multiply<F, S>(reading, warp, a.planes, sums);
    if (unit % L::UNITS == L::UNITS - 1) {
      const unsigned left = per_row - unit / L::UNITS * S::K;
      end_segments<S>(reading, warp, left < S::K ? left : S::K, sums);
    }
    move(reading);
  }
  if (warp.k > 0) return;
  for_each<S>([&](auto m, auto n, auto i, auto j) {
    const unsigned row = (first_tile + warp.unit(m)) * TILE_ROWS + warp.g + i * 8;
    put(a, row, first_token + warp.slot(n) + 2 * warp.t + j, sums.total[m][n][i][j]);
  });
}

}  // namespace gemm_integers

#define CUCKOO_GEMM(bits, scales, halves, minimums)                                                                       \
  CUCKOO_KERNEL(256)                                                                                                      \
  cuckoo_gemm_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_linear_integers a) {               \
    gemm_integers::product<Format<bits, Scales::scales, halves, minimums>, gemm_integers::Some>(a);                                 \
  }
CUCKOO_FORMATS(CUCKOO_GEMM)

// Sums and totals of the largest tiles take more registers than two blocks of a multiprocessor have.
#define CUCKOO_GEMM_WIDE(bits, scales, halves, minimums)                                                                  \
  extern "C" __global__ void __launch_bounds__(256, 1)                                                                    \
  cuckoo_gemm_wide_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_linear_integers a) {          \
    using F = Format<bits, Scales::scales, halves, minimums>;                                                             \
    if (a.tile == 128) gemm_integers::product<F, gemm_integers::Most>(a);                                                           \
    else gemm_integers::product<F, gemm_integers::Many>(a);                                                                         \
  }
CUCKOO_FORMATS(CUCKOO_GEMM_WIDE)
