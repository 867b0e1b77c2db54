// y = f(x) and dx = dy f'(x), the functions of functions.cuh; one file is compiled for each -DFUNCTION and dtype.
// variants: scalar_t=float,double,f16,bf16; FUNCTION=RELU,LEAKY_RELU,ELU,SIGMOID,TANH,GELU,GELU_TANH,SOFTPLUS,EXP,LOG,SQRT,ABS,SQUARE,POW,NEG,AFFINE,CLIP
#include "functions.cuh"
#include "pack.cuh"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define ALONE JOIN(FUNCTION, _alone)
#define value JOIN(FUNCTION, _value)
#define gradient JOIN(FUNCTION, _gradient)

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
