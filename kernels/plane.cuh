// An array (N, C, inner) in either memory order as batch normalization walks it: who visits which elements of which channel, and
// the sums of a channel over a block.
#pragma once
#include "pack.cuh"

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

// The N elements that a thread visits at once, 1 or a pack.
__device__ __forceinline__ void fetch(acc_t (&v)[1], const scalar_t* p) { v[0] = load(p); }
template <int N> __device__ __forceinline__ void fetch(acc_t (&v)[N], const scalar_t* p) { load_pack(v, p); }

// Where channels have runs of whole packs, a thread visits packs: the plane, counted in these.
__device__ __forceinline__ bool in_packs(const Plane& p) { return p.inner > PACK && p.inner % PACK == 0 && p.chunk % PACK == 0; }
template <int N> __device__ __forceinline__ Plane counted_in(const Plane& p) {
  return Plane{p.channels, p.inner / N, p.count / N, p.chunk / N, p.splits};
}

// Channels-last memory whose channels come in whole packs: a block has 8 neighbouring packs of channels, 32 threads each.
struct Columns {
  i64 channel, at, end;  // the thread's first channel; its first pixel, and the chunk's end
  i64 split, count;
};

__device__ __forceinline__ Columns columns(const Plane& p) {
  i64 groups = (p.channels + 8 * PACK - 1) / (8 * PACK);
  Columns c;
  c.split = (i64)blockIdx.x / groups;
  c.channel = ((i64)blockIdx.x % groups * 8 + (threadIdx.x & 7)) * PACK;
  i64 start = c.split * p.chunk;
  c.end = start + p.chunk < p.count ? start + p.chunk : p.count;
  c.count = c.end - start;
  c.at = c.channel < p.channels ? start + (threadIdx.x >> 3) : c.end;
  return c;
}

// Sums over the 32 threads of each channel, in each of them; `scratch` holds 64 packs.
__device__ __forceinline__ void column_sums(acc_t (&v)[PACK], acc_t* scratch) {
  __syncthreads();
#pragma unroll
  for (int k = 0; k < PACK; ++k) {
    v[k] += __shfl_xor_sync(0xffffffffu, v[k], 8);
    v[k] += __shfl_xor_sync(0xffffffffu, v[k], 16);
    if ((threadIdx.x & 31) < 8) scratch[((threadIdx.x >> 5) * PACK + k) * 8 + (threadIdx.x & 7)] = v[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < PACK; ++k) {
    v[k] = 0;
    for (int warp = 0; warp < 8; ++warp) v[k] += scratch[(warp * PACK + k) * 8 + (threadIdx.x & 7)];
  }
}

__device__ __forceinline__ void put_columns(acc_t* partial, const Columns& c, const Plane& p, int which, const acc_t (&v)[PACK]) {
  if (threadIdx.x >= 8 || c.channel >= p.channels) return;
  for (int k = 0; k < PACK; ++k) partial[(c.split * 2 + which) * p.channels + c.channel + k] = v[k];
}
