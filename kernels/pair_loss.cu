// loss[b] = scale * sum f(x, z) over the elements of sample b, z the label; one file is compiled for each -DFUNCTION and dtype.
// variants: scalar_t=float,double,f16,bf16; FUNCTION=SQUARED,ABSOLUTE,SIGMOID_CROSS_ENTROPY,PROBABILITY_CROSS_ENTROPY
#include "rows.cuh"

enum { SQUARED, ABSOLUTE, SIGMOID_CROSS_ENTROPY, PROBABILITY_CROSS_ENTROPY };
#define TINY ((acc_t)1e-12)

__device__ __forceinline__ acc_t value(acc_t x, acc_t z) {
  switch (FUNCTION) {
    case SQUARED: return (acc_t)0.5 * (x - z) * (x - z);
    case ABSOLUTE: return abs_(x - z);
    // -z ln σ(x) - (1 - z) ln(1 - σ(x))
    case SIGMOID_CROSS_ENTROPY: return (x > 0 ? x : 0) - x * z + log1p_(exp_(-abs_(x)));
    default: return -(z * log_(x + TINY) + (1 - z) * log_(1 - x + TINY));
  }
}

__device__ __forceinline__ acc_t d_x(acc_t x, acc_t z) {
  switch (FUNCTION) {
    case SQUARED: return x - z;
    case ABSOLUTE: return (acc_t)((x > z) - (x < z));
    case SIGMOID_CROSS_ENTROPY: {
      acc_t e = exp_(-abs_(x)), y = 1 / (1 + e);
      return (x < 0 ? e * y : y) - z;
    }
    default: return (1 - z) / (1 - x + TINY) - z / (x + TINY);
  }
}

__device__ __forceinline__ acc_t d_z(acc_t x, acc_t z) {
  switch (FUNCTION) {
    case SQUARED: return z - x;
    case ABSOLUTE: return (acc_t)((x < z) - (x > z));
    case SIGMOID_CROSS_ENTROPY: return -x;
    default: return log_(1 - x + TINY) - log_(x + TINY);
  }
}

extern "C" __global__ void pair_loss_fwd(acc_t* __restrict__ loss, const scalar_t* __restrict__ x,
                                         const scalar_t* __restrict__ z, Rows r, double scale) {
  __shared__ acc_t scratch[32];
  FOR_ROWS(row, r) {
    acc_t sum = 0;
    FOR_ELEMENTS(c, r) sum += value(load(x + row * r.len + c), load(z + row * r.len + c));
    sum = team_sum(sum, r.team, scratch);
    if (threadIdx.x % r.team == 0) loss[row] = (acc_t)scale * sum;
  }
}

// dx = dy[b] scale df/dx, dz = dy[b] scale df/dz; either may be null
extern "C" __global__ void pair_loss_bwd(scalar_t* __restrict__ dx, scalar_t* __restrict__ dz, const scalar_t* __restrict__ x,
                                         const scalar_t* __restrict__ z, const acc_t* __restrict__ dy, i64 per, double scale,
                                         i64 n) {
  GRID_STRIDE(i, n) {
    acc_t g = dy[i / per] * (acc_t)scale, a = load(x + i), b = load(z + i);
    if (FUNCTION == ABSOLUTE && !(a > b) && !(a < b)) g = 0;  // nothing of an infinite g
    if (dx) store(dx + i, (acc_t)(g * d_x(a, b)));
    if (dz) store(dz + i, (acc_t)(g * d_z(a, b)));
  }
}
