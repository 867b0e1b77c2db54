// What batch normalization needs of an image, taken where a convolution stores it: mean and sum of squared differences from it, of
// each channel in each part of the pixels. merge_moments of batch_norm.cu puts the parts together.
#pragma once
#include "common.cuh"

// to (count, 2, channels): the mean and the squares of a part's pixels; behind them how many these are, (count). Null for nowhere.
struct Parts {
  float* to;
  i64 count;
};

// One of them: the channels from `first` on.
struct Part {
  Parts all;
  int number, first, channels;
};

// A thread's share of N channels. Differences are taken from a pivot, which has to be one of the values: it is then no further from
// the mean than the root of the squares, and what is subtracted in the end is of their size, however far they all are from 0.
template <int N> struct Spread {
  float pivot[N] = {}, sum[N] = {}, squares[N] = {};

  __device__ __forceinline__ void add(int e, float v) {
    const float difference = v - pivot[e];
    sum[e] += difference;
    squares[e] += difference * difference;
  }
  // When all is added up, writes the thread's channel e, the part's channel c, of so many pixels.
  __device__ __forceinline__ void put(const Part& part, int pixels, int e, int c) const {
    const float mean = sum[e] / (pixels > 0 ? pixels : 1), rest = squares[e] - mean * sum[e];
    float* to = part.all.to + (i64)part.number * 2 * part.channels + part.first + c;
    to[0] = pivot[e] + mean;
    to[part.channels] = rest < 0 ? 0.f : rest;
    if (part.first + c == 0) part.all.to[part.all.count * 2 * part.channels + part.number] = pixels;
  }
};
