// A token for each row of logits: src/sampling.rs on the device, and the same tokens. A block of threads for each row.
//
// Method: changes to logits are lists that are applied to a copy of the row, one kind after the other. What top-k and top-p leave is
// a prefix of the tokens in their order, found by radix select over whole numbers (select.cuh; no sort); min-p and XTC are
// comparisons. The race of the noise is run in f32 with a margin for its rounding, and who might have won runs again in f64: a
// few logarithms in f64 a row, which consumer cards are slow at.
//
// Minimum bytes: 4 * cols a row (8 * cols more where its request changes it); operations: 10 rounds of Philox for four tokens that
// may win.
//
// Sources: Philox (Salmon et al., SC'11), Gumbel noise as in src/sampling.rs; the two races are our own.
#include "libm.cuh"
#include "select.cuh"

namespace sampling {

// No noise is above 33 ln 2 = 22.87.., none below -ln(33 ln 2) = -3.13..: who is so far behind the best has lost.
constexpr float FAR = -64.0f;
// More than the race in f32 may be wrong by, where scores are not large themselves.
constexpr float SLACK = 1.0f / 4096;
// Of tokens that one output of the generator is for.
constexpr unsigned GROUP = 4;

struct Words {
  uint32_t of[GROUP];
};

__device__ __forceinline__ Words philox(const uint32_t* seed, const uint32_t* position, uint32_t group) {
  uint32_t key[2] = {seed[0], seed[1]};
  uint32_t counter[4] = {position[0], position[1], group, 0};
#pragma unroll
  for (unsigned round = 0; round < 10; round++) {
    const uint32_t a = 0xD2511F53u, b = 0xCD9E8D57u;
    const uint32_t low_a = a * counter[0], high_a = __umulhi(a, counter[0]);
    const uint32_t low_b = b * counter[2], high_b = __umulhi(b, counter[2]);
    counter[0] = high_b ^ counter[1] ^ key[0];
    counter[1] = low_b;
    counter[2] = high_a ^ counter[3] ^ key[1];
    counter[3] = low_a;
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return {{counter[0], counter[1], counter[2], counter[3]}};
}

// The noise, as the contract has it.
__device__ __forceinline__ double gumbel(uint32_t word) {
  return -libm::log(-libm::log((double(word) + 0.5) / 4294967296.0));
}

// The same to within a millionth, from whichever end is nearer.
__device__ __forceinline__ float gumbel_near(uint32_t word) {
  constexpr float UNIT = 1.0f / 4294967296.0f;
  const float minus_log =
      word >> 31 ? -log1pf((float(~word) + 0.5f) * -UNIT) : -logf((float(word) + 0.5f) * UNIT);
  return -logf(minus_log);
}

// e^x for x <= 0, 0 below -80: nucleus.rs, without fused operations.
__device__ __forceinline__ float exp_plain(float x) {
  const float round = 12582912.0f;
  const float clamped = x > -80.0f ? x : -80.0f;
  const float rounded = clamped * 1.44269504f + round;
  const float n = rounded - round;
  const float r = (clamped - n * (355.0f / 512.0f)) + n * 2.1219444e-4f;
  const float p =
      ((((1.9875691e-4f * r + 1.3981999e-3f) * r + 8.333452e-3f) * r + 4.1665796e-2f) * r + 1.6666665e-1f) * r;
  const float sum = ((p + 0.5f) * r * r + r) + 1.0f;
  const float power = __uint_as_float((__float_as_uint(rounded) - __float_as_uint(round) + 127) << 23);
  return x < -80.0f ? 0.0f : sum * power;
}

// Sums of so many scaled numbers are exact.
__device__ __forceinline__ uint64_t whole(float v) {
  return uint64_t(__double_as_longlong(double(v) + 4096.0)) - uint64_t(__double_as_longlong(4096.0));
}

// A part of a sum of weights, rounded up.
__device__ __forceinline__ uint64_t share(double part, uint64_t sum) { return uint64_t(ceil(part * double(sum))); }

// Who is still in the running, and how they are weighed.
struct Running : Field {
  float sharpness;
  float least;          // how far from the highest a logit may be
  uint64_t top_weight;  // from it on all are out,
  uint64_t top_last;    // but the one of this rank

  __device__ __forceinline__ float below(float logit) const { return (logit - most) * sharpness; }
  __device__ __forceinline__ uint64_t weight(float logit) const {
    const float x = below(logit);
    // What is less rounds to nothing.
    return x > -29.0f ? whole(exp_plain(x)) : 0;
  }
  // Before XTC.
  __device__ __forceinline__ bool holds(float logit, unsigned id) const {
    return has(logit, id) && logit - most >= least;
  }
  __device__ __forceinline__ bool runs(float logit, unsigned id) const {
    if (!holds(logit, id)) return false;
    return top_weight == ~0ull || weight(logit) < top_weight || rank(logit, id) == top_last;
  }
};

__device__ __forceinline__ void exclude_top_choices(Running& f, double part, Shared* s) {
  uint64_t sum = 0;
  each(f.x, f.cols, [&](float logit, unsigned i) { sum += f.holds(logit, i) ? f.weight(logit) : 0; });
  const uint64_t goal = share(part, total(sum, s));
  // One more than the rank, so that 0 is nobody's.
  uint64_t last = 0;
  each(f.x, f.cols, [&](float logit, unsigned i) {
    const uint64_t r = f.holds(logit, i) && f.weight(logit) >= goal ? rank(logit, i) + 1 : 0;
    last = r > last ? r : last;
  });
  last = largest(last, s);
  if (last == 0) return;
  f.top_weight = goal;
  f.top_last = last - 1;
}

// One thread's part of the race: who has the highest of logit / temperature + noise, the lowest id among equals. A thread has
// whole groups of tokens.
struct Race {
  const Running& field;
  const cuckoo_draw& draw;
  float reference;  // a logit that none in the race is above, and somebody has
  float slack;      // what scores in f32 may be wrong by

  __device__ __forceinline__ unsigned groups() const { return (field.cols + GROUP - 1) / GROUP; }
  // logit / temperature below the reference's, or minus infinity. By halves, which do not overflow.
  __device__ __forceinline__ float behind(float logit, unsigned id) const {
    if (!field.runs(logit, id)) return minus_infinity();
    return (0.5f * logit - 0.5f * reference) * draw.sharpness * 2.0f;
  }

  // In f32: the highest score, who has it, and the next one.
  __device__ __forceinline__ void heat(float* best, float* second, unsigned* leader) const {
    const bool aligned = is_aligned(field.x);
    for (unsigned group = threadIdx.x; group < groups(); group += blockDim.x) {
      const Four logits = four(field.x, group * GROUP, field.cols, aligned);
      float by[GROUP], nearest = minus_infinity();
#pragma unroll
      for (unsigned i = 0; i < GROUP; i++) nearest = fmaxf(nearest, by[i] = behind(logits.of[i], group * GROUP + i));
      if (nearest < FAR || nearest + 23.0f < *best - slack) continue;
      const Words words = philox(draw.seed, draw.position, group);
#pragma unroll
      for (unsigned i = 0; i < GROUP; i++) {
        // The noise of a word is below (leading zeros of its complement + 1) ln 2.
        const float bound = float(__clz(int(~words.of[i])) + 1) * 0.69314724f;
        if (by[i] < FAR || by[i] + bound < *best - slack) continue;
        const float score = by[i] + gumbel_near(words.of[i]);
        *second = fmaxf(*second, fminf(score, *best));
        if (score > *best) *leader = group * GROUP + i;
        *best = fmaxf(*best, score);
      }
    }
  }

  // In f64, of `leader`, or of all where there is none: the highest score, as an integer in the same order, and who has it.
  __device__ __forceinline__ void final(unsigned leader, uint64_t* best, unsigned* winner) const {
    const bool one = leader < field.cols;
#pragma unroll 1
    for (unsigned group = one ? leader / GROUP : threadIdx.x; group < groups(); group += one ? groups() : blockDim.x) {
      const Words words = philox(draw.seed, draw.position, group);
#pragma unroll 1
      for (unsigned i = 0; i < GROUP; i++) {
        const unsigned id = group * GROUP + i;
        if (id >= field.cols || (one && id != leader) || !(behind(field.x[id], id) >= FAR)) continue;
        const uint32_t word = i == 0 ? words.of[0] : i == 1 ? words.of[1] : i == 2 ? words.of[2] : words.of[3];
        // Adding 0 makes both zeros one.
        const double score = double(field.x[id]) / draw.temperature + gumbel(word) + 0.0;
        const uint64_t bits = uint64_t(__double_as_longlong(score)), order = bits >> 63 ? ~bits : bits | 1ull << 63;
        if (order > *best || (order == *best && id < *winner)) {
          *best = order;
          *winner = id;
        }
      }
    }
  }
};

// All threads' race.
__device__ __forceinline__ uint32_t race(const Running& field, const cuckoo_draw& draw, float reference, Shared* s) {
  // Scores in f64 are rounded by so much of their size; where f32 cannot hold the sharpness, f32 says nothing.
  const float size = fabsf(reference) * draw.sharpness;
  const float slack = draw.temperature < 2.9387359e-39 ? infinity() : SLACK + size * 8.8817842e-16f;
  const Race race{field, draw, reference, slack};
  float best = minus_infinity(), second = minus_infinity();
  unsigned leader = ~0u;
  race.heat(&best, &second, &leader);
  const float to_beat = of_ordered(uint32_t(largest(ordered(best), s))) - slack;
  uint64_t score = 0;
  unsigned winner = ~0u;
  // Whose second might have won runs again with all.
  if (best >= to_beat) race.final(second >= to_beat ? ~0u : leader, &score, &winner);
  const uint64_t highest = largest(score, s);
  return ~uint32_t(largest(score == highest ? ~winner : 0, s));
}

// Sets the logits of these tokens to minus infinity, unless no other of the `live` could be drawn. How many are left.
__device__ __forceinline__ uint64_t forbid(float* row, const uint32_t* tokens, unsigned count, uint64_t live, Shared* s) {
  uint64_t mine = 0;
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) mine += row[tokens[i]] != minus_infinity();
  const uint64_t gone = total(mine, s);
  if (gone == live) return live;
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) row[tokens[i]] = minus_infinity();
  __syncthreads();
  return live - gone;
}

