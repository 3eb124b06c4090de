// Products with 16-bit weights on tensor cores, for every architecture (compute capability 8.0 and later), for many tokens and
// for few: the fast profile's. out[t][r] = sum over k of w[r][k] x[t][k], in f32.
//
// Method: tiles of weights and of activations go through a ring in shared memory that cp.async fills, STAGES - 1 steps ahead;
// ldmatrix reads them, mma.m16n8k16 multiplies them, weights being the operand of 16 rows. Pieces of 16 bytes are permuted so
// that ldmatrix reads eight rows from all banks. Columns and rows that are not there are zeros. CUTLASS' multistage kernels
// have this shape (Thakkar et al., github.com/NVIDIA/cutlass, BSD-3-Clause; the code is our own).
//
// Order: every value of the product is one chain of additions in f32, 16 columns after the other from the first to the last,
// whatever the tile: so it does not depend on how many rows share the batch, nor on where in it a row stands. There is no split
// of K, and nothing is atomic. One token goes the same way as many: a kernel without tensor cores would add in another order, and
// has no fewer instructions for each byte of weights.
//
// Bytes, at the least: 2 rows cols + 2 tokens cols + 4 tokens rows; FLOPs: 2 rows cols tokens. A decode is bound by the first
// term: a multiprocessor must have about 32 KiB on the way (4.8 TB/s times 0.9 us over 132 of them), which STAGES - 1 steps of
// a block are.
#include "gemm_floats.cuh"
#include "ptx.cuh"

