// Depthwise convolution: as many groups as channels, x (n, c, h, w), y (n, c, oh, ow), w (c, 1, kh, kw).
//
//   y[n,c,oy,ox]  = b[c] + sum over i,j of x[n, c, oy sh + i dh - pt, ox sw + j dw - pl] w[c,i,j]
//   dx[n,c,iy,ix] = sum over i,j of dy[n, c, (iy + pt - i dh) / sh, (ix + pl - j dw) / sw] w[c,i,j]   where divisible and inside
//   dw[c,i,j]     = sum over n,oy,ox of dy[n,c,oy,ox] x[n, c, oy sh + i dh - pt, ox sw + j dw - pl]
//
// A product of matrices would have one column. This is bound by memory instead: channels-last, a thread has 16 bytes of channels where
// c allows it; row-major, neighbouring threads have neighbouring pixels. Elements of x and y are counted in 31 bits.
// variants: scalar_t=float,double,f16,bf16; CHANNELS_LAST=0,1
#include "pack.cuh"

struct Depthwise {
  int n, c, h, w, oh, ow;
  int kh, kw, sh, sw, pt, pl, dh, dw;
  int span;  // channels of a block; such blocks lie along grid.y
};

template <int V> __device__ __forceinline__ void load_channels(acc_t (&v)[V], const scalar_t* p) { load_pack<V>(v, p); }
template <> __device__ __forceinline__ void load_channels<1>(acc_t (&v)[1], const scalar_t* p) { v[0] = load(p); }
template <int V> __device__ __forceinline__ void store_channels(scalar_t* p, const acc_t (&v)[V]) { store_pack(p, v); }
template <> __device__ __forceinline__ void store_channels<1>(scalar_t* p, const acc_t (&v)[1]) { store(p, v[0]); }

// The first of V channels of a pixel among images of rows x cols, of a block's channels [c0, c0 + count); its i-th, in the order of memory.
struct At {
  int n, c, y, x;
};
template <int V> __device__ __forceinline__ At at_of(unsigned i, int c0, int count, int rows, int cols) {
  const unsigned packs = count / V, rest = CHANNELS_LAST ? i / packs : i, row = rest / cols, plane = row / rows;
  const unsigned n = CHANNELS_LAST ? plane : plane / count, c = CHANNELS_LAST ? (i - rest * packs) * V : plane - n * count;
  return At{(int)n, c0 + (int)c, (int)(row - plane * rows), (int)(rest - row * cols)};
}
__device__ __forceinline__ int offset(int n, int c, int y, int x, int channels, int rows, int cols) {
  return CHANNELS_LAST ? ((n * rows + y) * cols + x) * channels + c : ((n * channels + c) * rows + y) * cols + x;
}

// The place in `size` that a tap reads for place p of the result, or -1: forward, p step + tap - pad; backward, the p that meets it.
__device__ __forceinline__ int source(bool forward, int p, int tap, int pad, int step, int size) {
  int at = forward ? p * step + tap - pad : p + pad - tap;
  if (!forward) {
    if (at < 0) return -1;
    int q = at / step;
    if (q * step != at) return -1;
    at = q;
  }
  return (unsigned)at < (unsigned)size ? at : -1;
}

// Weights of a block's channels, [tap][channel].
__device__ __forceinline__ acc_t* weights() {
  extern __shared__ __align__(16) char memory[];
  return (acc_t*)memory;
}

template <bool forward, int V>
__device__ __forceinline__ void images(scalar_t* to, const scalar_t* from, const scalar_t* bias, const Depthwise& s, int c0, int count) {
  const int rows = forward ? s.oh : s.h, cols = forward ? s.ow : s.w, height = forward ? s.h : s.oh, width = forward ? s.w : s.ow;
  const unsigned all = s.n * rows * cols * (count / V);
  for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < all; i += gridDim.x * 256) {
    const At at = at_of<V>(i, c0, count, rows, cols);
    acc_t sum[V];
#pragma unroll
    for (int k = 0; k < V; ++k) sum[k] = bias ? load(bias + at.c + k) : (acc_t)0;
#pragma unroll 1
    for (int a = 0; a < s.kh; ++a) {
      const int y = source(forward, at.y, a * s.dh, s.pt, s.sh, height);
      if (y < 0) continue;
#pragma unroll 3
      for (int b = 0; b < s.kw; ++b) {
        const int x = source(forward, at.x, b * s.dw, s.pl, s.sw, width);
        if (x < 0) continue;
        acc_t v[V];
        load_channels<V>(v, from + offset(at.n, at.c, y, x, s.c, height, width));
        const acc_t* w = weights() + (a * s.kw + b) * count + at.c - c0;
#pragma unroll
        for (int k = 0; k < V; ++k) sum[k] += v[k] * w[k];
      }
    }
    store_channels<V>(to + offset(at.n, at.c, at.y, at.x, s.c, rows, cols), sum);
  }
}

