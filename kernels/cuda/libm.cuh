// musl's exp and log in double precision, as the `libm` crate has them (FreeBSD's e_exp.c and e_log.c, Copyright (C) 1993 and 2004
// Sun Microsystems, Inc.; permission to use, copy, modify, and distribute them is freely granted). Bit for bit: every operation
// rounds by itself, and none is fused.
#pragma once
#include "platform.cuh"

namespace libm {

__device__ __forceinline__ uint64_t bits(double v) { return uint64_t(__double_as_longlong(v)); }
__device__ __forceinline__ double of_bits(uint64_t v) { return __longlong_as_double(int64_t(v)); }

// v * 2^n for n from -2044 to 1024.
__device__ __forceinline__ double scaled(double v, int n) {
  if (n > 1023) {
    v *= of_bits(0x7fe0000000000000);  // 2^1023
    n -= 1023;
  } else if (n < -1022) {
    v *= of_bits(0x0360000000000000);  // 2^-969: not yet subnormal, so that it is rounded once
    n += 969;
  }
  return v * of_bits(uint64_t(1023 + n) << 52);
}

__device__ __forceinline__ double exp(double x) {
  uint32_t high = uint32_t(bits(x) >> 32);
  const bool negative = high >> 31;
  high &= 0x7fffffff;
  if (high >= 0x4086232b) {
    if (x != x) return x;
    if (x > 709.782712893383973096) return x * of_bits(0x7fe0000000000000);
    if (x < -745.13321910194110842) return 0.0;
  }
  int k = 0;
  double hi = x, lo = 0.0;
  if (high > 0x3fd62e42) {
    // Beyond half of ln 2.
    k = high >= 0x3ff0a2b2 ? int(1.44269504088896338700 * x + (negative ? -0.5 : 0.5)) : negative ? -1 : 1;
    hi = x - k * 6.93147180369123816490e-01;
    lo = k * 1.90821492927058770002e-10;
    x = hi - lo;
  } else if (high <= 0x3e300000) {
    return 1.0 + x;
  }
  const double xx = x * x;
  double p = -1.65339022054652515390e-06 + xx * 4.13813679705723846039e-08;
  p = 6.61375632143793436117e-05 + xx * p;
  p = -2.77777777770155933842e-03 + xx * p;
  p = 1.66666666666666019037e-01 + xx * p;
  const double c = x - xx * p;
  const double y = 1.0 + (x * c / (2.0 - c) - lo + hi);
  return k == 0 ? y : scaled(y, k);
}

__device__ __forceinline__ double log(double x) {
  uint64_t all = bits(x);
  uint32_t high = uint32_t(all >> 32);
  int k = 0;
  if (high < 0x00100000 || high >> 31) {
    if (all << 1 == 0) return -1.0 / (x * x);
    if (high >> 31) return (x - x) / (x - x);
    k -= 54;
    x *= 18014398509481984.0;  // 2^54: it was subnormal
    all = bits(x);
    high = uint32_t(all >> 32);
  } else if (high >= 0x7ff00000) {
    return x;
  } else if (high == 0x3ff00000 && all << 32 == 0) {
    return 0.0;
  }
  high += 0x3ff00000 - 0x3fe6a09e;
  k += int(high >> 20) - 0x3ff;
  high = (high & 0x000fffff) + 0x3fe6a09e;
  const double f = of_bits(uint64_t(high) << 32 | (all & 0xffffffff)) - 1.0;
  const double half_square = 0.5 * f * f;
  const double s = f / (2.0 + f);
  const double z = s * s, w = z * z;
  const double t1 = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double t2 = z * (6.666666666666735130e-01 +
                         w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  return s * (half_square + (t2 + t1)) + k * 1.90821492927058770002e-10 - half_square + f + k * 6.93147180369123816490e-01;
}

}  // namespace libm
