// Products with quantized weights: out[t][r] = w[r] . x[t], every rounding and every order the contract's (kernels/NUMERICS.md), so
// that a product of one token or of a thousand, of whatever shape of tiles, gives the same bits.
//
// Method. Weights are the operand A of integer `mma`, activations B: of a step (a block of 32 columns) 16 rows by 8 tokens are one
// m16n8k32, or two m16n8k16 where a format's halves have scales of their own. Integer sums are exact, so the tensor core's order is
// nobody's to see. A lane gets four of the 128 sums and does with each what the contract says, in floating point: step after step
// into the sum of the segment, segment after segment into the total. A sum begins at the bits of 1.5 * 2^23 less the offset's share,
// so that its own bits read as a float are 1.5 * 2^23 plus the sum: one subtraction makes the float, where a conversion would run at
// a quarter of the rate. Steps beyond the last column add 0 * 0: -0 becomes 0, which no total can tell.
//
// Eight warps share a tile of rows by tokens, and several segments of them: those of a segment each leave their sums to the first
// ones, who add them up in order. So few rows keep a device busy, and the order stays. All that a unit of 512 bytes of codes for each
// of 8 tiles of 16 rows needs is copied to one of three stages in shared memory by cp.async, two units ahead. Codes lie in the order
// in which lanes take them; rows of activations are swizzled, so that ldmatrix meets every bank once.
//
// Least work, rows R, columns C, tokens T: R C (bits + 8 * bytes of scales / 32) / 8 bytes of weights, 2 R C T operations. Of 512
// weights by 8 tokens a warp issues one mma, about 10 instructions that do not depend on T, and 12 (with minimums 16) that follow
// from the contract: a subtraction, a product of scales and a fma for each sum. On an H200, 33.5e12 lanes a second and 4.8 TB/s:
//   one to eight tokens (cuckoo_linear)  1.5 to 2 instructions of a lane a weight, of the 3.9 that there is time for while 4.5 bits
//                                        of it arrive: bandwidth decides. A multiprocessor has 2 blocks of 2 stages of 5 KB in flight
//                                        at least, 20 KB; 4.8 TB/s times 0.7 us are 25 KB each.
//   many (cuckoo_gemm)                   3 to 4 instructions of a lane for 32 products, 4 with what is shared: 33.5e12 / 4 * 32 * 2 is
//                                        540 TFLOP/s at best, more than half of what bf16 has there. Tensor cores idle.
// Bytes from the cache: a tile of R rows by T tokens reads 2 T / R times its 4-bit weights in activations, so T / R is kept at 1/2.
//
// Source: our own. Weights as the wide operand: swap of A and B in FP8 and W4 kernels for few tokens (e.g. Marlin's and CUTLASS');
// rounding by a large addend: Knuth, and every table of tricks since.
#include "ptx.cuh"
#include "weights.cuh"

