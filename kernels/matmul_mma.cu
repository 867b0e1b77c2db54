// The products of matmul.cu on tensor cores: y[o] = sum over r of a[o, r] b[o, r] (+ bias), then -DACTIVATION.
//
// -DA_K, -DB_K: 1 where the operand's elements lie next to each other along k, 0 where they do along m or n.
// Narrow loads (WIDTH < 16) come with tiles of 64 x 64 only, sm_75 with f16 and two stages.
// variants: scalar_t=bf16; EXACT=0; TILE_M=128; TILE_N=128,64; STAGES=2; WIDTH=16; A_K=0,1; B_K=0,1; arch=80
// variants: scalar_t=bf16; EXACT=0; TILE_M=64; TILE_N=64; STAGES=2; WIDTH=16; A_K=0,1; B_K=0,1; arch=80
// variants: scalar_t=bf16; EXACT=0; TILE_M=64; TILE_N=64; STAGES=3; WIDTH=8,4,0; A_K=0,1; B_K=0,1; arch=80,90a
// variants: scalar_t=bf16; EXACT=0; TILE_M=128; TILE_N=128,64; STAGES=3; WIDTH=16; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=bf16; EXACT=0; TILE_M=64; TILE_N=64; STAGES=3; WIDTH=16; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=float; EXACT=0,1; TILE_M=128; TILE_N=128,64; STAGES=3; WIDTH=16; A_K=0,1; B_K=0,1; arch=80,90a
// variants: scalar_t=float; EXACT=0,1; TILE_M=64; TILE_N=64; STAGES=3; WIDTH=16,8,4; A_K=0,1; B_K=0,1; arch=80,90a
// variants: scalar_t=bf16; EXACT=0; TILE_M=128; TILE_N=128; STAGES=3; WIDTH=16; A_K=0,1; B_K=0,1; arch=86,89,100a,120
// variants: scalar_t=float; EXACT=0,1; TILE_M=128; TILE_N=128; STAGES=3; WIDTH=16; A_K=0,1; B_K=0,1; arch=86,89,100a,120
// variants: scalar_t=f16; EXACT=0; TILE_M=128; TILE_N=64; STAGES=2; WIDTH=16; A_K=0,1; B_K=0,1; arch=75,80,90a
// variants: scalar_t=f16; EXACT=0; TILE_M=64; TILE_N=64; STAGES=2; WIDTH=16,8,4,0; A_K=0,1; B_K=0,1; arch=75
// variants: scalar_t=bf16; EXACT=0; TILE_M=128,64; TILE_N=64; STAGES=3; WIDTH=16; A_K=1; B_K=1; ACTIVATION=RELU,SIGMOID,TANH; arch=90a
// variants: scalar_t=float; EXACT=0,1; TILE_M=64; TILE_N=64; STAGES=3; WIDTH=16; A_K=1; B_K=1; ACTIVATION=RELU,SIGMOID,TANH; arch=80,90a
// variants: scalar_t=f16; EXACT=0; TILE_M=128; TILE_N=64; STAGES=2; WIDTH=16; A_K=1; B_K=1; ACTIVATION=RELU,SIGMOID,TANH; arch=75
#include "mma_out.cuh"

struct Product {
  int m, n, k;
  int a_line, b_line;  // elements from one row of a (k with A_K = 0) to the next, of b likewise
  int chunk;           // steps along k for each part
  int inner;           // products that are summed (r)
  int vector;          // rows of y can be written by 16 bytes
};

// Element offset of the i-th index of a batch.
__device__ __forceinline__ i64 batch_offset(unsigned i, const Index& at) {
  i64 offset = 0;
#pragma unroll 1
  for (int d = MAX_RANK - 1; d >= 0 && i; --d) {
    unsigned extent = (unsigned)at.extent[d], q = i / extent;
    offset += (i - q * extent) * at.stride[d];
    i = q;
  }
  return offset;
}

struct RowMajor {
  int cols;
  bool vector;
  enum { by_row = false };
  __device__ __forceinline__ i64 row(int m) const { return (i64)m * cols; }
  __device__ __forceinline__ i64 col(int n) const { return n; }
};

// grid (tiles, parts of k, outer); y (outer, m, n), bias (n) or null. With `parts` not null the sums go there instead,
// (part, outer, m, n), for sum_parts.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    matmul_mma(scalar_t* __restrict__ y, float* __restrict__ parts, const scalar_t* __restrict__ a, const scalar_t* __restrict__ b,
               const scalar_t* __restrict__ bias, const Product s, const __grid_constant__ Index outer_a,
               const __grid_constant__ Index outer_b, const __grid_constant__ Index inner_a, const __grid_constant__ Index inner_b) {
  extern __shared__ __align__(128) char shared[];
  const TileAt tile = tile_at(blockIdx.x, s.m, s.n);
  const int begin = blockIdx.y * s.chunk, end = s.k - begin < s.chunk ? s.k : begin + s.chunk;
  const unsigned o = blockIdx.z;
  a += batch_offset(o, outer_a);
  b += batch_offset(o, outer_b);
  auto rows = [&](int r) { return Lines<A_K>{a + batch_offset(r, inner_a), s.m, s.a_line}; };
  auto cols = [&](int r) { return Lines<B_K>{b + batch_offset(r, inner_b), s.n, s.b_line}; };
  Sums sum = {};
#pragma unroll 1
  for (int r = 0; r < s.inner; ++r) mma_product(sum, rows(r), tile.m0, cols(r), tile.n0, begin, end, shared);
  const i64 size = (i64)s.m * s.n;
  const Target target = {y + o * size, parts ? parts + (blockIdx.y * (i64)gridDim.z + o) * size : parts, bias, s.m, s.n};
  const RowMajor out = {s.n, s.vector != 0};
  put_sums(sum, target, out, tile.m0, tile.n0, (float*)shared, [&](int m, int n) {
    float v = 0;
#pragma unroll 1
    for (int r = 0; r < s.inner; ++r) v += plain_product(rows(r), m, cols(r), n, begin, end);
    return v;
  });
}
