// Rotation of queries and keys, and keys and values into the cache (recipe K2).
//
// Method: a block of threads for each head and each group of rows that stand in one KV block. Rows of a whole KV block turn keys
// around in shared memory, so that 16 bytes are written at once; a decode row's key goes where it belongs value by value, for
// neighbouring dimensions lie 16 values apart. A thread rounds four values; those of a scale are neighbouring lanes'.
//
// Minimum bytes: 8 dim for a query's head and a key's (read, written), 4 dim for a value's, and what the cache keeps of keys and
// values. FLOPs: 3 for each value that turns, 4 for each that is rounded to bytes. Source: RoFormer (Su et al., arXiv 2104.09864); the rest is our own.
#include "kv.cuh"

namespace rope {

// To the upper half of a single, to nearest, ties to even.
__device__ __forceinline__ uint16_t bf16_of(float v) {
  const uint32_t bits = __float_as_uint(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

__device__ __forceinline__ uint16_t f16_of(float v) {
  const __half half = __float2half_rn(v);
  return *reinterpret_cast<const uint16_t*>(&half);
}

// Four values of a head as they are kept. Those of Q8_0 get their scale, which the lanes that share it have together.
template <KvKind KIND>
__device__ __forceinline__ void round(const float (&x)[4], unsigned scale_block, uint32_t (&kept)[4], uint16_t& scale) {
  if constexpr (KIND != KV_Q8_0) {
#pragma unroll
    for (unsigned i = 0; i < 4; i++) kept[i] = KIND == KV_F16 ? f16_of(x[i]) : bf16_of(x[i]);
    return;
  }
  unsigned largest = 0;
#pragma unroll
  for (unsigned i = 0; i < 4; i++) {
    const unsigned magnitude = __float_as_uint(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  for (unsigned apart = scale_block / 8; apart > 0; apart /= 2) {
    const unsigned other = __shfl_xor_sync(ALL_LANES, largest, apart);
    largest = other > largest ? other : largest;
  }
  float d = __uint_as_float(largest) / 127.0f;
  if (largest >= 0x7f800000u) d = __uint_as_float(0x7fc00000u);
  else if (d < 1.17549435e-38f) d = 0.0f;
  const float inverse = 1.0f / d;
#pragma unroll
  for (unsigned i = 0; i < 4; i++) kept[i] = d > 0.0f ? uint32_t(__float2int_rn(x[i] * inverse)) & 0xffu : 0;
  scale = f16_of(d);
}

// Keeps the rows of a group: keys as [dim][16], values as [16][dim].
template <KvKind KIND>
__device__ __forceinline__ void keep(const cuckoo_rope_store& a, const cuckoo_kv_rows& group, const float* x, uint64_t stride,
                                     unsigned kv_head, bool is_key) {
  using Stored = Kept<KIND>;
  CUCKOO_SHARED(unsigned char, turned);  // [dim][16]
  const cuckoo_kv& kv = a.kv;
  const unsigned dim = kv.dim, count = group.rows * dim / 4, first_slot = group.position % KV_BLOCK;
  const uint64_t begin = head_of(kv, group.block, kv_head);
  unsigned char* const there = at<unsigned char>(is_key ? kv.keys : kv.values) + begin * Stored::BYTES;
  const bool turns = is_key && group.rows == KV_BLOCK;
  unsigned char* const to = turns ? turned : there;
  const unsigned apart = is_key ? KV_BLOCK : 1;  // from one dimension to the next
  for (unsigned first = threadIdx.x / WARP * WARP; first < count; first += blockDim.x) {
    const unsigned i = first + threadIdx.x % WARP, row = i * 4 / dim, d = i * 4 % dim, slot = first_slot + row;
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (i < count) v = *reinterpret_cast<const float4*>(x + row * stride + d);
    const float each[4] = {v.x, v.y, v.z, v.w};
    uint32_t kept[4];
    uint16_t scale = 0;
    round<KIND>(each, kv.scale_block, kept, scale);
    if (i >= count) continue;
    unsigned char* const place = to + (d * apart + slot * (is_key ? 1 : dim)) * Stored::BYTES;
    if (is_key) {
#pragma unroll
      for (unsigned e = 0; e < 4; e++) {
        if constexpr (Stored::BYTES == 2) reinterpret_cast<uint16_t*>(place)[e * KV_BLOCK] = uint16_t(kept[e]);
        else place[e * KV_BLOCK] = uint8_t(kept[e]);
      }
    } else if constexpr (Stored::BYTES == 2) {
      *reinterpret_cast<uint2*>(place) = make_uint2(kept[0] | kept[1] << 16, kept[2] | kept[3] << 16);
    } else {
      *reinterpret_cast<uint32_t*>(place) = kept[0] | kept[1] << 8 | kept[2] << 16 | kept[3] << 24;
    }
    if constexpr (Stored::SCALED) {
      if (d % kv.scale_block != 0) continue;
      const unsigned block = d / kv.scale_block;
      const unsigned scale_place = is_key ? block * KV_BLOCK + slot : slot * (dim / kv.scale_block) + block;
      at<uint16_t>(is_key ? kv.key_scales : kv.value_scales)[begin / kv.scale_block + scale_place] = scale;
    }
  }
  if (!turns) return;
  __syncthreads();
  for (unsigned i = threadIdx.x; i < dim * Stored::BYTES; i += blockDim.x) {
    reinterpret_cast<uint4*>(there)[i] = reinterpret_cast<const uint4*>(turned)[i];
  }
}

template <KvKind KIND>
__device__ __forceinline__ void store(const cuckoo_rope_store& a) {
  const unsigned head = blockIdx.y, heads = a.query_heads + 2 * a.kv.kv_heads, first_value = a.query_heads + a.kv.kv_heads;
  const cuckoo_kv_rows group = at<const cuckoo_kv_rows>(a.groups)[blockIdx.x];
  const uint64_t stride = uint64_t(heads) * a.kv.dim;
  float* const x = at<float>(a.qkv) + group.first_row * stride + head * a.kv.dim;
  if (head < first_value && a.turns != 0) {
    for (unsigned i = threadIdx.x; i < group.rows * a.pairs; i += blockDim.x) {
      const unsigned row = i / a.pairs, pair = i % a.pairs;
      const float2 turn = at<const float2>(a.turns)[uint64_t(group.position + row) * a.pairs + pair];
      float* const v = x + row * stride + (a.halves ? pair : 2 * pair);
      float* const w = v + (a.halves ? a.pairs : 1);
      const float first = *v, second = *w;
      *v = first * turn.x - second * turn.y;
      *w = first * turn.y + second * turn.x;
    }
    __syncthreads();
  }
  if (head < a.query_heads) return;
  const bool is_key = head < first_value;
  keep<KIND>(a, group, x, stride, head - (is_key ? a.query_heads : first_value), is_key);
}

}  // namespace rope

#define CUCKOO_ROPE_STORE(kind, KIND)                                                              \
  CUCKOO_KERNEL(128) cuckoo_rope_store_##kind(const __grid_constant__ cuckoo_rope_store a) {       \
    rope::store<KIND>(a);                                                                          \
  }
CUCKOO_KV_KINDS(CUCKOO_ROPE_STORE)
