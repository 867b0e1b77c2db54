// Rows of an array (outer, len, inner) along its middle axis, each shared by a team of threads: one, a warp or a block.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float exp_(float x) { return expf(x); }
__device__ __forceinline__ double exp_(double x) { return exp(x); }
__device__ __forceinline__ float log_(float x) { return logf(x); }
__device__ __forceinline__ double log_(double x) { return log(x); }
__device__ __forceinline__ float log1p_(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_(double x) { return log1p(x); }
__device__ __forceinline__ float abs_(float x) { return fabsf(x); }
__device__ __forceinline__ double abs_(double x) { return fabs(x); }

#define NEG_INFINITY ((acc_t) - __uint_as_float(0x7f800000u))
#define NOT_A_NUMBER ((acc_t)__uint_as_float(0x7fffffffu))

// Blocks have 256 threads; `team` is 1, 32 or 256.
struct Rows {
  i64 count;  // outer * inner
  i64 len;
  i64 inner;
  i64 team;
};

// Row i of the array begins here; its elements are `inner` apart.
__device__ __forceinline__ i64 row_base(i64 row, const Rows& r) {
  return r.inner == 1 ? row * r.len : row / r.inner * r.len * r.inner + row % r.inner;
}

#define FOR_ROWS(row, r)                                                              \
  for (i64 row = ((i64)blockIdx.x * blockDim.x + threadIdx.x) / (r).team; row < (r).count; \
       row += (i64)gridDim.x * blockDim.x / (r).team)

// The team's threads take turns: thread k has elements k, k + team, …
#define FOR_ELEMENTS(c, r) for (i64 c = threadIdx.x % (r).team; c < (r).len; c += (r).team)

template <class T> __device__ __forceinline__ T team_sum(T v, i64 team, T* scratch) {
  if (team == 1) return v;
  return team == 32 ? warp_sum(v) : block_sum(v, scratch);
}

template <class T> __device__ __forceinline__ T warp_max(T v) {
  for (int m = 16; m; m >>= 1) {
    T o = __shfl_xor_sync(0xffffffffu, v, m);
    v = o > v ? o : v;
  }
  return v;
}

template <class T> __device__ __forceinline__ T team_max(T v, i64 team, T* scratch) {
  if (team == 1) return v;
  v = warp_max(v);
  if (team == 32) return v;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  __syncthreads();  // scratch may still be read from an earlier call
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  return warp_max(scratch[lane < (int)(blockDim.x >> 5) ? lane : 0]);
}
