// The elementwise functions: UNARY(name, alone, value of x, dy f') with the constants a and b. The backward pass is given k, which is y where
// src/ops/unary/functions.rs says so, else x. Where f' is 0 by definition 0 is selected, not multiplied: an infinite dy would become NaN.
// alone: the function takes so many instructions that a pack of 16 bytes side by side would only raise register pressure.
#pragma once
#include "activation.cuh"

__device__ __forceinline__ float log_(float x) { return logf(x); }
__device__ __forceinline__ double log_(double x) { return log(x); }
__device__ __forceinline__ float expm1_(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_(double x) { return expm1(x); }
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

__device__ __forceinline__ acc_t gelu_tanh_derivative(acc_t x) {
  acc_t t = tanh_(gelu_inner(x));
  return (acc_t)0.5 * (1 + t) + (acc_t)0.5 * x * (1 - t * t) * (acc_t)SQRT_2_OVER_PI * (1 + (acc_t)(3 * 0.044715) * x * x);
}

#define UNARY(NAME, ALONE, VALUE, GRADIENT)                                                              \
  constexpr bool NAME##_alone = ALONE;                                                                   \
  __device__ __forceinline__ acc_t NAME##_value(acc_t x, acc_t a, acc_t b) { return VALUE; }             \
  __device__ __forceinline__ acc_t NAME##_gradient(acc_t dy, acc_t k, acc_t a, acc_t b) { return GRADIENT; }

// NaN stays NaN, and lets the gradient through.
UNARY(RELU, false, x < 0 ? 0 : x, k <= 0 ? 0 : dy)
UNARY(LEAKY_RELU, false, x > 0 ? x : a * x, k > 0 ? dy : a == 0 ? 0 : dy * a)
UNARY(ELU, true, x > 0 ? x : a * expm1_(x), k > 0 ? dy : a == 0 ? 0 : dy * (a * exp_(k)))
UNARY(SIGMOID, false, sigmoid(x), dy * (k * (1 - k)))
UNARY(TANH, false, tanh_(x), dy * (1 - k * k))
UNARY(GELU, true, (acc_t)0.5 * x * (1 + erf_(x * (acc_t)SQRT_HALF)),
      dy * ((acc_t)0.5 * (1 + erf_(k * (acc_t)SQRT_HALF)) + k * (acc_t)INV_SQRT_2PI * exp_((acc_t)-0.5 * k * k)))
UNARY(GELU_TANH, true, (acc_t)0.5 * x * (1 + tanh_(gelu_inner(x))), dy * gelu_tanh_derivative(k))
UNARY(SOFTPLUS, true, (x > 0 ? x : 0) + log1p_(exp_(-abs_(x))), dy * sigmoid(k))
UNARY(EXP, false, exp_(x), dy * k)
UNARY(LOG, false, log_(x), dy / k)  // 1 / k of a subnormal k is infinite
UNARY(SQRT, false, sqrt_(x), dy / (2 * k))
UNARY(ABS, false, abs_(x), k > 0 ? dy : k < 0 ? -dy : 0)
UNARY(SQUARE, false, x * x, dy * (2 * k))
UNARY(POW, true, pow_(x, a), a == 0 ? 0 : dy * (a * pow_(k, a - 1)))
UNARY(NEG, false, -x, -dy)
UNARY(AFFINE, false, a * x + b, dy * a)
UNARY(CLIP, false, x < a ? a : x > b ? b : x, k >= a && k <= b ? dy : 0)
