// The emulator's own tests but for Hopper's words, which hopper.cpp has.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <functional>
#include <thread>

#include "cuda.h"

static double ms_of(const std::function<void()>& f) {
    auto t = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - t).count();
}

// ---- what should work

static void axpy() {
    void* f = function_of(module_of(R"(extern "C" __global__ void axpy(float* y, const float* x, float a, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) y[i] += a * x[i];
    })"), "axpy");
    int n = 1 << 20;
    CUdeviceptr x = upload(std::vector<float>(n, 1.f)), y = upload(std::vector<float>(n, 0.f));
    double best = 1e9;
    for (int k = 0; k < 5; k++) best = std::min(best, ms_of([&] { OK(launch1(f, (n + 255) / 256, 256, y, x, 2.f, n)); }));
    for (float v : download<float>(y, n)) EXPECT(v == 10.f);
    size_t offset, size;
    OK(cuFuncGetParamInfo(f, 2, &offset, &size));
    EXPECT(offset == 16 && size == 4);
    printf("axpy of a million elements: %.2f ms\n", best);
}

static void matmul() {
    void* m = module_of(R"(
    template <int TILE> __device__ void tile(const float* A, const float* B, float* C, int n, float* a, float* b) {
        int tx = threadIdx.x, ty = threadIdx.y, r = blockIdx.y * TILE + ty, c = blockIdx.x * TILE + tx;
        float s = 0;
        for (int k = 0; k < n; k += TILE) {
            a[ty * TILE + tx] = A[r * n + k + tx];
            b[ty * TILE + tx] = B[(k + ty) * n + c];
            __syncthreads();
            for (int i = 0; i < TILE; i++) s += a[ty * TILE + i] * b[i * TILE + tx];
            __syncthreads();
        }
        C[r * n + c] = s;
    }
    extern "C" __global__ void __launch_bounds__(256) fixed(const float* A, const float* B, float* C, int n) {
        __shared__ float a[16][16], b[16][16];
        tile<16>(A, B, C, n, a[0], b[0]);
    }
    extern "C" __global__ void dynamic(const float* A, const float* B, float* C, int n) {
        extern __shared__ __align__(16) float s[];
        tile<16>(A, B, C, n, s, s + 256);
    })");
    int n = 256;
    std::vector<float> A(n * n), B(n * n);
    for (int i = 0; i < n * n; i++) A[i] = float(i * 7 % 13 - 6), B[i] = float(i * 5 % 11 - 5);
    CUdeviceptr a = upload(A), b = upload(B), c = device(n * n * 4);
    for (const char* name : {"fixed", "dynamic"}) {
        void* f = function_of(m, name);
        OK(cuMemsetD32Async(c, 0xffffffff, n * n, nullptr));
        double best = 1e9;
        for (int k = 0; k < 3; k++)
            best = std::min(best, ms_of([&] { OK(launch(f, {16, 16, 1, 16, 16, 1, name[0] == 'd' ? 2048u : 0u}, nullptr, a, b, c, n)); }));
        auto C = download<float>(c, n * n);
        for (int r = 0; r < n; r += 7)
            for (int q = 0; q < n; q++) {
                float s = 0;
                for (int k = 0; k < n; k++) s += A[r * n + k] * B[k * n + q];
                EXPECT(C[r * n + q] == s);
            }
        printf("matmul of 256, tiles of 16, %s: %.1f ms\n", name, best);
    }
    int shared, most;
    OK(cuFuncGetAttribute(&shared, 1, function_of(m, "fixed")));
    OK(cuFuncGetAttribute(&most, 0, function_of(m, "fixed")));
    EXPECT(shared == 2048 && most == 256);
}

