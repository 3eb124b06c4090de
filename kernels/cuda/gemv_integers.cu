// Products of quantized weights with up to 32 tokens: out[t][r] = w[r] . x[t], to the bit as gemm_integers.cu has them.
//
// Method. integers.cuh says how a tile meets a step. A block of 8 warps has 16 rows and up to 8 tokens, or 32 rows and 16 tokens, or 64
// and 32; warps take its tiles of 16 rows, and the segments of each in turns. So a matrix of 4096 rows has 256 blocks, or 128 or 64. A
// warp reads its weights straight into registers, in the order in which `mma` takes them (weights.cuh), every load of a warp one
// piece of 256 or 512 bytes, marked as read once. Registers of a step are loaded with later ones as soon as they have been used, so
// as many bytes are always on their way, across barriers too. Activations are in shared memory, some segments at once; rows are
// padded so that tokens lie in different banks. Sums of segments are left in shared memory, and a thread for each row and token adds
// them up in order. Up to 4 tokens are columns 0, 2, 4 and 6 of `mma`, so that a lane has one token, not two.
//
// Least bytes of R rows and C columns: R C (bits + 8 * bytes of scales / 32) / 8, all of it once; 2 R C T operations. Little's law on
// an H200: 4.8 TB/s times about 0.7 us are 3.4 MB, 25 KB for each of 132 multiprocessors. Two blocks of 8 warps with a segment of 16
// rows each have 16 * (2 KB + 256 bytes of scales) = 36 KB in flight, in 4 bits. Activations from the cache: a block reads T tokens
// for R of its rows, in bytes 2 T / R of its weights, so 1/8 for one token, at most 1.
// Instructions, as compiled for 9.0: of 512 weights a step takes 31 (Q4_0) to 43 (Q4_K) for up to 4 tokens, 42 to 60 for 8, 75 to 98
// for 16, 108 to 145 for 32; that is 2 to 2.7 a weight, at most 9. An H200 has time for 3.9 while 4.5 bits of a weight arrive, so
// bandwidth decides up to 8 tokens, and is shared by half at 32. None of it was measured yet.
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

// A block's rows and tokens. Warps share out its tiles of 16 rows, and the segments of each in so many ways. A lane has one token of
// each tile of 8, or two.
template <unsigned TILES_, unsigned TOKEN_TILES_, unsigned LANE_TOKENS_>
struct Shape {
  static constexpr unsigned TILES = TILES_, TOKEN_TILES = TOKEN_TILES_, LANE_TOKENS = LANE_TOKENS_;
  static constexpr unsigned WAYS = WARPS / TILES, ROWS = TILES * TILE_ROWS, TOKENS = TOKEN_TILES * 4 * LANE_TOKENS;
  // Few tokens have as many segments at once as fit, and room for the sums of each. Others have one for each warp, and sums go
  // where activations were.
  static constexpr bool FEW = TILES == 1;
  static constexpr unsigned TOTALS = (ROWS * TOKENS + THREADS - 1) / THREADS;  // of a thread
};
using One = Shape<1, 1, 1>;         // 16 rows by up to 4 tokens
using Eight = Shape<1, 1, 2>;       // 16 by 8
using Sixteen = Shape<2, 2, 2>;     // 32 by 16
using ThirtyTwo = Shape<4, 4, 2>;   // 64 by 32

// How a chunk of activations lies in shared memory, in bytes: rows [plane][token] of codes, rows of factors, then sums
// [segment][token][row].
template <class S>
struct Chunk {
  unsigned segments, tokens, row, factors, factors_row, sums;

  __device__ __forceinline__ explicit Chunk(const cuckoo_linear_integers& a) {
    segments = S::FEW ? a.tile : S::WAYS;
    tokens = S::FEW ? a.tokens : S::TOKENS;
    const unsigned blocks = segments * SEGMENT_STEPS, rows = a.planes * tokens;
    row = (blocks + 1) * BLOCK_COLS;
    factors = rows * row;
    factors_row = (blocks + 2) * 8;
    sums = S::FEW ? factors + rows * factors_row : 0;
  }
};

