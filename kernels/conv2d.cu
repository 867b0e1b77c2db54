// 2-D convolution as matrix products whose operands are read where they lie (implicit GEMM: nothing is unrolled in memory).
//
//   y[n,o,oy,ox]  = b[o] + sum over c,i,j of x[n, c, oy sh + i dh - pt, ox sw + j dw - pl] w[o,c,i,j]
//   dx[n,c,iy,ix] = sum over o,i,j of dy[n, o, (iy + pt - i dh) / sh, (ix + pl - j dw) / sw] w[o,c,i,j]   where divisible and inside
//   dw[o,c,i,j]   = sum over n,oy,ox of dy[n,o,oy,ox] x[n, c, oy sh + i dh - pt, ox sw + j dw - pl]
//   db[o]         = sum over n,oy,ox of dy[n,o,oy,ox]
//
// Any strides work; -DCHANNELS_LAST=0|1 says which axis of x and y is contiguous, and so the order in which k runs
// through the taps and what neighbouring threads read and write. Groups lie along grid.z.
// variants: scalar_t=float,double,f16,bf16; CHANNELS_LAST=0,1
#include "parts.cuh"
#include "tile.cuh"

struct Conv {
  int n, c, h, w, o, oh, ow;  // x (n, c, h, w), y (n, o, oh, ow), filter (o, c / groups, kh, kw)
  int kh, kw, sh, sw, pt, pl, dh, dw, groups;
  i64 x[4], y[4], f[4];  // element strides of x, y and the filter
};

struct Pixel {
  i64 n;
  int y, x;
};

__device__ __noinline__ Pixel far_pixel_of(i64 p, int rows, int cols) {
  i64 q = p / cols, n = q / rows;
  return Pixel{n, (int)(q - n * rows), (int)(p - q * cols)};
}

// The pixel with linear index p among images of rows x cols; 32-bit divisions where they do.
__device__ __forceinline__ Pixel pixel_of(i64 p, int rows, int cols) {
  if (p >> 31 == 0) {
    unsigned q = (unsigned)p / cols, n = q / rows;
    return Pixel{(i64)n, (int)(q - n * rows), (int)((unsigned)p - q * cols)};
  }
  return far_pixel_of(p, rows, cols);
}

struct Tap {
  int c, i, j;  // channel, row and column of the filter
};

// The k-th of channels x rows x cols taps: the channel runs fastest where channels are contiguous.
__device__ __forceinline__ Tap tap_of(i64 k, int channels, int rows, int cols) {
  unsigned t = (unsigned)k;
  if (CHANNELS_LAST) {
    unsigned q = t / channels, i = q / cols;
    return Tap{(int)(t - q * channels), (int)i, (int)(q - i * cols)};
  }
  unsigned q = t / cols, c = q / rows;
  return Tap{(int)c, (int)(q - c * rows), (int)(t - q * cols)};
}

// Taps along one axis: first, first + step, … (count of them).
struct Taps {
  int first, step, count;
};

// An address with the place in the plane that belongs to it.
struct Spot {
  i64 at;
  int y, x;
  bool inside;
};
struct Offset {
  i64 at;
  int y, x;
};

// x under the filter: row = output pixel, k = tap.
struct Patches {
  enum { k_fast = CHANNELS_LAST };
  typedef Spot Row;
  typedef Offset Step;
  const Conv& s;
  const scalar_t* x;  // at the group's first channel
  i64 pixels;
  int channels;
  __device__ __forceinline__ Row row(i64 p) const {
    if (p >= pixels) return Row{0, 0, 0, false};
    Pixel o = pixel_of(p, s.oh, s.ow);
    return Row{o.n * s.x[0], o.y * s.sh - s.pt, o.x * s.sw - s.pl, true};
  }
  __device__ __forceinline__ Step step(i64 k) const {
    Tap t = tap_of(k, channels, s.kh, s.kw);
    return Step{t.c * s.x[1], t.i * s.dh, t.j * s.dw};
  }
  __device__ __forceinline__ acc_t at(const Row& r, const Step& t) const {
    int y = r.y + t.y, x_ = r.x + t.x;
    if (!r.inside || (unsigned)y >= (unsigned)s.h || (unsigned)x_ >= (unsigned)s.w) return 0;
    return load(x + r.at + t.at + y * s.x[2] + x_ * s.x[3]);
  }
};

