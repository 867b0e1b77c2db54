// A warp's tile of y = x * w + b, 64 pixels by 32 filters, and the statistics of what a block computes: what conv2d_stem.cu and
// stem_pool.cu share. They define PASS before, as conv2d_stem.cu says.
#pragma once
#include "spread.cuh"
#include "stem.cuh"

// In each lane (4g + t), fragments hold pixels or filters g + 8q along m. Along n, lanes get columns 2t and 2t + 1 of each eight
// as sums: columns are permuted so that these are eight neighbours, a line that is stored at once. Without tensor cores a lane
// has eight pixels and the filters from 8t on; lines of pixels are shorter then, since lanes would meet the same banks.
#define EIGHTS(q, g) ((q) * 8 + (g))
#define PERMUTED(q, g) ((q) / 4 * 32 + (g) / 2 * 8 + (q) % 4 * 2 + (g) % 2)
#if PASS == 0
#define PIXEL_OF EIGHTS
#define FILTER_OF PERMUTED
#define MT 4
#define NT 4
#elif EXACT == 2
#define PIXEL_OF(q, g) ((q) / 4 * 32 + (g) * 4 + (q) % 4)
#else
#define PIXEL_OF PERMUTED
#define FILTER_OF EIGHTS
#define MT 2
#define NT 8
#endif
#define LINE (EXACT == 2 && PASS == 1 ? 4 : 8)

// A word of the filters: two neighbours (or one) of a kernel row.
__device__ __forceinline__ unsigned filter_word(const Stem& s, const scalar_t* __restrict__ w, int filter, int u) {
  const int row = s.by_words.of(u), first = (u - row * s.words) * PER;
  unsigned bits = 0;
#pragma unroll
  for (int e = 0; e < PER; ++e) {
    const int k = first + e, tap = s.by_c.of(k), channel = k - tap * s.c;
    if (filter >= s.o || row >= s.kh || tap >= s.kw) continue;
    const scalar_t* v = w + (filter * s.w_at[0] + channel * s.w_at[1] + row * s.w_at[2] + tap * s.w_at[3]);
    bits |= PER == 2 ? (unsigned)*(const unsigned short*)v << (16 * e) : __float_as_uint(load(v));
  }
  return bits;
}

// The filters in the order in which they are read: fragments by (group, step, slot, lane), or (group, word, filter).
#define SLOTS (SPLIT ? 4 : 2)
__device__ __forceinline__ void pack_filters(const Stem& s, const scalar_t* __restrict__ w, uint4* to) {
  const int first = blockIdx.y * s.groups * 32;
#if EXACT == 2
  for (int i = threadIdx.x; i < s.groups * s.steps * 8 * 32; i += blockDim.x) {
    const int all = i / 32, group = all / (s.steps * 8);
    ((unsigned*)to)[i] = filter_word(s, w, first + group * 32 + i % 32, all - group * s.steps * 8);
  }
#else
  for (int i = threadIdx.x; i < s.groups * s.steps * SLOTS * 32; i += blockDim.x) {
    const int lane = i % 32, slot = i / 32 % SLOTS, all = i / (32 * SLOTS), group = all / s.steps;
    const int filter = first + group * 32, u = (all - group * s.steps) * 8 + lane % 4;
    unsigned v[4];
    if (SPLIT) {
      const int own = filter + FILTER_OF(slot, lane / 4);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float f = __uint_as_float(filter_word(s, w, own, u + 4 * e));
        v[e] = big_part(f);
        v[2 + e] = small_part(f, v[e]);
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        v[e] = filter_word(s, w, filter + FILTER_OF(slot * 2 + e / 2, lane / 4), u + e % 2 * 4);
        if (PER == 1) v[e] = big_part(__uint_as_float(v[e]));
      }
    }
    to[i] = make_uint4(v[0], v[1], v[2], v[3]);
  }
#endif
}

