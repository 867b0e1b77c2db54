// y = cond != 0 ? a : b with broadcasting. -Dcond_t is the condition's dtype; the others are only copied.
// variants: scalar_t=float,double,f16,bf16,u8,i64; cond_t=float,i64
// variants: scalar_t=float,i64; cond_t=double,f16,bf16,u8
#include "broadcast.cuh"

// y (dense); w has the strides of cond, a and b
extern "C" __global__ void where_fwd(scalar_t* __restrict__ y, const cond_t* __restrict__ cond,
                                     const scalar_t* __restrict__ a, const scalar_t* __restrict__ b, Walk w, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at[3];
    offsets(i, w, at);
    y[i] = load(cond + at[0]) != 0 ? a[at[1]] : b[at[2]];
  }
}

// g (dense, the output's shape) = dy where cond chose a (side 0) or b (side 1), else 0; w has the strides of cond and dy
extern "C" __global__ void where_bwd(scalar_t* __restrict__ g, const cond_t* __restrict__ cond,
                                     const scalar_t* __restrict__ dy, Walk w, int side, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at[2];
    offsets(i, w, at);
    bool chosen = (load(cond + at[0]) != 0) == (side == 0);
    store(g + i, chosen ? load(dy + at[1]) : (acc_t)0);
  }
}
