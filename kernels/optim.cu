// In-place updates of a parameter w with its gradient g and its optimizer's state, and the global norm of gradients.
// For half-precision parameters w is a master copy in float and `low` the parameter itself; else `low` is null.
// variants: scalar_t=float,double,f16,bf16; norm_t=float,double
#include "pack.cuh"

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

// What is updated: the master copy, unless somebody has set the parameter to something else than its rounding.
__device__ __forceinline__ acc_t current(acc_t master, acc_t own) {
  scalar_t rounded;
  store(&rounded, master);
  return load(&rounded) == own ? master : own;
}

__device__ __forceinline__ acc_t get(const acc_t* w, const scalar_t* low, i64 i) { return low ? current(w[i], load(low + i)) : w[i]; }

__device__ __forceinline__ void put(acc_t* w, scalar_t* low, i64 i, acc_t v) {
  w[i] = v;
  if (low) store(low + i, v);
}

// The rules for one element; all kernels below share them, so that one parameter at a time and all at once give the same bits.

// w -= lr g
__device__ __forceinline__ acc_t sgd_rule(acc_t w, acc_t grad, const Step& s, acc_t lr) { return w - lr * prepared(grad, w, s); }

// With lr inside the momentum (MXNet): m = μ m - lr g; w += m, or with Nesterov w += μ m - lr g.
// Outside of it (PyTorch):             m = μ m + g; w -= lr m, or with Nesterov w -= lr (g + μ m).
__device__ __forceinline__ acc_t momentum_rule(acc_t w, acc_t grad, acc_t& mom, const Step& s, acc_t lr, acc_t mu, int lr_inside,
                                               int nesterov) {
  acc_t g = prepared(grad, w, s), step = lr_inside ? -lr * g : g, m = mu * mom + step;
  mom = m;
  acc_t move = nesterov ? mu * m + step : m;
  return w + (lr_inside ? move : -lr * move);
}

// m = β1 m + (1 - β1) g; v = β2 v + (1 - β2) g²; w = decay w - rate m / (sqrt(v) v_scale + eps)
struct Betas {
  double beta1, beta2, eps;
};

__device__ __forceinline__ acc_t adam_rule(acc_t w, acc_t grad, acc_t& m, acc_t& v, const Step& s, const Betas& b, acc_t rate,
                                           acc_t v_scale, acc_t decay) {
  acc_t g = prepared(grad, w, s);
  m = (acc_t)b.beta1 * m + (acc_t)(1 - b.beta1) * g;
  v = (acc_t)b.beta2 * v + (acc_t)(1 - b.beta2) * g * g;
  return decay * w - rate * m / (sqrt_(v) * v_scale + (acc_t)b.eps);
}

extern "C" __global__ void sgd(acc_t* w, scalar_t* low, const scalar_t* __restrict__ grad, Step s, double lr, i64 n) {
  GRID_STRIDE(i, n) put(w, low, i, sgd_rule(get(w, low, i), load(grad + i), s, (acc_t)lr));
}

extern "C" __global__ void sgd_momentum(acc_t* w, scalar_t* low, const scalar_t* __restrict__ grad, acc_t* __restrict__ mom, Step s,
                                        double lr, double momentum, int lr_inside, int nesterov, i64 n) {
  GRID_STRIDE(i, n) {
    put(w, low, i, momentum_rule(get(w, low, i), load(grad + i), mom[i], s, (acc_t)lr, (acc_t)momentum, lr_inside, nesterov));
  }
}

extern "C" __global__ void adam(acc_t* w, scalar_t* low, const scalar_t* __restrict__ grad, acc_t* __restrict__ m,
                                acc_t* __restrict__ v, Step s, Betas b, double rate, double v_scale, double decay, i64 n) {
  GRID_STRIDE(i, n) {
    put(w, low, i, adam_rule(get(w, low, i), load(grad + i), m[i], v[i], s, b, (acc_t)rate, (acc_t)v_scale, (acc_t)decay));
  }
}

// All parameters of one dtype in one launch. Each is cut into chunks, which are counted over all of them; blocks take the chunks
// in turn. What changes from step to step (learning rate, Adam's factors) is read from `rates`, three numbers for each parameter,
// so that a captured graph follows it. `unscale`, where it is given, is a factor on all gradients; 0 leaves everything as it is.
#define CHUNK 4096

struct Parameter {
  acc_t* w;
  scalar_t* low;
  const scalar_t* grad;
  acc_t* state[2];
  i64 first;  // chunks of the parameters before it
  i64 n;
  double rescale, wd;
};

