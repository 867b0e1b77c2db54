// The convolutions of conv2d.cu by wgmma: implicit GEMM over channels-last x, dy and filters (o, kh, kw, c / groups), c and o
// multiples of 8 in each group. The copy engine's im2col mode brings the pixels under a tap, zeros where they are outside.
//
//   PASS                     rows (m)       columns (n)             k                    a     b
//   0  y = x * w + b         filters        output pixels           taps, channels c     w     x under the tap
//   1  dx = dy * w           channels c     input pixels            taps, filters        w     dy above
//   2  dw = dy * x           filters        taps, channels c        output pixels        dy    x under the tap
//
// Pixels are columns in 0 and 1: there are many of them and few channels, and columns come in any multiple of 8. For 2 the
// channels of each tap are filled up to 64, and sum_filter_parts adds the parts of k. f32 as in conv3x3_wgmma.cu.
//
// One launch may also do a pass of two convolutions of the same x, as a block that halves its images begins with: 0 and 2 have tiles of
// both, the light ones behind the heavy ones, which find x in the L2 cache; 1 adds both up in the sums of one tile.
// variants: scalar_t=bf16; PASS=0,1,2; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; arch=90a
// variants: scalar_t=bf16; PASS=0,1,2; DOWN=2; ACROSS=1; COLS=192; STAGES=5; RESIDENT=1; arch=90a
// variants: scalar_t=bf16; PASS=0,1; DOWN=2; ACROSS=1; COLS=144; STAGES=6; RESIDENT=1; arch=90a
// variants: scalar_t=bf16; PASS=0,1; DOWN=2; ACROSS=1; COLS=128; STAGES=3; RESIDENT=2; arch=90a
// variants: scalar_t=bf16; PASS=0,1; DOWN=2; ACROSS=1; COLS=96; STAGES=3; RESIDENT=2; arch=90a
// variants: scalar_t=bf16; PASS=0,1,2; DOWN=1; ACROSS=2; COLS=192; STAGES=3; RESIDENT=1; arch=90a
// variants: scalar_t=bf16; PASS=0,1; DOWN=1; ACROSS=2; COLS=128; STAGES=5; RESIDENT=1; arch=90a
// variants: scalar_t=bf16; PASS=0,1; DOWN=1; ACROSS=1; COLS=72; STAGES=6; RESIDENT=2; arch=90a
// variants: scalar_t=bf16; PASS=2; DOWN=1; ACROSS=1; COLS=192; STAGES=3; RESIDENT=2; arch=90a
// variants: scalar_t=f16; PASS=0,1,2; DOWN=2; ACROSS=1; COLS=192; STAGES=5; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0; DOWN=2; ACROSS=1; COLS=192; STAGES=5; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0; DOWN=2; ACROSS=1; COLS=144; STAGES=6; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0; DOWN=2; ACROSS=1; COLS=96,128; STAGES=3; RESIDENT=2; arch=90a
// variants: scalar_t=float; PASS=0; DOWN=1; ACROSS=1; COLS=72; STAGES=6; RESIDENT=2; arch=90a
// variants: scalar_t=float; PASS=0; DOWN=1; ACROSS=2; COLS=192; STAGES=3; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0; DOWN=1; ACROSS=2; COLS=128; STAGES=5; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=2; DOWN=2; ACROSS=1; COLS=256; STAGES=4; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=2; DOWN=2; ACROSS=1; COLS=192; STAGES=5; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=2; DOWN=1; ACROSS=2; COLS=192; STAGES=3; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=2; DOWN=1; ACROSS=1; COLS=192; STAGES=3; RESIDENT=2; arch=90a
#include "im2col.cuh"
#include "wgmma_split.cuh"

