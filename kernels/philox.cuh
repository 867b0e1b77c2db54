// Philox4x32-10 (Salmon et al. 2011), the same numbers as src/random.rs: element i of a draw is word i % 4 of block i / 4.
#pragma once
#include "common.cuh"

typedef unsigned long long u64;

struct Draw {
  u64 seed;         // the key
  u64 number;       // the upper half of the counter
  const u64* base;  // in a CUDA graph (2): the key, and what each replay adds to the number; else null
};

// The draw with its base put in: once a thread, before the first block.
__device__ __forceinline__ Draw resolved(Draw draw) {
  if (draw.base) {
    draw.seed = draw.base[0];
    draw.number += draw.base[1];
  }
  return draw;
}

struct Words {
  unsigned w[4];
};

__device__ __forceinline__ Words philox(const Draw& draw, u64 block) {
  unsigned c0 = (unsigned)block, c1 = (unsigned)(block >> 32), c2 = (unsigned)draw.number, c3 = (unsigned)(draw.number >> 32);
  unsigned k0 = (unsigned)draw.seed, k1 = (unsigned)(draw.seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    u64 a = (u64)c0 * 0xD2511F53u, b = (u64)c2 * 0xCD9E8D57u;
    c0 = (unsigned)(b >> 32) ^ c1 ^ k0;
    c1 = (unsigned)b;
    c2 = (unsigned)(a >> 32) ^ c3 ^ k1;
    c3 = (unsigned)a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  Words words = {{c0, c1, c2, c3}};
  return words;
}

// A word's upper 24 bits as a float in [0, 1).
__device__ __forceinline__ float unit(unsigned word) { return (float)(word >> 8) * (1.0f / 16777216.0f); }
