// Hopper's words at work, for the tests: every wrapper of ptx_hopper.cuh, and the shapes that hadal's kernels have: a matrix
// product by the copy engine and wgmma, a 3x3 convolution over a halo tile read through shifted descriptors, its weight
// gradient, a convolution of stride 2 by im2col copies.
// variants: arch=90a
#include "ptx_hopper.cuh"

typedef unsigned long long u64;

// The first multiple of 1024 bytes in dynamic shared memory: the swizzle of 128 bytes repeats after as many.
__device__ __forceinline__ char* tiles() {
  extern __shared__ __align__(1024) char memory[];
  return memory + (1024 - (__cvta_generic_to_shared(memory) & 1023)) % 1024;
}

// The accumulators of a warpgroup as rows of y: 64 x N, `pitch` between rows, what lies beyond rows or columns dropped.
template <int N> __device__ __forceinline__ void put(float* y, const float* d, int pitch, int rows, int columns) {
  int l = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + l / 4;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    int r = row + (i & 2) * 4, c = i / 4 * 8 + l % 4 * 2 + (i & 1);
    if (r < rows && c < columns) y[(u64)r * pitch + c] = d[i];
  }
}

// C[m][n] = A[m][k] B[n][k]^T, both with k last: boxes of 64 rows of A and N of B, 128 bytes of k wide. A producing warp, a
// consuming warpgroup, a ring of STAGES.
#define GEMM(name, N, wgmma, per_row)                                                                                     \
  extern "C" __global__ void __launch_bounds__(160) name(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, \
                                                         float* c, int m, int n, int k) {                                 \
    constexpr int STAGES = 3, A = 64 * 128, B = N * 128;                                                                  \
    __shared__ u64 full[STAGES], empty[STAGES];                                                                           \
    char* t = tiles();                                                                                                    \
    int m0 = blockIdx.y * 64, n0 = blockIdx.x * N, steps = (k + per_row - 1) / per_row;                                   \
    if (threadIdx.x == 0) {                                                                                               \
      for (int i = 0; i < STAGES; ++i) mbarrier_init(full + i, 1), mbarrier_init(empty + i, 4);                           \
      fence_mbarrier_init();                                                                                              \
    }                                                                                                                     \
    __syncthreads();                                                                                                      \
    if (threadIdx.x >= 128) {                                                                                             \
      if (elect_one())                                                                                                    \
        for (int i = 0; i < steps; ++i) {                                                                                 \
          int s = i % STAGES;                                                                                             \
          mbarrier_wait(empty + s, i / STAGES & 1 ^ 1);                                                                   \
          mbarrier_arrive_expect(full + s, A + B);                                                                        \
          tensor_load(t + s * (A + B), &a, full + s, i * per_row, m0);                                                    \
          tensor_load(t + s * (A + B) + A, &b, full + s, i * per_row, n0);                                                \
        }                                                                                                                 \
    } else {                                                                                                              \
      float d[N / 2];                                                                                                     \
      for (int i = 0; i < steps; ++i) {                                                                                   \
        int s = i % STAGES;                                                                                               \
        mbarrier_wait(full + s, i / STAGES & 1);                                                                          \
        u64 da = wgmma_descriptor(t + s * (A + B), 16, 1024, 128), db = wgmma_descriptor(t + s * (A + B) + A, 16, 1024, 128); \
        wgmma_fence();                                                                                                    \
        _Pragma("unroll") for (int q = 0; q < 4; ++q) wgmma<N>(d, da + 2 * q, db + 2 * q, i | q);                         \
        wgmma_commit();                                                                                                   \
        wgmma_wait<0>();                                                                                                  \
        wgmma_results(d);                                                                                                 \
        if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + s);                                                            \
      }                                                                                                                   \
      put<N>(c + (u64)m0 * n + n0, d, n, m - m0, n - n0);                                                                 \
    }                                                                                                                     \
  }
GEMM(gemm_bf16, 72, wgmma_bf16, 64)
GEMM(gemm_f16, 128, wgmma_f16, 64)
GEMM(gemm_tf32, 40, wgmma_tf32, 32)

