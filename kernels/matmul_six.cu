// The products of matmul.cu in f32's accuracy by wgmma: y[o] = sum over r of a[o, r] b[o, r] (+ bias), then -DACTIVATION, which only
// comes with one part. See wgmma_six.cuh; A_K and B_K as in matmul_wgmma.cu. A tensor map is of (the operand's contiguous axis, the
// other one, matrices, planes).
// variants: scalar_t=float; DOWN=2; ACROSS=1; COLS=192; STAGES=3; RESIDENT=1; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=float; DOWN=2; ACROSS=1; COLS=128; STAGES=4; RESIDENT=1; A_K=0,1; B_K=0,1; arch=90a
// variants: scalar_t=float; DOWN=2; ACROSS=1; COLS=192; STAGES=3; RESIDENT=1; A_K=1; B_K=1; ACTIVATION=RELU,SIGMOID,TANH; arch=90a
// variants: scalar_t=float; DOWN=2; ACROSS=1; COLS=128; STAGES=4; RESIDENT=1; A_K=1; B_K=1; ACTIVATION=RELU,SIGMOID,TANH; arch=90a
#include "wgmma_six.cuh"

struct Product {
  int m, n, k;
  int steps, chunk;           // steps of DEPTH along k, and for each part
  int parts, outer;           // parts of k, products side by side
  int inner;                  // products that are summed (r)
  int tiles_m, tiles_n, all;  // tiles of a product, and of all parts and products
  int size_a, size_b;         // elements from one matrix to the next
  int line_a, line_b;         // and from one row or column (A_K, B_K), else from one k, to the next
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

// y (outer, m, n), bias (n) or null, whole_a and whole_b the operands before they were split. With `parts` not null the sums go there
// instead, (part, outer, m, n), for sum_parts. outer_a … inner_b count matrices.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    matmul_six(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const float* __restrict__ whole_a,
               const float* __restrict__ whole_b, float* __restrict__ y, float* __restrict__ parts, const float* __restrict__ bias,
               const __grid_constant__ Product s, const __grid_constant__ Index outer_a, const __grid_constant__ Index outer_b,
               const __grid_constant__ Index inner_a, const __grid_constant__ Index inner_b) {
  __shared__ Ring<STAGES> ring;
  __shared__ Order order;
  order.start();
  ring.start();
  Turn<STAGES> turn = {0, 0};
  InOrder place;
  auto end_of = [&](int part) { return s.steps - part * s.chunk < s.chunk ? s.steps : (part + 1) * s.chunk; };
  if (threadIdx.x >= GROUPS * 128) {
    leave_registers();
    if (threadIdx.x >= GROUPS * 128 + 32 || !elect_one()) return;
#pragma unroll 1
    for (int work = blockIdx.x; work < s.all; work += gridDim.x) {
      const Piece p = piece(work, s.tiles_m, s.tiles_n, s.parts);
#pragma unroll 1
      for (int r = 0; r < s.inner; ++r) {
        const int of_a = matrix_of(p.outer, outer_a) + matrix_of(r, inner_a), of_b = matrix_of(p.outer, outer_b) + matrix_of(r, inner_b);
#pragma unroll 1
        for (int i = p.part * s.chunk; i < end_of(p.part); ++i) {
          produce_six(ring, turn, [&](char* to_a, char* to_b, u64* bar) {
            const int k = i * DEPTH;
            // All planes at once.
#pragma unroll
            for (int g = 0; g < DOWN; ++g) {
              const int m = p.m0 + g * 64;
              tensor_load(to_a + g * UNIT, &a, bar, A_K ? k : m, A_K ? m : k, of_a, 0);
            }
#if B_K
            tensor_load(to_b, &b, bar, k, p.n0, of_b, 0);
#else
#pragma unroll
            for (int g = 0; g < TILE_N / 64; ++g) tensor_load(to_b + g * UNIT, &b, bar, p.n0 + g * 64, k, of_b, 0);
#endif
          });
        }
      }
    }
    return;
  }
  take_registers();
#pragma unroll 1
  for (int work = blockIdx.x; work < s.all; work += gridDim.x) {
    const Piece p = piece(work, s.tiles_m, s.tiles_n, s.parts);
    float d[COLS / 2];
    multiply<A_K, B_K>(d, ring, turn, order, place, (end_of(p.part) - p.part * s.chunk) * s.inner);
    repair(d, p.m0, p.n0, [&](int m, int n) {
      float sum = 0;
      if (m >= s.m || n >= s.n) return sum;
      const int begin = p.part * s.chunk * DEPTH, end = end_of(p.part) * DEPTH < s.k ? end_of(p.part) * DEPTH : s.k;
#pragma unroll 1
      for (int r = 0; r < s.inner; ++r) {
        const i64 of_a = matrix_of(p.outer, outer_a) + matrix_of(r, inner_a), of_b = matrix_of(p.outer, outer_b) + matrix_of(r, inner_b);
        const float *row = whole_a + of_a * s.size_a + (A_K ? (i64)m * s.line_a : m);
        const float *column = whole_b + of_b * s.size_b + (B_K ? (i64)n * s.line_b : n);
#pragma unroll 1
        for (int k = begin; k < end; ++k) sum = fmaf(row[A_K ? k : (i64)k * s.line_a], column[B_K ? k : (i64)k * s.line_b], sum);
      }
      return sum;
    });
    if (bias) {
#pragma unroll
      for (int j = 0; j < COLS / 8; ++j) {
        const int n = first_column(p.n0) + j * 8 + threadIdx.x % 4 * 2;
        const float first = n < s.n ? bias[n] : 0, second = n + 1 < s.n ? bias[n + 1] : 0;
        d[4 * j] += first, d[4 * j + 1] += second, d[4 * j + 2] += first, d[4 * j + 3] += second;
      }
    }
    float* to = (parts ? parts : y) + (p.part * (i64)s.outer + p.outer) * ((i64)s.m * s.n);
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
  }
}
