// Rotation and the KV cache, and attention over it. Splits of 256 positions are computed side by side and joined in order, so
// that a short batch over a long context still fills a device.
#include "math.cuh"

constexpr unsigned KV_BLOCK = 16;
constexpr unsigned SPLIT = 256;
constexpr unsigned DIM_MAX = 512;

enum KvKind : uint32_t { KV_F16 = 0, KV_BF16 = 1, KV_Q8_0 = 2 };

// Where a head of a block begins, in values.
__device__ __forceinline__ uint64_t head_of(const cuckoo_kv& kv, uint64_t block, unsigned head) {
  return (block * kv.kv_heads + head) * KV_BLOCK * kv.dim;
}

// One value, exact in a float. `i` counts values, `scale` scales, from where the layer's begin.
__device__ __forceinline__ float kept(uint32_t kind, cuckoo_address values, cuckoo_address scales, uint64_t i, uint64_t scale) {
  if (kind == KV_F16) return __half2float(at<const __half>(values)[i]);
  if (kind == KV_BF16) return __uint_as_float(uint32_t(at<const uint16_t>(values)[i]) << 16);
  return __half2float(at<const __half>(scales)[scale]) * float(at<const int8_t>(values)[i]);
}

__device__ __forceinline__ float key_of(const cuckoo_kv& kv, uint64_t block, unsigned head, unsigned slot, unsigned d) {
  const uint64_t begin = head_of(kv, block, head);
  const uint64_t scale = kv.kind == KV_Q8_0 ? begin / kv.scale_block + d / kv.scale_block * KV_BLOCK + slot : 0;
  return kept(kv.kind, kv.keys, kv.key_scales, begin + d * KV_BLOCK + slot, scale);
}

__device__ __forceinline__ float value_of(const cuckoo_kv& kv, uint64_t block, unsigned head, unsigned slot, unsigned d) {
  const uint64_t begin = head_of(kv, block, head);
  const uint64_t scale = kv.kind == KV_Q8_0 ? (begin + slot * kv.dim + d) / kv.scale_block : 0;
  return kept(kv.kind, kv.values, kv.value_scales, begin + slot * kv.dim + d, scale);
}

