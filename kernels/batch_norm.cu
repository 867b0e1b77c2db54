// Batch normalization over (N, C, inner): y = γ (x - μ) / sqrt(σ² + ε) + β, one mean and variance per channel; or ReLU of that, or
// of that plus a residual r, whose backward pass takes dy behind the mask y > 0.
// `Plane` describes both memory orders: row-major has the channel's elements in N runs of `inner`, channels-last every C-th.
// Statistics are taken in two passes over chunks that stay in the cache, or by the convolution that stores x (spread.cuh), and merged
// by Chan's formula, always in the same order.
// variants: scalar_t=float,f16,bf16; param_t=float,f16,bf16; stat_t=float,f16,bf16
// variants: scalar_t=double; param_t=double; stat_t=double
#include "plane.cuh"

__device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_(double x) { return sqrt(x); }

template <int N>
__device__ __forceinline__ void moments(acc_t* __restrict__ partial, const scalar_t* __restrict__ x, const Plane& p, acc_t* scratch) {
  Walk w = walk(p);
  acc_t n = (acc_t)((w.end - w.split * p.chunk) * N), sum = 0, d1 = 0, d2 = 0, v[N];
  for (Walk i = w; inside(i); advance(i, p)) {
    fetch(v, x + place(i, p) * N);
#pragma unroll
    for (int k = 0; k < N; ++k) sum += v[k];
  }
  acc_t mean = channel_sum(sum, p, scratch) / n;
  for (Walk i = w; inside(i); advance(i, p)) {
    fetch(v, x + place(i, p) * N);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      acc_t d = v[k] - mean;
      d1 += d;
      d2 += d * d;
    }
  }
  // The mean was rounded; the sum of differences from it tells by how much.
  d1 = channel_sum(d1, p, scratch) / n;
  d2 = channel_sum(d2, p, scratch) - n * d1 * d1;
  if (first_of_channel(w, p)) {
    partial[w.split * 2 * p.channels + w.channel] = mean + d1;
    partial[(w.split * 2 + 1) * p.channels + w.channel] = d2 > 0 || d2 != d2 ? d2 : (acc_t)0;
    if (w.channel == 0) partial[p.splits * 2 * p.channels + w.split] = n;
  }
}

// partial (splits, 2, C): the mean of each chunk and the sum of squares around it; behind them the chunks' elements, (splits).
extern "C" __global__ void chunk_moments(acc_t* __restrict__ partial, const scalar_t* __restrict__ x, Plane p) {
  __shared__ acc_t scratch[256];
  if (in_packs(p)) moments<PACK>(partial, x, counted_in<PACK>(p), scratch);
  else moments<1>(partial, x, p, scratch);
}

extern "C" __global__ void column_moments(acc_t* __restrict__ partial, const scalar_t* __restrict__ x, Plane p) {
  __shared__ acc_t scratch[64 * PACK];
  Columns c = columns(p);
  acc_t n = (acc_t)c.count, mean[PACK] = {}, d1[PACK] = {}, d2[PACK] = {}, v[PACK];
  for (i64 i = c.at; i < c.end; i += 32) {
    load_pack(v, x + i * p.channels + c.channel);
#pragma unroll
    for (int k = 0; k < PACK; ++k) mean[k] += v[k];
  }
  column_sums(mean, scratch);
#pragma unroll
  for (int k = 0; k < PACK; ++k) mean[k] /= n;
  for (i64 i = c.at; i < c.end; i += 32) {
    load_pack(v, x + i * p.channels + c.channel);
#pragma unroll
    for (int k = 0; k < PACK; ++k) {
      acc_t d = v[k] - mean[k];
      d1[k] += d;
      d2[k] += d * d;
    }
  }
  column_sums(d1, scratch);
  column_sums(d2, scratch);
#pragma unroll
  for (int k = 0; k < PACK; ++k) {
    acc_t off = d1[k] / n, squares = d2[k] - n * off * off;
    mean[k] += off;
    d2[k] = squares > 0 || squares != squares ? squares : (acc_t)0;
  }
  put_columns(partial, c, p, 0, mean);
  put_columns(partial, c, p, 1, d2);
  if (threadIdx.x == 0 && c.channel == 0) partial[p.splits * 2 * p.channels + c.split] = n;
}

// The kernels that put chunks together have 8 neighbouring channels in a block, of which 128 threads each take every 128th chunk. There
// are fewer blocks than multiprocessors, so that a block may have all registers.
#define TOGETHER 8
#define TAKERS 128