static void warps() {
    void* m = module_of(R"(
    extern "C" __global__ void shuffles(const int* x, long long* out) {
        int t = threadIdx.x, v = x[t];
        out[t * 12 + 0] = __shfl_sync(~0u, v, 5);
        out[t * 12 + 1] = __shfl_up_sync(~0u, v, 3);
        out[t * 12 + 2] = __shfl_down_sync(~0u, v, 3);
        out[t * 12 + 3] = __shfl_xor_sync(~0u, v, 9);
        out[t * 12 + 4] = __shfl_sync(~0u, v, 2, 8);
        out[t * 12 + 5] = __shfl_down_sync(~0u, v, 3, 8);
        out[t * 12 + 6] = __ballot_sync(~0u, v & 1);
        out[t * 12 + 7] = __any_sync(~0u, v == 17) * 2 + __all_sync(~0u, v >= 0);
        out[t * 12 + 8] = __reduce_add_sync(~0u, v);
        double d = __shfl_xor_sync(~0u, v + 0.5, 1);
        out[t * 12 + 9] = (long long)(d * 2);
        // Halves of a warp on their own ways.
        if (t % 32 < 16) { for (int m = 8; m; m >>= 1) v += __shfl_xor_sync(0x0000ffffu, v, m); }
        else { for (int m = 8; m; m >>= 1) v = max(v, __shfl_xor_sync(0xffff0000u, v, m)); __syncwarp(0xffff0000u); }
        out[t * 12 + 10] = v;
        out[t * 12 + 11] = __syncthreads_count(t % 3 == 0) * 100 + __syncthreads_or(t == 4) * 10 + __syncthreads_and(t < 1000);
    }
    extern "C" __global__ void partial(float* out) {
        // 50 threads: the second warp has 18 lanes
        float s = 1;
        for (int m = 16; m; m >>= 1) s += __shfl_down_sync(~0u, s, m);
        out[threadIdx.x] = s;
    }
    extern "C" __global__ void votes_of_some(int* out) {
        if (threadIdx.x % 32 >= 20) return;         // exited lanes do not count
        out[threadIdx.x] = __ballot_sync(~0u, 1);
        __syncthreads();
    })");
    std::vector<int> x(64);
    for (int i = 0; i < 64; i++) x[i] = i * 37 % 64;
    CUdeviceptr dx = upload(x), out = device(64 * 12 * 8);
    OK(launch1(function_of(m, "shuffles"), 1, 64, dx, out));
    auto o = download<long long>(out, 64 * 12);
    for (int t = 0; t < 64; t++) {
        int w = t & ~31, l = t & 31;
        long long* r = &o[t * 12];
        unsigned ballot = 0;
        int sum = 0, any = 0, low = 0, high = 0;
        for (int i = 0; i < 32; i++) {
            ballot |= (unsigned)(x[w + i] & 1) << i, sum += x[w + i], any |= x[w + i] == 17;
            if (i < 16) low += x[w + i];
            else high = std::max(high, x[w + i]);
        }
        EXPECT(r[0] == x[w + 5]);
        EXPECT(r[1] == (l < 3 ? x[t] : x[t - 3]));
        EXPECT(r[2] == (l > 28 ? x[t] : x[t + 3]));
        EXPECT(r[3] == x[w + (l ^ 9)]);
        EXPECT(r[4] == x[w + (l & ~7) + 2]);
        EXPECT(r[5] == ((l & 7) + 3 > 7 ? x[t] : x[t + 3]));
        EXPECT((unsigned)r[6] == ballot);
        EXPECT(r[7] == any * 2 + 1);
        EXPECT(r[8] == sum);
        EXPECT(r[9] == x[w + (l ^ 1)] * 2 + 1);
        EXPECT(r[10] == (l < 16 ? low : high));
        EXPECT(r[11] == 22 * 100 + 10 + 1);
    }
    CUdeviceptr p = device(50 * 4);
    OK(launch1(function_of(m, "partial"), 1, 50, p));
    auto v = download<float>(p, 50);
    EXPECT(v[0] == 32.f && std::isnan(v[32]));      // lanes that are not there give NaN
    CUdeviceptr q = device(64 * 4);
    OK(launch1(function_of(m, "votes_of_some"), 1, 64, q));
    auto b = download<unsigned>(q, 64);
    EXPECT(b[0] == 0xfffff && b[33] == 0xfffff);
}

static void atomics() {
    void* m = module_of(R"(
    __device__ int counter;
    __constant__ float table[4];
    __device__ unsigned done = 0;
    extern "C" __global__ void add(float* f, double* d, int* lo, unsigned long long* bits, unsigned* last) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        atomicAdd(f, 1.f);
        atomicAdd(d, 0.5);
        atomicMin(lo, 100 - i);
        atomicMax(bits, (unsigned long long)i << 32);
        atomicAdd(&counter, 1);
        if (i == 0) f[1] = table[2];
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            if (atomicInc(&done, gridDim.x - 1) == gridDim.x - 1) *last = done;
        }
    })");
    CUdeviceptr f = upload(std::vector<float>(2, 0.f)), d = upload(std::vector<double>(1, 0.)), lo = upload(std::vector<int>(1, 0)),
                bits = upload(std::vector<unsigned long long>(1, 0)), last = upload(std::vector<unsigned>(1, 77));
    CUdeviceptr counter, table;
    size_t n;
    OK(cuModuleGetGlobal_v2(&counter, &n, m, "counter"));
    EXPECT(n == 4);
    OK(cuModuleGetGlobal_v2(&table, &n, m, "table"));
    EXPECT(n == 16);
    float t[4] = {1, 2, 3, 4};
    OK(cuMemcpyHtoD_v2(table, t, sizeof t));
    OK(launch1(function_of(m, "add"), 64, 128, f, d, lo, bits, last));
    auto v = download<float>(f, 2);
    EXPECT(v[0] == 8192.f && v[1] == 3.f);
    EXPECT(download<double>(d, 1)[0] == 4096.);
    EXPECT(download<int>(lo, 1)[0] == 100 - 8191);
    EXPECT(download<unsigned long long>(bits, 1)[0] == 8191ull << 32);
    EXPECT(download<int>(counter, 1)[0] == 8192);
    EXPECT(download<unsigned>(last, 1)[0] == 0);
    // Two loads of one image are two modules.
    std::string image = compile("__device__ int g = 5; extern \"C\" __global__ void k() { g++; }");
    void *a, *b;
    OK(cuModuleLoadData(&a, image.data()));
    OK(cuModuleLoadData(&b, image.data()));
    OK(launch1(function_of(a, "k"), 1, 1));
    OK(cuModuleGetGlobal_v2(&counter, &n, a, "g"));
    EXPECT(download<int>(counter, 1)[0] == 6);
    OK(cuModuleGetGlobal_v2(&counter, &n, b, "g"));
    EXPECT(download<int>(counter, 1)[0] == 5);
    OK(cuModuleUnload(a));
}