// Begins to copy the activations of a chunk, of `many` tokens; zeros beyond the last column.
template <class S>
__device__ __forceinline__ void copy(const cuckoo_linear_integers& a, const Chunk<S>& chunk, unsigned char* shared,
                                     unsigned first_token, unsigned many, unsigned first_block) {
  const unsigned blocks = a.w.cols / BLOCK_COLS, wanted = chunk.segments * SEGMENT_STEPS;
  for (unsigned plane = 0; plane < a.planes; plane++) {
    const unsigned row = plane * a.tokens + first_token, to = plane * chunk.tokens;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < many * wanted * 2; i += THREADS) {
      const unsigned token = i / (wanted * 2), piece = i % (wanted * 2), block = first_block + piece / 2;
      const uint4* const from = at<const uint4>(a.q) + (uint64_t(row + token) * blocks + block) * 2 + piece % 2;
      cp_async<16>(shared + (to + token) * chunk.row + piece * 16, from, block < blocks);
    }
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < many * wanted; i += THREADS) {
      const unsigned token = i / wanted, block = first_block + i % wanted;
      const uint2* const from = at<const uint2>(a.factors) + uint64_t(row + token) * blocks + block;
      cp_async<8>(shared + chunk.factors + (to + token) * chunk.factors_row + i % wanted * 8, from, block < blocks);
    }
  }
  cp_async_commit();
}

// A lane's weights, read ahead: of a warp's codes so many bytes are always on their way. It has one in `WAYS` of a tile's segments.
template <class F, unsigned WAYS, unsigned BYTES>
class Ahead {
  static constexpr unsigned STEPS = BYTES / F::STEP_CODES, UNITS = SEGMENT_STEPS / STEPS;
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
  // From a tile's segment `first` on, if there is `any`.
  __device__ __forceinline__ Ahead(const cuckoo_integers& w, unsigned tile, unsigned first, bool any)
      : from(place_of<F>(w, tile, first, 0)) {
    const unsigned lane = threadIdx.x % WARP;
    from.codes += lane * F::BITS * 2;
    from.scales += lane / 4 * 2 * F::SCALE_BYTES;
    from.supers += lane / 4 * 8;
    if (!any) return;
    supers = load_supers<F>(from.supers, 0);
#pragma unroll
    for (unsigned step = 0; step < STEPS; step++) load(step);
  }

