// The products of matmul.cu by wgmma: y[o] = sum over r of a[o, r] b[o, r] (+ bias), then -DACTIVATION, which only comes with one part.
//
// -DA_K, -DB_K: 1 where the operand's elements lie next to each other along k, 0 where they do along m or n. A tensor map is of
// (that axis, the other one, matrices).
// variants: scalar_t=bf16; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=bf16; DOWN=2; ACROSS=1; COLS=128; STAGES=3; RESIDENT=2; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=bf16; DOWN=1; ACROSS=1; COLS=128; STAGES=4; RESIDENT=2; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=f16; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=float; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; A_K=1; B_K=1; arch=90a
// variants: scalar_t=float; DOWN=2; ACROSS=1; COLS=128; STAGES=3; RESIDENT=2; A_K=1; B_K=1; arch=90a
// variants: scalar_t=float; DOWN=1; ACROSS=1; COLS=128; STAGES=4; RESIDENT=2; A_K=1; B_K=1; arch=90a
// variants: scalar_t=bf16,float; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; A_K=1; B_K=1; ACTIVATION=RELU,SIGMOID,TANH; arch=90a
// variants: scalar_t=bf16,float; DOWN=2; ACROSS=1; COLS=128; STAGES=3; RESIDENT=2; A_K=1; B_K=1; ACTIVATION=RELU,TANH; arch=90a
// variants: scalar_t=bf16,float; DOWN=2; ACROSS=1; COLS=128; STAGES=3; RESIDENT=1; A_K=1; B_K=1; ACTIVATION=SIGMOID; arch=90a
// variants: scalar_t=bf16; DOWN=1; ACROSS=1; COLS=128; STAGES=4; RESIDENT=2; A_K=1; B_K=1; ACTIVATION=RELU,SIGMOID,TANH; arch=90a
// variants: scalar_t=bf16; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; CLUSTER=2; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=bf16; DOWN=2; ACROSS=1; COLS=128; STAGES=3; RESIDENT=2; CLUSTER=2; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=float; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; CLUSTER=2; A_K=1; B_K=1; arch=90a
// variants: scalar_t=float; DOWN=2; ACROSS=1; COLS=128; STAGES=3; RESIDENT=2; CLUSTER=2; A_K=1; B_K=1; arch=90a
// variants: scalar_t=bf16,float; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; CLUSTER=2; A_K=1; B_K=1; ACTIVATION=SIGMOID; arch=90a
// variants: scalar_t=bf16,float; DOWN=2; ACROSS=1; COLS=128; STAGES=3; RESIDENT=2; CLUSTER=2; A_K=1; B_K=1; ACTIVATION=TANH; arch=90a
// variants: scalar_t=bf16; DOWN=2; ACROSS=1; COLS=128; STAGES=3; RESIDENT=1; CLUSTER=2; A_K=1; B_K=1; ACTIVATION=SIGMOID; arch=90a
#include "wgmma.cuh"

struct Product {
  int m, n;
  int steps, chunk;           // steps of DEPTH along k, and for each part
  int parts, outer;           // parts of k, products side by side
  int inner;                  // products that are summed (r)
  int tiles_m, tiles_n, all;  // tiles of a product, and of all parts and products; by clusters
};

// The number of the matrix that belongs to the i-th index of a batch.
__device__ __forceinline__ int matrix_of(unsigned i, const Index& at) {
  int number = 0;
#pragma unroll 1
  for (int d = MAX_RANK - 1; d >= 0 && i; --d) {
    unsigned extent = (unsigned)at.extent[d], q = i / extent;
    number += (int)((i - q * extent) * at.stride[d]);
    i = q;
  }
  return number;
}

// y (outer, m, n), bias (n) or null. With `parts` not null the sums go there instead, (part, outer, m, n), for sum_parts.
// outer_a … inner_b count matrices.
extern "C" __global__ void
#if CLUSTER > 1
    __cluster_dims__(CLUSTER, 1, 1)
