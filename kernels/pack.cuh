// 16-byte accesses: a pack is PACK elements of scalar_t, loaded and stored at once. Every array begins at a multiple of 256 bytes,
// so packs that are counted from its first element are aligned; what is left behind the last whole one is taken element by element.
#pragma once
#include "common.cuh"

#define PACK (16 / (int)sizeof(scalar_t))

// Over the whole grid: for (i64 i = …) where each whole pack of n elements begins, and for the elements behind the last one.
#define FOR_PACKS(i, n, pack) \
  for (i64 i = ((i64)blockIdx.x * blockDim.x + threadIdx.x) * (pack); i + (pack) <= (n); i += (i64)gridDim.x * blockDim.x * (pack))
#define FOR_REST(i, n, pack)                                                                       \
  for (i64 i = (n) / (pack) * (pack) + (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); \
       i += (i64)gridDim.x * blockDim.x)

// The same bytes as elements and as what one instruction moves.
template <class T, int N> union Packed {
  static_assert(N * sizeof(T) % 16 == 0, "whole 16 bytes");
  T v[N];
  uint4 quads[N * sizeof(T) / 16];
};

// N elements from p on, in what they are computed in.
template <int N, class T> __device__ __forceinline__ void load_pack(typename acc<T>::type (&out)[N], const T* p) {
  Packed<T, N> raw;
#pragma unroll
  for (int k = 0; k < (int)(N * sizeof(T) / 16); ++k) raw.quads[k] = ((const uint4*)p)[k];
#pragma unroll
  for (int k = 0; k < N; ++k) out[k] = load(raw.v + k);
}

// 16 bytes of elements as words. Halves are put together by hand: left to itself the compiler stores them two at a time.
template <class T> __device__ __forceinline__ uint4 quad_of(const T* v) {
  Packed<T, 16 / sizeof(T)> raw;
#pragma unroll
  for (int k = 0; k < (int)(16 / sizeof(T)); ++k) raw.v[k] = v[k];
  return raw.quads[0];
}
#define HALVES(i) (v[i].bits | (unsigned)v[i + 1].bits << 16)
template <> __device__ __forceinline__ uint4 quad_of<f16>(const f16* v) { return make_uint4(HALVES(0), HALVES(2), HALVES(4), HALVES(6)); }
template <> __device__ __forceinline__ uint4 quad_of<bf16>(const bf16* v) { return make_uint4(HALVES(0), HALVES(2), HALVES(4), HALVES(6)); }
#undef HALVES

template <int N, class T> __device__ __forceinline__ void store_pack(T* p, const typename acc<T>::type (&values)[N]) {
  T raw[N];
#pragma unroll
  for (int k = 0; k < N; ++k) store(raw + k, values[k]);
#pragma unroll
  for (int k = 0; k < (int)(N * sizeof(T) / 16); ++k) ((uint4*)p)[k] = quad_of(raw + k * (16 / sizeof(T)));
}
