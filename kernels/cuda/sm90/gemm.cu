// Products with 16-bit weights and many tokens on Hopper's tensor cores (sm_90a): the fast profile's.
// out[t][r] = sum over k of w[r][k] x[t][k], in f32.
//
// Method: a persistent grid; a block has one warpgroup that loads and two that multiply. The first asks the tensor memory
// accelerator for tiles of 64 columns, of 128 tokens and of ROWS rows of weights, into a ring of STAGES in shared memory:
// barrier `full` says that a stage has landed, `empty` that it was read. Each of the others multiplies 64 tokens by all rows
// (wgmma m64nROWSk16), one step behind in letting go of stages, so that products never wait for loads of the step after them.
// While results are stored the next tile is loaded. The accelerator fills in zeros where a matrix ends, and stores are guarded.
// The shape is that of CUTLASS' warp-specialized kernels (Thakkar et al., github.com/NVIDIA/cutlass, BSD-3-Clause), without
// clusters; the code is our own.
//
// Order: one chain of additions in f32 for each value, 16 columns after the other, as in gemm_floats.cu.
//
// Bytes, at the least: 2 rows cols + 2 tokens cols + 4 tokens rows; FLOPs: 2 rows cols tokens.
#include "../gemm_floats.cuh"
#include "ptx.cuh"

// Other architectures do not have the instructions, and the kernels are not there for them.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace hopper {

constexpr unsigned COLS = 64;  // of a step: rows of tiles are 128 bytes
constexpr unsigned TOKENS = 128;
constexpr unsigned WARPGROUP = 128;
constexpr unsigned CONSUMERS = 2;
constexpr unsigned CONSUMER_WARPS = CONSUMERS * WARPGROUP / WARP;
constexpr unsigned TOKENS_EACH = TOKENS / CONSUMERS;
constexpr unsigned K = 16;  // columns of one product

__device__ __forceinline__ void wgmma(Bf16, float (&d)[64], uint64_t a, uint64_t b, bool add) { wgmma_bf16(d, a, b, add); }
__device__ __forceinline__ void wgmma(Bf16, float (&d)[128], uint64_t a, uint64_t b, bool add) { wgmma_bf16(d, a, b, add); }
__device__ __forceinline__ void wgmma(F16, float (&d)[64], uint64_t a, uint64_t b, bool add) { wgmma_f16(d, a, b, add); }
__device__ __forceinline__ void wgmma(F16, float (&d)[128], uint64_t a, uint64_t b, bool add) { wgmma_f16(d, a, b, add); }

// Shared memory: STAGES of a tile of activations and one of weights, then the barriers.
template <unsigned ROWS>
struct Ring {
  static constexpr unsigned STAGES = ROWS == 256 ? 4 : 6;
  static constexpr unsigned X_BYTES = TOKENS * COLS * 2, BYTES = X_BYTES + ROWS * COLS * 2;
  unsigned char* const tiles;
  uint64_t* const full;
  uint64_t* const empty;
  unsigned stage = 0, round = 0;  // of the step that a warp is at

  __device__ explicit Ring(unsigned char* shared)
      : tiles(shared), full(reinterpret_cast<uint64_t*>(shared + STAGES * BYTES)), empty(full + STAGES) {}
  __device__ void next() {
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    round += stage == 0;
  }
  __device__ unsigned char* x() const { return tiles + stage * BYTES; }
  __device__ unsigned char* w() const { return x() + X_BYTES; }
};

// One thread: loads every step of every tile of this block.
template <unsigned ROWS>
__device__ __forceinline__ void produce(const cuckoo_gemm_mapped& a, Ring<ROWS> ring, unsigned row_tiles, unsigned token_tiles) {
  prefetch_tensor_map(&a.x_map);
  prefetch_tensor_map(&a.w_map);
  for (unsigned i = blockIdx.x; i < row_tiles * token_tiles; i += gridDim.x) {
    const GemmTile tile = gemm_tile(i, row_tiles, token_tiles);
    for (unsigned col = 0; col < a.gemm.w.cols; col += COLS) {
      mbarrier_wait(&ring.empty[ring.stage], (ring.round + 1) % 2);  // in the first round it is empty from the beginning
      mbarrier_arrive_expect(&ring.full[ring.stage], Ring<ROWS>::BYTES);
      load_tile(ring.x(), &a.x_map, &ring.full[ring.stage], col, tile.token * TOKENS);
      load_tile(ring.w(), &a.w_map, &ring.full[ring.stage], col, tile.row * ROWS);
      ring.next();
    }
  }
}

struct alignas(8) Pair {
  float first, second;
};

