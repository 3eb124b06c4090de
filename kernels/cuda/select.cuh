// What sampling and log-probabilities share: values of a whole block joined, and the first tokens of a row by their order.
#pragma once
#include "platform.cuh"

// Of blocks that may have a multiprocessor for themselves: there are as many as rows, not more.
#define CUCKOO_ROW_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)

namespace sampling {

// Bins of a digit of ranks, or of distances from the highest logit.
constexpr unsigned BINS = 2048;
// Tokens of a border's bin that are looked at without the others.
constexpr unsigned LISTED = 2048;

// What the threads of a block share.
struct Shared {
  uint64_t bins[BINS];
  uint64_t list[LISTED];  // ranks
  uint64_t slots[WARP];   // one value of each warp
  uint64_t left;          // of a goal, in the border's bin
  uint32_t border;        // the bin
  uint32_t count;
};
static_assert(sizeof(Shared) == 2 * 2048 * 8 + 32 * 8 + 16, "src/cuda/sampling.rs asks for so much");

// Joins one value of each thread; all get the result. `join` has no order, and joining `none` changes nothing.
template <class T, class Join>
__device__ __forceinline__ T joined(T v, T none, Join join, Shared* s) {
  const unsigned lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
#pragma unroll
  for (unsigned apart = WARP / 2; apart > 0; apart /= 2) v = join(v, __shfl_xor_sync(ALL_LANES, v, apart));
  if (lane == 0) s->slots[threadIdx.x / WARP] = v;
  __syncthreads();
  v = lane < warps ? T(s->slots[lane]) : none;
#pragma unroll
  for (unsigned apart = WARP / 2; apart > 0; apart /= 2) v = join(v, __shfl_xor_sync(ALL_LANES, v, apart));
  // The slots may be used again.
  __syncthreads();
  return v;
}

__device__ __forceinline__ uint64_t total(uint64_t v, Shared* s) {
  return joined<uint64_t>(v, 0, [](uint64_t a, uint64_t b) { return a + b; }, s);
}
__device__ __forceinline__ uint64_t largest(uint64_t v, Shared* s) {
  return joined<uint64_t>(v, 0, [](uint64_t a, uint64_t b) { return a > b ? a : b; }, s);
}

// As integers in the order of f32::total_cmp.
__device__ __forceinline__ uint32_t ordered(float v) {
  const uint32_t bits = __float_as_uint(v);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_ordered(uint32_t v) { return __uint_as_float(v >> 31 ? v & 0x7fffffffu : ~v); }

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// Four logits from `first` on; minus infinity, which has no part in anything, where a row of `cols` ends. Where rows are aligned
// they are read at once (by __ldg: what no thread writes meanwhile).
struct Four {
  float of[4];
};
__device__ __forceinline__ bool is_aligned(const float* x) { return (reinterpret_cast<uintptr_t>(x) & 15) == 0; }
__device__ __forceinline__ Four four(const float* x, unsigned first, unsigned cols, bool aligned) {
  Four v;
  if (aligned && cols >= 4 && first <= cols - 4) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(x + first));
    v.of[0] = __uint_as_float(words.x);
    v.of[1] = __uint_as_float(words.y);
    v.of[2] = __uint_as_float(words.z);
    v.of[3] = __uint_as_float(words.w);
    return v;
  }
#pragma unroll
  for (unsigned i = 0; i < 4; i++) v.of[i] = first < cols && i < cols - first ? x[first + i] : minus_infinity();
  return v;
}

// Calls `f(logit, id)` for all of a row, and for ids beyond its end with minus infinity. A thread reads 16 logits before it looks at
// them: one block is to keep a multiprocessor's share of the memory busy.
template <class F>
__device__ __forceinline__ void each(const float* x, unsigned cols, F f) {
  constexpr unsigned AHEAD = 4;
  const bool aligned = is_aligned(x);
  for (unsigned begin = 4 * threadIdx.x; begin < cols; begin += AHEAD * 4 * blockDim.x) {
    Four v[AHEAD];
#pragma unroll
    for (unsigned j = 0; j < AHEAD; j++) v[j] = four(x, begin + j * 4 * blockDim.x, cols, aligned);
#pragma unroll
    for (unsigned j = 0; j < AHEAD; j++)
#pragma unroll
      for (unsigned i = 0; i < 4; i++) f(v[j].of[i], begin + j * 4 * blockDim.x + i);
  }
}

