// What Hopper has besides threads, on the CPU: barriers that count bytes, the tensor memory accelerator, products of
// warpgroups. Twins of sm90/ptx.cuh, which says what they do.
//
// Asynchrony is as unkind as the hardware may be: a tile's bytes are lost when its load begins, and there when somebody waits
// for its barrier and no thread can go on without; likewise a product reads its operands. What CUDA leaves undefined is a fault: a barrier nobody
// made, one arrival too many, more bytes than announced, tiles out of place, a warpgroup that is not of one mind.
#pragma once
#include <map>

#include "mma.h"

namespace emulator {

constexpr unsigned WARPGROUP = 128;
// A row of a tile: what 128-byte swizzling permutes the 16-byte pieces of, by the row's number modulo 8.
constexpr unsigned TILE_ROW_BYTES = 128;
constexpr unsigned TILE_ALIGNMENT = 1024;

// An mbarrier, in the eight bytes that a real one has. What nobody has initialized is all ones.
struct MBarrier {
  uint16_t expected;            // arrivals of a phase
  uint16_t pending : 15, phase : 1;
  int32_t bytes;                // announced, and not landed yet
};
static_assert(sizeof(MBarrier) == 8, "as the real one");

// What Emulator::tensor_map of src/cuda/emulator.rs writes.
struct TensorMap {
  uint64_t base, rows, cols, row_bytes;
  uint32_t box_rows, box_cols, element_bytes, mark;
};
constexpr uint32_t TENSOR_MAP_MARK = 0x70616d74;

// A tile on its way.
struct Load {
  char* to;
  TensorMap map;
  MBarrier* barrier;
  uint32_t col, row;
  int bytes() const { return int(map.box_rows * map.box_cols * map.element_bytes); }
};

// D (+)= A B of a warpgroup, not executed yet: the registers of each thread that has asked for it.
struct Product {
  float* d[WARPGROUP];
  uint64_t a, b;
  unsigned cols, askers;
  bool accumulate;
  float (*value)(uint16_t);
};

struct Warpgroup {
  std::vector<Product> products;              // not executed
  size_t executed = 0;                        // before those
  size_t asked[WARPGROUP] = {};               // products, so far
  std::vector<size_t> groups[WARPGROUP];      // how many each group of a thread ends with
  bool fenced[WARPGROUP] = {};
  Barrier barrier;
  size_t wanted = 0;                          // by those who wait at the barrier
};

struct Hopper : Engines {
  std::vector<Load> loads;
  std::map<const MBarrier*, Barrier> waiting;  // for the end of a phase
  Warpgroup warpgroups[THREADS_MAX / WARPGROUP];

