// y = f(x) and dx = dy f'(x); one file is compiled for each -DFUNCTION and dtype.
// The backward pass is given k: y for RELU, SIGMOID, TANH, EXP and SQRT, else x.
// variants: scalar_t=float,double,f16,bf16; FUNCTION=RELU,LEAKY_RELU,SIGMOID,TANH,GELU,GELU_TANH,SOFTPLUS,EXP,LOG,SQRT,ABS,SQUARE,POW,AFFINE,CLIP
#include "activation.cuh"
#include "pack.cuh"

enum { RELU, LEAKY_RELU, SIGMOID, TANH, GELU, GELU_TANH, SOFTPLUS, EXP, LOG, SQRT, ABS, SQUARE, POW, AFFINE, CLIP };

__device__ __forceinline__ float log_(float x) { return logf(x); }
__device__ __forceinline__ double log_(double x) { return log(x); }
__device__ __forceinline__ float log1p_(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_(double x) { return log1p(x); }
__device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_(double x) { return sqrt(x); }
__device__ __forceinline__ float erf_(float x) { return erff(x); }
__device__ __forceinline__ double erf_(double x) { return erf(x); }
__device__ __forceinline__ float pow_(float x, float y) { return powf(x, y); }
__device__ __forceinline__ double pow_(double x, double y) { return pow(x, y); }

#define SQRT_HALF 0.70710678118654752440
#define SQRT_2_OVER_PI 0.79788456080286535588
#define INV_SQRT_2PI 0.39894228040143267794

__device__ __forceinline__ acc_t gelu_inner(acc_t x) {
  return (acc_t)SQRT_2_OVER_PI * (x + (acc_t)0.044715 * x * x * x);
}

__device__ __forceinline__ acc_t value(acc_t x, acc_t a, acc_t b) {
  switch (FUNCTION) {
    case RELU: return x < 0 ? 0 : x;  // NaN stays NaN
    case LEAKY_RELU: return x > 0 ? x : a * x;
    case SIGMOID: return sigmoid(x);
    case TANH: return tanh_(x);
    case GELU: return (acc_t)0.5 * x * (1 + erf_(x * (acc_t)SQRT_HALF));
    case GELU_TANH: return (acc_t)0.5 * x * (1 + tanh_(gelu_inner(x)));
    case SOFTPLUS: return (x > 0 ? x : 0) + log1p_(exp_(-abs_(x)));
    case EXP: return exp_(x);
    case LOG: return log_(x);
    case SQRT: return sqrt_(x);
    case ABS: return abs_(x);
    case SQUARE: return x * x;
    case POW: return pow_(x, a);
    case AFFINE: return a * x + b;
    default: return x < a ? a : x > b ? b : x;  // CLIP
  }
}

// dy f'(x). A unit whose derivative is 0 is passed over, not multiplied with 0: an infinite dy behind it would become NaN.
__device__ __forceinline__ acc_t gradient(acc_t dy, acc_t k, acc_t a, acc_t b) {
  switch (FUNCTION) {
    case RELU: return k <= 0 ? 0 : dy;  // NaN lets it through, as the function does
    case LEAKY_RELU: return k > 0 ? dy : a == 0 ? 0 : dy * a;
    case SIGMOID: return dy * (k * (1 - k));
    case TANH: return dy * (1 - k * k);
    case GELU:
      return dy * ((acc_t)0.5 * (1 + erf_(k * (acc_t)SQRT_HALF)) + k * (acc_t)INV_SQRT_2PI * exp_((acc_t)-0.5 * k * k));
    case GELU_TANH: {
      acc_t t = tanh_(gelu_inner(k));
      return dy * ((acc_t)0.5 * (1 + t) +
                   (acc_t)0.5 * k * (1 - t * t) * (acc_t)SQRT_2_OVER_PI * (1 + (acc_t)(3 * 0.044715) * k * k));
    }
    case SOFTPLUS: return dy * sigmoid(k);
    case EXP: return dy * k;
    case LOG: return dy / k;  // 1 / k of a subnormal k is infinite
    case SQRT: return dy / (2 * k);
    case ABS: return k > 0 ? dy : k < 0 ? -dy : 0;
    case SQUARE: return dy * (2 * k);
    case POW: return a == 0 ? 0 : dy * (a * pow_(k, a - 1));
    case AFFINE: return dy * a;
    default: return k >= a && k <= b ? dy : 0;  // CLIP
  }
}

// Functions of many instructions take element by element: a whole pack of them side by side would only need registers.
#define ALONE (FUNCTION == GELU || FUNCTION == GELU_TANH || FUNCTION == SOFTPLUS || FUNCTION == POW)

// The first element of the thread that is not in a pack.
__device__ __forceinline__ i64 first_alone(i64 n) { return (ALONE ? 0 : n / PACK * PACK) + (i64)blockIdx.x * blockDim.x + threadIdx.x; }

extern "C" __global__ void unary_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, double a, double b, i64 n) {
  if (!ALONE) {
    FOR_PACKS(i, n, PACK) {
      acc_t v[PACK];
      load_pack(v, x + i);
#pragma unroll
      for (int k = 0; k < PACK; ++k) v[k] = value(v[k], (acc_t)a, (acc_t)b);
      store_pack(y + i, v);
    }
  }
  for (i64 i = first_alone(n); i < n; i += (i64)gridDim.x * blockDim.x) store(y + i, value(load(x + i), (acc_t)a, (acc_t)b));
}

extern "C" __global__ void unary_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ k,
                                     const scalar_t* __restrict__ dy, double a, double b, i64 n) {
  if (!ALONE) {
    FOR_PACKS(i, n, PACK) {
      acc_t g[PACK], v[PACK];
      load_pack(g, dy + i);
      load_pack(v, k + i);
#pragma unroll
      for (int j = 0; j < PACK; ++j) g[j] = gradient(g[j], v[j], (acc_t)a, (acc_t)b);
      store_pack(dx + i, g);
    }
  }
  for (i64 i = first_alone(n); i < n; i += (i64)gridDim.x * blockDim.x) {
    store(dx + i, gradient(load(dy + i), load(k + i), (acc_t)a, (acc_t)b));
  }
}
