// What only PTX has: asynchronous copies into shared memory, and products of small matrices on tensor cores (compute capability
// 8.0 and later). With sm90/ptx.cuh the only file with inline PTX; each wrapper has a twin in emulator/mma.h.
//
// Operations named `ldmatrix` and `mma` are a whole warp's: all 32 lanes take part, none may have returned. With g = lane / 4 and
// t = lane % 4, a lane holds of the operands of `mma`:
//
//   A, row-major [16][K]       a[0] row g, a[1] row g + 8; a[2], a[3] those rows, 16 bytes on. Each is bytes 4 t .. 4 t + 3.
//   B, column-major [8][K]     b[0] column g, bytes 4 t .. 4 t + 3; b[1] 16 bytes on.
//   C, [16][8]                 c[0], c[1] row g, columns 2 t and 2 t + 1; c[2], c[3] row g + 8.
//
// where a row of A and a column of B are 32 bytes: 32 integers or 16 floating-point numbers (`mma_s8_k16`: 16 bytes, so a[0], a[1]
// and b[0] only). That is how `ldmatrix` loads them: matrix i of 8 rows of 16 bytes, whose addresses lanes 8 i .. 8 i + 7 give, is
// what register i gets: bytes 4 t .. 4 t + 3 of row g. In `ldmatrix_x4_trans` a register gets 16 bits from each of the rows 2 t and
// 2 t + 1, those in column g.
//
// Integer products are exact. Floating-point ones round as the tensor cores of the machine do, in an order that nobody tells: the
// exact profile has no use for them.
#pragma once
#include "platform.cuh"

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// Begins to copy BYTES (4, 8 or 16, and both addresses multiples of them) from global to shared memory, or zeros where not `inside`:
// nothing is read then, wherever `from` is. What is there until the copy was waited for is nobody's to know.
template <unsigned BYTES>
__device__ __forceinline__ void cp_async(void* to, const void* from, bool inside = true) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "what the hardware copies at once");
  const unsigned bytes = inside ? BYTES : 0;
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "n"(BYTES), "r"(bytes) : "memory");
  }
}

// As cp_async<16>, of what nobody reads again soon: the second level of cache lets go of it first.
__device__ __forceinline__ void cp_async_once(void* to, const void* from, bool inside) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;"
               ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0), "l"(policy) : "memory");
}

// Makes a group of this thread's copies since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the newest `NEWEST` groups of this thread have landed. Other threads' copies need a barrier after it.
template <unsigned NEWEST>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}

// D = A B + C in integers, K = 32. D may be C.
__device__ __forceinline__ void mma_s8_k32(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const int (&c)[4]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
// K = 16: a[0] and a[1] of A, b[0] of B.
__device__ __forceinline__ void mma_s8_k16(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, const int (&c)[4]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(a0), "r"(a1), "r"(b), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// C += A B of bfloat16, summed in f32, K = 16.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Likewise of halves.
__device__ __forceinline__ void mma_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two floats as 16-bit numbers, to nearest, ties to even; the first is the lower half.
__device__ __forceinline__ uint32_t narrow_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint32_t narrow_f16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

#else
#include "emulator/mma.h"
#endif