#if PASS < 2
// images (n, h, w, rows), filters by (c, taps, o) and bias (rows) or null of one or two convolutions; pixels read by im2col, a map for
// each phase. A part for batch normalization is what a warpgroup stores of a tile; an output has one phase then.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv2d_wgmma(const __grid_constant__ TensorMap filters0, const __grid_constant__ TensorMap filters1,
                 const __grid_constant__ TensorMap pixels0, const __grid_constant__ TensorMap pixels1,
                 const __grid_constant__ TensorMap pixels2, const __grid_constant__ TensorMap pixels3,
                 const __grid_constant__ TensorMap pixels4, scalar_t* __restrict__ images0, scalar_t* __restrict__ images1,
                 const scalar_t* __restrict__ bias0, const scalar_t* __restrict__ bias1, const __grid_constant__ Conv s,
                 const Parts noted0, const Parts noted1) {
  __shared__ Ring<STAGES> ring;
  ring.start();
  Turn<STAGES> turn = {0, 0};
  auto piece_of = [&](int tile, const Phase& f) {
    return piece(tile - f.begin, ceil_div(s.channels[f.of].rows, TILE_M), ceil_div(s.n * f.down.count * f.across.count, TILE_N), 1);  // outer: the group
  };
  auto steps_of = [&](const Phase& f) { return ceil_div(s.channels[f.of].count, DEPTH) * f.down.taps * f.across.taps; };
  auto steps_of_tile = [&](int tile) {
    const int last = last_phase(s, tile), first = first_phase(s, last);
    return steps_of(s.phase[last]) + (first < last ? steps_of(s.phase[first]) : 0);
  };
  if (threadIdx.x >= GROUPS * 128) {
    if (!elect_one()) return;
#pragma unroll 1
    for (int tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
      const int last = last_phase(s, tile);
      const Piece p = piece_of(tile, s.phase[last]);
#pragma unroll 1
      for (int number = first_phase(s, last); number <= last; ++number) {
        const Phase& f = s.phase[number];
        const TensorMap* filters = f.of ? &filters1 : &filters0;
        const TensorMap* pixels =
            number == 0 ? &pixels0 : number == 1 ? &pixels1 : number == 2 ? &pixels2 : number == 3 ? &pixels3 : &pixels4;
        const Place from = place(p.n0, f);
        const Channels& channels = s.channels[f.of];
        const int steps = steps_of(f);
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          const int row = step / f.across.taps, j = step - row * f.across.taps, chunk = row / f.down.taps, i = row - chunk * f.down.taps;
          const int c = chunk * DEPTH, tap = (f.down.first + i * f.down.jump) * channels.kw + f.across.first + j * f.across.jump;
          produce(ring, turn, [&](char* to_a, char* to_b, u64* bar) {
#if PASS == 0
            tensor_load(to_a, filters, bar, c, tap, p.outer * channels.rows + p.m0);
#else
#pragma unroll
            for (int g = 0; g < DOWN; ++g) tensor_load(to_a + g * BOX, filters, bar, p.m0 + g * 64, tap, p.outer * channels.count + c);
#endif
            load_pixels(to_b, pixels, bar, f, p.outer * channels.count + c, from, i, j);
          });
        }
      }
    }
    return;
  }
#pragma unroll 1
  for (int tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
    float d[COLS / 2];
    multiply<PASS == 0, true>(d, ring, turn, steps_of_tile(tile));
    const Phase& f = s.phase[last_phase(s, tile)];  // not in registers meanwhile
    const Piece p = piece_of(tile, f);
    const int rows = s.channels[f.of].rows, before = p.outer * rows, all = s.groups * rows;
    scalar_t* images = (f.of ? images1 : images0) + before;
    const scalar_t* bias = f.of ? bias1 : bias0;
    add_by_row(d, bias ? bias + before : bias, p.m0, rows);
    const int count = s.n * f.down.count * f.across.count;
    const bool dense = f.down.stride == 1 && f.across.stride == 1;
    auto next = [&](int pixel) { return pixel < count ? images + (i64)pixel * all : (scalar_t*)0; };
    auto image = [&](int pixel) {
      if (pixel >= count) return (scalar_t*)0;
      if (dense) return images + (i64)pixel * all;
      const Place to = place(pixel, f);
      const int y = f.down.start + to.y * f.down.stride, x = f.across.start + to.x * f.across.stride;
      return images + (((i64)to.n * s.h + y) * s.w + x) * all;
    };
    const Part part = {f.of ? noted1 : noted0, p.n0 / TILE_N * ACROSS + (int)threadIdx.x / 128 / DOWN, before, all};
    // The forward pass, for which alone halves take pass 0, stores pixel after pixel. Two blocks of f32 have no registers for more.
    enum { HALVES = sizeof(scalar_t) == 2, NOTES = HALVES || RESIDENT == 1 || COLS < 128 };
    if (PASS == 0 && (HALVES || NOTES && part.all.to)) {
      put_columns(d, p.m0, p.n0, rows, next, part, false);
    } else {
      put_columns(d, p.m0, p.n0, rows, image, Part{}, s.adds);
    }
  }
}