namespace integers {

constexpr unsigned THREADS = 256, WARPS = THREADS / WARP;
constexpr unsigned STAGES = 3, STAGE_BYTES = 16384;
// Rows of activations in a stage: tokens times segments.
constexpr unsigned SLOTS = 64;
// Floats from here to twice as much are whole numbers, one for each of their bits.
constexpr float WHOLE = 12582912.0f;

// How warps share a block's tile: M by N of them in K segments at once. A warp has tiles of 16 rows and of 8 tokens.
template <unsigned M_, unsigned N_, unsigned K_, unsigned ROW_TILES_, unsigned TOKEN_TILES_>
struct Shape {
  static constexpr unsigned M = M_, N = N_, K = K_, ROW_TILES = ROW_TILES_, TOKEN_TILES = TOKEN_TILES_;
  static constexpr unsigned TILES = M * ROW_TILES, TOKENS = N * TOKEN_TILES * 8;
  // A warp copies a tile's codes, and four lanes a row's activations.
  static_assert(M * N * K == WARPS && TILES * K == WARPS && TOKENS * K == SLOTS, "a unit of work for each warp");
  static_assert((K - 1) * TILES * TILE_ROWS * TOKENS * 4 <= STAGE_BYTES, "sums of segments fit a stage");
};
using Few = Shape<1, 1, 8, 1, 1>;   // 16 rows by 8 tokens
using Some = Shape<2, 2, 2, 2, 2>;  // 64 by 32
using Many = Shape<4, 2, 1, 2, 4>;  // 128 by 64

// Where things lie in a stage, in bytes. A unit is so many steps that a tile's codes are 512 bytes.
template <class F>
struct Stage {
  static constexpr unsigned STEPS = 8 / F::BITS, UNITS = SEGMENT_STEPS / STEPS;
  static constexpr unsigned UNIT_CODES = STEPS * F::STEP_CODES, UNIT_SCALES = STEPS * F::STEP_SCALES;
  static constexpr unsigned SCALES = WARPS * UNIT_CODES;
  static constexpr unsigned SUPERS = SCALES + WARPS * UNIT_SCALES;
  static constexpr unsigned X = SUPERS + (F::SUPERS ? WARPS * SUPER_BYTES : 0);
  // Of a plane of activations: codes by slot, scales and sums by step and slot.
  static constexpr unsigned CHUNKS = 2 * STEPS;  // of 16 bytes in a slot
  static constexpr unsigned X_SCALES = SLOTS * CHUNKS * 16;
  static constexpr unsigned X_SUMS = X_SCALES + STEPS * SLOTS * 4;
  static constexpr unsigned PLANE = X_SUMS + STEPS * SLOTS * 4;
  static_assert(X + 2 * PLANE <= STAGE_BYTES, "a stage holds two planes");

