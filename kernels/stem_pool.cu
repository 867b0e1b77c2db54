// y = max-pooling of ReLU(γ (x * w + b - μ) / sqrt(σ² + ε) + β), for images with few channels, channels-last: see stem_tile.cuh and
// stem_pool.cuh. stem_moments computes the convolution for its statistics only, stem_pool for y.
// variants: scalar_t=bf16,f16; EXACT=0; arch=80,86,90a,100a
// variants: scalar_t=f16; EXACT=0; arch=75
// variants: scalar_t=float; EXACT=0,1,2; arch=80,90a
#include "stem_pool.cuh"
#include "stem_tile.cuh"

// Blocks of four warps on a multiprocessor: a limit to the registers of a thread.
#define RESIDENT (SPLIT ? 2 : 4)

// Shared memory begins with the filters' fragments and the offsets of k's words; what is behind them.
struct Base {
  const uint4* fragments;
  const int* offset;
  char* rest;
};
__device__ __forceinline__ Base begin(const Stem& s, const scalar_t* __restrict__ w, char* shared) {
  uint4* fragments = (uint4*)shared;
  int* offset = (int*)(fragments + s.groups * s.steps * SLOTS * 32);
  pack_filters(s, w, fragments);
  put_offsets(s, offset);
  return {fragments, offset, (char*)(offset + s.steps * 8)};
}

// Mean and squares of the convolution's output in f32, as `noted` describes them: blocks with the same blockIdx.x compute a part.
// grid (blocks that take bands in turn, splits of the filters in groups of 32). Shared memory: what warps note, and of how many
// pixels, then the image. bias (o) or null.
extern "C" __global__ void __launch_bounds__(128, RESIDENT)
    stem_moments(const scalar_t* __restrict__ x, const scalar_t* __restrict__ w, const scalar_t* __restrict__ bias,
                 const __grid_constant__ Stem s, const Parts noted) {
  extern __shared__ __align__(128) char shared[];
  const Base base = begin(s, w, shared);
  const int filters = s.groups * 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  float* spreads = (float*)base.rest;                    // (warp, group, SUMS, 32)
  int* seen = (int*)(spreads + WARPS * SUMS * filters);  // a warp's pixels
  char* staged = (char*)(seen + WARPS);
  for (int i = threadIdx.x; i < WARPS * (SUMS * filters + 1); i += blockDim.x) spreads[i] = 0;
  clear(staged, s.bytes);
  __syncthreads();
#pragma unroll 1
  for (int band = blockIdx.x; band < s.all; band += gridDim.x) {
    const int n = s.by_bands.of(band), row0 = (band - n * s.bands) * s.rows;
    const int pixels = (s.oh - row0 < s.rows ? s.oh - row0 : s.rows) * s.ow;
    const scalar_t* image = x + (i64)n * s.x_at[0];
    stage(s, image, row0 * s.sh - s.pt, staged);
    __syncthreads();
#pragma unroll 1
    for (int first = threadIdx.x / 32 * 64; first < pixels; first += 256) {
      int pixel[8];
      places(pixel, s, (int)(staged - shared), first, pixels, g);
#pragma unroll 1
      for (int group = 0; group < s.groups; ++group) {
        const int filter = (blockIdx.y * s.groups + group) * 32;
        if (filter >= s.o) break;
        Tile sum = {};
        multiply_tile(sum, s, shared, pixel, group, base.fragments, base.offset);
        bool broken = false;
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const int o = filter + 8 * t + e;
          const float added = bias && o < s.o ? load(bias + o) : 0.f;
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            VALUE(k, e) += added;
            broken |= VALUE(k, e) != VALUE(k, e);
          }
        }
        float* at = spreads + (threadIdx.x / 32 * s.groups + group) * SUMS * 32 + 8 * t;
        const bool begins = seen[threadIdx.x / 32] == 0;
        if (__any_sync(0xffffffffu, broken)) {
          // Seldom: few instructions, and no registers.
#pragma unroll 1
          for (int e = 0; e < 8; e += 2) {
            auto again = [&](int k, float& low, float& high) {
              const int p = first + k * 8 + g, row = s.by_ow.of(p < pixels ? p : 0), column = p - row * s.ow;
              float v[2] = {};
#pragma unroll 1
              for (int i = 0; i < 2; ++i) {
                const int o = filter + 8 * t + e + i;
                if (p >= pixels || o >= s.o) continue;
                const float value = plain(s, image, w + o * s.w_at[0], row0 + row, column) + (bias ? load(bias + o) : 0.f);
                i ? v[1] = value : v[0] = value;
              }
              low = v[0], high = v[1];
            };
            note<1>(at + e, begins, pixels - first, g, t, again);
          }
        } else {
#pragma unroll
          for (int e = 0; e < 8; e += 2) {
            auto own = [&](int k, float& low, float& high) { low = VALUE(k, e), high = VALUE(k, e + 1); };
            note<8>(at + e, begins, pixels - first, g, t, own);
          }
        }
      }
      __syncwarp();
      if (lane == 0) seen[threadIdx.x / 32] += pixels - first < 64 ? pixels - first : 64;
      __syncwarp();
    }
    __syncthreads();  // the image's place is free
  }
  const Part part = {noted, (int)blockIdx.x, (int)blockIdx.y * filters, s.o};
  for (int i = threadIdx.x; i < filters && part.first + i < s.o; i += blockDim.x) put_spreads(part, spreads, seen, filters, i);
}

