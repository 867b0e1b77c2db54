// f32 operands of wgmma that are not K-major, which tf32 has to be: each number is split into two of bf16, 8 bits of it and the next 8,
//
//   a b = a_hi b_hi + a_hi b_lo + a_lo b_hi + (2^-17 of it)
//
// in shared memory, where the copy engine has brought them: 64 channels of a pixel as two rows of 128 bytes, 32 channels each, which
// become a row of the upper halves and one of the lower halves. So memory is read once and nothing is written to it. The step after
// the one that is multiplied is split meanwhile.
#pragma once
#include "wgmma.cuh"

// Copies that bring 64 channels, and rows of 128 bytes that hold them for a pixel.
#define COPIES ((int)sizeof(scalar_t) / 2)

// By whole warps, of which this is number `warp` of `warps`: rows [begin, end) from `at` on, and those `apart` bytes behind them.
__device__ __forceinline__ void split_rows(char* at, int apart, int begin, int end, int warp, int warps) {
  const int half = threadIdx.x % 32 / 16, lane = threadIdx.x % 16;
#pragma unroll 1
  for (int row = begin + warp * 2; row < end; row += warps * 2) {
    char* to = at + (row + half) * 128;
    const int swizzle = __cvta_generic_to_shared(to) >> 7 & 7;
    const bool inside = row + half < end;
    float4 v = {0, 0, 0, 0};
    if (inside) v = *(const float4*)(to + lane / 8 * apart + ((lane % 8 ^ swizzle) << 4));
    __syncwarp();  // all of both rows has been read
    const unsigned a = f32_to_bf16x2(v.x, v.y), b = f32_to_bf16x2(v.z, v.w);
    const unsigned c = f32_to_bf16x2(v.x - __uint_as_float(a << 16), v.y - __uint_as_float(a & 0xffff0000));
    const unsigned d = f32_to_bf16x2(v.z - __uint_as_float(b << 16), v.w - __uint_as_float(b & 0xffff0000));
    to += ((lane / 2 ^ swizzle) << 4) + lane % 2 * 8;
    if (inside) *(uint2*)to = make_uint2(a, b), *(uint2*)(to + apart) = make_uint2(c, d);
  }
}

// Products of f32 read what all warps have split: to be called by all of them in between.
__device__ __forceinline__ void splits_are_done() {
  fence_proxy_async();
  bar_sync(1, GROUPS * 128);
}

// d += 16 pixels, from descriptors of their upper halves; the lower ones are so many 16 bytes further.
template <class T> struct Pixels16 {
  static __device__ __forceinline__ void multiply(float* d, u64 a, u64 b, int, int) { Unit<T>::template multiply<1, 1>(d, a, b); }
};
template <> struct Pixels16<float> {
  static __device__ __forceinline__ void multiply(float* d, u64 a, u64 b, int lower_a, int lower_b) {
    Unit<bf16>::multiply<1, 1>(d, a, b);
    Unit<bf16>::multiply<1, 1>(d, a, b + lower_b);
    Unit<bf16>::multiply<1, 1>(d, a + lower_a, b);
  }
};

// `multiply` of wgmma.cuh for operands that are not K-major; of f32, boxes are DEPTH rows of upper halves, then as many of lower ones.
template <class T>
__device__ __forceinline__ void multiply_pixels(float (&d)[COLS / 2], Ring<STAGES>& ring, Turn<STAGES>& turn, int steps) {
  multiply<false, false>(d, ring, turn, steps);
}
template <>
__device__ __forceinline__ void multiply_pixels<float>(float (&d)[COLS / 2], Ring<STAGES>& ring, Turn<STAGES>& turn, int steps) {
  const int group = threadIdx.x / 128, offset_a = group % DOWN * BOX, offset_b = A_BYTES + group / DOWN * (COLS * 128);
  const bool speaks = threadIdx.x % 32 == 0;
  auto split = [&] {
    mbarrier_wait(ring.full + turn.stage, turn.phase);
    char* at = stages() + turn.stage * STAGE_BYTES;
#pragma unroll 1
    for (int box = 0; box < STAGE_BYTES / BOX; ++box) split_rows(at + box * BOX, BOX / 2, 0, DEPTH, threadIdx.x / 32, GROUPS * 4);
    splits_are_done();
  };
#pragma unroll
  for (int i = 0; i < COLS / 2; ++i) d[i] = 0;
  if (steps > 0) split();
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    const char* at = stages() + turn.stage * STAGE_BYTES;
    const u64 a = wgmma_descriptor(at + offset_a, BOX, 1024, 128), b = wgmma_descriptor(at + offset_b, BOX, 1024, 128);
    wgmma_fence();
#pragma unroll
    for (int q = 0; q < DEPTH / 16; ++q) Pixels16<float>::multiply(d, a + q * 128, b + q * 128, BOX / 2 / 16, BOX / 2 / 16);
    wgmma_commit();
    wgmma_wait<1>();
    if (speaks && i > 0) mbarrier_arrive(ring.empty + turn.before());
    turn.next();
    if (i + 1 < steps) split();  // while this one is multiplied
  }
  wgmma_wait<0>();
  wgmma_results(d);
  if (speaks && steps > 0) mbarrier_arrive(ring.empty + turn.before());
}