// Sum over the takers of a channel, in each of them; `scratch` holds 256 values.
__device__ __forceinline__ acc_t takers_sum(acc_t v, acc_t* scratch) {
  v += __shfl_xor_sync(0xffffffffu, v, 8);
  v += __shfl_xor_sync(0xffffffffu, v, 16);
  __syncthreads();
  if (threadIdx.x % 32 < TOGETHER) scratch[threadIdx.x / 32 * TOGETHER + threadIdx.x % 32] = v;
  __syncthreads();
  v = 0;
#pragma unroll 8
  for (int warp = 0; warp < TAKERS * TOGETHER / 32; ++warp) v += scratch[warp * TOGETHER + threadIdx.x % TOGETHER];
  return v;
}

// What running statistics become, rounded as on the CPU: no product is contracted with the sum.
__device__ __forceinline__ float follow(float old, float recent, double momentum) {
  return __fadd_rn(__fmul_rn((float)momentum, old), __fmul_rn((float)(1 - momentum), recent));
}
__device__ __forceinline__ double follow(double old, double recent, double momentum) {
  return __dadd_rn(__dmul_rn(momentum, old), __dmul_rn(1 - momentum, recent));
}

// mean, var (C) from the chunks of chunk_moments, column_moments or a convolution (spread.cuh). With m elements in all, chunks of m_i
// have the mean μ = Σ m_i μ_i / m and the squares Σ (M_i + m_i (μ_i - μ)²): Chan et al. (1983), all at once. Running statistics, both or
// null, follow them.
extern "C" __global__ void __launch_bounds__(TAKERS * TOGETHER, 1)
    merge_moments(acc_t* __restrict__ mean, acc_t* __restrict__ var, const acc_t* __restrict__ partial, i64 splits, i64 channels,
                  acc_t* __restrict__ running_mean, acc_t* __restrict__ running_var, double momentum) {
  __shared__ acc_t scratch[256];
  const i64 c = (i64)blockIdx.x * TOGETHER + threadIdx.x % TOGETHER, end = c < channels ? splits : 0;
  const acc_t *means = partial + c, *squares = means + channels, *counts = partial + splits * 2 * channels;
  acc_t m = 0, mu = 0, off = 0, sum = 0;
#pragma unroll 4
  for (i64 s = threadIdx.x / TOGETHER; s < end; s += TAKERS) {
    m += counts[s];
    mu += counts[s] * means[s * 2 * channels];
  }
  m = takers_sum(m, scratch);
  mu = takers_sum(mu, scratch) / m;
#pragma unroll 4
  for (i64 s = threadIdx.x / TOGETHER; s < end; s += TAKERS) {
    acc_t d = means[s * 2 * channels] - mu;
    off += counts[s] * d;
    sum += squares[s * 2 * channels] + counts[s] * d * d;
  }
  // The mean was rounded; the sum of differences from it tells by how much.
  off = takers_sum(off, scratch) / m;
  sum = takers_sum(sum, scratch) / m - off * off;
  if (threadIdx.x >= TOGETHER || c >= channels) return;
  mu += off;
  sum = sum > 0 || sum != sum ? sum : (acc_t)0;
  mean[c] = mu;
  var[c] = sum;
  if (!running_mean) return;
  running_mean[c] = follow(running_mean[c], mu, momentum);
  running_var[c] = follow(running_var[c], sum, momentum);
}

// Where the element at memory offset i is: its channel, and its place in the channel's run. Offsets below 2^31 are divided in 32 bits.
struct Spot {
  i64 channel, position;
};

__device__ __forceinline__ Spot spot(i64 i, const Plane& p, i64 n) {
  if (n <= 0x7fffffff) {
    unsigned run = (unsigned)i / (unsigned)p.inner;
    return {(i64)(run % (unsigned)p.channels), (i64)((unsigned)i - run * (unsigned)p.inner)};
  }
  return {i / p.inner % p.channels, i % p.inner};
}

// Calls read(k, channel) for the elements k of the pack at offset i, unless their channels are those of `before`, the pack that
// the thread had last (-1 for none). Where packs are in step with the channels, each thread meets one set of them only.
template <class F> __device__ __forceinline__ void channels_of(i64 i, const Plane& p, i64 n, i64& before, F read) {
  Spot s = spot(i, p, n);
  bool one = s.position + PACK <= p.inner;
  i64 known = one || p.inner == 1 ? s.channel : -1;
  if (known >= 0 && known == before) return;
  before = known;
#pragma unroll
  for (int k = 0; k < PACK; ++k) {
    read(k, s.channel);
    if (++s.position == p.inner) {
      s.position = 0;
      if (++s.channel == p.channels) s.channel = 0;
    }
  }
}

// y = (x - μ) scale + β, then + r where there is one, then ReLU (NaN stays NaN) where asked for
__device__ __forceinline__ acc_t normal(acc_t x, acc_t mu, acc_t scale, acc_t beta) { return (x - mu) * scale + beta; }
__device__ __forceinline__ acc_t relu_if(acc_t y, int relu) { return relu && y < 0 ? (acc_t)0 : y; }

