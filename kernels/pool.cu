// Max and average pooling over windows, and the mean over whole planes. Gradients are gathered: each element of dx looks at
// the windows that cover it, in order, so overlapping windows need no atomics.
// variants: scalar_t=float,double,f16,bf16; place_t=u8,i64
#include "common.cuh"

struct Pool {
  int c, h, w, oh, ow;  // x (n, c, h, w), y (n, c, oh, ow), in the same memory order
  int kh, kw, sh, sw, pt, pl, pb, pr;
  int channels_last, count_include_pad;
};

// Where element i of memory stands: image and channel as an offset into x and y, row, column.
struct Spot {
  i64 x, y;  // offsets of the plane
  int row, col;
};

__device__ __forceinline__ i64 quotient(i64 a, int b) { return a >> 31 == 0 ? (i64)((unsigned)a / (unsigned)b) : a / b; }

__device__ __forceinline__ Spot spot_of(i64 i, int rows, int cols, const Pool& s) {
  Spot p;
  if (s.channels_last) {
    i64 q = quotient(i, s.c), c = i - q * s.c, r = quotient(q, cols), n = quotient(r, rows);
    p.col = (int)(q - r * cols);
    p.row = (int)(r - n * rows);
    p.x = n * s.c * s.h * s.w + c;
    p.y = n * s.c * s.oh * s.ow + c;
  } else {
    i64 r = quotient(i, cols), plane = quotient(r, rows);
    p.col = (int)(i - r * cols);
    p.row = (int)(r - plane * rows);
    p.x = plane * s.h * s.w;
    p.y = plane * s.oh * s.ow;
  }
  return p;
}

// Elements from one pixel to the next.
__device__ __forceinline__ int pixel_stride(const Pool& s) { return s.channels_last ? s.c : 1; }

// The half-open range of input rows (or columns) under output o.
struct Range {
  int begin, end;
};
__device__ __forceinline__ Range under(int o, int kernel, int stride, int pad, int size) {
  int begin = o * stride - pad, end = begin + kernel;
  return Range{begin > 0 ? begin : 0, end < size ? end : size};
}
// The half-open range of outputs whose window covers input i.
__device__ __forceinline__ Range above(int i, int kernel, int stride, int pad, int out) {
  int last = (i + pad) / stride, first = i + pad - kernel + 1;
  return Range{first > 0 ? (first - 1) / stride + 1 : 0, last < out ? last + 1 : out};
}
// How many elements the mean of output o divides by, along one axis.
__device__ __forceinline__ int counted(int o, int kernel, int stride, int before, int after, int size, int with_pad) {
  if (!with_pad) {
    Range r = under(o, kernel, stride, before, size);
    return r.end - r.begin;
  }
  int begin = o * stride, end = begin + kernel, limit = size + before + after;
  return (end < limit ? end : limit) - begin;
}
__device__ __forceinline__ acc_t window_size(int oy, int ox, const Pool& s) {
  return (acc_t)counted(oy, s.kh, s.sh, s.pt, s.pb, s.h, s.count_include_pad) *
         (acc_t)counted(ox, s.kw, s.sw, s.pl, s.pr, s.w, s.count_include_pad);
}

#ifdef place_t
// y = max of x under the window; place = the winner's tap i * kw + j. The first of equals wins, NaN wins over all.
extern "C" __global__ void max_pool_fwd(scalar_t* __restrict__ y, place_t* __restrict__ place,
                                        const scalar_t* __restrict__ x, const Pool s, i64 n) {
  GRID_STRIDE(i, n) {
    Spot at = spot_of(i, s.oh, s.ow, s);
    Range rows = under(at.row, s.kh, s.sh, s.pt, s.h), cols = under(at.col, s.kw, s.sw, s.pl, s.w);
    const scalar_t* plane = x + at.x;
    int step = pixel_stride(s), best_row = rows.begin, best_col = cols.begin;
    acc_t best = load(plane + ((i64)rows.begin * s.w + cols.begin) * step);
    for (int r = rows.begin; r < rows.end; ++r) {
      for (int c = cols.begin; c < cols.end; ++c) {
        acc_t v = load(plane + ((i64)r * s.w + c) * step);
        if (v > best || (v != v && best == best)) {
          best = v;
          best_row = r;
          best_col = c;
        }
      }
    }
    store(y + i, best);
    if (place) place[i] = (place_t)((i64)(best_row - (at.row * s.sh - s.pt)) * s.kw + (best_col - (at.col * s.sw - s.pl)));
  }
}

