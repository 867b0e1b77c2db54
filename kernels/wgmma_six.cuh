// A tile of a product of f32 by wgmma that is as accurate as plain f32: each operand is three numbers of bf16 (split_planes.cu),
//
//   a = a0 + a1 + a2      a b = a2 b0 + a1 b1 + a0 b2 + a1 b0 + a0 b1 + a0 b0 + (2^-26 of it)
//
// and the six products are added in this order, the small ones first. Tensor cores cut off what they add, where f32 rounds: over a
// long sum of one sign that is dozens of times plain f32's error. So the sums of DEPTH = 32 steps of k begin anew, and plain additions
// add them to those of the whole tile, in registers of their own. src/ops/six_tests.rs measures it.
//
// Why six of bf16: three of tf32 take as long, but lose 2^-22 of the operands, need 8 bytes for a number instead of 6, and are K-major
// only. Why the planes come from memory: tensor cores multiply a step of 128 x 192 in 2304 clocks, in which they read 192 KiB of
// shared memory, two thirds of what it gives. The engine's copies of planes are 60 KiB more; splitting in place would be 100 KiB of reads
// and writes on top of 40, which is beyond it. From the L2 cache planes are 1920 clocks (32 bytes in one). What it costs
// is a pass over each operand, 10 bytes for a number.
//
// The two warpgroups of a block take turns at the tensor cores: one's additions are hidden behind the other's products.
//
// In shared memory a step of an operand lies as plane after plane for each of its units:
//   a                64 rows, one warpgroup's
//   b, K-major       TILE_N rows
//   b, not K-major   64 columns
// K-major, a row is 64 bytes (DEPTH numbers) in the swizzle of 64; else one of DEPTH rows of 64 numbers, in that of 128.
#pragma once
#include "wgmma.cuh"

// Two sets of sums take more registers than a block's threads get alike: the warp that loads becomes a warpgroup, which leaves them
// its own.
#undef THREADS
#define THREADS (GROUPS * 128 + 128)

enum {
  PLANES = 3,
  UNIT_PLANE = 64 * 64, UNIT = PLANES * UNIT_PLANE,  // bytes of 64 rows or columns of an operand's step
  SIX_A = DOWN * UNIT, SIX_STAGE = (TILE_M + TILE_N) * (UNIT / 64),
};

// The producer's step of both operands: load(a, b, barrier).
template <class Load> __device__ __forceinline__ void produce_six(Ring<STAGES>& ring, Turn<STAGES>& turn, const Load& load) {
  char* at = stages() + turn.stage * SIX_STAGE;
  ring.produce(turn, SIX_STAGE, [&](u64* bar) { load(at, at + SIX_A, bar); });
}

// By the threads that multiply, and by the warpgroup of the one that loads, before all else that they do apart.
__device__ __forceinline__ void take_registers() { setmaxnreg_inc<232>(); }
__device__ __forceinline__ void leave_registers() { setmaxnreg_dec<40>(); }

// Whose turn it is to multiply: a barrier for each of two warpgroups.
struct Order {
  u64 turn[2];
  // By all threads, before Ring::start.
  __device__ __forceinline__ void start() {
    if (GROUPS == 2 && threadIdx.x == 0) mbarrier_init(turn, 4), mbarrier_init(turn + 1, 4);
  }
};

// A warpgroup's place in it; the first one need not wait for its first turn.
struct InOrder {
  unsigned phase = threadIdx.x / 128 == 0;
  __device__ __forceinline__ void wait(Order& order) {
    if (GROUPS == 2) mbarrier_wait(order.turn + threadIdx.x / 128, phase), phase ^= 1;
  }
  __device__ __forceinline__ void pass(Order& order) {
    if (GROUPS != 2) return;
    __syncwarp();  // all lanes have found that it is their turn: a phase later they would wait for the one after
    if (threadIdx.x % 32 == 0) mbarrier_arrive(order.turn + (threadIdx.x / 128 ^ 1));
  }
};

