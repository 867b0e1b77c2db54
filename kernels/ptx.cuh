// Every inline PTX instruction of hadal stands in this file; the emulator has its own version of it.
// No CUDA header is included: NVRTC then needs no toolkit on the machine.
#pragma once

#ifdef HADAL_EMULATOR_PTX
#include "emu_ptx.h"
#else

// f16 and bf16 as bits; rounding is to nearest even, NaN stays NaN.
__device__ __forceinline__ float f16_bits_to_f32(unsigned short h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
__device__ __forceinline__ unsigned short f32_to_f16_bits(float f) {
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
__device__ __forceinline__ float bf16_bits_to_f32(unsigned short h) {
  return __uint_as_float((unsigned)h << 16);
}
// In integers, since cvt.rn.bf16.f32 needs sm_80 and sm_75 is supported too.
__device__ __forceinline__ unsigned short f32_to_bf16_bits(float f) {
  unsigned u = __float_as_uint(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((u >> 16) | 0x40u);
  return (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

#endif
