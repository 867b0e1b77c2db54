// y[o] = activated(sum over r of a[o, r] b[o, r] (+ bias)): matrix products over batches, with an optional second batch that is summed.
// Transposes are strides; a batch axis that is stretched has stride 0. Dense layers and all gradients are the same product.
// variants: scalar_t=float,double,f16,bf16
// variants: scalar_t=float,double,f16,bf16; ACTIVATION=RELU,SIGMOID,TANH; arch=75,90a
#include "parts.cuh"
#include "tile.cuh"

struct Product {
  i64 m, n, k;
  i64 a_m, a_k, b_k, b_n;       // element strides of a (m, k) and b (k, n)
  i64 outer, inner;             // products side by side (o) and summed (r)
  i64 chunk;                    // steps along k for each part
};

// Element offset of the i-th index of a batch. Unrolled, so that the arguments need not be copied to be indexed; axes that
// are not there have extent 1.
__device__ __forceinline__ i64 batch_offset(i64 i, const Index& at) {
  i64 offset = 0;
#pragma unroll
  for (int d = MAX_RANK - 1; d >= 0; --d) {
    if (at.extent[d] == 1) continue;
    i64 q = i / at.extent[d];
    offset += (i - q * at.extent[d]) * at.stride[d];
    i = q;
  }
  return offset;
}

// The rows of a, or the columns of b.
struct Lines {
  const scalar_t* data;
  i64 count, stride, k_stride;
  bool k_fast;
  struct Row {
    const scalar_t* at;  // null outside
  };
  typedef i64 Step;
  __device__ __forceinline__ Row row(i64 r) const { return Row{r < count ? data + r * stride : (const scalar_t*)0}; }
  __device__ __forceinline__ Step step(i64 k) const { return k * k_stride; }
  __device__ __forceinline__ acc_t at(Row row, Step step) const { return row.at ? load(row.at + step) : (acc_t)0; }
};

// grid (tiles of m and n, parts of k, outer); y (outer, m, n), bias (n) or null.
// With `parts` not null the sums go there instead, (part, outer, m, n), for sum_parts.
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_RESIDENT)
    matmul(scalar_t* __restrict__ y, acc_t* __restrict__ parts, const scalar_t* __restrict__ a,
           const scalar_t* __restrict__ b, const scalar_t* __restrict__ bias, Product s, Index outer_a, Index outer_b,
           Index inner_a, Index inner_b) {
  __shared__ Panel pa, pb;
  i64 across = tiles(s.n), m0 = blockIdx.x / across * TILE, n0 = blockIdx.x % across * TILE;
  i64 begin = blockIdx.y * s.chunk, end = begin + s.chunk < s.k ? begin + s.chunk : s.k;
  for (i64 o = blockIdx.z; o < s.outer; o += gridDim.z) {
    acc_t sum[4][4] = {};
    for (i64 r = 0; r < s.inner; ++r) {
      const scalar_t* own_a = a + batch_offset(o, outer_a) + batch_offset(r, inner_a);
      const scalar_t* own_b = b + batch_offset(o, outer_b) + batch_offset(r, inner_b);
      Lines rows = {own_a, s.m, s.a_m, s.a_k, s.a_k <= s.a_m}, cols = {own_b, s.n, s.b_n, s.b_k, s.b_k <= s.b_n};
      tile_product(sum, rows, m0, cols, n0, begin, end, pa, pb);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        i64 row = m0 + tile_row(i), col = n0 + tile_col(j);
        if (row >= s.m || col >= s.n) continue;
        i64 at = (o * s.m + row) * s.n + col;
        if (parts) parts[blockIdx.y * s.outer * s.m * s.n + at] = sum[i][j];
        else store(y + at, activated(bias ? (acc_t)(sum[i][j] + load(bias + col)) : sum[i][j]));
      }
    }
  }
}
