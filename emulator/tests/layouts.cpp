// The layouts of fragments and of swizzled boxes, a second time: element by element, by the formulas and tables of the PTX ISA (chapters
// on mma fragments, ldmatrix, wgmma registers and swizzling modes), independent of src/ptx.cpp, src/wgmma.cpp and src/tensor_map.cpp, which go by
// registers and address bits.
#include <cmath>

#include "cuda.h"

static const char* const source = R"(
#include "ptx_hopper.cuh"
typedef unsigned long long u64;
__device__ __forceinline__ float a_at(int row, int k) { return (row * 5 + k * 3) % 7 - 3; }
__device__ __forceinline__ float b_at(int k, int column) { return (k * 2 + column * 3) % 5 - 2; }
__device__ __forceinline__ unsigned bf(float f) { return __float_as_uint(f) >> 16; }
__device__ __forceinline__ unsigned half(float f) { return f32_to_f16_bits(f); }
#define LANE int lane = threadIdx.x % 32, group = lane >> 2, in_group = lane % 4
// Element i of C and D: row = groupID for i < 2, else groupID + 8; column = 2 threadID_in_group + (i & 1).
__device__ void put(float* y, const float* d) {
  LANE;
  for (int i = 0; i < 4; ++i) y[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = d[i];
}
// m16n8k16: a_i has row groupID for 0 <= i < 2 and 4 <= i < 6, else groupID + 8; column 2 threadID_in_group + (i & 1), + 8 for i >= 4.
// b_i has row 2 threadID_in_group + (i & 1), + 8 for i >= 2; column groupID. Two elements to a register, the first in the lower half.
extern "C" __global__ void k16(float* y) {
  LANE;
  unsigned a[4] = {}, b[2] = {};
  for (int i = 0; i < 8; ++i) {
    int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8, column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    a[i / 2] |= bf(a_at(row, column)) << 16 * (i & 1);
  }
  for (int i = 0; i < 4; ++i) b[i / 2] |= bf(b_at(in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0), group)) << 16 * (i & 1);
  float d[4] = {};
  mma_m16n8k16_bf16(d, a, b);
  put(y, d);
}
// m16n8k8 of f16: a_i has row groupID for i < 2, else groupID + 8; column 2 threadID_in_group + (i & 1). b_i: row 2 threadID_in_group + i.
extern "C" __global__ void k8(float* y) {
  LANE;
  unsigned a[2] = {}, b[1] = {};
  for (int i = 0; i < 4; ++i) a[i / 2] |= half(a_at(i < 2 ? group : group + 8, in_group * 2 + (i & 1))) << 16 * (i & 1);
  for (int i = 0; i < 2; ++i) b[0] |= half(b_at(in_group * 2 + i, group)) << 16 * i;
  float d[4] = {};
  mma_m16n8k8_f16(d, a, b);
  put(y, d);
}
// m16n8k8 of tf32: a0, a2 have row groupID, a1, a3 groupID + 8; a0, a1 have column threadID_in_group, a2, a3 + 4; b1 has row + 4.
extern "C" __global__ void k8_tf32(float* y) {
  LANE;
  unsigned a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = __float_as_uint(a_at(i == 0 || i == 2 ? group : group + 8, i < 2 ? in_group : in_group + 4));
  for (int i = 0; i < 2; ++i) b[i] = __float_as_uint(b_at(i == 0 ? in_group : in_group + 4, group));
  float d[4] = {};
  mma_m16n8k8_tf32(d, a, b);
  put(y, d);
}
// ldmatrix .x4: thread 8j + r gives row r of matrix j; of it thread T gets elements (T / 4, 2 (T % 4)) and the next, with .trans of the
// transposed matrix. Element (r, c) of matrix j is 64 j + 8 r + c. y[thread][register][half].
extern "C" __global__ void matrices(float* y, int transposed) {
  __shared__ __align__(16) unsigned short t[256];
  for (int i = threadIdx.x; i < 256; i += 32) t[i] = i;
  __syncwarp();
  unsigned r[4];
  if (transposed) ldmatrix_x4_trans(r, t + threadIdx.x * 8);
  else ldmatrix_x4(r, t + threadIdx.x * 8);
  for (int i = 0; i < 8; ++i) y[threadIdx.x * 8 + i] = r[i / 2] >> 16 * (i & 1) & 0xffff;
}
// A of wgmma in registers, 64 x 16: for each warp the m16n8k16 fragment of 16 rows; B 16 x 16, K-major, without a swizzle: core matrices
// of 8 rows of 16 bytes, `leading` apart along K and `stride` along N. D: column 8 (i / 4) + 2 threadID_in_group + (i & 1), row groupID, + 8 for i & 2.
extern "C" __global__ void __launch_bounds__(128) warpgroup(float* y) {
  __shared__ __align__(128) unsigned short t[256];
  for (int e = threadIdx.x; e < 256; e += 128) {
    int column = e / 16, k = e % 16;
    t[(column / 8 * 256 + k / 8 * 128 + column % 8 * 16) / 2 + k % 8] = bf(b_at(k, column));
  }
  fence_proxy_async();
  __syncthreads();
  LANE;
  int warp = threadIdx.x / 32;
  unsigned a[4] = {};
  for (int i = 0; i < 8; ++i) {
    int row = (i < 2 || (4 <= i && i < 6) ? group : group + 8) + 16 * warp, column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    a[i / 2] |= bf(a_at(row, column)) << 16 * (i & 1);
  }
  float d[8] = {};
  wgmma_fence();
  wgmma_bf16<16>(d, a, wgmma_descriptor(t, 128, 256, 0), 0);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_results(d);
  for (int i = 0; i < 8; ++i) y[(16 * warp + group + (i & 2 ? 8 : 0)) * 16 + 8 * (i / 4) + 2 * in_group + (i & 1)] = d[i];
}
// What a box of 1024 bytes looks like in shared memory, 16 bytes at a time by their number in the box.
extern "C" __global__ void box(float* y, const __grid_constant__ TensorMap map) {
  __shared__ __align__(1024) unsigned t[256];
  __shared__ u64 bar;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(&bar, 1024);
    tensor_load(t, &map, &bar, 0, 0);
  }
  __syncthreads();
  mbarrier_wait(&bar, 0);
  for (int i = threadIdx.x; i < 64; i += 32) y[i] = t[4 * i];
}
)";
static void* kernel(const char* name) {
    static void* module = module_of(source, {"--include-path=" HADAL_ROOT "/kernels"});
    return function_of(module, name);
}
static float a_at(int row, int k) { return float((row * 5 + k * 3) % 7 - 3); }
static float b_at(int k, int column) { return float((k * 2 + column * 3) % 5 - 2); }

