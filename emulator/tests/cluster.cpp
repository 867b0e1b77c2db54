// Clusters: blocks that load for each other and arrive at each other's barriers, and planted faults, each of which must be
// noticed.
#include "cuda.h"

extern "C" int cuTensorMapEncodeTiled(void*, int, unsigned, void*, const uint64_t*, const uint64_t*, const unsigned*, const unsigned*, int, int, int, int);
extern "C" int cuLaunchKernelEx(const void*, void*, void**, void**);

struct alignas(64) Map { uint64_t words[16]; };
static const int F32 = 7;
static Map rows_of(CUdeviceptr p, unsigned columns, unsigned rows, unsigned box_rows) {
    Map m;
    uint64_t extent[] = {columns, rows}, stride[] = {columns * 4};
    unsigned box[] = {32, box_rows}, steps[] = {1, 1};
    OK(cuTensorMapEncodeTiled(&m, F32, 2, (void*)p, extent, stride, box, steps, 0, 0, 2, 0));
    return m;
}

// Each block of a cluster of SIZE has its own rows of x, and loads its part of what all share for all: the ring of
// hadal's products. FAULT is what is wrong.
static const char* source = R"(
#include "ptx_hopper.cuh"
typedef unsigned long long u64;
enum { STAGES = 2, PART = 8 / SIZE };
struct alignas(128) Stage { float own[4][32], shared[8][32]; };

// y[block][row][column] = sum over the steps of own + the sum of the shared rows' column
extern "C" __global__ void __cluster_dims__(SIZE, 1, 1) __launch_bounds__(160)
    ring(float* y, const __grid_constant__ TensorMap own, const __grid_constant__ TensorMap shared, int steps) {
  __shared__ Stage stages[STAGES];
  __shared__ u64 full[STAGES], empty[STAGES];
  const unsigned rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) mbarrier_init(full + i, 1), mbarrier_init(empty + i, FAULT == 1 ? 4 : 4 * size);
    if (FAULT != 2) fence_mbarrier_init();
  }
  if (FAULT == 3 || FAULT == 2) __syncthreads();
  if (FAULT != 3) cluster_arrive(), cluster_wait();
  if (FAULT == 7 && rank == 1) return;
  if (threadIdx.x >= 128) {
    if (elect_one())
      for (int i = 0; i < steps; ++i) {
        const int s = i % STAGES;
        mbarrier_wait(empty + s, (i / STAGES & 1) ^ 1);
        mbarrier_arrive_expect(full + s, sizeof(Stage) + (FAULT == 4 ? 128 : FAULT == 5 ? -128 : 0));
        tensor_load(stages[s].own, &own, full + s, i * 32, blockIdx.x * 4);
        tensor_load_multicast(stages[s].shared + rank * PART, &shared, full + s, FAULT == 6 ? 1u << (1 + size) : (1u << size) - 1, i * 32,
                              rank * PART);
      }
  } else {
    float sum = 0;
    for (int i = 0; i < steps; ++i) {
      const int s = i % STAGES;
      mbarrier_wait(full + s, i / STAGES & 1);
      sum += stages[s].own[threadIdx.x / 32][threadIdx.x % 32];
      for (int r = 0; r < 8; ++r) sum += stages[s].shared[r][threadIdx.x % 32];
      __syncwarp();
      if (FAULT == 1) {
        if (threadIdx.x % 32 == 0) mbarrier_arrive(empty + s);
      } else if (threadIdx.x % 32 < size) {
        mbarrier_arrive_cluster(empty + s, threadIdx.x % 32);
      }
      if (FAULT == 8 && rank == 1 && i == 1) return;
    }
    y[blockIdx.x * 128 + threadIdx.x] = sum;
  }
  if (FAULT == 9 || (FAULT == 10 && rank == 0)) return;
  if (FAULT == 11) cluster_wait();
  cluster_arrive();
  if (FAULT == 12) return;
  if (FAULT == 13) cluster_arrive();
  cluster_wait();
}

// Rank and size in three dimensions; a poll that only the other block ends; variables met in another order; threads that returned.
__device__ __forceinline__ u64* late(int which) {
  __shared__ u64 a[3];
  if (which == 0) return a;
  __shared__ u64 b;
  return &b;
}
extern "C" __global__ void others(float* y) {
  const unsigned rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x >= 40) return;
  u64 *a = late(rank % 2), *b = late(1 - rank % 2), *bar = rank % 2 ? a : b;
  if (threadIdx.x == 0) mbarrier_init(bar, size), fence_mbarrier_init();
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x < size) mbarrier_arrive_cluster(bar, threadIdx.x);
  if (threadIdx.x == 32)
    while (!mbarrier_test_wait(bar, 0)) {
    }
  if (threadIdx.x == 33) mbarrier_wait(bar, 0);
  if (threadIdx.x == 0) y[(blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = rank + 100 * size;
  cluster_arrive();
  cluster_wait();
}
)";
static void* kernel_of(const char* name, int size, int fault) {
    return function_of(module_of(source, {"--include-path=" HADAL_ROOT "/kernels", "-DSIZE=" + std::to_string(size), "-DFAULT=" + std::to_string(fault)}), name);
}

