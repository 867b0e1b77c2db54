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
#include "stem_tile.cuh"

// Blocks of four warps on a multiprocessor: a limit to the registers of a thread.
#define RESIDENT (SPLIT ? 2 : PASS == 1 ? 3 : 4)

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
  put_offsets(s, offset);
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
      int pixel[8];
      places(pixel, s, image_at, first, pixels, g);
#pragma unroll 1
      for (int group = 0; group < s.groups; ++group) {
        const int filter = (blockIdx.y * s.groups + group) * 32;
        if (filter >= s.o) break;
        Tile sum = {};
        multiply_tile(sum, s, shared, pixel, group, fragments, offset);
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
        // What the warp has stored, of filters from `at` on.
        float* at = spreads + (threadIdx.x / 32 * s.groups + group) * SUMS * 32 + 8 * t;
        const bool begins = seen[threadIdx.x / 32] == 0;
        if (__any_sync(0xffffffffu, broken)) {
          // Seldom: few instructions, and no registers.
          if (broken) repair();
#pragma unroll 1
          for (int e = 0; e < 8 && noted.to; e += 2) {
            auto stored = [&](int k, float& low, float& high) {
              int p, o;
              const scalar_t* line = line_of(k, p, o) + e;
              low = e < count_of(p, o) ? load(line) : 0.f, high = e + 1 < count_of(p, o) ? load(line + 1) : 0.f;
            };
            note<1>(at + e, begins, pixels - first, g, t, stored);
          }
        } else if (noted.to) {
#pragma unroll
          for (int e = 0; e < 8; e += 2) {
            auto stored = [&](int k, float& low, float& high) {
              low = VALUE(k, e), high = VALUE(k, e + 1);
              as_stored(scalar_t(), low, high);
            };
            note<8>(at + e, begins, pixels - first, g, t, stored);
          }
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
