// Keys and values as the cache keeps them (src/kv.rs), and the bytes of one block: where they lie is said in args.h.
#pragma once
#include "platform.cuh"

constexpr unsigned KV_BLOCK = 16;
constexpr unsigned KV_DIM_MAX = 512;

enum KvKind : uint32_t { KV_F16 = 0, KV_BF16 = 1, KV_Q8_0 = 2 };
// The names of kernels end in these.
#define CUCKOO_KV_KINDS(X) X(f16, KV_F16) X(bf16, KV_BF16) X(q8_0, KV_Q8_0)

// Where a head of a block begins, in values.
__device__ __forceinline__ uint64_t head_of(const cuckoo_kv& kv, uint64_t block, unsigned head) {
  return (block * kv.kv_heads + head) * KV_BLOCK * kv.dim;
}

// How values of a kind are read, exact in floats. Those of Q8_0 are still to be multiplied by their scale.
template <KvKind KIND>
struct Kept {
  static constexpr unsigned BYTES = 2;
  static constexpr bool SCALED = false;
  __device__ __forceinline__ static float one(const void* p) {
    const uint16_t bits = *static_cast<const uint16_t*>(p);
    return KIND == KV_F16 ? half_of_bits(bits) : __uint_as_float(uint32_t(bits) << 16);
  }
  // Two neighbours; `p` is a multiple of their size.
  __device__ __forceinline__ static float2 two(const void* p) {
    const uint32_t bits = *static_cast<const uint32_t*>(p);
    if (KIND == KV_F16) return make_float2(half_of_bits(uint16_t(bits)), half_of_bits(uint16_t(bits >> 16)));
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
  }
};

template <>
struct Kept<KV_Q8_0> {
  static constexpr unsigned BYTES = 1;
  static constexpr bool SCALED = true;
  __device__ __forceinline__ static float one(const void* p) { return float(*static_cast<const int8_t*>(p)); }
  __device__ __forceinline__ static float2 two(const void* p) {
    const uint16_t bits = *static_cast<const uint16_t*>(p);
    return make_float2(float(int8_t(bits & 0xff)), float(int8_t(bits >> 8)));
  }
};
