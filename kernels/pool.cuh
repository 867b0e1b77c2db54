// The geometry of pooling windows. -DWINDOW=ks is a square window of k with stride s that is known to the compiler, which then
// divides by shifts and unrolls; 0 is any other one, read from the arguments.
#pragma once
#include "pack.cuh"

struct Pool {
  int c, h, w, oh, ow;  // x (n, c, h, w), y (n, c, oh, ow), in the same memory order
  int kh, kw, sh, sw, pt, pl, pb, pr;
  int channels_last, count_include_pad;
};

#define KH (WINDOW ? WINDOW / 10 : s.kh)
#define KW (WINDOW ? WINDOW / 10 : s.kw)
#define SH (WINDOW ? WINDOW % 10 : s.sh)
#define SW (WINDOW ? WINDOW % 10 : s.sw)

// How many loads of a window's row, or of the windows above a row, are under way at once.
#define TAPS (WINDOW ? WINDOW / 10 : 3)
#define COVERS (WINDOW ? (WINDOW / 10 + WINDOW % 10 - 1) / (WINDOW % 10) : 2)

// Where element i of memory stands: image and channel as an offset into x and y, row, column.
struct Spot {
  i64 x, y;  // offsets of the plane
  int row, col;
};

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

// Division of numbers below 2^31 by a multiplication (Granlund and Montgomery 1994); made by the host.
struct Divisor {
  unsigned magic, shift;
};
__device__ __forceinline__ unsigned over(unsigned n, const Divisor& d) { return (__umulhi(n, d.magic) + n) >> d.shift; }

// A grid of items: `inner` of them for each pixel, `cols` pixels a row, `rows` rows an image or plane.
struct Items {
  unsigned count, inner, cols, rows;
  Divisor by_inner, by_cols, by_rows;
};
#define FOR_ITEMS(i, items) for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < (items).count; i += gridDim.x * 256)

// The spot of item i, of `step` elements each: channels in channels-last memory, else columns.
__device__ __forceinline__ Spot spot_of(unsigned i, int step, const Items& t, const Pool& s) {
  unsigned q = over(i, t.by_inner), r = over(q, t.by_cols), n = over(r, t.by_rows);
  int c = (int)(i - q * t.inner) * step;
  Spot p;
  p.row = (int)(r - n * t.rows);
  p.col = (int)(q - r * t.cols);
  if (!s.channels_last) p.col *= step;  // `inner` is 1
  p.x = (i64)n * (s.channels_last ? s.c : 1) * s.h * s.w + c;
  p.y = (i64)n * (s.channels_last ? s.c : 1) * s.oh * s.ow + c;
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
  int last = (int)((unsigned)(i + pad) / (unsigned)stride), first = i + pad - kernel + 1;
  return Range{first > 0 ? (int)((unsigned)(first - 1) / (unsigned)stride) + 1 : 0, last < out ? last + 1 : out};
}

// Four neighbouring elements, the first at a multiple of four.
__device__ __forceinline__ void store_four(scalar_t* p, const acc_t (&v)[4]) {
  if (sizeof(scalar_t) == 2) {
    acc_t twice[PACK];
#pragma unroll
    for (int k = 0; k < PACK; ++k) twice[k] = v[k % 4];
    uint4 q = quad_of<scalar_t>(twice);
    *(uint2*)p = make_uint2(q.x, q.y);
  } else {
    store_pack(p, v);
  }
}
