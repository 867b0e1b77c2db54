// loss = scale * (ln sum exp(x) - x[label]) for each row of logits, or with a distribution p of labels
// loss = scale * sum p (ln sum exp(x) - x). `log_probabilities`: x is normalized already and the logarithm is left out.
// For the backward pass stats (2, rows) keeps m = max x and ln s, s = sum exp(x - m).
// A label outside of 0 .. len-1 reads nothing: its loss and its row of the gradient are NaN.
// variants: scalar_t=float,double,f16,bf16; label_t=i64,u8
// variants: scalar_t=float; label_t=float
// variants: scalar_t=double; label_t=double
// variants: scalar_t=f16; label_t=f16
// variants: scalar_t=bf16; label_t=bf16
#include "rows.cuh"

__device__ __forceinline__ i64 class_of(i64 v, i64 len) { return v >= 0 && v < len ? v : -1; }
__device__ __forceinline__ i64 class_of(u8 v, i64 len) { return v < len ? v : -1; }
__device__ __forceinline__ i64 class_of(double v, i64 len) {
  return v >= 0 && v < (double)len && (double)(i64)v == v ? (i64)v : -1;
}
__device__ __forceinline__ i64 class_of(float v, i64 len) { return class_of((double)v, len); }

struct Stats {
  acc_t m, log_s;
};

__device__ __forceinline__ Stats row_stats(const scalar_t* x, i64 base, const Rows& r, acc_t* scratch) {
  acc_t m = NEG_INFINITY, s = 0;
  FOR_ELEMENTS(c, r) {
    acc_t v = load(x + base + c * r.inner);
    m = v > m ? v : m;
  }
  m = team_max(m, r.team, scratch);
  FOR_ELEMENTS(c, r) s += exp_(load(x + base + c * r.inner) - m);
  Stats t = {m, log_(team_sum(s, r.team, scratch))};
  return t;
}

// One row's loss goes to `loss` where a row is a sample, else to `row_loss` for `rows_mean`.
__device__ __forceinline__ void put(scalar_t* loss, acc_t* row_loss, i64 row, acc_t v, acc_t scale) {
  if (loss) store(loss + row, (acc_t)(scale * v));
  else row_loss[row] = v;
}

extern "C" __global__ void sparse_fwd(scalar_t* __restrict__ loss, acc_t* __restrict__ row_loss, acc_t* __restrict__ stats,
                                      const scalar_t* __restrict__ x, const label_t* __restrict__ label, Rows r,
                                      int log_probabilities, double scale) {
  __shared__ acc_t scratch[32];
  FOR_ROWS(row, r) {
    i64 base = row_base(row, r);
    Stats t = {0, 0};
    if (!log_probabilities) t = row_stats(x, base, r, scratch);
    if (threadIdx.x % r.team == 0) {
      i64 k = class_of(load(label + row), r.len);
      put(loss, row_loss, row, k < 0 ? NOT_A_NUMBER : t.log_s - (load(x + base + k * r.inner) - t.m), (acc_t)scale);
      stats[row] = t.m;
      stats[r.count + row] = t.log_s;
    }
  }
}

extern "C" __global__ void soft_fwd(scalar_t* __restrict__ loss, acc_t* __restrict__ row_loss, acc_t* __restrict__ stats,
                                    const scalar_t* __restrict__ x, const scalar_t* __restrict__ p, Rows r,
                                    int log_probabilities, double scale) {
  __shared__ acc_t scratch[32];
  FOR_ROWS(row, r) {
    i64 base = row_base(row, r);
    Stats t = {0, 0};
    if (!log_probabilities) t = row_stats(x, base, r, scratch);
    acc_t sum = 0;
    FOR_ELEMENTS(c, r) {
      i64 i = base + c * r.inner;
      acc_t q = load(p + i);
      if (q != 0) sum += q * (t.log_s - (load(x + i) - t.m));  // 0 ln 0 = 0
    }
    sum = team_sum(sum, r.team, scratch);
    if (threadIdx.x % r.team == 0) {
      put(loss, row_loss, row, sum, (acc_t)scale);
      stats[row] = t.m;
      stats[r.count + row] = t.log_s;
    }
  }
}

// loss[b] = scale * sum of row_loss (count, len) over its second axis
extern "C" __global__ void rows_mean(scalar_t* __restrict__ loss, const acc_t* __restrict__ row_loss, Rows r, double scale) {
  __shared__ acc_t scratch[32];
  FOR_ROWS(row, r) {
    acc_t sum = 0;
    FOR_ELEMENTS(c, r) sum += row_loss[row * r.len + c];
    sum = team_sum(sum, r.team, scratch);
    if (threadIdx.x % r.team == 0) store(loss + row, (acc_t)((acc_t)scale * sum));
  }
}

// dx = (softmax(x) - onehot(label)) dy[row / per] scale
extern "C" __global__ void sparse_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ x, const label_t* __restrict__ label,
                                      const acc_t* __restrict__ stats, const scalar_t* __restrict__ dy, Rows r, i64 per,
                                      int log_probabilities, double scale) {
  FOR_ROWS(row, r) {
    i64 base = row_base(row, r), k = class_of(load(label + row), r.len);
    acc_t g = k < 0 ? NOT_A_NUMBER : (acc_t)(load(dy + row / per) * (acc_t)scale), m = stats[row], log_s = stats[r.count + row];
    FOR_ELEMENTS(c, r) {
      i64 i = base + c * r.inner;
      acc_t q = log_probabilities ? (acc_t)0 : exp_(load(x + i) - m - log_s);
      store(dx + i, (acc_t)((q - (c == k ? 1 : 0)) * g));
    }
  }
}

// dx = (softmax(x) sum p - p) dy scale, dp = (ln sum exp(x) - x) dy scale; either may be null
extern "C" __global__ void soft_bwd(scalar_t* __restrict__ dx, scalar_t* __restrict__ dp, const scalar_t* __restrict__ x,
                                    const scalar_t* __restrict__ p, const acc_t* __restrict__ stats,
                                    const scalar_t* __restrict__ dy, Rows r, i64 per, int log_probabilities, double scale) {
  __shared__ acc_t scratch[32];
  FOR_ROWS(row, r) {
    i64 base = row_base(row, r);
    acc_t g = load(dy + row / per) * (acc_t)scale, m = stats[row], log_s = stats[r.count + row], sum = 0;
    FOR_ELEMENTS(c, r) sum += load(p + base + c * r.inner);
    sum = team_sum(sum, r.team, scratch);
    FOR_ELEMENTS(c, r) {
      i64 i = base + c * r.inner;
      acc_t d = load(x + i) - m - log_s;
      if (dx) store(dx + i, (acc_t)(((log_probabilities ? (acc_t)0 : exp_(d) * sum) - load(p + i)) * g));
      if (dp) store(dp + i, (acc_t)(-d * g));
    }
  }
}