// With strides, an input pixel meets only some of the taps: those with (iy + pt - i dh) % sh == 0. Pixels whose iy has
// the same remainder by sh meet the same ones; they are one phase of the axis, and a product of its own.
struct Phase {
  int start, count;   // input rows start, start + stride, …
  int out;            // the output row that belongs to input row `start` and the first tap's offset 0
  int rest;           // (start + pad) % stride
  Taps taps;
};
__device__ __forceinline__ Phase phase_of(int start, int size, int pad, int stride, int kernel, int dilation) {
  Phase p;
  p.start = start;
  p.count = start < size ? (size - start - 1) / stride + 1 : 0;
  p.rest = (int)(((i64)start + pad) % stride);
  p.out = (int)(((i64)start + pad - p.rest) / stride);
  int first = 0, step = 1;
  while (first < kernel && (i64)first * dilation % stride != p.rest) ++first;
  while (step < kernel && (i64)step * dilation % stride != 0) ++step;
  p.taps = Taps{first, step, first < kernel ? (kernel - 1 - first) / step + 1 : 0};
  return p;
}

// dy above the pixels of a phase: row = input pixel, k = tap over the output channels.
struct Shadows {
  enum { k_fast = CHANNELS_LAST };
  typedef Spot Row;
  typedef Offset Step;
  const Conv& s;
  const scalar_t* dy;  // at the group's first channel
  i64 pixels;
  int channels;
  const Phase &down, &across;
  __device__ __forceinline__ Row row(i64 p) const {
    if (p >= pixels) return Row{0, 0, 0, false};
    Pixel i = pixel_of(p, down.count, across.count);
    return Row{i.n * s.y[0], down.out + i.y, across.out + i.x, true};
  }
  __device__ __forceinline__ Step step(i64 k) const {
    Tap t = tap_of(k, channels, down.taps.count, across.taps.count);
    int i = down.taps.first + t.i * down.taps.step, j = across.taps.first + t.j * across.taps.step;
    return Step{t.c * s.y[1], (i * s.dh - down.rest) / s.sh, (j * s.dw - across.rest) / s.sw};
  }
  __device__ __forceinline__ acc_t at(const Row& r, const Step& t) const {
    int oy = r.y - t.y, ox = r.x - t.x;
    if (!r.inside || (unsigned)oy >= (unsigned)s.oh || (unsigned)ox >= (unsigned)s.ow) return 0;
    return load(dy + r.at + t.at + oy * s.y[2] + ox * s.y[3]);
  }
};

// The filters: row = one channel, k = tap over the other channels.
struct Filters {
  enum { k_fast = true };
  typedef i64 Row;  // -1 outside
  typedef i64 Step;
  const Conv& s;
  const scalar_t* w;  // at the group's first filter
  int rows, channels;
  i64 row_stride, channel_stride;
  Taps down, across;
  __device__ __forceinline__ Row row(i64 r) const { return r < rows ? r * row_stride : -1; }
  __device__ __forceinline__ Step step(i64 k) const {
    Tap t = tap_of(k, channels, down.count, across.count);
    return t.c * channel_stride + (down.first + t.i * down.step) * s.f[2] + (across.first + t.j * across.step) * s.f[3];
  }
  __device__ __forceinline__ acc_t at(Row r, Step t) const { return r < 0 ? (acc_t)0 : load(w + r + t); }
};

