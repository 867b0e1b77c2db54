// Copies between memory orders: transposes, slices, joins, broadcasts.
// variants: scalar_t=float,double,f16,bf16,u8,i64
#include "common.cuh"

// Both offsets of the row-major index i over to.extent, with one division for each axis.
template <class int_t>
__device__ __forceinline__ void offsets_of(int_t i, const Index& to, const Index& from, int rank, i64& y, i64& x) {
  for (int d = rank - 1; d >= 0; --d) {
    int_t q = i / (int_t)to.extent[d];
    i64 r = (i64)(i - q * (int_t)to.extent[d]);
    y += r * to.stride[d];
    x += r * from.stride[d];
    i = q;
  }
}

// y[y0 + offset under to] = x[x0 + offset under from] for the row-major index i over to.extent = from.extent.
extern "C" __global__ void strided_copy(scalar_t* __restrict__ y, i64 y0, const scalar_t* __restrict__ x, i64 x0,
                                        const __grid_constant__ Index to, const __grid_constant__ Index from, int rank,
                                        i64 n) {
  if (n <= 0x7fffffff) {  // 32-bit divisions are several times faster
    GRID_STRIDE(i, n) {
      i64 at_y = y0, at_x = x0;
      offsets_of((unsigned)i, to, from, rank, at_y, at_x);
      y[at_y] = x[at_x];
    }
  } else {
    GRID_STRIDE(i, n) {
      i64 at_y = y0, at_x = x0;
      offsets_of(i, to, from, rank, at_y, at_x);
      y[at_y] = x[at_x];
    }
  }
}
