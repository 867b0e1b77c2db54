// y = x in another dtype, as Rust's `as`: halves are rounded to nearest even, floats become integers by cutting
// towards zero with saturation (NaN is 0), integers become narrower ones by their low bits.
// variants: scalar_t=float,double,f16,bf16,u8,i64; to_t=float,i64
// variants: scalar_t=float,i64; to_t=double,f16,bf16,u8
#include "pack.cuh"

// Rounding to odd keeps what a second rounding to a half type has to know.
__device__ __forceinline__ float to_odd(double x) {
  float f = (float)x;
  double back = (double)f;
  if (back == x || x != x) return f;
  unsigned bits = __float_as_uint(f);
  if (fabs(back) > fabs(x)) bits -= 1;  // towards zero
  return __uint_as_float(bits | 1u);
}

template <class T> struct to;
template <> struct to<float> {
  static __device__ __forceinline__ float from(float x) { return x; }
  static __device__ __forceinline__ float from(double x) { return (float)x; }
  static __device__ __forceinline__ float from(i64 x) { return (float)x; }
  static __device__ __forceinline__ float from(u8 x) { return (float)x; }
};
template <> struct to<double> {
  template <class X> static __device__ __forceinline__ double from(X x) { return (double)x; }
};
// What `store` rounds to a half.
struct half_source {
  static __device__ __forceinline__ float from(float x) { return x; }
  static __device__ __forceinline__ float from(double x) { return to_odd(x); }
  static __device__ __forceinline__ float from(i64 x) { return to_odd((double)x); }
  static __device__ __forceinline__ float from(u8 x) { return (float)x; }
};
template <> struct to<f16> : half_source {};
template <> struct to<bf16> : half_source {};
template <> struct to<i64> {
  static __device__ __forceinline__ i64 from(double x) {
    if (!(x > -9223372036854775808.0)) return x != x ? 0 : (i64)(-9223372036854775807LL - 1);
    return x >= 9223372036854775808.0 ? (i64)9223372036854775807LL : (i64)x;
  }
  static __device__ __forceinline__ i64 from(float x) { return from((double)x); }
  static __device__ __forceinline__ i64 from(i64 x) { return x; }
  static __device__ __forceinline__ i64 from(u8 x) { return x; }
};
template <> struct to<u8> {
  static __device__ __forceinline__ u8 from(double x) { return x > 0 ? (x >= 255 ? (u8)255 : (u8)x) : (u8)0; }
  static __device__ __forceinline__ u8 from(float x) { return from((double)x); }
  static __device__ __forceinline__ u8 from(i64 x) { return (u8)x; }
  static __device__ __forceinline__ u8 from(u8 x) { return x; }
};

extern "C" __global__ void cast(to_t* __restrict__ y, const scalar_t* __restrict__ x, i64 n) {
  // As many elements as make 16 bytes of the narrower type.
  constexpr int N = 16 / (int)(sizeof(to_t) < sizeof(scalar_t) ? sizeof(to_t) : sizeof(scalar_t));
  FOR_PACKS(i, n, N) {
    acc_t from[N];
    acc<to_t>::type v[N];
    load_pack(from, x + i);
#pragma unroll
    for (int k = 0; k < N; ++k) v[k] = to<to_t>::from(from[k]);
    store_pack(y + i, v);
  }
  FOR_REST(i, n, N) store(y + i, to<to_t>::from(load(x + i)));
}
