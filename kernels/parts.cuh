// Long sums in two passes: parts of fixed size on many blocks, then the parts in order. No atomics: the same bits each time.
#pragma once
#include "activation.cuh"

// y[i] = activated(parts[0][i] + parts[1][i] + …  (+ bias[i % cols]));  parts (count, n)
extern "C" __global__ void sum_parts(scalar_t* __restrict__ y, const acc_t* __restrict__ parts,
                                     const scalar_t* __restrict__ bias, i64 n, i64 count, i64 cols) {
  GRID_STRIDE(i, n) {
    acc_t sum = 0;
    for (i64 p = 0; p < count; ++p) sum += parts[p * n + i];
    if (bias) sum += load(bias + i % cols);
    store(y + i, activated(sum));
  }
}
