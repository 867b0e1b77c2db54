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

// N elements that may be a pack, or a single one.
template <int N, class T> __device__ __forceinline__ void load_some(typename acc<T>::type (&out)[N], const T* p) {
  if constexpr (N == 1) out[0] = load(p);
  else load_pack(out, p);
}

// 16 bytes of elements from what they were computed in.
template <class T> __device__ __forceinline__ uint4 quad_of(const typename acc<T>::type* v) {
  Packed<T, 16 / sizeof(T)> raw;
#pragma unroll
  for (int k = 0; k < (int)(16 / sizeof(T)); ++k) store(raw.v + k, v[k]);
  return raw.quads[0];
}
#define PAIRS(pair) make_uint4(pair(v[0], v[1]), pair(v[2], v[3]), pair(v[4], v[5]), pair(v[6], v[7]))
template <> __device__ __forceinline__ uint4 quad_of<f16>(const float* v) { return PAIRS(f32_pair_to_f16_bits); }
template <> __device__ __forceinline__ uint4 quad_of<bf16>(const float* v) { return PAIRS(f32_pair_to_bf16_bits); }
#undef PAIRS

template <int N, class T> __device__ __forceinline__ void store_pack(T* p, const typename acc<T>::type (&values)[N]) {
#pragma unroll
  for (int k = 0; k < (int)(N * sizeof(T) / 16); ++k) ((uint4*)p)[k] = quad_of<T>(values + k * (16 / sizeof(T)));
}

// The same where the compiler would take the store apart.
template <int N, class T> __device__ __forceinline__ void store_whole_pack(T* p, const typename acc<T>::type (&values)[N]) {
#pragma unroll
  for (int k = 0; k < (int)(N * sizeof(T) / 16); ++k) store_16((uint4*)p + k, quad_of<T>(values + k * (16 / sizeof(T))));
}