static void product(const char* name, int rows, int columns, int terms) {
    CUdeviceptr y = device(sizeof(float) * (size_t)(rows * columns));
    OK(launch1(kernel(name), 1, rows == 64 ? 128 : 32, y));
    auto v = download<float>(y, (size_t)(rows * columns));
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            float sum = 0;
            for (int k = 0; k < terms; k++) sum += a_at(i, k) * b_at(k, j);
            EXPECT(v[(size_t)(i * columns + j)] == sum);
        }
}
static void matrices() {
    for (int transposed : {0, 1}) {
        CUdeviceptr y = device(1024);
        OK(launch1(kernel("matrices"), 1, 32, y, transposed));
        auto v = download<float>(y, 256);
        for (int thread = 0; thread < 32; thread++)
            for (int i = 0; i < 8; i++) {
                int row = thread / 4, column = 2 * (thread % 4) + i % 2;
                EXPECT(v[(size_t)(thread * 8 + i)] == float(64 * (i / 2) + (transposed ? 8 * column + row : 8 * row + column)));
            }
    }
}

// The ISA's figures: in each line of 128 bytes, which 16 bytes of the line stand where; the pattern repeats.
static const int none[1][8] = {{0, 1, 2, 3, 4, 5, 6, 7}};
static const int by_32[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}};
static const int by_64[4][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5}, {3, 2, 1, 0, 7, 6, 5, 4}};
static const int by_128[8][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}, {2, 3, 0, 1, 6, 7, 4, 5}, {3, 2, 1, 0, 7, 6, 5, 4},
                                 {4, 5, 6, 7, 0, 1, 2, 3}, {5, 4, 7, 6, 1, 0, 3, 2}, {6, 7, 4, 5, 2, 3, 0, 1}, {7, 6, 5, 4, 3, 2, 1, 0}};
struct alignas(64) Map { uint64_t words[16]; };
static void boxes() {
    struct { int swizzle; unsigned row; const int (*lines)[8]; int count; } modes[] = {{0, 128, none, 1}, {1, 32, by_32, 2}, {2, 64, by_64, 4}, {3, 128, by_128, 8}};
    for (auto& m : modes) {
        std::vector<uint32_t> x(256);
        for (uint32_t i = 0; i < 256; i++) x[i] = i / 4;
        CUdeviceptr p = upload(x), y = device(256);
        Map map;
        uint64_t extent[] = {m.row / 4, 1024 / m.row}, stride[] = {m.row};
        unsigned box[] = {m.row / 4, 1024 / m.row}, steps[] = {1, 1};
        OK(cuTensorMapEncodeTiled(&map, 2, 2, (void*)p, extent, stride, box, steps, 0, m.swizzle, 0, 0));
        OK(launch1(kernel("box"), 1, 32, y, map));
        auto v = download<uint32_t>(y, 64);
        for (int i = 0; i < 64; i++) {
            float f;
            memcpy(&f, &v[(size_t)i], 4);
            EXPECT(f == float(i / 8 * 8 + m.lines[i / 8 % m.count][i % 8]));
        }
    }
}

static const Case cases[] = {
    {"fragments of mma m16n8k16, bf16", [] { product("k16", 16, 8, 16); }, "", ""},
    {"fragments of mma m16n8k8, f16", [] { product("k8", 16, 8, 8); }, "", ""},
    {"fragments of mma m16n8k8, tf32", [] { product("k8_tf32", 16, 8, 8); }, "", ""},
    {"matrices of ldmatrix", matrices, "", ""},
    {"registers of wgmma, and its descriptor without a swizzle", [] { product("warpgroup", 64, 16, 16); }, "", ""},
    {"boxes in each swizzle", boxes, "", ""},
};
int main(int argc, char** argv) { return run_cases(argc, argv, cases); }
