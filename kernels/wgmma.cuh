// A tile of a matrix product on Hopper's tensor cores (wgmma), its operands brought by the copy engine; the loop behind
// matmul_wgmma.cu and conv2d_wgmma.cu, and the parts of which conv3x3_wgmma.cu has its own.
//
//   sum(m, n) = sum over k of a(m, k) b(n, k)    for TILE_M rows of a and TILE_N of b
//
// Chosen at compile time, by src/gemm/model/wgmma.rs and wgmma_tile.rs:
//   scalar_t       bf16, f16, or float: rounded to tf32 by the copy engine, both operands K-major; else wgmma_split.cuh
//   DOWN, ACROSS   warpgroups that multiply, below and beside each other, with 64 rows of a and COLS of b each
//   COLS           a multiple of 8 up to 256; of 32 where the result is row-major, of 64 where b is not K-major
//   STAGES         steps of k that are in shared memory at once
//   RESIDENT       blocks on a multiprocessor
//   CLUSTER        blocks below each other that run together and share the rows of b: each brings its part of them to all. 1 if left out
//
// A block has one more warp, of which one thread tells the copy engine what to bring: a ring of STAGES stages, each of a step of
// DEPTH along k of both operands. A stage's `full` barrier ends a phase when its bytes have arrived, `empty` when all warps have
// multiplied it: those of all blocks of the cluster, since each of them writes to all. Blocks stay for several tiles: while one is
// written, the stages of the next are filled.
//
// An operand's step lies in shared memory as rows of 128 bytes in the copy engine's swizzle: K-major, a row for each of its rows;
// else boxes of DEPTH rows, one for each k, with 64 of its rows side by side.
#pragma once
#include "activation.cuh"
#include "ptx_hopper.cuh"
#include "spread.cuh"

typedef unsigned long long u64;

#ifndef CLUSTER
#define CLUSTER 1
#endif

#define GROUPS (DOWN * ACROSS)
#define THREADS (GROUPS * 128 + 32)
#define TILE_M (DOWN * 64)
#define TILE_N (ACROSS * COLS)

enum {
  DEPTH = 128 / (int)sizeof(scalar_t),
  BOX = 64 * 128,  // bytes of 64 K-major rows, and of a box that is not K-major
  A_BYTES = TILE_M * 128, B_BYTES = TILE_N * 128, STAGE_BYTES = A_BYTES + B_BYTES,
  PATCH = 1024,    // bytes in which a warp turns sums into rows of memory
};

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Dynamic shared memory, from a multiple of 1024 bytes on, after which the swizzle repeats: a patch for each warp that multiplies,
// then the stages.
__device__ __forceinline__ char* patches() {
  extern __shared__ __align__(1024) char memory[];
  return memory + (1024 - (__cvta_generic_to_shared(memory) & 1023)) % 1024;
}
__device__ __forceinline__ char* stages() { return patches() + GROUPS * 4 * PATCH; }

// How far a thread has gone around a ring of `count` stages.
template <int count> struct Turn {
  int stage;
  unsigned phase;
  __device__ __forceinline__ void next() {
    if (++stage == count) stage = 0, phase ^= 1;
  }
  __device__ __forceinline__ int before() const { return (stage ? stage : count) - 1; }
};