// A warpgroup's results. Pairs of neighbouring rows are written at once, but at the matrix's edge and where places are odd.
template <unsigned ROWS, bool ADD>
__device__ __forceinline__ void store(const cuckoo_gemm& a, const float (&d)[ROWS / 2], unsigned first_token, unsigned first_row) {
  const unsigned thread = threadIdx.x % WARPGROUP, lane = thread % WARP;
  const bool pairs = (a.out_cols | a.first_row) % 2 == 0 && first_row + ROWS <= a.w.rows;
  const unsigned row = first_row + lane % 4 * 2;
#pragma unroll
  for (unsigned half = 0; half < 4; half += 2) {
    const unsigned token = first_token + thread / WARP * 16 + lane / 4 + half * 4;
    if (token >= a.tokens) break;
    const float scale = gemm_scale(a, token);
    float* const out = at<float>(a.out) + uint64_t(token) * a.out_cols + a.first_row + row;
#pragma unroll
    for (unsigned j = 0; j < ROWS / 8; j++) {
      Pair sums = {d[j * 4 + half] * scale, d[j * 4 + half + 1] * scale};
      if (pairs) {
        Pair* const place = reinterpret_cast<Pair*>(out + j * 8);
        if (ADD) sums = {place->first + sums.first, place->second + sums.second};
        *place = sums;
      } else {
        if (row + j * 8 < a.w.rows) out[j * 8] = ADD ? out[j * 8] + sums.first : sums.first;
        if (row + j * 8 + 1 < a.w.rows) out[j * 8 + 1] = ADD ? out[j * 8 + 1] + sums.second : sums.second;
      }
    }
  }
}

// A warpgroup: multiplies its tokens of every tile of this block.
template <class T, unsigned ROWS>
__device__ __forceinline__ void consume(const cuckoo_gemm& a, Ring<ROWS> ring, unsigned row_tiles, unsigned token_tiles) {
  const unsigned own = (threadIdx.x / WARPGROUP - 1) * TOKENS_EACH;
  const bool speaks = threadIdx.x % WARP == 0;
  for (unsigned i = blockIdx.x; i < row_tiles * token_tiles; i += gridDim.x) {
    float d[ROWS / 2];
    uint64_t* read = nullptr;  // whose products are still running
    for (unsigned col = 0; col < a.w.cols; col += COLS) {
      mbarrier_wait(&ring.full[ring.stage], ring.round % 2);
      wgmma_fence();
      const uint64_t x = tile_descriptor(ring.x() + own * COLS * 2), w = tile_descriptor(ring.w());
#pragma unroll
      for (unsigned k = 0; k < COLS / K; k++) wgmma(T(), d, x + k * K * 2 / 16, w + k * K * 2 / 16, (col | k) != 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (read != nullptr && speaks) mbarrier_arrive(read);
      read = &ring.empty[ring.stage];
      ring.next();
    }
    wgmma_wait<0>();
    if (speaks) mbarrier_arrive(read);
    const GemmTile tile = gemm_tile(i, row_tiles, token_tiles);
    const unsigned first_token = tile.token * TOKENS + own, first_row = tile.row * ROWS;
    if (a.add) store<ROWS, true>(a, d, first_token, first_row);
    else store<ROWS, false>(a, d, first_token, first_row);
  }
}

template <class T, unsigned ROWS>
__device__ __forceinline__ void gemm(const cuckoo_gemm_mapped& a) {
  CUCKOO_SHARED_TILES(shared);
  Ring<ROWS> ring(shared);
  const unsigned row_tiles = tiles_of(a.gemm.w.rows, ROWS), token_tiles = tiles_of(a.gemm.tokens, TOKENS);
  if (threadIdx.x == 0) {
    for (unsigned i = 0; i < Ring<ROWS>::STAGES; i++) {
      mbarrier_init(&ring.full[i], 1);
      mbarrier_init(&ring.empty[i], CONSUMER_WARPS);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  // Of 65536 registers, 168 for each of 384 threads to begin with.
  if (threadIdx.x < WARPGROUP) {
    give_registers<40>();
    if (threadIdx.x == 0) produce<ROWS>(a, ring, row_tiles, token_tiles);
  } else {
    take_registers<232>();
    consume<T, ROWS>(a.gemm, ring, row_tiles, token_tiles);
  }
}

}  // namespace hopper

#define CUCKOO_GEMM_HOPPER(rows, kind, T)                                                                                     \
  extern "C" __global__ void __launch_bounds__((hopper::CONSUMERS + 1) * hopper::WARPGROUP, 1)                                \
  cuckoo_gemm_hopper_##rows##_##kind(const __grid_constant__ cuckoo_gemm_mapped a) {                                          \
    hopper::gemm<T, rows>(a);                                                                                                 \
  }
CUCKOO_GEMM_HOPPER(128, bf16, Bf16)
CUCKOO_GEMM_HOPPER(256, bf16, Bf16)
CUCKOO_GEMM_HOPPER(128, f16, F16)
CUCKOO_GEMM_HOPPER(256, f16, F16)

#endif
