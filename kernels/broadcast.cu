// y = x stretched to another shape.
// variants: scalar_t=float,double,f16,bf16,u8,i64
#include "broadcast.cuh"

// y (dense, n elements) [i] = x[offset of i]
extern "C" __global__ void expand(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, Walk w, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at[1];
    offsets(i, w, at);
    y[i] = x[at[0]];
  }
}