template <int count> struct Ring {
  u64 full[count], empty[count];
  // By all threads.
  __device__ __forceinline__ void start() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < count; ++i) mbarrier_init(full + i, 1), mbarrier_init(empty + i, GROUPS * 4 * CLUSTER);
      fence_mbarrier_init();
    }
    if (CLUSTER > 1) {
      cluster_arrive(), cluster_wait();
    } else {
      __syncthreads();
    }
  }
  // By those who multiply, when nothing is left to do: a block must not end before others have arrived at its barriers for the last
  // time. (Threads that have returned are not waited for.)
  __device__ __forceinline__ void finish() {
    if (CLUSTER > 1) cluster_arrive(), cluster_wait();
  }
  // By the first lanes of a warp, one for each block of the cluster: the warp has multiplied a stage.
  __device__ __forceinline__ void release(int stage) {
    if (CLUSTER > 1) {
      mbarrier_arrive_cluster(empty + stage, threadIdx.x % 32);
    } else {
      mbarrier_arrive(empty + stage);
    }
  }
  // The producer's: when the stage is free, load(barrier) asks for so many bytes, zeros included.
  template <class Load> __device__ __forceinline__ void produce(Turn<count>& turn, int bytes, const Load& load) {
    mbarrier_wait(empty + turn.stage, turn.phase ^ 1);
    mbarrier_arrive_expect(full + turn.stage, bytes);
    load(full + turn.stage);
    turn.next();
  }
};

// The producer's step of both operands: load(a, b, barrier).
template <class Load> __device__ __forceinline__ void produce(Ring<STAGES>& ring, Turn<STAGES>& turn, const Load& load) {
  char* at = stages() + turn.stage * STAGE_BYTES;
  ring.produce(turn, STAGE_BYTES, [&](u64* bar) { load(at, at + A_BYTES, bar); });
}

// A box of what the cluster shares, for all its blocks.
__device__ __forceinline__ void load_shared(char* to, const TensorMap* map, u64* bar, int x, int y, int z) {
  if (CLUSTER > 1) {
    tensor_load_multicast(to, map, bar, (1u << CLUSTER) - 1, x, y, z);
  } else {
    tensor_load(to, map, bar, x, y, z);
  }
}

template <class T> struct Unit;
template <> struct Unit<bf16> {
  template <int m_major, int n_major> static __device__ __forceinline__ void multiply(float* d, u64 a, u64 b) {
    wgmma_bf16<COLS, m_major, n_major>(d, a, b, 1);
  }
};
template <> struct Unit<f16> {
  template <int m_major, int n_major> static __device__ __forceinline__ void multiply(float* d, u64 a, u64 b) {
    wgmma_f16<COLS, m_major, n_major>(d, a, b, 1);
  }
};
template <> struct Unit<float> {
  template <int m_major, int n_major> static __device__ __forceinline__ void multiply(float* d, u64 a, u64 b) {
    static_assert(!m_major && !n_major, "tf32 is K-major");
    wgmma_tf32<COLS>(d, a, b, 1);
  }
};

// A warpgroup's: d += one step, from descriptors, and waits for the steps before it.
template <bool a_k_major, bool b_k_major> __device__ __forceinline__ void multiply_step(float (&d)[COLS / 2], u64 a, u64 b) {
  wgmma_fence();
  // A quarter of the step is 32 bytes along a K-major row, else 16 rows.
#pragma unroll
  for (int q = 0; q < 4; ++q)
    Unit<scalar_t>::template multiply<!a_k_major, !b_k_major>(d, a + q * (a_k_major ? 2 : 128), b + q * (b_k_major ? 2 : 128));
  wgmma_commit();
  wgmma_wait<1>();
}

// A warpgroup's: d = the sum over the ring's next `steps` stages of its share of a tile.
template <bool a_k_major, bool b_k_major>
__device__ __forceinline__ void multiply(float (&d)[COLS / 2], Ring<STAGES>& ring, Turn<STAGES>& turn, int steps) {
  const int group = threadIdx.x / 128, offset_a = group % DOWN * BOX, offset_b = A_BYTES + group / DOWN * (COLS * 128);
  const bool speaks = threadIdx.x % 32 < CLUSTER;
#pragma unroll
  for (int i = 0; i < COLS / 2; ++i) d[i] = 0;
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    mbarrier_wait(ring.full + turn.stage, turn.phase);
    const char* at = stages() + turn.stage * STAGE_BYTES;
    const u64 a = wgmma_descriptor(at + offset_a, BOX, 1024, 128), b = wgmma_descriptor(at + offset_b, BOX, 1024, 128);
    multiply_step<a_k_major, b_k_major>(d, a, b);
    // The step before has been multiplied.
    if (speaks && i > 0) ring.release(turn.before());
    turn.next();
  }
  wgmma_wait<0>();
  wgmma_results(d);
  if (speaks && steps > 0) ring.release(turn.before());
}

