// The largest (or smallest) element over axes and its place. Jobs, slices and offsets as in reduce.cu.
// The first of equal elements wins; NaN beats all others. Either output may be null; xi, if there, has the places of
// the elements of x (in a second pass), else the place is r itself.
// variants: scalar_t=float,double,f16,bf16,u8,i64
#include "reduce.cuh"

// True when (a, i) comes before (b, j).
__device__ __forceinline__ bool beats(acc_t a, i64 i, acc_t b, i64 j, int largest) {
  bool nan_a = a != a, nan_b = b != b;
  if (nan_a || nan_b) return nan_a && (!nan_b || i < j);
  return (largest ? a > b : a < b) || (a == b && i < j);
}

extern "C" __global__ void arg_columns(scalar_t* __restrict__ y, i64* __restrict__ index, const scalar_t* __restrict__ x,
                                       const i64* __restrict__ xi, int largest, const __grid_constant__ Index kept,
                                       int kept_rank, const __grid_constant__ Index reduced, int reduced_rank, i64 outputs,
                                       i64 count, i64 len, i64 jobs) {
  GRID_STRIDE(job, jobs) {
    i64 slice = job / outputs, o = job - slice * outputs;
    i64 first = slice * len, last = first + len < count ? first + len : count;
    i64 base = place(o, kept, kept_rank);
    acc_t best = 0;
    i64 where = -1;  // nothing yet
    for (i64 r = first; r < last; ++r) {
      i64 at = base + place(r, reduced, reduced_rank), i = xi ? xi[at] : r;
      acc_t v = load(x + at);
      if (where < 0 || beats(v, i, best, where, largest)) best = v, where = i;
    }
    if (y) store(y + job, best);
    if (index) index[job] = where;
  }
}

extern "C" __global__ void arg_rows(scalar_t* __restrict__ y, i64* __restrict__ index, const scalar_t* __restrict__ x,
                                    const i64* __restrict__ xi, int largest, const __grid_constant__ Index kept, int kept_rank,
                                    const __grid_constant__ Index reduced, int reduced_rank, i64 outputs, i64 count, i64 len,
                                    i64 jobs) {
  __shared__ acc_t part[256];
  __shared__ i64 part_at[256];
  int t = threadIdx.x;
  for (i64 job = blockIdx.x; job < jobs; job += gridDim.x) {
    i64 slice = job / outputs, o = job - slice * outputs;
    i64 first = slice * len, last = first + len < count ? first + len : count;
    i64 base = place(o, kept, kept_rank);
    acc_t best = 0;
    i64 where = -1;
    for (i64 r = first + t; r < last; r += blockDim.x) {
      i64 at = base + place(r, reduced, reduced_rank), i = xi ? xi[at] : r;
      acc_t v = load(x + at);
      if (where < 0 || beats(v, i, best, where, largest)) best = v, where = i;
    }
    part[t] = best;
    part_at[t] = where;
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
      if (t < half && part_at[t + half] >= 0 &&
          (part_at[t] < 0 || beats(part[t + half], part_at[t + half], part[t], part_at[t], largest))) {
        part[t] = part[t + half];
        part_at[t] = part_at[t + half];
      }
      __syncthreads();
    }
    if (t == 0 && y) store(y + job, part[0]);
    if (t == 0 && index) index[job] = part_at[0];
    __syncthreads();  // read before the next job writes
  }
}