  Barrier* work() override;
  std::string unfinished() const override {
    if (!loads.empty()) return "a block ends with tiles on their way";
    for (const Warpgroup& group : warpgroups) {
      if (!group.products.empty()) return "a block ends with products that nobody waited for";
    }
    return "";
  }
};

inline Hopper& hopper() {
  Block* const block = current->block;
  if (!block->engines) block->engines = std::make_unique<Hopper>();
  return static_cast<Hopper&>(*block->engines);
}

inline MBarrier& mbarrier(uint64_t* at) {
  if (!is_shared(at, 8) || reinterpret_cast<uintptr_t>(at) % 8 != 0) fault("a barrier that is not in shared memory");
  MBarrier& barrier = *reinterpret_cast<MBarrier*>(at);
  if (barrier.expected == 0xffff) fault("a barrier that nobody has initialized");
  return barrier;
}

// Goes on to the next phase if all have come.
inline bool turn(MBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return false;
  barrier.phase ^= 1;
  barrier.pending = barrier.expected;
  return true;
}

inline void arrive(MBarrier& barrier) {
  if (barrier.pending == 0) fault("one arrival too many at a barrier");
  barrier.pending--;
  if (turn(barrier)) open(hopper().waiting[&barrier], current);
}

// Where a piece of 16 bytes lies in a tile that begins at a multiple of 1024.
inline size_t swizzled(size_t offset) { return offset ^ (offset / TILE_ROW_BYTES % 8) * 16; }

// Returns whether that ends a phase of the barrier.
inline bool land(const Load& load) {
  const TensorMap& map = load.map;
  const unsigned per_piece = 16 / map.element_bytes;
  for (unsigned row = 0; row < map.box_rows; row++) {
    for (unsigned col = 0; col < map.box_cols; col += per_piece) {
      char* const to = load.to + swizzled(row * TILE_ROW_BYTES + col * map.element_bytes);
      const uint64_t from_row = uint64_t(load.row) + row, from_col = uint64_t(load.col) + col;
      const uint64_t inside = from_row < map.rows && from_col < map.cols ? map.cols - from_col : 0;
      const size_t bytes = (inside < per_piece ? inside : per_piece) * map.element_bytes;
      memset(to, 0, 16);  // what is not in the matrix is zero
      if (bytes != 0) memcpy(to, reinterpret_cast<const char*>(map.base) + from_row * map.row_bytes + from_col * map.element_bytes, bytes);
    }
  }
  load.barrier->bytes -= load.bytes();
  if (load.barrier->bytes < 0) fault("more bytes arrive at a barrier than were announced");
  return turn(*load.barrier);
}

// 16 values of a row of an operand, K-major in tiles of 128-byte rows.
inline void operand(uint64_t descriptor, unsigned row, float (*value)(uint16_t), float (&to)[16]) {
  const size_t begin = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
  const size_t offset = begin + row / 8 * eight_rows + row % 8 * TILE_ROW_BYTES;
  const Block* const block = current->block;
  for (unsigned k = 0; k < 16; k++) {
    const size_t place = swizzled(offset + k * 2);
    uint16_t bits;
    if (place + 2 > block->shared_bytes) fault("an operand that is not in shared memory");
    memcpy(&bits, block->shared + place, 2);
    to[k] = value(bits);
  }
}

// The sums are those of mma_floats in mma.h, so that products of tiles of all sizes have the same bits here.
inline void execute(const Product& product) {
  constexpr unsigned COLS_MAX = 256;
  static thread_local float b[16][COLS_MAX];
  for (unsigned n = 0; n < product.cols; n++) {
    float col[16];
    operand(product.b, n, product.value, col);
    for (unsigned k = 0; k < 16; k++) b[k][n] = col[k];
  }
  for (unsigned row = 0; row < 64; row++) {
    float a[16], sums[8][COLS_MAX];
    operand(product.a, row, product.value, a);
    for (unsigned k = 0; k < 8; k++) {
      for (unsigned n = 0; n < product.cols; n++) sums[k][n] = a[k] * b[k][n] + a[8 + k] * b[8 + k][n];
    }
    for (unsigned n = 0; n < product.cols; n++) {
      const float sum = ((sums[0][n] + sums[4][n]) + (sums[2][n] + sums[6][n])) + ((sums[1][n] + sums[5][n]) + (sums[3][n] + sums[7][n]));
      const unsigned thread = row / 16 * LANES + row % 8 * 4 + n % 8 / 2, register_ = n / 8 * 4 + row % 16 / 8 * 2 + n % 2;
      float& d = product.d[thread][register_];
      d = product.accumulate ? d + sum : sum;
    }
  }
}

inline Warpgroup& warpgroup() { return hopper().warpgroups[current->number / WARPGROUP]; }

inline void ask(float* d, unsigned cols, uint64_t a, uint64_t b, bool accumulate, float (*value)(uint16_t)) {
  Warpgroup& group = warpgroup();
  const unsigned thread = current->number % WARPGROUP;
  if (!group.fenced[thread]) fault("a product of a warpgroup without a fence before it");
  const size_t number = group.asked[thread]++ - group.executed;
  if (number == group.products.size()) group.products.push_back({{}, a, b, cols, 0, accumulate, value});
  Product& product = group.products[number];
  if (product.a != a || product.b != b) fault("descriptors differ within a warpgroup");
  if (product.accumulate != accumulate || product.cols != cols || product.value != value) fault("threads of a warpgroup ask for different products");
  product.d[thread] = d;
  product.askers++;
}

// Waits until all products of a warpgroup but those of the newest groups are executed; all its threads do.
inline void wait_for_products(unsigned newest) {
  Warpgroup& group = warpgroup();
  const unsigned thread = current->number % WARPGROUP;
  std::vector<size_t>& ends = group.groups[thread];
  size_t wanted = group.executed;
  if (ends.size() > newest) {
    wanted = ends[ends.size() - newest - 1];
    ends.erase(ends.begin(), ends.end() - newest);
  }
  if (group.barrier.arrived == 0) group.wanted = wanted;
  else if (group.wanted != wanted) fault("threads of a warpgroup wait for different products");
  group.barrier.arrived++;
  group.fenced[thread] = false;
  wait(group.barrier);
}

inline void execute_wanted(Warpgroup& group) {
  const size_t count = group.wanted - group.executed;
  for (size_t i = 0; i < count; i++) {
    if (group.products[i].askers != WARPGROUP) fault("a product that only some of a warpgroup ask for");
    execute(group.products[i]);
  }
  group.products.erase(group.products.begin(), group.products.begin() + ptrdiff_t(count));
  group.executed = group.wanted;
}

// Tiles come first, so that they overwrite what products are still to read, if they may.
inline Barrier* Hopper::work() {
  for (size_t i = 0; i < loads.size();) {
    Barrier& those = waiting[loads[i].barrier];
    if (!those.first) {
      i++;
      continue;
    }
    const Load load = loads[i];
    loads.erase(loads.begin() + ptrdiff_t(i));
    if (land(load)) return &those;
  }
  for (Warpgroup& group : warpgroups) {
    if (group.barrier.arrived != WARPGROUP) continue;
    execute_wanted(group);
    return &group.barrier;
  }
  return nullptr;
}

}  // namespace emulator