// A piece of work: a tile, of a part of k, of one of several products. Tiles come first, eight rows of them at a time, so that blocks
// that run together share their operands in the L2 cache. A cluster's work is counted by its first block's tiles; what the others
// have below the last row is zeros, and is not stored.
struct Piece {
  int m0, n0, part, outer;
};
__device__ __forceinline__ Piece piece(int work, int tiles_m, int tiles_n, int parts) {
  int tiles = tiles_m * tiles_n, rest = work / tiles, tile = work - rest * tiles;
  int band = tile / (8 * tiles_n), in_band = tile - band * 8 * tiles_n;
  int height = tiles_m - band * 8 < 8 ? tiles_m - band * 8 : 8;
  int column = in_band / height, outer = rest / parts;
  int row = (band * 8 + in_band - column * height) * CLUSTER + (CLUSTER > 1 ? (int)cluster_rank() : 0);
  return Piece{row * TILE_M, column * TILE_N, rest - outer * parts, outer};
}

// ---- what becomes of the sums. A lane holds in d[4j + i] row lane / 4 (+ 8 for i >= 2) of its warp's 16, column
// 8j + 2 (lane % 4) + i % 2.

__device__ __forceinline__ int first_row(int m0) { return m0 + (threadIdx.x / 128 % DOWN * 4 + threadIdx.x / 32 % 4) * 16; }
__device__ __forceinline__ int first_column(int n0) { return n0 + threadIdx.x / 128 / DOWN * COLS; }

// f(row, column, value, value of the next column) for all of a lane's sums.
template <class F> __device__ __forceinline__ void each_pair(const float (&d)[COLS / 2], int m0, int n0, const F& f) {
  const int lane = threadIdx.x % 32, m = first_row(m0) + lane / 4, n = first_column(n0) + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < COLS / 8; ++j) {
    f(m, n + j * 8, d[4 * j], d[4 * j + 1]);
    f(m + 8, n + j * 8, d[4 * j + 2], d[4 * j + 3]);
  }
}

template <class T> __device__ __forceinline__ unsigned halves(float low, float high);
template <> __device__ __forceinline__ unsigned halves<bf16>(float low, float high) { return f32_pair_to_bf16_bits(low, high); }
template <> __device__ __forceinline__ unsigned halves<f16>(float low, float high) { return f32_pair_to_f16_bits(low, high); }
template <> __device__ __forceinline__ unsigned halves<float>(float, float) { return 0; }  // has none: not called

// What such a word holds.
template <class T> __device__ __forceinline__ void low_and_high(float* v, unsigned word) {
  const T low = {(unsigned short)word}, high = {(unsigned short)(word >> 16)};
  v[0] = load(&low), v[1] = load(&high);
}
template <> __device__ __forceinline__ void low_and_high<float>(float*, unsigned) {}

// The registers that stmatrix takes for 16 columns of the sums.
__device__ __forceinline__ void fragments(unsigned (&r)[4], const float* d) {
#pragma unroll
  for (int i = 0; i < 4; ++i) r[i] = halves<scalar_t>(activated(d[2 * i]), activated(d[2 * i + 1]));
}

