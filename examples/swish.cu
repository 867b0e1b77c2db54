// y = x s(βx) with s(z) = 1 / (1 + e⁻ᶻ), and its gradient dx = dy (s + βx s(1 - s)). x, y, dx, dy: n elements in one order.
// variants: scalar_t=float,double,f16,bf16
#include "common.cuh"

// β comes as a double and is computed with in acc_t: float for the halves and float, else double.
__device__ __forceinline__ float exp_(float x) { return expf(x); }
__device__ __forceinline__ double exp_(double x) { return exp(x); }
__device__ __forceinline__ acc_t sigmoid(acc_t z) { return 1 / (1 + exp_(-z)); }

extern "C" __global__ void swish_fwd(scalar_t* y, const scalar_t* x, double beta, i64 n) {
  GRID_STRIDE(i, n) {
    acc_t v = load(x + i);
    store(y + i, v * sigmoid((acc_t)beta * v));
  }
}

extern "C" __global__ void swish_bwd(scalar_t* dx, const scalar_t* x, const scalar_t* dy, double beta, i64 n) {
  GRID_STRIDE(i, n) {
    acc_t z = (acc_t)beta * load(x + i), s = sigmoid(z);
    store(dx + i, (acc_t)(load(dy + i) * (s + z * s * (1 - s))));
  }
}