#endif
    __launch_bounds__(THREADS, RESIDENT)
    matmul_wgmma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, scalar_t* __restrict__ y,
                 float* __restrict__ parts, const scalar_t* __restrict__ bias, const Product s, const __grid_constant__ Index outer_a,
                 const __grid_constant__ Index outer_b, const __grid_constant__ Index inner_a, const __grid_constant__ Index inner_b) {
  __shared__ Ring<STAGES> ring;
  ring.start();
  Turn<STAGES> turn = {0, 0};
  auto end_of = [&](int part) { return s.steps - part * s.chunk < s.chunk ? s.steps : (part + 1) * s.chunk; };
  if (threadIdx.x >= GROUPS * 128) {
    if (!elect_one()) return;
    const int share = CLUSTER > 1 ? (int)cluster_rank() : 0;
#pragma unroll 1
    for (int work = blockIdx.x / CLUSTER; work < s.all; work += gridDim.x / CLUSTER) {
      const Piece p = piece(work, s.tiles_m, s.tiles_n, s.parts);
#pragma unroll 1
      for (int r = 0; r < s.inner; ++r) {
        const int of_a = matrix_of(p.outer, outer_a) + matrix_of(r, inner_a), of_b = matrix_of(p.outer, outer_b) + matrix_of(r, inner_b);
#pragma unroll 1
        for (int i = p.part * s.chunk; i < end_of(p.part); ++i) {
          produce(ring, turn, [&](char* to_a, char* to_b, u64* bar) {
            const int k = i * DEPTH;
#if A_K
            tensor_load(to_a, &a, bar, k, p.m0, of_a);
#else
#pragma unroll 1
            for (int g = 0; g < TILE_M / 64; ++g) tensor_load(to_a + g * BOX, &a, bar, p.m0 + g * 64, k, of_a);
#endif
#if B_K
            load_shared(to_b + share * (B_BYTES / CLUSTER), &b, bar, k, p.n0 + share * (TILE_N / CLUSTER), of_b);
#else
#pragma unroll 1
            for (int g = share * (TILE_N / 64 / CLUSTER); g < (share + 1) * (TILE_N / 64 / CLUSTER); ++g)
              load_shared(to_b + g * BOX, &b, bar, p.n0 + g * 64, k, of_b);
#endif
          });
        }
      }
    }
    return;
  }
#pragma unroll 1
  for (int work = blockIdx.x / CLUSTER; work < s.all; work += gridDim.x / CLUSTER) {
    const Piece p = piece(work, s.tiles_m, s.tiles_n, s.parts);
    float d[COLS / 2];
    multiply<A_K, B_K>(d, ring, turn, (end_of(p.part) - p.part * s.chunk) * s.inner);
    const i64 size = (i64)s.m * s.n;
    if (bias) {
#pragma unroll
      for (int j = 0; j < COLS / 8; ++j) {
        const int n = first_column(p.n0) + j * 8 + threadIdx.x % 4 * 2;
        const float first = n < s.n ? load(bias + n) : 0, second = n + 1 < s.n ? load(bias + n + 1) : 0;
        d[4 * j] += first, d[4 * j + 1] += second, d[4 * j + 2] += first, d[4 * j + 3] += second;
      }
    }
    if (sizeof(scalar_t) == 4 || parts) {
      float* to = (parts ? parts : (float*)y) + (p.part * (i64)s.outer + p.outer) * size;  // one part then
      each_pair(d, p.m0, p.n0, [&](int m, int n, float v, float w) {
        if (m >= s.m || n >= s.n) return;
        float* at = to + (i64)m * s.n + n;
        v = activated(v), w = activated(w);
        if (s.n % 2 == 0) *(float2*)at = make_float2(v, w);
        else {
          at[0] = v;
          if (n + 1 < s.n) at[1] = w;
        }
      });
      continue;
    }
    each_row_chunk(d, p.m0, p.n0, [&](int m, int n, uint4 eight) {
      if (m >= s.m || n >= s.n) return;
      scalar_t* at = y + p.outer * size + (i64)m * s.n + n;
      if (s.n % 8 == 0) *(uint4*)at = eight;
      else
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (n + e < s.n) ((unsigned short*)at)[e] = (unsigned short)((&eight.x)[e / 2] >> e % 2 * 16);
    });
  }
  ring.finish();
}
