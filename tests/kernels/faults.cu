// Kernels with one fault each, planted by -DFAULT=1; with -DFAULT=0 they are right. See tests/faults.rs.
// variants: scalar_t=float; FAULT=0,1; WIDTH=16,8,4; arch=80+
#include "common.cuh"

#define BLOCK 64

// y[i] = x[i + 1], and x[i] for the last. The fault: the last one reads past the end.
extern "C" __global__ void shift(scalar_t* y, const scalar_t* x, i64 n) {
  GRID_STRIDE(i, n) store(y + i, load(x + (FAULT || i + 1 < n ? i + 1 : i)));
}

// Each block's elements in reverse, by way of shared memory. The fault: no barrier between writing and reading it.
extern "C" __global__ void reverse(scalar_t* y, const scalar_t* x) {
  __shared__ scalar_t tile[BLOCK];
  int t = threadIdx.x;
  i64 first = (i64)blockIdx.x * BLOCK;
  tile[t] = x[first + t];
  if (!FAULT) __syncthreads();
  y[first + t] = tile[BLOCK - 1 - t];
}

// The same with a barrier in each branch. The fault: the halves of the block wait at different ones.
extern "C" __global__ void reverse_branches(scalar_t* y, const scalar_t* x) {
  __shared__ scalar_t tile[BLOCK];
  int t = threadIdx.x;
  i64 first = (i64)blockIdx.x * BLOCK;
  tile[t] = x[first + t];
  if (t < (FAULT ? BLOCK / 2 : BLOCK)) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[first + t] = tile[BLOCK - 1 - t];
}

// y = 2x through tiles that cp.async fetches, WIDTH bytes a thread, zeros past the end. The fault: no wait for them.
#ifndef WIDTH
#define WIDTH 16
#endif
#define EACH (WIDTH / 4)
__device__ __forceinline__ void fetch(float* dst, const float* src, int bytes) {
  if (WIDTH == 16) cp_async_16(dst, src, bytes);
  if (WIDTH == 8) cp_async_8(dst, src, bytes);
  if (WIDTH == 4) cp_async_4(dst, src, bytes);
  cp_async_commit();
}
extern "C" __global__ void staged(float* y, const float* x, i64 n) {
  __shared__ alignas(16) float tile[EACH * BLOCK];
  i64 first = ((i64)blockIdx.x * BLOCK + threadIdx.x) * EACH;
  i64 rest = n - first;
  int bytes = rest >= EACH ? WIDTH : rest > 0 ? (int)rest * 4 : 0;
  fetch(tile + EACH * threadIdx.x, bytes ? x + first : x, bytes);
  if (!FAULT && WIDTH == 16) cp_async_wait<0>();
  if (!FAULT && WIDTH != 16) cp_async_wait_all();
  __syncthreads();
  // Another thread's elements, so that the barrier is needed as well.
  int other = BLOCK - 1 - threadIdx.x;
  for (int k = 0; k < EACH; ++k) {
    i64 i = ((i64)blockIdx.x * BLOCK + other) * EACH + k;
    if (i < n) y[i] = 2 * tile[EACH * other + k];
  }
}

// y = a - b, an element for each thread; the faults are the launch's: too few blocks, arguments swapped.
extern "C" __global__ void difference(scalar_t* y, const scalar_t* a, const scalar_t* b, i64 n) {
  i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) store(y + i, load(a + i) - load(b + i));
}

// y = x. The fault: the last element is not written.
extern "C" __global__ void copy(scalar_t* y, const scalar_t* x, i64 n) {
  GRID_STRIDE(i, n - FAULT) store(y + i, load(x + i));
}

// Leaves the address of x in `place`, for `recall` to read through: y = x. The fault is the program's: x is freed between.
extern "C" __global__ void remember(i64* place, const scalar_t* x) { *place = (i64)x; }
extern "C" __global__ void recall(scalar_t* y, const i64* place, i64 n) {
  GRID_STRIDE(i, n) store(y + i, load((const scalar_t*)*place + i));
}