static void words() {
    // Things that kernels do in passing: templates by name, macros that make kernels, structs by value, file-scope shared memory.
    std::string src = R"(
    #define SCALE(name, T) extern "C" __global__ void name(T* x, T f) { x[threadIdx.x] *= f; }
    SCALE(scale_float, float)
    SCALE(scale_int, int)
    struct Shape { long long extent[8]; int rank; };
    struct alignas(64) Big { unsigned long long w[16]; };
    extern __shared__ float pool[];
    template <class T, int K> __global__ void twice(T* x) { __shared__ T s[K * 32]; s[threadIdx.x] = x[threadIdx.x]; __syncthreads(); x[threadIdx.x] = s[threadIdx.x] * 2; }
    namespace inner { __global__ void one(int* x) { *x = 1; } }
    extern "C" {
    __global__ void by_value(long long* out, const Shape s, const __grid_constant__ Big b, short h, double d) {
        pool[threadIdx.x] = 1; __syncthreads();
        *out = s.extent[3] * s.rank + (long long)b.w[15] + h + (long long)d + (long long)pool[1];
    }
    }
    extern "C" __global__ void mathematics(float* y) {
        y[0] = fmaf(2.f, 3.f, 1.f); y[1] = rsqrtf(4.f); y[2] = __int_as_float(0x40490fdb); y[3] = fmaxf(1.f, __int_as_float(0x7fc00000));
        y[4] = (float)__float2int_rn(2.5f); y[5] = min(3, 4u); y[6] = __fdividef(1.f, 4.f); y[7] = erff(0.f); y[8] = (float)__popc(255);
        y[9] = isnan(y[2]) ? 1 : 0; y[10] = exp2f(3.f); y[11] = copysignf(2.f, -1.f); y[12] = (float)__clz(1); y[13] = (float)__byte_perm(0x44332211, 0, 0x0123);
        float4 v = make_float4(1, 2, 3, 4); y[14] = v.x + v.w; y[15] = (float)__umulhi(0x80000000u, 4u);
        #pragma unroll
        for (int i = 16; i < 18; i++) y[i] = __ldg(&y[i - 16]);
    })";
    std::vector<std::pair<std::string, std::string>> names = {{"twice<float, 2>", ""}, {"twice<int,1>", ""}, {"inner::one", ""}};
    void *m, *f;
    OK(cuModuleLoadData(&m, compile(src, {"-DU=1", "-DF=2", "-DI=3", "-DA=4", "-DTag=5", "-DAlign=6", "-DOp=7", "--use_fast_math", "-std=c++17"}, nullptr, &names).data()));
    CUdeviceptr x = upload(std::vector<float>(64, 3.f));
    OK(launch1(function_of(m, "scale_float"), 1, 64, x, 2.f));
    OK(cuModuleGetFunction(&f, m, names[0].second.c_str()));
    OK(launch1(f, 1, 64, x));
    for (float v : download<float>(x, 64)) EXPECT(v == 12.f);
    CUdeviceptr one = device(4);
    OK(cuModuleGetFunction(&f, m, names[2].second.c_str()));
    OK(launch1(f, 1, 1, one));
    EXPECT(download<int>(one, 1)[0] == 1);
    struct Shape { long long extent[8]; int rank; } s{{1, 2, 3, 40}, 2};
    struct alignas(64) Big { unsigned long long w[16]; } b{};
    b.w[15] = 1000;
    CUdeviceptr out = device(8);
    OK(launch(function_of(m, "by_value"), {1, 1, 1, 2, 1, 1, 8}, nullptr, out, s, b, (short)-7, 20000.0));
    EXPECT(download<long long>(out, 1)[0] == 80 + 1000 - 7 + 20000 + 1);
    CUdeviceptr y = device(18 * 4);
    OK(launch1(function_of(m, "mathematics"), 1, 1, y));
    auto v = download<float>(y, 18);
    float want[] = {7, .5f, 3.14159274f, 1, 2, 3, .25f, 0, 8, 0, 8, -2, 31, 287454020.f, 5, 2, 7, .5f};
    for (int i = 0; i < 18; i++) EXPECT(v[i] == want[i]);
}

