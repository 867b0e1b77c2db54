// y = exp(x - m) / s or, with `log`, y = x - m - ln s, along one axis; m = max x, s = sum exp(x - m).
// variants: scalar_t=float,double,f16,bf16
#include "rows.cuh"

extern "C" __global__ void softmax_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, Rows r, int log) {
  __shared__ acc_t scratch[32];
  FOR_ROWS(row, r) {
    i64 base = row_base(row, r);
    acc_t m = NEG_INFINITY, s = 0;
    FOR_ELEMENTS(c, r) {
      acc_t v = load(x + base + c * r.inner);
      m = v > m ? v : m;
    }
    m = team_max(m, r.team, scratch);
    FOR_ELEMENTS(c, r) s += exp_(load(x + base + c * r.inner) - m);
    s = team_sum(s, r.team, scratch);
    acc_t log_s = log_(s), inverse = 1 / s;
    FOR_ELEMENTS(c, r) {
      acc_t d = load(x + base + c * r.inner) - m;
      store(y + base + c * r.inner, log ? (acc_t)(d - log_s) : (acc_t)(exp_(d) * inverse));
    }
  }
}

// dx = y (dy - sum y dy), or with `log` dx = dy - exp(y) sum dy
extern "C" __global__ void softmax_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ y,
                                       const scalar_t* __restrict__ dy, Rows r, int log) {
  __shared__ acc_t scratch[32];
  FOR_ROWS(row, r) {
    i64 base = row_base(row, r);
    acc_t s = 0;
    FOR_ELEMENTS(c, r) {
      i64 i = base + c * r.inner;
      s += log ? load(dy + i) : (acc_t)(load(dy + i) * load(y + i));
    }
    s = team_sum(s, r.team, scratch);
    FOR_ELEMENTS(c, r) {
      i64 i = base + c * r.inner;
      acc_t v = load(y + i), g = load(dy + i);
      store(dx + i, log ? (acc_t)(g - exp_(v) * s) : (acc_t)(v * (g - s)));
    }
  }
}
