// Sums and products over axes: y[o] = fold of x[o, 0], x[o, 1], … / divisor.
// Element (o, r) lies at x + place(o, kept) + place(r, reduced). A job is one output of one slice of `len` elements;
// the jobs of a slice are dense in y, so that a second pass can fold y (slices, outputs) over its first axis.
// -Dout_t is y's dtype, -DFOLD one of the names below. The order of additions depends on the sizes alone.
// Floats are folded in double, so that no order of f32 values overflows before the result does and the CPU gives the same; where
// that takes two passes, the first one's results stay double. u8 always becomes i64:
// variants: scalar_t=float; out_t=float,double; FOLD=SUM,PROD
// variants: scalar_t=f16; out_t=f16,double; FOLD=SUM,PROD
// variants: scalar_t=bf16; out_t=bf16,double; FOLD=SUM,PROD
// variants: scalar_t=double; out_t=double,float,f16,bf16; FOLD=SUM,PROD
// variants: scalar_t=float,double,f16,bf16; out_t=double; FOLD=SQUARES
// variants: scalar_t=i64,u8; out_t=i64; FOLD=SUM,PROD
#include "reduce.cuh"

enum { SUM, PROD, SQUARES };

template <class T> struct wide {
  typedef double type;
};
template <> struct wide<u8> {
  typedef i64 type;
};
template <> struct wide<i64> {
  typedef i64 type;
};
typedef wide<acc_t>::type wide_t;
typedef unsigned long long u64;

__device__ __forceinline__ double plus_(double a, double b) { return a + b; }
__device__ __forceinline__ i64 plus_(i64 a, i64 b) { return (i64)((u64)a + (u64)b); }
__device__ __forceinline__ double times_(double a, double b) { return a * b; }
__device__ __forceinline__ i64 times_(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }

// A sum carries what rounding has taken from it (Kahan), so that long chains are as exact as short ones.
template <class T> __device__ __forceinline__ void add_to(T& sum, T& lost, T x) {
  T y = x - lost, t = sum + y;
  lost = t - t == 0 ? (t - sum) - y : (T)0;  // nothing to correct once it is infinite or NaN
  sum = t;
}
__device__ __forceinline__ void add_to(i64& sum, i64&, i64 x) { sum = plus_(sum, x); }

__device__ __forceinline__ wide_t identity() { return FOLD == PROD ? (wide_t)1 : (wide_t)0; }

__device__ __forceinline__ void step(wide_t& acc, wide_t& lost, wide_t x) {
  switch (FOLD) {
    case SUM: add_to(acc, lost, x); break;
    case PROD: acc = times_(acc, x); break;
    default: add_to(acc, lost, times_(x, x));  // SQUARES
  }
}

__device__ __forceinline__ wide_t merge(wide_t a, wide_t b) {
  return FOLD == PROD ? times_(a, b) : plus_(a, b);
}

__device__ __forceinline__ void finish(out_t* y, wide_t v, double divisor) {
  store(y, (acc<out_t>::type)(divisor == 1 ? v : v / (wide_t)divisor));
}

// A thread for each job: short folds, and folds whose neighbouring outputs are neighbours in memory (then coalesced).
extern "C" __global__ void reduce_columns(out_t* __restrict__ y, const scalar_t* __restrict__ x, double divisor,
                                          const __grid_constant__ Index kept, int kept_rank,
                                          const __grid_constant__ Index reduced, int reduced_rank, i64 outputs, i64 count,
                                          i64 len, i64 jobs) {
  GRID_STRIDE(job, jobs) {
    i64 slice = job / outputs, o = job - slice * outputs;
    i64 first = slice * len, last = first + len < count ? first + len : count;
    const scalar_t* row = x + place(o, kept, kept_rank);
    wide_t acc = identity(), lost = 0;
    for (i64 r = first; r < last; ++r) step(acc, lost, (wide_t)load(row + place(r, reduced, reduced_rank)));
    finish(y + job, acc, divisor);
  }
}

// A block (a power of two threads, at most 256) for each job.
extern "C" __global__ void reduce_rows(out_t* __restrict__ y, const scalar_t* __restrict__ x, double divisor,
                                       const __grid_constant__ Index kept, int kept_rank,
                                       const __grid_constant__ Index reduced, int reduced_rank, i64 outputs, i64 count,
                                       i64 len, i64 jobs) {
  __shared__ wide_t part[256];
  for (i64 job = blockIdx.x; job < jobs; job += gridDim.x) {
    i64 slice = job / outputs, o = job - slice * outputs;
    i64 first = slice * len, last = first + len < count ? first + len : count;
    const scalar_t* row = x + place(o, kept, kept_rank);
    wide_t acc = identity(), lost = 0;
    for (i64 r = first + threadIdx.x; r < last; r += blockDim.x)
      step(acc, lost, (wide_t)load(row + place(r, reduced, reduced_rank)));
    part[threadIdx.x] = acc;
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
      if (threadIdx.x < half) part[threadIdx.x] = merge(part[threadIdx.x], part[threadIdx.x + half]);
      __syncthreads();
    }
    if (threadIdx.x == 0) finish(y + job, part[0], divisor);
    __syncthreads();  // part[0] is read before the next job writes it
  }
}
