// One 64 x 64 tile of a matrix product, 256 threads with 4 x 4 elements each; the loop behind matmul.cu and conv2d.cu.
//
// An operand is a "source", which hides how its elements lie in memory:
//   Row  row(i64 r)             what stays the same along k: an address, an output pixel
//   Step step(i64 k)            what depends on k only: an offset, a tap of the filter
//   acc_t at(row, step)         the element, 0 outside
//   bool k_fast                 true when neighbours along k lie next to each other: neighbouring threads then take those,
//                               else neighbouring rows, so that loads are coalesced either way
#pragma once
#include "common.cuh"

#define TILE 64
#define DEPTH 16
#define TILE_THREADS 256
// Blocks on a multiprocessor, where the compiler's own choice would spill registers to hold three of them.
#define TILE_RESIDENT 2

// DEPTH steps of TILE rows; padded against bank conflicts, rows still 16-byte aligned for wide loads.
struct alignas(16) Panel {
  acc_t v[DEPTH][TILE + 4];
};

// A thread's share of a panel on its way from memory: four elements.
template <class Source> struct Feed {
  typename Source::Row row[4];
  acc_t v[4];

  __device__ __forceinline__ void start(const Source& s, i64 first) {
    if (s.k_fast) {
#pragma unroll
      for (int i = 0; i < 4; ++i) row[i] = s.row(first + threadIdx.x / DEPTH + i * (TILE_THREADS / DEPTH));
    } else {
      row[0] = s.row(first + threadIdx.x % TILE);
    }
  }

  __device__ __forceinline__ void fetch(const Source& s, i64 k, i64 end) {
    if (s.k_fast) {
      i64 mine = k + threadIdx.x % DEPTH;
      typename Source::Step step = s.step(mine < end ? mine : k);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = mine < end ? s.at(row[i], step) : (acc_t)0;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        i64 mine = k + threadIdx.x / TILE + i * (TILE_THREADS / TILE);
        v[i] = mine < end ? s.at(row[0], s.step(mine)) : (acc_t)0;
      }
    }
  }

  __device__ __forceinline__ void put(const Source& s, Panel& p) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (s.k_fast) p.v[threadIdx.x % DEPTH][threadIdx.x / DEPTH + i * (TILE_THREADS / DEPTH)] = v[i];
      else p.v[threadIdx.x / TILE + i * (TILE_THREADS / TILE)][threadIdx.x % TILE] = v[i];
    }
  }
};

// The row and column, within the tile, of this thread's element (i, j): four neighbouring rows (one wide load from
// shared memory), four columns 16 apart (neighbouring threads write neighbouring columns).
__device__ __forceinline__ int tile_row(int i) { return threadIdx.x / 16 * 4 + i; }
__device__ __forceinline__ int tile_col(int j) { return threadIdx.x % 16 + j * 16; }

// sum[i][j] += sum over k in [begin, end) of a(m0 + tile_row(i), k) b(n0 + tile_col(j), k)
template <class A, class B>
__device__ __forceinline__ void tile_product(acc_t (&sum)[4][4], const A& a, i64 m0, const B& b, i64 n0, i64 begin, i64 end,
                                             Panel& pa, Panel& pb) {
  Feed<A> fa;
  Feed<B> fb;
  fa.start(a, m0);
  fb.start(b, n0);
  for (i64 k = begin;; k += DEPTH) {
    // The next elements travel while those of the step before are multiplied.
    if (k < end) {
      fa.fetch(a, k, end);
      fb.fetch(b, k, end);
    }
    if (k > begin) {
#pragma unroll
      for (int d = 0; d < DEPTH; ++d) {
        acc_t x[4], y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = pa.v[d][tile_row(i)];
#pragma unroll
        for (int j = 0; j < 4; ++j) y[j] = pb.v[d][tile_col(j)];
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[i][j] += x[i] * y[j];
      }
    }
    if (k >= end) break;
    __syncthreads();  // the panels may still be read
    fa.put(a, pa);
    fb.put(b, pb);
    __syncthreads();
  }
}

// The number of tiles that `n` rows or columns take.
__device__ __forceinline__ i64 tiles(i64 n) { return (n + TILE - 1) / TILE; }
