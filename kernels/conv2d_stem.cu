// y = x * w + b for images with few channels, see stem.cuh. A warp computes 64 pixels by 32 filters.
//
//   PASS                rows (m)     columns (n)   k
//   0  y channels-last  pixels       filters       taps
//   1  y row-major      filters      pixels        taps
// variants: scalar_t=bf16,f16; EXACT=0; PASS=0,1; arch=80,90a
// variants: scalar_t=float; EXACT=0,1; PASS=0,1; arch=80,90a
// variants: scalar_t=float; EXACT=2; PASS=0,1; arch=75,90a
// variants: scalar_t=bf16; EXACT=0; PASS=0; arch=86,100a
// variants: scalar_t=f16; EXACT=0; PASS=0,1; arch=75
#include "spread.cuh"
#include "stem.cuh"

// Blocks of four warps on a multiprocessor: a limit to the registers of a thread.
#define RESIDENT (SPLIT ? 2 : PASS == 1 ? 3 : 4)

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

// A line of y, of which `count` are there; whether one is NaN.
__device__ __forceinline__ bool put_line(scalar_t* to, const float (&v)[LINE], int count) {
  if (count <= 0) return false;
  bool broken = false;
  alignas(16) scalar_t line[LINE];
  if (PER == 2) {
#pragma unroll
    for (int e = 0; e < LINE; e += 2) *(unsigned*)(line + e) = pair_of(scalar_t(), v[e], v[e + 1]);
  } else {
#pragma unroll
    for (int e = 0; e < LINE; ++e) store(line + e, v[e]);
  }
#pragma unroll
  for (int e = 0; e < LINE; ++e) broken |= v[e] != v[e];
  if (count >= LINE && (unsigned long long)to % 16 == 0) {
#pragma unroll
    for (int e = 0; e < LINE; e += CHUNK) *(uint4*)(to + e) = *(const uint4*)(line + e);
  } else {
#pragma unroll
    for (int e = 0; e < LINE; ++e)
      if (e < count) to[e] = line[e];
  }
  return broken;
}

// Values of a lane's line k.
#if EXACT == 2
#define VALUE(k, e) (PASS == 0 ? sum[(k) % 8][e] : sum[(k) % 2 * 4 + (e) % 4][(k) / 2])
#elif PASS == 0
#define VALUE(k, e) sum[(k) / 2][(e) / 2][(k) % 2 * 2 + (e) % 2]
#else
#define VALUE(k, e) sum[(k) / 4][(k) % 2 * 4 + (e) / 2][(k) / 2 % 2 * 2 + (e) % 2]
#endif

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
template <int n> struct Unrolled {
  enum { times = n };
};

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

