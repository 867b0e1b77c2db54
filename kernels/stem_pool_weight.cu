// The gradients of stem_pool.cu, from dy, the winners and x alone. With z = dL / d(output of batch normalization), which is dy at the
// winners, X the patches of x (tap, pixel) and c = w X + b what the convolution gave, batch normalization's backward pass sends
//   dc = A z + B (c - μ) + C   with   A = γ r,  r = 1 / sqrt(σ² + ε),  B = (2 dσ² - A r² Σ z (c - μ)) / N,  C = (dμ - A Σ z) / N
// to each of N pixels, and the filters get dc Xᵀ. All of that is linear in products that need no c:
//   D = z Xᵀ (filter, tap),  Z = Σ z (filter),  S = Σ X (tap),  G = X Xᵀ (tap, tap)
//   dβ = Z,  dγ = r (w D + (b - μ) Z),  dw = A D + B (w G + (b - μ) S) + C S,  db = Σ dc = dμ
// A tap before the others, whose x is 1, brings Z and S along: see conv2d_stem_weight.cu. k is pixels.
// variants: scalar_t=bf16,f16; EXACT=0; arch=80,86,90a,100a
// variants: scalar_t=f16; EXACT=0; arch=75
// variants: scalar_t=float; EXACT=0,1; arch=80,90a
#include "stem_pool.cuh"

// Blocks of four warps on a multiprocessor: a limit to the registers of a thread.
#define RESIDENT 3

// A warp multiplies 32 rows, filters or taps, by 64 taps. G is symmetric: of it only what is not below the diagonal.
struct Unit {
  int row, column;  // in 32s and 64s
  bool taps;        // whether the rows are taps: of G
};
__device__ __forceinline__ Unit unit_of(int i, int filters, int columns) {
  if (i < filters * columns) return {i / columns, i % columns, false};
  i -= filters * columns;
  int row = 0;
  while (i >= columns - row / 2 && row / 2 < columns) i -= columns - row / 2, ++row;
  return {row, row / 2 + i, true};
}

// The bits of a word's pixels from x on that are below `end`.
__device__ __forceinline__ unsigned inside(int x, int end) { return x >= end ? 0u : PER == 2 && x + 1 >= end ? 0xffffu : ~0u; }

// dy of eight channels, of which `count` are there, and their winners.
struct Sent {
  unsigned dy[8 / PER], taps[2];
  __device__ __forceinline__ float value(int e) const {
    if (PER == 1) return __uint_as_float(dy[e / PER]);
    const unsigned short bits = (unsigned short)(dy[e / PER] >> e % 2 * 16);
    return load((const scalar_t*)&bits);
  }
};
__device__ __forceinline__ void take(Sent& sent, const scalar_t* __restrict__ dy, const u8* __restrict__ place, int count, bool vector) {
  if (vector) {
#pragma unroll
    for (int i = 0; i < 8 / PER; i += 4) {
      const uint4 u = *(const uint4*)(dy + i * PER);
      sent.dy[i] = u.x, sent.dy[i + 1] = u.y, sent.dy[i + 2] = u.z, sent.dy[i + 3] = u.w;
    }
    const uint2 p = *(const uint2*)place;
    sent.taps[0] = p.x, sent.taps[1] = p.y;
    return;
  }
  sent = {};
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e < count) {
      if (PER == 2) sent.dy[e / PER] |= (unsigned)*(const unsigned short*)(dy + e) << e % 2 * 16;
      else sent.dy[e / PER] = __float_as_uint(load(dy + e));
    }
    sent.taps[e / 4] |= (unsigned)(e < count ? place[e] : CUT) << (e % 4 * 8);
  }
}

// z of a band's rows, from filter `first` on, into `tile`: words of PER neighbouring pixels, (group of 32 filters, filter, row, word).
// A group's filters come in the order 0, 8, 16, 24, 1, …, so that lanes write to different banks. Windows are met in order.
__device__ __forceinline__ void gather(const Stem& s, const Windows& pool, const scalar_t* __restrict__ dy, const u8* __restrict__ place,
                                       int row0, int rows, int first, int filters, int line, int small, unsigned* tile) {
  const int octets = filters / 8, words = s.steps * 8;
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * words * octets; i += blockDim.x) {
    const int q = pool.by_octets.of(i), octet = i - q * octets, row = pool.by_words.of(q);
    const int x = (q - row * words) * PER + pool.pl, y = row0 + row + pool.pt, o = first + octet * 8;
    float z[PER][8] = {};
    if (o < s.o) {
      const int low = y - pool.kh, left = x - pool.kw;
      const int r0 = low < 0 ? 0 : pool.by_sh.of(low) + 1, c0 = left < 0 ? 0 : pool.by_sw.of(left) + 1;
      const int r1 = pool.by_sh.of(y), c1 = pool.by_sw.of(x + PER - 1);
#pragma unroll 1
      for (int r = r0; r <= r1 && r < pool.oh; ++r)
#pragma unroll 1
        for (int c = c0; c <= c1 && c < pool.ow; ++c) {
          const int at = (r * pool.ow + c) * s.o + o, column = x - c * pool.sw;
          Sent sent;
          take(sent, dy + at, place + at, s.o - o, s.o % 8 == 0);
#pragma unroll
          for (int p = 0; p < PER; ++p) {
            const bool under = (unsigned)(column + p) < (unsigned)pool.kw;
            const unsigned tap = under ? (unsigned)((y - r * pool.sh) * pool.kw + column + p) : 256u;
#pragma unroll
            for (int e = 0; e < 8; ++e)
              if ((sent.taps[e / 4] >> (e % 4 * 8) & 255) == tap) z[p][e] += sent.value(e);
          }
        }
    }
    unsigned* to = tile + (octet / 4 * pool.pitch + octet % 4 * line + q);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (PER == 2) {
        scalar_t pair[2];
        store(pair, z[0][e]), store(pair + 1, z[PER - 1][e]);
        to[e * 4 * line] = (unsigned)*(const unsigned short*)pair | (unsigned)*(const unsigned short*)(pair + 1) << 16;
      } else {
        const unsigned big = big_part(z[0][e]);
        to[e * 4 * line] = big;
        if (SPLIT) to[small + e * 4 * line] = small_part(z[0][e], big);
      }
    }
  }
}

