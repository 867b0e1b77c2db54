// Clusters: the kernels of tests/kernels/cluster.cu against plain loops, and planted faults, each of which must be noticed.
#include <fstream>
#include <sstream>

#include "cuda.h"

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

static void* kernel_of(const char* name, int size, int fault) {
    std::ifstream f(HADAL_ROOT "/tests/kernels/cluster.cu");
    std::stringstream s;
    s << f.rdbuf();
    return function_of(module_of(s.str(), {"--include-path=" HADAL_ROOT "/kernels", "-DSIZE=" + std::to_string(size), "-DFAULT=" + std::to_string(fault)}), name);
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
static void boxes() {
    Map m[5];
    uint64_t extents[5][5] = {{64}, {8, 8}, {4, 4, 4}, {4, 4, 2, 2}, {4, 2, 2, 2, 2}};
    for (unsigned r = 1; r <= 5; r++) {
        uint64_t strides[4], bytes = 4;
        unsigned box[5], steps[] = {1, 1, 1, 1, 1};
        for (unsigned i = 0; i < r; i++) {
            box[i] = (unsigned)extents[r - 1][i];
            bytes *= box[i];
            if (i < 4) strides[i] = bytes;
        }
        std::vector<float> v(64);
        for (unsigned i = 0; i < 64; i++) v[i] = float((i + 1) << 2 * r);
        OK(cuTensorMapEncodeTiled(&m[r - 1], F32, r, (void*)upload(v), extents[r - 1], strides, box, steps, 0, 0, 2, 0));
    }
    CUdeviceptr y = device(512);
    OK(launch1(kernel_of("boxes", 1, 0), 2, 64, y, m[0], m[1], m[2], m[3], m[4]));
    auto v = download<float>(y, 128);
    for (unsigned i = 0; i < 64; i++) EXPECT(v[i] == float((i + 1) * (4 + 16 + 64 + 256)) && v[64 + i] == float((i + 1) * (4 + 16 + 64 + 256 + 1024)));
}
static void all() { rings(), ranks(), boxes(); }
template <int fault> static void fails() { GIVES(CUDA_ERROR_LAUNCH_FAILED, run_ring(2, fault)); }
static void no_clusters() { GIVES(CUDA_ERROR_LAUNCH_FAILED, launch1(kernel_of("others", 1, 0), 2, 64, device(64))); }

static const Case cases[] = {
    {"rings of 1, 2, 4 and 8 blocks", rings, "", ""},
    {"ranks, polls, threads that returned, sizes that are refused", ranks, "", ""},
    {"boxes of one to five axes", boxes, "", ""},
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
