// Copies between memory orders.
#include "common.cuh"

// y[offset under to] = x[offset under from] for the row-major index i over to.extent = from.extent.
extern "C" __global__ void strided_copy(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, Index to, Index from,
                                        int rank, i64 n) {
  GRID_STRIDE(i, n) y[offset_of(i, to, rank)] = x[offset_of(i, from, rank)];
}
