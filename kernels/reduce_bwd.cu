// The gradients of max and min (dy goes to one element) and of prod.
// variants: scalar_t=float,double,f16,bf16
#include "reduce.cuh"
#include "broadcast.cuh"

// dx[place of output o's extremum] = dy[o]; dx is zero before
extern "C" __global__ void extremum_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy,
                                        const i64* __restrict__ index, const __grid_constant__ Index kept, int kept_rank,
                                        const __grid_constant__ Index reduced, int reduced_rank, i64 outputs) {
  GRID_STRIDE(o, outputs) dx[place(o, kept, kept_rank) + place(index[o], reduced, reduced_rank)] = dy[o];
}

// dx[i] = dy * the product of all other elements, from p, the product of those that are not 0, and z, how many are 0.
// dy, p and z have one shape, stretched to x's; w has its strides.
extern "C" __global__ void prod_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ x,
                                    const scalar_t* __restrict__ dy, const acc_t* __restrict__ p,
                                    const acc_t* __restrict__ z, Walk w, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at[1];
    offsets(i, w, at);
    acc_t v = load(x + i), zeros = z[at[0]], others = 0;
    if (zeros == 0) others = p[at[0]] / v;
    if (zeros == 1 && v == 0) others = p[at[0]];
    store(dx + i, load(dy + at[0]) * others);
  }
}