static void graph() {
    void* m = module_of(R"(extern "C" __global__ void add(float* y, float a) { y[threadIdx.x] += a; }
                           extern "C" __global__ void mul(float* y, float a) { y[threadIdx.x] *= a; })");
    void *add = function_of(m, "add"), *mul = function_of(m, "mul"), *s, *side, *fork, *join, *g, *x, *g2;
    OK(cuStreamCreate(&s, 1));
    OK(cuStreamCreate(&side, 1));
    OK(cuEventCreate(&fork, 2));
    OK(cuEventCreate(&join, 2));
    CUdeviceptr y = upload(std::vector<float>(32, 1.f)), z = upload(std::vector<float>(32, 0.f));
    auto record = [&](float a, void** out) {
        OK(cuStreamBeginCapture_v2(s, 1));
        OK(launch(add, {1, 1, 1, 32, 1, 1, 0}, s, y, a));
        OK(cuEventRecord(fork, s));
        OK(cuStreamWaitEvent(side, fork, 0));
        OK(cuMemcpyDtoDAsync_v2(z, y, 128, side));
        OK(cuEventRecord(join, side));
        OK(launch(mul, {1, 1, 1, 32, 1, 1, 0}, s, y, 2.f));
        OK(cuStreamWaitEvent(s, join, 0));
        CUdeviceptr t;
        OK(cuMemAllocAsync(&t, 128, s));
        OK(cuMemsetD32Async(t, 0, 32, s));
        OK(launch(add, {1, 1, 1, 32, 1, 1, 0}, s, t, 1.f));
        OK(cuMemFreeAsync(t, s));
        int status;
        OK(cuStreamIsCapturing(side, &status));
        EXPECT(status == 1);
        OK(cuStreamEndCapture(s, out));
    };
    record(1.f, &g);
    EXPECT(download<float>(y, 1)[0] == 1.f);        // nothing has run
    size_t n = 0;
    OK(cuGraphGetNodes(g, nullptr, &n));
    EXPECT(n == 7);
    OK(cuGraphInstantiateWithFlags(&x, g, 0));
    OK(cuGraphLaunch(x, s));
    OK(cuGraphLaunch(x, s));
    OK(cuStreamSynchronize(s));
    EXPECT(download<float>(y, 1)[0] == 10.f && download<float>(z, 1)[0] == 5.f);
    record(3.f, &g2);
    long long info[3];
    OK(cuGraphExecUpdate_v2(x, g2, info));
    OK(cuGraphLaunch(x, s));
    EXPECT(download<float>(y, 1)[0] == 26.f);
    OK(cuGraphDestroy(g));
    OK(cuGraphDestroy(g2));
    OK(cuGraphLaunch(x, s));
    OK(cuGraphExecDestroy(x));
    // What a capture forbids.
    OK(cuStreamBeginCapture_v2(s, 0));
    CUdeviceptr p;
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuMemAlloc_v2(&p, 16));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, launch(add, {1, 1, 1, 32, 1, 1, 0}, s, y, 1.f));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(s, &g));
    OK(cuStreamBeginCapture_v2(s, 1));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamSynchronize(s));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, cuStreamEndCapture(s, &g));
    OK(cuStreamBeginCapture_v2(s, 1));
    OK(cuEventRecord(fork, s));
    OK(cuStreamWaitEvent(side, fork, 0));
    OK(launch(add, {1, 1, 1, 32, 1, 1, 0}, side, y, 1.f));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, cuStreamEndCapture(s, &g));
    GIVES(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, cuStreamBeginCapture_v2(nullptr, 0));
}

static void events() {
    void *a, *b, *c;
    OK(cuEventCreate(&a, 0));
    OK(cuEventCreate(&b, 0));
    OK(cuEventCreate(&c, 2));
    float ms;
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime(&ms, a, b));
    OK(cuEventRecord(a, nullptr));
    usleep(2000);
    OK(cuEventRecord(b, nullptr));
    OK(cuEventRecord(c, nullptr));
    OK(cuEventElapsedTime(&ms, a, b));
    EXPECT(ms >= 2 && ms < 2000);
    GIVES(CUDA_ERROR_INVALID_HANDLE, cuEventElapsedTime(&ms, a, c));
}

static void memory_limits() {       // HADAL_EMU_MEMORY=64M
    size_t free, total;
    OK(cuMemGetInfo_v2(&free, &total));
    EXPECT(total == 64u << 20 && free == total);
    CUdeviceptr a, b;
    OK(cuMemAlloc_v2(&a, 40 << 20));
    GIVES(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc_v2(&b, 30 << 20));
    OK(cuMemFree_v2(a));
    OK(cuMemAllocAsync(&b, 30 << 20, nullptr));
    unsigned char byte;
    OK(cuMemcpyDtoH_v2(&byte, b, 1));
    EXPECT(byte == 0xFF);
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemcpyDtoH_v2(&byte, b + (30 << 20), 1));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(b + 16));
    OK(cuMemFreeAsync(b, nullptr));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemFree_v2(b));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuMemAlloc_v2(&a, 0));
}

static void launches() {
    void* m = module_of(R"(extern "C" __global__ void k(int* x) { extern __shared__ int s[]; s[0] = 1; *x = s[0]; }
                           extern "C" __global__ void __launch_bounds__(128, 2) bounded(int* x) { *x = 2; })");
    void *k = function_of(m, "k"), *bounded = function_of(m, "bounded");
    CUdeviceptr x = device(4);
    auto go = [&](void* f, Grid g) { return launch(f, g, nullptr, x); };
    GIVES(CUDA_ERROR_INVALID_VALUE, go(k, {0, 1, 1, 1, 1, 1, 4}));
    GIVES(CUDA_ERROR_INVALID_VALUE, go(k, {1, 1, 1, 0, 1, 1, 4}));
    GIVES(CUDA_ERROR_INVALID_VALUE, go(k, {1, 1, 1, 1025, 1, 1, 4}));
    GIVES(CUDA_ERROR_INVALID_VALUE, go(k, {1, 1, 1, 32, 33, 1, 4}));
    GIVES(CUDA_ERROR_INVALID_VALUE, go(k, {1, 1, 1, 1, 1, 65, 4}));
    GIVES(CUDA_ERROR_INVALID_VALUE, go(k, {1, 65536, 1, 1, 1, 1, 4}));
    GIVES(CUDA_ERROR_INVALID_VALUE, go(k, {1, 1, 65536, 1, 1, 1, 4}));
    GIVES(CUDA_ERROR_INVALID_VALUE, go(k, {1, 1, 1, 1, 1, 1, 48 * 1024 + 4}));
    OK(go(k, {1, 1, 1, 1, 1, 1, 48 * 1024}));
    OK(cuFuncSetAttribute(k, 8, 227 * 1024));
    OK(go(k, {1, 1, 1, 1, 1, 1, 227 * 1024}));
    GIVES(CUDA_ERROR_INVALID_VALUE, go(k, {1, 1, 1, 1, 1, 1, 227 * 1024 + 4}));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuFuncSetAttribute(k, 8, 228 * 1024));
    GIVES(CUDA_ERROR_INVALID_VALUE, go(bounded, {1, 1, 1, 129, 1, 1, 0}));
    OK(go(bounded, {1, 1, 1, 128, 1, 1, 0}));
    GIVES(CUDA_ERROR_INVALID_HANDLE, go(nullptr, {1, 1, 1, 1, 1, 1, 0}));
    EXPECT(download<int>(x, 1)[0] == 2);
    void* f;
    GIVES(CUDA_ERROR_NOT_FOUND, cuModuleGetFunction(&f, m, "absent"));
    int blocks;
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, bounded, 128, 100 * 1024));
    EXPECT(blocks == 2);
    int status;
    OK(cuGetProcAddress_v2("cuMemAlloc", &f, 12090, 0, &status));
    EXPECT(f == (void*)&cuMemAlloc_v2);
}

