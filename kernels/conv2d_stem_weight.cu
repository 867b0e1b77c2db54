// dw = dy * x, for images with few channels, see stem.cuh. A warp computes 32 filters (m) by 64 taps (n); k is pixels. The bias is a tap
// before the others, whose x is 1: its gradient, the sum of dy, comes along.
//
//   PASS  0  dy channels-last    1  dy row-major
// variants: scalar_t=bf16,f16; EXACT=0; PASS=0,1; arch=80,90a
// variants: scalar_t=float; EXACT=0,1; PASS=0,1; arch=80,90a
// variants: scalar_t=bf16; EXACT=0; PASS=0; arch=86,100a
// variants: scalar_t=f16; EXACT=0; PASS=0,1; arch=75
#include "stem.cuh"

// Blocks of four warps on a multiprocessor: a limit to the registers of a thread.
#define RESIDENT (SPLIT ? 3 : 4)

// dy of a step: what lane 4g + t needs, eight words for filters 4g … 4g + 3. They come straight from memory, two steps ahead.
//   dy channels-last: all four filters at pixels 2t, 2t + 1, 2t + 8, 2t + 9 (16 bits) or t, t + 4
//   dy row-major: of each filter the pixels 4t … 4t + 3, or 2t, 2t + 1; k is permuted so that these are its two words
struct Held {
  unsigned v[8];
};
#if PASS == 0
#define LANE_PIXELS PER  // from one lane's first pixel to the next one's
#define HIGH 16          // bytes from the word for the low half of k to that for the high one
#else
#define LANE_PIXELS (2 * PER)
#define HIGH 4
#endif
// Elements of dy that are neighbours in memory, and such pieces in a step.
#define PIECE (PASS == 0 ? 4 : 2 * PER)
#define PIECE_WORDS (PIECE / PER)

// A piece of which `count` elements are there.
__device__ __forceinline__ void take(unsigned* v, const scalar_t* from, int count, bool vector) {
#pragma unroll
  for (int e = 0; e < PIECE_WORDS; ++e) v[e] = 0;
  if (count <= 0) return;
  if (vector) {
    if (PIECE_WORDS == 2) {
      const uint2 u = *(const uint2*)from;
      v[0] = u.x, v[1] = u.y;
    } else {
      const uint4 u = *(const uint4*)from;
      v[0] = u.x, v[1] = u.y, v[2 % PIECE_WORDS] = u.z, v[3 % PIECE_WORDS] = u.w;
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < PIECE; ++e) {
    if (e >= count) continue;
    if (PER == 2) v[e / 2 % PIECE_WORDS] |= (unsigned)*(const unsigned short*)(from + e) << (e % 2 * 16);
    else v[e % PIECE_WORDS] = __float_as_uint(load(from + e));
  }
}

// Step q of a band, whose dy begins at `dy`.
__device__ __forceinline__ void fetch(Held& held, const Stem& s, const scalar_t* __restrict__ dy, int q, int steps, int filter) {
  const int t = threadIdx.x % 4, row = s.by_steps.of(q), column = (q - row * s.steps) * STEP;
#pragma unroll
  for (int k = 0; k < 8 / PIECE_WORDS; ++k) {
#if PASS == 0
    const int x = column + (PER == 2 ? 2 * t + k % 2 + k / 2 * 8 : t + 4 * k), o = filter;
    const int count = q < steps && x < s.ow ? s.o - o : 0;
    const scalar_t* from = dy + ((row * s.ow + x) * s.o + o);
    const bool vector = s.o % PIECE == 0;
#else
    const int x = column + LANE_PIXELS * t, o = filter + k;
    const int count = q < steps && o < s.o ? s.ow - x : 0;
    const scalar_t* from = dy + ((o * s.oh + row) * s.ow + x);
    const bool vector = s.ow % PIECE == 0;
#endif
    take(held.v + k * PIECE_WORDS, from, count, vector);
  }
}

// Rows g and g + 8 of fragment i are filters 4g + 2i and 4g + 2i + 1.
__device__ __forceinline__ void fragment_of(unsigned* a, const Held& held, int i) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#if PASS == 1
    a[half * 2] = held.v[4 * i + half];
    a[half * 2 + 1] = held.v[4 * i + 2 + half];
#else
    if (PER == 2) {
      const unsigned even = held.v[half * 4 + i], odd = held.v[half * 4 + 2 + i];
      a[half * 2] = (even & 0xffffu) | odd << 16;
      a[half * 2 + 1] = even >> 16 | (odd & 0xffff0000u);
    } else {
      a[half * 2] = held.v[half * 4 + 2 * i];
      a[half * 2 + 1] = held.v[half * 4 + 2 * i + 1];
    }
#endif
  }
}