// One value of y by plain f32.
__device__ __noinline__ float plain(const Stem& s, const scalar_t* image, const scalar_t* filter, int y, int x) {
  float sum = 0;
  for (int i = 0; i < s.kh; ++i)
    for (int j = 0; j < s.kw; ++j)
      for (int c = 0; c < s.c; ++c) {
        const int row = y * s.sh - s.pt + i * s.dh, column = x * s.sw - s.pl + j * s.dw;
        if ((unsigned)row >= (unsigned)s.h || (unsigned)column >= (unsigned)s.w) continue;
        sum += load(image + row * s.x_at[2] + column * s.x_at[3] + c * s.x_at[1]) *
               load(filter + c * s.w_at[1] + i * s.w_at[2] + j * s.w_at[3]);
      }
  return sum;
}

// Two halves in a word.
__device__ __forceinline__ unsigned pair_of(bf16, float low, float high) { return f32_pair_to_bf16_bits(low, high); }
__device__ __forceinline__ unsigned pair_of(f16, float low, float high) { return f32_pair_to_f16_bits(low, high); }
__device__ __forceinline__ unsigned pair_of(float, float low, float) { return __float_as_uint(low); }

// A warp's sums, and values of a lane's line k of them.
#if EXACT == 2
typedef float Tile[8][8];
#define VALUE(k, e) (PASS == 0 ? sum[(k) % 8][e] : sum[(k) % 2 * 4 + (e) % 4][(k) / 2])
#else
typedef float Tile[MT][NT][4];
#if PASS == 0
#define VALUE(k, e) sum[(k) / 2][(e) / 2][(k) % 2 * 2 + (e) % 2]
#else
#define VALUE(k, e) sum[(k) / 4][(k) % 2 * 4 + (e) / 2][(k) / 2 % 2 * 2 + (e) % 2]
#endif
#endif

// Where in shared memory the first words of a tile's pixels are, the first one's number is `first`; what is not there is pixel 0.
__device__ __forceinline__ void places(int (&pixel)[8], const Stem& s, int image_at, int first, int pixels, int g) {
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    int p = first + PIXEL_OF(q, g);
    p = p < pixels ? p : 0;
    const int row = s.by_ow.of(p);
    pixel[q] = image_at + s.word(s.place(row * s.sh, (p - row * s.ow) * s.sw, 0));
  }
}

// The offset of each of k's words from a pixel's first one.
__device__ __forceinline__ void put_offsets(const Stem& s, int* offset) {
  for (int u = threadIdx.x; u < s.steps * 8; u += blockDim.x) {
    const int row = s.by_words.of(u);
    offset[u] = row < s.kh ? (row * s.dh * s.at_row + (u - row * s.words) * PER) * (int)sizeof(scalar_t) : 0;
  }
}

// sum = the pixels times a group's filters.
__device__ __forceinline__ void multiply_tile(Tile& sum, const Stem& s, const char* shared, const int (&pixel)[8], int group,
                                              const uint4* fragments, const int* offset) {
  const int t = threadIdx.x % 4;
#if EXACT == 2
  const float* weight = (const float*)fragments + group * s.steps * 8 * 32 + t * 8;
#pragma unroll 2
  for (int u = 0; u < s.kh * s.words; ++u, weight += 32) {
    const int at = offset[u];
    const float4 left = *(const float4*)weight, right = *(const float4*)(weight + 4);
    const float v[8] = {left.x, left.y, left.z, left.w, right.x, right.y, right.z, right.w};
#pragma unroll
    for (int q = 0; q < 8; ++q) {
      const float pixel_at = *(const float*)(shared + pixel[q] + at);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[q][e] += pixel_at * v[e];
    }
  }
#else
  const uint4* fragment = fragments + group * s.steps * SLOTS * 32 + threadIdx.x % 32;
#pragma unroll 1
  for (int step = 0; step < s.steps; ++step, fragment += SLOTS * 32) {
    const int low = offset[step * 8 + t], high = offset[step * 8 + t + 4];
    // The words of a pixel or a filter: of the low and the high half of k, then (SPLIT) their small parts.
    auto pixel_words = [&](int q, unsigned (&v)[4]) {
      v[0] = word_at(shared + pixel[q] + low), v[1] = word_at(shared + pixel[q] + high);
      if (SPLIT) v[2] = word_at(shared + pixel[q] + s.second + low), v[3] = word_at(shared + pixel[q] + s.second + high);
    };
    auto filter_words = [&](int q, unsigned (&v)[4]) {
      const uint4 u = fragment[(SPLIT ? q : q / 2) * 32];
      const bool other = !SPLIT && q % 2;
      v[0] = other ? u.z : u.x, v[1] = other ? u.w : u.y, v[2] = u.z, v[3] = u.w;
    };
#if PASS == 0
    auto &row_words = pixel_words;
    auto &column_words = filter_words;
#else
    auto &row_words = filter_words;
    auto &column_words = pixel_words;
#endif
    unsigned b[NT][4];
#pragma unroll
    for (int j = 0; j < NT; ++j) column_words(j, b[j]);
#pragma unroll
    for (int i = 0; i < MT; ++i) {
      unsigned r[2][4];
      row_words(2 * i, r[0]), row_words(2 * i + 1, r[1]);
      const unsigned a[4] = {r[0][0], r[1][0], r[0][1], r[1][1]}, small[4] = {r[0][2], r[1][2], r[0][3], r[1][3]};
#pragma unroll
      for (int j = 0; j < NT; ++j) multiply(sum[i][j], a, small, b[j], b[j] + 2);
    }
  }
#endif
}