static void errors_of_compiling() {
    std::string log, image = compile("#line 12 \"kernels/conv2d.cu\"\nextern \"C\" __global__ void f(float* x) {\n  x[0] = undefined_thing;\n}\n", {}, &log);
    EXPECT(image.empty() && log.find("kernels/conv2d.cu(13): error:") != std::string::npos);
    image = compile("#line 7 \"kernels/a.cuh\"\n#error no such dtype\n", {}, &log);
    EXPECT(image.empty() && log.find("kernels/a.cuh(7): error:") != std::string::npos);
    image = compile("__device__ int missing(int);\nextern \"C\" __global__ void f(int* x) { *x = missing(1); }\n", {}, &log);
    EXPECT(image.empty() && log.find("missing") != std::string::npos);
    image = compile("#include <cmath>\n", {}, &log);        // NVRTC has no host headers, either
    EXPECT(image.empty() && log.find("cmath") != std::string::npos);
    image = compile("extern \"C\" __global__ void f() {}", {"--no-such-option"}, &log);
    EXPECT(image.empty() && log.find("--no-such-option") != std::string::npos);
}

static void matrices() {
    void* m = module_of(R"(
    #include "emu_ptx.h"
    // D[16][8] = A[16][16] B[16][8], A row-major, B as [n][k] rows; through shared memory, cp.async and ldmatrix.
    extern "C" __global__ void bf16_mma(const unsigned short* A, const unsigned short* B, float* D) {
        __shared__ __align__(16) unsigned short a[16 * 16];
        __shared__ __align__(16) unsigned short b[8 * 16];
        int l = threadIdx.x;
        cp_async_16(a + l * 8, A + l * 8);
        cp_async_commit();
        if (l < 16) cp_async_16(b + l * 8, B + l * 8);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        unsigned ra[4], rb[2];
        ldmatrix_x4(ra, a + (l % 16) * 16 + (l / 16) * 8);
        ldmatrix_x2(rb, b + (l % 8) * 16 + (l / 8 % 2) * 8);
        float d[4] = {0, 0, 0, 0};
        mma_m16n8k16_bf16(d, ra, rb);
        int g = l / 4, t = l % 4;
        D[g * 8 + 2 * t] = d[0]; D[g * 8 + 2 * t + 1] = d[1]; D[(g + 8) * 8 + 2 * t] = d[2]; D[(g + 8) * 8 + 2 * t + 1] = d[3];
    }
    extern "C" __global__ void tf32_mma(const float* A, const float* B, float* D) {     // A[16][8], B[8][8] as [k][n]
        int l = threadIdx.x, g = l / 4, t = l % 4;
        unsigned a[4], b[2];
        for (int i = 0; i < 4; i++) a[i] = f32_to_tf32_bits(A[(g + (i & 1) * 8) * 8 + t + (i >> 1) * 4]);
        for (int i = 0; i < 2; i++) b[i] = f32_to_tf32_bits(B[(t + i * 4) * 8 + g]);
        float d[4] = {1, 1, 1, 1};
        mma_m16n8k8_tf32(d, a, b);
        for (int i = 0; i < 4; i++) D[(g + (i >> 1) * 8) * 8 + 2 * t + (i & 1)] = d[i];
    }
    extern "C" __global__ void zero_fill(const float* x, float* y) {
        __shared__ __align__(16) float s[8];
        if (threadIdx.x == 0) { cp_async_16(s, x, 8); cp_async_commit(); cp_async_16(s + 4, x + 4); cp_async_commit(); cp_async_wait<1>(); }
        __syncthreads();
        y[threadIdx.x] = s[threadIdx.x];    // the second group has not been waited for
    }
    extern "C" __global__ void conversions(const unsigned* x, unsigned short* h, unsigned short* b) {
        for (int i = threadIdx.x; i < 4096; i += blockDim.x) { float f = __uint_as_float(x[i]); h[i] = f32_to_f16_bits(f); b[i] = f32_to_bf16_bits(f); }
    }
    extern "C" __global__ void round_trip(int* bad) {
        for (int i = threadIdx.x; i < 65536; i += blockDim.x) {
            float f = f16_bits_to_f32((unsigned short)i), g = bf16_bits_to_f32((unsigned short)i);
            if (!isnan(f) && f32_to_f16_bits(f) != i) atomicAdd(bad, 1);
            if (!isnan(g) && f32_to_bf16_bits(g) != i) atomicAdd(bad, 1);
        }
    })");
    auto bits = [](float f) { uint32_t u; memcpy(&u, &f, 4); return (unsigned short)(u >> 16); };
    std::vector<unsigned short> A(256), B(128);
    for (int i = 0; i < 256; i++) A[i] = bits(float(i % 17 - 8));
    for (int i = 0; i < 128; i++) B[i] = bits(float(i % 5 - 2));
    CUdeviceptr d = device(128 * 4);
    OK(launch1(function_of(m, "bf16_mma"), 1, 32, upload(A), upload(B), d));
    auto D = download<float>(d, 128);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            float s = 0;
            for (int k = 0; k < 16; k++) s += float((r * 16 + k) % 17 - 8) * float((c * 16 + k) % 5 - 2);
            EXPECT(D[r * 8 + c] == s);
        }
    std::vector<float> F(128), G(64);
    for (int i = 0; i < 128; i++) F[i] = float(i % 7) / 8;
    for (int i = 0; i < 64; i++) G[i] = float(i % 3 - 1);
    OK(launch1(function_of(m, "tf32_mma"), 1, 32, upload(F), upload(G), d));
    D = download<float>(d, 128);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            float s = 1;
            for (int k = 0; k < 8; k++) s += F[r * 8 + k] * G[k * 8 + c];
            EXPECT(D[r * 8 + c] == s);
        }
    CUdeviceptr y = device(32);
    OK(launch1(function_of(m, "zero_fill"), 1, 8, upload(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}), y));
    auto Y = download<float>(y, 8);
    EXPECT(Y[0] == 1 && Y[1] == 2 && Y[2] == 0 && Y[3] == 0 && std::isnan(Y[4]) && std::isnan(Y[7]));
    CUdeviceptr bad = upload(std::vector<int>(1, 0));
    OK(launch1(function_of(m, "round_trip"), 1, 256, bad));
    EXPECT(download<int>(bad, 1)[0] == 0);
    std::vector<unsigned> X(4096);
    for (int i = 0; i < 4096; i++) {
        float f = ldexpf(1.f + float(i % 61) / 61 + float(i % 4) * 0.000244140625f, i % 48 - 28) * (i & 1 ? -1.f : 1.f);
        memcpy(&X[i], &f, 4);
    }
    CUdeviceptr h = device(8192), b = device(8192);
    OK(launch1(function_of(m, "conversions"), 1, 64, upload(X), h, b));
    auto H = download<unsigned short>(h, 4096);
    for (int i = 0; i < 4096; i++) {
        float f;
        memcpy(&f, &X[i], 4);
        // The nearest f16 by trying: below, at and above the truncated value.
        double a = fabs((double)f), best = 1e300;
        unsigned short want = 0;
        for (int c = 0; c < 0x7c01; c++) {
            int e = c >> 10, q = c & 1023;
            double v = e ? ldexp(1024 + q, e - 25) : ldexp(q, -24);
            if (c == 0x7c00) v = 65536;
            double dist = fabs(v - a);
            if (dist < best || (dist == best && !(c & 1))) best = dist, want = (unsigned short)c;
            if (v > a) break;
        }
        if (f < 0) want |= 0x8000;
        EXPECT(H[i] == want);
    }
}

