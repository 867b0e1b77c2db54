// The mean over whole planes and its gradient. Bytes for elements of S bytes: S for each of x or dx. Sums are double: those of large
// f32 values would overflow where their mean does not.
// variants: scalar_t=float,double,f16,bf16
#include "pack.cuh"

// y[plane] = the mean of a row-major plane, x (planes, size): `team` threads each, a power of two up to 32.
extern "C" __global__ void __launch_bounds__(256)
    global_avg_rows(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, i64 planes, i64 size, int team) {
  const int lane = threadIdx.x % team;
  const double part = reciprocal((double)size);
  const i64 turn = (i64)gridDim.x * 256 / team, last = (planes + turn - 1) / turn * turn;
  const i64 packed = size % PACK ? 0 : size;  // else planes begin inside of 16 bytes
  // All threads of a warp go round together, since they meet in shuffles.
  for (i64 p = ((i64)blockIdx.x * 256 + threadIdx.x) / team; p < last; p += turn) {
    double sum = 0;
    if (p < planes) {
      const scalar_t* plane = x + p * size;
#pragma unroll 4
      for (i64 i = (i64)lane * PACK; i < packed; i += (i64)team * PACK) {
        acc_t v[PACK];
        load_pack(v, plane + i);
#pragma unroll
        for (int k = 0; k < PACK; ++k) sum += v[k];
      }
      for (i64 i = packed + lane; i < size; i += team) sum += load(plane + i);
    }
    for (int m = team / 2; m; m /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, m);
    if (p < planes && lane == 0) store(y + p, (acc_t)(sum * part));
  }
}

// y[image][c] = the mean over the pixels of channels-last memory, x (images, size, channels): a block has up to 32 groups of N
// neighbouring channels of one image (`lanes`, a power of two), its other threads other pixels.
template <int N>
__device__ __forceinline__ void columns(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, i64 size, i64 channels,
                                        int lanes) {
  __shared__ double parts[N][256];
  const double part = reciprocal((double)size);
  const int lane = threadIdx.x % lanes, groups = 256 / lanes;
  const i64 c = ((i64)blockIdx.y * lanes + lane) * N, image = blockIdx.x;
  double sum[N];
#pragma unroll
  for (int k = 0; k < N; ++k) sum[k] = 0;
  if (c < channels) {
#pragma unroll 4
    for (i64 p = threadIdx.x / lanes; p < size; p += groups) {
      acc_t v[N];
      load_some(v, x + (image * size + p) * channels + c);
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] += v[k];
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) parts[k][threadIdx.x] = sum[k];
  for (int half = groups / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half * lanes)
#pragma unroll
      for (int k = 0; k < N; ++k) parts[k][threadIdx.x] += parts[k][threadIdx.x + half * lanes];
  }
  if (threadIdx.x < lanes && c < channels)
#pragma unroll
    for (int k = 0; k < N; ++k) store(y + image * channels + c + k, (acc_t)(parts[k][threadIdx.x] * part));
}
extern "C" __global__ void __launch_bounds__(256)
    global_avg_columns_packed(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, i64 size, i64 channels, int lanes) {
  columns<PACK>(y, x, size, channels, lanes);
}
extern "C" __global__ void __launch_bounds__(256)
    global_avg_columns(scalar_t* __restrict__ y, const scalar_t* __restrict__ x, i64 size, i64 channels, int lanes) {
  columns<1>(y, x, size, channels, lanes);
}

// dx = dy / size, row-major: dy (planes), dx (planes, size). A pack may reach over several planes.
extern "C" __global__ void global_avg_rows_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, i64 n, i64 size) {
  const acc_t part = reciprocal((acc_t)size);
  FOR_PACKS(i, n, PACK) {
    i64 plane = quotient(i, size), left = size - (i - plane * size);
    acc_t v[PACK], d = load(dy + plane) * part;
#pragma unroll
    for (int k = 0; k < PACK; ++k) {
      if (k == left) {
        d = load(dy + ++plane) * part;
        left += size;
      }
      v[k] = d;
    }
    store_pack(dx + i, v);
  }
  FOR_REST(i, n, PACK) store(dx + i, (acc_t)(load(dy + quotient(i, size)) * part));
}

// The same in channels-last memory: dy (images, channels), dx (images, size, channels). A thread has N channels and writes them
// to every so many-th pixel of an image.
template <int N>
__device__ __forceinline__ void columns_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, i64 size, i64 channels,
                                            int lanes) {
  const int lane = threadIdx.x % lanes, groups = 256 / lanes;
  const i64 c = ((i64)blockIdx.y * lanes + lane) * N, image = blockIdx.x;
  if (c >= channels) return;
  const acc_t part = reciprocal((acc_t)size);
  acc_t v[N];
  load_some(v, dy + image * channels + c);
#pragma unroll
  for (int k = 0; k < N; ++k) v[k] *= part;
  for (i64 p = (i64)blockIdx.z * groups + threadIdx.x / lanes; p < size; p += (i64)gridDim.z * groups) {
    scalar_t* to = dx + (image * size + p) * channels + c;
    if constexpr (N > 1) store_pack(to, v);
    else store(to, v[0]);
  }
}
extern "C" __global__ void __launch_bounds__(256)
    global_avg_columns_packed_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, i64 size, i64 channels, int lanes) {
  columns_bwd<PACK>(dx, dy, size, channels, lanes);
}
extern "C" __global__ void __launch_bounds__(256)
    global_avg_columns_bwd(scalar_t* __restrict__ dx, const scalar_t* __restrict__ dy, i64 size, i64 channels, int lanes) {
  columns_bwd<1>(dx, dy, size, channels, lanes);
}