#define PITCH 66  // of a row of 64 sums in shared memory: lanes' pairs meet no bank twice

// One value of dw by plain f32, or with `tap` < 0 of db, over the part's bands.
__device__ __noinline__ float plain(const Stem& s, const scalar_t* dy, const scalar_t* x, int filter, int tap, int begin, int end) {
  const int channel = tap / (s.kh * s.kw), i = tap / s.kw % s.kh, j = tap % s.kw;
  float sum = 0;
  for (int band = begin; band < end; ++band) {
    const int n = band / s.bands, row0 = band % s.bands * s.rows;
    for (int y = row0; y < s.oh && y < row0 + s.rows; ++y)
      for (int column = 0; column < s.ow; ++column) {
        const int at_y = y * s.sh - s.pt + i * s.dh, at_x = column * s.sw - s.pl + j * s.dw;
        const i64 pixel = (i64)y * s.ow + column, plane = (i64)s.oh * s.ow;
        const float v = load(dy + n * plane * s.o + (PASS == 0 ? pixel * s.o + filter : filter * plane + pixel));
        if (tap < 0) sum += v;
        else if ((unsigned)at_y < (unsigned)s.h && (unsigned)at_x < (unsigned)s.w)
          sum += v * load(x + (i64)n * s.x_at[0] + at_y * s.x_at[2] + at_x * s.x_at[3] + channel * s.x_at[1]);
      }
  }
  return sum;
}

