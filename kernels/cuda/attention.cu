// Rotation and the KV cache, and attention over it. Splits of 256 positions are computed side by side and joined in order, so
// that a short batch over a long context still fills a device.
#include "math.cuh"

constexpr unsigned KV_BLOCK = 16;
constexpr unsigned SPLIT = 256;
constexpr unsigned DIM_MAX = 512;

// Rotates queries and keys of a row in place, and stores keys and values: a block of threads for each row and head.
CUCKOO_KERNEL(128) cuckoo_rope_store_rows(const __grid_constant__ cuckoo_rope_store a) {
  const unsigned head = blockIdx.y, heads = a.query_heads + 2 * a.kv_heads;
  const cuckoo_row row = at<const cuckoo_row>(a.rows)[blockIdx.x];
  float* const x = at<float>(a.qkv) + (uint64_t(blockIdx.x) * heads + head) * a.dim;
  const bool is_value = head >= a.query_heads + a.kv_heads, is_key = head >= a.query_heads && !is_value;
  if (!is_value && a.turns != 0) {
    const float* const turns = at<const float>(a.turns) + uint64_t(row.position) * a.pairs * 2;
    for (unsigned i = threadIdx.x; i < a.pairs; i += blockDim.x) {
      const unsigned first = a.halves ? i : 2 * i, second = a.halves ? i + a.pairs : 2 * i + 1;
      const float v = x[first], w = x[second], cosine = turns[2 * i], sine = turns[2 * i + 1];
      x[first] = v * cosine - w * sine;
      x[second] = v * sine + w * cosine;
    }
    __syncthreads();
  }
  if (!is_value && !is_key) return;
  const unsigned kv_head = is_value ? head - a.query_heads - a.kv_heads : head - a.query_heads;
  const uint64_t block = at<const uint32_t>(a.blocks)[row.first_block + row.position / KV_BLOCK];
  const uint64_t begin = (block * a.kv_heads + kv_head) * KV_BLOCK * a.dim;
  const unsigned slot = row.position % KV_BLOCK;
  __half* const to = at<__half>(is_value ? a.values : a.keys) + begin;
  for (unsigned d = threadIdx.x; d < a.dim; d += blockDim.x) {
    to[is_value ? slot * a.dim + d : d * KV_BLOCK + slot] = __float2half_rn(x[d]);
  }
}

// The positions that a row sees.
struct Seen {
  unsigned begin, end;
};

__device__ __forceinline__ Seen seen(const cuckoo_attention& a, const cuckoo_row& row) {
  const unsigned end = a.causal ? row.position + 1 : row.span_end;
  const bool whole = a.window == 0 || row.position + 1 <= a.window;
  return {whole ? 0 : row.position + 1 - a.window, end};
}

