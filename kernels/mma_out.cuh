// Which tile a block computes, and how its sums reach memory: for matmul_mma.cu and conv2d_mma.cu.
#pragma once
#include "activation.cuh"
#include "mma.cuh"
#include "spread.cuh"

// A block's tile. Eight rows of tiles at a time, so that blocks that run together share their operands in the L2 cache.
struct TileAt {
  int m0, n0;
};
__device__ __forceinline__ unsigned tiles_down(int m) { return (m + TILE_M - 1) / TILE_M; }
__device__ __forceinline__ unsigned tiles_across(int n) { return (n + TILE_N - 1) / TILE_N; }
// Of the block with number `block` < tiles_down(m) * tiles_across(n).
__device__ __forceinline__ TileAt tile_at(unsigned block, int m, int n) {
  unsigned down = tiles_down(m), across = tiles_across(n);
  unsigned band = block / (8 * across), rest = block - band * 8 * across;
  unsigned height = down - band * 8 < 8 ? down - band * 8 : 8;
  return TileAt{(int)((band * 8 + rest % height) * TILE_M), (int)(rest / height * TILE_N)};
}

// Where sums go: y, or with `parts` not null the sums of this part, in f32, for sum_parts.
struct Target {
  scalar_t* y;
  float* parts;
  const scalar_t* bias;  // by column, or null
  int m, n;
  Part part;              // the first one, where columns are written by 16 bytes: TILE_M rows are one
};

// Adds up the shares of a block's threads, which have CHUNK columns from `at` on of every `lines`-th row, and writes them.
template <int lines>
__device__ __forceinline__ void put_spread(const Spread<CHUNK>& own, int at, const Target& t, int m0, int n0, float* shared) {
  float *sums = shared, *squares = sums + lines * TILE_N, *pivots = squares + lines * TILE_N;
  const int line = threadIdx.x / (TILE_N / CHUNK);
  __syncthreads();  // the tile has been read
#pragma unroll
  for (int e = 0; e < CHUNK; ++e) {
    sums[line * TILE_N + at + e] = own.sum[e];
    squares[line * TILE_N + at + e] = own.squares[e];
    if (line == 0) pivots[at + e] = own.pivot[e];
  }
  __syncthreads();
  for (int n = threadIdx.x; n < TILE_N && n0 + n < t.n; n += THREADS) {
    Spread<1> all;
    all.pivot[0] = pivots[n];
    for (int l = 0; l < lines; ++l) all.sum[0] += sums[l * TILE_N + n], all.squares[0] += squares[l * TILE_N + n];
    all.put({t.part.all, m0 / TILE_M, t.part.first, t.part.channels}, t.m - m0 < TILE_M ? t.m - m0 : TILE_M, 0, n0 + n);
  }
}

// Stores the block's tile. "out" maps a row and a column to the offset row(m) + col(n); `vector` says that col(n) = n and that columns
// can be written by 16 bytes, `by_row` that neighbouring rows, not columns, are neighbours in memory. The tile goes through
// shared memory (TILE_BYTES at `tile`), so that stores are coalesced and addresses need few registers.
//
// With EXACT, sums may be NaN where plain f32 has none: the split makes inf - inf of an infinite operand, and overflows just below
// the largest float. Those are computed again: again(m, n) gives the sum in plain f32.
template <class Out, class Again>
__device__ __forceinline__ void put_sums(const Sums& sum, const Target& t, const Out& out, int m0, int n0, float* tile,
                                         const Again& again) {
  enum { PITCH = TILE_N + 8 };
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* own = tile + (warp % 2 * WARP_M + lane / 4) * PITCH + warp / 2 * WARP_N + lane % 4 * 2;
  bool broken = false;
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      const float* v = sum.v[i][j];
      *(float2*)(own + i * 16 * PITCH + j * 8) = make_float2(v[0], v[1]);
      *(float2*)(own + (i * 16 + 8) * PITCH + j * 8) = make_float2(v[2], v[3]);
      if (Math<scalar_t>::SPLIT) broken |= v[0] != v[0] || v[1] != v[1] || v[2] != v[2] || v[3] != v[3];
    }
  }
  __syncthreads();
  if (Math<scalar_t>::SPLIT && __syncthreads_or(broken)) {
#pragma unroll 1
    for (int i = threadIdx.x; i < TILE_M * TILE_N; i += THREADS) {
      const int m = m0 + i / TILE_N, n = n0 + i % TILE_N;
      float& v = tile[i / TILE_N * PITCH + i % TILE_N];
      if (v != v && m < t.m && n < t.n) v = again(m, n);
    }
    __syncthreads();
  }
  if (out.vector && !t.parts) {
    // A thread keeps its columns.
    enum { ACROSS = TILE_N / CHUNK, LINES = THREADS / ACROSS };
    const int at = threadIdx.x % ACROSS * CHUNK, n = n0 + at;
    auto stored = [&](int m, scalar_t* line) {
#pragma unroll
      for (int e = 0; e < CHUNK; ++e) store(line + e, activated(tile[m * PITCH + at + e] + (t.bias ? load(t.bias + n + e) : 0.f)));
    };
    alignas(16) scalar_t line[CHUNK];
    Spread<CHUNK> spread;
    if (t.part.all.to && n < t.n) {
      stored(0, line);
#pragma unroll
      for (int e = 0; e < CHUNK; ++e) spread.pivot[e] = load(line + e);
    }
#pragma unroll 2
    for (int m = threadIdx.x / ACROSS; m < TILE_M; m += LINES) {
      if (m0 + m >= t.m || n >= t.n) continue;
      stored(m, line);
      *(uint4*)(t.y + out.row(m0 + m) + n) = *(const uint4*)line;
      if (!t.part.all.to) continue;
#pragma unroll
      for (int e = 0; e < CHUNK; ++e) spread.add(e, load(line + e));
    }
    if (t.part.all.to) put_spread<LINES>(spread, at, t, m0, n0, tile);
    return;
  }
#pragma unroll 2
  for (int i = threadIdx.x; i < TILE_M * TILE_N; i += THREADS) {
    const int at_m = out.by_row ? i % TILE_M : i / TILE_N, at_n = out.by_row ? i / TILE_M : i % TILE_N, m = m0 + at_m, n = n0 + at_n;
    if (m >= t.m || n >= t.n) continue;
    const float v = tile[at_m * PITCH + at_n];
    const i64 at = out.row(m) + out.col(n);
    if (t.parts) t.parts[at] = v;
    else store(t.y + at, activated(t.bias ? v + load(t.bias + n) : v));
  }
}

// a(m, .) b(n, .) over k in [begin, end) by plain f32.
template <class A, class B> __device__ __forceinline__ float plain_product(const A& a, int m, const B& b, int n, int begin, int end) {
  float sum = 0;
  typename A::Row row_a = a.row(m);
  typename B::Row row_b = b.row(n);
#pragma unroll 1
  for (int k = begin; k < end; ++k) {
    const scalar_t *x = a.at(row_a, a.step(k)), *y = b.at(row_b, b.step(k));
    sum += (x ? load(x) : 0.f) * (y ? load(y) : 0.f);
  }
  return sum;
}
