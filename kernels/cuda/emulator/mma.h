// Asynchronous copies and products of small matrices on the CPU: the twins of ptx.cuh, which says what they do.
//
// As late and as early as CUDA allows: a copy's bytes are lost when it begins, and are there when it was waited for, not before. So
// whoever reads too early is seen, and whoever fills what others still read.
#pragma once
#include "cuda.h"

namespace emulator {

// Lanes of a whole warp meet in an operation that all of them must take part in. Returns where they hand over its operands.
inline unsigned char* meet_whole(Operation operation, void (*put)(unsigned char*, const void*), const void* mine) {
  Fiber* const self = current;
  const Block* const block = self->block;
  if (self->number - self->lane + LANES > block->size.x * block->size.y * block->size.z) fault("a warp has lanes missing");
  unsigned char* const tiles = self->warp->tiles[self->exchanges++ % 2];
  put(tiles, mine);
  meet_warp(~0u, operation);
  return tiles;
}

// Whether `bytes` bytes are in the block's shared memory.
inline bool is_shared(const void* p, size_t bytes) {
  const Block* const block = current->block;
  const char* const first = static_cast<const char*>(p);
  return first >= block->shared && first + bytes <= block->shared + block->shared_bytes;
}

template <unsigned N>
inline void ldmatrix(uint32_t (&r)[N], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fault("ldmatrix of a row that is not aligned");
  if (!is_shared(row, 16)) fault("ldmatrix of what is not shared memory");
  const auto put = [](unsigned char* tiles, const void* mine) { memcpy(tiles + current->lane * 8, mine, 8); };
  const Operation operation = transposed ? Operation::ldmatrix_trans : N == 2 ? Operation::ldmatrix_x2 : Operation::ldmatrix;
  const unsigned char* const tiles = meet_whole(operation, put, &row);
  const unsigned g = current->lane / 4, t = current->lane % 4;
  const auto address = [&](unsigned i) {
    const unsigned char* p;
    memcpy(&p, tiles + i * 8, 8);
    return p;
  };
  for (unsigned i = 0; i < N; i++) {
    if (!transposed) {
      memcpy(&r[i], address(8 * i + g) + 4 * t, 4);
      continue;
    }
    uint16_t pair[2];
    for (unsigned k = 0; k < 2; k++) memcpy(&pair[k], address(8 * i + 2 * t + k) + 2 * g, 2);
    memcpy(&r[i], pair, 4);
  }
}

// Operands in integers, as whole matrices.
struct Integers {
  int8_t a[16][32], b[8][32];
};

// Tests spend most of their time here.
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef int Ints __attribute__((vector_size(32)));

template <unsigned K>
inline int dot(const int8_t (&a)[32], const int8_t (&b)[32]) {
#ifdef __AVX2__
  Ints sums = {};
  for (unsigned k = 0; k < K; k += 16) {
    Bytes x, y;
    memcpy(&x, a + k, 16);
    memcpy(&y, b + k, 16);
    sums += Ints(__builtin_ia32_pmaddwd256(__builtin_convertvector(x, Shorts), __builtin_convertvector(y, Shorts)));
  }
  return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
#else
  int sum = 0;
  for (unsigned k = 0; k < K; k++) sum += a[k] * b[k];
  return sum;
#endif
}

// `mine`: four registers of A, two of B; of K = 16 those of the second half are not looked at.
template <unsigned K>
inline void mma_integers(int (&d)[4], const uint32_t (&mine)[6], const int (&c)[4]) {
  const auto put = [](unsigned char* tiles, const void* mine) {
    Integers& to = *reinterpret_cast<Integers*>(tiles);
    const uint32_t* const r = static_cast<const uint32_t*>(mine);
    const unsigned g = current->lane / 4, t = current->lane % 4;
    for (unsigned i = 0; i < K / 8; i++) memcpy(&to.a[g + i % 2 * 8][i / 2 * 16 + 4 * t], &r[i], 4);
    for (unsigned i = 0; i < K / 16; i++) memcpy(&to.b[g][i * 16 + 4 * t], &r[4 + i], 4);
  };
  const unsigned char* const tiles = meet_whole(K == 32 ? Operation::mma_s8_k32 : Operation::mma_s8_k16, put, mine);
  const Integers& from = *reinterpret_cast<const Integers*>(tiles);
  const unsigned g = current->lane / 4, t = current->lane % 4;
  for (unsigned i = 0; i < 4; i++) d[i] = c[i] + dot<K>(from.a[g + i / 2 * 8], from.b[2 * t + i % 2]);
}

// Operands in floating-point numbers, made f32 by who brings them.
struct Floats {
  float a[16][16], b[8][16];
};

template <Operation OPERATION, float (*VALUE)(uint16_t)>
inline void mma_floats(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto put = [](unsigned char* tiles, const void* mine) {
    Floats& to = *reinterpret_cast<Floats*>(tiles);
    const uint32_t* const r = static_cast<const uint32_t*>(mine);
    const unsigned g = current->lane / 4, t = current->lane % 4;
    for (unsigned i = 0; i < 6; i++) {
      float* const pair = i < 4 ? &to.a[g + i % 2 * 8][i / 2 * 8 + 2 * t] : &to.b[g][(i - 4) * 8 + 2 * t];
      pair[0] = VALUE(uint16_t(r[i]));
      pair[1] = VALUE(uint16_t(r[i] >> 16));
    }
  };
  const unsigned char* const tiles = meet_whole(OPERATION, put, mine);
  const Floats& from = *reinterpret_cast<const Floats*>(tiles);
  const unsigned g = current->lane / 4, t = current->lane % 4;
  for (unsigned i = 0; i < 4; i++) {
    const float *const x = from.a[g + i / 2 * 8], *const y = from.b[2 * t + i % 2];
    float sums[8];
    for (unsigned k = 0; k < 8; k++) sums[k] = x[k] * y[k] + x[8 + k] * y[8 + k];
    c[i] += ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  }
}

inline float value_of_bf16(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }
inline float value_of_f16(uint16_t bits) { return __half2float(__half{bits}); }

}  // namespace emulator