static void named_barriers() {
    void* m = module_of(R"(
    #include "emu_ptx.h"
    extern "C" __global__ void handoff(int* out) {      // a producing warp and a consuming one
        __shared__ int s[32];
        int l = threadIdx.x % 32;
        if (threadIdx.x < 32) {
            for (int k = 0; k < 4; k++) { bar_sync(1, 64); s[l] = k * 100 + l; bar_sync(2, 64); }
        } else {
            for (int k = 0; k < 4; k++) { bar_sync(1, 64); bar_sync(2, 64); out[k * 32 + l] = s[31 - l]; }
        }
    })");
    CUdeviceptr out = device(128 * 4);
    OK(launch1(function_of(m, "handoff"), 1, 64, out));
    auto v = download<int>(out, 128);
    for (int i = 0; i < 128; i++) EXPECT(v[i] == i / 32 * 100 + 31 - i % 32);
}

static void other_device() {    // HADAL_EMU_CC=8.6: a cubin for sm_90 does not run there
    void* m;
    GIVES(CUDA_ERROR_NO_BINARY_FOR_GPU, cuModuleLoadData(&m, compile("extern \"C\" __global__ void k() {}").data()));
    int v;
    OK(cuDeviceGetAttribute(&v, 97, 0));
    EXPECT(v == 99 * 1024);
}

static void threads() {         // several host threads launch at once
    void *m = module_of(R"(
    extern "C" __global__ void sums(const float* x, float* y, int n) {
        __shared__ float s[256];
        float v = 0;
        for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[i];
        s[threadIdx.x] = v;
        for (int k = 128; k; k >>= 1) { __syncthreads(); if (threadIdx.x < k) s[threadIdx.x] += s[threadIdx.x + k]; }
        if (threadIdx.x == 0) y[blockIdx.x] = s[0] + blockIdx.x;
    })"), *f = function_of(m, "sums"), *c;
    OK(cuDevicePrimaryCtxRetain(&c, 0));
    std::vector<std::thread> all;
    for (int t = 0; t < 6; t++)
        all.emplace_back([=] {
            OK(cuCtxSetCurrent(c));
            void* s;
            OK(cuStreamCreate(&s, 1));
            for (int k = 0; k < 40; k++) {
                unsigned blocks = 1 + k % 40;
                CUdeviceptr x = upload(std::vector<float>(1000, float(t))), y = device(blocks * 4);
                OK(launch(f, {blocks, 1, 1, 256, 1, 1, 0}, s, x, y, 1000));
                auto v = download<float>(y, blocks);
                for (unsigned i = 0; i < blocks; i++) EXPECT(v[i] == float(1000 * t + (int)i));
                OK(cuMemFree_v2(x));
                OK(cuMemFree_v2(y));
            }
        });
    for (auto& t : all) t.join();
}