// What two values are when they have been stored.
__device__ __forceinline__ void as_stored(bf16, float& low, float& high) {
  const unsigned word = f32_pair_to_bf16_bits(low, high);
  low = __uint_as_float(word << 16), high = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void as_stored(f16, float& low, float& high) {
  const unsigned word = f32_pair_to_f16_bits(low, high);
  const f16 l = {(unsigned short)word}, h = {(unsigned short)(word >> 16)};
  low = load(&l), high = load(&h);
}
__device__ __forceinline__ void as_stored(float, float&, float&) {}

// Sums over the eight lanes with the same t: those with 2i or 2i + 1 for g get that of v[i].
__device__ __forceinline__ float transposed_sum(float (&v)[4], int g) {
#pragma unroll
  for (int half = 2; half > 0; half /= 2) {
    const bool upper = g & 2 * half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? v[i + half] : v[i], sent = upper ? v[i] : v[i + half];
      v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, half * 8);
    }
  }
  return v[0] + __shfl_xor_sync(0xffffffffu, v[0], 4);
}

// What a warp notes of its tiles, for each of a group's filters: pivot, sum and squares of struct Spread.
#define WARPS 4
#define SUMS 3

// Adds to `at`, a warp's place for filters 8t + e and 8t + e + 1, what value(k, low, high) gives of them for the lane's pixels 8k + g,
// of which `pixels` are there. A warp begins with a pivot.
template <int times, class F>
__device__ __forceinline__ void note(float* at, bool begins, int pixels, int g, int t, const F& value) {
  float2 pivot = *(const float2*)at;
  if (begins) {
    value(0, pivot.x, pivot.y);
    pivot.x = __shfl_sync(0xffffffffu, pivot.x, t), pivot.y = __shfl_sync(0xffffffffu, pivot.y, t);
  }
  float sums[4] = {};  // and the squares
#pragma unroll(times)
  for (int k = 0; k < 8; ++k) {
    float low, high;
    value(k, low, high);
    if (k * 8 + g >= pixels) continue;
    low -= pivot.x, high -= pivot.y;
    sums[0] += low, sums[1] += high, sums[2] += low * low, sums[3] += high * high;
  }
  const float sum = transposed_sum(sums, g);
  if (g % 2 == 0) at[(1 + g / 4) * 32 + g / 2 % 2] += sum;
  if (begins && g == 0) *(float2*)at = pivot;
}

// A block's filter i, all warps in order: sums are moved to the pivot of the first that has pixels.
__device__ __forceinline__ void put_spreads(const Part& part, const float* spreads, const int* seen, int filters, int i) {
  Spread<1> all;
  int pixels = 0;
  for (int warp = 0; warp < WARPS; ++warp, spreads += SUMS * filters) {
    const int count = seen[warp];
    if (count == 0) continue;
    const float* at = spreads + i / 32 * SUMS * 32 + i % 32;
    const float pivot = at[0], sum = at[32], squares = at[64];
    if (pixels == 0) all.pivot[0] = pivot;
    const float moved = pivot - all.pivot[0];
    all.sum[0] += sum + count * moved;
    all.squares[0] += squares + moved * (2 * sum + count * moved);
    pixels += count;
  }
  all.put(part, pixels, 0, i);
}
