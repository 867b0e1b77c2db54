// y = x scale where the word of the element is at least `threshold` in its upper 24 bits, else 0. The mask is never stored:
// the backward pass is the same kernel on dy with the same draw.
// variants: scalar_t=float,double,f16,bf16
#include "philox.cuh"

__device__ __forceinline__ void keep_or_drop(scalar_t* y, const scalar_t* x, i64 i, unsigned word, unsigned threshold, acc_t scale) {
  store(y + i, (word >> 8) >= threshold ? (acc_t)(load(x + i) * scale) : (acc_t)0);
}

// Row-major memory: one thread for the four elements of a block of words.
extern "C" __global__ void dropout(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, Draw draw, unsigned threshold,
                                   double scale, i64 n) {
  draw = resolved(draw);
  GRID_STRIDE(block, (n + 3) / 4) {
    Words words = philox(draw, (u64)block);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (block * 4 + k < n) keep_or_drop(y, x, block * 4 + k, words.w[k], threshold, (acc_t)scale);
    }
  }
}

// Channels-last memory: `logical` has the extents in memory order and the row-major strides.
extern "C" __global__ void dropout_strided(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, Index logical, Draw draw,
                                           unsigned threshold, double scale, i64 n) {
  draw = resolved(draw);
  GRID_STRIDE(i, n) {
    i64 at = offset_of(i, logical, 4);
    Words words = philox(draw, (u64)at / 4);
    int k = (int)(at & 3);
    unsigned word = k == 0 ? words.w[0] : k == 1 ? words.w[1] : k == 2 ? words.w[2] : words.w[3];
    keep_or_drop(y, x, i, word, threshold, (acc_t)scale);
  }
}
