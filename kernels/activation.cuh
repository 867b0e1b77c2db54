// Activations that a product ends with, and the functions they are made of, which unary.cu shares: fused or not, f32 and f64 give the
// same bits.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float exp_(float x) { return expf(x); }
__device__ __forceinline__ double exp_(double x) { return exp(x); }
__device__ __forceinline__ float tanh_(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_(double x) { return tanh(x); }
__device__ __forceinline__ float abs_(float x) { return fabsf(x); }
__device__ __forceinline__ double abs_(double x) { return fabs(x); }

__device__ __forceinline__ acc_t sigmoid(acc_t x) {
  acc_t e = exp_(-abs_(x)), y = 1 / (1 + e);
  return x < 0 ? e * y : y;
}

// What a sum becomes before it is stored: -DACTIVATION=RELU, SIGMOID or TANH, without it the sum itself.
#ifdef ACTIVATION
enum { RELU, SIGMOID, TANH };
__device__ __forceinline__ acc_t activated(acc_t x) {
  switch (ACTIVATION) {
    case RELU: return x < 0 ? 0 : x;  // NaN stays NaN
    case SIGMOID: return sigmoid(x);
    default: return tanh_(x);
  }
}
#else
__device__ __forceinline__ acc_t activated(acc_t x) { return x; }
#endif
