// One tile of a matrix product on tensor cores (mma.sync); the loop behind matmul_mma.cu and conv2d_mma.cu. What becomes of the
// sums stands in mma_out.cuh.
//
//   sum(m, n) = sum over k of a(m, k) b(n, k)    for TILE_M rows of a and TILE_N of b, by 4 or 8 warps with equal shares
//
// Chosen at compile time, by src/gemm/model/mma.rs:
//   scalar_t         f16 (also on sm_75), bf16, float
//   EXACT            for float: 1 splits operands so that the sums are as accurate as f32 arithmetic, 0 rounds them to tf32
//   TILE_M, TILE_N   a block's tile: 64 or 128 each
//   STAGES           steps of k that are in shared memory at once: while one is multiplied, the next ones travel
//   WIDTH            bytes of one load: 16, 8, 4, or 0 for single 16-bit elements
//
// In shared memory an operand's step of k is TILE rows of 128 bytes. Where elements lie next to each other along k ("K-major") a
// row holds DEPTH steps of k of one row of a; else it holds DEPTH neighbouring rows of a at one k, and TILE / DEPTH panels of DEPTH
// such rows stand below each other. Either way a row's eight chunks of 16 bytes are permuted by its number (place_of), so
// that neither the copies nor ldmatrix meet a bank twice.
//
// An operand is a "source", as in tile.cuh:
//   K_MAJOR              which of the two
//   Row row(int r)       what stays the same along k: an address, an output pixel
//   Step step(int k)     what depends on k only: an offset, a tap of the filter
//   at(row, step)        the element's address, null outside; WIDTH bytes from there on belong together, aligned
//   data                 any valid address
#pragma once
#include "common.cuh"

// Two warps down, two or four across.
#define WARPS_N (sizeof(scalar_t) == 4 && TILE_N == 128 ? 4 : 2)
#define THREADS (WARPS_N * 64)
// k in a row of shared memory, and in a step of the loop.
#define DEPTH (128 / (int)sizeof(scalar_t))
// Copies behind the threads' back, which take no registers: from sm_80 on and for whole words.
#define ASYNC (__CUDA_ARCH__ >= 800 && WIDTH >= 4)
// Shared memory is the larger of STAGES * STAGE_BYTES and TILE_BYTES, which the sums take in the end.
#define STAGE_BYTES ((TILE_M + TILE_N) * 128)
#define TILE_BYTES (TILE_M * (TILE_N + 8) * 4)
// Blocks that shall fit on a multiprocessor: a limit to the registers of a thread. sm_75 has shared memory for few, and narrow loads
// take many registers.
#if __CUDA_ARCH__ < 800
#define RESIDENT (TILE_M + TILE_N > 128 ? 1 : 2)
#elif WIDTH < 16
#define RESIDENT 2
#else
#define RESIDENT ((TILE_M + TILE_N > 192 ? 2 : TILE_M + TILE_N > 128 ? 3 : 4) - (sizeof(scalar_t) == 4))
#endif

enum {
  CHUNK = 16 / (int)sizeof(scalar_t),                               // elements in a chunk
  PIECE = WIDTH == 0 ? 1 : WIDTH / (int)sizeof(scalar_t),           // and in a load
  PIECES = CHUNK / PIECE,
  LINE_STEP = THREADS / 8,                                          // eight threads fill a row
  WARP_M = TILE_M / 2, WARP_N = TILE_N / WARPS_N,                   // a warp's tile
  MT = WARP_M / 16, NT = WARP_N / 8,
};

// Where chunk `chunk` of row `line` of an operand lies. In 32-bit panels a fragment takes two neighbouring chunks of four rows.
template <bool k_major> __device__ __forceinline__ int place_of(int line, int chunk) {
  int key = k_major || sizeof(scalar_t) == 2 ? line & 7 : (line & 3) << 1;
  return line * 128 + ((chunk ^ key) << 4);
}

// The source that a plain matrix is: `count` rows of a or columns of b; `stride` elements from one to the next, or with k_major = false
// from one k to the next.
template <bool k_major> struct Lines {
  enum { K_MAJOR = k_major };
  typedef int Row;  // -1 outside
  typedef int Step;
  const scalar_t* data;
  int count, stride;
  __device__ __forceinline__ Row row(int r) const { return r >= count ? -1 : k_major ? r * stride : r; }
  __device__ __forceinline__ Step step(int k) const { return k_major ? k : k * stride; }
  __device__ __forceinline__ const scalar_t* at(Row row, Step step) const { return row < 0 ? (const scalar_t*)0 : data + (row + step); }
};

