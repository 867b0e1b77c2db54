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

// parts[blockIdx.y][c] = the sum of x[r][c] over that part's `chunk` rows;  x (rows, cols), 32 columns and 256 threads a block
extern "C" __global__ void __launch_bounds__(256)
    column_sums(acc_t* __restrict__ parts, const scalar_t* __restrict__ x, i64 rows, i64 cols, i64 chunk) {
  __shared__ acc_t sums[8][32];
  int lane = threadIdx.x % 32, group = threadIdx.x / 32;
  i64 c = (i64)blockIdx.x * 32 + lane, begin = blockIdx.y * chunk;
  i64 end = begin + chunk < rows ? begin + chunk : rows;
  acc_t sum = 0;
  if (c < cols)
    for (i64 r = begin + group; r < end; r += 8) sum += load(x + r * cols + c);
  sums[group][lane] = sum;
  __syncthreads();
  if (group == 0 && c < cols) {
    for (int g = 1; g < 8; ++g) sum += sums[g][lane];
    parts[blockIdx.y * cols + c] = sum;
  }
}
