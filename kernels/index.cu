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

// dx[o, r, i] = sum of dy[o, j, i] over the j with index[j] = r, in the order of j; n is the size of dx.
extern "C" __global__ void take_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy,
                                    const index_t* __restrict__ index, i64 rows, i64 count, i64 inner, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at = i / inner, outer = at / rows, row = at - outer * rows;
    const scalar_t* column = dy + outer * count * inner + i % inner;  // (count) at a distance of inner
    acc_t sum = 0;
    for (i64 j = 0; j < count; ++j)
      if ((i64)index[j] == row) sum += load(column + j * inner);
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