__device__ __forceinline__ float penalized(float logit, uint32_t count, const cuckoo_changes& c) {
  float changed = logit > 0.0f ? logit / c.repetition : logit * c.repetition;
  if (fabsf(logit) < infinity()) {
    // As f32::clamp: a NaN stays.
    changed = changed < -3.40282347e38f ? -3.40282347e38f : changed;
    changed = changed > 3.40282347e38f ? 3.40282347e38f : changed;
  }
  return count > 0 ? changed - (c.presence + c.frequency * float(count)) : changed;
}

}  // namespace sampling

CUCKOO_ROW_KERNEL(512) cuckoo_adjust_logits(const __grid_constant__ cuckoo_adjust a) {
  using namespace sampling;
  CUCKOO_SHARED(Shared, s);
  const cuckoo_changes& c = at<const cuckoo_changes>(a.requests)[blockIdx.x];
  const uint32_t* const lists = at<const uint32_t>(a.lists);
  const float* const x = at<const float>(a.logits) + uint64_t(c.row) * a.cols;
  float* const row = at<float>(a.out) + uint64_t(blockIdx.x) * a.cols;
  const uint32_t* const mask = lists + c.mask.first;
  const auto masked = [&](unsigned id) {
    const bool allowed = !c.masked || (id / 32 < c.mask.count && mask[id / 32] >> id % 32 & 1);
    return allowed ? x[id] : minus_infinity();
  };
  const uint32_t* const allowed = lists + c.allowed.first;
  uint64_t any = 0;
  for (unsigned i = threadIdx.x; i < c.allowed.count; i += blockDim.x) any += masked(allowed[i]) != minus_infinity();
  const bool only = total(any, s) > 0;
  for (unsigned i = threadIdx.x; i < a.cols; i += blockDim.x) row[i] = only ? minus_infinity() : masked(i);
  __syncthreads();
  if (only) {
    for (unsigned i = threadIdx.x; i < c.allowed.count; i += blockDim.x) row[allowed[i]] = masked(allowed[i]);
    __syncthreads();
  }
  const uint32_t* const biases = lists + c.biases.first;
  for (unsigned i = threadIdx.x; i < c.biases.count; i += blockDim.x) {
    const uint32_t token = biases[2 * i];
    if (i > 0 && biases[2 * i - 2] == token) continue;
    for (unsigned j = i; j < c.biases.count && biases[2 * j] == token; j++) row[token] += __uint_as_float(biases[2 * j + 1]);
  }
  __syncthreads();
  const uint32_t* const seen = lists + c.seen.first;
  for (unsigned i = threadIdx.x; i < c.seen.count; i += blockDim.x)
    row[seen[2 * i]] = penalized(row[seen[2 * i]], seen[2 * i + 1], c);
  __syncthreads();
  const uint32_t* const repeated = lists + c.repeated.first;
  for (unsigned i = threadIdx.x; i < c.repeated.count; i += blockDim.x)
    row[repeated[2 * i]] -= __uint_as_float(repeated[2 * i + 1]);
  __syncthreads();
  if (c.bad.count + c.forbidden.count == 0) return;
  uint64_t mine = 0;
  for (unsigned i = threadIdx.x; i < a.cols; i += blockDim.x) mine += row[i] != minus_infinity();
  uint64_t live = total(mine, s);
  live = forbid(row, lists + c.bad.first, c.bad.count, live, s);
  forbid(row, lists + c.forbidden.first, c.forbidden.count, live, s);
}