// Where a token stands among all: higher logits first, lower ids first among equals. No two have the same rank.
__device__ __forceinline__ uint64_t rank(float logit, unsigned id) { return uint64_t(~ordered(logit)) << 32 | id; }

// The highest logit and the lowest id that has it, or why there is none.
struct Most {
  float logit;
  uint32_t id;  // or a number of cuckoo_no_token
  float own;    // the highest that this thread has seen
  __device__ bool is_none() const { return id >= CUCKOO_NOTHING_ALLOWED; }
};

__device__ __forceinline__ Most highest(const float* x, unsigned cols, Shared* s) {
  uint64_t most = 0;
  each(x, cols, [&](float logit, unsigned i) {
    // Adding 0 makes both zeros one; NaN and infinity are above all.
    const uint64_t v = logit < infinity() ? uint64_t(ordered(logit + 0.0f)) << 32 | ~i : ~0ull;
    most = v > most ? v : most;
  });
  const float own = most ? of_ordered(uint32_t(most >> 32)) : minus_infinity();
  most = largest(most, s);
  if (most == ~0ull) return {0.0f, CUCKOO_BROKEN, own};
  const float logit = of_ordered(uint32_t(most >> 32));
  return {logit, most == 0 || logit == minus_infinity() ? CUCKOO_NOTHING_ALLOWED : ~uint32_t(most), own};
}

// Adds to a sum that other threads add to. Two additions of 32 bits, since one of 64 is a loop on a GPU.
__device__ __forceinline__ void add(uint64_t* to, uint64_t v) {
  uint32_t* const halves = reinterpret_cast<uint32_t*>(to);
  const uint32_t low = uint32_t(v), before = atomicAdd(halves, low);
  const uint32_t high = uint32_t(v >> 32) + (before + low < low);
  if (high) atomicAdd(halves + 1, high);
}

// Finds the bin in which sums of bins reach a goal, and what is left of the goal there; BINS if all of them do not. `goal_of` makes
// the goal of the sum of all. One warp.
template <class Goal>
__device__ __forceinline__ void find_border(Goal goal_of, Shared* s) {
  constexpr unsigned EACH = BINS / WARP;
  const unsigned lane = threadIdx.x;
  uint64_t own = 0;
  // Lanes begin at different places, that is in different banks.
  for (unsigned i = 0; i < EACH; i++) own += s->bins[lane * EACH + (i + lane) % EACH];
  uint64_t sum = own;
#pragma unroll
  for (unsigned by = 1; by < WARP; by *= 2) {
    const uint64_t before = __shfl_up_sync(ALL_LANES, sum, by);
    if (lane >= by) sum += before;
  }
  const uint64_t goal = goal_of(__shfl_sync(ALL_LANES, sum, WARP - 1));
  if (lane == WARP - 1 && sum < goal) s->border = BINS;
  uint64_t before = sum - own;
  if (before < goal && goal <= sum) {
    unsigned bin = lane * EACH;
    while (before + s->bins[bin] < goal) before += s->bins[bin++];
    s->border = bin;
    s->left = goal - before;
  }
}

// Where sums of bins reach a goal.
struct Border {
  unsigned bin;   // BINS if they do not
  uint64_t mass;  // what it holds
  uint64_t left;  // of the goal
};

// Clears the bins, calls `fill`, and finds the border. All threads may use the bins again.
template <class Fill, class Goal>
__device__ __forceinline__ Border border(Fill fill, Goal goal_of, Shared* s) {
  for (unsigned i = threadIdx.x; i < BINS; i += blockDim.x) s->bins[i] = 0;
  __syncthreads();
  fill();
  __syncthreads();
  if (threadIdx.x < WARP) find_border(goal_of, s);
  __syncthreads();
  const unsigned bin = s->border;
  const Border found{bin, bin < BINS ? s->bins[bin] : 0, s->left};
  __syncthreads();
  return found;
}

// Tokens of a row, the highest logit of which is `most`, that are not after the rank `last` and not forbidden.
struct Field {
  const float* x;
  unsigned cols;
  float most;
  uint64_t last;