// A block's chunk of one parameter: elements begin to end.
struct Chunk {
  Parameter p;
  const double* rates;
  i64 begin, end;
};

__device__ __forceinline__ Chunk chunk_of(const Parameter* table, const double* rates, int parameters, i64 chunk) {
  int low = 0, high = parameters;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (table[middle].first <= chunk) low = middle;
    else high = middle;
  }
  Chunk c;
  c.p = table[low];
  c.rates = rates + 3 * low;
  c.begin = (chunk - c.p.first) * CHUNK;
  c.end = c.begin + CHUNK < c.p.n ? c.begin + CHUNK : c.p.n;
  return c;
}

// Applies rule(w, grad, state 0, state 1) to each element of a chunk, of which the first STATES states are there.
template <int STATES, class F> __device__ __forceinline__ void over_chunk(const Chunk& c, F rule) {
  const Parameter& p = c.p;
  i64 whole = c.begin + (c.end - c.begin) / PACK * PACK;
  for (i64 i = c.begin + threadIdx.x * PACK; i < whole; i += blockDim.x * PACK) {
    acc_t w[PACK], grad[PACK], a[PACK] = {}, b[PACK] = {};
    load_pack(w, p.w + i);
    if (p.low) {
      acc_t own[PACK];
      load_pack(own, p.low + i);
#pragma unroll
      for (int k = 0; k < PACK; ++k) w[k] = current(w[k], own[k]);
    }
    load_pack(grad, p.grad + i);
    if (STATES > 0) load_pack(a, p.state[0] + i);
    if (STATES > 1) load_pack(b, p.state[1] + i);
#pragma unroll
    for (int k = 0; k < PACK; ++k) w[k] = rule(w[k], grad[k], a[k], b[k]);
    store_pack(p.w + i, w);
    if (p.low) store_pack(p.low + i, w);
    if (STATES > 0) store_pack(p.state[0] + i, a);
    if (STATES > 1) store_pack(p.state[1] + i, b);
  }
  i64 i = whole + threadIdx.x;
  if (i < c.end) {
    acc_t none[2] = {};
    put(p.w, p.low, i, rule(get(p.w, p.low, i), load(p.grad + i), STATES > 0 ? p.state[0][i] : none[0], STATES > 1 ? p.state[1][i] : none[1]));
  }
}

extern "C" __global__ void sgd_all(const Parameter* __restrict__ table, const double* __restrict__ rates, int parameters, i64 chunks,
                                   const double* __restrict__ unscale, double clip) {
  double factor = unscale ? *unscale : 1;
  if (factor == 0) return;
  for (i64 i = blockIdx.x; i < chunks; i += gridDim.x) {
    Chunk c = chunk_of(table, rates, parameters, i);
    Step s = {c.p.rescale * factor, clip, c.p.wd};
    acc_t lr = (acc_t)c.rates[0];
    over_chunk<0>(c, [&](acc_t w, acc_t grad, acc_t&, acc_t&) { return sgd_rule(w, grad, s, lr); });
  }
}

extern "C" __global__ void sgd_momentum_all(const Parameter* __restrict__ table, const double* __restrict__ rates, int parameters,
                                            i64 chunks, const double* __restrict__ unscale, double clip, double momentum, int lr_inside, int nesterov) {
  double factor = unscale ? *unscale : 1;
  if (factor == 0) return;
  for (i64 i = blockIdx.x; i < chunks; i += gridDim.x) {
    Chunk c = chunk_of(table, rates, parameters, i);
    Step s = {c.p.rescale * factor, clip, c.p.wd};
    acc_t lr = (acc_t)c.rates[0], mu = (acc_t)momentum;
    over_chunk<1>(c, [&](acc_t w, acc_t grad, acc_t& m, acc_t&) {
      return momentum_rule(w, grad, m, s, lr, mu, lr_inside, nesterov);
    });
  }
}

extern "C" __global__ void adam_all(const Parameter* __restrict__ table, const double* __restrict__ rates, int parameters, i64 chunks,
                                    const double* __restrict__ unscale, double clip, Betas betas) {
  double factor = unscale ? *unscale : 1;
  if (factor == 0) return;
  for (i64 i = blockIdx.x; i < chunks; i += gridDim.x) {
    Chunk c = chunk_of(table, rates, parameters, i);
    Step s = {c.p.rescale * factor, clip, c.p.wd};
    acc_t rate = (acc_t)c.rates[0], v_scale = (acc_t)c.rates[1], decay = (acc_t)c.rates[2];
    over_chunk<2>(c, [&](acc_t w, acc_t grad, acc_t& m, acc_t& v) { return adam_rule(w, grad, m, v, s, betas, rate, v_scale, decay); });
  }
}

