// In-place updates of a parameter w with its gradient g and its optimizer's state, and the global norm of gradients.
// For half-precision parameters w is a master copy in float and `low` the parameter itself; else `low` is null.
// variants: scalar_t=float,double,f16,bf16; norm_t=float,double
#include "common.cuh"

__device__ __forceinline__ float sqrt_(float x) { return sqrtf(x); }
__device__ __forceinline__ double sqrt_(double x) { return sqrt(x); }

// What every update starts with: g = clip(rescale grad) + wd w; clip < 0 means none.
struct Step {
  double rescale, clip, wd;
};

__device__ __forceinline__ acc_t prepared(acc_t grad, acc_t w, const Step& s) {
  acc_t g = (acc_t)s.rescale * grad, clip = (acc_t)s.clip;
  if (clip >= 0) g = g > clip ? clip : g < -clip ? -clip : g;
  return g + (acc_t)s.wd * w;
}

__device__ __forceinline__ void put(acc_t* w, scalar_t* low, i64 i, acc_t v) {
  w[i] = v;
  if (low) store(low + i, v);
}

// w -= lr g
extern "C" __global__ void sgd(acc_t* w, scalar_t* low, const scalar_t* __restrict__ grad, Step s, double lr, i64 n) {
  GRID_STRIDE(i, n) put(w, low, i, w[i] - (acc_t)lr * prepared(load(grad + i), w[i], s));
}

// With lr inside the momentum (MXNet): m = μ m - lr g; w += m, or with Nesterov w += μ m - lr g.
// Outside of it (PyTorch):             m = μ m + g; w -= lr m, or with Nesterov w -= lr (g + μ m).
extern "C" __global__ void sgd_momentum(acc_t* w, scalar_t* low, const scalar_t* __restrict__ grad, acc_t* __restrict__ mom, Step s,
                                        double lr, double momentum, int lr_inside, int nesterov, i64 n) {
  acc_t mu = (acc_t)momentum, rate = (acc_t)lr;
  GRID_STRIDE(i, n) {
    acc_t g = prepared(load(grad + i), w[i], s), step = lr_inside ? -rate * g : g, m = mu * mom[i] + step;
    mom[i] = m;
    acc_t move = nesterov ? mu * m + step : m;
    put(w, low, i, w[i] + (lr_inside ? move : -rate * move));
  }
}

// m = β1 m + (1 - β1) g; v = β2 v + (1 - β2) g²; w = decay w - rate m / (sqrt(v) v_scale + eps)
extern "C" __global__ void adam(acc_t* w, scalar_t* low, const scalar_t* __restrict__ grad, acc_t* __restrict__ m,
                                acc_t* __restrict__ v, Step s, double beta1, double beta2, double decay, double rate,
                                double v_scale, double eps, i64 n) {
  acc_t b1 = (acc_t)beta1, b2 = (acc_t)beta2, c1 = (acc_t)(1 - beta1), c2 = (acc_t)(1 - beta2);
  GRID_STRIDE(i, n) {
    acc_t old = w[i], g = prepared(load(grad + i), old, s);
    acc_t a = b1 * m[i] + c1 * g, b = b2 * v[i] + c2 * g * g;
    m[i] = a;
    v[i] = b;
    put(w, low, i, (acc_t)decay * old - (acc_t)rate * a / (sqrt_(b) * (acc_t)v_scale + (acc_t)eps));
  }
}

// partial[block] = sum of x² over the block's 4096 elements
extern "C" __global__ void sum_of_squares(double* __restrict__ partial, const scalar_t* __restrict__ x, i64 start, i64 n) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int k = 0; k < 16; ++k) {
    i64 i = (i64)blockIdx.x * 4096 + k * 256 + threadIdx.x;
    if (i < n) {
      double v = (double)load(x + i);
      sum += v * v;
    }
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[start + blockIdx.x] = sum;
}

// norm = sqrt(sum partial); one block, fixed order
extern "C" __global__ void norm_of(scalar_t* __restrict__ norm, const double* __restrict__ partial, i64 n) {
  __shared__ double scratch[32];
  double sum = 0;
  for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) store(norm, (acc_t)sqrt(sum));
}

// LARS: the rate of one parameter, lr trust |w| / (|g| + wd |w|) with g = rescale grad; lr where that says nothing (|w| = 0, or
// nothing below the line). The sums of squares are those of w, then those of grad; one block, fixed order.
extern "C" __global__ void lars_rate(double* __restrict__ rate, const double* __restrict__ partial, i64 nw, i64 ng, double rescale,
                                     double wd, double lr, double trust) {
  __shared__ double scratch[32];
  double w = 0, g = 0;
  for (i64 i = threadIdx.x; i < nw; i += blockDim.x) w += partial[i];
  for (i64 i = threadIdx.x; i < ng; i += blockDim.x) g += partial[nw + i];
  w = block_sum(w, scratch);
  g = block_sum(g, scratch);
  if (threadIdx.x) return;
  double norm = sqrt(w), below = fabs(rescale) * sqrt(g) + wd * norm;
  *rate = norm == 0 || below == 0 ? lr : lr * trust * norm / below;
}

// m = μ m + rate (g + wd w); w -= m; the rate is lr where none was computed
extern "C" __global__ void lars(acc_t* w, scalar_t* low, const scalar_t* __restrict__ grad, acc_t* __restrict__ mom,
                                const double* __restrict__ rate, Step s, double lr, double momentum, i64 n) {
  acc_t mu = (acc_t)momentum, step = (acc_t)(rate ? *rate : lr);
  GRID_STRIDE(i, n) {
    acc_t m = mu * mom[i] + step * prepared(load(grad + i), w[i], s);
    mom[i] = m;
    put(w, low, i, w[i] - m);
  }
}

// x *= min(1, max_norm / (norm + eps))
extern "C" __global__ void clip_by_norm(scalar_t* __restrict__ x, const norm_t* __restrict__ norm, double max_norm, double eps, i64 n) {
  double scale = max_norm / ((double)*norm + eps);
  if (scale >= 1) return;
  GRID_STRIDE(i, n) store(x + i, (acc_t)(load(x + i) * (acc_t)scale));
}
