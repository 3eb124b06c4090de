// Quantized weights as src/cuda/matrix.rs packs them: in the order in which tensor cores take them. 16 rows are a tile, its columns
// come in segments of 256, in 8 steps of a block of 32. Of a step, a lane of a warp holds what it gives to `mma` as operand A
// (ptx.cuh): with g = lane / 4 and t = lane % 4, columns 4 t .. 4 t + 3 and 16 columns on, of the rows g and g + 8. So a warp reads
// a step of a tile in one piece, and a segment in one piece, whatever it does with it.
#pragma once
#include "platform.cuh"

constexpr unsigned SEGMENT_STEPS = 8;
constexpr unsigned BLOCK_COLS = 32;
constexpr unsigned SEGMENT_COLS = SEGMENT_STEPS * BLOCK_COLS;
constexpr unsigned TILE_ROWS = 16;

// Scales of a block: a half (and one for the minimum); a float; or small integers of a superblock's two halves.
enum class Scales { half, single, super };

// What a format is like, as IntFormat of src/quant/blocks.rs has it, and how its blocks are packed.
template <unsigned BITS_, Scales SCALES_, bool HALVES_, bool MINIMUMS_>
struct Format {
  static constexpr unsigned BITS = BITS_;
  static constexpr Scales SCALES = SCALES_;
  static constexpr bool HALVES = HALVES_;
  static constexpr bool MINIMUMS = MINIMUMS_;
  static constexpr bool SUPERS = SCALES == Scales::super;
  // Nibbles that have a sign, as formats without minimums have them, are left in the upper half of their byte.
  static constexpr unsigned UNIT = BITS == 4 && !MINIMUMS ? 16 : 1;
  static constexpr unsigned GROUPS = HALVES ? 2 : 1;           // scales of a block
  static constexpr unsigned COUNT = GROUPS * (MINIMUMS ? 2 : 1);
  static constexpr unsigned SCALE_BYTES = COUNT * (SCALES == Scales::single ? 4 : SCALES == Scales::half ? 2 : 1);
  // Of a step of a tile.
  static constexpr unsigned STEP_CODES = TILE_ROWS * BLOCK_COLS * BITS / 8;
  static constexpr unsigned STEP_SCALES = TILE_ROWS * SCALE_BYTES;
};
// Of a segment of a tile: two halves for each row.
constexpr unsigned SUPER_BYTES = TILE_ROWS * 4;

// Every format that is stored in integers: X(bits, scales, halves, minimums). The names of kernels end in these.
#define CUCKOO_FORMATS(X)                                                                    \
  X(4, half, 0, 0) X(4, half, 0, 1) X(8, half, 0, 0) X(8, half, 0, 1) X(8, single, 0, 0)     \
  X(4, single, 0, 1)                                                                         \
  X(4, super, 1, 1) X(4, super, 1, 0) X(4, super, 0, 1)                                      \
  X(8, super, 0, 1) X(8, super, 1, 0) X(8, super, 0, 0)

__device__ __forceinline__ unsigned segments(const cuckoo_integers& w) { return (w.cols + SEGMENT_COLS - 1) / SEGMENT_COLS; }

// Whether what is read will be read again.
enum class Read { again, once };
template <Read READ, class T>
__device__ __forceinline__ T read(const T* p) {
  if constexpr (READ == Read::once) return __ldcs(p);
  return *p;
}

// A lane's codes of a step, as they are stored.
template <class F>
struct LaneCodes {
  uint32_t words[F::BITS / 2];
};
// `step_codes` are those of the tile's step.
template <class F, Read READ>
__device__ __forceinline__ LaneCodes<F> load_codes(const unsigned char* step_codes, unsigned lane) {
  if constexpr (F::BITS == 4) {
    const uint2 two = read<READ>(reinterpret_cast<const uint2*>(step_codes) + lane);
    return {{two.x, two.y}};
  } else {
    const uint4 four = read<READ>(reinterpret_cast<const uint4*>(step_codes) + lane);
    return {{four.x, four.y, four.z, four.w}};
  }
}

// Operand A of `mma`: signed bytes, F::UNIT times the codes less the format's offset.
template <class F>
__device__ __forceinline__ void unpack(const LaneCodes<F>& codes, uint32_t (&a)[4]) {
  if constexpr (F::BITS == 8) {
#pragma unroll
    for (unsigned i = 0; i < 4; i++) a[i] = codes.words[i];
  } else {
    // Low nibbles are the first 16 columns, high nibbles the last.
#pragma unroll
    for (unsigned row = 0; row < 2; row++) {
      const uint32_t word = codes.words[row];
      a[row] = F::UNIT == 16 ? word << 4 & 0xf0f0f0f0u : word & 0x0f0f0f0fu;
      a[2 + row] = F::UNIT == 16 ? word & 0xf0f0f0f0u : word >> 4 & 0x0f0f0f0fu;
    }
  }
}

