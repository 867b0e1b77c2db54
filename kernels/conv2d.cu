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

// The pixel with linear index p among images of rows x cols; 32-bit divisions where they do.
__device__ __forceinline__ Pixel pixel_of(i64 p, int rows, int cols) {
  if (p >> 31 == 0) {
    unsigned q = (unsigned)p / cols, n = q / rows;
    return Pixel{(i64)n, (int)(q - n * rows), (int)((unsigned)p - q * cols)};
  }
  i64 q = p / cols, n = q / rows;
  return Pixel{n, (int)(q - n * rows), (int)(p - q * cols)};
}

struct Tap {
  int c, i, j;  // channel, row and column of the filter
};

// The k-th tap of filters with that many channels: the channel runs fastest where channels are contiguous.
__device__ __forceinline__ Tap tap_of(i64 k, int channels, const Conv& s) {
  unsigned t = (unsigned)k;
  if (CHANNELS_LAST) {
    unsigned q = t / channels, i = q / s.kw;
    return Tap{(int)(t - q * channels), (int)i, (int)(q - i * s.kw)};
  }
  unsigned q = t / s.kw, c = q / s.kh;
  return Tap{(int)c, (int)(q - c * s.kh), (int)(t - q * s.kw)};
}

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
    Tap t = tap_of(k, channels, s);
    return Step{t.c * s.x[1], t.i * s.dh, t.j * s.dw};
  }
  __device__ __forceinline__ acc_t at(const Row& r, const Step& t) const {
    int y = r.y + t.y, x_ = r.x + t.x;
    if (!r.inside || (unsigned)y >= (unsigned)s.h || (unsigned)x_ >= (unsigned)s.w) return 0;
    return load(x + r.at + t.at + y * s.x[2] + x_ * s.x[3]);
  }
};

