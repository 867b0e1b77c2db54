// Every inline PTX instruction of hadal stands in this file, ptx_hopper.cuh and ptx_wgmma.cuh; the emulator has its own
// version of them.
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

// Two of them as the halves of a word, the first one low: one instruction where there is one.
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ unsigned f32_pair_to_f16_bits(float low, float high) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
__device__ __forceinline__ unsigned f32_pair_to_bf16_bits(float low, float high) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
#else
__device__ __forceinline__ unsigned f32_pair_to_f16_bits(float low, float high) {
  return f32_to_f16_bits(low) | (unsigned)f32_to_f16_bits(high) << 16;
}
__device__ __forceinline__ unsigned f32_pair_to_bf16_bits(float low, float high) {
  return f32_to_bf16_bits(low) | (unsigned)f32_to_bf16_bits(high) << 16;
}
#endif

// cp.async: 16, 8 or 4 bytes from global to shared memory, both aligned to as many, behind the thread's back; bytes from
// src_bytes on become zero (none is read for 0). They are there once the thread has waited for the group that it
// committed them to, and for other threads after a barrier that follows.
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void cp_async_16(void* dst, const void* src, int src_bytes = 16) {
  // Past L1: tiles are read once.
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(dst)),
               "l"(__cvta_generic_to_global(src)), "r"(src_bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_8(void* dst, const void* src, int src_bytes = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"((unsigned)__cvta_generic_to_shared(dst)),
               "l"(__cvta_generic_to_global(src)), "r"(src_bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_4(void* dst, const void* src, int src_bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"((unsigned)__cvta_generic_to_shared(dst)),
               "l"(__cvta_generic_to_global(src)), "r"(src_bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `pending` of the groups committed last are under way.
template <int pending> __device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif

// 16 bytes to global memory in one instruction. Between long computations the compiler takes a store of a uint4 apart.
__device__ __forceinline__ void store_16(void* dst, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(dst)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// ldmatrix: 8 x 8 matrices of 16-bit elements from shared memory, into one register of each lane. Lanes 0-7 give the rows of
// the first (16 bytes each, aligned), lanes 8-15 of the second, and so on; lane 4r + c receives elements 2c and 2c + 1 of row r,
// with `trans` of column r. 32-bit elements fit as well: then lane 4r + c receives element c of a row of four.
#define LDMATRIX(name, modifiers, outputs, ...)                                                       \
  __device__ __forceinline__ void name(unsigned* r, const void* row) {                                \
    asm volatile("ldmatrix.sync.aligned.m8n8." modifiers ".shared.b16 {" outputs ";"                  \
                 : __VA_ARGS__                                                                        \
                 : "r"((unsigned)__cvta_generic_to_shared(row)));                                     \
  }
LDMATRIX(ldmatrix_x1, "x1", "%0}, [%1]", "=r"(r[0]))
LDMATRIX(ldmatrix_x1_trans, "x1.trans", "%0}, [%1]", "=r"(r[0]))
LDMATRIX(ldmatrix_x2, "x2", "%0, %1}, [%2]", "=r"(r[0]), "=r"(r[1]))
LDMATRIX(ldmatrix_x2_trans, "x2.trans", "%0, %1}, [%2]", "=r"(r[0]), "=r"(r[1]))
LDMATRIX(ldmatrix_x4, "x4", "%0, %1, %2, %3}, [%4]", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]))
LDMATRIX(ldmatrix_x4_trans, "x4.trans", "%0, %1, %2, %3}, [%4]", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]))
#undef LDMATRIX

// mma.sync: D (16 x 8, f32) += A (16 x k, rows) B (k x 8, columns), by a whole warp. Lane 4g + t holds of D rows g and g + 8 at
// columns 2t and 2t + 1; of A rows g and g + 8, of B column g, each at k = 2t, 2t + 1 (16-bit types; + 8 in the registers of
// the second half of k) or at k = t and t + 4 (tf32).
__device__ __forceinline__ void mma_m16n8k8_f16(float* d, const unsigned* a, const unsigned* b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
#if __CUDA_ARCH__ >= 800
#define MMA(name, shape, types)                                                                                  \
  __device__ __forceinline__ void name(float* d, const unsigned* a, const unsigned* b) {                         \
    asm("mma.sync.aligned." shape ".row.col.f32." types                                                          \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                   \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                         \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                     \
  }
MMA(mma_m16n8k16_bf16, "m16n8k16", "bf16.bf16")
MMA(mma_m16n8k16_f16, "m16n8k16", "f16.f16")
MMA(mma_m16n8k8_tf32, "m16n8k8", "tf32.tf32")
#undef MMA

// The bits of x as tf32 (11 significant bits), to the nearest, ties away from zero.
__device__ __forceinline__ unsigned f32_to_tf32_bits(float x) {
  unsigned u;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(x));
  return u;
}
#endif

#endif