// C[m][n] = A[k][m]^T B[k][n], both with k first: boxes of 64 rows of k and 64 numbers of m or n.
extern "C" __global__ void __launch_bounds__(128) gemm_bf16_k_first(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                                                                    float* c, int m, int n, int k) {
  constexpr int N = 136, GROUPS = 3, TILE = 64 * 128;
  __shared__ u64 full;
  char* t = tiles();
  int m0 = blockIdx.y * 64, n0 = blockIdx.x * N;
  if (threadIdx.x == 0) mbarrier_init(&full, 1), fence_mbarrier_init();
  __syncthreads();
  float d[N / 2];
  for (int i = 0; i * 64 < k; ++i) {
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect(&full, (1 + GROUPS) * TILE);
      tensor_load(t, &a, &full, m0, i * 64);
      for (int g = 0; g < GROUPS; ++g) tensor_load(t + (1 + g) * TILE, &b, &full, n0 + g * 64, i * 64);
    }
    mbarrier_wait(&full, i & 1);
    u64 da = wgmma_descriptor(t, TILE, 1024, 128), db = wgmma_descriptor(t + TILE, TILE, 1024, 128);
    wgmma_fence();
#pragma unroll
    for (int q = 0; q < 4; ++q) wgmma_bf16<N, 1, 1>(d, da + 128 * q, db + 128 * q, i | q);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_results(d);
    __syncthreads();
  }
  put<N>(c + (u64)m0 * n + n0, d, n, m - m0, n - n0);
}

// One product from shared memory that the threads fill themselves: A of 64 x 16, B of N x 16 bf16, in each swizzle and major,
// and A from registers, with signs. The places are what wgmma_descriptor's comment says.
__device__ __forceinline__ int swizzled(int at, int span) { return span ? at ^ (at >> 7 & (span / 16 - 1)) << 4 : at; }
__device__ __forceinline__ int place(int row, int k, int span, int rows, bool k_major) {
  if (k_major) {
    if (!span) return row % 8 * 16 + row / 8 * 128 + k / 8 * (rows * 16) + k % 8 * 2;
    return swizzled(row * span + k * 2, span);
  }
  if (!span) return k % 8 * 16 + k / 8 * (rows * 16) + row / 8 * 128 + row % 8 * 2;
  int per = span / 2;
  return swizzled(k * span + row / per * (16 * span) + row % per * 2, span);
}
template <int SPAN, int TRANS> __device__ __forceinline__ void one_product(const unsigned short* A, const unsigned short* B, float* y) {
  constexpr int N = 96;
  char *a = tiles(), *b = a + 8192;
  for (int i = threadIdx.x; i < 64 * 16; i += 128) *(unsigned short*)(a + place(i / 16, i % 16, SPAN, 64, !TRANS)) = A[i];
  for (int i = threadIdx.x; i < N * 16; i += 128) *(unsigned short*)(b + place(i / 16, i % 16, SPAN, N, !TRANS)) = B[i];
  fence_proxy_async();
  __syncthreads();
  float d[N / 2];
  constexpr int stride = SPAN == 0 ? 128 : TRANS ? 8 * SPAN : 8 * SPAN;
  u64 da = wgmma_descriptor(a, SPAN == 0 ? 64 * 16 : 16 * SPAN, stride, SPAN);
  u64 db = wgmma_descriptor(b, SPAN == 0 ? N * 16 : 16 * SPAN, stride, SPAN);
  wgmma_fence();
  wgmma_bf16<N, TRANS, TRANS>(d, da, db, 0);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_results(d);
  put<N>(y, d, N, 64, N);
  // -A B + A B + A (-B), with A in registers: -A B.
  int l = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + l / 4, q = l % 4;
  unsigned r[4];
  for (int i = 0; i < 4; ++i) {
    const unsigned short* p = A + (row + (i & 1) * 8) * 16 + (i >> 1) * 8 + 2 * q;
    r[i] = p[0] | (unsigned)p[1] << 16;
  }
  wgmma_fence();
  wgmma_bf16<N, TRANS, -1, 1>(d, r, db, 0);
  wgmma_bf16<N, TRANS>(d, r, db, 1);
  wgmma_bf16<N, TRANS, 1, -1>(d, r, db, 1);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_results(d);
  put<N>(y + 64 * N, d, N, 64, N);
  __syncthreads();
}
extern "C" __global__ void __launch_bounds__(128) products(const unsigned short* A, const unsigned short* B, float* y) {
  constexpr int one = 2 * 64 * 96;
  one_product<128, 0>(A, B, y), one_product<64, 0>(A, B, y + one), one_product<32, 0>(A, B, y + 2 * one), one_product<0, 0>(A, B, y + 3 * one);
  one_product<128, 1>(A, B, y + 4 * one), one_product<64, 1>(A, B, y + 5 * one), one_product<32, 1>(A, B, y + 6 * one);
  one_product<0, 1>(A, B, y + 7 * one);
}

