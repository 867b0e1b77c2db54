// Convolutions of images with few channels, first layers, on tensor cores: what conv2d_stem.cu and conv2d_stem_weight.cu share.
// Such a layer is bound by the memory that y or dy takes: each is written or read once, all else comes from shared memory.
//
// A block takes bands in turn: some output rows of an image, whose input rows lie in shared memory with the padding's zeros.
// There are no copies of patches: a register of a fragment is one word from there, and the word of a pixel and a tap is at the
// sum of an offset for each. In 16 bits a word is two elements that are neighbours in k, so they must be neighbours in shared memory:
//   for y: k = (kernel row, tap and channel), a row filled up to whole words; images lie as (row, column, channel)
//   for dw: k = pixels of a row; images lie as (channel, column % stride, row, column / stride)
// and words that would begin at odd elements are read from a second copy, a place off.
//
// scalar_t  f16 (also on sm_75), bf16, float. EXACT, for float: 0 rounds operands to tf32, 1 splits them, as in mma.cuh; 2 is f32 without
// tensor cores, for y and on every architecture.
// Zeros fill k, and 0 * inf = NaN: sums that are NaN are computed again by plain f32.
#pragma once
#include "common.cuh"
#include "div.cuh"

#define PER (4 / (int)sizeof(scalar_t))  // elements in a word
#define CHUNK (16 / (int)sizeof(scalar_t))
#define STEP (8 * PER)                   // k of an instruction: eight words
// Blocks of four warps on a multiprocessor: a limit to the registers of a thread.
#define SPLIT (EXACT == 1)

// Shared memory after what is said at the kernels: the image's elements, and in a second plane either the same, one place off
// (16 bits), or the small parts of them (SPLIT).
struct Stem {
  int n, c, h, w, o, oh, ow;               // x (n, c, h, w), y (n, o, oh, ow)
  int kh, kw, sh, sw, pt, pl, dh, dw;
  int x_at[4], w_at[4];                    // strides of x and of the filters (o, c, kh, kw)
  int rows, bands, all;                    // output rows of a band, bands of an image, of all images
  int last, inner, count;                  // staging: whether channels are innermost in x; elements of a row (of a channel), of all
  int split, phases;                       // columns by their remainder: a plane for each below `phases`
  int at_row, at_phase, at_column, at_channel;  // from one to the next, in elements
  int second, bytes;                       // where the second plane begins, and all bytes
  int words, steps, groups;                // words of a kernel row; steps of k (dw: of a row of pixels); groups a block has
  int chunk;                               // bands of a part of dw
  int bias, ones;                          // 1 if db is wanted; where ones are for it
  Div by_inner, by_c, by_split, by_ow, by_words, by_bands, by_steps;

  // The element of a band's input row and column, both from the padding's edge on.
  __device__ __forceinline__ int place(int row, int column, int channel) const {
    const int q = by_split.of(column);
    return row * at_row + (column - q * split) * at_phase + q * at_column + channel * at_channel;
  }
  // The offset of the word that begins at an element.
  __device__ __forceinline__ int word(int at) const {
    return PER == 1 ? at * 4 : at & 1 ? second + (at - 1) * 2 : at * 2;
  }
};

// 32 bits of f32 as an operand: the part that tensor cores take, and (SPLIT) the rest.
__device__ __forceinline__ unsigned big_part(float v) {
#if __CUDA_ARCH__ >= 800
  return f32_to_tf32_bits(v) & 0xffffe000u;
#else
  return 0;
#endif
}
__device__ __forceinline__ unsigned small_part(float v, unsigned big) { return big_part(v - __uint_as_float(big)); }

// d += a b in one instruction.
#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void multiply(bf16, float* d, const unsigned* a, const unsigned* b) { mma_m16n8k16_bf16(d, a, b); }
__device__ __forceinline__ void multiply(f16, float* d, const unsigned* a, const unsigned* b) { mma_m16n8k16_f16(d, a, b); }
__device__ __forceinline__ void multiply(float, float* d, const unsigned* a, const unsigned* b) { mma_m16n8k8_tf32(d, a, b); }
#endif

// d += a b, with the small parts of SPLIT: see Math<float> in mma.cuh.
__device__ __forceinline__ void multiply(float* d, const unsigned* a, const unsigned* small_a, const unsigned* b, const unsigned* small_b) {
#if SPLIT
  float eight[4] = {};
  mma_m16n8k8_tf32(eight, small_a, b);
  mma_m16n8k8_tf32(eight, a, small_b);
  mma_m16n8k8_tf32(eight, a, b);
#pragma unroll
  for (int e = 0; e < 4; ++e) d[e] += eight[e];
#elif __CUDA_ARCH__ < 800
  mma_m16n8k8_f16(d, a, b);
  mma_m16n8k8_f16(d, a + 2, b + 1);
#else
  multiply(scalar_t(), d, a, b);
#endif
}

// The input rows of a band, from row `top` of `image` on, into shared memory. What is outside of columns has been zeroed once.
__device__ __forceinline__ void stage(const Stem& s, const scalar_t* __restrict__ image, int top, char* to) {
#pragma unroll 4
  for (int i = threadIdx.x; i < s.count; i += blockDim.x) {
    const int major = s.by_inner.of(i), minor = i - major * s.inner, pair = s.last ? minor : major;
    const int q = s.by_c.of(pair), channel = pair - q * s.c, column = s.last ? q : minor, row = s.last ? major : q;
    const int y = top + row;
    scalar_t v = {};
    if ((unsigned)y < (unsigned)s.h) v = image[y * s.x_at[2] + column * s.x_at[3] + channel * s.x_at[1]];
    const int padded = column + s.pl, phase = padded - s.by_split.of(padded) * s.split;
    if (phase >= s.phases) continue;
    const int at = s.place(row, padded, channel);
    if (PER == 2) {
      ((scalar_t*)to)[at] = v;
      if (s.second && at > 0) ((scalar_t*)(to + s.second))[at - 1] = v;
    } else {
      const float f = load(&v);
      const unsigned big = EXACT == 2 ? __float_as_uint(f) : big_part(f);
      ((unsigned*)to)[at] = big;
      if (SPLIT) ((unsigned*)(to + s.second))[at] = small_part(f, big);
    }
  }
}

__device__ __forceinline__ void clear(char* at, int bytes) {
  for (int i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16) *(uint4*)(at + i) = make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ unsigned word_at(const char* p) { return *(const unsigned*)p; }

