// Maximum pooling. Gradients are gathered: each element of dx looks at the windows that cover it, in order, so overlapping
// windows need no atomics. `place` is the winner's tap i * kw + j in its window, a byte where that is enough.
// Bytes for elements of S bytes: forward S for each of x, S + 1 for each of y (S when nothing is recorded); backward S + 1 for
// each of dy, S for each of dx. Windows that overlap read again from the caches.
// variants: scalar_t=float,f16,bf16; WINDOW=0,22,31,32
// variants: scalar_t=double; WINDOW=0
#include "pool.cuh"

// What comes later wins if it is larger, or the first NaN.
__device__ __forceinline__ bool wins(acc_t v, acc_t best) { return !(v <= best) && best == best; }

// y = max of x under the window. The first of equals wins, NaN wins over all.
template <class P>
__device__ __forceinline__ void forward(scalar_t* __restrict__ y, P* __restrict__ place, const scalar_t* __restrict__ x, const Pool& s,
                                        i64 n) {
  GRID_STRIDE(i, n) {
    Spot at = spot_of(i, s.oh, s.ow, s);
    Range rows = under(at.row, KH, SH, s.pt, s.h), cols = under(at.col, KW, SW, s.pl, s.w);
    const scalar_t* plane = x + at.x;
    int step = pixel_stride(s), best_row = rows.begin, best_col = cols.begin;
    acc_t best = load(plane + ((i64)rows.begin * s.w + cols.begin) * step);
    for (int r = rows.begin; r < rows.end; ++r) {
      for (int c = cols.begin; c < cols.end; ++c) {
        acc_t v = load(plane + ((i64)r * s.w + c) * step);
        if (wins(v, best)) {
          best = v;
          best_row = r;
          best_col = c;
        }
      }
    }
    store(y + i, best);
    if (place) place[i] = (P)((i64)(best_row - (at.row * SH - s.pt)) * KW + (best_col - (at.col * SW - s.pl)));
  }
}

// dx = the sum of dy over the windows that this element won.
template <class P>
__device__ __forceinline__ void backward(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const P* __restrict__ place,
                                         const Pool& s, i64 n) {
  GRID_STRIDE(i, n) {
    Spot at = spot_of(i, s.h, s.w, s);
    Range rows = above(at.row, KH, SH, s.pt, s.oh), cols = above(at.col, KW, SW, s.pl, s.ow);
    int step = pixel_stride(s);
    acc_t sum = 0;
    for (int r = rows.begin; r < rows.end; ++r) {
      for (int c = cols.begin; c < cols.end; ++c) {
        i64 tap = (i64)(at.row + s.pt - r * SH) * KW + (at.col + s.pl - c * SW);
        i64 o = at.y + ((i64)r * s.ow + c) * step;
        if ((i64)place[o] == tap) sum += load(dy + o);
      }
    }
    store(dx + i, sum);
  }
}

// Any memory order and size, element by element.
extern "C" __global__ void max_pool_fwd(scalar_t* y, u8* place, const scalar_t* x, const Pool s, i64 n) { forward(y, place, x, s, n); }
extern "C" __global__ void max_pool_bwd(scalar_t* dx, const scalar_t* dy, const u8* place, const Pool s, i64 n) {
  backward(dx, dy, place, s, n);
}
#if WINDOW == 0
// Windows of more than 256 taps.
extern "C" __global__ void max_pool_fwd_wide(scalar_t* y, i64* place, const scalar_t* x, const Pool s, i64 n) {
  forward(y, place, x, s, n);
}
extern "C" __global__ void max_pool_bwd_wide(scalar_t* dx, const scalar_t* dy, const i64* place, const Pool s, i64 n) {
  backward(dx, dy, place, s, n);
}
#endif

// N bytes at once.
template <int N> struct Bytes;
template <> struct Bytes<2> {
  typedef unsigned short word;
};
template <> struct Bytes<4> {
  typedef unsigned word;
};
template <> struct Bytes<8> {
  typedef unsigned long long word;
};
typedef Bytes<PACK>::word bytes_t;

