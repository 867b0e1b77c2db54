// The convolutions of conv2d_wgmma.cu in f32's accuracy: see there for passes and phases, and wgmma_six.cuh for the arithmetic. Filters,
// dy and x are planes of bf16, those of images one set of images after the other. Planes are read in whatever order: for dx the filters
// as they lie.
// variants: scalar_t=float; PASS=0,1,2; DOWN=2; ACROSS=1; COLS=192; STAGES=3; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0,1; DOWN=2; ACROSS=1; COLS=160; STAGES=4; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0,1,2; DOWN=2; ACROSS=1; COLS=128; STAGES=4; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0,1; DOWN=2; ACROSS=1; COLS=96; STAGES=4; RESIDENT=1; arch=90a
// variants: scalar_t=float; PASS=0,1,2; DOWN=1; ACROSS=2; COLS=192; STAGES=2; RESIDENT=1; arch=90a
#include "im2col.cuh"
#include "wgmma_six.cuh"

// The images that are read and the filters, of both convolutions.
struct Read {
  int h[2], w[2];
  int taps[2];  // of a filter, all of them
};

// Of all planes of the pixels from `from` on, the channels from c on under tap (i, j); planes are `images` images apart, and lie `apart`
// bytes apart then.
__device__ __forceinline__ void load_planes(char* to, int apart, const TensorMap* map, u64* bar, const Phase& f, int c, Place from,
                                            int images, int i, int j) {
#pragma unroll
  for (int p = 0; p < PLANES; ++p) {
    load_pixels(to + p * apart, map, bar, f, c, from, i, j);
    from.n += images;
  }
}

// The pixel that tap (i, j) reads for `to`, in images of h by w pixels; -1 outside.
__device__ __forceinline__ i64 pixel_read(const Phase& f, const Place& to, int i, int j, int h, int w) {
  const int y = f.down.lower + to.y * f.down.step + i * f.down.hop, x = f.across.lower + to.x * f.across.step + j * f.across.hop;
  return y < 0 || y >= h || x < 0 || x >= w ? -1 : ((i64)to.n * h + y) * w + x;
}

#if PASS < 2
// As conv2d_wgmma; whole_… are the filters and the images read before they were split.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv2d_six(const __grid_constant__ TensorMap filters0, const __grid_constant__ TensorMap filters1,
               const __grid_constant__ TensorMap pixels0, const __grid_constant__ TensorMap pixels1,
               const __grid_constant__ TensorMap pixels2, const __grid_constant__ TensorMap pixels3,
               const __grid_constant__ TensorMap pixels4, float* __restrict__ images0, float* __restrict__ images1,
               const float* __restrict__ bias0, const float* __restrict__ bias1, const float* __restrict__ whole_filters0,
               const float* __restrict__ whole_filters1, const float* __restrict__ whole_images0,
               const float* __restrict__ whole_images1, const __grid_constant__ Conv s, const __grid_constant__ Read read,
               const Parts noted0, const Parts noted1) {
  __shared__ Ring<STAGES> ring;
  __shared__ Order order;
  order.start();
  ring.start();
  Turn<STAGES> turn = {0, 0};
  auto piece_of = [&](int tile, const Phase& f) {
    const int pixels = s.n * f.down.count * f.across.count;
    return piece(tile - f.begin, ceil_div(s.channels[f.of].rows, TILE_M), ceil_div(pixels, TILE_N), 1);  // outer: the group
  };
  auto steps_of = [&](const Phase& f) { return ceil_div(s.channels[f.of].count, DEPTH) * f.down.taps * f.across.taps; };
  if (threadIdx.x >= GROUPS * 128) {
    leave_registers();
    if (threadIdx.x >= GROUPS * 128 + 32 || !elect_one()) return;
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
          produce_six(ring, turn, [&](char* to_a, char* to_b, u64* bar) {
#pragma unroll
            for (int g = 0; g < DOWN; ++g) {
              const int m = p.m0 + g * 64;
              if (PASS == 0) tensor_load(to_a + g * UNIT, filters, bar, c, tap, p.outer * channels.rows + m, 0);
              else tensor_load(to_a + g * UNIT, filters, bar, m, tap, p.outer * channels.count + c, 0);
            }
            load_planes(to_b, TILE_N * 64, pixels, bar, f, p.outer * channels.count + c, from, s.n, i, j);
          });
        }
      }
    }
    return;
  }
  take_registers();
  InOrder in_order;
