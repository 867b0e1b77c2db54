// Average pooling. Gradients are gathered: each element of dx looks at the windows that cover it, in order, so overlapping
// windows need no atomics.
// Bytes for elements of S bytes: S for each of x and y, forward and backward. Windows that overlap read again from the caches.
// variants: scalar_t=float,f16,bf16; WINDOW=0,22
// variants: scalar_t=double; WINDOW=0
#include "pool.cuh"

// How many elements the mean of output o divides by, along one axis.
__device__ __forceinline__ int counted(int o, int kernel, int stride, int before, int after, int size, int with_pad) {
  if (!with_pad) {
    Range r = under(o, kernel, stride, before, size);
    return r.end - r.begin;
  }
  int begin = o * stride, end = begin + kernel, limit = size + before + after;
  return (end < limit ? end : limit) - begin;
}
// One over the size of output (oy, ox)'s window.
__device__ __forceinline__ acc_t share(int oy, int ox, const Pool& s) {
  return reciprocal((acc_t)counted(oy, KH, SH, s.pt, s.pb, s.h, s.count_include_pad) *
                    (acc_t)counted(ox, KW, SW, s.pl, s.pr, s.w, s.count_include_pad));
}

// y = the mean of x under the window, in any memory order and size, element by element.
extern "C" __global__ void avg_pool_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, const Pool s, i64 n) {
  GRID_STRIDE(i, n) {
    Spot at = spot_of(i, s.oh, s.ow, s);
    Range rows = under(at.row, KH, SH, s.pt, s.h), cols = under(at.col, KW, SW, s.pl, s.w);
    int step = pixel_stride(s);
    acc_t sum = 0;
    for (int r = rows.begin; r < rows.end; ++r)
      for (int c = cols.begin; c < cols.end; ++c) sum += load(x + at.x + ((i64)r * s.w + c) * step);
    store(y + i, (acc_t)(sum * share(at.row, at.col, s)));
  }
}

// dx = the sum of dy / size over the windows that cover this element.
extern "C" __global__ void avg_pool_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const Pool s, i64 n) {
  GRID_STRIDE(i, n) {
    Spot at = spot_of(i, s.h, s.w, s);
    Range rows = above(at.row, KH, SH, s.pt, s.oh), cols = above(at.col, KW, SW, s.pl, s.ow);
    int step = pixel_stride(s);
    acc_t sum = 0;
    for (int r = rows.begin; r < rows.end; ++r)
      for (int c = cols.begin; c < cols.end; ++c) sum += load(dy + at.y + ((i64)r * s.ow + c) * step) * share(r, c, s);
    store(dx + i, sum);
  }
}

__device__ __forceinline__ void add_times(acc_t (&sum)[PACK], uint4 raw, acc_t factor) {
  Packed<scalar_t, PACK> v;
  v.quads[0] = raw;
#pragma unroll
  for (int k = 0; k < PACK; ++k) sum[k] += load(v.v + k) * factor;
}

// Channels-last: one thread has the 16 bytes of neighbouring channels of an output pixel.
extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 3)
    avg_pool_fwd_packed(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, const Pool s, const Items items) {
  FOR_ITEMS(i, items) {
    const Spot at = spot_of(i, PACK, items, s);
    const Range rows = under(at.row, KH, SH, s.pt, s.h), cols = under(at.col, KW, SW, s.pl, s.w);
    acc_t sum[PACK];
#pragma unroll
    for (int k = 0; k < PACK; ++k) sum[k] = 0;
    for (int r = rows.begin; r < rows.end; ++r) {
      const scalar_t* line = x + at.x + (i64)r * s.w * s.c;
      for (int c = cols.begin; c < cols.end; c += TAPS) {
        uint4 raw[TAPS];
#pragma unroll
        for (int j = 0; j < TAPS; ++j)
          if (c + j < cols.end) raw[j] = *(const uint4*)(line + (i64)(c + j) * s.c);
#pragma unroll
        for (int j = 0; j < TAPS; ++j)
          if (c + j < cols.end) add_times(sum, raw[j], 1);
      }
    }
    const acc_t part = share(at.row, at.col, s);
#pragma unroll
    for (int k = 0; k < PACK; ++k) sum[k] *= part;
    store_pack(y + at.y + ((i64)at.row * s.ow + at.col) * s.c, sum);
  }
}

// Channels-last: one thread has the 16 bytes of neighbouring channels of an input pixel.
extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 3)
    avg_pool_bwd_packed(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const Pool s, const Items items) {
  FOR_ITEMS(i, items) {
    const Spot at = spot_of(i, PACK, items, s);
    const Range rows = above(at.row, KH, SH, s.pt, s.oh), cols = above(at.col, KW, SW, s.pl, s.ow);
    acc_t sum[PACK];
#pragma unroll
    for (int k = 0; k < PACK; ++k) sum[k] = 0;
    for (int r = rows.begin; r < rows.end; ++r) {
      const scalar_t* line = dy + at.y + (i64)r * s.ow * s.c;
      for (int c = cols.begin; c < cols.end; c += COVERS) {
        uint4 raw[COVERS];
#pragma unroll
        for (int j = 0; j < COVERS; ++j)
          if (c + j < cols.end) raw[j] = *(const uint4*)(line + (i64)(c + j) * s.c);
#pragma unroll
        for (int j = 0; j < COVERS; ++j)
          if (c + j < cols.end) add_times(sum, raw[j], share(r, c + j, s));
      }
    }
    store_pack(dx + at.x + ((i64)at.row * s.w + at.col) * s.c, sum);
  }
}

// Row-major: one thread has four neighbouring columns of an input row.
extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 3)
    avg_pool_bwd_rows(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const Pool s, const Items items) {
  FOR_ITEMS(i, items) {
    const Spot at = spot_of(i, 4, items, s);
    const Range rows = above(at.row, KH, SH, s.pt, s.oh);
    const int begin = above(at.col, KW, SW, s.pl, s.ow).begin, end = above(at.col + 3, KW, SW, s.pl, s.ow).end;
    acc_t sum[4] = {0, 0, 0, 0};
    for (int r = rows.begin; r < rows.end; ++r) {
      for (int c = begin; c < end; ++c) {
        const acc_t v = load(dy + at.y + (i64)r * s.ow + c) * share(r, c, s);
        const int first = at.col + s.pl - c * SW;
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if ((unsigned)(first + k) < (unsigned)KW) sum[k] += v;
      }
    }
    store_four(dx + at.x + (i64)at.row * s.w + at.col, sum);
  }
}