template <unsigned BYTES>
void cp_async(void* to, const void* from, bool inside = true) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "what the hardware copies at once");
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % BYTES != 0) ::emulator::fault("a copy that is not aligned");
  if (!::emulator::is_shared(to, BYTES)) ::emulator::fault("a copy to what is not shared memory");
  memset(to, 0xff, BYTES);
  ::emulator::current->copies.push_back({to, inside ? from : nullptr, BYTES});
}
inline void cp_async_once(void* to, const void* from, bool inside) { cp_async<16>(to, from, inside); }
inline void cp_async_commit() { ::emulator::current->groups.push_back(::emulator::current->copies.size()); }
template <unsigned NEWEST>
void cp_async_wait() {
  auto &copies = ::emulator::current->copies;
  auto &groups = ::emulator::current->groups;
  if (groups.size() <= NEWEST) return;
  const size_t done = groups.size() - NEWEST, landed = groups[done - 1];
  for (size_t i = 0; i < landed; i++) {
    if (copies[i].from) memcpy(copies[i].to, copies[i].from, copies[i].bytes);
    else memset(copies[i].to, 0, copies[i].bytes);
  }
  copies.erase(copies.begin(), copies.begin() + ptrdiff_t(landed));
  groups.erase(groups.begin(), groups.begin() + ptrdiff_t(done));
  for (size_t& end : groups) end -= landed;
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { ::emulator::ldmatrix(r, row, false); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { ::emulator::ldmatrix(r, row, true); }

inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) { ::emulator::ldmatrix(r, row, false); }

inline void mma_s8_k32(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const int (&c)[4]) {
  ::emulator::mma_integers<32>(d, {a[0], a[1], a[2], a[3], b[0], b[1]}, c);
}
inline void mma_s8_k16(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, const int (&c)[4]) {
  ::emulator::mma_integers<16>(d, {a0, a1, 0, 0, b, 0}, c);
}
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ::emulator::mma_floats<::emulator::Operation::mma_bf16, ::emulator::value_of_bf16>(c, a, b);
}
inline void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ::emulator::mma_floats<::emulator::Operation::mma_f16, ::emulator::value_of_f16>(c, a, b);
}

inline uint32_t narrow_bf16(float low, float high) {
  const auto half = [](float v) -> uint32_t {
    const uint32_t bits = __float_as_uint(v);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return half(low) | half(high) << 16;
}
inline uint32_t narrow_f16(float low, float high) {
  return __float2half_rn(low).bits | uint32_t(__float2half_rn(high).bits) << 16;
}