static void order() {       // HADAL_EMU_SHUFFLE: a kernel that takes for granted that block 0 comes first
    void* f = function_of(module_of("extern \"C\" __global__ void first(int* x) { if (atomicAdd(x, 1) == 0) x[1] = blockIdx.x; }"), "first");
    CUdeviceptr x = upload(std::vector<int>(2, 0));
    OK(launch1(f, 1000, 1, x));
    auto v = download<int>(x, 2);
    EXPECT(v[0] == 1000);
    printf("the first block was %d\n", v[1]);
}

// ---- planted faults: each must be noticed

static const char* faulty = R"(
extern "C" __global__ void copy(float* y, const float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) {                       // one too many
        y[i < n ? i : 0] = x[i];
    }
}
extern "C" __global__ void copy_right(float* y, const float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}
extern "C" __global__ void fill(float* y, float v, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = v;
}
extern "C" __global__ void write_before(float* y) { y[(int)threadIdx.x - 1] = 0; }
extern "C" __global__ void reverse(float* y, const float* x) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];    // no __syncthreads
    y[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void reuse(float* y, const float* x) {
    __shared__ float s[64];
    for (int k = 0; k < 2; k++) {
        s[threadIdx.x] = x[threadIdx.x] + k;
        __syncthreads();
        y[threadIdx.x] = s[63 - threadIdx.x];   // no __syncthreads before the next round writes
    }
}
extern "C" __global__ void divergent(float* y) {
    if (threadIdx.x < 32) {
        y[0] = 1;
        __syncthreads();
    } else {
        y[1] = 2;
        __syncthreads();
    }
}
extern "C" __global__ void never(float* y) {
    if (threadIdx.x != 7) __syncthreads();
    else y[0] = __shfl_sync(~0u, y[1], 0);
}
extern "C" __global__ void lone_shuffle(float* y) { if (threadIdx.x < 16) y[0] = __shfl_sync(~0u, y[1], 0); else __syncthreads(); }
extern "C" __global__ void shared_overrun(float* y) { extern __shared__ float s[]; s[threadIdx.x + 1] = 1; __syncthreads(); y[threadIdx.x] = s[threadIdx.x]; }
extern "C" __global__ void trap(float* y) { if (threadIdx.x == 3) __trap(); y[0] = 1; }
extern "C" __global__ void asserts(float* y) { assert(y[0] == 1); }
extern "C" __global__ void forgets_wait(float* y, const float* x);
extern "C" __global__ void misaligned(float4* y) { *(float4*)((char*)y + 4) = make_float4(0, 0, 0, 0); }
extern "C" __global__ void endless(float* y) { float big[20000]; for (int i = 0; i < 20000; i++) big[i] = y[0] + i; y[0] = big[(int)y[0] + 5]; big[7] = 1; }
#include "emu_ptx.h"
extern "C" __global__ void forgets_wait(float* y, const float* x) {
    __shared__ __align__(16) float s[128];
    cp_async_16(s + threadIdx.x * 4, x + threadIdx.x * 4);
    cp_async_commit();
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
)";
static void* fault(const char* name) { return function_of(module_of(faulty), name); }

static void oob_read() {        // HADAL_EMU_CHECK=1: one element past the end, in the slack before the guard page
    CUdeviceptr x = upload(std::vector<float>(101, 1.f)), y = device(101 * 4);
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch1(fault("copy"), 1, 128, y, x, 101));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());      // and it stays
    OK(cuDevicePrimaryCtxReset_v2(0));
    OK(cuCtxSynchronize());
}
static void oob_page() {        // without: the end is at the guard page when the size is a multiple of 16
    CUdeviceptr x = upload(std::vector<float>(100, 1.f)), y = device(400);
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch1(fault("copy"), 1, 128, y, x, 100));
}
static void write_before() {    // seen by the pattern around an allocation
    CUdeviceptr y = device(16);
    OK(launch1(fault("write_before"), 1, 1, y));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
}
static void after_free() {
    CUdeviceptr x = upload(std::vector<float>(64, 1.f)), y = device(256);
    OK(cuMemFree_v2(x));
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch1(fault("copy_right"), 1, 64, y, x, 64));
}
static void swapped() {         // fill(v, y, n) for fill(y, v, n)
    float v[2] = {1.f, 0.f};
    unsigned long long bits;
    memcpy(&bits, v, 8);
    GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch1(fault("fill"), 1, 64, bits, device(256), 64));
}
static void small_grid() {      // an element that no thread wrote is a NaN
    CUdeviceptr x = upload(std::vector<float>(300, 1.f)), y = device(1200);
    OK(launch1(fault("copy_right"), 300 / 128, 128, y, x, 300));
    auto v = download<float>(y, 300);
    EXPECT(v[255] == 1.f && std::isnan(v[256]) && std::isnan(v[299]));
}
static void missing_sync() { GIVES(CUDA_ERROR_LAUNCH_FAILED, launch1(fault("reverse"), 1, 64, device(256), upload(std::vector<float>(64, 1.f)))); }
static void missing_second_sync() { GIVES(CUDA_ERROR_LAUNCH_FAILED, launch1(fault("reuse"), 1, 64, device(256), upload(std::vector<float>(64, 1.f)))); }
static void divergent() { GIVES(CUDA_ERROR_LAUNCH_FAILED, launch1(fault("divergent"), 1, 64, device(8))); }
static void deadlock() { GIVES(CUDA_ERROR_LAUNCH_FAILED, launch1(fault("never"), 1, 32, device(8))); }
static void lone_shuffle() { GIVES(CUDA_ERROR_LAUNCH_FAILED, launch1(fault("lone_shuffle"), 2, 32, device(8))); }
static void shared_overrun() { GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch(fault("shared_overrun"), {1, 1, 1, 64, 1, 1, 256}, nullptr, device(256))); }
static void traps() { GIVES(CUDA_ERROR_LAUNCH_FAILED, launch1(fault("trap"), 1, 32, device(8))); }
static void asserts() { GIVES(CUDA_ERROR_ASSERT, launch1(fault("asserts"), 1, 32, device(8))); }
static void misaligned() { GIVES(CUDA_ERROR_MISALIGNED_ADDRESS, launch1(fault("misaligned"), 1, 1, device(64))); }
static void missing_wait() {
    CUdeviceptr y = device(128);
    OK(launch1(fault("forgets_wait"), 1, 32, y, upload(std::vector<float>(128, 1.f))));
    for (float v : download<float>(y, 32)) EXPECT(std::isnan(v));
}
static void racy_ones() {       // HADAL_EMU_RACE=1 has nothing to say about these
    matmul();
    warps();
    matrices();
    named_barriers();
}