CUCKOO_ROW_KERNEL(512) cuckoo_draw_tokens(const __grid_constant__ cuckoo_sample a) {
  using namespace sampling;
  CUCKOO_SHARED(Shared, s);
  const cuckoo_draw& d = at<const cuckoo_draw>(a.draws)[blockIdx.x];
  const float* const x = at<const float>(d.logits);
  const Most most = highest(x, a.cols, s);
  uint32_t token = most.id;
  // A fraction above 1 leaves the most probable alone.
  if (!most.is_none() && d.temperature > 0.0 && d.least <= 0.0f) {
    Running field{{x, a.cols, most.logit, ~0ull}, d.sharpness, minus_infinity(), ~0ull, 0};
    if (d.top_k > 0) field.last = first(field, d.top_k, most.own, s);
    if (d.top_p < 1.0) {
      const auto goal_of = [&](uint64_t sum) {
        const uint64_t goal = share(d.top_p, sum);
        return goal > 0 ? goal : 1;
      };
      const auto is_near = [&](float logit) { return field.below(logit) >= d.near; };
      field.last = prefix(field, is_near, goal_of, [&](float logit) { return field.weight(logit); }, s);
    }
    field.least = d.least;
    if (d.xtc >= 0.0) exclude_top_choices(field, d.xtc, s);
    const float reference = field.top_weight == ~0ull ? most.logit : of_ordered(~uint32_t(field.top_last >> 32));
    token = race(field, d, reference, s);
  }
  if (threadIdx.x == 0) at<uint32_t>(a.tokens)[d.to] = token;
}