// A lane's factors of superblocks in a segment, as they are stored: of the rows g and g + 8.
struct LaneSupers {
  uint32_t words[2];
};
template <class F>
__device__ __forceinline__ LaneSupers load_supers(const unsigned char* segment_supers, unsigned g) {
  if constexpr (!F::SUPERS) return {};
  const uint2 pairs = reinterpret_cast<const uint2*>(segment_supers)[g];
  return {{pairs.x, pairs.y}};
}

struct Supers {
  float d[2], dmin[2];
};
__device__ __forceinline__ Supers unpack(const LaneSupers& supers) {
  Supers out;
#pragma unroll
  for (unsigned row = 0; row < 2; row++) {
    out.d[row] = half_of_bits(uint16_t(supers.words[row]));
    out.dmin[row] = half_of_bits(uint16_t(supers.words[row] >> 16));
  }
  return out;
}

// Scales of a block of the rows g and g + 8, and its minimums.
template <class F>
struct BlockScales {
  float scale[2][F::GROUPS];
  float minimum[2][F::GROUPS];
};

// A lane's scales of a step, as they are stored: of both rows.
template <class F>
struct LaneScales {
  static constexpr unsigned BYTES = 2 * F::SCALE_BYTES;
  uint32_t words[BYTES < 4 ? 1 : BYTES / 4];
};
// `step_scales` are those of the tile's step.
template <class F, Read READ>
__device__ __forceinline__ LaneScales<F> load_scales(const unsigned char* step_scales, unsigned g) {
  constexpr unsigned BYTES = LaneScales<F>::BYTES;
  if constexpr (BYTES == 2) {
    return {{read<READ>(reinterpret_cast<const uint16_t*>(step_scales) + g)}};
  } else if constexpr (BYTES == 4) {
    return {{read<READ>(reinterpret_cast<const uint32_t*>(step_scales) + g)}};
  } else if constexpr (BYTES == 8) {
    const uint2 two = read<READ>(reinterpret_cast<const uint2*>(step_scales) + g);
    return {{two.x, two.y}};
  } else {
    static_assert(BYTES == 16, "formats have no more");
    const uint4 four = read<READ>(reinterpret_cast<const uint4*>(step_scales) + g);
    return {{four.x, four.y, four.z, four.w}};
  }
}

// Byte `i` of a word less `less`: put behind the first byte of 2^23, the last bit of which is worth 1. Conversions are slow.
__device__ __forceinline__ float byte_of(uint32_t word, unsigned i, float less) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + i)) - (8388608.0f + less);
}

// In superblocks a scale is d * sc and a minimum -(dmin * m), exact in a float; sc is stored 128 above what it is.
template <class F>
__device__ __forceinline__ BlockScales<F> unpack(const LaneScales<F>& scales, const Supers& supers) {
  BlockScales<F> out = {};
#pragma unroll
  for (unsigned row = 0; row < 2; row++) {
#pragma unroll
    for (unsigned i = 0; i < F::COUNT; i++) {
      const unsigned at = row * F::COUNT + i;
      float v;
      if constexpr (F::SCALES == Scales::half) v = half_of_bits(uint16_t(scales.words[at / 2] >> at % 2 * 16));
      else if constexpr (F::SCALES == Scales::single) v = __uint_as_float(scales.words[at]);
      else if (i < F::GROUPS) v = supers.d[row] * byte_of(scales.words[at / 4], at % 4, 128.0f);
      else v = -(supers.dmin[row] * byte_of(scales.words[at / 4], at % 4, 0.0f));
      if (i < F::GROUPS) out.scale[row][i] = v;
      else out.minimum[row][i - F::GROUPS] = v;
    }
  }
  return out;
}

// What is of a part's matrix from one step of one tile on.
struct Place {
  const unsigned char *codes, *scales, *supers;
};
template <class F>
__device__ __forceinline__ Place place_of(const cuckoo_integers& w, unsigned tile, unsigned segment, unsigned step) {
  const uint64_t first = uint64_t(tile) * segments(w) + segment, at_step = first * SEGMENT_STEPS + step;
  return {at<const unsigned char>(w.codes) + at_step * F::STEP_CODES, at<const unsigned char>(w.scales) + at_step * F::STEP_SCALES,
          at<const unsigned char>(w.supers) + first * SUPER_BYTES};
}