template <bool forward>
__device__ __forceinline__ void images(scalar_t* to, const scalar_t* from, const scalar_t* w, const scalar_t* bias, const Depthwise& s) {
  const int c0 = blockIdx.y * s.span, count = s.c - c0 < s.span ? s.c - c0 : s.span, taps = s.kh * s.kw;
  for (int i = threadIdx.x; i < count * taps; i += 256) weights()[i % taps * count + i / taps] = load(w + (i64)c0 * taps + i);
  __syncthreads();
  if (CHANNELS_LAST && s.c % PACK == 0) images<forward, CHANNELS_LAST ? PACK : 1>(to, from, bias, s, c0, count);
  else images<forward, 1>(to, from, bias, s, c0, count);
}

// grid (any, parts of the channels); dynamic shared memory for the weights of a part; bias (c) or null
extern "C" __global__ void __launch_bounds__(256, 4)
    depthwise_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, const scalar_t* __restrict__ w,
                  const scalar_t* __restrict__ bias, const __grid_constant__ Depthwise s) {
  images<true>(y, x, w, bias, s);
}
extern "C" __global__ void __launch_bounds__(256, 4)
    depthwise_bwd_data(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, const scalar_t* __restrict__ w,
                       const __grid_constant__ Depthwise s) {
  images<false>(dx, dy, w, (const scalar_t*)0, s);
}

// Taps that a thread sums at once, so that dy is read for several.
#define TAPS 3

template <int V>
__device__ __forceinline__ void filters(acc_t* parts, const scalar_t* dy, const scalar_t* x, const Depthwise& s, int chunk) {
  __shared__ acc_t scratch[256];
  const int c0 = blockIdx.y * s.span, count = s.c - c0 < s.span ? s.c - c0 : s.span, packs = count / V, taps = s.kh * s.kw;
  // Threads along the packs of channels, the rest of them along pixels.
  const int lanes = 256 / packs, lane = threadIdx.x / packs, c = c0 + (int)(threadIdx.x - lane * packs) * V;
  const int pixels = s.n * s.oh * s.ow, begin = blockIdx.x * chunk, end = pixels - begin < chunk ? pixels : begin + chunk;
  for (int first = blockIdx.z * TAPS; first < taps; first += gridDim.z * TAPS) {
    acc_t sum[TAPS][V] = {};
    if (lane < lanes) {
      for (int p = begin + lane; p < end; p += lanes) {
        const int row = (unsigned)p / s.ow, n = (unsigned)row / s.oh, oy = row - n * s.oh, ox = p - row * s.ow;
        acc_t g[V];
        load_channels<V>(g, dy + offset(n, c, oy, ox, s.c, s.oh, s.ow));
#pragma unroll
        for (int t = 0; t < TAPS; ++t) {
          const int i = (first + t) / s.kw, j = first + t - i * s.kw;
          const int iy = source(true, oy, i * s.dh, s.pt, s.sh, s.h), ix = source(true, ox, j * s.dw, s.pl, s.sw, s.w);
          if (first + t >= taps || iy < 0 || ix < 0) continue;
          acc_t v[V];
          load_channels<V>(v, x + offset(n, c, iy, ix, s.c, s.h, s.w));
#pragma unroll
          for (int k = 0; k < V; ++k) sum[t][k] += g[k] * v[k];
        }
      }
    }
    // The lanes' sums in order.
#pragma unroll
    for (int t = 0; t < TAPS; ++t) {
#pragma unroll
      for (int k = 0; k < V; ++k) {
        __syncthreads();
        if (lane < lanes) scratch[threadIdx.x] = sum[t][k];
        __syncthreads();
        if (lane != 0 || first + t >= taps) continue;
        acc_t all = 0;
        for (int l = 0; l < lanes; ++l) all += scratch[l * packs + threadIdx.x];
        parts[((i64)blockIdx.x * s.c + c + k) * taps + first + t] = all;
      }
    }
  }
}

// parts (part, c, kh, kw); grid (parts of `chunk` output pixels, parts of the channels, taps by TAPS): a part has at most 256 threads'
// channels
extern "C" __global__ void __launch_bounds__(256, 3)
    depthwise_bwd_weight(acc_t* __restrict__ parts, const scalar_t* __restrict__ dy, const scalar_t* __restrict__ x,
                         const __grid_constant__ Depthwise s, int chunk) {
  if (CHANNELS_LAST && s.c % PACK == 0) filters<CHANNELS_LAST ? PACK : 1>(parts, dy, x, s, chunk);
  else filters<1>(parts, dy, x, s, chunk);
}
