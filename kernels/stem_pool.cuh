// Convolution, batch normalization, ReLU and max-pooling of images with few channels: what stem_pool.cu and stem_pool_weight.cu
// share. What the convolution gives is never stored: it is computed twice forward, and backward it is not needed.
#pragma once
#define PASS 0
#include "stem.cuh"

// The pooling: y (n, o, oh, ow), channels-last, of the convolution's output. `place` is the winner's tap i * kw + j in its window,
// or CUT where the output is not positive.
#define CUT 255
struct Windows {
  int oh, ow, kh, kw, sh, sw, pt, pl;
  int rows, bands, all;  // rows of y in a band, bands of an image, of all images
  int pitch;             // from one group of filters to the next in a tile in shared memory, in elements (backward: words)
  Div by_ow, by_bands, by_octets, by_sh, by_sw, by_words;
};
