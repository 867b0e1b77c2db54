// The convolutions of conv2d.cu on tensor cores: implicit GEMM over channels-last x, dy and filters (o, kh, kw, c / groups).
//
//   PASS                     rows (m)             columns (n)        k                    a                 b
//   0  y = x * w + b         output pixels        filters            taps, channels c     x under the tap   w
//   1  dx = dy * w           input pixels         channels c         taps, filters        dy above          w
//   2  dw = dy * x           filters              taps, channels c   output pixels        dy                x under the tap
//
// y, dx and dw may be written row-major. Groups lie along grid.z. With narrow loads a group's channels need not fill 16
// bytes. Narrow loads (WIDTH < 16) come with tiles of 64 x 64 only, sm_75 with f16 and two stages.
// variants: scalar_t=bf16; EXACT=0; TILE_M=128; TILE_N=128,64; STAGES=2; WIDTH=16; PASS=0,1,2; arch=80
// variants: scalar_t=bf16; EXACT=0; TILE_M=64; TILE_N=64; STAGES=2; WIDTH=16; PASS=0,1,2; arch=80
// variants: scalar_t=bf16; EXACT=0; TILE_M=64; TILE_N=64; STAGES=3; WIDTH=8,4,0; PASS=0,1,2; arch=80,90a
// variants: scalar_t=bf16; EXACT=0; TILE_M=128; TILE_N=128,64; STAGES=3; WIDTH=16; PASS=0,1,2; arch=90a
// variants: scalar_t=bf16; EXACT=0; TILE_M=64; TILE_N=64; STAGES=3; WIDTH=16; PASS=0,1,2; arch=90a
// variants: scalar_t=float; EXACT=0,1; TILE_M=128; TILE_N=128,64; STAGES=3; WIDTH=16; PASS=0,1,2; arch=80,90a
// variants: scalar_t=float; EXACT=0,1; TILE_M=64; TILE_N=64; STAGES=3; WIDTH=16,8,4; PASS=0,1,2; arch=80,90a
// variants: scalar_t=bf16; EXACT=0; TILE_M=128; TILE_N=128; STAGES=3; WIDTH=16; PASS=0,1,2; arch=86,89,100a,120
// variants: scalar_t=float; EXACT=0,1; TILE_M=128; TILE_N=128; STAGES=3; WIDTH=16; PASS=0,1,2; arch=86,89,100a,120
// variants: scalar_t=f16; EXACT=0; TILE_M=128; TILE_N=64; STAGES=2; WIDTH=16; PASS=0,1,2; arch=75,80,90a
// variants: scalar_t=f16; EXACT=0; TILE_M=64; TILE_N=64; STAGES=2; WIDTH=16,8,4,0; PASS=0,1,2; arch=75
#include "div.cuh"
#include "mma_out.cuh"

struct Conv {
  int n, c, h, w, o, oh, ow;  // x (n, c, h, w), y (n, o, oh, ow), filters (o, c / groups, kh, kw)
  int kh, kw, sh, sw, pt, pl, dh, dw, groups;
  int chunk;            // of k for each part
  int row_major;        // the layout of y and dx
  Div by_cg, by_og, by_kw, by_oh, by_ow;
};

// A place in the plane, and the offset that belongs to it. A pixel and a tap together are an element.
struct Spot {
  int at, y, x;
};
// The y of what is outside: with any tap still below 0.
#define OUTSIDE (-(1 << 29))

// An element of x or dy by its spots: null outside of h x w.
__device__ __forceinline__ const scalar_t* element(const scalar_t* data, const Spot& a, const Spot& b, int h, int w) {
  bool inside = (unsigned)(a.y + b.y) < (unsigned)h && (unsigned)(a.x + b.x) < (unsigned)w;
  return inside ? data + (a.at + b.at) : (const scalar_t*)0;
}

// An output pixel and a tap as places in x.
struct Window {
  const Conv& s;
  int cg;
  __device__ __forceinline__ Spot pixel(int p) const {
    int row = s.by_ow.of(p), n = s.by_oh.of(row);
    int y = (row - n * s.oh) * s.sh - s.pt, x = (p - row * s.ow) * s.sw - s.pl;
    return Spot{((n * s.h + y) * s.w + x) * s.c, y, x};
  }
  __device__ __forceinline__ Spot tap(int k) const {
    int t = s.by_cg.of(k), i = s.by_kw.of(t), y = i * s.dh, x = (t - i * s.kw) * s.dw;
    return Spot{k - t * cg + (y * s.w + x) * s.c, y, x};
  }
};

