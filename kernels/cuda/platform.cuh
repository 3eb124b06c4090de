// What kernels may use: CUDA's own, or the emulator's version of it. The only file that knows which.
//
// Kernels are compiled without contraction of products and sums (nvcc -fmad=false, g++ -ffp-contract=off): where the numerics
// contract says fma, the source says fmaf.
#pragma once
#include "args.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
// Memory that the threads of a block share, as large as the launch says.
#define CUCKOO_SHARED(T, name)                                     \
  extern __shared__ __align__(16) unsigned char cuckoo_shared[];   \
  T* const name = reinterpret_cast<T*>(cuckoo_shared)
#else
#include "emulator/cuda.h"
#endif

// Of blocks of so many threads, two of which fit a multiprocessor at least: up to 128 registers for 256 threads.
#define CUCKOO_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 2)

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// A device address as what lies there.
template <class T>
__device__ __forceinline__ T* at(cuckoo_address address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

// A half from its bits.
__device__ __forceinline__ float half_of_bits(uint16_t bits) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(bits));
#else
  return __half2float(__half{bits});
#endif
}

// Adds up one value of each of N lanes: those N / 2 apart, then N / 4, down to 1. The contract's fold; every lane gets it.
template <unsigned N>
__device__ __forceinline__ float fold(float v) {
#pragma unroll
  for (unsigned apart = N / 2; apart > 0; apart /= 2) v += __shfl_xor_sync(ALL_LANES, v, apart);
  return v;
}
