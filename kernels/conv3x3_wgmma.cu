// 3x3 convolution with stride 1 and padding 1 by wgmma, channels-last: implicit GEMM as in conv2d_wgmma.cu, but pixels come once, not
// once for each tap.
//
//   PASS                rows (m)      columns (n)       k                    a     b
//   0  y = x * w + b    filters       output pixels     channels c, taps     w     x under the tap
//   1  dx = dy * w      channels c    input pixels      filters, taps        w     dy above
//   2  dw = dy * x      filters       taps, channels c  output pixels        dy    x under the tap
//
// A tile is `height` rows of `count` images. It and the rows around it lie in shared memory as [row][image][pixel][channel] with w + 1
// pixels in a row, the first one outside of the image: what pads a row on the left pads the one before on the right. A tap is then
// the same tile, begun (tap row) * count * (w + 1) + (tap column) pixels later: a descriptor's address. The sums of the first pixels,
// which are outside, and of those behind the tile are no one's; for 2 they are columns of dy outside of the image, zeros.
//
// f32 is tf32 in 0, which with turned filters (turn_filters.cu) computes dx as well; in 2 it is split into bf16 (wgmma_split.cuh).
// variants: scalar_t=bf16; PASS=0,1; DOWN=2; ACROSS=1; COLS=160,168,192,256; STAGES=4; RESIDENT=1; arch=90a
// variants: scalar_t=bf16; PASS=0,1; DOWN=1; ACROSS=2; COLS=48,96,160,192,200,224; STAGES=6; RESIDENT=1; arch=90a
// variants: scalar_t=f16; PASS=0,1; DOWN=2; ACROSS=1; COLS=192; STAGES=4; RESIDENT=1; arch=90a
// variants: scalar_t=bf16,f16; PASS=2; DOWN=1; ACROSS=3; COLS=192; STAGES=3; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0; DOWN=2; ACROSS=1; COLS=160,168,192,256; STAGES=4; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0; DOWN=1; ACROSS=2; COLS=48,96,160,192,200,224; STAGES=6; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=2; DOWN=1; ACROSS=3; COLS=192; STAGES=2; RESIDENT=1; arch=90a
#include "wgmma_split.cuh"

#if PASS < 2
struct Conv {
  int n, h, w;
  int rows, channels;       // channels written, and channels / DEPTH, rounded up
  int height, count;        // of a tile
  int tiles_m, tiles_h, all;
  int halo, halo_bytes;     // pixels that are loaded for a tile, and bytes of shared memory with what is read behind them
  int adds;                 // to what the images hold
};

// Tiles of the same pixels come one after the other.
struct At {
  int m0, h0, n0;
};
__device__ __forceinline__ At at_tile(int tile, const Conv& s) {
  int pixels = tile / s.tiles_m, images = pixels / s.tiles_h;
  return At{(tile - pixels * s.tiles_m) * TILE_M, (pixels - images * s.tiles_h) * s.height, images * s.count};
}

