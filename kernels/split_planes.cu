// f32 as three numbers of bf16, for products by wgmma in f32's accuracy (wgmma_six.cuh):
//
//   planes(0) = x to 8 bits, planes(1) = the next 8 of what is left, planes(2) = the last 8      planes(0) + planes(1) + planes(2) = x
//
// exactly, but for what lies below bf16's smallest number, 2^-133. What is not finite is planes(0), and the others are 0.
// variants: arch=90a
#define scalar_t float
#include "pack.cuh"

__device__ __forceinline__ float rounded(float x) { return bf16_bits_to_f32(f32_to_bf16_bits(x)); }

// planes (3, stride), x (n), n up to `stride`, a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) split_planes(bf16* __restrict__ planes, const float* __restrict__ x, i64 n, i64 stride) {
  auto split = [](float (&plane)[3], float v) {
    plane[0] = rounded(v);
    // The largest floats would be rounded to infinity: cut them off.
    if (!isfinite(plane[0]) && isfinite(v)) plane[0] = __uint_as_float(__float_as_uint(v) & 0xffff0000);
    const float rest = isfinite(v) ? v - plane[0] : 0;
    plane[1] = rounded(rest), plane[2] = rest - plane[1];
  };
  FOR_PACKS(i, n, 8) {
    float v[8], plane[3][8];
    load_pack<8>(v, x + i);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      float own[3];
      split(own, v[e]);
#pragma unroll
      for (int p = 0; p < 3; ++p) plane[p][e] = own[p];
    }
#pragma unroll
    for (int p = 0; p < 3; ++p) store_pack(planes + p * stride + i, plane[p]);
  }
  FOR_REST(i, n, 8) {
    float own[3];
    split(own, x[i]);
#pragma unroll
    for (int p = 0; p < 3; ++p) store(planes + p * stride + i, own[p]);
  }
}
