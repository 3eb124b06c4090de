// The contract's own exponential, and what is made of it: kernels/NUMERICS.md, bit for bit.
#pragma once
#include "platform.cuh"

// e^x as expf of Cephes computes it, with fused operations; 0 below -87.3, at most e^88.
__device__ __forceinline__ float exp_exact(float x) {
  const bool vanishes = x < -87.3f;
  const float clamped = x > 88.0f ? 88.0f : vanishes ? 0.0f : x;
  const float n = rintf(clamped * 1.44269504f);
  const float r = fmaf(n, 2.1219444e-4f, fmaf(n, -355.0f / 512.0f, clamped));
  float p = 1.9875691e-4f;
  p = fmaf(p, r, 1.3981999e-3f);
  p = fmaf(p, r, 8.333452e-3f);
  p = fmaf(p, r, 4.1665796e-2f);
  p = fmaf(p, r, 1.6666665e-1f);
  p = fmaf(p, r, 0.5f);
  // A NaN has no exponent; whatever power is made of it, the product stays NaN.
  const float power = __int_as_float((__float2int_rn(n) + 127) << 23);
  // Chosen at the end: lanes do not part over it.
  return vanishes ? 0.0f : (fmaf(p, r * r, r) + 1.0f) * power;
}

// c * tanh(v / c), by tanh(y) = 1 - 2 / (e^(2y) + 1); v where c is 0.
__device__ __forceinline__ float capped(float v, float cap) {
  if (cap == 0.0f) return v;
  return cap * (1.0f + -2.0f / (exp_exact(v / cap * 2.0f) + 1.0f));
}

enum Activation : uint32_t { SILU = 0, GELU_TANH = 1, GELU_ERF = 2, CLAMPED_SWIGLU = 3 };

// `alpha` and `limit` are those of CLAMPED_SWIGLU.
__device__ __forceinline__ float activated(uint32_t kind, float x, float alpha, float limit) {
  if (kind == SILU) return x / (1.0f + exp_exact(-x));
  if (kind == GELU_TANH) return x / (1.0f + exp_exact(fmaf(0.044715f, x * x * x, x) * -1.595769f));
  if (kind == CLAMPED_SWIGLU) {
    x = limit < x ? limit : x;
    return x / (1.0f + exp_exact(x * -alpha));
  }
  const float z = fabsf(x) * 0.70710678f;
  const float t = 1.0f / fmaf(0.3275911f, z, 1.0f);
  float p = 1.0614054f;
  p = fmaf(p, t, -1.453152f);
  p = fmaf(p, t, 1.4214138f);
  p = fmaf(p, t, -0.28449672f);
  p = fmaf(p, t, 0.2548296f);
  const float tail = p * t * exp_exact(-(z * z)) * -0.5f;
  return fmaf(fabsf(x), tail, 0.0f > x ? 0.0f : x);
}