#define CUCKOO_SHARED_TILES(name) unsigned char* const name = reinterpret_cast<unsigned char*>(::emulator::current->block->shared)

inline void mbarrier_init(uint64_t* at, unsigned arrivals) {
  if (!::emulator::is_shared(at, 8)) ::emulator::fault("a barrier that is not in shared memory");
  *reinterpret_cast<::emulator::MBarrier*>(at) = {uint16_t(arrivals), uint16_t(arrivals & 0x7fff), 0, 0};
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* at) { ::emulator::arrive(::emulator::mbarrier(at)); }
inline void mbarrier_arrive_expect(uint64_t* at, unsigned bytes) {
  ::emulator::MBarrier& barrier = ::emulator::mbarrier(at);
  if (barrier.pending == 0) ::emulator::fault("one arrival too many at a barrier");
  barrier.bytes += int(bytes);
  ::emulator::arrive(barrier);
}
inline void mbarrier_wait(uint64_t* at, unsigned parity) {
  ::emulator::MBarrier& barrier = ::emulator::mbarrier(at);
  while (barrier.phase == parity) ::emulator::wait(::emulator::hopper().waiting[&barrier]);
}

inline void prefetch_tensor_map(const cuckoo_tensor_map*) {}
inline void load_tile(void* to, const cuckoo_tensor_map* described, uint64_t* at, unsigned col, unsigned row) {
  ::emulator::Load load = {static_cast<char*>(to), {}, &::emulator::mbarrier(at), col, row};
  memcpy(&load.map, described->words, sizeof load.map);
  if (load.map.mark != ::emulator::TENSOR_MAP_MARK) ::emulator::fault("a tensor map that this machine has not made");
  if (load.map.box_cols * load.map.element_bytes != ::emulator::TILE_ROW_BYTES) ::emulator::fault("a tile whose rows are not 128 bytes");
  if (reinterpret_cast<uintptr_t>(to) % ::emulator::TILE_ALIGNMENT != 0) ::emulator::fault("a tile that is not aligned to 1024 bytes");
  if (!::emulator::is_shared(to, size_t(load.bytes()))) ::emulator::fault("a tile that is not in shared memory");
  memset(to, 0xff, size_t(load.bytes()));
  ::emulator::hopper().loads.push_back(load);
}

inline uint64_t tile_descriptor(const void* tile) {
  const uint64_t address = uint64_t(static_cast<const char*>(tile) - ::emulator::current->block->shared);
  return (address & 0x3ffff) >> 4 | uint64_t(1) << 16 | uint64_t(::emulator::TILE_ALIGNMENT >> 4) << 32 | uint64_t(1) << 62;
}
inline void wgmma_fence() { ::emulator::warpgroup().fenced[::emulator::current->number % ::emulator::WARPGROUP] = true; }
inline void wgmma_commit() {
  ::emulator::Warpgroup& group = ::emulator::warpgroup();
  const unsigned thread = ::emulator::current->number % ::emulator::WARPGROUP;
  group.groups[thread].push_back(group.asked[thread]);
}
template <unsigned NEWEST>
void wgmma_wait() {
  ::emulator::wait_for_products(NEWEST);
}
template <unsigned N>
void wgmma_bf16(float (&d)[N], uint64_t a, uint64_t b, bool accumulate) {
  ::emulator::ask(d, 2 * N, a, b, accumulate, ::emulator::value_of_bf16);
}
template <unsigned N>
void wgmma_f16(float (&d)[N], uint64_t a, uint64_t b, bool accumulate) {
  ::emulator::ask(d, 2 * N, a, b, accumulate, ::emulator::value_of_f16);
}

// Registers are not counted here.
template <unsigned REGISTERS>
void give_registers() {
  static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "what the hardware can set");
}
template <unsigned REGISTERS>
void take_registers() {
  give_registers<REGISTERS>();
}
