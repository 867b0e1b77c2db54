// The gradients of max and min (dy goes to one element), of prod and of the norm.
// variants: scalar_t=float,double,f16,bf16
#include "reduce.cuh"
#include "broadcast.cuh"

// dx[place of output o's extremum] = dy[o]; dx is zero before
extern "C" __global__ void extremum_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy,
                                        const i64* __restrict__ index, const __grid_constant__ Index kept, int kept_rank,
                                        const __grid_constant__ Index reduced, int reduced_rank, i64 outputs) {
  GRID_STRIDE(o, outputs) dx[place(o, kept, kept_rank) + place(index[o], reduced, reduced_rank)] = dy[o];
}

// dx[o, r] = dy[o] times the product of all x[o, .] but x[o, r]: that of those before it times that of those behind it. No quotient
// of the whole product, which a zero, an infinity or an overflow among the factors would spoil. left (outputs, count) is scratch.
// A block (a power of two threads, at most 256) for each output, a run of neighbouring elements for each thread.
extern "C" __global__ void prod_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                    double* __restrict__ left, const __grid_constant__ Index kept, int kept_rank,
                                    const __grid_constant__ Index reduced, int reduced_rank, i64 outputs, i64 count) {
  __shared__ double runs[256];
  const i64 len = (count + blockDim.x - 1) / blockDim.x;
  const i64 begin = threadIdx.x * len < count ? threadIdx.x * len : count, end = begin + len < count ? begin + len : count;
  for (i64 o = blockIdx.x; o < outputs; o += gridDim.x) {
    const i64 base = place(o, kept, kept_rank);
    double run = 1;
    for (i64 r = begin; r < end; ++r) {
      left[o * count + r] = run;
      run *= (double)load(x + base + place(r, reduced, reduced_rank));
    }
    runs[threadIdx.x] = run;
    __syncthreads();
    double before = 1, behind = 1;
    for (int t = 0; t < (int)threadIdx.x; ++t) before *= runs[t];
    for (int t = (int)blockDim.x - 1; t > (int)threadIdx.x; --t) behind *= runs[t];
    const double g = (double)load(dy + o);
    for (i64 r = end - 1; r >= begin; --r) {
      const i64 at = base + place(r, reduced, reduced_rank);
      const double others = before * left[o * count + r] * behind;
      behind *= (double)load(x + at);
      store(dx + at, (acc_t)(others == 0 ? 0.0 : g * others));
    }
    __syncthreads();  // runs is read before the next output writes it
  }
}

// dx[i] = dy x[i] / y, 0 where the norm y is 0. dy and y have one shape, stretched to x's; w has its strides.
extern "C" __global__ void norm_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                    const double* __restrict__ y, Walk w, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at[1];
    offsets(i, w, at);
    const double norm = y[at[0]];
    store(dx + i, (acc_t)(norm == 0 ? 0.0 : (double)load(dy + at[0]) * ((double)load(x + i) / norm)));
  }
}
