// Norms: a warp for each, a lane for the columns that are equal modulo 32.
#include "platform.cuh"


// RMS norm (arXiv 1910.07467) of whole rows, or of some heads of each row in place.
CUCKOO_KERNEL(256) cuckoo_norm_rows(const __grid_constant__ cuckoo_norm a) {
  const unsigned lane = threadIdx.x % WARP;
  const uint64_t number = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (number >= uint64_t(a.rows) * a.heads) return;
  const uint64_t begin = number / a.heads * a.stride + (a.first_head + number % a.heads) * uint64_t(a.cols);
  const float* const x = at<const float>(a.x) + begin;
  float squares = 0.0f;
  for (unsigned c = lane; c < a.cols; c += WARP) squares = fmaf(x[c], x[c], squares);
  const float inverse = 1.0f / sqrtf(fold<WARP>(squares) / float(a.cols) + a.epsilon);
  float* const out = at<float>(a.out) + begin;
  const float* const weight = at<const float>(a.weight);
  for (unsigned c = lane; c < a.cols; c += WARP) out[c] = x[c] * inverse * weight[c];
}

// Every row by its length, or by 1e-12 where that is more, in place.
CUCKOO_KERNEL(256) cuckoo_normalize_rows(const __grid_constant__ cuckoo_norm a) {
  const unsigned lane = threadIdx.x % WARP;
  const uint64_t row = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (row >= a.rows) return;
  float* const x = at<float>(a.out) + row * a.cols;
  float squares = 0.0f;
  for (unsigned c = lane; c < a.cols; c += WARP) squares = fmaf(x[c], x[c], squares);
  const float inverse = 1.0f / fmaxf(sqrtf(fold<WARP>(squares)), 1e-12f);
  for (unsigned c = lane; c < a.cols; c += WARP) x[c] *= inverse;
}

// Layer norm (arXiv 1607.06450).
CUCKOO_KERNEL(256) cuckoo_layer_norm_rows(const __grid_constant__ cuckoo_layer_norm a) {
  const unsigned lane = threadIdx.x % WARP;
  const uint64_t row = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (row >= a.rows) return;
  const float* const x = at<const float>(a.x) + row * a.cols;
  float sum = 0.0f;
  for (unsigned c = lane; c < a.cols; c += WARP) sum += x[c];
  const float mean = fold<WARP>(sum) / float(a.cols);
  float squares = 0.0f;
  for (unsigned c = lane; c < a.cols; c += WARP) {
    const float v = x[c] - mean;
    squares = fmaf(v, v, squares);
  }
  const float inverse = 1.0f / sqrtf(fold<WARP>(squares) / float(a.cols) + a.epsilon);
  float* const out = at<float>(a.out) + row * a.cols;
  const float *const weight = at<const float>(a.weight), *const bias = at<const float>(a.bias);
  for (unsigned c = lane; c < a.cols; c += WARP) out[c] = fmaf((x[c] - mean) * inverse, weight[c], bias[c]);
}