// A thread's share of an operand's step on its way from memory: one chunk of every LINE_STEP-th row.
template <class Source, int TILE> struct Feed {
  enum { LINES = TILE / LINE_STEP, PANELS = TILE / DEPTH };
  // Rows are kept where there are few: with narrow loads along them each piece has one of its own.
  enum { ROWS = Source::K_MAJOR ? LINES : WIDTH == 16 ? PANELS : 1 };
  typename Source::Row row[ROWS];
  unsigned held[ASYNC ? 1 : LINES][4];
  int first;

  __device__ __forceinline__ void start(const Source& s, int tile_start) {
    const int chunk = threadIdx.x % 8, line = threadIdx.x / 8;
    first = tile_start + (Source::K_MAJOR ? line : chunk * CHUNK);
#pragma unroll
    for (int i = 0; i < ROWS; ++i) row[i] = s.row(first + i * (Source::K_MAJOR ? (int)LINE_STEP : DEPTH));
  }

  // Piece p of line i from `from` (null: zeros) into the registers or, behind the thread's back, into shared memory.
  __device__ __forceinline__ void take(const Source& s, int i, int p, const scalar_t* from, char* to) {
#if ASYNC
    const void* src = from ? from : s.data;
    if (WIDTH == 16) cp_async_16(to, src, from ? 16 : 0);
    else if (WIDTH == 8) cp_async_8(to + p * 8, src, from ? 8 : 0);
    else cp_async_4(to + p * 4, src, from ? 4 : 0);
#else
    unsigned* v = held[i];
    if (WIDTH == 16) {
      uint4 u = from ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
      v[0] = u.x, v[1] = u.y, v[2] = u.z, v[3] = u.w;
    } else if (WIDTH == 8) {
      uint2 u = from ? *(const uint2*)from : make_uint2(0, 0);
      v[p % 2 * 2] = u.x, v[p % 2 * 2 + 1] = u.y;
    } else if (WIDTH == 4) {
      v[p % 4] = from ? *(const unsigned*)from : 0;
    } else {
      unsigned u = from ? *(const unsigned short*)from : 0;
      v[p / 2 % 4] = p % 2 ? v[p / 2 % 4] | u << 16 : u;
    }
#endif
  }

  // Begins to load steps k0 … of those below `end`, for the rows at `tile` in shared memory.
  __device__ __forceinline__ void fetch(const Source& s, int k0, int end, char* tile) {
    const int chunk = threadIdx.x % 8, line = threadIdx.x / 8;
    char* to = tile + place_of<Source::K_MAJOR>(line, chunk);  // LINE_STEP is a multiple of 8: the same chunk in all lines
    if (Source::K_MAJOR) {
#pragma unroll
      for (int p = 0; p < PIECES; ++p) {
        int k = k0 + chunk * CHUNK + p * PIECE;
        bool inside = k < end;
        typename Source::Step step = s.step(inside ? k : k0);
#pragma unroll
        for (int i = 0; i < LINES; ++i) {
          const scalar_t* from = s.at(row[i % ROWS], step);
          take(s, i, p, inside ? from : (const scalar_t*)0, to + i * LINE_STEP * 128);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < LINES; ++i) {
        int panel = i * LINE_STEP / DEPTH, k = k0 + line + i * LINE_STEP % DEPTH;
        bool inside = k < end;
        typename Source::Step step = s.step(inside ? k : k0);
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
          const scalar_t* from = s.at(WIDTH == 16 ? row[panel % ROWS] : s.row(first + panel * DEPTH + p * PIECE), step);
          take(s, i, p, inside ? from : (const scalar_t*)0, to + i * LINE_STEP * 128);
        }
      }
    }
  }

  // Writes what the registers hold to the rows at `tile`.
  __device__ __forceinline__ void put(char* tile) const {
#if !ASYNC
    char* to = tile + place_of<Source::K_MAJOR>(threadIdx.x / 8, threadIdx.x % 8);
#pragma unroll
    for (int i = 0; i < LINES; ++i)
      *(uint4*)(to + i * LINE_STEP * 128) = make_uint4(held[i][0], held[i][1], held[i][2], held[i][3]);
#endif
  }
};