// y = γ (x - μ) / sqrt(σ² + ε) + β (+ r) (ReLU); r may be null
extern "C" __global__ void normalize(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, const scalar_t* __restrict__ r,
                                     const param_t* __restrict__ gamma, const param_t* __restrict__ beta,
                                     const stat_t* __restrict__ mean, const stat_t* __restrict__ var, double eps, int relu, Plane p,
                                     i64 n) {
  i64 packs = n / PACK, before = -1;
  acc_t mu[PACK], scale[PACK], shift[PACK];
  auto read = [&](int k, i64 c) {
    mu[k] = (acc_t)load(mean + c);
    scale[k] = (acc_t)load(gamma + c) / sqrt_((acc_t)load(var + c) + (acc_t)eps);
    shift[k] = (acc_t)load(beta + c);
  };
  GRID_STRIDE(pack, packs) {
    i64 i = pack * PACK;
    acc_t v[PACK], add[PACK];
    load_pack(v, x + i);
    if (r) load_pack(add, r + i);
    channels_of(i, p, n, before, read);
#pragma unroll
    for (int k = 0; k < PACK; ++k) {
      v[k] = normal(v[k], mu[k], scale[k], shift[k]);
      v[k] = relu_if(r ? v[k] + add[k] : v[k], relu);
    }
    store_pack(y + i, v);
  }
  GRID_STRIDE(rest, n - packs * PACK) {
    i64 i = packs * PACK + rest;
    read(0, spot(i, p, n).channel);
    acc_t v = normal(load(x + i), mu[0], scale[0], shift[0]);
    store(y + i, relu_if(r ? v + load(r + i) : v, relu));
  }
}

// dy behind ReLU: 0 where the output y is 0; a NaN lets dy through, as in unary.cu. y is null without ReLU.
template <int N> __device__ __forceinline__ void fetch_masked(acc_t (&g)[N], const scalar_t* dy, const scalar_t* y, i64 i) {
  fetch(g, dy + i);
  if (y) {
    acc_t out[N];
    fetch(out, y + i);
#pragma unroll
    for (int k = 0; k < N; ++k) g[k] = out[k] <= 0 ? (acc_t)0 : g[k];
  }
}

template <int N>
__device__ __forceinline__ void products(acc_t* __restrict__ partial, const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                         const scalar_t* __restrict__ y, const stat_t* __restrict__ mean, const Plane& p,
                                         acc_t* scratch) {
  Walk w = walk(p);
  acc_t mu = w.channel < p.channels ? (acc_t)load(mean + w.channel) : (acc_t)0, s1 = 0, s2 = 0, v[N], g[N];
  for (Walk i = w; inside(i); advance(i, p)) {
    fetch(v, x + place(i, p) * N);
    fetch_masked(g, dy, y, place(i, p) * N);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      s1 += g[k];
      s2 += g[k] * (v[k] - mu);
    }
  }
  s1 = channel_sum(s1, p, scratch);
  s2 = channel_sum(s2, p, scratch);
  if (first_of_channel(w, p)) {
    partial[w.split * 2 * p.channels + w.channel] = s1;
    partial[(w.split * 2 + 1) * p.channels + w.channel] = s2;
  }
}

// partial (splits, 2, C): sums of g and of g (x - μ) over each chunk, g = dy behind the mask of y, which may be null.
extern "C" __global__ void chunk_products(acc_t* __restrict__ partial, const scalar_t* __restrict__ x,
                                          const scalar_t* __restrict__ dy, const scalar_t* __restrict__ y,
                                          const stat_t* __restrict__ mean, Plane p) {
  __shared__ acc_t scratch[256];
  if (in_packs(p)) products<PACK>(partial, x, dy, y, mean, counted_in<PACK>(p), scratch);
  else products<1>(partial, x, dy, y, mean, p, scratch);
}

extern "C" __global__ void column_products(acc_t* __restrict__ partial, const scalar_t* __restrict__ x,
                                           const scalar_t* __restrict__ dy, const scalar_t* __restrict__ y,
                                           const stat_t* __restrict__ mean, Plane p) {
  __shared__ acc_t scratch[64 * PACK];
  Columns c = columns(p);
  acc_t mu[PACK], s1[PACK] = {}, s2[PACK] = {}, v[PACK], g[PACK];
#pragma unroll
  for (int k = 0; k < PACK; ++k) mu[k] = c.channel < p.channels ? (acc_t)load(mean + c.channel + k) : (acc_t)0;
  for (i64 i = c.at; i < c.end; i += 32) {
    load_pack(v, x + i * p.channels + c.channel);
    fetch_masked(g, dy, y, i * p.channels + c.channel);
#pragma unroll
    for (int k = 0; k < PACK; ++k) {
      s1[k] += g[k];
      s2[k] += g[k] * (v[k] - mu[k]);
    }
  }
  column_sums(s1, scratch);
  column_sums(s2, scratch);
  put_columns(partial, c, p, 0, s1);
  put_columns(partial, c, p, 1, s2);
}