// 3x3 convolution, stride 1, padding 1, channels-last: x[N][H][W][C], w[CO][3][3][C], y[N][H][W][CO], C = 64, CO = 64. A block
// makes R rows of one image. The halo tile has rows of W + 1 pixels: what pads a row on the left pads the one before on the
// right. A tap is the tile begun some rows of 128 bytes later.
#ifndef W
#define W 11
#endif
#ifndef R
#define R 3
#endif
constexpr int PITCH = W + 1, PIXELS = R * PITCH, COLUMNS = (PIXELS + 7) / 8 * 8, HALO = (R + 2) * PITCH;
constexpr int HALO_ROWS = (2 * PITCH + 2 + COLUMNS + 7) / 8 * 8 > HALO ? (2 * PITCH + 2 + COLUMNS + 7) / 8 * 8 : (HALO + 7) / 8 * 8;
extern "C" __global__ void __launch_bounds__(128) conv3x3(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,
                                                          const __grid_constant__ TensorMap y, int h) {
  __shared__ u64 full;
  char *xt = tiles(), *wt = xt + (HALO_ROWS * 128 + 1023) / 1024 * 1024;
  int n = blockIdx.y, h0 = blockIdx.x * R, l = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) mbarrier_init(&full, 1), fence_mbarrier_init();
  // The rows behind the tile are read for pixels that nobody wants; they must be numbers.
  for (int i = HALO * 8 + threadIdx.x; i < HALO_ROWS * 8; i += 128) *(uint4*)(xt + i * 16) = make_uint4(0, 0, 0, 0);
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(&full, HALO * 128 + 9 * 8192);
    tensor_load(xt, &x, &full, 0, -1, n, h0 - 1);
    for (int tap = 0; tap < 9; ++tap) tensor_load(wt + tap * 8192, &w, &full, tap * 64, 0);
  }
  mbarrier_wait(&full, 0);
  float d[COLUMNS / 2];
  wgmma_fence();
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) {
    u64 dw = wgmma_descriptor(wt + tap * 8192, 16, 1024, 128);
    u64 dx = wgmma_descriptor(xt + (tap / 3 * PITCH + tap % 3) * 128, 16, 1024, 128);
#pragma unroll
    for (int q = 0; q < 4; ++q) wgmma_bf16<COLUMNS>(d, dw + 2 * q, dx + 2 * q, tap | q);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_results(d);
  __syncthreads();
  // Transposed to [pixel][CO] in the swizzle of the store's map.
  int row = l & 7, chunk = warp * 2 + (l >> 3 & 1);
#pragma unroll
  for (int j = 0; j < COLUMNS / 8; ++j) {
    unsigned r[2];
    for (int i = 0; i < 2; ++i)
      r[i] = f32_to_bf16_bits(d[4 * j + 2 * i]) | (unsigned)f32_to_bf16_bits(d[4 * j + 2 * i + 1]) << 16;
    stmatrix_x2_trans(xt + (j * 8 + row) * 128 + ((chunk ^ row) << 4), r);
  }
  fence_proxy_async();
  bar_sync(1, 128);
  if (threadIdx.x == 0) {
    tensor_store(&y, xt, 0, 0, n, h0);
    bulk_commit();
    bulk_wait<0>();
  }
}