// images (n, h, w, rows); filters by (c, taps, o); pixels by (channels, w, n, h); bias (rows) or null. A part for batch
// normalization is what a warpgroup stores of a tile.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv3x3_wgmma(const __grid_constant__ TensorMap filters, const __grid_constant__ TensorMap pixels, scalar_t* __restrict__ images,
                  const scalar_t* __restrict__ bias, const __grid_constant__ Conv s, const Parts noted) {
  enum { HALOS = 2 };
  __shared__ Ring<STAGES> ring;  // of filters
  __shared__ Ring<HALOS> halos;
  char* const halo = stages() + STAGES * A_BYTES;
  // The pixel behind the last row pads it; the others must only be there.
  for (int i = threadIdx.x; i < HALOS * (s.halo_bytes / 16 - s.halo * 8); i += THREADS) {
    const int behind = s.halo_bytes / 16 - s.halo * 8, which = i / behind;
    *(uint4*)(halo + which * s.halo_bytes + s.halo * 128 + (i - which * behind) * 16) = make_uint4(0, 0, 0, 0);
  }
  fence_proxy_async();
  halos.start();
  ring.start();
  Turn<STAGES> turn = {0, 0};
  Turn<HALOS> from = {0, 0};
  const int row = s.count * (s.w + 1);
  if (threadIdx.x >= GROUPS * 128) {
    if (!elect_one()) return;
#pragma unroll 1
    for (int tile = blockIdx.x; tile < s.all; tile += gridDim.x) {
      const At p = at_tile(tile, s);
#pragma unroll 1
      for (int chunk = 0; chunk < s.channels; ++chunk) {
        halos.produce(from, s.halo * 128, [&](u64* bar) {
          tensor_load(halo + from.stage * s.halo_bytes, &pixels, bar, chunk * DEPTH, -1, p.n0, p.h0 - 1);
        });
#pragma unroll 1
        for (int tap = 0; tap < 9; ++tap) {
          ring.produce(turn, A_BYTES, [&](u64* bar) {
            char* to = stages() + turn.stage * A_BYTES;
#if PASS == 0
            tensor_load(to, &filters, bar, chunk * DEPTH, tap, p.m0);
#else
#pragma unroll
            for (int g = 0; g < DOWN; ++g) tensor_load(to + g * BOX, &filters, bar, p.m0 + g * 64, 8 - tap, chunk * DEPTH);
#endif
          });
        }
      }
    }
    return;
  }
  const int group = threadIdx.x / 128;
  const bool speaks = threadIdx.x % 32 == 0;
#pragma unroll 1
  for (int tile = blockIdx.x; tile < s.all; tile += gridDim.x) {
    const At p = at_tile(tile, s);
    float d[COLS / 2];
#pragma unroll
    for (int i = 0; i < COLS / 2; ++i) d[i] = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < s.channels; ++chunk) {
      mbarrier_wait(halos.full + from.stage, from.phase);
      const char* own = halo + from.stage * s.halo_bytes + group / DOWN * (COLS * 128);
#pragma unroll
      for (int tap = 0; tap < 9; ++tap) {
        mbarrier_wait(ring.full + turn.stage, turn.phase);
        u64 a = wgmma_descriptor(stages() + turn.stage * A_BYTES + group % DOWN * BOX, BOX, 1024, 128);
        u64 b = wgmma_descriptor(own + (tap / 3 * row + tap % 3) * 128, BOX, 1024, 128);
        multiply_step<PASS == 0, true>(d, a, b);
        // The step before has been multiplied, and with the first tap the chunk before.
        if (speaks && (tap > 0 || chunk > 0)) mbarrier_arrive(ring.empty + turn.before());
        if (speaks && tap == 0 && chunk > 0) mbarrier_arrive(halos.empty + from.before());
        turn.next();
      }
      from.next();
    }
    wgmma_wait<0>();
    wgmma_results(d);
    if (speaks) mbarrier_arrive(ring.empty + turn.before()), mbarrier_arrive(halos.empty + from.before());
    add_by_row(d, bias, p.m0, s.rows);
    auto image = [&](int column) {
      const unsigned line = (unsigned)column / (s.w + 1), h = line / s.count, n = line - h * s.count, w = column - line * (s.w + 1);
      const bool inside = (int)w < s.w && h < s.height && p.h0 + h < s.h && p.n0 + n < s.n;
      return inside ? images + (((i64)(p.n0 + n) * s.h + p.h0 + h) * s.w + w) * s.rows : (scalar_t*)0;
    };
    const Part part = {noted, tile / s.tiles_m * ACROSS + group / DOWN, 0, s.rows};
    put_columns(d, p.m0, 0, s.rows, image, PASS == 0 ? part : Part{}, s.adds);
  }
}
#else
// Pixels of a tile that are multiplied at once: two instructions.
#define AT_ONCE 32

struct Weight {
  int n, h, w;
  int rows, channels;         // filters, channels c
  int height, count;          // of a tile
  int tiles_h, tiles;         // of an image's rows; all of them
  int chunk, parts;           // tiles for each part
  int blocks_m, blocks_n;     // of 64 filters, of 64 channels
  int halo, halo_bytes;       // pixels of x that are loaded for a tile, and bytes with what is read behind them
  int pixels, pixel_bytes;    // the same of dy
};