// x for y: a row is an output pixel, k a tap and channel.
struct Patches {
  enum { K_MAJOR = true };
  typedef Spot Row;
  typedef Spot Step;
  Window window;
  const scalar_t* data;  // at the group's first channel
  int pixels;
  __device__ __forceinline__ Row row(int p) const { return p < pixels ? window.pixel(p) : Spot{0, OUTSIDE, 0}; }
  __device__ __forceinline__ Step step(int k) const { return window.tap(k); }
  __device__ __forceinline__ const scalar_t* at(const Row& r, const Step& t) const {
    return element(data, r, t, window.s.h, window.s.w);
  }
};

// x for dw: a column is a tap and channel, k an output pixel.
struct Columns {
  enum { K_MAJOR = false };
  typedef Spot Row;
  typedef Spot Step;
  Window window;
  const scalar_t* data;  // at the group's first channel
  int count;
  __device__ __forceinline__ Row row(int r) const { return r < count ? window.tap(r) : Spot{0, OUTSIDE, 0}; }
  __device__ __forceinline__ Step step(int p) const { return window.pixel(p); }
  __device__ __forceinline__ const scalar_t* at(const Row& r, const Step& p) const {
    return element(data, r, p, window.s.h, window.s.w);
  }
};

// With strides, an input pixel meets only the taps i with (iy + pt - i dh) % sh == 0. Pixels whose iy has the same remainder by
// sh meet the same ones; they are one phase of the axis, and a product of its own.
struct Phase {
  int start, count;        // input rows start, start + stride, …
  int out;                 // the output row that belongs to input row `start` and a tap at offset 0
  int rest;                // (start + pad) % stride
  int first, step, taps;   // taps first, first + step, … (so many)
  // Output rows from the pixel's own to that of the t-th tap, upwards.
  __device__ __forceinline__ int up(int t, int dilation, int stride) const { return ((first + t * step) * dilation - rest) / stride; }
};
__device__ __forceinline__ Phase phase_of(int start, int size, int pad, int stride, int kernel, int dilation) {
  Phase p;
  p.start = start;
  p.count = start < size ? (size - start - 1) / stride + 1 : 0;
  p.rest = (start + pad) % stride;
  p.out = (start + pad - p.rest) / stride;
  p.first = 0, p.step = 1;
  while (p.first < kernel && p.first * dilation % stride != p.rest) ++p.first;
  while (p.step < kernel && p.step * dilation % stride != 0) ++p.step;
  p.taps = p.first < kernel ? (kernel - 1 - p.first) / p.step + 1 : 0;
  return p;
}

// dy for dx: a row is an input pixel of the phase, k a tap and filter.
struct Shadows {
  enum { K_MAJOR = true };
  typedef Spot Row;
  typedef Spot Step;
  const Conv& s;
  const Phase &down, &across;
  const scalar_t* data;  // at the group's first filter
  int pixels, og;
  __device__ __forceinline__ Row row(int p) const {
    if (p >= pixels) return Spot{0, OUTSIDE, 0};
    int row = p / across.count, n = row / down.count, y = down.out + row - n * down.count, x = across.out + p - row * across.count;
    return Spot{((n * s.oh + y) * s.ow + x) * s.o, y, x};
  }
  __device__ __forceinline__ Step step(int k) const {
    int t = s.by_og.of(k), i = t / across.taps, y = -down.up(i, s.dh, s.sh), x = -across.up(t - i * across.taps, s.dw, s.sw);
    return Spot{k - t * og + (y * s.ow + x) * s.o, y, x};
  }
  __device__ __forceinline__ const scalar_t* at(const Row& r, const Step& t) const { return element(data, r, t, s.oh, s.ow); }
};

// The filters for dx: a column is a channel, k a tap and filter.
struct Filters {
  enum { K_MAJOR = false };
  typedef int Row;  // -1 outside
  typedef int Step;
  const Conv& s;
  const Phase &down, &across;
  const scalar_t* data;  // at the group's first filter
  int cg, og;
  __device__ __forceinline__ Row row(int c) const { return c < cg ? c : -1; }
  __device__ __forceinline__ Step step(int k) const {
    int t = s.by_og.of(k), i = t / across.taps, j = t - i * across.taps;
    return (((k - t * og) * s.kh + down.first + i * down.step) * s.kw + across.first + j * across.step) * cg;
  }
  __device__ __forceinline__ const scalar_t* at(Row row, Step step) const { return row < 0 ? (const scalar_t*)0 : data + (row + step); }
};