// To the upper half of a single, to nearest, ties to even.
__device__ __forceinline__ uint16_t bf16_of(float v) {
  const uint32_t bits = __float_as_uint(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Values of one head at one position: `x` to every `apart`-th place from `begin` on. A thread takes those of a scale.
__device__ __forceinline__ void keep(const cuckoo_kv& kv, const float* x, cuckoo_address to, cuckoo_address scales, uint64_t begin,
                                     uint64_t scale_begin, unsigned apart) {
  for (unsigned b = threadIdx.x; b * kv.scale_block < kv.dim; b += blockDim.x) {
    const unsigned first = b * kv.scale_block;
    float d = 0.0f;
    if (kv.kind == KV_Q8_0) {
      unsigned largest = 0;
      for (unsigned i = 0; i < kv.scale_block; i++) {
        const unsigned magnitude = __float_as_uint(x[first + i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
      }
      d = __uint_as_float(largest) / 127.0f;
      if (largest >= 0x7f800000u) d = __uint_as_float(0x7fc00000u);
      else if (d < 1.17549435e-38f) d = 0.0f;
      at<__half>(scales)[scale_begin + b * apart] = __float2half_rn(d);
    }
    const float inverse = 1.0f / d;
    for (unsigned i = first; i < first + kv.scale_block; i++) {
      const uint64_t place = begin + uint64_t(i) * apart;
      if (kv.kind == KV_F16) at<__half>(to)[place] = __float2half_rn(x[i]);
      else if (kv.kind == KV_BF16) at<uint16_t>(to)[place] = bf16_of(x[i]);
      else at<int8_t>(to)[place] = d > 0.0f ? int8_t(__float2int_rn(x[i] * inverse)) : int8_t(0);
    }
  }
}

// Rotates queries and keys of a row in place, and stores keys and values: a block of threads for each row and head.
CUCKOO_KERNEL(128) cuckoo_rope_store_rows(const __grid_constant__ cuckoo_rope_store a) {
  const unsigned head = blockIdx.y, heads = a.query_heads + 2 * a.kv.kv_heads;
  const cuckoo_row row = at<const cuckoo_row>(a.rows)[blockIdx.x];
  float* const x = at<float>(a.qkv) + (uint64_t(blockIdx.x) * heads + head) * a.kv.dim;
  const bool is_value = head >= a.query_heads + a.kv.kv_heads, is_key = head >= a.query_heads && !is_value;
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
  const uint64_t block = at<const uint32_t>(a.blocks)[row.first_block + row.position / KV_BLOCK];
  const unsigned slot = row.position % KV_BLOCK;
  if (is_key) {
    const uint64_t begin = head_of(a.kv, block, head - a.query_heads);
    keep(a.kv, x, a.kv.keys, a.kv.key_scales, begin + slot, begin / a.kv.scale_block + slot, KV_BLOCK);
  } else if (is_value) {
    const uint64_t begin = head_of(a.kv, block, head - a.query_heads - a.kv.kv_heads) + slot * a.kv.dim;
    keep(a.kv, x, a.kv.values, a.kv.value_scales, begin, begin / a.kv.scale_block, 1);
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
  const unsigned kv_head = head / (a.query_heads / a.kv.kv_heads), dim = a.kv.dim;
  const float* const q = at<const float>(a.qkv) + (uint64_t(number) * (a.query_heads + 2 * a.kv.kv_heads) + head) * dim;
  const uint32_t* const blocks = at<const uint32_t>(a.blocks) + row.first_block;
  float out[DIM_MAX / WARP] = {};
  float max = -INFINITY, total = 0.0f;
  // Lanes 0 .. 16 have the keys of one block, lanes 16 .. 32 those of the next.
  for (unsigned first = begin / KV_BLOCK; first * KV_BLOCK < end; first += 2) {
    const unsigned position = first * KV_BLOCK + lane;
    float score = -INFINITY;
    if (position >= begin && position < end) {
      const uint64_t block = blocks[position / KV_BLOCK];
      float dot = 0.0f;
      for (unsigned d = 0; d < dim; d++) dot = fmaf(q[d], key_of(a.kv, block, kv_head, position % KV_BLOCK, d), dot);
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
      const uint64_t block = blocks[first + half];
      for (unsigned j = 0; j < KV_BLOCK; j++) {
        const float w = __shfl_sync(ALL_LANES, weight, half * KV_BLOCK + j);
        if (from + j < begin || from + j >= end) continue;
#pragma unroll
        for (unsigned i = 0; i < DIM_MAX / WARP; i++) {
          const unsigned d = i * WARP + lane;
          if (d < dim) out[i] = fmaf(w, value_of(a.kv, block, kv_head, j, d), out[i]);
        }
      }
    }
  }
  float* const part = at<float>(a.parts) + ((uint64_t(number) * a.query_heads + head) * a.splits + split) * (dim + 2);
#pragma unroll
  for (unsigned i = 0; i < DIM_MAX / WARP; i++) {
    const unsigned d = i * WARP + lane;
    if (d < dim) part[d] = out[i];
  }
  if (lane == 0) {
    part[dim] = max;
    part[dim + 1] = total;
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
        at<const float>(a.parts) + ((uint64_t(number) * a.query_heads + head) * a.splits + split) * (a.kv.dim + 2);
    const float part_max = part[a.kv.dim], part_total = part[a.kv.dim + 1];
    const float highest = part_max > max ? part_max : max;
    const float before = exp_exact(max - highest), now = exp_exact(part_max - highest);
#pragma unroll
    for (unsigned i = 0; i < DIM_MAX / WARP; i++) {
      const unsigned d = i * WARP + lane;
      if (d < a.kv.dim) out[i] = fmaf(part[d], now, out[i] * before);
    }
    total = fmaf(part_total, now, total * before);
    max = highest;
  }
  const float inverse = 1.0f / total;
  float* const to = at<float>(a.out) + (uint64_t(number) * a.query_heads + head) * a.kv.dim;
#pragma unroll
  for (unsigned i = 0; i < DIM_MAX / WARP; i++) {
    const unsigned d = i * WARP + lane;
    if (d < a.kv.dim) to[d] = out[i] * inverse;
  }
}