// f(row, column, 16 bytes: eight columns) for all rows of a warp, 16-bit scalar_t.
template <class F> __device__ __forceinline__ void each_row_chunk(const float (&d)[COLS / 2], int m0, int n0, const F& f) {
  const int lane = threadIdx.x % 32, m = first_row(m0), n = first_column(n0);
  char* p = patches() + threadIdx.x / 32 * PATCH;
  auto place = [&](int row, int chunk) { return p + row * 64 + ((chunk ^ row >> 1 & 3) << 4); };
#pragma unroll
  for (int c = 0; c < COLS; c += 32) {  // 16 rows of 64 bytes; no bank is met twice
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned r[4];
      fragments(r, d + c / 2 + i * 8);
      stmatrix_x4(place(lane % 16, i * 2 + lane / 16), r);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = i * 8 + lane / 4, chunk = lane % 4;
      f(m + row, n + c + chunk * 8, *(const uint4*)place(row, chunk));
    }
    __syncwarp();
  }
}

// d += bias by row; null for none.
__device__ __forceinline__ void add_by_row(float (&d)[COLS / 2], const scalar_t* bias, int m0, int rows) {
  if (!bias) return;
  const int m = first_row(m0) + threadIdx.x % 32 / 4;
  const float upper = m < rows ? load(bias + m) : 0, lower = m + 8 < rows ? load(bias + m + 8) : 0;
#pragma unroll
  for (int j = 0; j < COLS / 8; ++j) d[4 * j] += upper, d[4 * j + 1] += upper, d[4 * j + 2] += lower, d[4 * j + 3] += lower;
}

template <class T> __device__ __forceinline__ void reduce_add(T* to, uint4 v);
template <> __device__ __forceinline__ void reduce_add<bf16>(bf16* to, uint4 v) { reduce_add_bf16(to, v); }
template <> __device__ __forceinline__ void reduce_add<f16>(f16* to, uint4 v) { reduce_add_f16(to, v); }
template <> __device__ __forceinline__ void reduce_add<float>(float*, uint4) {}  // has no halves: not called

__device__ __forceinline__ void put(scalar_t* to, float v, bool adds) {
  if (adds && sizeof(scalar_t) == 4) {
    reduce_add_f32((float*)to, v);
  } else {
    store(to, v);
  }
}

__device__ __forceinline__ void put_8(scalar_t* to, uint4 v, bool adds) {
  if (adds) {
    reduce_add(to, v);
  } else {
    *(uint4*)to = v;
  }
}

// Which of a lane's eight columns of 32, 8j + 2 (lane % 4) + e, is inside of the image: this bit.
__device__ __forceinline__ constexpr int bit_of(int j, int e) { return j % 2 * 16 + e * 2 + j / 2; }

// Stores `count` columns, 32 or a rest by eights, of a warp's sums from column n on, `rows` rows of each contiguous from at(column) on,
// or adds them to what is there; v are the values as stored. Gives which of the lane's 32 columns are inside.
template <int count, class At>
__device__ __forceinline__ unsigned put_few_columns(float (&v)[16], const float* d, int m, int n, int rows, const At& at, bool adds) {
  const int lane = threadIdx.x % 32;
  unsigned inside = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) v[i] = i < count / 2 ? d[i] : 0;
  if (sizeof(scalar_t) == 4) {
    m += lane / 4;
#pragma unroll
    for (int j = 0; j < count / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        scalar_t* to = at(n + j * 8 + lane % 4 * 2 + e);
        if (!to) continue;
        if (m < rows) put(to + m, d[4 * j + e], adds);
        if (m + 8 < rows) put(to + m + 8, d[4 * j + e + 2], adds);
        inside |= 1u << bit_of(j, e);
      }
    }
    return inside;
  }
  // Columns of 32 bytes, of which a lane takes half of two.
  char* p = patches() + threadIdx.x / 32 * PATCH;
  auto place = [&](int column, int half) { return p + column * 32 + ((half ^ column >> 2 & 1) << 4); };
