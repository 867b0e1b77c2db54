// Batch normalization over (N, C, inner): y = γ (x - μ) / sqrt(σ² + ε) + β, one mean and variance per channel.
// `Plane` describes both memory orders: row-major has the channel's elements in N runs of `inner`, channels-last every C-th.
// Statistics are taken in two passes over chunks that stay in the cache and merged by Chan's formula, always in the same order.
// variants: scalar_t=float,f16,bf16; param_t=float,f16,bf16; stat_t=float,f16,bf16
// variants: scalar_t=double; param_t=double; stat_t=double
#include "common.cuh"

__device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_(double x) { return sqrt(x); }

struct Plane {
  i64 channels;
  i64 inner;   // contiguous elements of one channel; 1 in channels-last memory
  i64 count;   // elements of a channel
  i64 chunk;   // elements of a channel that one block takes
  i64 splits;  // chunks of a channel
};

// Which elements of which channel a thread visits. With inner == 1 a block has 32 neighbouring channels, 8 threads each, so that
// loads coalesce; else a block has one channel.
struct Walk {
  i64 channel, split, at, end, offset;
  i64 run, step_runs, step_rest, position;
  int step;
};

__device__ __forceinline__ Walk walk(const Plane& p) {
  Walk w;
  bool together = p.inner == 1;
  i64 groups = together ? (p.channels + 31) / 32 : p.channels, group = (i64)blockIdx.x % groups;
  w.split = (i64)blockIdx.x / groups;
  w.channel = together ? group * 32 + (threadIdx.x & 31) : group;
  w.step = together ? 8 : 256;
  w.at = w.split * p.chunk + (together ? threadIdx.x >> 5 : threadIdx.x);
  w.end = (w.split + 1) * p.chunk < p.count ? (w.split + 1) * p.chunk : p.count;
  if (w.channel >= p.channels) w.at = w.end;
  w.run = w.at / p.inner;
  w.position = w.at % p.inner;
  w.step_runs = w.step / p.inner;
  w.step_rest = w.step % p.inner;
  return w;
}

__device__ __forceinline__ bool inside(const Walk& w) { return w.at < w.end; }
__device__ __forceinline__ i64 place(const Walk& w, const Plane& p) { return (w.run * p.channels + w.channel) * p.inner + w.position; }
__device__ __forceinline__ void advance(Walk& w, const Plane& p) {
  w.at += w.step;
  w.run += w.step_runs;
  w.position += w.step_rest;
  if (w.position >= p.inner) {
    w.position -= p.inner;
    w.run += 1;
  }
}

// Sum over the threads of a channel, in each of them; `scratch` holds 256 values.
__device__ __forceinline__ acc_t channel_sum(acc_t v, const Plane& p, acc_t* scratch) {
  if (p.inner != 1) return block_sum(v, scratch);
  __syncthreads();
  scratch[threadIdx.x] = v;
  __syncthreads();
  acc_t sum = 0;
  for (int k = 0; k < 8; ++k) sum += scratch[k * 32 + (threadIdx.x & 31)];
  return sum;
}

__device__ __forceinline__ bool first_of_channel(const Walk& w, const Plane& p) {
  return p.inner == 1 ? threadIdx.x < 32 && w.channel < p.channels : threadIdx.x == 0;
}

// partial (splits, 2, C): the mean of each chunk and the sum of squares around it.
extern "C" __global__ void chunk_moments(acc_t* __restrict__ partial, const scalar_t* __restrict__ x, Plane p) {
  __shared__ acc_t scratch[256];
  Walk w = walk(p);
  acc_t n = (acc_t)(w.end - w.split * p.chunk), sum = 0, d1 = 0, d2 = 0;
  for (Walk i = w; inside(i); advance(i, p)) sum += load(x + place(i, p));
  acc_t mean = channel_sum(sum, p, scratch) / n;
  for (Walk i = w; inside(i); advance(i, p)) {
    acc_t d = load(x + place(i, p)) - mean;
    d1 += d;
    d2 += d * d;
  }
  // The mean was rounded; the sum of differences from it tells by how much.
  d1 = channel_sum(d1, p, scratch) / n;
  d2 = channel_sum(d2, p, scratch) - n * d1 * d1;
  if (first_of_channel(w, p)) {
    partial[w.split * 2 * p.channels + w.channel] = mean + d1;
    partial[(w.split * 2 + 1) * p.channels + w.channel] = d2 > 0 || d2 != d2 ? d2 : (acc_t)0;
  }
}