// y or dx: rows are the pixels of a phase among all of an image tensor of `channels`, columns the channels from `first` on.
struct Image {
  bool by_row, vector;
  int channels, first, h, w;
  int start_y, step_y, count_y, start_x, step_x, count_x;
  __device__ __forceinline__ i64 row(int p) const {
    unsigned q = (unsigned)p / count_x, n = q / count_y;
    unsigned y = start_y + (q - n * count_y) * step_y, x = start_x + (p - q * count_x) * step_x, at = y * w + x;
    return by_row ? ((i64)n * channels + first) * h * w + at : ((i64)n * h * w + at) * channels + first;
  }
  __device__ __forceinline__ i64 col(int c) const { return by_row ? (i64)c * h * w : c; }
};

// dw: columns are taps and channels, as channels-last memory has them.
struct Weight {
  enum { by_row = false, vector = false };
  const Conv& s;
  int first, cg, taps;
  __device__ __forceinline__ i64 row(int o) const { return (i64)(first + o) * cg * taps; }
  __device__ __forceinline__ i64 col(int n) const {
    if (!s.row_major) return n;
    int t = s.by_cg.of(n);
    return (i64)(n - t * cg) * taps + t;
  }
};

// grid (tiles, for PASS 1 of each phase as many as of the first, parts of k, groups). `to` is y, dx or dw; bias (o) or null.
// With `parts` not null the sums go there instead, (part, all of `to`), for sum_parts.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv2d_mma(scalar_t* __restrict__ to, float* __restrict__ parts, const scalar_t* __restrict__ x_or_dy,
               const scalar_t* __restrict__ w_or_x, const scalar_t* __restrict__ bias, const __grid_constant__ Conv s,
               const Parts noted) {
  extern __shared__ __align__(128) char shared[];
  const int g = blockIdx.z, cg = s.c / s.groups, og = s.o / s.groups, taps = s.kh * s.kw;
  const int begin = blockIdx.y * s.chunk;
  Part part = {};  // made here: in the generic lambda below NVRTC 12.9 dies of it
  if (PASS == 0) part = {noted, 0, g * og, s.o};
  auto end_of = [&](int k) { return k - begin < s.chunk ? k : begin + s.chunk; };
  auto tile_sums = [&](const auto& a, const auto& b, const auto& out, int k, i64 size, int m, int n, unsigned block) {
    if (block >= tiles_down(m) * tiles_across(n)) return;  // the whole block: a phase with fewer pixels than the first one
    const TileAt tile = tile_at(block, m, n);
    const int end = end_of(k);
    Sums sum = {};
    mma_product(sum, a, tile.m0, b, tile.n0, begin, end, shared);
    const Target target = {to, parts ? parts + blockIdx.y * size : parts, bias ? bias + g * og : bias, m, n, part};
    put_sums(sum, target, out, tile.m0, tile.n0, (float*)shared,
             [&](int m, int n) { return plain_product(a, m, b, n, begin, end); });
  };
#if PASS == 0
  const int pixels = s.n * s.oh * s.ow, k = taps * cg;
  const Image out = {s.row_major != 0, !s.row_major && og % CHUNK == 0, s.o, g * og, s.oh, s.ow, 0, 1, s.oh, 0, 1, s.ow};
  tile_sums(Patches{{s, cg}, x_or_dy + g * cg, pixels}, Lines<true>{w_or_x + (i64)g * og * k, og, k}, out, k, (i64)pixels * s.o,
            pixels, og, blockIdx.x);
#elif PASS == 1
  const int phases = (s.sh < s.h ? s.sh : s.h) * (s.sw < s.w ? s.sw : s.w), blocks = gridDim.x / phases;
  const int phase = blockIdx.x / blocks, phases_across = s.sw < s.w ? s.sw : s.w;
  const Phase down = phase_of(phase / phases_across, s.h, s.pt, s.sh, s.kh, s.dh);
  const Phase across = phase_of(phase % phases_across, s.w, s.pl, s.sw, s.kw, s.dw);
  const int pixels = s.n * down.count * across.count;
  const Image out = {s.row_major != 0, !s.row_major && cg % CHUNK == 0, s.c, g * cg, s.h, s.w,
                     down.start, s.sh, down.count, across.start, s.sw, across.count};
  tile_sums(Shadows{s, down, across, x_or_dy + g * og, pixels, og},
            Filters{s, down, across, w_or_x + (i64)g * og * taps * cg, cg, og}, out, down.taps * across.taps * og,
            (i64)s.n * s.h * s.w * s.c, pixels, cg, blockIdx.x % blocks);
#else
  const int pixels = s.n * s.oh * s.ow;
  tile_sums(Lines<false>{x_or_dy + g * og, og, s.o}, Columns{{s, cg}, w_or_x + g * cg, taps * cg}, Weight{s, g * og, cg, taps},
            pixels, (i64)s.o * cg * taps, og, taps * cg, blockIdx.x);
#endif
}
