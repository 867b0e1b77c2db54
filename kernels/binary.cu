// y = f(a, b) with broadcasting, and the gradients before they are summed over stretched axes.
// One file is compiled for each -DFUNCTION and dtype. Integers wrap around; x / 0 = 0 there.
// variants: scalar_t=float,double,f16,bf16,u8,i64; FUNCTION=ADD,SUB,MUL,DIV,POWER,MAXIMUM,MINIMUM,EQ,NE,LT,LE,GT,GE
#include "broadcast.cuh"
#include "pack.cuh"

enum { ADD, SUB, MUL, DIV, POWER, MAXIMUM, MINIMUM, EQ, NE, LT, LE, GT, GE };

// Unsigned arithmetic, since signed overflow is undefined.
typedef unsigned long long u64;
__device__ __forceinline__ float add_(float a, float b) { return a + b; }
__device__ __forceinline__ double add_(double a, double b) { return a + b; }
__device__ __forceinline__ i64 add_(i64 a, i64 b) { return (i64)((u64)a + (u64)b); }
__device__ __forceinline__ u8 add_(u8 a, u8 b) { return (u8)(a + b); }
__device__ __forceinline__ float sub_(float a, float b) { return a - b; }
__device__ __forceinline__ double sub_(double a, double b) { return a - b; }
__device__ __forceinline__ i64 sub_(i64 a, i64 b) { return (i64)((u64)a - (u64)b); }
__device__ __forceinline__ u8 sub_(u8 a, u8 b) { return (u8)(a - b); }
__device__ __forceinline__ float mul_(float a, float b) { return a * b; }
__device__ __forceinline__ double mul_(double a, double b) { return a * b; }
__device__ __forceinline__ i64 mul_(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }
__device__ __forceinline__ u8 mul_(u8 a, u8 b) { return (u8)(a * b); }
__device__ __forceinline__ float div_(float a, float b) { return a / b; }
__device__ __forceinline__ double div_(double a, double b) { return a / b; }
__device__ __forceinline__ i64 div_(i64 a, i64 b) { return b == 0 ? 0 : b == -1 ? sub_((i64)0, a) : a / b; }
__device__ __forceinline__ u8 div_(u8 a, u8 b) { return b == 0 ? (u8)0 : (u8)(a / b); }
__device__ __forceinline__ float pow_(float a, float b) { return powf(a, b); }
__device__ __forceinline__ double pow_(double a, double b) { return pow(a, b); }
__device__ __forceinline__ i64 pow_(i64, i64) { return 0; }  // refused on the host
__device__ __forceinline__ u8 pow_(u8, u8) { return 0; }
__device__ __forceinline__ float log_(float a) { return logf(a); }
__device__ __forceinline__ double log_(double a) { return log(a); }
__device__ __forceinline__ acc_t log_or_0(float a) { return (acc_t)log_(a); }
__device__ __forceinline__ acc_t log_or_0(double a) { return (acc_t)log_(a); }
__device__ __forceinline__ acc_t log_or_0(i64) { return 0; }
__device__ __forceinline__ acc_t log_or_0(u8) { return 0; }

// True where the extremum of a and b is a: ties go to a, NaN wins.
__device__ __forceinline__ bool takes_a(acc_t a, acc_t b) {
  return (FUNCTION == MAXIMUM ? a >= b : a <= b) || a != a;
}

__device__ __forceinline__ acc_t value(acc_t a, acc_t b) {
  switch (FUNCTION) {
    case ADD: return add_(a, b);
    case SUB: return sub_(a, b);
    case MUL: return mul_(a, b);
    case DIV: return div_(a, b);
    case POWER: return pow_(a, b);
    case MAXIMUM:
    case MINIMUM: return takes_a(a, b) ? a : b;
    case EQ: return a == b;
    case NE: return a != b;
    case LT: return a < b;
    case LE: return a <= b;
    case GT: return a > b;
    default: return a >= b;  // GE
  }
}

// dy * df/da (side 0) or dy * df/db (side 1), for the functions whose gradient is not itself one of the above.
__device__ __forceinline__ acc_t gradient(acc_t dy, acc_t a, acc_t b, int side) {
  switch (FUNCTION) {
    case DIV: return side == 0 ? div_(dy, b) : mul_(sub_((acc_t)0, dy), div_(div_(a, b), b));  // a / b first: dy / b may be infinite where a is 0
    case POWER:
      if (side == 0) return b == 0 ? (acc_t)0 : mul_(dy, mul_(b, pow_(a, sub_(b, (acc_t)1))));
      return a == 0 && (b > 0 || b == 0) ? (acc_t)0 : mul_(dy, mul_(pow_(a, b), log_or_0(a)));
    default: return takes_a(a, b) == (side == 0) ? dy : (acc_t)0;  // MAXIMUM, MINIMUM
  }
}

__device__ __forceinline__ void load_or_splat(acc_t (&v)[PACK], const scalar_t* p, int step) {
  if (step) {
    load_pack(v, p);
    return;
  }
  v[0] = load(p);
#pragma unroll
  for (int k = 1; k < PACK; ++k) v[k] = v[0];
}

// y (dense) = f(a, b); w has the strides of a and b
extern "C" __global__ void binary_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ a,
                                      const scalar_t* __restrict__ b, Walk w, i64 n) {
  GRID_STRIDE(i, n) {
    i64 at[2];
    offsets(i, w, at);
    store(y + i, value(load(a + at[0]), load(b + at[1])));
  }
}

