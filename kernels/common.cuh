// Types and loops shared by all kernels. A file is compiled once for each dtype asked for: -Dscalar_t=float|double|f16|bf16|u8|i64.
#pragma once
#include "ptx.cuh"

typedef long long i64;
typedef unsigned char u8;

// Half types as plain storage: arithmetic happens in acc_t.
struct f16 {
  unsigned short bits;
};
struct bf16 {
  unsigned short bits;
};

// The type that a storage type is computed in: float at least.
template <class T> struct acc {
  typedef T type;
};
template <> struct acc<f16> {
  typedef float type;
};
template <> struct acc<bf16> {
  typedef float type;
};

template <class T> __device__ __forceinline__ typename acc<T>::type load(const T* p) { return *p; }
template <> __device__ __forceinline__ float load<f16>(const f16* p) { return f16_bits_to_f32(p->bits); }
template <> __device__ __forceinline__ float load<bf16>(const bf16* p) { return bf16_bits_to_f32(p->bits); }

template <class T> __device__ __forceinline__ void store(T* p, typename acc<T>::type v) { *p = v; }
template <> __device__ __forceinline__ void store<f16>(f16* p, float v) { p->bits = f32_to_f16_bits(v); }
template <> __device__ __forceinline__ void store<bf16>(bf16* p, float v) { p->bits = f32_to_bf16_bits(v); }

#ifdef scalar_t
typedef acc<scalar_t>::type acc_t;
#endif

// for (i64 i = …; i < n; …) over the whole grid.
#define GRID_STRIDE(i, n) \
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (i64)gridDim.x * blockDim.x)

// a / b of numbers that are not negative; 64 bits are divided only where they are needed, since that takes several times as long.
__device__ __forceinline__ i64 quotient(i64 a, i64 b) { return (a | b) >> 31 == 0 ? (i64)((unsigned)a / (unsigned)b) : a / b; }

// 1 / x of a number from 1 to 2^31, by Newton's method: a division proper calls a function for numbers that such a one is not,
// and registers are spilled around it.
__device__ __forceinline__ float reciprocal(float x) {
  float r = __fdividef(1.0f, x);
  return fmaf(fmaf(-x, r, 1.0f), r, r);
}
__device__ __forceinline__ double reciprocal(double x) {
  double r = reciprocal((float)x);
  r = fma(fma(-x, r, 1.0), r, r);
  return fma(fma(-x, r, 1.0), r, r);
}

// Shapes and strides travel by value; unused axes have extent 1.
#define MAX_RANK 8
struct Index {
  i64 extent[MAX_RANK];
  i64 stride[MAX_RANK];
};

// Element offset of the row-major linear index i under other strides.
__device__ __forceinline__ i64 offset_of(i64 i, const Index& at, int rank) {
  i64 offset = 0;
  for (int d = rank - 1; d >= 0; --d) {
    i64 q = i / at.extent[d];
    offset += (i - q * at.extent[d]) * at.stride[d];
    i = q;
  }
  return offset;
}

// Sum over the lanes of a warp, in every lane; the order is fixed.
template <class T> __device__ __forceinline__ T warp_sum(T v) {
  for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(0xffffffffu, v, m);
  return v;
}

// Sum over a block of up to 1024 threads (a multiple of 32), in every thread; `scratch` holds 32 values.
template <class T> __device__ __forceinline__ T block_sum(T v, T* scratch) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  v = warp_sum(v);
  __syncthreads();  // scratch may still be read from an earlier call
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = lane < (int)(blockDim.x >> 5) ? scratch[lane] : (T)0;
  return warp_sum(v);
}