// ReLU(scale (v - mean) + beta), NaN stays NaN, and there is no -0: as unsigned integers, such numbers are in order.
__device__ __forceinline__ float normal(float v, float mean, float scale, float beta) {
  v = (v - mean) * scale + beta;
  return v <= 0 ? 0.f : v;
}

// Eight channels of the largest elements so far, the first of equals, and where they are: in 16 bits both make one integer.
template <int per> struct Winners;
template <> struct Winners<2> {
  unsigned value[8];

  __device__ __forceinline__ void meet(const scalar_t* at, unsigned tap) {
    const uint4 u = *(const uint4*)at;
    const unsigned v[4] = {u.x, u.y, u.z, u.w}, later = 0xffffu - tap;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const unsigned both = e % 2 ? (v[e / 2] & 0xffff0000u) | later : v[e / 2] << 16 | later;
      value[e] = both > value[e] ? both : value[e];
    }
  }
  __device__ __forceinline__ unsigned bits(int e) const { return value[e] >> 16; }
  __device__ __forceinline__ unsigned tap(int e) const { return 0xffffu - (value[e] & 0xffffu); }
};
template <> struct Winners<1> {
  unsigned value[8], place[8];

  __device__ __forceinline__ void meet(const scalar_t* at, unsigned tap) {
    const uint4 a = *(const uint4*)at, b = *(const uint4*)(at + 4);
    const unsigned v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (v[e] > value[e]) value[e] = v[e], place[e] = tap;
  }
  __device__ __forceinline__ unsigned bits(int e) const { return value[e]; }
  __device__ __forceinline__ unsigned tap(int e) const { return place[e]; }
};
typedef Winners<PER> Best;

__device__ __forceinline__ float value_of(bf16, unsigned bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ float value_of(f16, unsigned bits) {
  const f16 v = {(unsigned short)bits};
  return load(&v);
}
__device__ __forceinline__ float value_of(float, unsigned bits) { return __uint_as_float(bits); }

// Of y and place, eight channels of which `count` are there.
__device__ __forceinline__ void put(scalar_t* y, u8* place, const Best& best, int count, bool vector) {
  unsigned words[8 / PER] = {}, taps[2] = {};
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const unsigned tap = value_of(scalar_t(), best.bits(e)) > 0 ? best.tap(e) : CUT;
    taps[e / 4] |= tap << (e % 4 * 8);
    words[e / PER] |= best.bits(e) << (PER == 2 ? e % 2 * 16 : 0);
  }
  if (vector) {
#pragma unroll
    for (int i = 0; i < 8 / PER; i += 4) *(uint4*)(y + i * PER) = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
    if (place) *(uint2*)place = make_uint2(taps[0], taps[1]);
    return;
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e >= count) continue;
    store(y + e, value_of(scalar_t(), best.bits(e)));
    if (place) place[e] = (u8)(taps[e / 4] >> (e % 4 * 8));
  }
}

