// loss = scale * (ln sum exp(x) - x[label]) for each row of logits, or with a distribution p of labels
// loss = scale * sum p (ln sum exp(x) - x), and in the same pass the gradient for dy = 1,
// dx = (softmax(x) - onehot(label)) scale or (softmax(x) sum p - p) scale. `normalized`: x is ln softmax already; then the
// logarithm is left out, and softmax's part of the gradient too.
// With dy (one for each sample of `per` rows) dx, and dp = (ln sum exp(x) - x) dy scale, are multiplied with it before they are
// rounded. loss, dx and dp may be null. A label outside of 0 .. len-1 reads nothing: its loss and its row of dx are NaN.
// Bytes for each logit of S bytes: S without dx, 2 S with it; twice as many reads with p.
// variants: scalar_t=float,double,f16,bf16; label_t=i64,u8
// variants: scalar_t=float; label_t=float
// variants: scalar_t=double; label_t=double
// variants: scalar_t=f16; label_t=f16
// variants: scalar_t=bf16; label_t=bf16
#include "pack.cuh"
#include "rows.cuh"

__device__ __forceinline__ i64 class_of(i64 v, i64 len) { return v >= 0 && v < len ? v : -1; }
__device__ __forceinline__ i64 class_of(u8 v, i64 len) { return v < len ? v : -1; }
__device__ __forceinline__ i64 class_of(double v, i64 len) {
  return v >= 0 && v < (double)len && (double)(i64)v == v ? (i64)v : -1;
}
__device__ __forceinline__ i64 class_of(float v, i64 len) { return class_of((double)v, len); }

// What all kernels are told beside the logits and the labels.
struct Task {
  acc_t* loss;          // (rows)
  scalar_t* dx;         // as x
  scalar_t* dp;         // as x
  const acc_t* dy;      // (samples)
  double loss_scale;    // on each row's loss
  double scale;         // on the gradients
  i64 per;
  i64 normalized;
};

// The factor on a row's gradients.
__device__ __forceinline__ acc_t factor(const Task& t, i64 row) {
  return t.dy ? (acc_t)(t.dy[row / t.per] * (acc_t)t.scale) : (acc_t)t.scale;
}

// Elements of a tile of short rows. Labels that are distributions take as much memory again.
template <bool SOFT> struct Tile {
  static constexpr int SIZE = SOFT ? 2048 : 4096;
};

// n elements from global to shared memory, or back; `global` is aligned.
__device__ __forceinline__ void copy(scalar_t* to, const scalar_t* from, int n) {
  for (int i = threadIdx.x * PACK; i + PACK <= n; i += 256 * PACK) *(uint4*)(to + i) = *(const uint4*)(from + i);
  const int rest = n / PACK * PACK + threadIdx.x;
  if (rest < n) to[rest] = from[rest];
}

// Over the r.team threads of a row, up to 32, neighbours in a warp.
__device__ __forceinline__ acc_t few_sum(acc_t v, int team) {
  for (int m = team / 2; m; m /= 2) v += __shfl_xor_sync(0xffffffffu, v, m);
  return v;
}
__device__ __forceinline__ acc_t few_max(acc_t v, int team) {
  for (int m = team / 2; m; m /= 2) {
    acc_t o = __shfl_xor_sync(0xffffffffu, v, m);
    v = o > v ? o : v;
  }
  return v;
}