// part = the six products of a step, from descriptors of both operands' first planes.
template <bool a_k_major, bool b_k_major> __device__ __forceinline__ void multiply_six(float (&part)[COLS / 2], u64 a, u64 b) {
  enum { B_PLANE = (b_k_major ? TILE_N * 64 : UNIT_PLANE) / 16, A_PLANE = UNIT_PLANE / 16 };
  // 16 steps of k are 32 bytes along a K-major row, else 16 rows.
  enum { A_NEXT = a_k_major ? 2 : 128, B_NEXT = b_k_major ? 2 : 128 };
#pragma unroll
  for (int rank = PLANES - 1; rank >= 0; --rank) {
#pragma unroll
    for (int of_a = rank; of_a >= 0; --of_a) {
#pragma unroll
      for (int q = 0; q < DEPTH / 16; ++q)
        wgmma_bf16<COLS, !a_k_major, !b_k_major>(part, a + of_a * A_PLANE + q * A_NEXT, b + (rank - of_a) * B_PLANE + q * B_NEXT,
                                                rank != PLANES - 1 || of_a != rank || q != 0);
    }
  }
}

// A warpgroup's: d = the sum over the ring's next `steps` stages of its share of a tile.
template <bool a_k_major, bool b_k_major>
__device__ __forceinline__ void multiply(float (&d)[COLS / 2], Ring<STAGES>& ring, Turn<STAGES>& turn, Order& order,
                                         InOrder& place, int steps) {
  const int group = threadIdx.x / 128, offset_a = group % DOWN * UNIT;
  const int offset_b = SIX_A + group / DOWN * COLS * (b_k_major ? 64 : UNIT / 64);
  const bool speaks = threadIdx.x % 32 == 0;
#pragma unroll
  for (int i = 0; i < COLS / 2; ++i) d[i] = 0;
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    float part[COLS / 2];
    mbarrier_wait(ring.full + turn.stage, turn.phase);
    place.wait(order);
    const char* at = stages() + turn.stage * SIX_STAGE;
    const u64 a = wgmma_descriptor(at + offset_a, UNIT, a_k_major ? 512 : 1024, a_k_major ? 64 : 128);
    const u64 b = wgmma_descriptor(at + offset_b, UNIT, b_k_major ? 512 : 1024, b_k_major ? 64 : 128);
    wgmma_fence();
    multiply_six<a_k_major, b_k_major>(part, a, b);
    wgmma_commit();
    place.pass(order);
    wgmma_wait<0>();
    wgmma_results(part);
    if (speaks) mbarrier_arrive(ring.empty + turn.stage);
    turn.next();
#pragma unroll
    for (int j = 0; j < COLS / 2; ++j) d[j] += part[j];
  }
}

// What is NaN is computed again: planes make it of an infinite operand, whose other planes are 0, and overflow below the largest float.
// again(m, n) gives a sum in plain f32. Each is chosen from the registers by comparison, since an index would put them all in local memory.
template <class Again> __device__ __forceinline__ void repair(float (&d)[COLS / 2], int m0, int n0, const Again& again) {
  float strange = 0;
#pragma unroll
  for (int i = 0; i < COLS / 2; ++i) strange = fmaf(d[i], 0.0f, strange);
  if (strange == 0) return;
  const int lane = threadIdx.x % 32, m = first_row(m0) + lane / 4, n = first_column(n0) + lane % 4 * 2;
#pragma unroll 1
  for (int i = 0; i < COLS / 2; ++i) {
    float v = 0;
#pragma unroll
    for (int j = 0; j < COLS / 2; ++j) v = i == j ? d[j] : v;
    if (v == v) continue;
    v = again(m + i % 4 / 2 * 8, n + i / 4 * 8 + i % 2);
#pragma unroll
    for (int j = 0; j < COLS / 2; ++j) d[j] = i == j ? v : d[j];
  }
}