// One split of one row and query head: a warp. Sums of the values, the largest score and the total go to `parts`.
CUCKOO_KERNEL(32) cuckoo_attention_splits(const __grid_constant__ cuckoo_attention a) {
  const unsigned lane = threadIdx.x, number = blockIdx.x, head = blockIdx.y, split = blockIdx.z;
  const cuckoo_row row = at<const cuckoo_row>(a.rows)[number];
  const Seen all = seen(a, row);
  const unsigned begin = all.begin > split * SPLIT ? all.begin : split * SPLIT;
  const unsigned end = all.end < (split + 1) * SPLIT ? all.end : (split + 1) * SPLIT;
  if (begin >= end) return;
  const unsigned kv_head = head / (a.query_heads / a.kv_heads);
  const float* const q = at<const float>(a.qkv) + (uint64_t(number) * (a.query_heads + 2 * a.kv_heads) + head) * a.dim;
  const uint32_t* const blocks = at<const uint32_t>(a.blocks) + row.first_block;
  float out[DIM_MAX / WARP] = {};
  float max = -INFINITY, total = 0.0f;
  // Lanes 0 .. 16 have the keys of one block, lanes 16 .. 32 those of the next.
  for (unsigned first = begin / KV_BLOCK; first * KV_BLOCK < end; first += 2) {
    const unsigned position = first * KV_BLOCK + lane;
    float score = -INFINITY;
    if (position >= begin && position < end) {
      const __half* const keys = at<const __half>(a.keys) +
                                 (uint64_t(blocks[position / KV_BLOCK]) * a.kv_heads + kv_head) * KV_BLOCK * a.dim +
                                 position % KV_BLOCK;
      float dot = 0.0f;
      for (unsigned d = 0; d < a.dim; d++) dot = fmaf(q[d], __half2float(keys[d * KV_BLOCK]), dot);
      score = capped(dot * a.scale, a.softcap);
    }
    float highest = score;
#pragma unroll
    for (unsigned apart = KV_BLOCK / 2; apart > 0; apart /= 2) {
      const float other = __shfl_xor_sync(ALL_LANES, highest, apart);
      highest = other > highest ? other : highest;
    }
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
      const unsigned from = (first + half) * KV_BLOCK;
      const float block_highest = __shfl_sync(ALL_LANES, highest, half * KV_BLOCK);
      if (from >= end) break;
      const float before = max;
      max = block_highest > max ? block_highest : max;
      const float weight = exp_exact(score + -max);
      const float rescale = max == before ? 1.0f : exp_exact(before - max);
      total = total * rescale + __shfl_sync(ALL_LANES, fold<KV_BLOCK>(weight), half * KV_BLOCK);
#pragma unroll
      for (unsigned i = 0; i < DIM_MAX / WARP; i++) out[i] *= rescale;
      const __half* const values =
          at<const __half>(a.values) + (uint64_t(blocks[first + half]) * a.kv_heads + kv_head) * KV_BLOCK * a.dim;
      for (unsigned j = 0; j < KV_BLOCK; j++) {
        const float w = __shfl_sync(ALL_LANES, weight, half * KV_BLOCK + j);
        if (from + j < begin || from + j >= end) continue;
#pragma unroll
        for (unsigned i = 0; i < DIM_MAX / WARP; i++) {
          const unsigned d = i * WARP + lane;
          if (d < a.dim) out[i] = fmaf(w, __half2float(values[j * a.dim + d]), out[i]);
        }
      }
    }
  }
  float* const part = at<float>(a.parts) + ((uint64_t(number) * a.query_heads + head) * a.splits + split) * (a.dim + 2);
#pragma unroll
  for (unsigned i = 0; i < DIM_MAX / WARP; i++) {
    const unsigned d = i * WARP + lane;
    if (d < a.dim) part[d] = out[i];
  }
  if (lane == 0) {
    part[a.dim] = max;
    part[a.dim + 1] = total;
  }
}

// Splits of a row and query head joined in order: a warp.
CUCKOO_KERNEL(32) cuckoo_attention_join(const __grid_constant__ cuckoo_attention a) {
  const unsigned lane = threadIdx.x, number = blockIdx.x, head = blockIdx.y;
  const Seen all = seen(a, at<const cuckoo_row>(a.rows)[number]);
  float out[DIM_MAX / WARP] = {};
  float max = a.sinks != 0 ? at<const float>(a.sinks)[head] : -INFINITY;
  float total = a.sinks != 0 ? 1.0f : 0.0f;
  for (unsigned split = all.begin / SPLIT; split * SPLIT < all.end; split++) {
    const float* const part =
        at<const float>(a.parts) + ((uint64_t(number) * a.query_heads + head) * a.splits + split) * (a.dim + 2);
    const float part_max = part[a.dim], part_total = part[a.dim + 1];
    const float highest = part_max > max ? part_max : max;
    const float before = exp_exact(max - highest), now = exp_exact(part_max - highest);
#pragma unroll
    for (unsigned i = 0; i < DIM_MAX / WARP; i++) {
      const unsigned d = i * WARP + lane;
      if (d < a.dim) out[i] = fmaf(part[d], now, out[i] * before);
    }
    total = fmaf(part_total, now, total * before);
    max = highest;
  }
  const float inverse = 1.0f / total;
  float* const to = at<float>(a.out) + (uint64_t(number) * a.query_heads + head) * a.dim;
#pragma unroll
  for (unsigned i = 0; i < DIM_MAX / WARP; i++) {
    const unsigned d = i * WARP + lane;
    if (d < a.dim) to[d] = out[i] * inverse;
  }
}