// Words that travel by value, so that nobody waits: to[at + i] = words[i]. A launch's arguments may have 4096 bytes.
struct Words {
  i64 v[480];
};

extern "C" __global__ void put_words(i64* __restrict__ to, Words words, i64 at, i64 n) {
  GRID_STRIDE(i, n) to[at + i] = words.v[i];
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
// nothing below the line). The sums of squares are those of w, then those of grad; one block, fixed order. In a captured graph lr
// is read from `live`, which each replay brings up to date.
extern "C" __global__ void lars_rate(double* __restrict__ rate, const double* __restrict__ partial, i64 nw, i64 ng, double rescale,
                                     double wd, double lr, const double* __restrict__ live, double trust) {
  __shared__ double scratch[32];
  double w = 0, g = 0;
  if (live) lr = *live;
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
                                const double* __restrict__ rate, Step s, double lr, const double* __restrict__ live,
                                double momentum, i64 n) {
  acc_t mu = (acc_t)momentum, step = (acc_t)(rate ? *rate : live ? *live : lr);
  GRID_STRIDE(i, n) {
    acc_t own = get(w, low, i), m = mu * mom[i] + step * prepared(load(grad + i), own, s);
    mom[i] = m;
    put(w, low, i, own - m);
  }
}

// x *= min(1, max_norm / (norm + eps))
extern "C" __global__ void clip_by_norm(scalar_t* __restrict__ x, const norm_t* __restrict__ norm, double max_norm, double eps, i64 n) {
  double scale = max_norm / ((double)*norm + eps);
  if (scale >= 1) return;
  GRID_STRIDE(i, n) store(x + i, (acc_t)(load(x + i) * (acc_t)scale));
}

// Loss scaling (Micikevicius et al. 2018): a scale of 0 would have no inverse.
#define SMALLEST_SCALE (1.0 / 16777216)

// Some gradients, by value, with the chunks of all before each.
struct Gradients {
  struct {
    const scalar_t* x;
    i64 n, first;
  } of[160];
};

// found[at + chunk] = 1 where an element is not finite, else 0
extern "C" __global__ void find_infinite(u8* __restrict__ found, const Gradients gradients, int count, i64 at, i64 chunks) {
  __shared__ int scratch[32];
  for (i64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    int low = 0, high = count;
    while (high - low > 1) {
      int middle = (low + high) / 2;
      if (gradients.of[middle].first <= chunk) low = middle;
      else high = middle;
    }
    const scalar_t* x = gradients.of[low].x;
    i64 n = gradients.of[low].n, begin = (chunk - gradients.of[low].first) * CHUNK;
    i64 end = begin + CHUNK < n ? begin + CHUNK : n, whole = begin + (end - begin) / PACK * PACK;
    int wrong = 0;
    for (i64 i = begin + threadIdx.x * PACK; i < whole; i += blockDim.x * PACK) {
      acc_t v[PACK];
      load_pack(v, x + i);
#pragma unroll
      for (int k = 0; k < PACK; ++k) wrong |= v[k] - v[k] != 0;
    }
    if (whole + threadIdx.x < end) {
      acc_t v = load(x + whole + threadIdx.x);
      wrong |= v - v != 0;
    }
    wrong = block_sum(wrong, scratch);
    if (threadIdx.x == 0) found[at + chunk] = wrong != 0;
  }
}

// After a backward pass. state: the scale, and the finite steps since it last changed. unscale: for this step's gradients the factor
// that undoes the scale, 0 where one of them is not finite. One block.
extern "C" __global__ void next_scale(double* __restrict__ state, double* __restrict__ unscale, const u8* __restrict__ found, i64 n,
                                      double growth, double backoff, double interval) {
  __shared__ int scratch[32];
  int wrong = 0;
  for (i64 i = threadIdx.x; i < n; i += blockDim.x) wrong |= found[i];
  wrong = block_sum(wrong, scratch);
  if (threadIdx.x) return;
  double scale = state[0], steps = wrong ? 0 : state[1] + 1;
  *unscale = wrong ? 0 : 1 / scale;
  if (wrong) {
    scale *= backoff;
    if (scale < SMALLEST_SCALE) scale = SMALLEST_SCALE;
  } else if (steps >= interval) {
    scale *= growth;
    steps = 0;
  }
  state[0] = scale;
  state[1] = steps;
}

// y = the scale: what a backward pass begins with
extern "C" __global__ void fill_scale(scalar_t* __restrict__ y, const double* __restrict__ state, i64 n) {
  GRID_STRIDE(i, n) store(y + i, (acc_t)state[0]);
}