// Channels-last: one thread has the 16 bytes of neighbouring channels of an output pixel.
extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 4)
    max_pool_fwd_packed(scalar_t* __restrict__ y, u8* __restrict__ place, const scalar_t* __restrict__ x, const Pool s,
                        const Items items) {
  FOR_ITEMS(i, items) {
    const Spot at = spot_of(i, PACK, items, s);
    const int row = at.row * SH - s.pt, col = at.col * SW - s.pl;
    acc_t best[PACK];
    int tap[PACK];
    const int first = (row < 0 ? -row : 0) * KW + (col < 0 ? -col : 0);
#pragma unroll
    for (int k = 0; k < PACK; ++k) {
      best[k] = -(acc_t)__uint_as_float(0x7f800000u);
      tap[k] = first;
    }
#pragma unroll(WINDOW ? 3 : 1)
    for (int a = 0; a < KH; ++a) {
      if ((unsigned)(row + a) >= (unsigned)s.h) continue;
      const scalar_t* line = x + at.x + (i64)(row + a) * s.w * s.c;
      for (int b = 0; b < KW; b += TAPS) {
        uint4 raw[TAPS];
#pragma unroll
        for (int j = 0; j < TAPS; ++j)
          if (b + j < KW && (unsigned)(col + b + j) < (unsigned)s.w) raw[j] = *(const uint4*)(line + (i64)(col + b + j) * s.c);
#pragma unroll
        for (int j = 0; j < TAPS; ++j) {
          if (b + j >= KW || (unsigned)(col + b + j) >= (unsigned)s.w) continue;
          Packed<scalar_t, PACK> v;
          v.quads[0] = raw[j];
#pragma unroll
          for (int k = 0; k < PACK; ++k) {
            acc_t u = load(v.v + k);
            if (wins(u, best[k])) {
              best[k] = u;
              tap[k] = a * KW + b + j;
            }
          }
        }
      }
    }
    const i64 o = at.y + ((i64)at.row * s.ow + at.col) * s.c;
    store_pack(y + o, best);
    if (place) {
      bytes_t word = 0;
#pragma unroll
      for (int k = 0; k < PACK; ++k) word |= (bytes_t)((bytes_t)tap[k] << 8 * k);
      *(bytes_t*)(place + o) = word;
    }
  }
}

// Channels-last: one thread has the 16 bytes of neighbouring channels of an input pixel.
extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 4)
    max_pool_bwd_packed(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const u8* __restrict__ place, const Pool s,
                        const Items items) {
  FOR_ITEMS(i, items) {
    const Spot at = spot_of(i, PACK, items, s);
    const Range rows = above(at.row, KH, SH, s.pt, s.oh), cols = above(at.col, KW, SW, s.pl, s.ow);
    acc_t sum[PACK];
#pragma unroll
    for (int k = 0; k < PACK; ++k) sum[k] = 0;
    for (int r = rows.begin; r < rows.end; ++r) {
      const i64 line = at.y + (i64)r * s.ow * s.c;
      const int tap = (at.row + s.pt - r * SH) * KW + at.col + s.pl;
      for (int c = cols.begin; c < cols.end; c += COVERS) {
        uint4 raw[COVERS];
        bytes_t won[COVERS];
#pragma unroll
        for (int j = 0; j < COVERS; ++j) {
          if (c + j >= cols.end) continue;
          raw[j] = *(const uint4*)(dy + line + (i64)(c + j) * s.c);
          won[j] = *(const bytes_t*)(place + line + (i64)(c + j) * s.c);
        }
#pragma unroll
        for (int j = 0; j < COVERS; ++j) {
          if (c + j >= cols.end) continue;
          Packed<scalar_t, PACK> v;
          v.quads[0] = raw[j];
#pragma unroll
          for (int k = 0; k < PACK; ++k)
            if ((int)(won[j] >> 8 * k & 255) == tap - (c + j) * SW) sum[k] += load(v.v + k);
        }
      }
    }
    store_pack(dx + at.x + ((i64)at.row * s.w + at.col) * s.c, sum);
  }
}

// Row-major: one thread has four neighbouring columns of an input row; each winner above them is looked at once.
extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 4)
    max_pool_bwd_rows(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const u8* __restrict__ place, const Pool s,
                      const Items items) {
  FOR_ITEMS(i, items) {
    const Spot at = spot_of(i, 4, items, s);
    const Range rows = above(at.row, KH, SH, s.pt, s.oh);
    const int begin = above(at.col, KW, SW, s.pl, s.ow).begin, end = above(at.col + 3, KW, SW, s.pl, s.ow).end;
    acc_t sum[4] = {0, 0, 0, 0};
    for (int r = rows.begin; r < rows.end; ++r) {
      const i64 line = at.y + (i64)r * s.ow;
      const int row_tap = (at.row + s.pt - r * SH) * KW;
      for (int c = begin; c < end; ++c) {
        const int tap = (int)place[line + c] - row_tap, k = tap + c * SW - s.pl - at.col;
        const acc_t v = load(dy + line + c);
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if ((unsigned)tap < (unsigned)KW && k == j) sum[j] += v;
      }
    }
    store_four(dx + at.x + (i64)at.row * s.w + at.col, sum);
  }
}