static int run_ring(int size, int fault, unsigned blocks = 0, std::vector<float>* out = nullptr, std::vector<float>* want = nullptr) {
    const unsigned steps = 7, columns = steps * 32;
    if (!blocks) blocks = 3 * (unsigned)size;
    std::vector<float> own(blocks * 4 * columns), shared(8 * columns);
    for (size_t i = 0; i < own.size(); i++) own[i] = float(i * 7 % 61);
    for (size_t i = 0; i < shared.size(); i++) shared[i] = float(i * 5 % 53);
    CUdeviceptr y = device(blocks * 512);
    int e = launch1(kernel_of("ring", size, fault), blocks, 160, y, rows_of(upload(own), columns, blocks * 4, 4), rows_of(upload(shared), columns, 8, 8 / (unsigned)size), (int)steps);
    if (!out) return e;
    *out = download<float>(y, blocks * 128);
    for (unsigned i = 0; i < blocks * 128; i++) {
        float sum = 0;
        for (unsigned k = 0; k < steps; k++) {
            sum += own[i / 32 * columns + k * 32 + i % 32];
            for (unsigned r = 0; r < 8; r++) sum += shared[r * columns + k * 32 + i % 32];
        }
        want->push_back(sum);
    }
    return e;
}
static void rings() {
    for (int size : {1, 2, 4, 8}) {
        std::vector<float> y, want;
        OK(run_ring(size, 0, 0, &y, &want));
        EXPECT(y == want);
    }
}
struct Attribute { int id, pad; unsigned cluster[3]; char rest[52]; };
struct Config { unsigned gx, gy, gz, bx, by, bz, shared; void* stream; Attribute* attributes; unsigned count; };
static int with_attribute(void* f, unsigned grid[3], unsigned x, unsigned y, unsigned z, CUdeviceptr out) {
    Attribute a{4, 0, {x, y, z}, {}};
    Config c{grid[0], grid[1], grid[2], 64, 1, 1, 0, nullptr, &a, 1};
    void* args[] = {&out};
    return cuLaunchKernelEx(&c, f, args, nullptr);
}
static void ranks() {
    void* f = kernel_of("others", 1, 0);
    unsigned grid[] = {4, 6, 2};
    CUdeviceptr out = device(48 * 4);
    OK(with_attribute(f, grid, 2, 3, 1, out));
    auto y = download<float>(out, 48);
    for (unsigned i = 0; i < 48; i++) EXPECT(y[i] == float(600 + i % 4 % 2 + i / 4 % 6 % 3 * 2));
    GIVES(CUDA_ERROR_INVALID_CLUSTER_SIZE, with_attribute(f, grid, 3, 1, 1, out));
    GIVES(CUDA_ERROR_INVALID_CLUSTER_SIZE, with_attribute(f, grid, 4, 3, 1, out));
    GIVES(CUDA_ERROR_INVALID_CLUSTER_SIZE, run_ring(2, 0, 3));
}
static void all() { rings(), ranks(); }
template <int fault> static void fails() { GIVES(CUDA_ERROR_LAUNCH_FAILED, run_ring(2, fault)); }
static void no_clusters() { GIVES(CUDA_ERROR_LAUNCH_FAILED, launch1(kernel_of("others", 1, 0), 2, 64, device(64))); }

static const Case cases[] = {
    {"rings of 1, 2, 4 and 8 blocks", rings, "", ""},
    {"ranks, polls, threads that returned, sizes that are refused", ranks, "", ""},
    {"all, shuffled", all, "HADAL_EMU_SHUFFLE=7", ""},
    {"all, shuffled otherwise", all, "HADAL_EMU_SHUFFLE=12", ""},
    {"all, on one thread", all, "HADAL_EMU_THREADS=1", ""},
    {"all, checked", all, "HADAL_EMU_CHECK=1 HADAL_EMU_RACE=1", ""},
    {"fault: nobody asks the partner whether it has read", fails<1>, "", "no thread of the cluster can go on"},
    {"fault: the same, by the race detector", fails<1>, "HADAL_EMU_RACE=1", "race"},
    {"fault: initialization not made visible", fails<2>, "", "no fence_mbarrier_init"},
    {"fault: no barrier of the cluster at the beginning", fails<3>, "", "no barrier of the cluster in between"},
    {"fault: too many bytes expected", fails<4>, "", "128 bytes to come"},
    {"fault: too few bytes expected", fails<5>, "", "128 bytes too many"},
    {"fault: a block that is not in the cluster", fails<6>, "", "with mask 8 in a cluster of 2"},
    {"fault: a block that ends at once", fails<7>, "", "which has ended"},
    {"fault: a block that ends early", fails<8>, "", "no thread of the cluster can go on"},
    {"fault: no barrier of the cluster at the end", fails<9>, "", "the block ended while another one of its cluster may still arrive"},
    {"fault: a block that does not wait at the end", fails<10>, "", "may still arrive"},
    {"fault: waits without having arrived", fails<11>, "", "has not arrived"},
    {"fault: ends without having waited", fails<12>, "", "between cluster_arrive and cluster_wait"},
    {"fault: arrives twice", fails<13>, "", "has arrived and not waited"},
    {"fault: a launch without clusters", no_clusters, "", "without clusters"},
};

int main(int argc, char** argv) { return run_cases(argc, argv, cases); }
