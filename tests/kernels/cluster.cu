// Clusters at work, for the tests: blocks that load for each other and arrive at each other's barriers, as those of hadal's products
// do. SIZE blocks; FAULT is what is wrong, for the emulator's tests.
// variants: SIZE=2,8; arch=90a
#include "ptx_hopper.cuh"

#ifndef FAULT
#define FAULT 0
#endif

typedef unsigned long long u64;
enum { STAGES = 2, PART = 8 / SIZE };
struct alignas(128) Stage {
  float own[4][32], shared[8][32];
};

// Each block has four rows of `own`, in steps of 32 columns; all blocks have the eight rows of `shared`, of which each loads its
// part for all. y[block][row][column] = sum over the steps of own + the sum of the shared rows' column.
extern "C" __global__ void __cluster_dims__(SIZE, 1, 1) __launch_bounds__(160)
    ring(float* y, const __grid_constant__ TensorMap own, const __grid_constant__ TensorMap shared, int steps) {
  __shared__ Stage stages[STAGES];
  __shared__ u64 full[STAGES], empty[STAGES];
  const unsigned rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) mbarrier_init(full + i, 1), mbarrier_init(empty + i, FAULT == 1 ? 4 : 4 * size);
    if (FAULT != 2) fence_mbarrier_init();
  }
  if (FAULT == 3 || FAULT == 2) __syncthreads();
  if (FAULT != 3) cluster_arrive(), cluster_wait();
  if (FAULT == 7 && rank == 1) return;
  if (threadIdx.x >= 128) {
    if (elect_one())
      for (int i = 0; i < steps; ++i) {
        const int s = i % STAGES;
        mbarrier_wait(empty + s, (i / STAGES & 1) ^ 1);
        mbarrier_arrive_expect(full + s, sizeof(Stage) + (FAULT == 4 ? 128 : FAULT == 5 ? -128 : 0));
        tensor_load(stages[s].own, &own, full + s, i * 32, blockIdx.x * 4);
        tensor_load_multicast(stages[s].shared + rank * PART, &shared, full + s, FAULT == 6 ? 1u << (1 + size) : (1u << size) - 1, i * 32,
                              rank * PART);
      }
  } else {
    float sum = 0;
    for (int i = 0; i < steps; ++i) {
      const int s = i % STAGES;
      mbarrier_wait(full + s, i / STAGES & 1);
      sum += stages[s].own[threadIdx.x / 32][threadIdx.x % 32];
      for (int r = 0; r < 8; ++r) sum += stages[s].shared[r][threadIdx.x % 32];
      __syncwarp();
      if (FAULT == 1) {
        if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + s);
      } else if (threadIdx.x % 32 < size) {
        mbarrier_arrive_cluster(empty + s, threadIdx.x % 32);
      }
      if (FAULT == 8 && rank == 1 && i == 1) return;
    }
    y[blockIdx.x * 128 + threadIdx.x] = sum;
  }
  if (FAULT == 9 || (FAULT == 10 && rank == 0)) return;
  if (FAULT == 11) cluster_wait();
  cluster_arrive();
  if (FAULT == 12) return;
  if (FAULT == 13) cluster_arrive();
  cluster_wait();
}

// Rank and size in three dimensions; a poll that only the other block ends; variables met in another order; threads that returned.
__device__ __forceinline__ u64* late(int which) {
  __shared__ u64 a[3];
  if (which == 0) return a;
  __shared__ u64 b;
  return &b;
}
extern "C" __global__ void others(float* y) {
  const unsigned rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x >= 40) return;
  u64 *a = late(rank % 2), *b = late(1 - rank % 2), *bar = rank % 2 ? a : b;
  if (threadIdx.x == 0) mbarrier_init(bar, size), fence_mbarrier_init();
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x < size) mbarrier_arrive_cluster(bar, threadIdx.x);
  if (threadIdx.x == 32)
    while (!mbarrier_test_wait(bar, 0)) {
    }
  if (threadIdx.x == 33) mbarrier_wait(bar, 0);
  if (threadIdx.x == 0) y[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = rank + 100 * size;
  cluster_arrive();
  cluster_wait();
}

// The first block loads boxes of 64 numbers from tensors of one to five axes, for itself and the second, the last for the second
// alone. y[block] = their sum.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(64)
    boxes(float* y, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c,
          const __grid_constant__ TensorMap d, const __grid_constant__ TensorMap e) {
  __shared__ __align__(128) float t[5][64];
  __shared__ u64 bar;
  const bool first = cluster_rank() == 0;
  for (int i = 0; i < 5; ++i) t[i][threadIdx.x] = 0;
  fence_proxy_async();
  if (threadIdx.x == 0) mbarrier_init(&bar, 1), fence_mbarrier_init();
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(&bar, first ? 4 * 256 : 5 * 256);
    if (first) {
      tensor_load_multicast(t[0], &a, &bar, 3, 0);
      tensor_load_multicast(t[1], &b, &bar, 3, 0, 0);
      tensor_load_multicast(t[2], &c, &bar, 3, 0, 0, 0);
      tensor_load_multicast(t[3], &d, &bar, 3, 0, 0, 0, 0);
      tensor_load_multicast(t[4], &e, &bar, 2, 0, 0, 0, 0, 0);
    }
  }
  mbarrier_wait(&bar, 0);
  float sum = 0;
  for (int i = 0; i < 5; ++i) sum += t[i][threadIdx.x];
  y[blockIdx.x * 64 + threadIdx.x] = sum;
  cluster_arrive();
  cluster_wait();
}