// Short contiguous rows: a block moves `tile` rows (a multiple of 8, at most SIZE elements) through shared memory, 16 bytes at
// a time whatever their length, and a few neighbouring threads share each, with up to four elements in each thread.
template <bool SOFT, class L>
__device__ __forceinline__ void short_rows(const Task& t, const scalar_t* __restrict__ x, const L* __restrict__ label, const Rows& r,
                                           int tile) {
  __shared__ __align__(16) scalar_t xs[Tile<SOFT>::SIZE];
  __shared__ __align__(16) scalar_t ps[SOFT ? Tile<SOFT>::SIZE : 1];
  const int team = (int)r.team, len = (int)r.len, lane = threadIdx.x % team, turn = 256 / team;
  for (i64 first = (i64)blockIdx.x * tile; first < r.count; first += (i64)gridDim.x * tile) {
    const int rows = (int)(r.count - first < tile ? r.count - first : tile), n = rows * len;
    copy(xs, x + first * len, n);
    if (SOFT) copy(ps, (const scalar_t*)label + first * len, n);
    __syncthreads();
    // All threads of a warp go round together, since they meet in shuffles.
    for (int begin = 0; begin < rows; begin += turn) {
      const int local = begin + threadIdx.x / team, at = local * len;
      const bool mine = local < rows;
      acc_t v[4], e[4], m = NEG_INFINITY, s = 0, sum_p = 1, loss = 0, log_s = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int c = lane + j * team;
        v[j] = mine && c < len ? load(xs + at + c) : NEG_INFINITY;
        m = v[j] > m ? v[j] : m;
      }
      m = t.normalized ? (acc_t)0 : few_max(m, team);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int c = lane + j * team;
        e[j] = !t.normalized && mine && c < len ? exp_(v[j] - m) : (acc_t)0;
        s += e[j];
      }
      if (!t.normalized) {
        s = few_sum(s, team);
        log_s = log_(s);
      }
      acc_t inverse = t.normalized ? (acc_t)0 : reciprocal(s), g = mine ? factor(t, first + local) : (acc_t)0;
      int k = -1;
      if (SOFT) {
        sum_p = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          int c = lane + j * team;
          acc_t q = mine && c < len ? load(ps + at + c) : (acc_t)0;
          sum_p += q;
          if (q != 0) loss += q * (log_s - (v[j] - m));  // 0 ln 0 = 0
        }
        sum_p = few_sum(sum_p, team);
        loss = few_sum(loss, team);
      } else if (mine) {
        k = (int)class_of(load(label + first + local), r.len);
        loss = k < 0 ? NOT_A_NUMBER : log_s - (load(xs + at + k) - m);
        if (k < 0) g = NOT_A_NUMBER;
      }
      __syncwarp();  // a neighbour's logit has been read before it is overwritten
      if (!mine) continue;
      if (t.loss && lane == 0) t.loss[first + local] = (acc_t)t.loss_scale * loss;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int c = lane + j * team;
        if (c >= len) continue;
        acc_t target = SOFT ? load(ps + at + c) : (acc_t)(c == k);
        if (SOFT && t.dp) store(ps + at + c, (acc_t)((log_s - (v[j] - m)) * g));
        if (t.dx) store(xs + at + c, (acc_t)((e[j] * inverse * sum_p - target) * g));
      }
    }
    __syncthreads();
    if (t.dx) copy(t.dx + first * len, xs, n);
    if (SOFT && t.dp) copy(t.dp + first * len, ps, n);
    __syncthreads();  // the next tile overwrites what is still being copied
  }
}

// The sum of exp(x - m) over some elements with m their maximum, brought up to date as elements come.
struct Online {
  acc_t m, s;
};
__device__ __forceinline__ void include(Online& o, acc_t v) {
  if (v == NEG_INFINITY) return;
  acc_t d = v - o.m, e = exp_(d > 0 ? -d : d);
  o.s = d > 0 ? o.s * e + 1 : o.s + e;
  if (d > 0) o.m = v;
}
template <int N> __device__ __forceinline__ void include(Online& o, const acc_t (&v)[N]) {
  acc_t m = o.m, s = 0;
#pragma unroll
  for (int k = 0; k < N; ++k) m = v[k] > m ? v[k] : m;
  acc_t from = m == NEG_INFINITY ? (acc_t)0 : m;
#pragma unroll
  for (int k = 0; k < N; ++k) s += exp_(v[k] - from);
  if (m != o.m) o.s *= exp_(o.m - from);
  o.m = m;
  o.s += s;
}