#pragma unroll 1
  for (int tile = blockIdx.x; tile < s.tiles; tile += gridDim.x) {
    const int last = last_phase(s, tile), begin = first_phase(s, last);
    float d[COLS / 2];
    multiply<PASS == 0, true>(d, ring, turn, order, in_order, steps_of(s.phase[last]) + (begin < last ? steps_of(s.phase[begin]) : 0));
    const Phase& f = s.phase[last];
    const Piece p = piece_of(tile, f);
    const int rows = s.channels[f.of].rows, before = p.outer * rows, all = s.groups * rows;
    const int count = s.n * f.down.count * f.across.count;
    repair(d, p.m0, p.n0, [&](int m, int n) {
      float sum = 0;
      if (m >= rows || n >= count) return sum;
#pragma unroll 1
      for (int number = begin; number <= last; ++number) {
        const Phase& f = s.phase[number];
        const Place to = place(n, f);
        const Channels& channels = s.channels[f.of];
        const float *filters = f.of ? whole_filters1 : whole_filters0, *images = f.of ? whole_images1 : whole_images0;
        const int taps = read.taps[f.of];
#pragma unroll 1
        for (int t = 0; t < f.down.taps * f.across.taps; ++t) {
          const int i = t / f.across.taps, j = t - i * f.across.taps;
          const i64 pixel = pixel_read(f, to, i, j, read.h[f.of], read.w[f.of]);
          if (pixel < 0) continue;
          const int tap = (f.down.first + i * f.down.jump) * channels.kw + f.across.first + j * f.across.jump;
          const float* x = images + (pixel * s.groups + p.outer) * channels.count;
#pragma unroll 1
          for (int c = 0; c < channels.count; ++c) {
            const i64 filter = PASS == 0 ? ((i64)(before + m) * taps + tap) * channels.count + c
                                         : ((i64)(p.outer * channels.count + c) * taps + tap) * rows + m;
            sum = fmaf(x[c], filters[filter], sum);
          }
        }
      }
      return sum;
    });
    const float* bias = f.of ? bias1 : bias0;
    add_by_row(d, bias ? bias + before : bias, p.m0, rows);
    float* images = (f.of ? images1 : images0) + before;
    // The forward pass stores pixel after pixel.
    const bool dense = PASS == 0 || (f.down.stride == 1 && f.across.stride == 1);
    auto image = [&](int pixel) {
      if (pixel >= count) return (float*)0;
      if (dense) return images + (i64)pixel * all;
      const Place to = place(pixel, f);
      const int y = f.down.start + to.y * f.down.stride, x = f.across.start + to.x * f.across.stride;
      return images + (((i64)to.n * s.h + y) * s.w + x) * all;
    };
    const Part part = {f.of ? noted1 : noted0, p.n0 / TILE_N * ACROSS + (int)threadIdx.x / 128 / DOWN, before, all};
    put_columns(d, p.m0, p.n0, rows, image, PASS == 0 ? part : Part{}, s.adds);
  }
}