#else
// sums (part, o, taps, c / groups) in f32, of one or two convolutions; dy by (o, pixels), x by im2col.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv2d_wgmma(const __grid_constant__ TensorMap dy0, const __grid_constant__ TensorMap dy1, const __grid_constant__ TensorMap x0,
                 const __grid_constant__ TensorMap x1, float* __restrict__ sums0, float* __restrict__ sums1,
                 const __grid_constant__ Conv s) {
  __shared__ Ring<STAGES> ring;
  ring.start();
  Turn<STAGES> turn = {0, 0};
  enum { COPY = BOX / COPIES };
  auto taps_of = [](const Phase& f) { return f.down.taps * f.across.taps; };
  auto chunks_of = [&](const Phase& f) { return ceil_div(s.channels[f.of].count, 64); };
  auto piece_of = [&](int work, const Phase& f) {
    return piece(work - f.begin, ceil_div(s.channels[f.of].rows, TILE_M), ceil_div(taps_of(f) * chunks_of(f), TILE_N / 64), s.parts);
  };
  auto end_of = [&](int part, const Phase& f) {
    const int steps = ceil_div(s.n * f.down.count * f.across.count, DEPTH);
    return steps - part * s.chunk < s.chunk ? steps : (part + 1) * s.chunk;
  };
  if (threadIdx.x >= GROUPS * 128) {
    if (!elect_one()) return;
#pragma unroll 1
    for (int work = blockIdx.x; work < s.tiles; work += gridDim.x) {
      const Phase& f = s.phase[last_phase(s, work)];
      const TensorMap *dy = f.of ? &dy1 : &dy0, *x = f.of ? &x1 : &x0;
      const Channels& channels = s.channels[f.of];
      const int chunks = chunks_of(f), boxes = taps_of(f) * chunks;
      const Piece p = piece_of(work, f);
      const int end = end_of(p.part, f);
#pragma unroll 1
      for (int i = p.part * s.chunk; i < end; ++i) {
        const Place from = place(i * DEPTH, f);
        produce(ring, turn, [&](char* to_a, char* to_b, u64* bar) {
#pragma unroll
          for (int g = 0; g < DOWN * COPIES; ++g)
            tensor_load(to_a + g * COPY, dy, bar, p.outer * channels.rows + p.m0 + g * (64 / COPIES), i * DEPTH);
#pragma unroll 1
          for (int g = 0; g < TILE_N / 64; ++g) {
            // Behind the last one, that one again: the sums are not stored.
            const int box = p.n0 / 64 + g < boxes ? p.n0 / 64 + g : boxes - 1, tap = box / chunks, i = tap / f.across.taps;
            const int c = p.outer * channels.count + (box - tap * chunks) * 64, j = tap - i * f.across.taps;
#pragma unroll
            for (int h = 0; h < COPIES; ++h) load_pixels(to_b + g * BOX + h * COPY, x, bar, f, c + h * (64 / COPIES), from, i, j);
          }
        });
      }
    }
    return;
  }
#pragma unroll 1
  for (int work = blockIdx.x; work < s.tiles; work += gridDim.x) {
    const Phase& f = s.phase[last_phase(s, work)];
    const int chunks = chunks_of(f), taps = taps_of(f), rows = s.channels[f.of].rows, channels = s.channels[f.of].count;
    const Piece p = piece_of(work, f);
    float d[COLS / 2];
    multiply_pixels<scalar_t>(d, ring, turn, end_of(p.part, f) - p.part * s.chunk);
    float* sums = (f.of ? sums1 : sums0) + ((i64)p.part * s.groups + p.outer) * rows * taps * channels;
    each_pair(d, p.m0, p.n0, [&](int m, int n, float v, float w) {
      const int tap = n / 64 / chunks, c = n - tap * chunks * 64;
      if (m < rows && tap < taps && c < channels) *(float2*)(sums + (m * taps + tap) * channels + c) = make_float2(v, w);
    });
  }
}
#endif