// Long rows and rows whose elements are apart: a team (a thread, a warp or a block) reads its row twice, the second time, for
// the gradient, from the caches.
template <bool SOFT, class L>
__device__ __forceinline__ void long_rows(const Task& t, const scalar_t* __restrict__ x, const L* __restrict__ label,
                                          const Rows& r) {
  __shared__ acc_t scratch[32];
  const scalar_t* p = (const scalar_t*)label;
  const i64 lane = threadIdx.x % r.team;
  FOR_ROWS(row, r) {
    const i64 base = row_base(row, r);
    // Elements before the first 16-byte boundary, whole packs, the rest; rows whose elements are apart have no packs.
    i64 head = r.len, packs = 0;
    if (r.inner == 1) {
      head = (PACK - base % PACK) % PACK;
      head = head < r.len ? head : r.len;
      packs = (r.len - head) / PACK;
    }
    const i64 packed = packs * PACK, singles = r.len - packed;
    Online o = {NEG_INFINITY, 0};
    acc_t sum_p = 0;
    if (!t.normalized || SOFT) {
      for (i64 u = lane; u < singles; u += r.team) {
        const i64 c = u < head ? u : u + packed;
        if (!t.normalized) include(o, load(x + base + c * r.inner));
        if (SOFT) sum_p += load(p + base + c * r.inner);
      }
      for (i64 i = lane; i < packs; i += r.team) {
        acc_t v[PACK];
        if (!t.normalized) {
          load_pack(v, x + base + head + i * PACK);
          include(o, v);
        }
        if (SOFT) {
          load_pack(v, p + base + head + i * PACK);
#pragma unroll
          for (int k = 0; k < PACK; ++k) sum_p += v[k];
        }
      }
    }
    acc_t m = 0, log_s = 0, inverse = 0;
    if (!t.normalized) {
      m = team_max(o.m, r.team, scratch);
      acc_t s = team_sum(o.s == 0 ? (acc_t)0 : o.s * exp_(o.m - m), r.team, scratch);
      log_s = log_(s);
      inverse = reciprocal(s);  // s is at least 1
    }
    sum_p = SOFT ? team_sum(sum_p, r.team, scratch) : (acc_t)1;
    acc_t g = factor(t, row), loss = 0;
    i64 k = -1;
    if (!SOFT) {
      k = class_of(load(label + row), r.len);
      loss = k < 0 ? NOT_A_NUMBER : log_s - (load(x + base + k * r.inner) - m);
      if (k < 0) g = NOT_A_NUMBER;
    }
    if (SOFT || t.dx) {
      for (i64 u = lane; u < singles; u += r.team) {
        const i64 c = u < head ? u : u + packed, i = base + c * r.inner;
        acc_t d = load(x + i) - m, target = SOFT ? load(p + i) : (acc_t)(c == k);
        if (SOFT && target != 0) loss += target * (log_s - d);  // 0 ln 0 = 0
        if (t.dx) store(t.dx + i, (acc_t)(((t.normalized ? (acc_t)0 : exp_(d) * inverse * sum_p) - target) * g));
        if (SOFT && t.dp) store(t.dp + i, (acc_t)((log_s - d) * g));
      }
      for (i64 i = lane; i < packs; i += r.team) {
        const i64 c = head + i * PACK;
        acc_t d[PACK], target[PACK];
        load_pack(d, x + base + c);
        if (SOFT) load_pack(target, p + base + c);
#pragma unroll
        for (int j = 0; j < PACK; ++j) {
          d[j] -= m;
          if (!SOFT) target[j] = (acc_t)(c + j == k);
          if (SOFT && target[j] != 0) loss += target[j] * (log_s - d[j]);
          target[j] = ((t.normalized ? (acc_t)0 : exp_(d[j]) * inverse * sum_p) - target[j]) * g;
          d[j] = (log_s - d[j]) * g;
        }
        if (t.dx) store_whole_pack(t.dx + base + c, target);
        if (SOFT && t.dp) store_whole_pack(t.dp + base + c, d);
      }
    }
    if (SOFT) loss = team_sum(loss, r.team, scratch);
    if (t.loss && lane == 0) t.loss[row] = (acc_t)t.loss_scale * loss;
  }
}

extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 4)
    sparse_short(const Task t, const scalar_t* __restrict__ x, const label_t* __restrict__ label, const Rows r, int tile) {
  short_rows<false>(t, x, label, r, tile);
}
extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 4)
    sparse_long(const Task t, const scalar_t* __restrict__ x, const label_t* __restrict__ label, const Rows r) {
  long_rows<false>(t, x, label, r);
}
extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 4)
    soft_short(const Task t, const scalar_t* __restrict__ x, const scalar_t* __restrict__ p, const Rows r, int tile) {
  short_rows<true>(t, x, p, r, tile);
}
extern "C" __global__ void __launch_bounds__(256, sizeof(scalar_t) == 8 ? 2 : 4)
    soft_long(const Task t, const scalar_t* __restrict__ x, const scalar_t* __restrict__ p, const Rows r) {
  long_rows<true>(t, x, p, r);
}

// loss[b] = scale * sum of row_loss (count, len) over its second axis
extern "C" __global__ void rows_mean(acc_t* __restrict__ loss, const acc_t* __restrict__ row_loss, Rows r, double scale) {
  __shared__ acc_t scratch[32];
  FOR_ROWS(row, r) {
    acc_t sum = 0;
    FOR_ELEMENTS(c, r) sum += row_loss[row * r.len + c];
    sum = team_sum(sum, r.team, scratch);
    if (threadIdx.x % r.team == 0) loss[row] = (acc_t)scale * sum;
  }
}

// dx = g dy[i / size]: the gradient of the forward pass, scaled; 2 S bytes for each element
extern "C" __global__ void scale_samples(scalar_t* __restrict__ dx, const scalar_t* __restrict__ g, const acc_t* __restrict__ dy,
                                         i64 size, i64 n) {
  FOR_PACKS(i, n, PACK) {
    i64 sample = quotient(i, size), left = size - (i - sample * size);
    acc_t v[PACK], f = dy[sample];
    load_pack(v, g + i);
#pragma unroll
    for (int k = 0; k < PACK; ++k) {
      if (k == left) {
        f = dy[++sample];
        left += size;
      }
      v[k] *= f;
    }
    store_pack(dx + i, v);
  }
  FOR_REST(i, n, PACK) store(dx + i, (acc_t)(load(g + i) * dy[quotient(i, size)]));
}
