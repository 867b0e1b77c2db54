// Batches of images straight from bytes on the device: gather, resize, scale, and the labels in the same pass.
// Bytes: S for each output element of S bytes, and an image's own (784 for 28 x 28) once for each block.
// variants: scalar_t=float,double,f16,bf16
#include "pack.cuh"

// One output row or column of a bilinear resize: pixels i0 and i1 with 11-bit weights w0 + w1 = 2048.
struct Tap {
  int i0, i1, w0, w1;
};

struct Images {
  i64 count;  // in the set
  int h, w, oh, ow;
  int staged;  // stretched rows fit shared memory
};

// A byte / 255, rounded once: the second step takes the first one's error away.
__device__ __forceinline__ float scaled(int byte) {
  const float part = 1.0f / 255.0f, q = byte * part;
  return fmaf(fmaf(-q, 255.0f, (float)byte), part, q);
}
template <class T> __device__ __forceinline__ T unit_of(int byte);
template <> __device__ __forceinline__ float unit_of<float>(int byte) { return scaled(byte); }
template <> __device__ __forceinline__ double unit_of<double>(int byte) { return byte / 255.0; }

__device__ __forceinline__ int stretched(const u8* image, int row, const Tap& col, int w) {
  return (image[row * w + col.i0] * col.w0 + image[row * w + col.i1] * col.w1) >> 4;  // at most 255 * 2048 / 16
}
__device__ __forceinline__ int blended(const Tap& row, int h0, int h1) {
  return (((row.w0 * h0) >> 16) + ((row.w1 * h1) >> 16) + 2) >> 2;
}

// y[n][r][c] = resize(images[index[n]])[r][c] / 255, in the integer arithmetic of ResizePlan: the bytes are those of the CPU.
// images (count, h, w); index (n); taps: oh rows, then ow columns; y (n, 1, oh, ow). Block (n, part) has some rows of an image.
// Its source rows are stretched to ow columns once, in shared memory. target[n] = labels[index[n]].
// A bad index gives NaN, and the label -1, which no loss accepts.
extern "C" __global__ void __launch_bounds__(256)
    gather_resize_scale(scalar_t* __restrict__ y, i64* __restrict__ target, const u8* __restrict__ images,
                        const u8* __restrict__ labels, const i64* __restrict__ index, const Tap* __restrict__ taps, const Images s) {
  extern __shared__ unsigned short stretched_rows[];  // (h, ow)
  const i64 n = blockIdx.x, image = index[n];
  const bool good = image >= 0 && image < s.count;
  const u8* x = images + (good ? image : 0) * s.h * s.w;
  if (blockIdx.y == 0 && threadIdx.x == 0) target[n] = good ? labels[image] : -1;
  const int begin = (int)((i64)s.oh * blockIdx.y / gridDim.y), end = (int)((i64)s.oh * (blockIdx.y + 1) / gridDim.y);
  if (s.staged) {
    for (int i = threadIdx.x; i < s.h * s.ow; i += 256) {
      int r = i / s.ow, c = i - r * s.ow;
      stretched_rows[i] = (unsigned short)stretched(x, r, taps[s.oh + c], s.w);
    }
    __syncthreads();
  }
  scalar_t* to = y + n * s.oh * s.ow;
  // Packs where rows are made of them.
  const int step = s.ow % PACK ? 1 : PACK, packs = s.ow / step;
  for (int i = threadIdx.x; i < (end - begin) * packs; i += 256) {
    const int line = i / packs, r = begin + line, c = (i - line * packs) * step;
    const Tap row = taps[r];
    acc_t v[PACK];
#pragma unroll
    for (int k = 0; k < PACK; ++k) {
      if (k >= step) break;
      int h0, h1;
      if (s.staged) {
        h0 = stretched_rows[row.i0 * s.ow + c + k];
        h1 = stretched_rows[row.i1 * s.ow + c + k];
      } else {
        const Tap col = taps[s.oh + c + k];
        h0 = stretched(x, row.i0, col, s.w);
        h1 = stretched(x, row.i1, col, s.w);
      }
      v[k] = good ? unit_of<acc_t>(blended(row, h0, h1)) : (acc_t)__uint_as_float(0x7fffffffu);
    }
    scalar_t* p = to + (i64)r * s.ow + c;
    if (step == 1) store(p, v[0]);
    else store_pack(p, v);
  }
}