static const Case cases[] = {
    {"axpy", axpy, "", ""},
    {"matmul", matmul, "", ""},
    {"warps", warps, "", ""},
    {"atomics", atomics, "", ""},
    {"words", words, "", ""},
    {"graph", graph, "", ""},
    {"events", events, "", ""},
    {"memory limits", memory_limits, "HADAL_EMU_MEMORY=64M", ""},
    {"launch limits", launches, "", ""},
    {"compile errors", errors_of_compiling, "", ""},
    {"mma, ldmatrix, cp.async, f16 and bf16", matrices, "", ""},
    {"named barriers", named_barriers, "", ""},
    {"another device", other_device, "HADAL_EMU_CC=8.6", ""},
    {"host threads", threads, "", ""},
    {"statistics", axpy, "HADAL_EMU_STATS=1", "         5  axpy"},
    {"order 1", order, "HADAL_EMU_SHUFFLE=1 HADAL_EMU_THREADS=1", ""},
    {"order 2", order, "HADAL_EMU_SHUFFLE=2 HADAL_EMU_THREADS=1", ""},
    {"warps, shuffled", warps, "HADAL_EMU_SHUFFLE=3", ""},
    {"matmul, shuffled and checked", matmul, "HADAL_EMU_SHUFFLE=4 HADAL_EMU_CHECK=1", ""},
    {"axpy, checked", axpy, "HADAL_EMU_CHECK=1", ""},
    {"atomics, checked", atomics, "HADAL_EMU_CHECK=1", ""},
    {"words, checked", words, "HADAL_EMU_CHECK=1 HADAL_EMU_RACE=1", ""},
    {"no false races", racy_ones, "HADAL_EMU_RACE=1 HADAL_EMU_CHECK=1", ""},
    {"fault: read one element past the end", oob_read, "HADAL_EMU_CHECK=1", "kernel `copy`, block (0,0,0), thread (101,0,0): illegal read of 4 bytes"},
    {"fault: the same, by the guard page", oob_page, "", "kernel `copy`, block (0,0,0), thread (100,0,0): illegal read"},
    {"fault: write before the start", write_before, "", "before the start"},
    {"fault: the same, checked", [] { GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch1(fault("write_before"), 1, 1, device(16))); }, "HADAL_EMU_CHECK=1", "4 bytes before the start of allocation"},
    {"fault: use after free", after_free, "", "use after free"},
    {"fault: the same, checked", after_free, "HADAL_EMU_CHECK=1", "use after free"},
    {"fault: swapped arguments", swapped, "", "kernel `fill`, block (0,0,0), thread (0,0,0): illegal write at 0x3f800000: not device memory"},
    {"fault: grid too small", small_grid, "", ""},
    {"fault: missing __syncthreads", missing_sync, "HADAL_EMU_RACE=1", "race in shared memory"},
    {"fault: missing second __syncthreads", missing_second_sync, "HADAL_EMU_RACE=1", "race in shared memory"},
    {"fault: divergent barrier", divergent, "", "divergent barrier: this thread is at test.cu:36, but thread (0,0,0) waits at test.cu:33"},
    {"fault: deadlock", deadlock, "", "never arrived"},
    {"fault: shuffle without its lanes", lone_shuffle, "", "deadlock"},
    {"fault: past dynamic shared memory", shared_overrun, "", "past the end of the 256 bytes of dynamic shared memory"},
    {"fault: the same, checked", shared_overrun, "HADAL_EMU_CHECK=1", "outside of shared memory"},
    {"fault: __trap", traps, "", "thread (3,0,0): __trap()"},
    {"fault: assert", asserts, "", "assert(y[0] == 1) failed at test.cu:"},
    {"fault: misaligned vector", misaligned, "", "misaligned"},
    {"fault: missing wait for cp.async", missing_wait, "", ""},
};

int main(int argc, char** argv) { return run_cases(argc, argv, cases); }
