// Blocks of the KV cache packed for the host, and unpacked (recipe K13): all layers and planes of many blocks in one launch, so that
// what crosses the bus is one long piece.
//
// Method: a block of threads for each layer and KV block copies 16 bytes a thread at a time. Minimum bytes: twice those of the
// blocks; no FLOPs. Source: our own.
#include "platform.cuh"

CUCKOO_KERNEL(256) cuckoo_kv_pack(const __grid_constant__ cuckoo_kv_copy a) {
  const unsigned layer = blockIdx.x, number = blockIdx.y;
  const uint64_t block = uint64_t(layer) * a.cache_blocks + at<const uint32_t>(a.blocks)[number];
  uint64_t packed = a.packed + (uint64_t(number) * a.layers + layer) * (uint64_t(a.bytes[0]) + a.bytes[1] + a.bytes[2] + a.bytes[3]);
#pragma unroll
  for (unsigned plane = 0; plane < 4; plane++) {
    uint4* const here = at<uint4>(a.planes[plane] + block * a.bytes[plane]);
    uint4* const there = at<uint4>(packed);
    const uint4* const from = a.back ? there : here;
    uint4* const to = a.back ? here : there;
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < a.bytes[plane] / 16; i += blockDim.x) to[i] = from[i];
    packed += a.bytes[plane];
  }
}