#pragma unroll
  for (int i = 0; i * 16 < count; ++i) {
    unsigned r[4];
    fragments(r, v + i * 8);
    stmatrix_x4_trans(place(i * 16 + lane / 16 * 8 + lane % 8, lane / 8 % 2), r);
#pragma unroll
    for (int k = 0; k < 4; ++k) low_and_high<scalar_t>(v + i * 8 + k * 2, r[k]);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i * 16 < count; ++i) {
    const int column = i * 16 + lane / 2, half = lane % 2;
    scalar_t* to = column < count ? at(n + column) : (scalar_t*)0;
    if (to && m + half * 8 < rows) put_8(to + m + half * 8, *(const uint4*)place(column, half), adds);
    // Both lanes of a column have the same to say.
    inside |= __ballot_sync(0xffffffffu, to != 0) & (i ? 0xaaaaaaaau : 0x55555555u);
  }
  __syncwarp();
  return inside >> lane % 4 * 4;
}

// The sums of a warp's 16 rows, of each lane for the rows lane / 4 and lane / 4 + 8.
struct RowSpread {
  Spread<2> own;
  int pixels = 0;
  bool begun = false;

  // Of 32 columns.
  __device__ __forceinline__ void take(const float (&v)[16], unsigned inside) {
    if (!begun) {
      // The first one inside, of the first of the four lanes that have one.
      const unsigned lanes = __ballot_sync(0xffffffffu, (inside & 0xf000f) != 0);
#pragma unroll
      for (int i = 7; i >= 0; --i)
        if (inside >> bit_of(i / 2, i % 2) & 1) own.pivot[0] = v[i / 2 * 4 + i % 2], own.pivot[1] = v[i / 2 * 4 + i % 2 + 2];
      const int from = (threadIdx.x & 28) | (__ffs(lanes) - 1 & 3);
#pragma unroll
      for (int e = 0; e < 2; ++e) own.pivot[e] = __shfl_sync(0xffffffffu, own.pivot[e], from);
      begun = lanes;
    }
    pixels += __popc(inside & 0xf000f);
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (inside >> bit_of(i / 4, i % 2) & 1) own.add(i % 4 / 2, v[i]);
  }
  __device__ __forceinline__ void put(const Part& part, int m, int rows) {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
      pixels += __shfl_xor_sync(0xffffffffu, pixels, bit);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        own.sum[e] += __shfl_xor_sync(0xffffffffu, own.sum[e], bit);
        own.squares[e] += __shfl_xor_sync(0xffffffffu, own.squares[e], bit);
      }
    }
    // One of the four lanes for each row; selected by value, since an index would put them all in local memory.
    const int lane = threadIdx.x % 32;
    Spread<1> one;
    one.pivot[0] = lane % 4 ? own.pivot[1] : own.pivot[0];
    one.sum[0] = lane % 4 ? own.sum[1] : own.sum[0];
    one.squares[0] = lane % 4 ? own.squares[1] : own.squares[0];
    m += lane / 4 + lane % 4 * 8;
    if (lane % 4 < 2 && m < rows) one.put(part, pixels, 0, m);
  }
};

// Stores columns whose `rows` rows, a multiple of 8, are contiguous from at(column) on; null for none. What a warpgroup stores is
// `part`. With `adds` it is added to what is there instead: nobody waits for it, since the L2 cache does it.
template <class At>
__device__ __forceinline__ void put_columns(const float (&d)[COLS / 2], int m0, int n0, int rows, const At& at, const Part& part,
                                            bool adds) {
  RowSpread spread;
  const int m = first_row(m0), n = first_column(n0);
  float v[16];
#pragma unroll
  for (int c = 0; c + 32 <= COLS; c += 32) {
    const unsigned inside = put_few_columns<32>(v, d + c / 2, m, n + c, rows, at, adds);
    if (part.all.to) spread.take(v, inside);
  }
  enum { REST = COLS % 32 };
  if constexpr (REST > 0) {
    const unsigned inside = put_few_columns<REST>(v, d + (COLS - REST) / 2, m, n + COLS - REST, rows, at, adds);
    if (part.all.to) spread.take(v, inside);
  }
  if (part.all.to) spread.put(part, m, rows);
}