// grid (blocks that take bands in turn, splits of the filters in groups of 32). Shared memory: the filters' fragments, the offset
// of each of k's words from a pixel's first one, what warps note and of how many pixels, the image. bias (o) or null. Where PASS
// is 0, what blocks with the same blockIdx.x compute is a part of `noted`.
extern "C" __global__ void __launch_bounds__(128, RESIDENT)
    conv2d_stem(scalar_t* __restrict__ to, const scalar_t* __restrict__ x, const scalar_t* __restrict__ w,
                const scalar_t* __restrict__ bias, const __grid_constant__ Stem s, const Parts noted) {
  extern __shared__ __align__(128) char shared[];
  uint4* fragments = (uint4*)shared;
  int* offset = (int*)(fragments + s.groups * s.steps * SLOTS * 32);
  const int filters = s.groups * 32;
  float* spreads = (float*)(offset + s.steps * 8);  // (warp, group, SUMS, 32)
  int* seen = (int*)(spreads + WARPS * SUMS * filters);  // a warp's pixels
  const int image_at = s.steps * (filters * SLOTS * 16 + 8 * 4) + WARPS * (SUMS * filters + 1) * 4;
  char* staged = shared + image_at;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  pack_filters(s, w, fragments);
  for (int u = threadIdx.x; u < s.steps * 8; u += blockDim.x) {
    const int row = s.by_words.of(u);
    offset[u] = row < s.kh ? (row * s.dh * s.at_row + (u - row * s.words) * PER) * (int)sizeof(scalar_t) : 0;
  }
  for (int i = threadIdx.x; i < WARPS * (SUMS * filters + 1); i += blockDim.x) spreads[i] = 0;
  clear(staged, s.bytes);
  __syncthreads();
#pragma unroll 1
  for (int band = blockIdx.x; band < s.all; band += gridDim.x) {
    const int n = s.by_bands.of(band), row0 = (band - n * s.bands) * s.rows, plane = s.oh * s.ow, begin = row0 * s.ow;
    const int pixels = (s.oh - row0 < s.rows ? s.oh - row0 : s.rows) * s.ow;
    const scalar_t* image = x + (i64)n * s.x_at[0];
    stage(s, image, row0 * s.sh - s.pt, staged);
    __syncthreads();
#pragma unroll 1
    for (int first = threadIdx.x / 32 * 64; first < pixels; first += 256) {
      int pixel[8];  // where in shared memory
#pragma unroll
      for (int q = 0; q < 8; ++q) {
        int p = first + PIXEL_OF(q, g);
        p = p < pixels ? p : 0;
        const int row = s.by_ow.of(p);
        pixel[q] = image_at + s.word(s.place(row * s.sh, (p - row * s.ow) * s.sw, 0));
      }
#pragma unroll 1
      for (int group = 0; group < s.groups; ++group) {
        const int filter = (blockIdx.y * s.groups + group) * 32;
        if (filter >= s.o) break;
#if EXACT == 2
        float sum[8][8] = {};
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
        float sum[MT][NT][4] = {};
        const uint4* fragment = fragments + group * s.steps * SLOTS * 32 + lane;
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
        // Each lane has lines of neighbours: of a pixel's filters, or of a filter's pixels.
        bool broken = false;
        auto line_of = [&](int k, int& p, int& o) {
#if PASS == 0
          p = first + k * 8 + g, o = filter + 8 * t;
#elif EXACT == 2
          p = first + k % 2 * 32 + 4 * g, o = filter + 8 * t + k / 2;
#else
          p = first + k % 2 * 32 + 8 * t, o = filter + k / 2 * 8 + g;
#endif
          return to + ((i64)n * plane * s.o + (PASS == 0 ? (i64)(begin + p) * s.o + o : (i64)o * plane + begin + p));
        };
        auto count_of = [&](int p, int o) { return p >= pixels || o >= s.o ? 0 : PASS == 0 ? s.o - o : pixels - p; };
#if PASS == 0
#pragma unroll
        for (int e = 0; bias && e < 8; ++e) {
          const int o = filter + 8 * t + e;
          const float added = o < s.o ? load(bias + o) : 0.f;
#pragma unroll
          for (int k = 0; k < 8; ++k) VALUE(k, e) += added;
        }
#endif
#pragma unroll
        for (int k = 0; k < 64 / LINE; ++k) {
          int p, o;
          scalar_t* at = line_of(k, p, o);
          const int count = count_of(p, o);
          const float added = PASS == 1 && bias && count > 0 ? load(bias + o) : 0.f;
          float line[LINE];
#pragma unroll
          for (int e = 0; e < LINE; ++e) line[e] = VALUE(k, e) + added;
          broken |= put_line(at, line, count);
        }
        auto repair = [&] {
#pragma unroll 1
          for (int k = 0; k < 64; ++k) {
            int p, o;
            scalar_t* at = line_of(k / LINE, p, o) + k % LINE;
            if (k % LINE >= count_of(p, o) || load(at) == load(at)) continue;
            (PASS == 0 ? o : p) += k % LINE;
            const int row = s.by_ow.of(p);
            store(at, plain(s, image, w + o * s.w_at[0], row0 + row, p - row * s.ow) + (bias ? load(bias + o) : 0.f));
          }
        };
#if PASS == 0
        // Adds up what the warp has stored of filters 8t + e and 8t + e + 1: a lane's are value(k, e), k of eight pixels.
        auto note = [&](int e, auto unrolled, const auto& value) {
          float* at = spreads + (threadIdx.x / 32 * s.groups + group) * SUMS * 32 + 8 * t + e;
          float2 pivot = *(const float2*)at;
          const bool begins = seen[threadIdx.x / 32] == 0;
          if (begins) {
            pivot = make_float2(value(0, e), value(0, e + 1));
            as_stored(scalar_t(), pivot.x, pivot.y);
            pivot.x = __shfl_sync(0xffffffffu, pivot.x, t), pivot.y = __shfl_sync(0xffffffffu, pivot.y, t);
          }
          float sums[4] = {};  // and the squares
#pragma unroll(unrolled.times)
          for (int k = 0; k < 8; ++k) {
            float low = value(k, e), high = value(k, e + 1);
            as_stored(scalar_t(), low, high);
            if (first + k * 8 + g >= pixels) continue;
            low -= pivot.x, high -= pivot.y;
            sums[0] += low, sums[1] += high, sums[2] += low * low, sums[3] += high * high;
          }
          const float sum = transposed_sum(sums, g);
          if (g % 2 == 0) at[(1 + g / 4) * 32 + g / 2 % 2] += sum;
          if (begins && g == 0) *(float2*)at = pivot;
        };
        if (__any_sync(0xffffffffu, broken)) {
          // Seldom: few instructions, and no registers.
          if (broken) repair();
          auto stored = [&](int k, int e) {
            int p, o;
            const scalar_t* at = line_of(k, p, o) + e;
            return e < count_of(p, o) ? load(at) : 0.f;
          };
#pragma unroll 1
          for (int e = 0; e < 8 && noted.to; e += 2) note(e, Unrolled<1>(), stored);
        } else if (noted.to) {
#pragma unroll
          for (int e = 0; e < 8; e += 2) note(e, Unrolled<8>(), [&](int k, int e) { return VALUE(k, e); });
        }
#else
        if (broken) repair();
#endif
      }
      if (PASS == 1) continue;
      __syncwarp();
      if (lane == 0) seen[threadIdx.x / 32] += pixels - first < 64 ? pixels - first : 64;
      __syncwarp();
    }
    __syncthreads();  // the image's place is free
  }
#if PASS == 0
  if (!noted.to) return;
  const Part part = {noted, (int)blockIdx.x, (int)blockIdx.y * filters, s.o};
  for (int i = threadIdx.x; i < filters && part.first + i < s.o; i += blockDim.x) put_spreads(part, spreads, seen, filters, i);
#endif
}
