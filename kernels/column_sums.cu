// Sums over all but one axis, the gradients of biases, in two passes: parts of many rows each on many blocks, then the parts in
// order (sum_parts). S bytes for each element of S bytes.
// variants: scalar_t=float,double,f16,bf16
#include "parts.cuh"
#include "pack.cuh"

// parts[blockIdx.y][c] = the sum of x[r][c] over that part's `chunk` rows, x (rows, cols): a block has up to 32 groups of N
// neighbouring columns (`lanes`, a power of two), its other threads other rows.
template <int N>
__device__ __forceinline__ void column_sums_of(acc_t* __restrict__ parts, const scalar_t* __restrict__ x, i64 rows, i64 cols,
                                               i64 chunk, int lanes) {
  __shared__ acc_t sums[N][256];
  const int lane = threadIdx.x % lanes, groups = 256 / lanes;
  const i64 c = ((i64)blockIdx.x * lanes + lane) * N, begin = blockIdx.y * chunk;
  const i64 end = begin + chunk < rows ? begin + chunk : rows;
  acc_t sum[N];
#pragma unroll
  for (int k = 0; k < N; ++k) sum[k] = 0;
  if (c < cols) {
#pragma unroll 4
    for (i64 r = begin + threadIdx.x / lanes; r < end; r += groups) {
      acc_t v[N];
      load_some(v, x + r * cols + c);
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] += v[k];
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) sums[k][threadIdx.x] = sum[k];
  for (int half = groups / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half * lanes)
#pragma unroll
      for (int k = 0; k < N; ++k) sums[k][threadIdx.x] += sums[k][threadIdx.x + half * lanes];
  }
  if (threadIdx.x < lanes && c < cols)
#pragma unroll
    for (int k = 0; k < N; ++k) parts[blockIdx.y * cols + c + k] = sums[k][threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(256)
    column_sums_packed(acc_t* __restrict__ parts, const scalar_t* __restrict__ x, i64 rows, i64 cols, i64 chunk, int lanes) {
  column_sums_of<PACK>(parts, x, rows, cols, chunk, lanes);
}
extern "C" __global__ void __launch_bounds__(256)
    column_sums(acc_t* __restrict__ parts, const scalar_t* __restrict__ x, i64 rows, i64 cols, i64 chunk, int lanes) {
  column_sums_of<1>(parts, x, rows, cols, chunk, lanes);
}

// parts[blockIdx.y][c] = the sum of x[n][c][…] over that part's `chunk` elements of the n planes of a channel, x (images,
// channels, plane); N elements at once, which plane and chunk are multiples of. Grid (channels, parts).
template <int N>
__device__ __forceinline__ void plane_sums_of(acc_t* __restrict__ parts, const scalar_t* __restrict__ x, i64 channels, i64 plane,
                                              i64 elements, i64 chunk) {
  __shared__ acc_t scratch[32];
  const i64 c = blockIdx.x, begin = blockIdx.y * chunk, end = begin + chunk < elements ? begin + chunk : elements;
  acc_t sum = 0;
#pragma unroll 4
  for (i64 p = begin + (i64)threadIdx.x * N; p < end; p += 256 * N) {
    const i64 n = quotient(p, plane);
    acc_t v[N];
    load_some(v, x + (n * channels + c) * plane + (p - n * plane));
#pragma unroll
    for (int k = 0; k < N; ++k) sum += v[k];
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) parts[blockIdx.y * channels + c] = sum;
}
extern "C" __global__ void __launch_bounds__(256)
    plane_sums_packed(acc_t* __restrict__ parts, const scalar_t* __restrict__ x, i64 channels, i64 plane, i64 elements, i64 chunk) {
  plane_sums_of<PACK>(parts, x, channels, plane, elements, chunk);
}
extern "C" __global__ void __launch_bounds__(256)
    plane_sums(acc_t* __restrict__ parts, const scalar_t* __restrict__ x, i64 channels, i64 plane, i64 elements, i64 chunk) {
  plane_sums_of<1>(parts, x, channels, plane, elements, chunk);
}