// A fragment of a: 16 rows from r0 on, the quarter `part` of the step's k.
template <bool k_major> __device__ __forceinline__ void fragment_a(unsigned* f, const char* tile, int r0, int part) {
  const int lane = threadIdx.x % 32;
  if (k_major) {
    ldmatrix_x4(f, tile + place_of<true>(r0 + lane % 16, part * 2 + lane / 16));
  } else if (sizeof(scalar_t) == 2) {
    int k = part * 16 + lane % 8 + lane / 16 * 8, panel = r0 / DEPTH;
    ldmatrix_x4_trans(f, tile + place_of<false>(panel * DEPTH + k, r0 % DEPTH / 8 + lane / 8 % 2));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int r = r0 + i % 2 * 8 + lane / 4, k = part * 8 + lane % 4 + i / 2 * 4, panel = r0 / DEPTH;
      f[i] = *(const volatile unsigned*)(tile + place_of<false>(panel * DEPTH + k, r % DEPTH / 4) + lane / 4 % 4 * 4);
    }
  }
}

// Two fragments of b, f[0..2] and f[2..4]: 8 columns from c0 on and the next 8.
template <bool k_major> __device__ __forceinline__ void fragments_b(unsigned* f, const char* tile, int c0, int part) {
  const int lane = threadIdx.x % 32;
  if (k_major) {
    ldmatrix_x4(f, tile + place_of<true>(c0 + lane % 8 + lane / 16 * 8, part * 2 + lane / 8 % 2));
  } else if (sizeof(scalar_t) == 2) {
    int k = part * 16 + lane % 16, panel = c0 / DEPTH;
    ldmatrix_x4_trans(f, tile + place_of<false>(panel * DEPTH + k, c0 % DEPTH / 8 + lane / 16));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int c = c0 + i / 2 * 8 + lane / 4, k = part * 8 + lane % 4 + i % 2 * 4, panel = c0 / DEPTH;
      f[i] = *(const volatile unsigned*)(tile + place_of<false>(panel * DEPTH + k, c % DEPTH / 4) + lane / 4 % 4 * 4);
    }
  }
}

// A warp's sums: of each of MT x NT fragments, rows g and g + 8, columns 2t and 2t + 1 (lane 4g + t).
struct Sums {
  float v[MT][NT][4];
};

// sum += the products of all fragments of a with all of b.
template <class T> struct Math;
template <> struct Math<f16> {
  enum { SPLIT = false };
  static __device__ __forceinline__ void multiply(Sums& sum, unsigned (&a)[MT][4], unsigned (&b)[NT][2]) {
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int j = 0; j < NT; ++j) {
#if __CUDA_ARCH__ >= 800
        mma_m16n8k16_f16(sum.v[i][j], a[i], b[j]);
#else
        mma_m16n8k8_f16(sum.v[i][j], a[i], b[j]);
        mma_m16n8k8_f16(sum.v[i][j], a[i] + 2, b[j] + 1);
#endif
      }
    }
  }
};
#if __CUDA_ARCH__ >= 800
template <> struct Math<bf16> {
  enum { SPLIT = false };
  static __device__ __forceinline__ void multiply(Sums& sum, unsigned (&a)[MT][4], unsigned (&b)[NT][2]) {
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
      for (int j = 0; j < NT; ++j) mma_m16n8k16_bf16(sum.v[i][j], a[i], b[j]);
  }
};