// dx = the sum of dy over the windows that this element won.
extern "C" __global__ void max_pool_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy,
                                        const place_t* __restrict__ place, const Pool s, i64 n) {
  GRID_STRIDE(i, n) {
    Spot at = spot_of(i, s.h, s.w, s);
    Range rows = above(at.row, s.kh, s.sh, s.pt, s.oh), cols = above(at.col, s.kw, s.sw, s.pl, s.ow);
    int step = pixel_stride(s);
    acc_t sum = 0;
    for (int r = rows.begin; r < rows.end; ++r) {
      for (int c = cols.begin; c < cols.end; ++c) {
        i64 tap = (i64)(at.row + s.pt - r * s.sh) * s.kw + (at.col + s.pl - c * s.sw);
        i64 o = at.y + ((i64)r * s.ow + c) * step;
        if ((i64)place[o] == tap) sum += load(dy + o);
      }
    }
    store(dx + i, sum);
  }
}
#else
// y = the mean of x under the window.
extern "C" __global__ void avg_pool_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, const Pool s, i64 n) {
  GRID_STRIDE(i, n) {
    Spot at = spot_of(i, s.oh, s.ow, s);
    Range rows = under(at.row, s.kh, s.sh, s.pt, s.h), cols = under(at.col, s.kw, s.sw, s.pl, s.w);
    int step = pixel_stride(s);
    acc_t sum = 0;
    for (int r = rows.begin; r < rows.end; ++r)
      for (int c = cols.begin; c < cols.end; ++c) sum += load(x + at.x + ((i64)r * s.w + c) * step);
    store(y + i, (acc_t)(sum / window_size(at.row, at.col, s)));
  }
}

// dx = the sum of dy / size over the windows that cover this element.
extern "C" __global__ void avg_pool_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const Pool s, i64 n) {
  GRID_STRIDE(i, n) {
    Spot at = spot_of(i, s.h, s.w, s);
    Range rows = above(at.row, s.kh, s.sh, s.pt, s.oh), cols = above(at.col, s.kw, s.sw, s.pl, s.ow);
    int step = pixel_stride(s);
    acc_t sum = 0;
    for (int r = rows.begin; r < rows.end; ++r)
      for (int c = cols.begin; c < cols.end; ++c)
        sum += load(dy + at.y + ((i64)r * s.ow + c) * step) / window_size(r, c, s);
    store(dx + i, sum);
  }
}

// y[plane] = the mean of a row-major plane: one warp each, 8 warps a block; x (planes, size)
extern "C" __global__ void __launch_bounds__(256)
    global_avg_rows(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, i64 planes, i64 size) {
  i64 warps = (i64)gridDim.x * 8;
  for (i64 p = (i64)blockIdx.x * 8 + threadIdx.x / 32; p < planes; p += warps) {
    acc_t sum = 0;
    for (i64 i = threadIdx.x % 32; i < size; i += 32) sum += load(x + p * size + i);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) store(y + p, (acc_t)(sum / size));
  }
}

// The same for channels-last memory, x (images, size, channels): one thread a channel, neighbours read neighbours.
extern "C" __global__ void global_avg_columns(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, i64 n, i64 size,
                                              i64 channels) {
  GRID_STRIDE(i, n) {
    i64 image = i / channels, c = i - image * channels;
    acc_t sum = 0;
    for (i64 p = 0; p < size; ++p) sum += load(x + (image * size + p) * channels + c);
    store(y + i, (acc_t)(sum / size));
  }
}

// dx = dy / size;  `channels` is 1 for row-major memory, where a plane is contiguous
extern "C" __global__ void global_avg_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, i64 n, i64 size,
                                          i64 channels) {
  GRID_STRIDE(i, n) {
    i64 image = i / (size * channels), c = i % channels;
    store(dx + i, (acc_t)(load(dy + image * channels + c) / size));
  }
}
#endif