  // Gives operand A and the scales of every step of a segment to `meet`. Reads on into the warp's next one, if there is `more`.
  template <class Meet>
  __device__ __forceinline__ void segment(bool more, Meet meet) {
    const Supers of_segment = unpack(supers);
    from.supers += WAYS * SUPER_BYTES;
    if (more) supers = load_supers<F>(from.supers, 0);
#pragma unroll 1
    for (unsigned unit = 0; unit < UNITS; unit++) {
      const bool last = unit + 1 == UNITS;
      skip(last ? (WAYS - 1) * SEGMENT_STEPS + STEPS : STEPS);
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

// Rows by blockIdx.y, tokens by blockIdx.x, so that blocks that run together read the same weights.
template <class F, class S>
__device__ __forceinline__ void product(const cuckoo_linear_integers& a) {
  CUCKOO_SHARED(unsigned char, shared);
  constexpr unsigned EACH = S::LANE_TOKENS;
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  const unsigned way = warp % S::WAYS, tile_here = warp / S::WAYS, tile = blockIdx.y * S::TILES + tile_here;
  const unsigned first_token = blockIdx.x * S::TOKENS, left = a.tokens - first_token, tokens = left < S::TOKENS ? left : S::TOKENS;
  const unsigned per_row = segments(a.w), mine = tile * TILE_ROWS < a.w.rows ? per_row : 0;
  const Chunk<S> chunk(a);
  // Columns of `mma` that are no token's get what is there, or another's, and nobody looks at what comes of it.
  const auto row_of = [&](unsigned column) {
    const unsigned token = column * EACH / 2;
    return !S::FEW || token < tokens ? token : tokens - 1;
  };
  const unsigned char* const x = shared + row_of(g) * chunk.row + t * 8;
  const unsigned char* factors_of[EACH];
#pragma unroll
  for (unsigned i = 0; i < EACH; i++) factors_of[i] = shared + chunk.factors + row_of(2 * t + i) * chunk.factors_row;
  float* const sums = reinterpret_cast<float*>(shared + chunk.sums);

  Ahead<F, S::WAYS, S::FEW ? 2048 : 1024> weights(a.w, tile, way, way < mine);
  float totals[S::TOTALS] = {};  // of [token][row] threadIdx.x, and so many threads on
  for (unsigned first = 0; first < per_row; first += chunk.segments) {
    if (first > 0) __syncthreads();
    copy<S>(a, chunk, shared, first_token, tokens, first * SEGMENT_STEPS);
    cp_async_wait<0>();
    __syncthreads();
    const unsigned many = per_row - first < chunk.segments ? per_row - first : chunk.segments;
    for (unsigned segment = way; segment < chunk.segments; segment += S::WAYS) {
      float sum[S::TOKEN_TILES][2][EACH] = {};
      const bool any = first + segment < mine;
      const auto meet = [&](unsigned step, const uint32_t(&codes)[4], const BlockScales<F>& scales) {
        const auto in_plane = [&](unsigned plane) {
          const unsigned block = segment * SEGMENT_STEPS + step;
#pragma unroll
          for (unsigned n = 0; n < S::TOKEN_TILES; n++) {
            const unsigned row = plane * chunk.tokens + n * 8;
            const uint2 words = *reinterpret_cast<const uint2*>(x + row * chunk.row + block * BLOCK_COLS);
            const uint32_t b[2] = {words.x, words.y};
            Factors<F, EACH> factors;
#pragma unroll
            for (unsigned i = 0; i < EACH; i++) {
              set(factors, i, *reinterpret_cast<const uint2*>(factors_of[i] + row * chunk.factors_row + block * 8));
            }
            add_step(codes, scales, b, factors, sum[n]);
          }
        };
        if constexpr (S::FEW) {
          in_plane(0);
          if (a.planes == 2) in_plane(1);
        } else {
          // Registers are scarce.
#pragma unroll 1
          for (unsigned plane = 0; plane < a.planes; plane++) in_plane(plane);
        }
      };
      if (any) weights.segment(first + segment + S::WAYS < mine, meet);
      if (!S::FEW) __syncthreads();  // all have done with the activations
      if (!any) continue;
#pragma unroll
      for (unsigned n = 0; n < S::TOKEN_TILES; n++) {
#pragma unroll
        for (unsigned i = 0; i < 2 * EACH; i++) {
          const unsigned token = n * 8 + (2 * t + i % EACH) * EACH / 2, row = tile_here * TILE_ROWS + g + i / EACH * 8;
          if (token < chunk.tokens) sums[(segment * chunk.tokens + token) * S::ROWS + row] = sum[n][i / EACH][i % EACH];
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (unsigned i = 0; i < S::TOTALS; i++) {
      const unsigned place = threadIdx.x + i * THREADS;
      if (place >= S::ROWS * chunk.tokens) break;
      for (unsigned segment = 0; segment < many; segment++) totals[i] += sums[segment * chunk.tokens * S::ROWS + place];
    }
  }
#pragma unroll
  for (unsigned i = 0; i < S::TOTALS; i++) {
    const unsigned place = threadIdx.x + i * THREADS;
    if (place / S::ROWS < tokens) put(a, blockIdx.y * S::ROWS + place % S::ROWS, first_token + place / S::ROWS, totals[i]);
  }
}

}  // namespace gemv_integers

#define CUCKOO_LINEAR(bits, scales, halves, minimums)                                                                     \
  CUCKOO_KERNEL(256)                                                                                                      \
  cuckoo_linear_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_linear_integers a) {             \
    using F = Format<bits, Scales::scales, halves, minimums>;                                                             \
    if (a.tokens <= 4) gemv_integers::product<F, gemv_integers::One>(a);                                                  \
    else gemv_integers::product<F, gemv_integers::Eight>(a);                                                              \
  }
CUCKOO_FORMATS(CUCKOO_LINEAR)

#define CUCKOO_GEMM(bits, scales, halves, minimums)                                                                       \
  CUCKOO_KERNEL(256)                                                                                                      \
  cuckoo_gemm_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_linear_integers a) {               \
    using F = Format<bits, Scales::scales, halves, minimums>;                                                             \
    if (a.tile == 16) gemv_integers::product<F, gemv_integers::Sixteen>(a);                                               \
    else gemv_integers::product<F, gemv_integers::ThirtyTwo>(a);                                                          \
  }
CUCKOO_FORMATS(CUCKOO_GEMM)