namespace gemm_floats {

__device__ __forceinline__ uint32_t narrow_pair(Bf16, float low, float high) { return narrow_bf16(low, high); }
__device__ __forceinline__ uint32_t narrow_pair(F16, float low, float high) { return narrow_f16(low, high); }

// Eight activations of a row, as they are and as 16-bit numbers times a power of two.
struct Eight {
  uint4 low, high;
  __device__ explicit Eight(const float* x) : low(reinterpret_cast<const uint4*>(x)[0]), high(reinterpret_cast<const uint4*>(x)[1]) {}
  __device__ unsigned largest() const {
    const unsigned bits[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    unsigned most = 0;
#pragma unroll
    for (unsigned i = 0; i < 8; i++) most = (bits[i] & 0x7fffffffu) > most ? bits[i] & 0x7fffffffu : most;
    return most;
  }
  template <class T>
  __device__ void store(uint16_t* out, float by) const {
    const auto pair = [by](unsigned first, unsigned second) {
      return narrow_pair(T(), __uint_as_float(first) * by, __uint_as_float(second) * by);
    };
    *reinterpret_cast<uint4*>(out) = uint4{pair(low.x, low.y), pair(low.z, low.w), pair(high.x, high.y), pair(high.z, high.w)};
  }
};

// Activations as bfloat16, to nearest, ties to even: a thread for 8 of them. Reads 4 bytes a value, writes 2.
__device__ __forceinline__ void narrow_values(const cuckoo_narrow& a) {
  const uint64_t i = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (i >= uint64_t(a.rows) * a.cols) return;
  Eight(at<const float>(a.x) + i).store<Bf16>(at<uint16_t>(a.out) + i, 1.0f);
}

// Activations as halves: a block of threads for a row. Halves end at 65504 and some models' activations do not, so a row whose
// largest is 2^15 or more is divided by the power of two that brings it below.
__device__ __forceinline__ void narrow_row(const cuckoo_narrow& a) {
  CUCKOO_SHARED(unsigned, of_warps);
  const float* const x = at<const float>(a.x) + uint64_t(blockIdx.x) * a.cols;
  unsigned largest = 0;  // as integers, magnitudes are in order
  for (unsigned c = threadIdx.x * 8; c < a.cols; c += blockDim.x * 8) {
    const unsigned most = Eight(x + c).largest();
    largest = most > largest ? most : largest;
  }
#pragma unroll
  for (unsigned apart = WARP / 2; apart > 0; apart /= 2) {
    const unsigned other = __shfl_xor_sync(ALL_LANES, largest, apart);
    largest = other > largest ? other : largest;
  }
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = largest;
  __syncthreads();
  for (unsigned i = 0; i < blockDim.x / WARP; i++) largest = of_warps[i] > largest ? of_warps[i] : largest;
  const unsigned exponent = largest >> 23;  // 127 more than that of two
  const bool divided = exponent >= 127 + 15 && exponent < 255;
  const float by = divided ? __uint_as_float((127 + 127 + 14 - exponent) << 23) : 1.0f;
  if (threadIdx.x == 0) at<float>(a.scales)[blockIdx.x] = divided ? __uint_as_float((exponent - 14) << 23) : 1.0f;
  uint16_t* const out = at<uint16_t>(a.out) + uint64_t(blockIdx.x) * a.cols;
  for (unsigned c = threadIdx.x * 8; c < a.cols; c += blockDim.x * 8) Eight(x + c).store<F16>(out + c, by);
}

__device__ __forceinline__ void mma(Bf16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_bf16(c, a, b); }
__device__ __forceinline__ void mma(F16, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_f16(c, a, b); }

// A tile: each warp has MT tiles of 16 rows and NT of 8 tokens; WARPS_N warps stand side by side along the tokens, all others
// along the rows. COLS columns are a step. ONCE says that weights will not be read again soon. THREADS of 0 are known at launch.
template <class T, unsigned MT_, unsigned NT_, unsigned WARPS_N_, unsigned COLS_, unsigned STAGES_, bool ONCE_, unsigned THREADS_>
struct GemmShape {
  using Kind = T;
  static constexpr unsigned MT = MT_, NT = NT_, WARPS_N = WARPS_N_, COLS = COLS_, STAGES = STAGES_;
  static constexpr bool ONCE = ONCE_;
  static constexpr unsigned TOKENS = WARPS_N * NT * 8;
  static constexpr unsigned ROWS_EACH = MT * 16;  // of the warps that stand side by side
  static constexpr unsigned PIECES = COLS / 8;    // of 16 bytes, in a row of a step
  static_assert(COLS == 32 || COLS == 64, "a row is half a line of banks, or a whole one");
  __device__ static unsigned threads() { return THREADS_ != 0 ? THREADS_ : blockDim.x; }
  __device__ static unsigned rows() { return threads() / WARP / WARPS_N * ROWS_EACH; }
};

// Where a piece of a row lies in a step's tiles, in values: eight rows that ldmatrix reads at once are in different banks.
template <class S>
__device__ __forceinline__ unsigned place(unsigned row, unsigned piece) {
  const unsigned turn = S::PIECES == 8 ? row % 8 : row / 2 % 4;
  return (row * S::PIECES + (piece ^ turn)) * 8;
}

struct Operand {
  const uint16_t* values;
  unsigned rows, cols;
};

// Begins to copy a step's columns of `count` rows from `first` on to the tile's rows from `to` on, together with so many
// threads.
template <class S, bool ONCE>
__device__ __forceinline__ void fill(uint16_t* tiles, unsigned to, Operand from, unsigned first, unsigned count, unsigned col,
                                     unsigned thread, unsigned threads) {
  const unsigned piece = thread % S::PIECES, at_once = threads / S::PIECES;
  const bool inside = col + piece * 8 < from.cols;
#pragma unroll
  for (unsigned begin = 0; begin < count; begin += at_once) {
    const unsigned row = begin + thread / S::PIECES;
    if (count % at_once != 0 && row >= count) break;
    const bool there = inside && first + row < from.rows;
    const uint16_t* const values = there ? from.values + uint64_t(first + row) * from.cols + col + piece * 8 : from.values;
    if (ONCE) cp_async_once(tiles + place<S>(to + row, piece), values, there);
    else cp_async<16>(tiles + place<S>(to + row, piece), values, there);
  }
}

// Begins to fill a step's tiles: the rows of weights, each by a warp that needs them, then those of activations.
template <class S>
__device__ __forceinline__ void fill_step(const cuckoo_gemm& a, uint16_t* tiles, unsigned first_row, unsigned first_token, unsigned col) {
  constexpr unsigned TEAM = S::WARPS_N * WARP;
  const unsigned own = threadIdx.x / TEAM * S::ROWS_EACH;
  const Operand w = {at<const uint16_t>(a.w.values), a.w.rows, a.w.cols}, x = {at<const uint16_t>(a.x), a.tokens, a.w.cols};
  fill<S, S::ONCE>(tiles, own, w, first_row + own, S::ROWS_EACH, col, threadIdx.x % TEAM, TEAM);
  fill<S, false>(tiles, S::rows(), x, first_token, S::TOKENS, col, threadIdx.x, S::threads());
}

// 32 columns of a step from `piece` on, multiplied: two steps of 16, whose operands are loaded together.
template <class S>
__device__ __forceinline__ void multiply(const uint16_t* tiles, unsigned piece, float (&sums)[S::MT][S::NT][4]) {
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const unsigned first_row = warp / S::WARPS_N * S::MT * 16, first_token = S::rows() + warp % S::WARPS_N * S::NT * 8;
  uint32_t x[S::NT][4];
#pragma unroll
  for (unsigned j = 0; j < S::NT; j++) ldmatrix_x4(x[j], tiles + place<S>(first_token + j * 8 + lane % 8, piece + lane / 8));
#pragma unroll
  for (unsigned half = 0; half < 2; half++) {
#pragma unroll
    for (unsigned i = 0; i < S::MT; i++) {
      uint32_t w[4];
      ldmatrix_x4(w, tiles + place<S>(first_row + i * 16 + lane % 16, piece + half * 2 + lane / 16));
#pragma unroll
      for (unsigned j = 0; j < S::NT; j++) {
        const uint32_t pair[2] = {x[j][half * 2], x[j][half * 2 + 1]};
        mma(typename S::Kind(), sums[i][j], w, pair);
      }
    }
  }
}

template <class S>
__device__ __forceinline__ void gemm(const cuckoo_gemm& a) {
  CUCKOO_SHARED(uint16_t, ring);  // [STAGES][rows + TOKENS][COLS]
  const unsigned rows = S::rows(), steps = tiles_of(a.w.cols, S::COLS), step_values = (rows + S::TOKENS) * S::COLS;
  const GemmTile tile = gemm_tile(blockIdx.x, tiles_of(a.w.rows, rows), tiles_of(a.tokens, S::TOKENS));
  const unsigned first_row = tile.row * rows, first_token = tile.token * S::TOKENS;
  float sums[S::MT][S::NT][4] = {};
  for (unsigned step = 0; step < S::STAGES - 1; step++) {
    if (step < steps) fill_step<S>(a, ring + step * step_values, first_row, first_token, step * S::COLS);
    cp_async_commit();
  }
  unsigned stage = 0;
  for (unsigned step = 0; step < steps; step++) {
    cp_async_wait<S::STAGES - 2>();
    __syncthreads();  // this step is there for all, and nobody reads the one before it any more
    const unsigned ahead = step + S::STAGES - 1, free_stage = stage == 0 ? S::STAGES - 1 : stage - 1;
    if (ahead < steps) fill_step<S>(a, ring + free_stage * step_values, first_row, first_token, ahead * S::COLS);
    cp_async_commit();
#pragma unroll
    for (unsigned piece = 0; piece < S::PIECES; piece += 4) multiply<S>(ring + stage * step_values, piece, sums);
    stage = stage + 1 == S::STAGES ? 0 : stage + 1;
  }
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const unsigned row = first_row + warp / S::WARPS_N * S::MT * 16 + lane / 4;
  const unsigned token = first_token + warp % S::WARPS_N * S::NT * 8 + lane % 4 * 2;
#pragma unroll
  for (unsigned j = 0; j < S::NT; j++) {
    const float scales[2] = {gemm_scale(a, token + j * 8), gemm_scale(a, token + j * 8 + 1)};
#pragma unroll
    for (unsigned i = 0; i < S::MT; i++) {
#pragma unroll
      for (unsigned c = 0; c < 4; c++) gemm_store(a, token + j * 8 + c % 2, row + i * 16 + c / 2 * 8, sums[i][j][c] * scales[c % 2]);
    }
  }
}

// Many tokens: 128 rows by 128 tokens for 8 warps, of which 4 stand side by side. 48 KiB of shared memory.
template <class T>
using Wide = GemmShape<T, 4, 4, 4, 32, 3, false, 256>;

// Few tokens: 16 rows for each of 1 to 4 warps. Tiles are as wide as the tokens need, at most 64, and the ring is as deep as
// there is room.
template <class T>
__device__ __forceinline__ void skinny(const cuckoo_gemm& a) {
  if (a.tokens <= 8) gemm<GemmShape<T, 1, 1, 1, 64, 8, true, 0>>(a);
  else if (a.tokens <= 16) gemm<GemmShape<T, 1, 2, 1, 64, 8, true, 0>>(a);
  else if (a.tokens <= 32) gemm<GemmShape<T, 1, 4, 1, 64, 6, true, 0>>(a);
  else gemm<GemmShape<T, 1, 8, 1, 64, 4, true, 0>>(a);
}

}  // namespace gemm_floats

CUCKOO_KERNEL(256) cuckoo_narrow_bf16(const __grid_constant__ cuckoo_narrow a) { gemm_floats::narrow_values(a); }
CUCKOO_KERNEL(256) cuckoo_narrow_f16(const __grid_constant__ cuckoo_narrow a) { gemm_floats::narrow_row(a); }
CUCKOO_KERNEL(256) cuckoo_gemm_wide_bf16(const __grid_constant__ cuckoo_gemm a) { gemm_floats::gemm<gemm_floats::Wide<Bf16>>(a); }
CUCKOO_KERNEL(256) cuckoo_gemm_wide_f16(const __grid_constant__ cuckoo_gemm a) { gemm_floats::gemm<gemm_floats::Wide<F16>>(a); }
CUCKOO_KERNEL(128) cuckoo_gemm_skinny_bf16(const __grid_constant__ cuckoo_gemm a) { gemm_floats::skinny<Bf16>(a); }
CUCKOO_KERNEL(128) cuckoo_gemm_skinny_f16(const __grid_constant__ cuckoo_gemm a) { gemm_floats::skinny<F16>(a); }