// parts (gridDim.x, o, taps): of `chunk` bands each; taps in the order (c, kh, kw), before them the bias if it is wanted.
// grid (parts, groups of 32 filters by splits of the taps): a block has 32 filters and s.groups times 64 taps; `shares` warps of
// each group divide the pixels. Shared memory: the image, in the end the sums.
extern "C" __global__ void __launch_bounds__(128, RESIDENT)
    conv2d_stem_weight(float* __restrict__ parts, const scalar_t* __restrict__ dy, const scalar_t* __restrict__ x,
                       const __grid_constant__ Stem s) {
  extern __shared__ __align__(128) char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int shares = blockDim.x / 32 / s.groups, share = warp / s.groups, group = warp % s.groups;
  const int taps = s.bias + s.c * s.kh * s.kw, splits = (taps + s.groups * 64 - 1) / (s.groups * 64);
  const int filters = blockIdx.y / splits * 32, split = blockIdx.y % splits * s.groups * 64, tap0 = split + group * 64;
  const int tiles = (taps - tap0 + 7) / 8;
  int tap_at[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int tap = tap0 + j * 8 + g - s.bias, channel = tap / (s.kh * s.kw), row = tap / s.kw % s.kh, column = tap % s.kw;
    tap_at[j] = tap < 0 ? s.ones : tap < taps - s.bias ? s.word(s.place(row * s.dh, column * s.dw, channel)) : 0;
  }
  const int moves = tap0 + g < s.bias ? 0 : -1;  // the first tap's x by pixels
  float sum[2][8][4] = {};
  clear(shared, s.bytes);
  __syncthreads();
  if (s.bias && threadIdx.x < 32 / sizeof(scalar_t)) store((scalar_t*)(shared + s.ones) + threadIdx.x, 1.f);
  const int begin = blockIdx.x * s.chunk, end = begin + s.chunk < s.all ? begin + s.chunk : s.all;
#pragma unroll 1
  for (int band = begin; band < end; ++band) {
    const int n = s.by_bands.of(band), row0 = (band - n * s.bands) * s.rows;
    const int steps = (s.oh - row0 < s.rows ? s.oh - row0 : s.rows) * s.steps;
    const scalar_t* from = dy + ((i64)n * s.oh * s.ow * s.o + (i64)row0 * s.ow * (PASS == 0 ? s.o : 1));
    Held held[2];
    fetch(held[0], s, from, share, steps, filters + 4 * g);
    fetch(held[1], s, from, share + shares, steps, filters + 4 * g);
    __syncthreads();  // the image's place is free, or cleared
    stage(s, x + (i64)n * s.x_at[0], row0 * s.sh - s.pt, shared);
    __syncthreads();
#pragma unroll 1
    for (int q = share; q < steps; q += shares) {
      const Held now = held[0];
      held[0] = held[1];
      fetch(held[1], s, from, q + 2 * shares, steps, filters + 4 * g);
      const int row = s.by_steps.of(q);
      const int pixel = (row * s.sh * s.at_row + (q - row * s.steps) * STEP + t * LANE_PIXELS) * (int)sizeof(scalar_t);
      unsigned a[2][4], small[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        fragment_of(a[i], now, i);
#pragma unroll
        for (int e = 0; PER == 1 && e < 4; ++e) {
          const float v = __uint_as_float(a[i][e]);
          a[i][e] = big_part(v);
          small[i][e] = SPLIT ? small_part(v, a[i][e]) : 0;
        }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (j >= tiles) break;
        const char* at = shared + ((j ? pixel : pixel & moves) + tap_at[j]);
        unsigned b[4] = {word_at(at), word_at(at + HIGH)};
        if (SPLIT) b[2] = word_at(at + s.second), b[3] = word_at(at + s.second + HIGH);
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply(sum[i][j], a[i], small[i], b, b + 2);
      }
    }
  }
  float* own = (float*)shared + group * 32 * PITCH;
  for (int k = 0; k < shares; ++k) {
    __syncthreads();
    if (share != k) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float2* at = (float2*)(own + (g * 4 + i * 2 + half) * PITCH + j * 8 + 2 * t);
          const float2 before = k ? *at : make_float2(0, 0);
          *at = make_float2(before.x + sum[i][j][half * 2], before.y + sum[i][j][half * 2 + 1]);
        }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < s.groups * 32 * 64; i += blockDim.x) {
    const int filter = i / 64 % 32, o = filters + filter, tap = split + i / (32 * 64) * 64 + i % 64;
    if (o >= s.o || tap >= taps) continue;
    float v = ((const float*)shared)[(i / 64) * PITCH + i % 64];
    if (v != v) v = plain(s, dy, x, o, tap - s.bias, begin, end);
    parts[((i64)blockIdx.x * s.o + o) * taps + tap] = v;
  }
}

// dw, and db where it is wanted, = parts[0] + parts[1] + …; parts (count, o, bias + taps), n elements each. A block has 32 elements,
// each warp every eighth part. Of the taps, `plane` belong to a channel; at_tap and at_channel are strides of dw.
extern "C" __global__ void __launch_bounds__(256)
    stem_sum(scalar_t* __restrict__ dw, scalar_t* __restrict__ db, const float* __restrict__ parts, int n, int taps, int plane,
             int at_tap, int at_channel, int count) {
  __shared__ float sums[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane;
  float v = 0;
  if (i < n) {
#pragma unroll 8
    for (int p = warp; p < count; p += 8) v += parts[(i64)p * n + i];
  }
  sums[warp][lane] = v;
  __syncthreads();
  if (warp || i >= n) return;
  for (int k = 1; k < 8; ++k) v += sums[k][lane];
  const int columns = taps + (db ? 1 : 0), o = i / columns, tap = i - o * columns - (db ? 1 : 0);
  const int channel = tap / plane;
  store(tap < 0 ? db + o : dw + (o * taps + (tap - channel * plane) * at_tap + channel * at_channel), v);
}
