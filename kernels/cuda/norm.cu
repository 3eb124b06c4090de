// Norms. Sums are those of 32 lanes, for the columns that are equal modulo 32, folded.
//
// Method. Whole rows: a block of threads for each, which reads it once, 16 bytes a thread, into shared memory. One warp adds up squares in the
// contract's order; then all write, and leave the row as integers for the products that come next. Minimum bytes: 8 a value, 4 a
// weight, 1 or 2 a value for integers. A row by itself waits for memory once and for cols / 32 fmas one after the other.
// FLOPs: 5 a value. Source: recipe K1, RMSNorm (arXiv 1910.07467); the order is our own.
#include "rounding.cuh"

// RMS norm of whole rows, whose columns are in shared memory, with what they are multiplied by at the end.
CUCKOO_KERNEL(256) cuckoo_norm_rows(const __grid_constant__ cuckoo_norm a) {
  CUCKOO_SHARED(float, row);  // [cols + 1]
  const unsigned lane = threadIdx.x % WARP;
  const uint64_t begin = uint64_t(blockIdx.x) * a.cols;
  const float* const x = at<const float>(a.x) + begin;
  // Rows are whole pieces of 16 bytes, or none is.
  const unsigned pieces = a.cols % 4 == 0 ? a.cols / 4 : 0;
  for (unsigned i = threadIdx.x; i < pieces; i += blockDim.x) {
    reinterpret_cast<float4*>(row)[i] = reinterpret_cast<const float4*>(x)[i];
  }
  for (unsigned c = pieces * 4 + threadIdx.x; c < a.cols; c += blockDim.x) row[c] = x[c];
  __syncthreads();
  if (threadIdx.x < WARP) {
    float squares = 0.0f;
#pragma unroll 8
    for (unsigned c = lane; c < a.cols; c += WARP) squares = fmaf(row[c], row[c], squares);
    const float inverse = 1.0f / sqrtf(fold<WARP>(squares) / float(a.cols) + a.epsilon);
    if (lane == 0) row[a.cols] = inverse;
  }
  __syncthreads();
  const float inverse = row[a.cols];
  float* const out = at<float>(a.out) + begin;
  const float* const weight = at<const float>(a.weight);
  // Warps stay whole: the lanes of a block of 32 columns round it together.
  for (unsigned first = threadIdx.x / WARP * WARP; first < pieces; first += blockDim.x) {
    const unsigned i = first + lane;
    float y[4] = {};
    if (i < pieces) {
      const float4 v = reinterpret_cast<const float4*>(row)[i], w = reinterpret_cast<const float4*>(weight)[i];
      y[0] = v.x * inverse * w.x;
      y[1] = v.y * inverse * w.y;
      y[2] = v.z * inverse * w.z;
      y[3] = v.w * inverse * w.w;
      reinterpret_cast<float4*>(out)[i] = make_float4(y[0], y[1], y[2], y[3]);
    }
    if (a.rounded.planes != 0) round_block<4>(a.rounded, (begin + i * 4) / ROUNDED_COLS, y, i < pieces);
  }
  for (unsigned c = pieces * 4 + threadIdx.x; c < a.cols; c += blockDim.x) out[c] = row[c] * inverse * weight[c];
}

// RMS norm of some heads of each row in place, or of rows that shared memory does not hold: a warp for each, which reads up to 512
// columns once.
CUCKOO_KERNEL(256) cuckoo_norm_heads(const __grid_constant__ cuckoo_norm a) {
  constexpr unsigned HELD = 16;
  const unsigned lane = threadIdx.x % WARP;
  const uint64_t number = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (number >= uint64_t(a.rows) * a.heads) return;
  const uint64_t begin = number / a.heads * a.stride + (a.first_head + number % a.heads) * uint64_t(a.cols);
  const float* const x = at<const float>(a.x) + begin;
  float held[HELD];
#pragma unroll
  for (unsigned i = 0; i < HELD; i++) held[i] = i * WARP + lane < a.cols ? x[i * WARP + lane] : 0.0f;
  float squares = 0.0f;
#pragma unroll
  for (unsigned i = 0; i < HELD; i++) {
    if (i * WARP + lane < a.cols) squares = fmaf(held[i], held[i], squares);
  }
  for (unsigned c = HELD * WARP + lane; c < a.cols; c += WARP) squares = fmaf(x[c], x[c], squares);
  const float inverse = 1.0f / sqrtf(fold<WARP>(squares) / float(a.cols) + a.epsilon);
  float* const out = at<float>(a.out) + begin;
  const float* const weight = at<const float>(a.weight);
#pragma unroll
  for (unsigned i = 0; i < HELD; i++) {
    const unsigned c = i * WARP + lane;
    if (c < a.cols) out[c] = held[i] * inverse * weight[c];
  }
  for (unsigned c = HELD * WARP + lane; c < a.cols; c += WARP) out[c] = x[c] * inverse * weight[c];
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