// dy for the weight gradient: row = output channel, k = output pixel.
struct Gradients {
  enum { k_fast = !CHANNELS_LAST };
  typedef i64 Row;  // -1 outside
  typedef i64 Step;
  const Conv& s;
  const scalar_t* dy;  // at the group's first channel
  int rows;
  __device__ __forceinline__ Row row(i64 r) const { return r < rows ? r * s.y[1] : -1; }
  __device__ __forceinline__ Step step(i64 p) const {
    Pixel o = pixel_of(p, s.oh, s.ow);
    return o.n * s.y[0] + o.y * s.y[2] + o.x * s.y[3];
  }
  __device__ __forceinline__ acc_t at(Row r, Step t) const { return r < 0 ? (acc_t)0 : load(dy + r + t); }
};

// x for the weight gradient: row = tap, k = output pixel.
struct Columns {
  enum { k_fast = !CHANNELS_LAST };
  typedef Spot Row;
  typedef Offset Step;
  const Conv& s;
  const scalar_t* x;  // at the group's first channel
  i64 rows;
  int channels;
  __device__ __forceinline__ Row row(i64 r) const {
    if (r >= rows) return Row{0, 0, 0, false};
    Tap t = tap_of(r, channels, s.kh, s.kw);
    return Row{t.c * s.x[1], t.i * s.dh - s.pt, t.j * s.dw - s.pl, true};
  }
  __device__ __forceinline__ Step step(i64 p) const {
    Pixel o = pixel_of(p, s.oh, s.ow);
    return Step{o.n * s.x[0], o.y * s.sh, o.x * s.sw};
  }
  __device__ __forceinline__ acc_t at(const Row& r, const Step& t) const {
    int y = r.y + t.y, x_ = r.x + t.x;
    if (!r.inside || (unsigned)y >= (unsigned)s.h || (unsigned)x_ >= (unsigned)s.w) return 0;
    return load(x + r.at + t.at + y * s.x[2] + x_ * s.x[3]);
  }
};

// One tile of an image tensor: put(pixel, channel, sum over k), the contiguous one of the two along the tile's columns.
// Neighbouring blocks take the channels of the same pixels.
template <class Pixels, class Channels, class Put>
__device__ __forceinline__ void image_tile(const Pixels& pixels, i64 pixel_count, const Channels& channels, int channel_count,
                                           i64 depth, Panel& pa, Panel& pb, Put put) {
  i64 across = tiles(channel_count), p0 = blockIdx.x / across * TILE, c0 = blockIdx.x % across * TILE;
  if (p0 >= pixel_count) return;  // the whole block
  acc_t sum[4][4] = {};
  if (CHANNELS_LAST) tile_product(sum, pixels, p0, channels, c0, 0, depth, pa, pb);
  else tile_product(sum, channels, c0, pixels, p0, 0, depth, pa, pb);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      i64 p = p0 + (CHANNELS_LAST ? tile_row(i) : tile_col(j)), c = c0 + (CHANNELS_LAST ? tile_col(j) : tile_row(i));
      if (p < pixel_count && c < channel_count) put(p, c, sum[i][j]);
    }
  }
}

// grid (tiles of output pixels and channels, 1, groups); bias (o) or null
extern "C" __global__ void __launch_bounds__(TILE_THREADS, sizeof(acc_t) == 8 ? TILE_RESIDENT : 0)
    conv2d_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, const scalar_t* __restrict__ w,
               const scalar_t* __restrict__ bias, const Conv s) {
  __shared__ Panel pa, pb;
  const int cg = s.c / s.groups, og = s.o / s.groups;
  const i64 pixels = (i64)s.n * s.oh * s.ow;
  for (int g = blockIdx.z; g < s.groups; g += gridDim.z) {
    Patches patches = {s, x + (i64)g * cg * s.x[1], pixels, cg};
    Filters filters = {s, w + (i64)g * og * s.f[0], og, cg, s.f[0], s.f[1], Taps{0, 1, s.kh}, Taps{0, 1, s.kw}};
    image_tile(patches, pixels, filters, og, (i64)cg * s.kh * s.kw, pa, pb, [&](i64 p, i64 c, acc_t sum) {
      Pixel at = pixel_of(p, s.oh, s.ow);
      i64 o = (i64)g * og + c;
      if (bias) sum += load(bias + o);
      store(y + at.n * s.y[0] + o * s.y[1] + at.y * s.y[2] + at.x * s.y[3], sum);
    });
  }
}

