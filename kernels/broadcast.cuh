// Broadcasting: the output is dense, operand k is read at an offset of its own strides, 0 along stretched axes.
#pragma once
#include "common.cuh"

// Up to three operands; axes are merged on the host, so that operands of one shape have rank 1 and need no division.
struct Walk {
  i64 extent[MAX_RANK];
  i64 stride[3][MAX_RANK];
  i64 rank;
};

// at[k] = offset of operand k for the output's element i.
template <int K> __device__ __forceinline__ void offsets(i64 i, const Walk& w, i64 (&at)[K]) {
#pragma unroll
  for (int k = 0; k < K; ++k) at[k] = 0;
  for (int d = (int)w.rank - 1; d > 0; --d) {
    i64 q = quotient(i, w.extent[d]), r = i - q * w.extent[d];
#pragma unroll
    for (int k = 0; k < K; ++k) at[k] += r * w.stride[k][d];
    i = q;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) at[k] += i * w.stride[k][0];
}