  // A chunk of a slot. Eight slots that follow each other have the same chunk in different banks.
  static __device__ __forceinline__ unsigned chunk(unsigned slot, unsigned c) {
    return (slot * CHUNKS + (c ^ slot / (8 / CHUNKS) % CHUNKS)) * 16;
  }
};

// Begins to copy a unit of every segment of a round: rows from `first_tile` on, tokens from `first_token` on.
template <class F, class S>
__device__ __forceinline__ void load(const cuckoo_linear_integers& a, unsigned char* stage, unsigned unit, unsigned first_tile,
                                     unsigned first_token) {
  using L = Stage<F>;
  const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const unsigned first_segment = unit / L::UNITS * S::K, first_step = unit % L::UNITS * L::STEPS;
  {
    const unsigned segment = first_segment + warp / S::TILES, tile = first_tile + warp % S::TILES;
    const bool inside = segment < segments(a.w) && tile * TILE_ROWS < a.w.rows;
    const Place from = place_of<F>(a.w, inside ? tile : 0, inside ? segment : 0, first_step);
    cp_async<16>(stage + warp * L::UNIT_CODES + lane * 16, from.codes + lane * 16, inside);
    if (lane < L::UNIT_SCALES / 16) {
      cp_async<16>(stage + L::SCALES + warp * L::UNIT_SCALES + lane * 16, from.scales + lane * 16, inside);
    }
    if (F::SUPERS && first_step == 0 && lane < SUPER_BYTES / 16) {
      cp_async<16>(stage + L::SUPERS + warp * SUPER_BYTES + lane * 16, from.supers + lane * 16, inside);
    }
  }
  const unsigned blocks = a.w.cols / BLOCK_COLS;
  for (unsigned plane = 0; plane < a.planes; plane++) {
    unsigned char* const x = stage + L::X + plane * L::PLANE;
    if (threadIdx.x < SLOTS * L::CHUNKS) {
      const unsigned slot = threadIdx.x / L::CHUNKS, c = threadIdx.x % L::CHUNKS;
      const unsigned token = first_token + slot % S::TOKENS;
      const unsigned block = (first_segment + slot / S::TOKENS) * SEGMENT_STEPS + first_step + c / 2;
      const bool inside = token < a.tokens && block < blocks;
      const uint64_t row = inside ? uint64_t(plane) * a.tokens + token : 0;
      cp_async<16>(x + L::chunk(slot, c), at<const int8_t>(a.q) + row * a.w.cols + (inside ? block * BLOCK_COLS + c % 2 * 16 : 0), inside);
    }
    if (threadIdx.x < SLOTS * L::STEPS) {
      const unsigned slot = threadIdx.x % SLOTS, step = threadIdx.x / SLOTS;
      const unsigned token = first_token + slot % S::TOKENS;
      const unsigned block = (first_segment + slot / S::TOKENS) * SEGMENT_STEPS + first_step + step;
      const bool inside = token < a.tokens && block < blocks;
      const uint64_t from = inside ? (uint64_t(plane) * a.tokens + token) * blocks + block : 0;
      cp_async<4>(x + L::X_SCALES + threadIdx.x * 4, at<const float>(a.scales) + from, inside);
      cp_async<4>(x + L::X_SUMS + threadIdx.x * 4, at<const uint32_t>(a.sums) + from, inside);
    }
  }
}

// What goes with a block of activations of two tokens.
template <class F>
struct Activations {
  float scale[2];
  int zero[2][F::GROUPS];       // what sums begin at
  float minimum[2][F::GROUPS];  // what minimums are multiplied by
};

// `x` is the step's scales and sums from the lane's first token on.
template <class F>
__device__ __forceinline__ Activations<F> load_activations(const unsigned char* scales, const unsigned char* sums, float offset) {
  const uint2 scale = *reinterpret_cast<const uint2*>(scales), both = *reinterpret_cast<const uint2*>(sums);
  const uint32_t words[2] = {both.x, both.y};
  Activations<F> out;
  out.scale[0] = __uint_as_float(scale.x);
  out.scale[1] = __uint_as_float(scale.y);
#pragma unroll
  for (unsigned token = 0; token < 2; token++) {
#pragma unroll
    for (unsigned g = 0; g < F::GROUPS; g++) {
      const float sum = F::HALVES ? half_of_bits(uint16_t(words[token] >> g * 16)) : __uint_as_float(words[token]);
      // Formats with minimums have no offset.
      out.zero[token][g] = int(__float_as_uint(F::MINIMUMS ? WHOLE : fmaf(-offset, sum, WHOLE)));
      out.minimum[token][g] = F::MINIMUMS ? out.scale[token] * sum : 0.0f;
    }
  }
  return out;
}

// A tile of 16 rows by 8 tokens meets a step.
template <class F>
__device__ __forceinline__ void add_step(const uint32_t (&codes)[4], const BlockScales<F>& w, const uint32_t (&x)[2],
                                         const Activations<F>& with, float (&sum)[4]) {
  int dots[F::GROUPS][4];
  const int zero[4] = {with.zero[0][0], with.zero[1][0], with.zero[0][0], with.zero[1][0]};
  if constexpr (F::HALVES) {
    const int second[4] = {with.zero[0][1], with.zero[1][1], with.zero[0][1], with.zero[1][1]};
    mma_s8_k16(dots[0], codes[0], codes[1], x[0], zero);
    mma_s8_k16(dots[1], codes[2], codes[3], x[1], second);
  } else {
    mma_s8_k32(dots[0], codes, x, zero);
  }
#pragma unroll
  for (unsigned i = 0; i < 4; i++) {
    const unsigned row = i / 2, token = i % 2;
#pragma unroll
    for (unsigned g = 0; g < F::GROUPS; g++) {
      sum[i] = fmaf(__int_as_float(dots[g][i]) - WHOLE, w.scale[row][g] * with.scale[token], sum[i]);
    }
    if constexpr (F::MINIMUMS) {
#pragma unroll
      for (unsigned g = 0; g < F::GROUPS; g++) sum[i] = fmaf(w.minimum[row][g], with.minimum[token][g], sum[i]);
    }
  }
}

// What a warp has of its tiles.
template <class F, class S>
struct Sums {
  float sum[S::ROW_TILES][S::TOKEN_TILES][4];
  float total[S::ROW_TILES][S::TOKEN_TILES][4];
  Supers supers[S::ROW_TILES];
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

// Operand B of token tiles `tile` and, if a warp has several, the next one.
template <class F, class S, unsigned MANY>
__device__ __forceinline__ void load_x(const unsigned char* x, const Warp<S>& warp, unsigned tile, unsigned step, uint32_t (&b)[MANY][2]) {
  if constexpr (MANY == 1) {
    ldmatrix_x2(b[0], x + Stage<F>::chunk(warp.slot(tile) + warp.lane % 8, step * 2 + warp.lane / 8 % 2));
  } else {
    uint32_t r[4];
    ldmatrix_x4(r, x + Stage<F>::chunk(warp.slot(tile) + warp.lane / 16 * 8 + warp.lane % 8, step * 2 + warp.lane / 8 % 2));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
  }
}

// The steps of a unit.
template <class F, class S>
__device__ __forceinline__ void multiply(const unsigned char* stage, const Warp<S>& warp, unsigned planes, float offset, Sums<F, S>& sums) {
  using L = Stage<F>;
  constexpr unsigned AT_ONCE = S::TOKEN_TILES == 1 ? 1 : 2;
#pragma unroll
  for (unsigned step = 0; step < L::STEPS; step++) {
    uint32_t codes[S::ROW_TILES][4];
    BlockScales<F> w[S::ROW_TILES];
#pragma unroll
    for (unsigned m = 0; m < S::ROW_TILES; m++) {
      load_codes<F>(stage + warp.unit(m) * L::UNIT_CODES + step * F::STEP_CODES, warp.lane, codes[m]);
      w[m] = load_scales<F>(stage + L::SCALES + warp.unit(m) * L::UNIT_SCALES + step * F::STEP_SCALES, warp.g, sums.supers[m]);
    }
#pragma unroll 1
    for (unsigned plane = 0; plane < planes; plane++) {
      const unsigned char* const x = stage + L::X + plane * L::PLANE;
#pragma unroll
      for (unsigned first = 0; first < S::TOKEN_TILES; first += AT_ONCE) {
        uint32_t b[AT_ONCE][2];
        load_x<F, S, AT_ONCE>(x, warp, first, step, b);
#pragma unroll
        for (unsigned i = 0; i < AT_ONCE; i++) {
          const unsigned place = (step * SLOTS + warp.slot(first + i) + 2 * warp.t) * 4;
          const Activations<F> with = load_activations<F>(x + L::X_SCALES + place, x + L::X_SUMS + place, offset);
#pragma unroll
          for (unsigned m = 0; m < S::ROW_TILES; m++) add_step<F>(codes[m], w[m], b[i], with, sums.sum[m][first + i]);
        }
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
      for (unsigned i = 0; i < 4; i++) f(m, n, i);
    }
  }
}

// Sums of the round's segments, of which there are `many`, join the totals of those warps that have the first one, in order.
// `room` is a stage that is free but for the barrier.
template <class F, class S>
__device__ __forceinline__ void end_segments(unsigned char* room, const Warp<S>& warp, unsigned many, Sums<F, S>& sums) {
  constexpr unsigned GROUP = THREADS / S::K, EACH = S::ROW_TILES * S::TOKEN_TILES * 4;
  if constexpr (S::K > 1) {
    float* const places = reinterpret_cast<float*>(room) + threadIdx.x % GROUP;
    const auto place = [](unsigned k, unsigned m, unsigned n, unsigned i) {
      return ((k - 1) * EACH + (m * S::TOKEN_TILES + n) * 4 + i) * GROUP;
    };
    __syncthreads();
    if (warp.k > 0) for_each<S>([&](unsigned m, unsigned n, unsigned i) { places[place(warp.k, m, n, i)] = sums.sum[m][n][i]; });
    __syncthreads();
    if (warp.k == 0) {
      for_each<S>([&](unsigned m, unsigned n, unsigned i) { sums.total[m][n][i] += sums.sum[m][n][i]; });
      for (unsigned k = 1; k < many; k++) {
        for_each<S>([&](unsigned m, unsigned n, unsigned i) { sums.total[m][n][i] += places[place(k, m, n, i)]; });
      }
    }
  } else {
    for_each<S>([&](unsigned m, unsigned n, unsigned i) { sums.total[m][n][i] += sums.sum[m][n][i]; });
  }
  for_each<S>([&](unsigned m, unsigned n, unsigned i) { sums.sum[m][n][i] = 0.0f; });
}

// A block's tile: rows by blockIdx.y, tokens by blockIdx.x, so that blocks that run together read the same weights.
template <class F, class S>
__device__ __forceinline__ void product(const cuckoo_linear_integers& a) {
  CUCKOO_SHARED(unsigned char, shared);  // [STAGES][STAGE_BYTES]
  using L = Stage<F>;
  const Warp<S> warp;
  const unsigned first_tile = blockIdx.y * S::TILES, first_token = blockIdx.x * S::TOKENS;
  const unsigned units = (segments(a.w) + S::K - 1) / S::K * L::UNITS;
  const float offset = float(a.w.offset);
#pragma unroll
  for (unsigned unit = 0; unit < STAGES - 1; unit++) {
    if (unit < units) load<F, S>(a, shared + unit * STAGE_BYTES, unit, first_tile, first_token);
    cp_async_commit();
  }
  Sums<F, S> sums = {};
  for (unsigned unit = 0; unit < units; unit++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    // The stage that the unit before left, which all have done with.
    const unsigned next = unit + STAGES - 1;
    if (next < units) load<F, S>(a, shared + next % STAGES * STAGE_BYTES, next, first_tile, first_token);
    cp_async_commit();
    unsigned char* const stage = shared + unit % STAGES * STAGE_BYTES;
    if (unit % L::UNITS == 0) {
#pragma unroll
      for (unsigned m = 0; m < S::ROW_TILES; m++) {
        sums.supers[m] = load_supers<F>(stage + L::SUPERS + warp.unit(m) * SUPER_BYTES, warp.g);
      }
    }
    multiply<F, S>(stage, warp, a.planes, offset, sums);
    if (unit % L::UNITS == L::UNITS - 1) {
      const unsigned left = segments(a.w) - unit / L::UNITS * S::K;
      end_segments<F, S>(stage, warp, left < S::K ? left : S::K, sums);
    }
  }
  if (warp.k > 0) return;
  for_each<S>([&](unsigned m, unsigned n, unsigned i) {
    const unsigned row = (first_tile + warp.unit(m)) * TILE_ROWS + warp.g + i / 2 * 8;
    const unsigned token = first_token + warp.slot(n) + 2 * warp.t + i % 2;
    if (row >= a.w.rows || token >= a.tokens) return;
    float* const out = at<float>(a.out) + uint64_t(token) * a.out_cols + a.first_row + row;
    *out = a.add ? *out + sums.total[m][n][i] : sums.total[m][n][i];
  });
}

}  // namespace integers

#define CUCKOO_LINEAR(bits, scales, halves, minimums)                                                                     \
  CUCKOO_KERNEL(256)                                                                                                      \
  cuckoo_linear_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_linear_integers a) {             \
    integers::product<Format<bits, Scales::scales, halves, minimums>, integers::Few>(a);                                  \
  }
CUCKOO_FORMATS(CUCKOO_LINEAR)

#define CUCKOO_GEMM(bits, scales, halves, minimums)                                                                       \
  CUCKOO_KERNEL(256)                                                                                                      \
  cuckoo_gemm_##bits##_##scales##_##halves##_##minimums(const __grid_constant__ cuckoo_linear_integers a) {               \
    using F = Format<bits, Scales::scales, halves, minimums>;                                                             \
    if (a.shape == 0) integers::product<F, integers::Some>(a);                                                            \
    else integers::product<F, integers::Many>(a);                                                                         \
  }
CUCKOO_FORMATS(CUCKOO_GEMM)