// From S1 = sum dy and S2 = sum dy (x - μ): dβ = S1, dγ = S2 / sqrt(σ² + ε), and the coefficients (3, C) of
// dx = a dy + b (x - μ) + c. In training a = γ/σ, b = -a S2 / (m σ²) + 2 dvar / m, c = -a S1 / m + dmean / m (σ² with ε);
// with given statistics b = c = 0, and dmean = -a S1, dvar = -a S2 / (2 σ²) are results.
extern "C" __global__ void __launch_bounds__(TAKERS * TOGETHER, 1)
    merge_products(acc_t* __restrict__ coefficients, param_t* __restrict__ dgamma, param_t* __restrict__ dbeta,
                   stat_t* __restrict__ dmean, stat_t* __restrict__ dvar, const acc_t* __restrict__ partial,
                   const param_t* __restrict__ gamma, const stat_t* __restrict__ var, double eps, int training, Plane p) {
  __shared__ acc_t scratch[256];
  const i64 c = (i64)blockIdx.x * TOGETHER + threadIdx.x % TOGETHER, end = c < p.channels ? p.splits : 0;
  acc_t s1 = 0, s2 = 0, m = (acc_t)p.count;
#pragma unroll 4
  for (i64 s = threadIdx.x / TOGETHER; s < end; s += TAKERS) {
    s1 += partial[s * 2 * p.channels + c];
    s2 += partial[(s * 2 + 1) * p.channels + c];
  }
  s1 = takers_sum(s1, scratch);
  s2 = takers_sum(s2, scratch);
  if (threadIdx.x >= TOGETHER || c >= p.channels) return;
  acc_t total = (acc_t)load(var + c) + (acc_t)eps, inv = 1 / sqrt_(total), a = (acc_t)load(gamma + c) * inv;
  store(dbeta + c, s1);
  store(dgamma + c, (acc_t)(s2 * inv));
  coefficients[c] = a;
  if (training) {
    coefficients[p.channels + c] = (2 * (acc_t)load(dvar + c) - a * s2 / total) / m;
    coefficients[2 * p.channels + c] = ((acc_t)load(dmean + c) - a * s1) / m;
  } else {
    coefficients[p.channels + c] = 0;
    coefficients[2 * p.channels + c] = 0;
    store(dmean + c, (acc_t)(-a * s1));
    store(dvar + c, (acc_t)((acc_t)-0.5 * a * s2 / total));
  }
}

// dx = a g + b (x - μ) + c and dr = g, for g = dy behind the mask of y; y and dr may be null
extern "C" __global__ void combine(scalar_t* __restrict__ dx, scalar_t* __restrict__ dr, const scalar_t* __restrict__ x,
                                   const scalar_t* __restrict__ dy, const scalar_t* __restrict__ y, const stat_t* __restrict__ mean,
                                   const acc_t* __restrict__ coefficients, Plane p, i64 n) {
  i64 packs = n / PACK, before = -1;
  acc_t mu[PACK], a[PACK], b[PACK], c[PACK];
  auto read = [&](int k, i64 channel) {
    mu[k] = (acc_t)load(mean + channel);
    a[k] = coefficients[channel];
    b[k] = coefficients[p.channels + channel];
    c[k] = coefficients[2 * p.channels + channel];
  };
  GRID_STRIDE(pack, packs) {
    i64 i = pack * PACK;
    acc_t v[PACK], g[PACK];
    load_pack(v, x + i);
    fetch_masked(g, dy, y, i);
    channels_of(i, p, n, before, read);
#pragma unroll
    for (int k = 0; k < PACK; ++k) v[k] = a[k] * g[k] + (b[k] * (v[k] - mu[k]) + c[k]);
    store_pack(dx + i, v);
    if (dr) store_pack(dr + i, g);
  }
  GRID_STRIDE(rest, n - packs * PACK) {
    i64 i = packs * PACK + rest;
    read(0, spot(i, p, n).channel);
    acc_t g[1];
    fetch_masked(g, dy, y, i);
    store(dx + i, (acc_t)(a[0] * g[0] + (b[0] * (load(x + i) - mu[0]) + c[0])));
    if (dr) store(dr + i, g[0]);
  }
}

// old = momentum old + (1 - momentum) new, in place
extern "C" __global__ void lerp(scalar_t* __restrict__ old, const stat_t* __restrict__ recent, double momentum, i64 n) {
  GRID_STRIDE(i, n) store(old + i, follow((acc_t)load(old + i), (acc_t)load(recent + i), momentum));
}