// place may be null. grid as above, with bands of y's rows. Shared memory: mean less bias, scale and β of the filters, the image, then
// ReLU's output under the windows of a band, (group, pixel, 32 filters).
extern "C" __global__ void __launch_bounds__(128, RESIDENT)
    stem_pool(scalar_t* __restrict__ y, u8* __restrict__ place, const scalar_t* __restrict__ x, const scalar_t* __restrict__ w,
              const scalar_t* __restrict__ bias, const float* __restrict__ gamma, const float* __restrict__ beta,
              const float* __restrict__ mean, const float* __restrict__ var, double eps, const __grid_constant__ Stem s,
              const __grid_constant__ Windows pool) {
  extern __shared__ __align__(128) char shared[];
  const Base base = begin(s, w, shared);
  const int filters = s.groups * 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, filter0 = blockIdx.y * filters;
  float* affine = (float*)base.rest;  // (3, filters)
  char* staged = (char*)(affine + 3 * filters);
  scalar_t* tile = (scalar_t*)(staged + s.bytes);
  for (int i = threadIdx.x; i < filters; i += blockDim.x) {
    const int o = filter0 + i;
    const bool there = o < s.o;
    affine[i] = there ? mean[o] - (bias ? load(bias + o) : 0.f) : 0.f;
    affine[filters + i] = there ? gamma[o] / sqrtf(var[o] + (float)eps) : 0.f;
    affine[2 * filters + i] = there ? beta[o] : 0.f;
  }
  clear(staged, s.bytes);
  __syncthreads();
#pragma unroll 1
  for (int band = blockIdx.x; band < pool.all; band += gridDim.x) {
    const int n = pool.by_bands.of(band), first_row = (band - n * pool.bands) * pool.rows;
    const int rows = pool.oh - first_row < pool.rows ? pool.oh - first_row : pool.rows;
    // Rows of the convolution's output under the band.
    const int above = first_row * pool.sh - pool.pt, below = above + (rows - 1) * pool.sh + pool.kh;
    const int row0 = above > 0 ? above : 0, pixels = ((below < s.oh ? below : s.oh) - row0) * s.ow;
    const scalar_t* image = x + (i64)n * s.x_at[0];
    stage(s, image, row0 * s.sh - s.pt, staged);
    __syncthreads();
#pragma unroll 1
    for (int first = threadIdx.x / 32 * 64; first < pixels; first += 256) {
      int pixel[8];
      places(pixel, s, (int)(staged - shared), first, pixels, g);
#pragma unroll 1
      for (int group = 0; group < s.groups; ++group) {
        if (filter0 + group * 32 >= s.o) break;
        Tile sum = {};
        multiply_tile(sum, s, shared, pixel, group, base.fragments, base.offset);
        const float* own = affine + group * 32 + 8 * t;
        scalar_t* to = tile + (group * pool.pitch + (first + g) * 32 + 8 * t);
        bool broken = false;
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float m = own[e], scale = own[filters + e], shift = own[2 * filters + e];
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            VALUE(k, e) = normal(VALUE(k, e), m, scale, shift);
            broken |= VALUE(k, e) != VALUE(k, e);
          }
        }
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          unsigned words[8 / PER];
#pragma unroll
          for (int e = 0; e < 8; e += PER) words[e / PER] = pair_of(scalar_t(), VALUE(k, e), VALUE(k, e + PER - 1));
          if (first + k * 8 + g >= pixels) continue;
#pragma unroll
          for (int i = 0; i < 8 / PER; i += 4)
            *(uint4*)(to + k * 8 * 32 + i * PER) = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
        }
        if (!broken) continue;
#pragma unroll 1
        for (int i = 0; i < 64; ++i) {
          const int e = i % 8, p = first + i / 8 * 8 + g, o = filter0 + group * 32 + 8 * t + e;
          scalar_t* at = to + i / 8 * 8 * 32 + e;
          if (p >= pixels || o >= s.o || load(at) == load(at)) continue;
          const int row = s.by_ow.of(p);
          const float v = plain(s, image, w + o * s.w_at[0], row0 + row, p - row * s.ow);
          store(at, normal(v, own[e], own[filters + e], own[2 * filters + e]));
        }
      }
    }
    __syncthreads();
    const int octets = s.groups * 4;
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * pool.ow * octets; i += blockDim.x) {
      const int q = pool.by_octets.of(i), octet = i - q * octets, o = filter0 + octet * 8;
      if (o >= s.o) continue;
      const int row = pool.by_ow.of(q), column = q - row * pool.ow;
      const int top = above + row * pool.sh, left = column * pool.sw - pool.pl;
      const int r0 = top > 0 ? 0 : -top, r1 = s.oh - top < pool.kh ? s.oh - top : pool.kh;
      const int c0 = left > 0 ? 0 : -left, c1 = s.ow - left < pool.kw ? s.ow - left : pool.kw;
      const scalar_t* from = tile + (octet / 4 * pool.pitch + ((top - row0) * s.ow + left) * 32 + octet % 4 * 8);
      Best best = {};
#pragma unroll 1
      for (int r = r0; r < r1; ++r)
#pragma unroll 3
        for (int c = c0; c < c1; ++c) best.meet(from + (r * s.ow + c) * 32, r * pool.kw + c);
      const i64 at = (((i64)n * pool.oh + first_row + row) * pool.ow + column) * s.o + o;
      put(y + at, place ? place + at : place, best, s.o - o, s.o % 8 == 0);
    }
    __syncthreads();  // the image's and the tile's place is free
  }
}
