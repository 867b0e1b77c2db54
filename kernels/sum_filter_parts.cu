// The gradient of filters from the parts of it that conv2d_wgmma.cu and conv3x3_wgmma.cu leave, in order.
//
//   dw(o, c, tap) = sum over p of sums(p, o, tap, c)
// variants: scalar_t=bf16,f16,float
#include "common.cuh"

// dw (o, channels, taps), sums (parts, o, taps, channels), count of dw.
extern "C" __global__ void sum_filter_parts(scalar_t* __restrict__ dw, const float* __restrict__ sums, i64 count, int parts, int taps,
                                            int channels) {
  GRID_STRIDE(i, count) {
    float v = 0;
#pragma unroll 8
    for (int part = 0; part < parts; ++part) v += sums[part * count + i];
    const i64 row = i / channels, o = row / taps;
    store(dw + (o * channels + i - row * channels) * taps + row - o * taps, v);
  }
}
