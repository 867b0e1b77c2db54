// Division by a number that the host knows: n / d = n mul >> shift for n < 2^31. The `FastDivmod` of src/gemm/fast_divmod.rs.
#pragma once

struct Div {
  unsigned mul;
  int shift;
  __device__ __forceinline__ int of(int n) const { return (int)((unsigned long long)(unsigned)n * mul >> shift); }
};
