// Batches of images straight from bytes on the device: gather, resize, scale.
// variants: scalar_t=float,double,f16,bf16
#include "common.cuh"

// One output row or column of a bilinear resize: pixels i0 and i1 with 11-bit weights w0 + w1 = 2048.
struct Tap {
  int i0, i1, w0, w1;
};

// y[n][r][c] = resize(images[index[n]])[r][c] / 255, in the integer arithmetic of ResizePlan: the bytes are those of the CPU.
// images: (count, h, w); index: (n); taps: oh rows, then ow columns; y: (n, 1, oh, ow). A bad index gives NaN.
extern "C" __global__ void gather_resize_scale(scalar_t* __restrict__ y, const u8* __restrict__ images,
                                               const i64* __restrict__ index, const Tap* __restrict__ taps, i64 count,
                                               int h, int w, int oh, int ow, i64 total) {
  GRID_STRIDE(i, total) {
    int c = (int)(i % ow);
    int r = (int)(i / ow % oh);
    i64 image = index[i / ((i64)oh * ow)];
    if (image < 0 || image >= count) {
      store(y + i, (acc_t)(0.0f / 0.0f));
      continue;
    }
    const u8* x = images + image * h * w;
    Tap row = taps[r], col = taps[oh + c];
    int h0 = (x[row.i0 * w + col.i0] * col.w0 + x[row.i0 * w + col.i1] * col.w1) >> 4;
    int h1 = (x[row.i1 * w + col.i0] * col.w0 + x[row.i1 * w + col.i1] * col.w1) >> 4;
    int byte = (((row.w0 * h0) >> 16) + ((row.w1 * h1) >> 16) + 2) >> 2;
    store(y + i, (acc_t)byte / (acc_t)255);
  }
}

// y[i] = labels[index[i]]; a bad index gives -1, which no loss accepts.
extern "C" __global__ void gather_labels(i64* __restrict__ y, const u8* __restrict__ labels, const i64* __restrict__ index,
                                         i64 count, i64 n) {
  GRID_STRIDE(i, n) y[i] = index[i] >= 0 && index[i] < count ? labels[index[i]] : -1;
}
