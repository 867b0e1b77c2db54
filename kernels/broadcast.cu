// y = x stretched to another shape.
// variants: scalar_t=float,double,f16,bf16,u8,i64
#include "broadcast.cuh"
#include "pack.cuh"

// y (dense, n elements) [i] = x[offset of i]
extern "C" __global__ void expand(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, Walk w, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at[1];
    offsets(i, w, at);
    y[i] = x[at[0]];
  }
}

// The same where the innermost axis is whole packs: along it x goes on (step 1), from a multiple of a pack, or stays (step 0). S bytes for
// each element of y; x comes from the caches.
extern "C" __global__ void expand_rows(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, const __grid_constant__ Walk w, int step,
                                       i64 n) {
  FOR_PACKS(i, n, PACK) {
    i64 at[1];
    Packed<scalar_t, PACK> v;
    offsets(i, w, at);
    if (step) {
      v.quads[0] = *(const uint4*)(x + at[0]);
    } else {
      const scalar_t one = x[at[0]];
#pragma unroll
      for (int k = 0; k < PACK; ++k) v.v[k] = one;
    }
    *(uint4*)(y + i) = v.quads[0];
  }
}
