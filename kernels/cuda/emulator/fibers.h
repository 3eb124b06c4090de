// A block of CUDA threads on the CPU: a fiber for each thread, run in turns by one thread of the host. A fiber gives way only
// where threads wait for one another, so what goes wrong is the same every time.
//
// A kernel that waits for ever, or asks for what CUDA does not allow, is a fault: the block is given up, and the launch
// says what happened, in which block and thread.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#if !defined(__x86_64__) || defined(CUCKOO_PORTABLE_FIBERS)
#include <ucontext.h>
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

constexpr unsigned LANES = 32;
constexpr unsigned THREADS_MAX = 1024;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK_BYTES = 256 << 10;  // with what lies between variables
#else
constexpr size_t STACK_BYTES = 64 << 10;
#endif

#if defined(__x86_64__) && !defined(CUCKOO_PORTABLE_FIBERS)
// Stores the callee-saved registers on this stack and takes those of another.
extern "C" void cuckoo_emulator_switch(void** save, void* to);

struct Context {
  void* stack_pointer = nullptr;

  void prepare(char* stack, void (*entry)()) {
    // Entered by `ret` after six registers are popped; the stack is then as after a call.
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES) - 2;
    *top = reinterpret_cast<void*>(entry);
    stack_pointer = top - 6;
  }
  static void change(Context& from, Context& to) { cuckoo_emulator_switch(&from.stack_pointer, to.stack_pointer); }
};
#else
struct Context {
  ucontext_t state;