// parts (gridDim.x, o + taps, taps): D and G of `chunk` bands each, taps in the order (c, kh, kw), before them the one of ones. Bands
// are rows of the convolution's output. grid (parts, units / warps of a block); z of up to `most` groups of 32 filters lies behind
// the image in shared memory, in lines of `line` words; the small parts of SPLIT `small` words further on.
extern "C" __global__ void __launch_bounds__(128, RESIDENT)
    stem_pool_weight(float* __restrict__ parts, const scalar_t* __restrict__ dy, const u8* __restrict__ place,
                     const scalar_t* __restrict__ x, const __grid_constant__ Stem s, const __grid_constant__ Windows pool, int most,
                     int line, int small) {
  extern __shared__ __align__(128) char shared[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4, units = blockDim.x / 32;
  const int taps = 1 + s.c * s.kh * s.kw, columns = (taps + 63) / 64, groups = (s.o + 31) / 32;
  const Unit unit = unit_of(blockIdx.y * units + warp, groups, columns);
  // The block's filters, none where all its rows are taps.
  const int group0 = blockIdx.y * units / columns, filters = group0 < groups ? most * 32 : 0;
  const int tile_at = s.bytes, row0_of = unit.row * 32, tap0 = unit.column * 64;
  auto place_of = [&](int tap) {
    const int k = tap - 1, channel = k / (s.kh * s.kw), row = k / s.kw % s.kh, column = k % s.kw;
    return tap == 0 ? s.ones : tap < taps ? s.word(s.place(row * s.dh, column * s.dw, channel)) : 0;
  };
  int tap_at[8], row_at[4];
#pragma unroll
  for (int j = 0; j < 8; ++j) tap_at[j] = place_of(tap0 + j * 8 + g);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (unit.taps) row_at[k] = place_of(row0_of + k * 8 + g);
    else row_at[k] = tile_at + ((unit.row - group0) * pool.pitch + (k * 8 + g) * line) * 4;
  }
  // Ones do not move with the pixels.
  const int moves = tap0 + g == 0 ? 0 : -1, row_moves = unit.taps && row0_of + g == 0 ? 0 : -1;
  const int second = unit.taps ? s.second : small * 4, tiles = (taps - tap0 + 7) / 8;
  float sum[2][8][4] = {};
  clear(shared, s.bytes);
  __syncthreads();
  if (threadIdx.x < 32 / sizeof(scalar_t)) store((scalar_t*)(shared + s.ones) + threadIdx.x, 1.f);
  const int begin = blockIdx.x * s.chunk, end = begin + s.chunk < s.all ? begin + s.chunk : s.all;
#pragma unroll 1
  for (int band = begin; band < end; ++band) {
    const int n = s.by_bands.of(band), row0 = (band - n * s.bands) * s.rows;
    const int rows = s.oh - row0 < s.rows ? s.oh - row0 : s.rows;
    const i64 image = (i64)n * pool.oh * pool.ow * s.o;
    __syncthreads();  // the image's and z's place is free, or cleared
    stage(s, x + (i64)n * s.x_at[0], row0 * s.sh - s.pt, shared);
    if (filters) gather(s, pool, dy + image, place + image, row0, rows, group0 * 32, filters, line, small, (unsigned*)(shared + tile_at));
    __syncthreads();
#pragma unroll 1
    for (int q = 0; q < rows * s.steps; ++q) {
      const int row = s.by_steps.of(q), column = (q - row * s.steps) * STEP + t * PER;
      const int pixel = (row * s.sh * s.at_row + column) * (int)sizeof(scalar_t), own = unit.taps ? pixel : (q * 8 + t) * 4;
      // Behind a row's last pixel there may be others of x.
      const unsigned low = inside(column, s.ow), high = inside(column + 4 * PER, s.ow);
      unsigned a[2][4], small_a[2][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const char* at = shared + ((k ? own : own & row_moves) + row_at[k]);
        a[k / 2][k % 2] = word_at(at) & low, a[k / 2][2 + k % 2] = word_at(at + 16) & high;
        small_a[k / 2][k % 2] = SPLIT ? word_at(at + second) & low : 0;
        small_a[k / 2][2 + k % 2] = SPLIT ? word_at(at + second + 16) & high : 0;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (j >= tiles) break;
        const char* at = shared + ((j ? pixel : pixel & moves) + tap_at[j]);
        unsigned b[4] = {word_at(at) & low, word_at(at + 16) & high};
        if (SPLIT) b[2] = word_at(at + s.second) & low, b[3] = word_at(at + s.second + 16) & high;
#pragma unroll
        for (int i = 0; i < 2; ++i) multiply(sum[i][j], a[i], small_a[i], b, b + 2);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = i * 16 + half * 8 + g, row = unit.row * 32 + (unit.taps ? r : r % 4 * 8 + r / 4);
      if (row >= (unit.taps ? taps : s.o)) continue;
      float* line_of = parts + ((i64)blockIdx.x * (s.o + taps) + (unit.taps ? s.o : 0) + row) * taps;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int tap = tap0 + j * 8 + 2 * t;
        if (tap < taps) line_of[tap] = sum[i][j][half * 2];
        if (tap + 1 < taps) line_of[tap + 1] = sum[i][j][half * 2 + 1];
      }
    }
}

// sums = parts[0] + parts[1] + …, of `count`; all (o + taps, taps). A block has 32 elements, each warp every eighth part. In double
// precision, since what follows takes large numbers from each other.
extern "C" __global__ void __launch_bounds__(256)
    stem_pool_sum(double* __restrict__ sums, const float* __restrict__ parts, int o, int taps, int count) {
  __shared__ double shared[8][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, i = blockIdx.x * 32 + lane, n = (o + taps) * taps;
  // G's other triangle is not there.
  const bool there = i < n && i / taps - o <= i % taps;
  double v = 0;
  if (there) {
#pragma unroll 8
    for (int p = warp; p < count; p += 8) v += parts[(i64)p * n + i];
  }
  shared[warp][lane] = v;
  __syncthreads();
  if (warp || !there) return;
  for (int k = 1; k < 8; ++k) v += shared[k][lane];
  sums[i] = v;
}

// The gradients, a block for each filter; `sums` as above, dμ and dσ² (o) those of the statistics, `pixels` N. dw has w's shape, from
// one tap and channel to the next at_tap and at_channel. db may be null.
extern "C" __global__ void __launch_bounds__(128)
    stem_pool_finish(scalar_t* __restrict__ dw, scalar_t* __restrict__ db, float* __restrict__ dgamma, float* __restrict__ dbeta,
                     const double* __restrict__ sums, const scalar_t* __restrict__ w, const scalar_t* __restrict__ bias,
                     const float* __restrict__ gamma, const float* __restrict__ mean, const float* __restrict__ var,
                     const float* __restrict__ dmean, const float* __restrict__ dvar, double eps, double pixels,
                     const __grid_constant__ Stem s, int at_tap, int at_channel) {
  extern __shared__ __align__(128) char shared[];
  __shared__ double scratch[32];
  double* filter = (double*)shared;
  const int o = blockIdx.x, plane = s.kh * s.kw, taps = s.c * plane, pitch = taps + 1;
  const double *d = sums + (i64)o * pitch, *products = sums + (i64)s.o * pitch;  // D's row, and G
  double sum = 0;
  for (int k = threadIdx.x; k < taps; k += blockDim.x) {
    const int channel = k / plane, tap = k - channel * plane, row = tap / s.kw, column = tap - row * s.kw;
    float v = load(w + (o * s.w_at[0] + channel * s.w_at[1] + row * s.w_at[2] + column * s.w_at[3]));
    // As the convolution took it.
    if (PER == 1 && EXACT == 0) v = __uint_as_float(big_part(v));
    filter[k] = v;
    sum += v * d[1 + k];
  }
  sum = block_sum(sum, scratch);  // and filter[] is there
  const double off = (bias ? (double)load(bias + o) : 0.0) - mean[o], z = d[0], moved = sum + off * z;
  const double r = 1.f / sqrtf(var[o] + (float)eps), a = gamma[o] * r;
  const double per = reciprocal(pixels);
  const double b = (2.0 * dvar[o] - a * r * r * moved) * per, c = (dmean[o] - a * z) * per;
  if (threadIdx.x == 0) {
    dbeta[o] = (float)z, dgamma[o] = (float)(r * moved);
    if (db) store(db + o, dmean[o]);
  }
  for (int k = threadIdx.x; k < taps; k += blockDim.x) {
    const double total = products[1 + k];
    double met = off * total;
#pragma unroll 4
    for (int u = 0; u < taps; ++u) met += filter[u] * products[u < k ? (1 + u) * pitch + 1 + k : (1 + k) * pitch + 1 + u];
    const int channel = k / plane;
    store(dw + (o * taps + (k - channel * plane) * at_tap + channel * at_channel), (float)(a * d[1 + k] + b * met + c * total));
  }
}
