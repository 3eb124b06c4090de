// How probable a row of logits holds a token, and which tokens it holds most probable: src/sampling/logprobs.rs on the device.
//
// Method: 32 sums of exponentials, of the ids equal modulo 32, each in order, is the contract. Exponentials in f64 cost most, so all
// of the device computes them; one warp then adds them up, a tile at a time, while nobody else is needed. The rank is a count; the
// most probable are found by radix select (select.cuh) and come in any order: the host sorts them, and takes the logarithm of
// the sum.
//
// Minimum bytes: 4 * cols a question, and 16 * cols for the exponentials between the kernels. About 30 operations in f64 for each.
//
// Sources: exp of musl (libm.cuh); the order is our own.
#include "libm.cuh"
#include "select.cuh"

namespace sampling {

// Exponentials that a block takes in before a warp adds them up.
constexpr unsigned TILE = 2048;

}  // namespace sampling

// The highest logit, the rank, and the most probable tokens. A block of threads for each question.
CUCKOO_ROW_KERNEL(512) cuckoo_logprob_ranks(const __grid_constant__ cuckoo_logprobs a) {
  using namespace sampling;
  CUCKOO_SHARED(Shared, s);
  const cuckoo_question q = at<const cuckoo_question>(a.questions)[blockIdx.x];
  const float* const x = at<const float>(a.logits) + uint64_t(q.row) * a.cols;
  const Most most = highest(x, a.cols, s);
  cuckoo_answer& answer = at<cuckoo_answer>(a.answers)[blockIdx.x];
  if (most.is_none()) {
    if (threadIdx.x == 0) answer = {0.0, 0.0f, 0.0f, 0, most.id};
    return;
  }
  const uint64_t own = rank(x[q.token], q.token);
  uint64_t before = 0;
  each(x, a.cols, [&](float logit, unsigned i) { before += rank(logit, i) < own; });
  before = total(before, s);
  uint32_t found = 0;
  if (q.top > 0) {
    const uint64_t last = first(Field{x, a.cols, most.logit, ~0ull}, q.top, most.own, s);
    if (threadIdx.x == 0) s->count = 0;
    __syncthreads();
    uint32_t* const top = at<uint32_t>(a.top) + uint64_t(q.first) * 2;
    each(x, a.cols, [&](float logit, unsigned i) {
      if (logit == minus_infinity() || rank(logit, i) > last) return;
      const uint32_t place = atomicAdd(&s->count, 1u);
      top[2 * place] = i;
      top[2 * place + 1] = __float_as_uint(logit);
    });
    __syncthreads();
    found = s->count;
  }
  if (threadIdx.x == 0) answer = {0.0, most.logit, x[q.token], uint32_t(before) + 1, found};
}

// exp(x - highest). The second dimension of the grid counts questions.
CUCKOO_KERNEL(256) cuckoo_logprob_exponentials(const __grid_constant__ cuckoo_logprobs a) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.cols) return;
  const float* const x = at<const float>(a.logits) + uint64_t(at<const cuckoo_question>(a.questions)[blockIdx.y].row) * a.cols;
  const double highest = double(at<const cuckoo_answer>(a.answers)[blockIdx.y].highest);
  at<double>(a.exponentials)[uint64_t(blockIdx.y) * a.cols + i] = libm::exp(double(x[i]) - highest);
}

// Their sum. A block of threads for each question.
CUCKOO_KERNEL(256) cuckoo_logprob_sums(const __grid_constant__ cuckoo_logprobs a) {
  using namespace sampling;
  CUCKOO_SHARED(double, tile);
  const double* const x = at<const double>(a.exponentials) + uint64_t(blockIdx.x) * a.cols;
  double sum = 0.0;
  for (unsigned first = 0; first < a.cols; first += TILE) {
    const unsigned count = a.cols - first < TILE ? a.cols - first : TILE;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) tile[i] = x[first + i];
    __syncthreads();
    if (threadIdx.x < WARP)
      for (unsigned i = threadIdx.x; i < count; i += WARP) sum += tile[i];
    __syncthreads();
  }
  if (threadIdx.x >= WARP) return;
#pragma unroll
  for (unsigned apart = WARP / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, apart);
  if (threadIdx.x == 0) at<cuckoo_answer>(a.answers)[blockIdx.x].sum = sum;
}
