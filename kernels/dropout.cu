// y = x scale where the word of the element is at least `threshold` in its upper 24 bits, else 0. The mask is never stored:
// the backward pass is the same kernel on dy with the same draw.
// 2 S bytes for each element of S bytes, forward and backward.
// variants: scalar_t=float,double,f16,bf16
#include "pack.cuh"
#include "philox.cuh"

__device__ __forceinline__ void keep_or_drop(scalar_t* y, const scalar_t* x, i64 i, unsigned word, unsigned threshold, acc_t scale) {
  store(y + i, (word >> 8) >= threshold ? (acc_t)(load(x + i) * scale) : (acc_t)0);
}

// Row-major memory: one thread for a pack, or for the four elements of a block of words where that is more.
extern "C" __global__ void dropout(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, Draw draw, unsigned threshold,
                                   double scale, i64 n) {
  draw = resolved(draw);
  constexpr int N = PACK < 4 ? 4 : PACK;
  FOR_PACKS(i, n, N) {
    acc_t v[N];
    load_pack(v, x + i);
#pragma unroll
    for (int block = 0; block < N / 4; ++block) {
      Words words = philox(draw, (u64)(i / 4 + block));
#pragma unroll
      for (int k = 0; k < 4; ++k) v[block * 4 + k] = (words.w[k] >> 8) >= threshold ? (acc_t)(v[block * 4 + k] * (acc_t)scale) : (acc_t)0;
    }
    store_pack(y + i, v);
  }
  FOR_REST(i, n, N) {
    Words words = philox(draw, (u64)i / 4);
    int k = (int)(i & 3);
    unsigned word = k == 0 ? words.w[0] : k == 1 ? words.w[1] : k == 2 ? words.w[2] : words.w[3];
    keep_or_drop(y, x, i, word, threshold, (acc_t)scale);
  }
}

// Channels-last memory of whole packs and planes of whole blocks of words, x (images, size, channels): one thread for four
// neighbouring pixels of a pack of channels, whose words are one block for each channel.
extern "C" __global__ void dropout_channels(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, Draw draw, unsigned threshold,
                                            double scale, i64 size, i64 channels, i64 items) {
  draw = resolved(draw);
  const i64 packs = channels / PACK;
  GRID_STRIDE(i, items) {
    const i64 q = quotient(i, packs), c = (i - q * packs) * PACK, image = quotient(q, size / 4), pixel = (q - image * (size / 4)) * 4;
    const i64 at = (image * size + pixel) * channels + c;
    uint4 raw[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) raw[p] = *(const uint4*)(x + at + p * channels);
    unsigned kept = 0;  // bit p * PACK + k for channel k of pixel p
    u64 block = (u64)(image * channels + c) * (u64)(size / 4) + (u64)(pixel / 4);
#pragma unroll
    for (int k = 0; k < PACK; ++k, block += (u64)(size / 4)) {
      Words words = philox(draw, block);
#pragma unroll
      for (int p = 0; p < 4; ++p) kept |= (unsigned)((words.w[p] >> 8) >= threshold) << (p * PACK + k);
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      Packed<scalar_t, PACK> from;
      from.quads[0] = raw[p];
      acc_t v[PACK];
#pragma unroll
      for (int k = 0; k < PACK; ++k) v[k] = kept >> (p * PACK + k) & 1 ? (acc_t)(load(from.v + k) * (acc_t)scale) : (acc_t)0;
      store_whole_pack(y + at + p * channels, v);
    }
  }
}

// Other channels-last memory: `logical` has the extents in memory order and the row-major strides.
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
