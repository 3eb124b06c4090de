// Quantized weights as src/cuda/matrix.rs packs them: a lane's item is a segment of 256 columns of one row, in 8 steps of a
// block of 32. Step b of 32 neighbouring items lies together, so that a warp reads whole lines.
#pragma once
#include "platform.cuh"

constexpr unsigned SEGMENT_STEPS = 8;
constexpr unsigned BLOCK_COLS = 32;
constexpr unsigned SEGMENT_COLS = SEGMENT_STEPS * BLOCK_COLS;

// Scales of a block: a half (and one for the minimum); a float; or small integers of a superblock's two halves.
enum class Scales { half, single, super };

// What a format is like, as IntFormat of src/quant/blocks.rs has it, and how its blocks are packed.
template <unsigned BITS_, Scales SCALES_, bool HALVES_, bool MINIMUMS_>
struct Format {
  static constexpr unsigned BITS = BITS_;
  static constexpr Scales SCALES = SCALES_;
  static constexpr bool HALVES = HALVES_;
  static constexpr bool MINIMUMS = MINIMUMS_;
  static constexpr unsigned PIECES = BITS / 4;                 // of 16 bytes
  static constexpr unsigned GROUPS = HALVES ? 2 : 1;           // scales of a block
  static constexpr unsigned COUNT = GROUPS * (MINIMUMS ? 2 : 1);
  static constexpr unsigned SCALE_BYTES = COUNT * (SCALES == Scales::single ? 4 : SCALES == Scales::half ? 2 : 1);
};

// 32 columns of a row. Codes are bytes: columns 4 i .. 4 i + 3 in word i.
template <class F>
struct Block {
  uint32_t codes[8];
  float scale[F::GROUPS];
  float minimum[F::GROUPS];
};

struct Item {
  unsigned group, lane;
};

__device__ __forceinline__ unsigned segments(const cuckoo_integers& w) { return (w.cols + SEGMENT_COLS - 1) / SEGMENT_COLS; }

// Where a segment of a row lies.
__device__ __forceinline__ Item item_of(const cuckoo_integers& w, unsigned row, unsigned segment) {
  const uint64_t item = uint64_t(row) * segments(w) + segment;
  return {unsigned(item / WARP), unsigned(item % WARP)};
}

template <class F>
__device__ __forceinline__ void load_codes(const cuckoo_integers& w, Item item, unsigned step, uint32_t (&codes)[8]) {
  const uint64_t first = (uint64_t(item.group) * SEGMENT_STEPS + step) * F::PIECES * WARP + item.lane;
  const uint4* const pieces = at<const uint4>(w.codes);
  const uint4 a = pieces[first];
  if constexpr (F::BITS == 4) {
    // Low nibbles are columns 0..16, high nibbles 16..32.
    const uint32_t words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
      codes[i] = words[i] & 0x0f0f0f0fu;
      codes[4 + i] = words[i] >> 4 & 0x0f0f0f0fu;
    }
  } else {
    const uint4 b = pieces[first + WARP];
    const uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (unsigned i = 0; i < 8; i++) codes[i] = words[i];
  }
}

// Scales, then minimums. In superblocks a scale is d * sc and a minimum -(dmin * m), exact in a float.
template <class F>
__device__ __forceinline__ void load_scales(const cuckoo_integers& w, Item item, unsigned step, Block<F>& block) {
  const uint64_t place = (uint64_t(item.group) * SEGMENT_STEPS + step) * WARP + item.lane;
  const unsigned char* const bytes = at<const unsigned char>(w.scales) + place * F::SCALE_BYTES;
  float d = 1.0f, dmin = 1.0f;
  if constexpr (F::SCALES == Scales::super) {
    const __half* const pair = at<const __half>(w.supers) + (uint64_t(item.group) * WARP + item.lane) * 2;
    d = __half2float(pair[0]);
    dmin = __half2float(pair[1]);
  }
#pragma unroll
  for (unsigned g = 0; g < F::GROUPS; g++) {
    if constexpr (F::SCALES == Scales::half) {
      const __half* const halves = reinterpret_cast<const __half*>(bytes);
      block.scale[g] = __half2float(halves[g]);
      block.minimum[g] = F::MINIMUMS ? __half2float(halves[F::GROUPS + g]) : 0.0f;
    } else if constexpr (F::SCALES == Scales::single) {
      const float* const floats = reinterpret_cast<const float*>(bytes);
      block.scale[g] = floats[g];
      block.minimum[g] = F::MINIMUMS ? floats[F::GROUPS + g] : 0.0f;
    } else {
      block.scale[g] = d * float(int8_t(bytes[g]));
      block.minimum[g] = F::MINIMUMS ? -(dmin * float(bytes[F::GROUPS + g])) : 0.0f;
    }
  }
}

template <class F>
__device__ __forceinline__ Block<F> load_block(const cuckoo_integers& w, Item item, unsigned step) {
  Block<F> block;
  load_codes<F>(w, item, step, block.codes);
  load_scales<F>(w, item, step, block);
  return block;
}

// Every format that is stored in integers: X(bits, scales, halves, minimums). The names of kernels end in these.
#define CUCKOO_FORMATS(X)                                                                    \
  X(4, half, 0, 0) X(4, half, 0, 1) X(8, half, 0, 0) X(8, half, 0, 1) X(8, single, 0, 0)     \
  X(4, single, 0, 1)                                                                         \
  X(4, super, 1, 1) X(4, super, 1, 0) X(4, super, 0, 1)                                      \
  X(8, super, 0, 1) X(8, super, 1, 0) X(8, super, 0, 0)
