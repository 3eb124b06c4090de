// Products of quantized weights with up to 8 tokens: out[t][r] = w[r] . x[t], to the bit as gemm_integers.cu has them.
//
// Method. A block of 8 warps has 16 rows; its warps take segments of 256 columns in turns, so a matrix of 4096 rows has 256 blocks. A
// warp reads its weights straight into registers, in the order in which `mma` takes them (weights.cuh), every load of a warp one
// piece of 256 or 512 bytes, marked as read once. Registers of a step are loaded with the next segment's as soon as they have been
// used, so a whole segment is always on its way, across barriers too. Activations are in shared memory, `tile` segments at once;
// rows are padded so that tokens lie in different banks. Sums of segments are left in shared memory, and a thread for each row and
// token adds them up in order. Up to 4 tokens are columns 0, 2, 4 and 6 of `mma`, so that a lane has one token, not two.
//
// Least bytes of R rows and C columns: R C (bits + 8 * bytes of scales / 32) / 8, all of it once. Little's law on an H200: 4.8 TB/s
// times about 0.7 us are 3.4 MB, 25 KB for each of 132 multiprocessors. Two blocks of 8 warps with a segment of 16 rows each have
// 16 * (2 KB + 256 bytes of scales) = 36 KB in flight, in 4 bits. Activations from the cache: T tokens cost T / 9 of the weights.
// Instructions: of 512 weights a warp's step is 2 loads, 2 of shared memory, 6 to unpack, 1 mma, 2 to 8 for scales, and 3 or 4 for
// each of 2 or 4 sums: 20 to 35, at most 2.2 a weight where there is time for 3.9 while 4.5 bits of it arrive.
//
// Why tensor cores for one token: with dp4a a sum would be spread over the lanes that read a row together, and the contract's chain
// of fma goes through every block of it. Here `mma` sends a row's sums to the lane that has the chain.
//
// Source: our own.
#include "integers.cuh"

namespace gemv_integers {

using integers::add_step;
using integers::Factors;
using integers::put;
using integers::THREADS;
using integers::WARPS;

// How a chunk of activations lies in shared memory, in bytes: rows [plane][token] of codes, rows of factors, then sums
// [segment][row][token].
struct Chunk {
  unsigned row, factors, factors_row, sums;

  __device__ __forceinline__ explicit Chunk(const cuckoo_linear_integers& a) {
    const unsigned blocks = a.tile * SEGMENT_STEPS, rows = a.planes * a.tokens;
    row = (blocks + 1) * BLOCK_COLS;
    factors = rows * row;
    factors_row = (blocks + 2) * 8;
    sums = factors + rows * factors_row;
  }
};

// Begins to copy the activations of a chunk; zeros beyond the last column.
__device__ __forceinline__ void copy(const cuckoo_linear_integers& a, const Chunk& chunk, unsigned char* shared, unsigned first) {
  const unsigned blocks = a.w.cols / BLOCK_COLS, wanted = a.tile * SEGMENT_STEPS;
  for (unsigned row = 0; row < a.planes * a.tokens; row++) {
    const uint64_t from = uint64_t(row) * blocks + first;
    for (unsigned i = threadIdx.x; i < wanted * 2; i += THREADS) {
      cp_async<16>(shared + row * chunk.row + i * 16, at<const uint4>(a.q) + from * 2 + i, first + i / 2 < blocks);
    }
    for (unsigned i = threadIdx.x; i < wanted; i += THREADS) {
      cp_async<8>(shared + chunk.factors + row * chunk.factors_row + i * 8, at<const uint2>(a.factors) + from + i, first + i < blocks);
    }
  }
  cp_async_commit();
}

// A lane's weights, read ahead: 2 KB of a warp's codes are always on their way.
template <class F>
class Ahead {
  static constexpr unsigned STEPS = 32 / F::BITS, UNITS = SEGMENT_STEPS / STEPS;
  Place from;  // of what the lane reads next
  LaneCodes<F> codes[STEPS];
  LaneScales<F> scales[STEPS];
  LaneSupers supers;

  __device__ __forceinline__ void load(unsigned step) {
    codes[step] = load_codes<F, Read::once>(from.codes + step * F::STEP_CODES, 0);
    scales[step] = load_scales<F, Read::once>(from.scales + step * F::STEP_SCALES, 0);
  }

  __device__ __forceinline__ void skip(unsigned steps) {
    from.codes += steps * F::STEP_CODES;
    from.scales += steps * F::STEP_SCALES;
  }

 public:
  // Of a tile's segment `first`, if it has so many.
  __device__ __forceinline__ Ahead(const cuckoo_integers& w, unsigned tile, unsigned first) : from(place_of<F>(w, tile, first, 0)) {
    const unsigned lane = threadIdx.x % WARP;
    from.codes += lane * F::BITS * 2;
    from.scales += lane / 4 * 2 * F::SCALE_BYTES;
    from.supers += lane / 4 * 8;
    if (first >= segments(w)) return;
    supers = load_supers<F>(from.supers, 0);
#pragma unroll
    for (unsigned step = 0; step < STEPS; step++) load(step);
  }

