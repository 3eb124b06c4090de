// Rotation of queries and keys, and keys and values into the cache.
#include "kv.cuh"

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
