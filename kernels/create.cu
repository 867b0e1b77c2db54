// Constant fill and in-place sum.
// variants: scalar_t=float,double,f16,bf16,u8,i64
#include "common.cuh"

// y[i] = value
extern "C" __global__ void fill(scalar_t* __restrict__ y, double value, i64 n) {
  GRID_STRIDE(i, n) store(y + i, (acc_t)value);
}

// y[i] += x[i]
extern "C" __global__ void accumulate(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, i64 n) {
  GRID_STRIDE(i, n) store(y + i, (acc_t)(load(y + i) + load(x + i)));
}
