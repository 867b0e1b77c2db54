// Elements chosen by integers: take, one_hot, pick; index_t is the integers' type.
// An index out of range gives NaN (0 in integer arrays) or a row without a one, and takes no gradient.
// variants: scalar_t=float,double,f16,bf16,u8,i64; index_t=i64,u8
#include "common.cuh"

template <class T> struct missing {
  static __device__ T value() { return (T)0; }
};
template <> struct missing<float> {
  static __device__ float value() { return __uint_as_float(0x7fc00000u); }
};
template <> struct missing<double> {
  static __device__ double value() { return (double)__uint_as_float(0x7fc00000u); }
};

// y[o, j, i] = x[o, index[j], i]; x is (outer, rows, inner), y (outer, count, inner), n the size of y.
extern "C" __global__ void take_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x,
                                    const index_t* __restrict__ index, i64 rows, i64 count, i64 inner, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at = i / inner, outer = at / count;
    i64 row = (i64)index[at - outer * count];
    if (row >= 0 && row < rows)
      y[i] = x[(outer * rows + row) * inner + i % inner];
    else
      store(y + i, missing<acc_t>::value());
  }
}

// The places 0..count of the indices, sorted by index, equal ones in their order; indices out of range come last. A sort by digits of four
// bits, the lowest first, in one block: each thread counts its piece's digits and then moves them behind those of smaller digits and of
// the threads before it. The time is linear in count, and the order does not depend on how threads run.
#define ORDER_THREADS 512
extern "C" __global__ void __launch_bounds__(ORDER_THREADS)
    take_order(i64* order, i64* spare, const index_t* __restrict__ index, i64 rows, i64 count) {
  __shared__ unsigned counts[16 * ORDER_THREADS];
  __shared__ unsigned sums[ORDER_THREADS];
  const unsigned t = threadIdx.x;
  const i64 each = (count + ORDER_THREADS - 1) / ORDER_THREADS, begin = each * t;
  const i64 end = begin + each < count ? begin + each : count;
  int bits = 0;
  while (rows >> bits) ++bits;
  const int passes = (bits + 3) / 4;
  for (int pass = 0; pass < passes; ++pass) {
    // The last pass writes `order`; the first one reads 0, 1, 2, …
    i64* to = (passes - 1 - pass) % 2 == 0 ? order : spare;
    const i64* from = to == order ? spare : order;
    auto digit = [&](i64 j) {
      i64 row = (i64)index[j];
      return (unsigned)((row >= 0 && row < rows ? row : rows) >> (4 * pass)) & 15;
    };
    for (unsigned d = 0; d < 16; ++d) counts[d * ORDER_THREADS + t] = 0;
    for (i64 p = begin; p < end; ++p) ++counts[digit(pass ? from[p] : p) * ORDER_THREADS + t];
    __syncthreads();
    // Each thread's sum of 16 counts, then what comes before each.
    unsigned own = 0;
    for (unsigned k = 0; k < 16; ++k) own += counts[t * 16 + k];
    sums[t] = own;
    __syncthreads();
    for (unsigned step = 1; step < ORDER_THREADS; step *= 2) {
      unsigned before = t >= step ? sums[t - step] : 0;
      __syncthreads();
      sums[t] += before;
      __syncthreads();
    }
    unsigned place = sums[t] - own;
    for (unsigned k = 0; k < 16; ++k) {
      unsigned n = counts[t * 16 + k];
      counts[t * 16 + k] = place;
      place += n;
    }
    __syncthreads();
    for (i64 p = begin; p < end; ++p) {
      i64 j = pass ? from[p] : p;
      to[counts[digit(j) * ORDER_THREADS + t]++] = j;
    }
    __syncthreads();
  }
}

// starts[r] = how many of the sorted places have an index below r, for r = 0..rows.
extern "C" __global__ void take_starts(i64* __restrict__ starts, const i64* __restrict__ order,
                                       const index_t* __restrict__ index, i64 rows, i64 count) {
  GRID_STRIDE(r, rows + 1) {
    i64 low = 0, high = count;
    while (low < high) {
      i64 middle = (low + high) / 2, row = (i64)index[order[middle]];
      if (row >= 0 && row < r)
        low = middle + 1;
      else
        high = middle;
    }
    starts[r] = low;
  }
}

// dx[o, r, i] = sum of dy[o, j, i] over the j with index[j] = r, in the order of j; n is the size of dx.
extern "C" __global__ void take_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy,
                                    const i64* __restrict__ order, const i64* __restrict__ starts, i64 rows, i64 count,
                                    i64 inner, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at = i / inner, outer = at / rows, row = at - outer * rows;
    const scalar_t* column = dy + outer * count * inner + i % inner;  // (count) at a distance of inner
    acc_t sum = 0;
    for (i64 p = starts[row], end = starts[row + 1]; p < end; ++p) sum += load(column + order[p] * inner);
    store(dx + i, sum);
  }
}

// y[j, c] = 1 where c = index[j], else 0; y is (count, classes), n its size.
extern "C" __global__ void one_hot(scalar_t* __restrict__ y, const index_t* __restrict__ index, i64 classes, i64 n) {
  GRID_STRIDE(i, n) {
    i64 j = i / classes;
    store(y + i, (acc_t)((i64)index[j] == i - j * classes ? 1 : 0));
  }
}

// y[j] = x[j, index[j]]; x is (n, classes).
extern "C" __global__ void pick_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x,
                                    const index_t* __restrict__ index, i64 classes, i64 n) {
  GRID_STRIDE(j, n) {
    i64 c = (i64)index[j];
    if (c >= 0 && c < classes)
      y[j] = x[j * classes + c];
    else
      store(y + j, missing<acc_t>::value());
  }
}

// dx[j, c] = dy[j] where c = index[j], else 0; dx is (count, classes), n its size.
extern "C" __global__ void pick_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy,
                                    const index_t* __restrict__ index, i64 classes, i64 n) {
  GRID_STRIDE(i, n) {
    i64 j = i / classes;
    store(dx + i, (i64)index[j] == i - j * classes ? load(dy + j) : (acc_t)0);
  }
}
