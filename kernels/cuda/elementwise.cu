// Operations on each value by itself, and on whole rows by number.
#include "math.cuh"

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

// out = activation(gate) * up where a row of x is [gate | up]
CUCKOO_KERNEL(256) cuckoo_gate(const __grid_constant__ cuckoo_elementwise a) {
  CUCKOO_EACH(a, i);
  const float* const row = at<const float>(a.x) + i / a.cols * 2 * a.cols;
  const float gate = row[i % a.cols];
  float up = row[a.cols + i % a.cols];
  if (a.kind == CLAMPED_SWIGLU) {
    // As f32::clamp: a NaN stays.
    up = up < -a.b ? -a.b : up;
    up = up > a.b ? a.b : up;
    up = up + 1.0f;
  }
  at<float>(a.out)[i] = activated(a.kind, gate, a.a, a.b) * up;
}

// out = activation(out)
CUCKOO_KERNEL(256) cuckoo_activate(const __grid_constant__ cuckoo_elementwise a) {
  CUCKOO_EACH(a, i);
  float* const out = at<float>(a.out) + i;
  *out = activated(a.kind, *out, a.a, a.b);
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