  __device__ __forceinline__ bool has(float logit, unsigned id) const {
    return logit != minus_infinity() && rank(logit, id) <= last;
  }
  // Which of the bins a logit is in by its distance from the highest: in the order of ranks, and few in each.
  __device__ __forceinline__ unsigned distance(float logit) const {
    return unsigned(fminf((most - logit) * 32.0f, float(BINS - 1)));
  }
};

// The last rank of the shortest prefix of tokens, by rank, whose weights reach the goal that `goal_of` makes of the sum of all; that
// of the field if they do not. Radix select: the border is looked for in bins of distance, then a digit of its rank after the
// other among those of one bin. `weigh` gives whole numbers. `is_near` is true of all tokens up to the border, and of few others.
template <class Near, class Goal, class Weigh>
__device__ uint64_t prefix(const Field& f, Near is_near, Goal goal_of, Weigh weigh, Shared* s) {
  uint64_t rest = 0;
  const auto by_distance = [&] {
    each(f.x, f.cols, [&](float logit, unsigned i) {
      const uint64_t weight = f.has(logit, i) ? weigh(logit) : 0;
      if (!weight) return;
      if (is_near(logit)) add(&s->bins[f.distance(logit)], weight);
      else rest += weight;
    });
    rest = total(rest, s);
  };
  if (threadIdx.x == 0) s->count = 0;
  Border at = border(by_distance, [&](uint64_t sum) { return goal_of(sum + rest); }, s);
  if (at.bin == BINS) return f.last;
  const unsigned bin = at.bin;
  // Of all that are in this bin, or of as many as there is room for, in any order.
  each(f.x, f.cols, [&](float logit, unsigned i) {
    if (!f.has(logit, i) || f.distance(logit) != bin) return;
    const uint32_t place = atomicAdd(&s->count, 1u);
    if (place < LISTED) s->list[place] = rank(logit, i);
  });
  __syncthreads();
  const bool listed = s->count <= LISTED;
  const unsigned count = listed ? s->count : f.cols;
  uint64_t low = 0, high = ~0ull;  // what the border's rank may be
#pragma unroll 1
  for (unsigned level = 0; level < 5; level++) {
    // 32 bits of a logit, then 22 of an id: the ten bits above those are zeros.
    const unsigned shift = level == 0 ? 53 : level == 1 ? 42 : level == 2 ? 32 : level == 3 ? 11 : 0;
    const unsigned mask = level == 2 ? 1023 : 2047;
    const auto by_digit = [&] {
      for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        const uint64_t r = listed ? s->list[i] : rank(f.x[i], i);
        const float logit = of_ordered(~uint32_t(r >> 32));
        if (!listed && (!f.has(logit, i) || f.distance(logit) != bin)) continue;
        if (r >= low && r <= high && is_near(logit)) add(&s->bins[unsigned(r >> shift) & mask], weigh(logit));
      }
    };
    const uint64_t goal = at.left;
    at = border(by_digit, [&](uint64_t) { return goal; }, s);
    low |= uint64_t(at.bin) << shift;
    high = low | ((1ull << shift) - 1);
    // From here on all have the same logit. If even all but one of them would not do, it is all.
    if (level >= 2 && at.left > at.mass - weigh(of_ordered(~uint32_t(low >> 32)))) return high < f.last ? high : f.last;
  }
  return low;
}

// The last rank of the first `k` tokens. `own` is the highest logit that this thread has seen: where there are as many threads, the
// k-th highest of those has no fewer than k tokens before it.
__device__ __forceinline__ uint64_t first(const Field& f, uint64_t k, float own, Shared* s) {
  unsigned reach = BINS - 1;
  if (k <= blockDim.x) {
    const auto fill = [&] {
      if (own != minus_infinity()) add(&s->bins[f.distance(own)], 1);
    };
    const unsigned bin = border(fill, [=](uint64_t) { return k; }, s).bin;
    reach = bin < BINS ? bin : BINS - 1;
  }
  const auto is_near = [&](float logit) { return f.distance(logit) <= reach; };
  return prefix(f, is_near, [=](uint64_t) { return k; }, [](float) { return uint64_t(1); }, s);
}

}  // namespace sampling