// dy above a pixel of x: row = input pixel, k = tap over the output channels.
struct Shadows {
  enum { k_fast = CHANNELS_LAST };
  typedef Spot Row;
  typedef Offset Step;
  const Conv& s;
  const scalar_t* dy;  // at the group's first channel
  i64 pixels;
  int channels;
  __device__ __forceinline__ Row row(i64 p) const {
    if (p >= pixels) return Row{0, 0, 0, false};
    Pixel i = pixel_of(p, s.h, s.w);
    return Row{i.n * s.y[0], i.y + s.pt, i.x + s.pl, true};
  }
  __device__ __forceinline__ Step step(i64 k) const {
    Tap t = tap_of(k, channels, s);
    return Step{t.c * s.y[1], t.i * s.dh, t.j * s.dw};
  }
  __device__ __forceinline__ acc_t at(const Row& r, const Step& t) const {
    int y = r.y - t.y, x = r.x - t.x;
    if (!r.inside || y < 0 || x < 0) return 0;
    int oy = y / s.sh, ox = x / s.sw;
    if (oy * s.sh != y || ox * s.sw != x || oy >= s.oh || ox >= s.ow) return 0;
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
  __device__ __forceinline__ Row row(i64 r) const { return r < rows ? r * row_stride : -1; }
  __device__ __forceinline__ Step step(i64 k) const {
    Tap t = tap_of(k, channels, s);
    return t.c * channel_stride + t.i * s.f[2] + t.j * s.f[3];
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
struct Taps {
  enum { k_fast = !CHANNELS_LAST };
  typedef Spot Row;
  typedef Offset Step;
  const Conv& s;
  const scalar_t* x;  // at the group's first channel
  i64 rows;
  int channels;
  __device__ __forceinline__ Row row(i64 r) const {
    if (r >= rows) return Row{0, 0, 0, false};
    Tap t = tap_of(r, channels, s);
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
template <class Pixels, class Channels, class Put>
__device__ __forceinline__ void image_tile(const Pixels& pixels, i64 pixel_count, const Channels& channels, int channel_count,
                                           i64 depth, Panel& pa, Panel& pb, Put put) {
  i64 down = tiles(pixel_count), p0 = blockIdx.x % down * TILE, c0 = blockIdx.x / down * TILE;
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
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    conv2d_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, const scalar_t* __restrict__ w,
               const scalar_t* __restrict__ bias, const Conv s) {
  __shared__ Panel pa, pb;
  const int cg = s.c / s.groups, og = s.o / s.groups;
  const i64 pixels = (i64)s.n * s.oh * s.ow;
  for (int g = blockIdx.z; g < s.groups; g += gridDim.z) {
    Patches patches = {s, x + (i64)g * cg * s.x[1], pixels, cg};
    Filters filters = {s, w + (i64)g * og * s.f[0], og, cg, s.f[0], s.f[1]};
    image_tile(patches, pixels, filters, og, (i64)cg * s.kh * s.kw, pa, pb, [&](i64 p, i64 c, acc_t sum) {
      Pixel at = pixel_of(p, s.oh, s.ow);
      i64 o = (i64)g * og + c;
      if (bias) sum += load(bias + o);
      store(y + at.n * s.y[0] + o * s.y[1] + at.y * s.y[2] + at.x * s.y[3], sum);
    });
  }
}

// grid (tiles of input pixels and channels, 1, groups)
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    conv2d_bwd_data(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const scalar_t* __restrict__ w, const Conv s) {
  __shared__ Panel pa, pb;
  const int cg = s.c / s.groups, og = s.o / s.groups;
  const i64 pixels = (i64)s.n * s.h * s.w;
  for (int g = blockIdx.z; g < s.groups; g += gridDim.z) {
    Shadows shadows = {s, dy + (i64)g * og * s.y[1], pixels, og};
    Filters filters = {s, w + (i64)g * og * s.f[0], cg, og, s.f[1], s.f[0]};
    image_tile(shadows, pixels, filters, cg, (i64)og * s.kh * s.kw, pa, pb, [&](i64 p, i64 c, acc_t sum) {
      Pixel at = pixel_of(p, s.h, s.w);
      store(dx + at.n * s.x[0] + ((i64)g * cg + c) * s.x[1] + at.y * s.x[2] + at.x * s.x[3], sum);
    });
  }
}

// grid (tiles of output channels and taps, parts, groups), a part being `chunk` output pixels; dw (o, c / groups, kh, kw) row-major.
// With `parts` not null the sums go there instead, (part, o, c / groups, kh, kw), for sum_parts.
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
    Taps columns = {s, x + (i64)g * cg * s.x[1], taps, cg};
    acc_t sum[4][4] = {};
    tile_product(sum, gradients, o0, columns, t0, begin, end, pa, pb);
    for (int j = 0; j < 4; ++j) {
      i64 k = t0 + tile_col(j);
      if (k >= taps) continue;
      Tap t = tap_of(k, cg, s);
      for (int i = 0; i < 4; ++i) {
        i64 o = o0 + tile_row(i);
        if (o >= og) continue;
        i64 at = ((((i64)g * og + o) * cg + t.c) * s.kh + t.i) * s.kw + t.j;
        if (parts) parts[blockIdx.y * s.o * taps + at] = sum[i][j];
        else store(dw + at, sum[i][j]);
      }
    }
  }
}

// parts[blockIdx.y][o] = the sum of dy over that part's `chunk` output pixels, for row-major dy (channels-last has column_sums);
// grid (o, parts)
extern "C" __global__ void __launch_bounds__(256)
    plane_sums(acc_t* __restrict__ parts, const scalar_t* __restrict__ dy, i64 channels, i64 plane, i64 pixels, i64 chunk) {
  __shared__ acc_t scratch[32];
  i64 o = blockIdx.x, begin = blockIdx.y * chunk, end = begin + chunk < pixels ? begin + chunk : pixels;
  acc_t sum = 0;
  for (i64 p = begin + threadIdx.x; p < end; p += blockDim.x) {
    i64 n = p / plane;
    sum += load(dy + (n * channels + o) * plane + (p - n * plane));
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) parts[blockIdx.y * channels + o] = sum;
}
