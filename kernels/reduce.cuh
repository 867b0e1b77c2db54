// Offsets for reductions.
#pragma once
#include "common.cuh"

// Element offset of the row-major linear index i; a single axis, the common case, needs no division.
__device__ __forceinline__ i64 place(i64 i, const Index& at, int rank) {
  i64 offset = 0;
  for (int d = rank - 1; d > 0; --d) {
    i64 q = i / at.extent[d];
    offset += (i - q * at.extent[d]) * at.stride[d];
    i = q;
  }
  return offset + i * at.stride[0];
}