// grid (tiles of input pixels and channels, phases, groups), the tiles being those of the first phase, which has the most
extern "C" __global__ void __launch_bounds__(TILE_THREADS, TILE_RESIDENT)
    conv2d_bwd_data(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const scalar_t* __restrict__ w, const Conv s) {
  __shared__ Panel pa, pb;
  __shared__ Phase both[2];  // the same for all threads: they would take registers of each
  const int cg = s.c / s.groups, og = s.o / s.groups;
  const int phases_down = s.sh < s.h ? s.sh : s.h, phases_across = s.sw < s.w ? s.sw : s.w;
  for (i64 phase = blockIdx.y; phase < (i64)phases_down * phases_across; phase += gridDim.y) {
    const Phase &down = both[0], &across = both[1];
    __syncthreads();  // the phase before may still be read
    if (threadIdx.x == 0) {
      both[0] = phase_of((int)(phase / phases_across), s.h, s.pt, s.sh, s.kh, s.dh);
      both[1] = phase_of((int)(phase % phases_across), s.w, s.pl, s.sw, s.kw, s.dw);
    }
    __syncthreads();
    const i64 pixels = (i64)s.n * down.count * across.count, depth = (i64)og * down.taps.count * across.taps.count;
    for (int g = blockIdx.z; g < s.groups; g += gridDim.z) {
      Shadows shadows = {s, dy + (i64)g * og * s.y[1], pixels, og, down, across};
      Filters filters = {s, w + (i64)g * og * s.f[0], cg, og, s.f[1], s.f[0], down.taps, across.taps};
      image_tile(shadows, pixels, filters, cg, depth, pa, pb, [&](i64 p, i64 c, acc_t sum) {
        Pixel at = pixel_of(p, down.count, across.count);
        i64 row = down.start + (i64)at.y * s.sh, col = across.start + (i64)at.x * s.sw;
        store(dx + at.n * s.x[0] + ((i64)g * cg + c) * s.x[1] + row * s.x[2] + col * s.x[3], sum);
      });
    }
  }
}

// grid (tiles of output channels and taps, parts, groups), a part being `chunk` output pixels; dw (o, c / groups, kh, kw) by the filters' strides.
// With `parts` not null the sums go there instead, (part, as dw), for sum_parts.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    conv2d_bwd_weight(scalar_t* __restrict__ dw, acc_t* __restrict__ parts, const scalar_t* __restrict__ dy,
                      const scalar_t* __restrict__ x, const Conv s, i64 chunk) {
  __shared__ Panel pa, pb;
  const int cg = s.c / s.groups, og = s.o / s.groups;
  const i64 pixels = (i64)s.n * s.oh * s.ow, taps = (i64)cg * s.kh * s.kw;
  const i64 across = tiles(taps), o0 = blockIdx.x / across * TILE, t0 = blockIdx.x % across * TILE;
  const i64 begin = blockIdx.y * chunk, end = begin + chunk < pixels ? begin + chunk : pixels;
  for (int g = blockIdx.z; g < s.groups; g += gridDim.z) {
    Gradients gradients = {s, dy + (i64)g * og * s.y[1], og};
    Columns columns = {s, x + (i64)g * cg * s.x[1], taps, cg};
    acc_t sum[4][4] = {};
    tile_product(sum, gradients, o0, columns, t0, begin, end, pa, pb);
    for (int j = 0; j < 4; ++j) {
      i64 k = t0 + tile_col(j);
      if (k >= taps) continue;
      Tap t = tap_of(k, cg, s.kh, s.kw);
      for (int i = 0; i < 4; ++i) {
        i64 o = o0 + tile_row(i);
        if (o >= og) continue;
        i64 at = ((i64)g * og + o) * s.f[0] + t.c * s.f[1] + t.i * s.f[2] + t.j * s.f[3];
        if (parts) parts[blockIdx.y * s.o * taps + at] = sum[i][j];
        else store(dw + at, sum[i][j]);
      }
    }
  }
}