// The same where the innermost axis is whole packs: along it an operand goes on (step 1), from a multiple of a pack, or stays
// (step 0). Such are biases. Bytes for each element of S bytes: 2 S with a stretched operand, which comes from the caches.
extern "C" __global__ void binary_rows(scalar_t* __restrict__ y, const scalar_t* __restrict__ a, const scalar_t* __restrict__ b,
                                       const __grid_constant__ Walk w, int a_step, int b_step, i64 n) {
  FOR_PACKS(i, n, PACK) {
    i64 at[2];
    acc_t u[PACK], v[PACK];
    offsets(i, w, at);
    load_or_splat(u, a + at[0], a_step);
    load_or_splat(v, b + at[1], b_step);
#pragma unroll
    for (int k = 0; k < PACK; ++k) u[k] = value(u[k], v[k]);
    store_pack(y + i, u);
  }
}

// y = f(a, b), all three of one shape in one memory order; 3 S bytes for each element
extern "C" __global__ void binary_same(scalar_t* __restrict__ y, const scalar_t* __restrict__ a, const scalar_t* __restrict__ b,
                                       i64 n) {
  FOR_PACKS(i, n, PACK) {
    acc_t u[PACK], v[PACK];
    load_pack(u, a + i);
    load_pack(v, b + i);
#pragma unroll
    for (int k = 0; k < PACK; ++k) u[k] = value(u[k], v[k]);
    store_pack(y + i, u);
  }
  FOR_REST(i, n, PACK) store(y + i, value(load(a + i), load(b + i)));
}

// g (dense, the output's shape) = dy * df/d(side); w has the strides of dy, a and b
extern "C" __global__ void binary_bwd(scalar_t* __restrict__ g, const scalar_t* __restrict__ dy,
                                      const scalar_t* __restrict__ a, const scalar_t* __restrict__ b, Walk w, int side,
                                      i64 n) {
  GRID_STRIDE(i, n) {
    i64 at[3];
    offsets(i, w, at);
    store(g + i, gradient(load(dy + at[0]), load(a + at[1]), load(b + at[2]), side));
  }
}

// The same where the innermost axis is whole packs, as in binary_rows; 3 S bytes for each element with a stretched operand
extern "C" __global__ void binary_bwd_rows(scalar_t* __restrict__ g, const scalar_t* __restrict__ dy, const scalar_t* __restrict__ a,
                                           const scalar_t* __restrict__ b, const __grid_constant__ Walk w, int a_step, int b_step,
                                           int side, i64 n) {
  FOR_PACKS(i, n, PACK) {
    i64 at[3];
    acc_t d[PACK], u[PACK], v[PACK];
    offsets(i, w, at);
    load_pack(d, dy + at[0]);
    load_or_splat(u, a + at[1], a_step);
    load_or_splat(v, b + at[2], b_step);
#pragma unroll
    for (int k = 0; k < PACK; ++k) d[k] = gradient(d[k], u[k], v[k], side);
    store_pack(g + i, d);
  }
}

// The same for four arrays of one shape in one memory order; 4 S bytes for each element
extern "C" __global__ void binary_bwd_same(scalar_t* __restrict__ g, const scalar_t* __restrict__ dy,
                                           const scalar_t* __restrict__ a, const scalar_t* __restrict__ b, int side, i64 n) {
  FOR_PACKS(i, n, PACK) {
    acc_t d[PACK], u[PACK], v[PACK];
    load_pack(d, dy + i);
    load_pack(u, a + i);
    load_pack(v, b + i);
#pragma unroll
    for (int k = 0; k < PACK; ++k) d[k] = gradient(d[k], u[k], v[k], side);
    store_pack(g + i, d);
  }
  FOR_REST(i, n, PACK) store(g + i, gradient(load(dy + i), load(a + i), load(b + i), side));
}

// y = f(x, s), or f(s, x) when flipped
extern "C" __global__ void scalar_fwd(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, double s, int flipped,
                                      i64 n) {
  acc_t c = (acc_t)s;
  FOR_PACKS(i, n, PACK) {
    acc_t v[PACK];
    load_pack(v, x + i);
#pragma unroll
    for (int k = 0; k < PACK; ++k) v[k] = flipped ? value(c, v[k]) : value(v[k], c);
    store_pack(y + i, v);
  }
  FOR_REST(i, n, PACK) {
    acc_t v = load(x + i);
    store(y + i, flipped ? value(c, v) : value(v, c));
  }
}

// dx = dy * df/dx for the same; dy and x in one memory order
extern "C" __global__ void scalar_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy,
                                      const scalar_t* __restrict__ x, double s, int flipped, i64 n) {
  acc_t c = (acc_t)s;
  FOR_PACKS(i, n, PACK) {
    acc_t v[PACK], d[PACK];
    load_pack(v, x + i);
    load_pack(d, dy + i);
#pragma unroll
    for (int k = 0; k < PACK; ++k) d[k] = flipped ? gradient(d[k], c, v[k], 1) : gradient(d[k], v[k], c, 0);
    store_pack(dx + i, d);
  }
  FOR_REST(i, n, PACK) {
    acc_t v = load(x + i), d = load(dy + i);
    store(dx + i, flipped ? gradient(d, c, v, 1) : gradient(d, v, c, 0));
  }
}