// sums (part, o, taps, c) in f32; dy by (o, w, n, h), x by (c, w, n, h). A block has 64 filters and 64 channels under all taps, a warpgroup
// a row of taps: three times 64 columns, each a pixel further in memory.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv3x3_wgmma(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap x, float* __restrict__ sums,
                  const __grid_constant__ Weight s) {
  __shared__ Ring<STAGES> ring;
  const int stage_bytes = COPIES * (s.halo_bytes + s.pixel_bytes);  // the copies of x, then those of dy
  // What is behind a tile of dy must be zero, and behind one of x a number.
  for (int i = 0; i < STAGES * COPIES; ++i) {
    char* at = stages() + i / COPIES * stage_bytes + i % COPIES * s.halo_bytes;
    for (int b = s.halo * 128 + threadIdx.x * 16; b < s.halo_bytes; b += THREADS * 16) *(uint4*)(at + b) = make_uint4(0, 0, 0, 0);
    at += COPIES * s.halo_bytes + i % COPIES * (s.pixel_bytes - s.halo_bytes);
    for (int b = s.pixels * 128 + threadIdx.x * 16; b < s.pixel_bytes; b += THREADS * 16) *(uint4*)(at + b) = make_uint4(0, 0, 0, 0);
  }
  fence_proxy_async();
  ring.start();
  Turn<STAGES> turn = {0, 0};
  const int part = blockIdx.x % s.parts, block = blockIdx.x / s.parts;
  const int m0 = block % s.blocks_m * 64, c0 = block / s.blocks_m * 64;
  const int begin = part * s.chunk, end = s.tiles - begin < s.chunk ? s.tiles : begin + s.chunk;
  if (threadIdx.x >= GROUPS * 128) {
    if (!elect_one()) return;
#pragma unroll 1
    for (int tile = begin; tile < end; ++tile) {
      const int images = tile / s.tiles_h, h0 = (tile - images * s.tiles_h) * s.height, n0 = images * s.count;
      char* at = stages() + turn.stage * stage_bytes;
      ring.produce(turn, COPIES * (s.halo + s.pixels) * 128, [&](u64* bar) {
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
          tensor_load(at + i * s.halo_bytes, &x, bar, c0 + i * (64 / COPIES), -1, n0, h0 - 1);
          tensor_load(at + COPIES * s.halo_bytes + i * s.pixel_bytes, &dy, bar, m0 + i * (64 / COPIES), 0, n0, h0);
        }
      });
    }
    return;
  }
  const bool speaks = threadIdx.x % 32 == 0;
  const int group = threadIdx.x / 128, offset = group * s.count * (s.w + 1) * 128;
  float d[COLS / 2];
#pragma unroll
  for (int i = 0; i < COLS / 2; ++i) d[i] = 0;
  // f32: the next tile is split in the second half of the steps, when it has come.
  const int steps = ceil_div(s.pixels, AT_ONCE), idle = steps / 2;
  auto split = [&](const Turn<STAGES>& turn, int part, int parts) {
    if (part == 0) mbarrier_wait(ring.full + turn.stage, turn.phase);
    char* at = stages() + turn.stage * stage_bytes;
    auto rows = [&](char* at, int apart, int all) {
      const int share = ceil_div(all, parts), from = part * share;
      split_rows(at, apart, from, from + share < all ? from + share : all, threadIdx.x / 32, GROUPS * 4);
    };
    rows(at, s.halo_bytes, s.halo);
    rows(at + 2 * s.halo_bytes, s.pixel_bytes, s.pixels);
  };
  if (COPIES == 2 && begin < end) split(turn, 0, 1), splits_are_done();
#pragma unroll 1
  for (int tile = begin; tile < end; ++tile) {
    if (COPIES == 1) mbarrier_wait(ring.full + turn.stage, turn.phase);
    const char* at = stages() + turn.stage * stage_bytes;
    Turn<STAGES> ahead = turn;
    ahead.next();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const int p = step * AT_ONCE;
      const u64 a = wgmma_descriptor(at + COPIES * s.halo_bytes + p * 128, BOX, 1024, 128);
      const u64 b = wgmma_descriptor(at + offset + p * 128, 128, 1024, 128);
      wgmma_fence();
#pragma unroll
      for (int q = 0; q < AT_ONCE / 16; ++q)
        Pixels16<scalar_t>::multiply(d, a + q * 128, b + q * 128, s.pixel_bytes / 16, s.halo_bytes / 16);
      wgmma_commit();
      wgmma_wait<1>();
      if (speaks && step == 0 && tile > begin) mbarrier_arrive(ring.empty + turn.before());
      if (COPIES == 2 && tile + 1 < end && step >= idle) split(ahead, step - idle, steps - idle);
    }
    if (COPIES == 2 && tile + 1 < end) splits_are_done();
    turn = ahead;
  }
  wgmma_wait<0>();
  wgmma_results(d);
  if (speaks && end > begin) mbarrier_arrive(ring.empty + turn.before());
  const int m = m0 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4, c = c0 + threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < COLS / 8; ++j) {
    const int tap = group * 3 + j / 8, column = c + j % 8 * 8;
    float* to = sums + (((i64)part * s.rows + m) * 9 + tap) * s.channels + column;
    if (column < s.channels && m < s.rows) *(float2*)to = make_float2(d[4 * j], d[4 * j + 1]);
    if (column < s.channels && m + 8 < s.rows) *(float2*)(to + (i64)8 * 9 * s.channels) = make_float2(d[4 * j + 2], d[4 * j + 3]);
  }
}
#endif
