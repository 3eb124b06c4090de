// The part of CUDA that kernels use, on the CPU.
#pragma once

#include <cmath>
#include <cstring>

#include "fibers.h"

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::emulator::current->thread)
#define blockIdx (::emulator::current->block->index)
#define blockDim (::emulator::current->block->size)
#define gridDim (::emulator::current->block->grid)
#define CUCKOO_SHARED(T, name) T* const name = reinterpret_cast<T*>(::emulator::current->block->shared)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads() {
  ::emulator::Block* const block = ::emulator::current->block;
  ::emulator::meet(block->barrier, block->running);
}

// Lanes of a warp wait for one another.
inline void __syncwarp(unsigned mask = ~0u) { ::emulator::meet_warp(mask, ::emulator::Operation::syncwarp); }

namespace emulator {
// Puts a value where the other lanes of the warp find it, waits for theirs, and takes that of lane `from`.
template <class T>
T exchange(unsigned mask, T mine, unsigned from) {
  static_assert(sizeof(T) <= 8, "a register or two");
  Fiber* const self = current;
  auto& slots = self->warp->slots[self->exchanges++ % 2];
  memcpy(&slots[self->lane], &mine, sizeof mine);
  meet_warp(mask, Operation::exchange);
  if (!(mask >> from & 1)) fault("a value is taken from a lane that is not in the mask");
  T theirs;
  memcpy(&theirs, &slots[from], sizeof theirs);
  return theirs;
}
}  // namespace emulator

template <class T>
T __shfl_xor_sync(unsigned mask, T v, unsigned apart, unsigned = 32) {
  return ::emulator::exchange(mask, v, ::emulator::current->lane ^ apart);
}
template <class T>
T __shfl_sync(unsigned mask, T v, unsigned from, unsigned = 32) {
  return ::emulator::exchange(mask, v, from % ::emulator::LANES);
}

template <class T>
T __ldcs(const T* p) {
  return *p;
}

template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, unsigned = 32) {
  const unsigned lane = ::emulator::current->lane;
  return ::emulator::exchange(mask, v, lane < by ? lane : lane - by);
}

template <class T>
T __ldg(const T* from) {
  return *from;
}

// Fibers of a block run one at a time and do not give way here; of global memory only one block may have a place.
template <class T>
T atomicAdd(T* to, T v) {
  const T old = *to;
  *to += v;
  return old;
}

inline double __longlong_as_double(long long v) {
  double f;
  memcpy(&f, &v, 8);
  return f;
}
inline long long __double_as_longlong(double v) {
  long long bits;
  memcpy(&bits, &v, 8);
  return bits;
}
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

inline float __int_as_float(int v) {
  float f;
  memcpy(&f, &v, 4);
  return f;
}
inline float __uint_as_float(unsigned v) { return __int_as_float(int(v)); }
inline unsigned __float_as_uint(float v) {
  unsigned bits;
  memcpy(&bits, &v, 4);
  return bits;
}
// To nearest, ties to even; out of range it goes to the end of the range and NaN becomes 0, as on a GPU.
inline int __float2int_rn(float v) {
  if (std::isnan(v)) return 0;
  if (v >= 2147483648.0f) return 2147483647;
  if (v < -2147483648.0f) return -2147483647 - 1;
  return int(rintf(v));
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += int8_t(a >> 8 * i) * int8_t(b >> 8 * i);
  return c;
}
// Bytes of a (0 to 3) and b (4 to 7), as each nibble of `which` says.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned which) {
  const uint64_t both = uint64_t(b) << 32 | a;
  unsigned out = 0;
  for (unsigned i = 0; i < 4; i++) out |= unsigned(both >> (which >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return out;
}

struct __half {
  uint16_t bits;
};
inline float __half2float(__half h) {
  const unsigned sign = unsigned(h.bits & 0x8000) << 16, exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
  // Subnormal ones are whole multiples of 2^-24.
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 5.9604645e-8f;
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
// To nearest, ties to even.
inline __half __float2half_rn(float f) {
  const unsigned bits = __float_as_uint(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  const auto half = [&](unsigned v) { return __half{uint16_t(sign | v)}; };
  if (magnitude > 0x7f800000) return half(0x7e00 | (magnitude >> 13 & 0x3ff));
  if (magnitude >= 0x477ff000) return half(0x7c00);  // rounds to 2^16, which is infinite
  if (magnitude < 0x38800000) {
    // Below 2^-14: adding 1/2 leaves multiples of 2^-24 in the low bits, rounded.
    return half(__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000);
  }
  return half((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}