  // Gives operand A and the scales of every step of a segment to `meet`. Reads on into the warp's next one, if there is `more`.
  template <class Meet>
  __device__ __forceinline__ void segment(bool more, Meet meet) {
    const Supers of_segment = unpack(supers);
    from.supers += WARPS * SUPER_BYTES;
    if (more) supers = load_supers<F>(from.supers, 0);
#pragma unroll 1
    for (unsigned unit = 0; unit < UNITS; unit++) {
      const bool last = unit + 1 == UNITS;
      skip(last ? (WARPS - 1) * SEGMENT_STEPS + STEPS : STEPS);
#pragma unroll
      for (unsigned step = 0; step < STEPS; step++) {
        uint32_t operand[4];
        unpack(codes[step], operand);
        const BlockScales<F> of_step = unpack(scales[step], of_segment);
        if (more || !last) load(step);
        meet(unit * STEPS + step, operand, of_step);
      }
    }
  }
};

// 16 rows; of each lane so many tokens.
template <class F, unsigned TOKENS>
__device__ __forceinline__ void product(const cuckoo_linear_integers& a) {
  CUCKOO_SHARED(unsigned char, shared);
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  const unsigned tile = blockIdx.x, per_row = segments(a.w);
  const Chunk chunk(a);
  // Columns that are no token's get another's, and nobody looks at what comes of it.
  const auto token_of = [&](unsigned column) { return column / (3 - TOKENS) < a.tokens ? column / (3 - TOKENS) : a.tokens - 1; };
  const unsigned char* const x = shared + token_of(g) * chunk.row + t * 8;
  const unsigned char* factors_of[TOKENS];
#pragma unroll
  for (unsigned i = 0; i < TOKENS; i++) factors_of[i] = shared + chunk.factors + token_of(2 * t + i) * chunk.factors_row;
  float* const sums = reinterpret_cast<float*>(shared + chunk.sums);

  Ahead<F> weights(a.w, tile, warp);
  float total = 0.0f;  // of row threadIdx.x % 16 and token threadIdx.x / 16
  for (unsigned first = 0; first < per_row; first += a.tile) {
    if (first > 0) __syncthreads();
    copy(a, chunk, shared, first * SEGMENT_STEPS);
    cp_async_wait<0>();
    __syncthreads();
    const unsigned many = per_row - first < a.tile ? per_row - first : a.tile;
    for (unsigned segment = warp; segment < many; segment += WARPS) {
      float sum[2][TOKENS] = {};
      const unsigned char* const here = x + segment * SEGMENT_COLS;
      weights.segment(first + segment + WARPS < per_row, [&](unsigned step, const uint32_t(&codes)[4], const BlockScales<F>& scales) {
        const auto meet = [&](unsigned plane_x, unsigned plane_factors) {
          const uint2 words = *reinterpret_cast<const uint2*>(here + step * BLOCK_COLS + plane_x);
          const uint32_t b[2] = {words.x, words.y};
          Factors<F, TOKENS> factors;
#pragma unroll
          for (unsigned i = 0; i < TOKENS; i++) {
            const unsigned char* const pair = factors_of[i] + segment * SEGMENT_STEPS * 8 + step * 8 + plane_factors;
            set(factors, i, *reinterpret_cast<const uint2*>(pair));
          }
          add_step(codes, scales, b, factors, sum);
        };
        meet(0, 0);
        if (a.planes == 2) meet(a.tokens * chunk.row, a.tokens * chunk.factors_row);
      });
#pragma unroll
      for (unsigned i = 0; i < 2 * TOKENS; i++) {
        const unsigned row = g + i / TOKENS * 8, token = (2 * t + i % TOKENS) / (3 - TOKENS);
        if (token < a.tokens) sums[(segment * a.tokens + token) * TILE_ROWS + row] = sum[i / TOKENS][i % TOKENS];
      }
    }
    __syncthreads();
    if (threadIdx.x < TILE_ROWS * a.tokens) {
      for (unsigned segment = 0; segment < many; segment++) total += sums[segment * a.tokens * TILE_ROWS + threadIdx.x];
    }
  }
  put(a, tile * TILE_ROWS + threadIdx.x % TILE_ROWS, threadIdx.x / TILE_ROWS, total);
}

}  // namespace gemv_integers

#define CUCKOO_LINEAR(bits, scales, halves, minimums)                                                                     \
  CUCKOO_KERNEL(256)                                                                                                      \
  cuckoo_linear_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_linear_integers a) {             \
    using F = Format<bits, Scales::scales, halves, minimums>;                                                             \
    if (a.tokens <= 4) gemv_integers::product<F, 1>(a);                                                                   \
    else gemv_integers::product<F, 2>(a);                                                                                 \
  }
CUCKOO_FORMATS(CUCKOO_LINEAR)
