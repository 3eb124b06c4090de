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

// A lane's weights of a segment.
template <class F>
struct Segment {
  LaneCodes<F> codes[SEGMENT_STEPS];
  LaneScales<F> scales[SEGMENT_STEPS];
  LaneSupers supers;

  __device__ __forceinline__ void load_step(const Place& from, unsigned step, unsigned lane) {
    codes[step] = load_codes<F, Read::once>(from.codes + step * F::STEP_CODES, lane);
    scales[step] = load_scales<F, Read::once>(from.scales + step * F::STEP_SCALES, lane / 4);
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

  Segment<F> w;
  if (warp < per_row) {
    const Place from = place_of<F>(a.w, tile, warp, 0);
    w.supers = load_supers<F>(from.supers, g);
#pragma unroll
    for (unsigned step = 0; step < SEGMENT_STEPS; step++) w.load_step(from, step, lane);
  }
  float total = 0.0f;  // of row threadIdx.x % 16 and token threadIdx.x / 16
  for (unsigned first = 0; first < per_row; first += a.tile) {
    if (first > 0) __syncthreads();
    copy(a, chunk, shared, first * SEGMENT_STEPS);
    cp_async_wait<0>();
    __syncthreads();
    const unsigned many = per_row - first < a.tile ? per_row - first : a.tile;
    for (unsigned segment = warp; segment < many; segment += WARPS) {
      const unsigned next = first + segment + WARPS;
      const Place from = place_of<F>(a.w, tile, next, 0);
      const Supers supers = unpack(w.supers);
      if (next < per_row) w.supers = load_supers<F>(from.supers, g);
      float sum[2][TOKENS] = {};
      const auto meet = [&](const uint32_t(&codes)[4], const BlockScales<F>& scales, unsigned plane, unsigned block) {
        const uint2 words = *reinterpret_cast<const uint2*>(x + plane * a.tokens * chunk.row + block * BLOCK_COLS);
        const uint32_t b[2] = {words.x, words.y};
        Factors<F, TOKENS> factors;
#pragma unroll
        for (unsigned i = 0; i < TOKENS; i++) {
          const uint2 pair = *reinterpret_cast<const uint2*>(factors_of[i] + plane * a.tokens * chunk.factors_row + block * 8);
          set(factors, i, pair.x, pair.y);
        }
        add_step(codes, scales, b, factors, sum);
      };
#pragma unroll
      for (unsigned step = 0; step < SEGMENT_STEPS; step++) {
        uint32_t codes[4];
        unpack(w.codes[step], codes);
        const BlockScales<F> scales = unpack(w.scales[step], supers);
        if (next < per_row) w.load_step(from, step, lane);
        const unsigned block = segment * SEGMENT_STEPS + step;
        meet(codes, scales, 0, block);
        if (a.planes == 2) meet(codes, scales, 1, block);
      }
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
