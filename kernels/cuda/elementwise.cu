// Operations on each value by itself, and on whole rows by number: biases, factors, gates, activations, rows gathered, added up and
// scattered.
//
// Method: a thread for each value, or for four neighbouring ones of a row where the result is left rounded as well (rounding.cuh);
// rows by number have a block of threads each. Minimum bytes: 4 for each value that is read or written. FLOPs: one or two a
// value, some twenty where there is an exponential. Source: our own; gates are those of GLU variants (arXiv 2002.05202).
#include "math.cuh"
#include "rounding.cuh"

// Which value a thread has, and whether there is one.
#define CUCKOO_EACH(a, i)                                                   \
  const uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;       \
  if (i >= uint64_t((a).rows) * (a).cols) return

// out += y of the column
CUCKOO_KERNEL(256) cuckoo_add_bias(const __grid_constant__ cuckoo_elementwise a) {
  CUCKOO_EACH(a, i);
  at<float>(a.out)[i] += at<const float>(a.y)[i % a.cols];
}

// out = fma(a, x, out)
CUCKOO_KERNEL(256) cuckoo_add_scaled(const __grid_constant__ cuckoo_elementwise a) {
  CUCKOO_EACH(a, i);
  float* const out = at<float>(a.out) + i;
  *out = fmaf(a.a, at<const float>(a.x)[i], *out);
}

// out = a * out, then capped by b where `kind` says that there is a cap
CUCKOO_KERNEL(256) cuckoo_scale(const __grid_constant__ cuckoo_elementwise a) {
  CUCKOO_EACH(a, i);
  float* const out = at<float>(a.out) + i;
  *out = capped(a.a * *out, a.kind ? a.b : 0.0f);
}

// Four neighbouring columns of a row, where there are so many.
struct Columns {
  unsigned first, count;

  __device__ __forceinline__ Columns(unsigned cols) : first((blockIdx.y * blockDim.x + threadIdx.x) * 4) {
    count = first >= cols ? 0 : cols - first < 4 ? cols - first : 4;
  }
  // `row` and `cols` are what the columns are of; whole pieces where all rows begin at 16 bytes.
  __device__ __forceinline__ void load(const float* row, bool whole, float (&v)[4]) const {
    if (whole && count == 4) {
      const float4 all = *reinterpret_cast<const float4*>(row + first);
      v[0] = all.x;
      v[1] = all.y;
      v[2] = all.z;
      v[3] = all.w;
      return;
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++) v[i] = i < count ? row[first + i] : 0.0f;
  }
  __device__ __forceinline__ void store(float* row, bool whole, const float (&v)[4]) const {
    if (whole && count == 4) {
      *reinterpret_cast<float4*>(row + first) = make_float4(v[0], v[1], v[2], v[3]);
      return;
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
      if (i < count) row[first + i] = v[i];
    }
  }
};

// What is written, as integers for the product that comes next.
__device__ __forceinline__ void round_columns(const cuckoo_elementwise& a, const Columns& columns, const float (&v)[4]) {
  if (a.rounded.planes == 0) return;
  const uint64_t block = (uint64_t(blockIdx.x) * a.cols + columns.first) / ROUNDED_COLS;
  round_block<4>(a.rounded, block, v, columns.count == 4);
}

// out = activation(gate) * up where a row of x is [gate | up]: blocks of threads by rows and by columns, four of a thread
CUCKOO_KERNEL(256) cuckoo_gate(const __grid_constant__ cuckoo_elementwise a) {
  const Columns columns(a.cols);
  const bool whole = a.cols % 4 == 0;
  const float* const row = at<const float>(a.x) + uint64_t(blockIdx.x) * 2 * a.cols;
  float gate[4], up[4], y[4];
  columns.load(row, whole, gate);
  columns.load(row + a.cols, whole, up);
#pragma unroll
  for (unsigned i = 0; i < 4; i++) {
    if (a.kind == CLAMPED_SWIGLU) {
      // As f32::clamp: a NaN stays.
      up[i] = up[i] < -a.b ? -a.b : up[i];
      up[i] = up[i] > a.b ? a.b : up[i];
      up[i] = up[i] + 1.0f;
    }
    y[i] = activated(a.kind, gate[i], a.a, a.b) * up[i];
  }
  columns.store(at<float>(a.out) + uint64_t(blockIdx.x) * a.cols, whole, y);
  round_columns(a, columns, y);
}

// out = activation(out), likewise
CUCKOO_KERNEL(256) cuckoo_activate(const __grid_constant__ cuckoo_elementwise a) {
  const Columns columns(a.cols);
  const bool whole = a.cols % 4 == 0;
  float* const row = at<float>(a.out) + uint64_t(blockIdx.x) * a.cols;
  float x[4], y[4];
  columns.load(row, whole, x);
#pragma unroll
  for (unsigned i = 0; i < 4; i++) y[i] = activated(a.kind, x[i], a.a, a.b);
  columns.store(row, whole, y);
  round_columns(a, columns, y);
}

// out[i] = x[numbers[i]]: a block of threads for each row
CUCKOO_KERNEL(256) cuckoo_gather(const __grid_constant__ cuckoo_rows a) {
  const float* const x = at<const float>(a.x) + uint64_t(at<const uint32_t>(a.numbers)[blockIdx.x]) * a.cols;
  float* const out = at<float>(a.out) + uint64_t(blockIdx.x) * a.cols;
  for (unsigned c = threadIdx.x; c < a.cols; c += blockDim.x) out[c] = x[c];
}

// out[i] = the mean of rows numbers[i][0] .. numbers[i][1] of x, added up in order
CUCKOO_KERNEL(256) cuckoo_mean_rows(const __grid_constant__ cuckoo_rows a) {
  const uint32_t* const range = at<const uint32_t>(a.numbers) + uint64_t(blockIdx.x) * 2;
  float* const out = at<float>(a.out) + uint64_t(blockIdx.x) * a.cols;
  for (unsigned c = threadIdx.x; c < a.cols; c += blockDim.x) {
    float sum = 0.0f;
    for (unsigned row = range[0]; row < range[1]; row++) sum += at<const float>(a.x)[uint64_t(row) * a.cols + c];
    out[c] = sum / float(range[1] - range[0]);
  }
}

// out[numbers[i]] = fma(weights[i], x[i], out[numbers[i]]): no number stands there twice
CUCKOO_KERNEL(256) cuckoo_scatter_add(const __grid_constant__ cuckoo_rows a) {
  const float* const x = at<const float>(a.x) + uint64_t(blockIdx.x) * a.cols;
  float* const out = at<float>(a.out) + uint64_t(at<const uint32_t>(a.numbers)[blockIdx.x]) * a.cols;
  const float weight = at<const float>(a.weights)[blockIdx.x];
  for (unsigned c = threadIdx.x; c < a.cols; c += blockDim.x) out[c] = fmaf(weight, x[c], out[c]);
}

// tokens[row] = drawn[draw]. A draw that gave no token is a fault that is told later; a step that is begun already reads token 0.
CUCKOO_KERNEL(256) cuckoo_take_drawn_tokens(const __grid_constant__ cuckoo_take_drawn a) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.count) return;
  const uint32_t* const pair = at<const uint32_t>(a.pairs) + 2 * i;
  const uint32_t token = at<const uint32_t>(a.drawn)[pair[1]];
  at<uint32_t>(a.tokens)[pair[0]] = token < a.vocabulary ? token : 0;
}