// Its weight gradient: dw[CO][3][3][C] = sum over pixels of dy[pixel][CO] x[pixel + tap][C], both with K (pixels) first. N =
// 192 is three taps of one filter row: 64 channels, and 128 bytes further the same of the next pixel.
extern "C" __global__ void __launch_bounds__(384) conv3x3_dw(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dy,
                                                             float* dw, int batch, int h) {
  constexpr int K = (PIXELS + 15) / 16 * 16, XR = (2 * PITCH + 2 + K + 7) / 8 * 8 > HALO ? (2 * PITCH + 2 + K + 7) / 8 * 8 : (HALO + 7) / 8 * 8;
  __shared__ u64 full;
  char *xt = tiles(), *dt = xt + (XR * 128 + 1023) / 1024 * 1024;
  int r = threadIdx.x / 128, phase = 0;
  if (threadIdx.x == 0) mbarrier_init(&full, 1), fence_mbarrier_init();
  for (int i = HALO * 8 + threadIdx.x; i < XR * 8; i += 384) *(uint4*)(xt + i * 16) = make_uint4(0, 0, 0, 0);
  for (int i = PIXELS * 8 + threadIdx.x; i < K * 8; i += 384) *(uint4*)(dt + i * 16) = make_uint4(0, 0, 0, 0);
  fence_proxy_async();
  __syncthreads();
  float d[96];
  for (int n = 0; n < batch; ++n)
    for (int h0 = 0; h0 < h; h0 += R) {
      if (threadIdx.x == 0) {
        mbarrier_arrive_expect(&full, (HALO + PIXELS) * 128);
        tensor_load(xt, &x, &full, 0, -1, n, h0 - 1);
        tensor_load(dt, &dy, &full, 0, 0, n, h0);
      }
      mbarrier_wait(&full, phase);
      phase ^= 1;
      wgmma_fence();
#pragma unroll
      for (int q = 0; q < K / 16; ++q)
        wgmma_bf16<192, 1, 1>(d, wgmma_descriptor(dt + q * 2048, 1024, 1024, 128),
                              wgmma_descriptor(xt + r * PITCH * 128 + q * 2048, 128, 1024, 128), n | h0 | q);
      wgmma_commit();
      wgmma_wait<0>();
      wgmma_results(d);
      __syncthreads();
    }
  put<192>(dw + r * 192, d, 9 * 64, 64, 192);
}

// 3x3 convolution of stride 2, padding 1, any size: pixels of the output by im2col copies, one tap at a time. y[pixel][CO].
extern "C" __global__ void __launch_bounds__(128) conv3x3_stride2(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,
                                                                  float* y, int batch, int oh, int ow) {
  constexpr int N = 48, X = N * 128, STAGE = 8192 + X;
  __shared__ u64 full[2];
  char* t = tiles();
  int p0 = blockIdx.x * N, n = p0 / (oh * ow), h = p0 / ow % oh * 2 - 1, c = p0 % ow * 2 - 1;
  if (threadIdx.x == 0) mbarrier_init(full, 1), mbarrier_init(full + 1, 1), fence_mbarrier_init();
  __syncthreads();
  auto load = [&](int tap) {
    u64* bar = full + tap % 2;
    char* to = t + tap % 2 * STAGE;
    mbarrier_arrive_expect(bar, STAGE);
    tensor_load(to, &w, bar, tap * 64, 0);
    tensor_load_im2col(to + 8192, &x, bar, 0, c, h, n, tap % 3, tap / 3);
  };
  float d[N / 2];
  if (threadIdx.x == 0) load(0);
  for (int tap = 0; tap < 9; ++tap) {
    if (threadIdx.x == 0 && tap < 8) load(tap + 1);
    mbarrier_wait(full + tap % 2, tap / 2 & 1);
    char* at = t + tap % 2 * STAGE;
    u64 dw = wgmma_descriptor(at, 16, 1024, 128), dx = wgmma_descriptor(at + 8192, 16, 1024, 128);
    wgmma_fence();
#pragma unroll
    for (int q = 0; q < 4; ++q) wgmma_bf16<N>(d, dw + 2 * q, dx + 2 * q, tap | q);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_results(d);
    __syncthreads();
  }
  int l = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + l / 4;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    int p = p0 + i / 4 * 8 + l % 4 * 2 + (i & 1);
    if (p < batch * oh * ow) y[p * 64 + row + (i & 2) * 4] = d[i];
  }
}

