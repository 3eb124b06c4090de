// What only Hopper has (sm_90a): barriers in shared memory that count arrivals and bytes, the tensor memory accelerator that
// loads whole tiles, and products of a warpgroup, four consecutive warps, whose operands lie in shared memory. Each wrapper has
// a twin in emulator/hopper.h. Source: the PTX manual, chapters "mbarrier", "cp.async.bulk.tensor" and "wgmma".
//
// A tile has rows of 128 bytes and begins at a multiple of 1024. Its 16-byte pieces are permuted (128-byte swizzle): piece i of
// row r lies where piece i ^ r % 8 would. The accelerator writes tiles so, and products read them so.
#pragma once
#include "../ptx.cuh"

#ifdef __CUDACC__

// All memory that the threads of a block share, for tiles.
#define CUCKOO_SHARED_TILES(name)                                        \
  extern __shared__ __align__(1024) unsigned char cuckoo_shared_tiles[]; \
  unsigned char* const name = cuckoo_shared_tiles

// A phase of the barrier ends after so many arrivals, and when all bytes that were announced are there.
__device__ __forceinline__ void mbarrier_init(uint64_t* at, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(arrivals) : "memory");
}
// Makes barriers known to the accelerator. The block's threads need __syncthreads after it.
__device__ __forceinline__ void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void mbarrier_arrive(uint64_t* at) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(at)) : "memory");
}
// Arrives, and announces bytes.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* at, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(at)), "r"(bytes) : "memory");
}
// Waits for the end of the phase of that parity: the first is 0. Of a new barrier, the phase before it has ended.
__device__ __forceinline__ void mbarrier_wait(uint64_t* at, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain_%=:\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni end_%=;\nbra.uni again_%=;\nend_%=:\n}" ::"r"(shared_address(at)), "r"(parity) : "memory");
}

__device__ __forceinline__ void prefetch_tensor_map(const cuckoo_tensor_map* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Begins to load the tile from column `col` and row `row` on; zeros where the matrix ends. Its bytes are counted at the
// barrier.
__device__ __forceinline__ void load_tile(void* to, const cuckoo_tensor_map* map, uint64_t* at, unsigned col, unsigned row) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(shared_address(to)), "l"(map), "r"(shared_address(at)), "r"(col), "r"(row) : "memory");
}

// A tile as an operand, from its first column on. 16 columns of 16 bits further on is 2 more.
__device__ __forceinline__ uint64_t tile_descriptor(const void* tile) {
  return uint64_t((shared_address(tile) & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}
// Before products whose registers something else has used.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Makes a group of the products since the last one.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all groups but the newest.
template <unsigned NEWEST>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NEWEST) : "memory");
}

// Registers of a thread, given back or taken by all of a warpgroup.
template <unsigned REGISTERS>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <unsigned REGISTERS>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#define CUCKOO_D8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define CUCKOO_D64(i) \
  CUCKOO_D8(i), CUCKOO_D8(i + 8), CUCKOO_D8(i + 16), CUCKOO_D8(i + 24), CUCKOO_D8(i + 32), CUCKOO_D8(i + 40), CUCKOO_D8(i + 48), CUCKOO_D8(i + 56)
#define CUCKOO_NAMES_64                                                                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "  \
  "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CUCKOO_NAMES_128                                                                                                       \
  CUCKOO_NAMES_64                                                                                                              \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, " \
  "%88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "   \
  "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// D (+)= A B in f32: A is 64 rows of a tile, B as many rows as D has columns, 16 columns of each. With g = lane / 4 and t =
// lane % 4, d[4 j], d[4 j + 1] are row 16 warp + g, columns 8 j + 2 t and the next; d[4 j + 2], d[4 j + 3] those of row 16 warp
// + g + 8.
#define CUCKOO_WGMMA(name, kind)                                                                                               \
  __device__ __forceinline__ void wgmma_##name(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {                     \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." kind "." kind        \
                 " {" CUCKOO_NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;\n}"                                                         \
                 : CUCKOO_D64(0) : "l"(a), "l"(b), "r"(int(accumulate)));                                                      \
  }                                                                                                                            \
  __device__ __forceinline__ void wgmma_##name(float (&d)[128], uint64_t a, uint64_t b, bool accumulate) {                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." kind "." kind       \
                 " {" CUCKOO_NAMES_128 "}, %128, %129, p, 1, 1, 0, 0;\n}"                                                      \
                 : CUCKOO_D64(0), CUCKOO_D64(64) : "l"(a), "l"(b), "r"(int(accumulate)));                                      \
  }
CUCKOO_WGMMA(bf16, "bf16")
CUCKOO_WGMMA(f16, "f16")

#else
#include "../emulator/hopper.h"
#endif
