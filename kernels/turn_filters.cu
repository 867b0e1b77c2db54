// Filters for the gradient of images by wgmma in tf32, which reads operands along k only: filters o next to each other, and the taps
// from the last to the first, so that the gradient is a forward convolution of dy (that of stride 1; else each phase is one).
//
//   turned(c, taps - 1 - tap, o) = w(o, c, tap)
// variants: scalar_t=float
#include "pack.cuh"

#define SIDE 64

// w (o, c, taps), or with channels_last (o, taps, c): o rows of c * taps columns, both multiples of 4. A block has SIDE x SIDE of them.
extern "C" __global__ void __launch_bounds__(256)
    turn_filters(scalar_t* __restrict__ turned, const scalar_t* __restrict__ w, int o, int c, int taps, int channels_last) {
  enum { QUADS = SIDE / PACK };
  __shared__ acc_t tile[SIDE][SIDE + 1];
  const int cols = c * taps, tiles_o = (o + SIDE - 1) / SIDE, tile_j = blockIdx.x / tiles_o;
  const int o0 = (blockIdx.x - tile_j * tiles_o) * SIDE, j0 = tile_j * SIDE;
#pragma unroll
  for (int i = threadIdx.x; i < SIDE * QUADS; i += 256) {
    const int row = i / QUADS, col = i % QUADS * PACK;
    if (o0 + row >= o || j0 + col >= cols) continue;
    acc_t v[PACK];
    load_pack<PACK>(v, w + (i64)(o0 + row) * cols + j0 + col);
#pragma unroll
    for (int k = 0; k < PACK; ++k) tile[col + k][row] = v[k];
  }
  __syncthreads();
#pragma unroll
  for (int i = threadIdx.x; i < SIDE * QUADS; i += 256) {
    const int col = i / QUADS, row = i % QUADS * PACK, j = j0 + col;
    if (o0 + row >= o || j >= cols) continue;
    const int channel = channels_last ? j % c : j / taps, tap = channels_last ? j / c : j - channel * taps;
    acc_t v[PACK];
#pragma unroll
    for (int k = 0; k < PACK; ++k) v[k] = tile[col][row + k];
    store_pack(turned + ((i64)channel * taps + taps - 1 - tap) * o + o0 + row, v);
  }
}