// What the kernels above do not use.
extern "C" __global__ void __launch_bounds__(256, 2) others(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                                                            const __grid_constant__ TensorMap c, const __grid_constant__ TensorMap e,
                                                            const __grid_constant__ TensorMap p, const __grid_constant__ TensorMap q,
                                                            const __grid_constant__ TensorMap s, float* x, int n) {
  __shared__ u64 bar[2];
  __shared__ __align__(128) float t[4096];
  __shared__ __align__(16) float u[64];
  if (threadIdx.x == 0) {
    mbarrier_init(bar, 2), mbarrier_init(bar + 1, 1);
    fence_mbarrier_init();
    tensor_map_prefetch(&a);
    tensor_prefetch(&a, 0), tensor_prefetch(&b, 0, 0), tensor_prefetch(&c, 0, 0, 0), tensor_prefetch(&e, 0, 0, 0, 0);
    tensor_prefetch(&p, 0, 0, 0, 0, 0);
  }
  grid_dependency_wait();
  __syncthreads();
  // From 128 registers each: half of the threads take what the others leave.
  if (threadIdx.x / 128 == 0) setmaxnreg_inc<208>();
  else setmaxnreg_dec<40>();
  if (threadIdx.x == 0) {
    mbarrier_expect(bar, 256);
    bulk_load(u, x, 256, bar);
    tensor_load(t, &a, bar + 1, 0), tensor_load(t + 256, &b, bar + 1, 0, 0), tensor_load(t + 512, &c, bar + 1, 0, 0, 0);
    tensor_load(t + 768, &e, bar + 1, 0, 0, 0, 0), tensor_load(t + 1024, &p, bar + 1, 0, 0, 0, 0, 0);
    tensor_load_im2col(t + 1280, &q, bar + 1, 0, 0, 0, 0), tensor_load_im2col(t + 1536, &s, bar + 1, 0, 0, 0, 0, 0, 0, 0, 0);
    mbarrier_arrive_expect(bar + 1, 7 * 256);
    mbarrier_arrive_count(bar, 2);
  }
  while (!mbarrier_test_wait(bar, 0)) {
  }
  while (!mbarrier_try_wait(bar + 1, 0)) {
  }
  if (threadIdx.x < 64) {
    // Twice what was loaded, added to it; u + 1 where it came from.
    for (int k = 0; k < 7; ++k) t[2048 + k * 256 + threadIdx.x] = 2 * t[k * 256 + threadIdx.x];
    u[threadIdx.x] += 1;
    fence_proxy_async();
  }
  bar_arrive(2, 512), bar_sync(2, 512);
  if (threadIdx.x == 0) {
    mbarrier_invalidate(bar);
    bulk_store(x, u, 256);
    tensor_reduce_add(&a, t + 2048, 0), tensor_store(&b, t + 2304, 0, 0), tensor_store(&c, t + 2560, 0, 0, 0);
    bulk_commit();
    tensor_store(&e, t + 2816, 0, 0, 0, 0), tensor_store(&p, t + 3072, 0, 0, 0, 0, 0);
    tensor_store_im2col(&q, t + 3328, 0, 0, 0), tensor_store_im2col(&s, t + 3584, 0, 0, 0, 0, 0);
    bulk_commit();
    bulk_wait_read<1>();
    bulk_wait<0>();
    fence_proxy_async_global();
  }
  grid_dependency_launch();
}