// tf32 has the exponent of f32 and 11 significant bits.
template <int count> __device__ __forceinline__ void round_all(unsigned (&x)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) x[i] = f32_to_tf32_bits(__uint_as_float(x[i]));
}
// x = big + small: big, left in x, is x rounded to tf32, and small what remains: at most 12 bits, of which the instruction cuts
// off the last.
template <int count> __device__ __forceinline__ void split_all(unsigned (&x)[count], unsigned (&small)[count]) {
#pragma unroll
  for (int i = 0; i < count; ++i) {
    unsigned big = f32_to_tf32_bits(__uint_as_float(x[i])) & 0xffffe000u;
    small[i] = __float_as_uint(__uint_as_float(x[i]) - __uint_as_float(big));
    x[i] = big;
  }
}
template <> struct Math<float> {
  enum { SPLIT = EXACT };
  static __device__ __forceinline__ void multiply(Sums& sum, unsigned (&a)[MT][4], unsigned (&b)[NT][2]) {
#if EXACT
    // a b = big big + big small + small big; small small, at most 2^-22 of it, is left out. Tensor cores cut off sums instead of
    // rounding them, which would add up where all have one sign: they add eight k only, f32 additions do the rest.
    unsigned small_a[MT][4], small_b[2];
#pragma unroll
    for (int i = 0; i < MT; ++i) split_all(a[i], small_a[i]);
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      split_all(b[j], small_b);
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        float eight[4] = {};
        mma_m16n8k8_tf32(eight, small_a[i], b[j]);
        mma_m16n8k8_tf32(eight, a[i], small_b);
        mma_m16n8k8_tf32(eight, a[i], b[j]);
#pragma unroll
        for (int e = 0; e < 4; ++e) sum.v[i][j][e] += eight[e];
      }
    }
#else
#pragma unroll
    for (int i = 0; i < MT; ++i) round_all(a[i]);
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      round_all(b[j]);
#pragma unroll
      for (int i = 0; i < MT; ++i) mma_m16n8k8_tf32(sum.v[i][j], a[i], b[j]);
    }
#endif
  }
};
#endif

// sum += one step of k from shared memory.
template <class A, class B> __device__ __forceinline__ void multiply_step(Sums& sum, const char* a, const char* b) {
  typedef Math<scalar_t> M;
  const int warp = threadIdx.x / 32, m0 = warp % 2 * WARP_M, n0 = warp / 2 * WARP_N;
  // Splitting takes registers: one quarter at a time then.
#pragma unroll(M::SPLIT ? 1 : 4)
  for (int part = 0; part < 4; ++part) {
    unsigned fa[MT][4], fb[NT][2];
#pragma unroll
    for (int i = 0; i < MT; ++i) fragment_a<A::K_MAJOR>(fa[i], a, m0 + i * 16, part);
#pragma unroll
    for (int j = 0; j < NT; j += 2) fragments_b<B::K_MAJOR>(fb[j], b, n0 + j * 8, part);
    M::multiply(sum, fa, fb);
  }
}

// sum += the product over k in [begin, end), begin a multiple of DEPTH. `shared` holds STAGES * STAGE_BYTES.
template <class A, class B>
__device__ __forceinline__ void mma_product(Sums& sum, const A& a, int m0, const B& b, int n0, int begin, int end, char* shared) {
  Feed<A, TILE_M> fa;
  Feed<B, TILE_N> fb;
  fa.start(a, m0);
  fb.start(b, n0);
  const int steps = (end - begin + DEPTH - 1) / DEPTH;
#pragma unroll 1
  for (int s = 0; s < STAGES - 1; ++s) {
    char* stage = shared + s * STAGE_BYTES;
    if (s < steps) {
      fa.fetch(a, begin + s * DEPTH, end, stage);
      fb.fetch(b, begin + s * DEPTH, end, stage + TILE_M * 128);
      fa.put(stage);
      fb.put(stage + TILE_M * 128);
    }
#if ASYNC
    cp_async_commit();
#endif
  }
  char *now = shared, *next = shared + (STAGES - 1) * STAGE_BYTES;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
#if ASYNC
    cp_async_wait<STAGES - 2>();
#endif
    __syncthreads();  // this step has arrived for all, and nobody reads the one before, whose place comes next
    const bool more = step + STAGES - 1 < steps;
    if (more) {
      fa.fetch(a, begin + (step + STAGES - 1) * DEPTH, end, next);
      fb.fetch(b, begin + (step + STAGES - 1) * DEPTH, end, next + TILE_M * 128);
    }
#if ASYNC
    cp_async_commit();
#endif
    multiply_step<A, B>(sum, now, now + TILE_M * 128);
    if (more) {
      fa.put(next);
      fb.put(next + TILE_M * 128);
    }
    next = now;
    now = now + STAGE_BYTES == shared + STAGES * STAGE_BYTES ? shared : now + STAGE_BYTES;
  }
#if ASYNC
  cp_async_wait_all();
#endif
  __syncthreads();  // shared memory is free
}
