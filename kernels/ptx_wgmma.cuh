// wgmma, for sm_90a: a warpgroup (four warps, the first a multiple of four) computes D = A B + D, D 64 x N in f32, A 64 x K and
// B K x N, K being 16 (8 of tf32). Lane l of warp w of the four holds in d[i] row 16w + l/4 (+8 for i & 2), column
// 8(i/4) + 2(l%4) + (i&1). Included by ptx_hopper.cuh.
//
//   wgmma_bf16<N, trans_a, trans_b, scale_a, scale_b>(d, a, b, scale_d)    descriptors; trans: M- or N-major, else K-major
//   wgmma_bf16<N, trans_b, scale_a, scale_b>(d, registers of A, b, scale_d)
//   wgmma_f16 likewise; wgmma_tf32<N, scale_a, scale_b> likewise, K-major only, its operands cut off, not rounded
//
// scale_d 0 starts a new sum; scale_a and scale_b are 1 or -1. It runs behind the threads' back: d, and the shared memory and
// registers read, are not to be touched before wgmma_wait, nor d be written before it without wgmma_fence. Loops around it must
// be unrolled, and d be the whole of one array: else ptxas puts waits in (advisory C7510 and following).
#pragma once

// Where a tile lies, in bytes. K-major: rows of 32, 64 or 128 bytes (the swizzle), `stride` from 8 rows to the next 8; a step
// of K is +32 bytes. M- or N-major: rows of K that hold so many bytes of M or N, `leading` to the next so many, `stride` from 8
// rows to the next 8. Without swizzle, blocks of 8 rows of 16 bytes: `leading` apart along K and `stride` along M or N (for
// M- or N-major the same; their rows are K's). The swizzle follows the address's own bits, so a tile may begin at any row.
// 16 bytes on is +1 in a descriptor.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
__device__ __forceinline__ unsigned long long wgmma_descriptor(const void* tile, unsigned leading, unsigned stride, int swizzle) {
  unsigned long long mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
  return (shared_address(tile) & 0x3ffff) >> 4 | (unsigned long long)(leading >> 4) << 16 |
         (unsigned long long)(stride >> 4) << 32 | mode << 62;
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `pending` of the groups committed last are under way.
template <int pending> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// After the wait: what is computed from d stays behind it. (The compiler knows no reason why it should.)
template <int count> __device__ __forceinline__ void wgmma_results(float (&d)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The accumulators' registers, as text and as operands, by eights of columns.
#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_TEXT8 "%0, %1, %2, %3"
#define WGMMA_TEXT16 WGMMA_TEXT8 ", %4, %5, %6, %7"
#define WGMMA_TEXT24 WGMMA_TEXT16 ", %8, %9, %10, %11"
#define WGMMA_TEXT32 WGMMA_TEXT24 ", %12, %13, %14, %15"
#define WGMMA_TEXT40 WGMMA_TEXT32 ", %16, %17, %18, %19"
#define WGMMA_TEXT48 WGMMA_TEXT40 ", %20, %21, %22, %23"
#define WGMMA_TEXT56 WGMMA_TEXT48 ", %24, %25, %26, %27"
#define WGMMA_TEXT64 WGMMA_TEXT56 ", %28, %29, %30, %31"
#define WGMMA_TEXT72 WGMMA_TEXT64 ", %32, %33, %34, %35"
#define WGMMA_TEXT80 WGMMA_TEXT72 ", %36, %37, %38, %39"
#define WGMMA_TEXT88 WGMMA_TEXT80 ", %40, %41, %42, %43"
#define WGMMA_TEXT96 WGMMA_TEXT88 ", %44, %45, %46, %47"
#define WGMMA_TEXT104 WGMMA_TEXT96 ", %48, %49, %50, %51"
#define WGMMA_TEXT112 WGMMA_TEXT104 ", %52, %53, %54, %55"
#define WGMMA_TEXT120 WGMMA_TEXT112 ", %56, %57, %58, %59"
#define WGMMA_TEXT128 WGMMA_TEXT120 ", %60, %61, %62, %63"
#define WGMMA_TEXT136 WGMMA_TEXT128 ", %64, %65, %66, %67"
#define WGMMA_TEXT144 WGMMA_TEXT136 ", %68, %69, %70, %71"
#define WGMMA_TEXT152 WGMMA_TEXT144 ", %72, %73, %74, %75"
#define WGMMA_TEXT160 WGMMA_TEXT152 ", %76, %77, %78, %79"
#define WGMMA_TEXT168 WGMMA_TEXT160 ", %80, %81, %82, %83"
#define WGMMA_TEXT176 WGMMA_TEXT168 ", %84, %85, %86, %87"
#define WGMMA_TEXT184 WGMMA_TEXT176 ", %88, %89, %90, %91"
#define WGMMA_TEXT192 WGMMA_TEXT184 ", %92, %93, %94, %95"
#define WGMMA_TEXT200 WGMMA_TEXT192 ", %96, %97, %98, %99"
#define WGMMA_TEXT208 WGMMA_TEXT200 ", %100, %101, %102, %103"
#define WGMMA_TEXT216 WGMMA_TEXT208 ", %104, %105, %106, %107"
#define WGMMA_TEXT224 WGMMA_TEXT216 ", %108, %109, %110, %111"
#define WGMMA_TEXT232 WGMMA_TEXT224 ", %112, %113, %114, %115"
#define WGMMA_TEXT240 WGMMA_TEXT232 ", %116, %117, %118, %119"
#define WGMMA_TEXT248 WGMMA_TEXT240 ", %120, %121, %122, %123"
#define WGMMA_TEXT256 WGMMA_TEXT248 ", %124, %125, %126, %127"
#define WGMMA_REGISTERS8 WGMMA_4(0)
#define WGMMA_REGISTERS16 WGMMA_REGISTERS8, WGMMA_4(4)
#define WGMMA_REGISTERS24 WGMMA_REGISTERS16, WGMMA_4(8)
#define WGMMA_REGISTERS32 WGMMA_REGISTERS24, WGMMA_4(12)
#define WGMMA_REGISTERS40 WGMMA_REGISTERS32, WGMMA_4(16)
#define WGMMA_REGISTERS48 WGMMA_REGISTERS40, WGMMA_4(20)
#define WGMMA_REGISTERS56 WGMMA_REGISTERS48, WGMMA_4(24)
#define WGMMA_REGISTERS64 WGMMA_REGISTERS56, WGMMA_4(28)
#define WGMMA_REGISTERS72 WGMMA_REGISTERS64, WGMMA_4(32)
#define WGMMA_REGISTERS80 WGMMA_REGISTERS72, WGMMA_4(36)
#define WGMMA_REGISTERS88 WGMMA_REGISTERS80, WGMMA_4(40)
#define WGMMA_REGISTERS96 WGMMA_REGISTERS88, WGMMA_4(44)
#define WGMMA_REGISTERS104 WGMMA_REGISTERS96, WGMMA_4(48)
#define WGMMA_REGISTERS112 WGMMA_REGISTERS104, WGMMA_4(52)
#define WGMMA_REGISTERS120 WGMMA_REGISTERS112, WGMMA_4(56)
#define WGMMA_REGISTERS128 WGMMA_REGISTERS120, WGMMA_4(60)
#define WGMMA_REGISTERS136 WGMMA_REGISTERS128, WGMMA_4(64)
#define WGMMA_REGISTERS144 WGMMA_REGISTERS136, WGMMA_4(68)
#define WGMMA_REGISTERS152 WGMMA_REGISTERS144, WGMMA_4(72)
#define WGMMA_REGISTERS160 WGMMA_REGISTERS152, WGMMA_4(76)
#define WGMMA_REGISTERS168 WGMMA_REGISTERS160, WGMMA_4(80)
#define WGMMA_REGISTERS176 WGMMA_REGISTERS168, WGMMA_4(84)
#define WGMMA_REGISTERS184 WGMMA_REGISTERS176, WGMMA_4(88)
#define WGMMA_REGISTERS192 WGMMA_REGISTERS184, WGMMA_4(92)
#define WGMMA_REGISTERS200 WGMMA_REGISTERS192, WGMMA_4(96)
#define WGMMA_REGISTERS208 WGMMA_REGISTERS200, WGMMA_4(100)
#define WGMMA_REGISTERS216 WGMMA_REGISTERS208, WGMMA_4(104)
#define WGMMA_REGISTERS224 WGMMA_REGISTERS216, WGMMA_4(108)
#define WGMMA_REGISTERS232 WGMMA_REGISTERS224, WGMMA_4(112)
#define WGMMA_REGISTERS240 WGMMA_REGISTERS232, WGMMA_4(116)
#define WGMMA_REGISTERS248 WGMMA_REGISTERS240, WGMMA_4(120)
#define WGMMA_REGISTERS256 WGMMA_REGISTERS248, WGMMA_4(124)

// The operands after them: B, scale_d, scale_a, scale_b, trans_b, trans_a, and A: its descriptor, or four registers.
#define WGMMA_OP(n, instruction, a_text, trans_text, at_b, at_d, at_sa, at_sb, ...)                                           \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %" #at_d ", 0; wgmma.mma_async.sync.aligned.m64n" #n instruction " {"           \
               WGMMA_TEXT##n "}, " a_text ", %" #at_b ", p, %" #at_sa ", %" #at_sb trans_text ";}"                            \
               : WGMMA_REGISTERS##n                                                                                           \
               : "l"(b), "r"(scale_d), "n"(scale_a), "n"(scale_b), "n"(trans_b), "n"(trans_a), __VA_ARGS__)
#define WGMMA_FOUR "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
template <int N, int trans_a, int trans_b, int scale_a, int scale_b> struct Wgmma {
  static_assert(N < 0, "wgmma has 8 to 256 columns, by eights");
};
#define WGMMA_16(name, n, b_, d_, sa, sb, tb, ta, a0, a1, a2, a3)                                                             \
  static __device__ __forceinline__ void name(float* d, unsigned long long a, unsigned long long b, int scale_d) {            \
    WGMMA_OP(n, "k16.f32." #name "." #name, "%" #a0, ", %" #ta ", %" #tb, b_, d_, sa, sb, "l"(a));                            \
  }                                                                                                                           \
  static __device__ __forceinline__ void name(float* d, const unsigned* a, unsigned long long b, int scale_d) {               \
    WGMMA_OP(n, "k16.f32." #name "." #name, "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}", ", %" #tb, b_, d_, sa, sb,            \
             WGMMA_FOUR);                                                                                                     \
  }
#define WGMMA_SIZE(n, b_, d_, sa, sb, tb, ta, a0, a1, a2, a3)                                                                 \
  template <int trans_a, int trans_b, int scale_a, int scale_b> struct Wgmma<n, trans_a, trans_b, scale_a, scale_b> {         \
    WGMMA_16(bf16, n, b_, d_, sa, sb, tb, ta, a0, a1, a2, a3)                                                                 \
    WGMMA_16(f16, n, b_, d_, sa, sb, tb, ta, a0, a1, a2, a3)                                                                  \
    static __device__ __forceinline__ void tf32(float* d, unsigned long long a, unsigned long long b, int scale_d) {          \
      WGMMA_OP(n, "k8.f32.tf32.tf32", "%" #a0, "", b_, d_, sa, sb, "l"(a));                                                   \
    }                                                                                                                         \
    static __device__ __forceinline__ void tf32(float* d, const unsigned* a, unsigned long long b, int scale_d) {             \
      WGMMA_OP(n, "k8.f32.tf32.tf32", "{%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}", "", b_, d_, sa, sb, WGMMA_FOUR);            \
    }                                                                                                                         \
  };
WGMMA_SIZE(8, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
WGMMA_SIZE(16, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)
WGMMA_SIZE(24, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)
WGMMA_SIZE(32, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25)
WGMMA_SIZE(40, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29)
WGMMA_SIZE(48, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33)
WGMMA_SIZE(56, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37)
WGMMA_SIZE(64, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41)
WGMMA_SIZE(72, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45)
WGMMA_SIZE(80, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49)
WGMMA_SIZE(88, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53)
WGMMA_SIZE(96, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57)
WGMMA_SIZE(104, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61)
WGMMA_SIZE(112, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65)
WGMMA_SIZE(120, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69)
WGMMA_SIZE(128, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73)
WGMMA_SIZE(136, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77)
WGMMA_SIZE(144, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81)
WGMMA_SIZE(152, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85)
WGMMA_SIZE(160, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89)
WGMMA_SIZE(168, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93)
WGMMA_SIZE(176, 88, 89, 90, 91, 92, 93, 94, 95, 96, 97)
WGMMA_SIZE(184, 92, 93, 94, 95, 96, 97, 98, 99, 100, 101)
WGMMA_SIZE(192, 96, 97, 98, 99, 100, 101, 102, 103, 104, 105)
WGMMA_SIZE(200, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109)
WGMMA_SIZE(208, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113)
WGMMA_SIZE(216, 108, 109, 110, 111, 112, 113, 114, 115, 116, 117)
WGMMA_SIZE(224, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121)
WGMMA_SIZE(232, 116, 117, 118, 119, 120, 121, 122, 123, 124, 125)
WGMMA_SIZE(240, 120, 121, 122, 123, 124, 125, 126, 127, 128, 129)
WGMMA_SIZE(248, 124, 125, 126, 127, 128, 129, 130, 131, 132, 133)
WGMMA_SIZE(256, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137)

#undef WGMMA_16
#define WGMMA_16(name)                                                                                                        \
  template <int N, int trans_a = 0, int trans_b = 0, int scale_a = 1, int scale_b = 1>                                        \
  __device__ __forceinline__ void wgmma_##name(float* d, unsigned long long a, unsigned long long b, int scale_d) {           \
    Wgmma<N, trans_a, trans_b, scale_a, scale_b>::name(d, a, b, scale_d);                                                     \
  }                                                                                                                           \
  template <int N, int trans_b = 0, int scale_a = 1, int scale_b = 1>                                                         \
  __device__ __forceinline__ void wgmma_##name(float* d, const unsigned* a, unsigned long long b, int scale_d) {              \
    Wgmma<N, 0, trans_b, scale_a, scale_b>::name(d, a, b, scale_d);                                                           \
  }
WGMMA_16(bf16)
WGMMA_16(f16)
template <int N, int scale_a = 1, int scale_b = 1>
__device__ __forceinline__ void wgmma_tf32(float* d, unsigned long long a, unsigned long long b, int scale_d) {
  Wgmma<N, 0, 0, scale_a, scale_b>::tf32(d, a, b, scale_d);
}
template <int N, int scale_a = 1, int scale_b = 1>
__device__ __forceinline__ void wgmma_tf32(float* d, const unsigned* a, unsigned long long b, int scale_d) {
  Wgmma<N, 0, 0, scale_a, scale_b>::tf32(d, a, b, scale_d);
}
#endif
