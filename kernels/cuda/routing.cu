// The experts that each row of a router's logits chooses, and their weights: src/routing.rs on the device. A warp for each row.
//
// Method: the best expert that comes after the last one, again and again: a handful of experts are used, and the logits stay in
// cache. Sums over all experts are those of the numbers equal modulo 32, folded; sums over the chosen are in order of choice.
//
// Minimum bytes: 4 * cols + 8 * used a row; operations: an exponential for each expert.
//
// Source: Shazeer et al., arXiv 1701.06538; the selection is our own.
#include "math.cuh"
#include "select.cuh"

namespace routing {

enum Gating : uint32_t { SOFTMAX = 0, SIGMOID = 1, SOFTMAX_OF_CHOSEN = 2 };

// The lowest rank that is `from` or higher: ranks are those of sampling, so that no two experts have the same.
__device__ __forceinline__ uint64_t next(const float* x, unsigned cols, uint64_t from) {
  uint64_t best = ~0ull;
  for (unsigned i = threadIdx.x % WARP; i < cols; i += WARP) {
    const uint64_t r = sampling::rank(x[i], i);
    if (r >= from && r < best) best = r;
  }
#pragma unroll
  for (unsigned apart = WARP / 2; apart > 0; apart /= 2) {
    const uint64_t other = __shfl_xor_sync(ALL_LANES, best, apart);
    best = other < best ? other : best;
  }
  return best;
}

}  // namespace routing

CUCKOO_KERNEL(256) cuckoo_route_rows(const __grid_constant__ cuckoo_route a) {
  using namespace routing;
  const unsigned lane = threadIdx.x % WARP;
  const uint64_t row = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (row >= a.rows) return;
  const float* const x = at<const float>(a.logits) + row * a.cols;
  cuckoo_routed* const out = at<cuckoo_routed>(a.out) + row * a.used;
  uint64_t from = 0;
  float first = 0.0f, all = 0.0f;
  float chosen = 0.0f;  // the sum of weights, in order of choice
  for (unsigned n = 0; n < a.used; n++) {
    const uint64_t best = next(x, a.cols, from);
    from = best + 1;
    const float logit = x[uint32_t(best)];
    if (n == 0) {
      first = logit;
      float sum = 0.0f;
      for (unsigned i = lane; i < a.cols; i += WARP) sum += exp_exact(x[i] - first);
      all = fold<WARP>(sum);
    }
    const float raised = exp_exact(logit - first);
    const float weight = a.gating == SIGMOID ? 1.0f / (1.0f + exp_exact(-logit)) : a.gating == SOFTMAX ? raised / all : raised;
    chosen += weight;
    if (lane == 0) out[n] = {uint32_t(best), weight};
  }
  if (lane != 0) return;
  if (a.gating == SOFTMAX_OF_CHOSEN) {
    float sum = 0.0f;
    for (unsigned n = 0; n < a.used; n++) {
      out[n].weight /= chosen;
      sum += out[n].weight;
    }
    chosen = sum;
  }
  for (unsigned n = 0; n < a.used; n++) {
    const float weight = a.normalize ? out[n].weight / chosen : out[n].weight;
    out[n].weight = weight * a.scale;
  }
}
