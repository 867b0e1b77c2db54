// Uniform and normal numbers of a draw, as src/random.rs has them; one thread for four elements.
// variants: scalar_t=float,double,f16,bf16
#include "philox.cuh"

// a + b c with both roundings, so that the CPU computes the same bits.
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fadd_rn(a, __fmul_rn(b, c)); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return __dadd_rn(a, __dmul_rn(b, c)); }

// y = lo + width u, u in [0, 1)
extern "C" __global__ void uniform(scalar_t* __restrict__ y, Draw draw, double lo, double width, i64 n) {
  draw = resolved(draw);
  GRID_STRIDE(block, (n + 3) / 4) {
    Words words = philox(draw, (u64)block);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (block * 4 + k < n) store(y + block * 4 + k, multiply_add((acc_t)lo, (acc_t)width, (acc_t)unit(words.w[k])));
    }
  }
}

// y = mean + std z; by Box and Muller z = sqrt(-2 ln(1 - u)) (cos 2πv, sin 2πv), 1 - u in (0, 1]
extern "C" __global__ void normal(scalar_t* __restrict__ y, Draw draw, double mean, double std, i64 n) {
  draw = resolved(draw);
  GRID_STRIDE(block, (n + 3) / 4) {
    Words words = philox(draw, (u64)block);
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      float r = sqrtf(-2.0f * logf(1.0f - unit(words.w[k])));
      float sin, cos;
      sincospif(2.0f * unit(words.w[k + 1]), &sin, &cos);  // that of 2πv needs local memory, for angles beyond a circle
      i64 i = block * 4 + k;
      if (i < n) store(y + i, multiply_add((acc_t)mean, (acc_t)std, (acc_t)(r * cos)));
      if (i + 1 < n) store(y + i + 1, multiply_add((acc_t)mean, (acc_t)std, (acc_t)(r * sin)));
    }
  }
}

// base = (seed, number): where the draws of a CUDA graph's next replay begin. One thread.
extern "C" __global__ void set_draw(u64* base, u64 seed, u64 number) {
  base[0] = seed;
  base[1] = number;
}