#else
// sums (part, o, taps, c / groups) of one or two convolutions; dy by (o, pixels, planes), x by im2col; whole_… before they were split.
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv2d_six(const __grid_constant__ TensorMap dy0, const __grid_constant__ TensorMap dy1, const __grid_constant__ TensorMap x0,
               const __grid_constant__ TensorMap x1, float* __restrict__ sums0, float* __restrict__ sums1,
               const float* __restrict__ whole_dy0, const float* __restrict__ whole_dy1, const float* __restrict__ whole_x,
               const __grid_constant__ Conv s, const __grid_constant__ Read read) {
  __shared__ Ring<STAGES> ring;
  __shared__ Order order;
  order.start();
  ring.start();
  Turn<STAGES> turn = {0, 0};
  auto taps_of = [](const Phase& f) { return f.down.taps * f.across.taps; };
  auto chunks_of = [&](const Phase& f) { return ceil_div(s.channels[f.of].count, 64); };
  auto pixels_of = [&](const Phase& f) { return s.n * f.down.count * f.across.count; };
  auto piece_of = [&](int work, const Phase& f) {
    return piece(work - f.begin, ceil_div(s.channels[f.of].rows, TILE_M), ceil_div(taps_of(f) * chunks_of(f), TILE_N / 64), s.parts);
  };
  auto end_of = [&](int part, const Phase& f) {
    const int steps = ceil_div(pixels_of(f), DEPTH);
    return steps - part * s.chunk < s.chunk ? steps : (part + 1) * s.chunk;
  };
  if (threadIdx.x >= GROUPS * 128) {
    leave_registers();
    if (threadIdx.x >= GROUPS * 128 + 32 || !elect_one()) return;
#pragma unroll 1
    for (int work = blockIdx.x; work < s.tiles; work += gridDim.x) {
      const Phase& f = s.phase[last_phase(s, work)];
      const TensorMap *dy = f.of ? &dy1 : &dy0, *x = f.of ? &x1 : &x0;
      const Channels& channels = s.channels[f.of];
      const int chunks = chunks_of(f), boxes = taps_of(f) * chunks;
      const Piece p = piece_of(work, f);
      const int end = end_of(p.part, f);
#pragma unroll 1
      for (int step = p.part * s.chunk; step < end; ++step) {
        const Place from = place(step * DEPTH, f);
        produce_six(ring, turn, [&](char* to_a, char* to_b, u64* bar) {
#pragma unroll
          for (int g = 0; g < DOWN; ++g) tensor_load(to_a + g * UNIT, dy, bar, p.outer * channels.rows + p.m0 + g * 64, step * DEPTH, 0);
#pragma unroll 1
          for (int g = 0; g < TILE_N / 64; ++g) {
            // Behind the last one, that one again: the sums are not stored.
            const int box = p.n0 / 64 + g < boxes ? p.n0 / 64 + g : boxes - 1, tap = box / chunks, i = tap / f.across.taps;
            const int c = p.outer * channels.count + (box - tap * chunks) * 64, j = tap - i * f.across.taps;
            load_planes(to_b + g * UNIT, UNIT_PLANE, x, bar, f, c, from, s.n, i, j);
          }
        });
      }
    }
    return;
  }
  take_registers();
  InOrder in_order;
#pragma unroll 1
  for (int work = blockIdx.x; work < s.tiles; work += gridDim.x) {
    const Phase& f = s.phase[last_phase(s, work)];
    const int chunks = chunks_of(f), taps = taps_of(f), rows = s.channels[f.of].rows, channels = s.channels[f.of].count;
    const Piece p = piece_of(work, f);
    const int begin = p.part * s.chunk, end = end_of(p.part, f);
    float d[COLS / 2];
    multiply<false, false>(d, ring, turn, order, in_order, end - begin);
    repair(d, p.m0, p.n0, [&](int m, int n) {
      float sum = 0;
      const int tap = n / 64 / chunks, c = n - tap * chunks * 64, i = tap / f.across.taps, j = tap - i * f.across.taps;
      if (m >= rows || tap >= taps || c >= channels) return sum;
      const float* dy = (f.of ? whole_dy1 : whole_dy0) + p.outer * rows + m;
      const float* x = whole_x + p.outer * channels + c;
      const int pixels = pixels_of(f) < end * DEPTH ? pixels_of(f) : end * DEPTH;
#pragma unroll 1
      for (int q = begin * DEPTH; q < pixels; ++q) {
        const i64 pixel = pixel_read(f, place(q, f), i, j, read.h[f.of], read.w[f.of]);
        if (pixel >= 0) sum = fmaf(dy[(i64)q * s.groups * rows], x[pixel * s.groups * channels], sum);
      }
      return sum;
    });
    float* sums = (f.of ? sums1 : sums0) + ((i64)p.part * s.groups + p.outer) * rows * taps * channels;
    each_pair(d, p.m0, p.n0, [&](int m, int n, float v, float w) {
      const int tap = n / 64 / chunks, c = n - tap * chunks * 64;
      if (m < rows && tap < taps && c < channels) *(float2*)(sums + ((i64)m * taps + tap) * channels + c) = make_float2(v, w);
    });
  }
}
#endif