// mean, var (C): chunks a and b merge to mean a + δ n_b / n, squares M_a + M_b + δ² n_a n_b / n with δ = mean b - mean a (Chan et al. 1983).
extern "C" __global__ void merge_moments(acc_t* __restrict__ mean, acc_t* __restrict__ var, const acc_t* __restrict__ partial, Plane p) {
  GRID_STRIDE(c, p.channels) {
    acc_t n = 0, m = 0, squares = 0;
    for (i64 s = 0; s < p.splits; ++s) {
      i64 stop = (s + 1) * p.chunk < p.count ? (s + 1) * p.chunk : p.count;
      acc_t n_b = (acc_t)(stop - s * p.chunk), delta = partial[s * 2 * p.channels + c] - m;
      acc_t share = n_b / (n + n_b);
      squares += partial[(s * 2 + 1) * p.channels + c] + delta * delta * n * share;
      m += delta * share;
      n += n_b;
    }
    mean[c] = m;
    var[c] = squares / n;
  }
}

// Memory offsets of up to 2^31 elements are divided in 32 bits.
__device__ __forceinline__ i64 channel_of(i64 i, const Plane& p, bool small) {
  if (small) return (i64)((unsigned)i / (unsigned)p.inner % (unsigned)p.channels);
  return i / p.inner % p.channels;
}

// y = (x - μ) γ / sqrt(σ² + ε) + β
extern "C" __global__ void normalize(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, const param_t* __restrict__ gamma,
                                     const param_t* __restrict__ beta, const stat_t* __restrict__ mean,
                                     const stat_t* __restrict__ var, double eps, Plane p, i64 n) {
  bool small = n <= 0x7fffffff;
  GRID_STRIDE(i, n) {
    i64 c = channel_of(i, p, small);
    acc_t scale = (acc_t)load(gamma + c) / sqrt_((acc_t)load(var + c) + (acc_t)eps);
    store(y + i, (acc_t)((load(x + i) - (acc_t)load(mean + c)) * scale + (acc_t)load(beta + c)));
  }
}

// partial (splits, 2, C): sums of dy and of dy (x - μ) over each chunk.
extern "C" __global__ void chunk_products(acc_t* __restrict__ partial, const scalar_t* __restrict__ x,
                                          const scalar_t* __restrict__ dy, const stat_t* __restrict__ mean, Plane p) {
  __shared__ acc_t scratch[256];
  Walk w = walk(p);
  acc_t mu = w.channel < p.channels ? (acc_t)load(mean + w.channel) : (acc_t)0, s1 = 0, s2 = 0;
  for (Walk i = w; inside(i); advance(i, p)) {
    acc_t g = load(dy + place(i, p));
    s1 += g;
    s2 += g * (load(x + place(i, p)) - mu);
  }
  s1 = channel_sum(s1, p, scratch);
  s2 = channel_sum(s2, p, scratch);
  if (first_of_channel(w, p)) {
    partial[w.split * 2 * p.channels + w.channel] = s1;
    partial[(w.split * 2 + 1) * p.channels + w.channel] = s2;
  }
}

// From S1 = sum dy and S2 = sum dy (x - μ): dβ = S1, dγ = S2 / sqrt(σ² + ε), and the coefficients (3, C) of
// dx = a dy + b (x - μ) + c. In training a = γ/σ, b = -a S2 / (m σ²) + 2 dvar / m, c = -a S1 / m + dmean / m (σ² with ε);
// with given statistics b = c = 0, and dmean = -a S1, dvar = -a S2 / (2 σ²) are results.
extern "C" __global__ void merge_products(acc_t* __restrict__ coefficients, param_t* __restrict__ dgamma, param_t* __restrict__ dbeta,
                                          stat_t* __restrict__ dmean, stat_t* __restrict__ dvar, const acc_t* __restrict__ partial,
                                          const param_t* __restrict__ gamma, const stat_t* __restrict__ var, double eps,
                                          int training, Plane p) {
  GRID_STRIDE(c, p.channels) {
    acc_t s1 = 0, s2 = 0, m = (acc_t)p.count;
    for (i64 s = 0; s < p.splits; ++s) {
      s1 += partial[s * 2 * p.channels + c];
      s2 += partial[(s * 2 + 1) * p.channels + c];
    }
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
}

// dx = a dy + b (x - μ) + c
extern "C" __global__ void combine(scalar_t* __restrict__ dx, const scalar_t* __restrict__ x, const scalar_t* __restrict__ dy,
                                   const stat_t* __restrict__ mean, const acc_t* __restrict__ coefficients, Plane p, i64 n) {
  bool small = n <= 0x7fffffff;
  GRID_STRIDE(i, n) {
    i64 c = channel_of(i, p, small);
    acc_t a = coefficients[c], b = coefficients[p.channels + c], k = coefficients[2 * p.channels + c];
    store(dx + i, (acc_t)(a * load(dy + i) + (b * (load(x + i) - (acc_t)load(mean + c)) + k)));
  }
}

// old = momentum old + (1 - momentum) new, in place
extern "C" __global__ void lerp(scalar_t* __restrict__ old, const stat_t* __restrict__ recent, double momentum, i64 n) {
  GRID_STRIDE(i, n) store(old + i, (acc_t)((acc_t)momentum * load(old + i) + (acc_t)(1 - momentum) * (acc_t)load(recent + i)));
}