  void prepare(char* stack, void (*entry)()) {
    getcontext(&state);
    state.uc_stack.ss_sp = stack;
    state.uc_stack.ss_size = STACK_BYTES;
    state.uc_link = nullptr;
    makecontext(&state, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
};
#endif

struct Fiber;

// Threads meet here; the last to arrive lets all go on. Until then they are not given turns.
struct Barrier {
  unsigned arrived = 0;
  Fiber *first = nullptr, *last = nullptr;  // of those that wait, in the order in which they came
};

// What lanes of a warp do together.
enum class Operation { exchange, ldmatrix, ldmatrix_x2, ldmatrix_trans, mma_s8_k32, mma_s8_k16, mma_bf16, mma_f16, syncwarp };

// What lanes of a warp hand to each other, in turns of two, so that a quick lane does not overwrite what a slow one reads.
struct Warp {
  Barrier barrier;
  unsigned mask = 0;  // of those who meet at the barrier
  Operation operation = Operation::exchange;  // for which they meet
  alignas(64) uint64_t slots[2][LANES];
  alignas(64) unsigned char tiles[2][1536];  // operands of a product: 24 rows of 16 floats at most
};

// A copy to shared memory that has begun; of zeros where it is from nowhere.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

// What works beside the threads of a block: engines that are told what to do, and waited for. They are as slow as can be: nothing
// gets on while a thread can.
struct Engines {
  virtual ~Engines() = default;
  // Does something that threads wait for. Returns where those wait who can go on now, or null if there is nobody.
  virtual Barrier* work() = 0;
  // What they have begun and nobody waited for, or nothing.
  virtual std::string unfinished() const = 0;
};

struct Block;

struct Fiber {
  Context context;
  dim3 thread;
  unsigned number = 0, lane = 0;
  unsigned exchanges = 0;  // with other lanes, so far
  Warp* warp = nullptr;
  Block* block = nullptr;
  Fiber *next = nullptr, *previous = nullptr;  // of those that take turns
  Fiber* next_waiting = nullptr;               // at the same barrier
  std::vector<Copy> copies;    // that have not landed
  std::vector<size_t> groups;  // where each group of them ends
};

struct Block {
  dim3 index, size, grid;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  Barrier barrier;
  std::unique_ptr<Engines> engines;  // if a thread has told them something
  unsigned running = 0;
  Context host;
  void (*entry)(const void*) = nullptr;
  const void* args = nullptr;
  std::string fault;

  // Runs all threads of the block. `order` is that of the turns: 0 by number, 1 backwards, others by a seed.
  void run(unsigned order);
};

inline thread_local Fiber* current = nullptr;

// Gives the block up.
[[noreturn]] inline void fault(const std::string& what) {
  Block* const block = current->block;
  block->fault = what + " (block " + std::to_string(block->index.x) + "," + std::to_string(block->index.y) + "," +
                 std::to_string(block->index.z) + ", thread " + std::to_string(current->number) + ")";
  Context::change(current->context, block->host);
  abort();  // nobody comes back to a block that was given up
}

// Takes this fiber out of the turns. Returns the one whose turn is next, or null if there is none.
inline Fiber* leave() {
  Fiber* const self = current;
  if (self->next == self) return nullptr;
  self->previous->next = self->next;
  self->next->previous = self->previous;
  return self->next;
}

// Lets all that wait take turns again, after `self`.
inline void open(Barrier& barrier, Fiber* self) {
  Fiber* after = self;
  for (Fiber* one = barrier.first; one; one = one->next_waiting) {
    one->previous = after;
    one->next = after->next;
    after->next->previous = one;
    after->next = one;
    after = one;
  }
  barrier = Barrier{};
}

// As open, where nobody takes turns. Returns the first of them.
inline Fiber* revive(Barrier& barrier) {
  Fiber* const first = barrier.first;
  first->next = first->previous = first;
  barrier.first = first->next_waiting;
  open(barrier, first);
  return first;
}

// Takes this fiber out of the turns. Returns the one whose turn is next, if need be one whom the engines let go on, or null.
inline Fiber* next_turn() {
  if (Fiber* const next = leave()) return next;
  Engines* const engines = current->block->engines.get();
  Barrier* const opened = engines ? engines->work() : nullptr;
  return opened ? revive(*opened) : nullptr;
}

// Waits until somebody opens the barrier.
inline void wait(Barrier& barrier) {
  Fiber* const self = current;
  (barrier.last ? barrier.last->next_waiting : barrier.first) = self;
  barrier.last = self;
  self->next_waiting = nullptr;
  Fiber* const next = next_turn();
  if (!next) fault("deadlock: every thread waits");
  if (next == self) return;
  current = next;
  Context::change(self->context, next->context);
}

// Waits until `expected` threads have come.
inline void meet(Barrier& barrier, unsigned expected) {
  if (++barrier.arrived == expected) open(barrier, current);
  else wait(barrier);
}

// Lanes of a warp that exist and are in `mask` meet.
inline void meet_warp(unsigned mask, Operation operation) {
  Fiber* const self = current;
  Block* const block = self->block;
  const unsigned first = self->number - self->lane, all = block->size.x * block->size.y * block->size.z;
  const unsigned lanes = all - first < LANES ? all - first : LANES;
  const unsigned present = lanes == LANES ? ~0u : (1u << lanes) - 1;
  if (!(mask >> self->lane & 1)) fault("a lane takes part that is not in the mask");
  Warp& warp = *self->warp;
  if (warp.barrier.arrived == 0) {
    warp.mask = mask;
    warp.operation = operation;
  } else if (warp.mask != mask) {
    fault("lanes of a warp meet with different masks");
  } else if (warp.operation != operation) {
    fault("lanes of a warp meet in different operations");
  }
  meet(warp.barrier, unsigned(__builtin_popcount(mask & present)));
}

inline void fiber_main() {
  Block* const block = current->block;
  block->entry(block->args);
  Fiber* const self = current;
  block->running--;
  // Who has returned counts as arrived at the block's barrier.
  if (block->running > 0 && block->barrier.arrived == block->running) open(block->barrier, self);
  Fiber* const next = block->running > 0 ? next_turn() : nullptr;
  if (!next && block->running > 0) fault("deadlock: every thread waits for one that has returned");
  current = next;
  Context::change(self->context, next ? next->context : block->host);
  abort();  // a fiber that returned is never run again
}

// Stacks for the fibers of a block, kept from launch to launch. They are not zeroed: only what is used is ever touched.
inline char* stacks(unsigned count) {
  static thread_local std::unique_ptr<char[]> memory;
  static thread_local unsigned held = 0;
  if (held < count) {
    memory.reset(new char[count * STACK_BYTES]);
    held = count;
  }
  return memory.get();
}

inline void Block::run(unsigned order) {
  const unsigned count = size.x * size.y * size.z;
  char* const stack = stacks(count);
  fibers.resize(count);
  warps.assign((count + LANES - 1) / LANES, Warp{});
  barrier = Barrier{};
  engines.reset();
  running = count;
  std::vector<unsigned> turns(count);
  for (unsigned i = 0; i < count; i++) turns[i] = order == 1 ? count - 1 - i : i;
  if (order > 1) {
    uint32_t state = order * 2654435761u + index.x * 97 + index.y * 31 + index.z;
    for (unsigned i = count; i > 1; i--) {
      state = state * 1664525u + 1013904223u;
      std::swap(turns[i - 1], turns[(state >> 8) % i]);
    }
  }
  for (unsigned i = 0; i < count; i++) {
    Fiber& fiber = fibers[i];
    fiber.exchanges = 0;
    fiber.copies.clear();
    fiber.groups.clear();
    fiber.number = i;
    fiber.lane = i % LANES;
    fiber.thread = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    fiber.warp = &warps[i / LANES];
    fiber.block = this;
    fiber.context.prepare(stack + i * STACK_BYTES, fiber_main);
  }
  for (unsigned i = 0; i < count; i++) {
    Fiber &one = fibers[turns[i]], &next = fibers[turns[(i + 1) % count]];
    one.next = &next;
    next.previous = &one;
  }
  current = &fibers[turns[0]];
  Context::change(host, current->context);
  if (fault.empty() && engines) fault = engines->unfinished();
}

}  // namespace emulator
