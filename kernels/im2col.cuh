// Where the pixels and taps of a convolution lie, for the kernels that read them by the copy engine's im2col mode: conv2d_wgmma.cu and
// conv2d_six.cu. src/conv/phases.rs fills it in.
#pragma once
#include "ptx_hopper.cuh"

// One axis of the images that are written and of those that are read by im2col.
struct Axis {
  int count;               // pixels written
  int start, stride;       // where: pixels start, start + stride, …
  int lower, step;         // the pixel read for the first one at the first tap, and how many further for the next
  int taps, hop;           // taps, and pixels read from one to the next
  int first, jump;         // the filter's tap that is the first one, and how many further the next
};
// With strides, the pixels of dx with the same remainder meet the same taps: a phase, and a product of its own. Two phases with the
// same first tile are terms of the same sums.
struct Phase {
  Axis down, across;
  int begin;               // the number of its first tile
  int of;                  // which convolution
};
struct Channels {
  int rows, count;         // written and summed over (2: filters, channels c), in each of the groups
  int kw;                  // of its filters
};
#define PHASES 5
struct Conv {
  Phase phase[PHASES];
  Channels channels[2];    // of both convolutions
  int phases, tiles;       // all of them
  int n, h, w;             // the images written
  int groups;
  int chunk, parts;        // 2: steps of k for each part
  int adds;                // to what the images hold
};

// A block's tile: the phases that add up to it are `last` and perhaps the one before.
__device__ __forceinline__ int last_phase(const Conv& s, int tile) {
  int i = 0;
  while (i + 1 < s.phases && tile >= s.phase[i + 1].begin) ++i;
  return i;
}
__device__ __forceinline__ int first_phase(const Conv& s, int last) {
  return last > 0 && s.phase[last - 1].begin == s.phase[last].begin ? last - 1 : last;
}

// A pixel among those of a phase.
struct Place {
  int n, y, x;
};
__device__ __forceinline__ Place place(int p, const Phase& f) {
  unsigned row = (unsigned)p / f.across.count, n = row / f.down.count;
  return Place{(int)n, (int)(row - n * f.down.count), (int)(p - row * f.across.count)};
}

// Asks for the channels from `c` on of the pixels from p on, under tap (i, j).
__device__ __forceinline__ void load_pixels(char* to, const TensorMap* map, unsigned long long* bar, const Phase& f, int c,
                                            const Place& p, int i, int j) {
  tensor_load_im2col(to, map, bar, c, f.across.lower + p.x * f.across.step, f.down.lower + p.y * f.down.step, p.n, j * f.across.hop,
                     i * f.down.hop);
}
