// Hopper's words: the kernels of tests/kernels/hopper.cu against plain loops, tensor maps element by element, and planted
// faults, each of which must be noticed.
#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <sstream>

#include "cuda.h"

// ---- helpers

typedef uint16_t u16;
static u16 to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static u16 to_f16(float f) {    // small multiples of 1/8 only
    if (f == 0) return 0;
    int e;
    float m = frexpf(fabsf(f), &e);
    return (u16)((f < 0 ? 0x8000 : 0) | (e + 14) << 10 | (int)(m * 2048 - 1024));
}
static float truncated(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    u &= 0xffffe000;
    memcpy(&f, &u, 4);
    return f;
}
// Small numbers, so that every sum is exact.
static std::vector<float> numbers(size_t n, int seed) {
    std::vector<float> v(n);
    uint32_t r = (uint32_t)seed * 2654435761u + 1;
    for (auto& x : v) r = r * 1664525u + 1013904223u, x = float(int(r >> 24) % 17 - 8) / 8;
    return v;
}
template <class F> static std::vector<u16> halves(const std::vector<float>& v, F f) {
    std::vector<u16> h;
    for (float x : v) h.push_back(f(x));
    return h;
}

struct alignas(64) Map { uint64_t words[16]; };
enum { U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16, F32_FTZ, TF32 };
static const int element_bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
struct Tiled {
    std::vector<uint64_t> extent;
    std::vector<unsigned> box;
    std::vector<uint64_t> strides = {};         // dense when left out
    std::vector<unsigned> steps = {};
    int swizzle = 0, fill = 0;
};
static std::vector<uint64_t> dense(int type, const std::vector<uint64_t>& extent) {
    std::vector<uint64_t> s;
    uint64_t b = (uint64_t)element_bytes[type];
    for (size_t i = 0; i + 1 < extent.size(); i++) s.push_back(b *= extent[i]);
    return s;
}
static int try_tiled(Map* m, int type, CUdeviceptr p, Tiled t) {
    if (t.strides.empty()) t.strides = dense(type, t.extent);
    if (t.steps.empty()) t.steps.assign(t.extent.size(), 1);
    return cuTensorMapEncodeTiled(m, type, (unsigned)t.extent.size(), (void*)p, t.extent.data(), t.strides.data(), t.box.data(), t.steps.data(), 0, t.swizzle, 2, t.fill);
}
static Map tiled(int type, CUdeviceptr p, const Tiled& t) {
    Map m;
    OK(try_tiled(&m, type, p, t));
    return m;
}
static Map im2col(int type, CUdeviceptr p, std::vector<uint64_t> extent, std::vector<int> lower, std::vector<int> upper, unsigned channels, unsigned pixels,
                  std::vector<unsigned> steps, int swizzle = 0) {
    Map m;
    auto s = dense(type, extent);
    OK(cuTensorMapEncodeIm2col(&m, type, (unsigned)extent.size(), (void*)p, extent.data(), s.data(), lower.data(), upper.data(), channels, pixels, steps.data(), 0, swizzle, 2, 0));
    return m;
}
static const int SW32 = 1, SW64 = 2, SW128 = 3;

static std::vector<std::string> with_kernels(std::vector<std::string> more = {}) {
    more.push_back("--include-path=" HADAL_ROOT "/kernels");
    return more;
}
static void* kernels(std::vector<std::string> options = {}) {
    std::ifstream f(HADAL_ROOT "/tests/kernels/hopper.cu");
    std::stringstream s;
    s << f.rdbuf();
    return module_of(s.str(), with_kernels(options));
}
static void* kernel(void* module, const char* name, unsigned shared) {
    void* f = function_of(module, name);
    OK(cuFuncSetAttribute(f, 8, (int)shared));
    return f;
}
static unsigned up(unsigned a, unsigned b) { return (a + b - 1) / b * b; }
static bool near(float a, double b, double tolerance) { return fabs(a - b) <= tolerance * (1 + fabs(b)); }

// ---- what should work

static void gemm(void* m, const char* name, int type, int N, int M, int n, int k) {
    bool tf = type == F32 || type == TF32;
    int bytes = tf ? 4 : 2, row = 128 / bytes;
    auto A = numbers((size_t)M * k, 1), B = numbers((size_t)n * k, 2);
    if (tf)
        for (size_t i = 0; i < A.size(); i++) A[i] *= 1.0009f;       // has bits that tf32 cuts off
    auto data = [&](const std::vector<float>& v) { return tf ? upload(v) : upload(halves(v, type == BF16 ? to_bf16 : to_f16)); };
    Map a = tiled(type, data(A), {{(uint64_t)k, (uint64_t)M}, {(unsigned)row, 64}, {}, {}, SW128}), b = tiled(type, data(B), {{(uint64_t)k, (uint64_t)n}, {(unsigned)row, (unsigned)N}, {}, {}, SW128});
    CUdeviceptr c = device((size_t)M * n * 4);
    unsigned shared = 1024 + 3 * (64 + (unsigned)N) * 128;
    OK(launch(kernel(m, name, shared), {up((unsigned)n, (unsigned)N) / (unsigned)N, up((unsigned)M, 64) / 64, 1, 160, 1, 1, shared}, nullptr, a, b, c, M, n, k));
    auto C = download<float>(c, (size_t)M * n);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < n; j++) {
            double s = 0;
            for (int q = 0; q < k; q++) s += double(type == F32 ? truncated(A[i * k + q]) : A[i * k + q]) * B[j * k + q];
            EXPECT(near(C[i * n + j], s, type == TF32 ? 3e-3 : 1e-5));
        }
}
static void gemms() {
    void* m = kernels();
    gemm(m, "gemm_bf16", BF16, 72, 64, 72, 64);
    gemm(m, "gemm_bf16", BF16, 72, 100, 150, 344);      // ragged in all three
    gemm(m, "gemm_f16", F16, 128, 70, 130, 72);
    gemm(m, "gemm_tf32", F32, 40, 65, 44, 100);
    gemm(m, "gemm_tf32", TF32, 40, 65, 44, 100);        // rounded on the way
}
static void gemm_k_first() {
    int M = 72, n = 200, k = 150, N = 136;
    auto A = numbers((size_t)M * k, 3), B = numbers((size_t)n * k, 4);
    Map a = tiled(BF16, upload(halves(A, to_bf16)), {{(uint64_t)M, (uint64_t)k}, {64, 64}, {}, {}, SW128}), b = tiled(BF16, upload(halves(B, to_bf16)), {{(uint64_t)n, (uint64_t)k}, {64, 64}, {}, {}, SW128});
    CUdeviceptr c = device((size_t)M * n * 4);
    unsigned shared = 1024 + 4 * 8192;
    OK(launch(kernel(kernels(), "gemm_bf16_k_first", shared), {2, 2, 1, 128, 1, 1, shared}, nullptr, a, b, c, M, n, k));
    auto C = download<float>(c, (size_t)M * n);
    EXPECT(2 * N >= n);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < n; j++) {
            float s = 0;
            for (int q = 0; q < k; q++) s += A[q * M + i] * B[q * n + j];
            EXPECT(C[i * n + j] == s);
        }
}
static void products() {
    auto A = numbers(64 * 16, 5), B = numbers(96 * 16, 6);
    CUdeviceptr y = device(8 * 2 * 64 * 96 * 4);
    OK(launch(kernel(kernels(), "products", 32768), {1, 1, 1, 128, 1, 1, 32768}, nullptr, upload(halves(A, to_bf16)), upload(halves(B, to_bf16)), y));
    auto Y = download<float>(y, 8 * 2 * 64 * 96);
    for (int v = 0; v < 8; v++)
        for (int i = 0; i < 64; i++)
            for (int j = 0; j < 96; j++) {
                float s = 0;
                for (int k = 0; k < 16; k++) s += A[i * 16 + k] * B[j * 16 + k];
                EXPECT(Y[(v * 2 * 64 + i) * 96 + j] == s && Y[((v * 2 + 1) * 64 + i) * 96 + j] == -s);
            }
}

static void conv(bool quick) {
    const int W = 11, R = 3, H = 8, NB = 2, C = 64;     // the last row of tiles reaches out of the image
    void* m = kernels({"-DW=11", "-DR=3"});
    auto X = numbers((size_t)NB * H * W * C, 7), K = numbers((size_t)C * 9 * C, 8), D = numbers((size_t)NB * H * W * C, 9);
    auto at = [&](const std::vector<float>& v, int n, int h, int w, int c) { return h < 0 || h >= H || w < 0 || w >= W ? 0.f : v[(((size_t)n * H + h) * W + w) * C + c]; };
    // Axes C, W, N, H, so that a tile lies [h][w][c] in shared memory.
    auto map = [&](CUdeviceptr p, unsigned w, unsigned rows) {
        return tiled(BF16, p, {{C, W, NB, H}, {64, w, 1, rows}, {C * 2, (uint64_t)H * W * C * 2, (uint64_t)W * C * 2}, {}, SW128});
    };
    CUdeviceptr x = upload(halves(X, to_bf16)), w = upload(halves(K, to_bf16)), dy = upload(halves(D, to_bf16)), y = upload(std::vector<u16>(X.size(), 0x7fc0));
    unsigned shared = 1024 + 66 * 1024 + 9 * 8192;
    unsigned tiles = (H + R - 1) / R;
    OK(launch(kernel(m, "conv3x3", shared), {tiles, NB, 1, 128, 1, 1, shared}, nullptr, map(x, W + 1, R + 2), tiled(BF16, w, {{9 * C, C}, {64, 64}, {}, {}, SW128}), map(y, W + 1, R), H));
    auto Y = download<u16>(y, X.size());
    for (int n = 0; n < NB; n++)
        for (int h = 0; h < H; h++)
            for (int c = 0; c < W; c++)
                for (int o = 0; o < C; o += quick ? 7 : 1) {
                    float s = 0;
                    for (int t = 0; t < 9; t++)
                        for (int i = 0; i < C; i++) s += at(X, n, h + t / 3 - 1, c + t % 3 - 1, i) * K[(o * 9 + t) * C + i];
                    EXPECT(Y[(((size_t)n * H + h) * W + c) * C + o] == to_bf16(s));
                }

    CUdeviceptr dw = device(K.size() * 4);
    OK(launch(kernel(m, "conv3x3_dw", shared), {1, 1, 1, 384, 1, 1, shared}, nullptr, map(x, W + 1, R + 2), map(dy, W + 1, R), dw, NB, H));
    auto G = download<float>(dw, K.size());
    for (int o = 0; o < C; o += quick ? 7 : 1)
        for (int t = 0; t < 9; t++)
            for (int i = 0; i < C; i += quick ? 5 : 1) {
                float s = 0;
                for (int n = 0; n < NB; n++)
                    for (int h = 0; h < H; h++)
                        for (int c = 0; c < W; c++) s += at(D, n, h, c, o) * at(X, n, h + t / 3 - 1, c + t % 3 - 1, i);
                EXPECT(G[(o * 9 + t) * C + i] == s);
            }

    int OH = (H - 1) / 2 + 1, OW = (W - 1) / 2 + 1, P = NB * OH * OW;
    CUdeviceptr y2 = device((size_t)P * C * 4);
    Map columns = im2col(BF16, x, {C, W, H, NB}, {-1, -1}, {-1, -1}, 64, 48, {1, 2, 2, 1}, SW128);
    unsigned shared2 = 1024 + 2 * (8192 + 48 * 128);
    OK(launch(kernel(m, "conv3x3_stride2", shared2), {up((unsigned)P, 48) / 48, 1, 1, 128, 1, 1, shared2}, nullptr, columns, tiled(BF16, w, {{9 * C, C}, {64, 64}, {}, {}, SW128}), y2, NB, OH, OW));
    auto Z = download<float>(y2, (size_t)P * C);
    for (int p = 0; p < P; p++)
        for (int o = 0; o < C; o++) {
            float s = 0;
            for (int t = 0; t < 9; t++)
                for (int i = 0; i < C; i++) s += at(X, p / (OH * OW), p / OW % OH * 2 + t / 3 - 1, p % OW * 2 + t % 3 - 1, i) * K[(o * 9 + t) * C + i];
            EXPECT(Z[p * C + o] == s);
        }
}
static void convolutions() { conv(false); }

static void others() {
    auto X = numbers(64, 10), T = numbers(64, 11);
    CUdeviceptr x = upload(X), p[7];
    for (auto& q : p) q = upload(T);
    Map a = tiled(F32, p[0], {{64}, {64}}), b = tiled(F32, p[1], {{8, 8}, {8, 8}}), c = tiled(F32, p[2], {{4, 4, 4}, {4, 4, 4}});
    Map e = tiled(F32, p[3], {{4, 4, 2, 2}, {4, 4, 2, 2}}), f = tiled(F32, p[4], {{4, 2, 2, 2, 2}, {4, 2, 2, 2, 2}});
    Map q = im2col(F32, p[5], {4, 4, 4}, {0}, {0}, 4, 16, {1, 1, 1}), s = im2col(F32, p[6], {4, 2, 2, 2, 2}, {0, 0, 0}, {0, 0, 0}, 4, 16, {1, 1, 1, 1, 1});
    OK(launch1(function_of(kernels(), "others"), 1, 256, a, b, c, e, f, q, s, x, 1));
    auto v = download<float>(x, 64);
    for (int i = 0; i < 64; i++) EXPECT(v[i] == X[i] + 1);
    for (int k = 0; k < 7; k++) {
        auto t = download<float>(p[k], 64);
        for (int i = 0; i < 64; i++) EXPECT(t[i] == T[i] * (k ? 2 : 3));
    }
}

// ---- tensor maps, byte by byte: a kernel that loads one box and shows what lies in shared memory

static const char* looker = R"(
#include "ptx_hopper.cuh"
#define LOOK(name, load)                                                                                                          \
    extern "C" __global__ void name(const __grid_constant__ TensorMap map, unsigned char* out, int bytes, int skip, int a, int b, int c, int d, int o, int p) { \
        extern __shared__ __align__(1024) unsigned char t[];                                                                      \
        __shared__ unsigned long long bar;                                                                                        \
        if (threadIdx.x == 0) {                                                                                                   \
            mbarrier_init(&bar, 1);                                                                                               \
            fence_mbarrier_init();                                                                                                \
            mbarrier_arrive_expect(&bar, bytes);                                                                                  \
            load;                                                                                                                 \
        }                                                                                                                         \
        __syncthreads();                                                                                                          \
        mbarrier_wait(&bar, 0);                                                                                                   \
        for (int i = threadIdx.x; i < bytes; i += blockDim.x) out[i] = t[skip + i];                                               \
    }
LOOK(look1, tensor_load(t + skip, &map, &bar, a))
LOOK(look2, tensor_load(t + skip, &map, &bar, a, b))
LOOK(look3, tensor_load(t + skip, &map, &bar, a, b, c))
LOOK(look4, tensor_load(t + skip, &map, &bar, a, b, c, d))
LOOK(columns3, tensor_load_im2col(t + skip, &map, &bar, a, b, c, o))
LOOK(columns4, tensor_load_im2col(t + skip, &map, &bar, a, b, c, d, o, p))
)";
static std::vector<uint8_t> look(const char* name, const Map& m, int bytes, std::vector<int> at, int skip = 0, int o = 0, int p = 0) {
    static void* module = module_of(looker, with_kernels());
    at.resize(4);
    CUdeviceptr out = device((size_t)bytes);
    OK(launch(function_of(module, name), {1, 1, 1, 64, 1, 1, (unsigned)(skip + bytes)}, nullptr, m, out, bytes, skip, at[0], at[1], at[2], at[3], o, p));
    return download<uint8_t>(out, (size_t)bytes);
}
static void boxes() {
    // Every type; a box that hangs over all edges; each swizzle, from places that are not at its period.
    for (int type : {U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16}) {
        int e = element_bytes[type], cols = 128 / e, rows = 10;
        std::vector<uint8_t> data((size_t)(cols * rows * e));
        for (size_t i = 0; i < data.size(); i++) data[i] = (uint8_t)(i * 7 + i / 251 + 1);
        CUdeviceptr p = upload(data);
        for (int swizzle : {0, SW32, SW64, SW128})
            for (int skip : {0, 128, 640}) {
                int span = swizzle ? 16 << swizzle : 128, bc = span / e, br = 7;
                Map m = tiled(type, p, {{(uint64_t)cols, (uint64_t)rows}, {(unsigned)bc, (unsigned)br}, {}, {}, swizzle});
                for (int c0 : {0, -3, cols - 2})
                    for (int r0 : {2, -2, 6}) {
                        auto v = look("look2", m, bc * br * e, {c0, r0}, skip);
                        for (int r = 0; r < br; r++)
                            for (int c = 0; c < bc; c++)
                                for (int k = 0; k < e; k++) {
                                    int address = skip + (r * bc + c) * e + k, mask = swizzle ? span / 16 - 1 : 0;
                                    int place = (address ^ ((address >> 7 & mask) << 4)) - skip;
                                    bool in = c0 + c >= 0 && c0 + c < cols && r0 + r >= 0 && r0 + r < rows;
                                    EXPECT(v[(size_t)place] == (in ? data[(size_t)(((r0 + r) * cols + c0 + c) * e + k)] : 0));
                                }
                    }
            }
    }
    // Rank 1 and 3, NaN instead of zeros.
    std::vector<float> f = numbers(4 * 5 * 6, 12);
    CUdeviceptr p = upload(f);
    auto one = look("look1", tiled(F32, p, {{120}, {8}, {}, {}, 0, 1}), 32, {116});
    for (int i = 0; i < 8; i++) {
        float x;
        memcpy(&x, &one[(size_t)i * 4], 4);
        EXPECT(i < 4 ? x == f[116 + (size_t)i] : std::isnan(x));
    }
    auto three = look("look3", tiled(F32, p, {{4, 5, 6}, {4, 2, 3}}), 96, {0, 4, -1});
    for (int i = 0; i < 24; i++) {
        float x;
        memcpy(&x, &three[(size_t)i * 4], 4);
        int h = i / 8 - 1, w = 4 + i / 4 % 2;
        EXPECT(x == (h < 0 || w > 4 ? 0 : f[(size_t)((h * 5 + w) * 4 + i % 4)]));
    }
    // Every other pixel, from an odd place: boxDim counts what is stepped over.
    auto planes = look("look4", tiled(F32, p, {{4, 5, 6, 1}, {4, 6, 6, 1}, {}, {1, 2, 2, 1}}), 4 * 3 * 3 * 4, {0, -1, 1, 0});
    for (int i = 0; i < 36; i++) {
        float x;
        memcpy(&x, &planes[(size_t)i * 4], 4);
        int w = i / 4 % 3 * 2 - 1, h = i / 12 * 2 + 1;
        EXPECT(x == (w < 0 || w > 4 || h > 5 ? 0 : f[(size_t)((h * 5 + w) * 4 + i % 4)]));
    }
    // tf32 is rounded to nearest.
    std::vector<float> t = {1.00048828125f + 0.0004f, -3.1425f, 1e-3f, 7.f};
    auto r = look("look1", tiled(TF32, upload(t), {{4}, {4}}), 16, {0});
    for (int i = 0; i < 4; i++) {
        float x;
        memcpy(&x, &r[(size_t)i * 4], 4);
        EXPECT(x == truncated(x) && fabsf(x - t[(size_t)i]) <= fabsf(t[(size_t)i]) / 2048 && (i < 1 || i > 1 || x != truncated(t[1])));
    }
}
static void columns() {
    // Pixels that a convolution reads at one tap: kernel k, stride s, padding p; from the middle of a row across rows and images.
    const int C = 4, W = 7, H = 5, N = 3;
    auto f = numbers((size_t)C * W * H * N, 13);
    CUdeviceptr p = upload(f);
    for (int k : {1, 3})
        for (int s : {1, 2})
            for (int pad : {0, 1}) {
                if (pad >= k) continue;
                int OW = (W + 2 * pad - k) / s + 1, OH = (H + 2 * pad - k) / s + 1;
                Map m = im2col(F32, p, {C, W, H, N}, {-pad, -pad}, {pad - (k - 1), pad - (k - 1)}, C, 24, {1, (unsigned)s, (unsigned)s, 1});
                for (int first : {0, 2, OW * OH - 1, OW * OH * 2 + 1})
                    for (int tap = 0; tap < k * k; tap++) {
                        auto v = look("columns4", m, C * 24 * 4, {0, first % OW * s - pad, first / OW % OH * s - pad, first / (OW * OH)}, 0, tap % k, tap / k);
                        for (int i = 0; i < 24 * C; i++) {
                            int q = first + i / C, n = q / (OW * OH), h = q / OW % OH * s - pad + tap / k, w = q % OW * s - pad + tap % k;
                            float x, want = n >= N || h < 0 || h >= H || w < 0 || w >= W ? 0 : f[(size_t)(((n * H + h) * W + w) * C + i % C)];
                            memcpy(&x, &v[(size_t)i * 4], 4);
                            EXPECT(x == want);
                        }
                    }
            }
    Map line = im2col(F32, p, {C, W * H, N}, {-1}, {-1}, C, 10, {1, 1, 1});
    auto v = look("columns3", line, C * 40, {0, W * H - 4, 1}, 0, 2);
    for (int i = 0; i < 40; i++) {
        int q = i / C, w = q < 3 ? W * H - 4 + q + 2 : q - 3 - 1 + 2, n = q < 3 ? 1 : 2;    // the box ends at W - 2
        float x, want = w >= W * H ? 0 : f[(size_t)((n * W * H + w) * C + i % C)];
        memcpy(&x, &v[(size_t)i * 4], 4);
        EXPECT(x == want);
    }
}
static void refusals() {        // what the driver refuses
    CUdeviceptr p = device(1 << 16);
    Map m;
    Tiled good{{64, 32}, {64, 8}, {}, {}, SW128};
    OK(try_tiled(&m, BF16, p, good));
    auto refuse = [&](int type, CUdeviceptr at, Tiled t) { GIVES(CUDA_ERROR_INVALID_VALUE, try_tiled(&m, type, at, t)); };
    auto with = [&](auto change) { Tiled t = good; change(t); refuse(BF16, p, t); };
    refuse(BF16, p + 8, good);
    refuse(13, p, good);
    GIVES(CUDA_ERROR_INVALID_VALUE, try_tiled((Map*)((char*)&m + 16), BF16, p, good));
    with([](Tiled& t) { t.strides = {136}; });
    with([](Tiled& t) { t.strides = {1ull << 40}; });
    with([](Tiled& t) { t.extent[1] = 0; });
    with([](Tiled& t) { t.extent[1] = (1ull << 32) + 1; });
    with([](Tiled& t) { t.box[1] = 257; });
    with([](Tiled& t) { t.box[1] = 0; });
    with([](Tiled& t) { t.box[0] = 72; });              // longer than the swizzle
    with([](Tiled& t) { t.box[0] = 60; t.swizzle = 0; });       // 120 bytes
    with([](Tiled& t) { t.steps = {1, 9}; });
    with([](Tiled& t) { t.steps = {1, 0}; });
    with([](Tiled& t) { t.extent = {8, 2, 2, 2, 2, 2}, t.box = {8, 1, 1, 1, 1, 1}; });
    with([](Tiled& t) { t.swizzle = 4; });
    refuse(U16, p, {{64, 32}, {64, 8}, {}, {}, 0, 1});  // NaN for integers
    uint64_t extent[] = {64, 8, 8, 2}, strides[] = {128, 1024, 8192};
    unsigned steps[] = {1, 1, 1, 1};
    int lower[] = {-1, -1}, upper[] = {-1, -1}, far[] = {-129, 0};
    auto columns = [&](const int* l, unsigned channels, unsigned pixels) { return cuTensorMapEncodeIm2col(&m, BF16, 4, (void*)p, extent, strides, l, upper, channels, pixels, steps, 0, SW128, 2, 0); };
    OK(columns(lower, 64, 1024));
    GIVES(CUDA_ERROR_INVALID_VALUE, columns(far, 64, 64));
    GIVES(CUDA_ERROR_INVALID_VALUE, columns(lower, 72, 64));
    GIVES(CUDA_ERROR_INVALID_VALUE, columns(lower, 64, 1025));
    GIVES(CUDA_ERROR_INVALID_VALUE, columns(lower, 64, 0));
    GIVES(CUDA_ERROR_INVALID_VALUE, cuTensorMapEncodeIm2col(&m, BF16, 2, (void*)p, extent, strides, lower, upper, 64, 64, steps, 0, SW128, 2, 0));
}

// ---- planted faults, and what looks like one and is none

static const char* faulty = R"(
#include "ptx_hopper.cuh"
typedef unsigned long long u64;
#define BEGIN(count) __shared__ u64 bar; if (threadIdx.x == 0) { mbarrier_init(&bar, count); fence_mbarrier_init(); } __syncthreads();
extern "C" __global__ void no_wait(float* y, const float* x) {
    __shared__ __align__(128) float t[32];
    BEGIN(1)
    if (threadIdx.x == 0) mbarrier_arrive_expect(&bar, 128), bulk_load(t, x, 128, &bar);
    __syncthreads();
    y[threadIdx.x] = t[threadIdx.x];
    __syncthreads();
    mbarrier_wait(&bar, 0);
    y[32 + threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void never_waits(float* y, const float* x) {
    __shared__ __align__(128) float t[32];
    BEGIN(1)
    if (threadIdx.x == 0) mbarrier_arrive_expect(&bar, 128), bulk_load(t, x, 128, &bar);
}
extern "C" __global__ void expects(float* y, const float* x, int bytes) {
    __shared__ __align__(128) float t[32];
    BEGIN(1)
    if (threadIdx.x == 0) mbarrier_arrive_expect(&bar, bytes), bulk_load(t, x, 128, &bar);
    mbarrier_wait(&bar, 0);
    y[threadIdx.x] = t[threadIdx.x];
}
extern "C" __global__ void wrong_parity(float* y) { BEGIN(32) mbarrier_arrive(&bar); mbarrier_wait(&bar, 0); mbarrier_wait(&bar, 1); }
extern "C" __global__ void tries(float* y) { BEGIN(33) mbarrier_arrive(&bar); while (!mbarrier_try_wait(&bar, 0)) {} }
extern "C" __global__ void tests(float* y) { BEGIN(33) mbarrier_arrive(&bar); while (!mbarrier_test_wait(&bar, 0)) {} }
extern "C" __global__ void tries_once(float* y) { BEGIN(33) mbarrier_arrive(&bar); if (threadIdx.x != 20) { while (!mbarrier_try_wait(&bar, 0)) {} } else if (!mbarrier_try_wait(&bar, 0)) { mbarrier_arrive(&bar); } y[threadIdx.x] = 1; }
extern "C" __global__ void too_many(float* y) { BEGIN(20) if (threadIdx.x < 10) mbarrier_arrive_count(&bar, 3); }
extern "C" __global__ void no_init(float* y) { __shared__ u64 bar; mbarrier_arrive(&bar); }
extern "C" __global__ void no_sync(float* y) { __shared__ u64 bar; if (threadIdx.x == 0) mbarrier_init(&bar, 32); mbarrier_arrive(&bar); }
extern "C" __global__ void over_it(float* y) { BEGIN(32) if (threadIdx.x == 0) bar = 1; __syncthreads(); mbarrier_arrive(&bar); }
extern "C" __global__ void zero_count(float* y) { __shared__ u64 bar; mbarrier_init(&bar, 0); }
extern "C" __global__ void much(float* y) { BEGIN(32) mbarrier_expect(&bar, 1 << 16); }
extern "C" __global__ void no_fence_of_init(float* y, const float* x) {
    __shared__ __align__(128) float t[32];
    __shared__ u64 bar;
    if (threadIdx.x == 0) mbarrier_init(&bar, 1), mbarrier_arrive_expect(&bar, 128), bulk_load(t, x, 128, &bar), mbarrier_wait(&bar, 0);
}
extern "C" __global__ void short_copy(float* y, const float* x) { __shared__ __align__(128) float t[32]; BEGIN(1) if (threadIdx.x == 0) bulk_load(t, x, 120, &bar); }
extern "C" __global__ void past_x(float* y, const float* x) { __shared__ __align__(128) float t[64]; BEGIN(1) if (threadIdx.x == 0) bulk_load(t, x, 256, &bar); }
extern "C" __global__ void stores(float* y, int wait, int fence) {
    __shared__ __align__(128) float t[32];
    t[threadIdx.x] = threadIdx.x;
    if (fence) fence_proxy_async();
    __syncwarp();
    if (threadIdx.x == 0) bulk_store(y, t, 128), bulk_commit();
    if (threadIdx.x == 0 && wait == 1) bulk_wait_read<0>();
    __syncthreads();
    if (wait < 2) t[threadIdx.x] = -1;
    if (threadIdx.x == 0 && wait != 2) bulk_wait<0>();
}
extern "C" __global__ void no_map(float* y, const __grid_constant__ TensorMap map) { __shared__ __align__(128) float t[64]; BEGIN(1) if (threadIdx.x == 0) tensor_load(t, &map, &bar, 0, 0); }
extern "C" __global__ void two(float* y, const __grid_constant__ TensorMap map, int skip) {
    __shared__ __align__(128) float t[128];
    BEGIN(1)
    if (threadIdx.x == 0) tensor_load(t + skip, &map, &bar, 0, 0), mbarrier_arrive_expect(&bar, 256), mbarrier_wait(&bar, 0);
}
// Zeros, ones along the diagonal, from the threads; y = A B with both of ones.
template <int FAULT> __device__ void product(float* y) {
    __shared__ __align__(1024) unsigned short a[64 * 64], b[8 * 64];
    for (int i = threadIdx.x; i < 64 * 64; i += 128) a[i] = 0x3f80;
    for (int i = threadIdx.x; i < 8 * 64; i += 128) b[i] = 0x3f80;
    if (FAULT != 1) fence_proxy_async();
    __syncthreads();
    float d[4] = {0, 0, 0, 0};
    if (FAULT != 2) wgmma_fence();
    if (FAULT == 3) d[1] = 5, wgmma_fence();
    u64 da = wgmma_descriptor(a, 16, 1024, 128), db = wgmma_descriptor(b, 16, 1024, 128);
    if (FAULT == 9 && threadIdx.x == 77) da += 2;
    if (FAULT == 10) da += 1 << 12;
    for (int q = 0; q < 4; ++q) wgmma_bf16<8>(d, da + 2 * q, db + 2 * q, 1);
    if (FAULT == 11 && threadIdx.x < 64) return;
    wgmma_commit();
    if (FAULT == 4) y[threadIdx.x] = d[0];
    if (FAULT == 5) { __syncthreads(); a[threadIdx.x] = 0; __syncthreads(); }
    if (FAULT == 12) return;
    wgmma_wait<0>();
    if (FAULT == 6) {
        d[2] += 1;
        wgmma_bf16<8>(d, da, db, 1);
        wgmma_commit();
        wgmma_wait<0>();
    }
    if (FAULT == 7) {       // no fence is needed: the accumulators are as they were left
        wgmma_bf16<8>(d, da, db, 1);
        wgmma_commit();
        wgmma_wait<0>();
    }
    if (FAULT != 4) y[threadIdx.x] = d[0];
}
extern "C" __global__ void product0(float* y) { product<0>(y); }
extern "C" __global__ void product1(float* y) { product<1>(y); }
extern "C" __global__ void product2(float* y) { product<2>(y); }
extern "C" __global__ void product4(float* y) { product<4>(y); }
extern "C" __global__ void product5(float* y) { product<5>(y); }
extern "C" __global__ void product6(float* y) { product<6>(y); }
extern "C" __global__ void product7(float* y) { product<7>(y); }
extern "C" __global__ void product9(float* y) { product<9>(y); }
extern "C" __global__ void product10(float* y) { product<10>(y); }
extern "C" __global__ void product11(float* y) { product<11>(y); }
extern "C" __global__ void product12(float* y) { product<12>(y); }
// Bytes and halves next to each other are nobody else's; the same byte is.
extern "C" __global__ void bytes(unsigned char* y, int together) {
    __shared__ unsigned char t[64];
    __shared__ unsigned short h[64];
    t[threadIdx.x / (together == 1 ? 2 : 1)] = threadIdx.x;
    h[threadIdx.x] = threadIdx.x;
    if (together != 2) __syncthreads();
    y[threadIdx.x] = t[63 - threadIdx.x] + h[63 - threadIdx.x];
}
)";
static void* fault(const char* name) { return function_of(module_of(faulty, with_kernels()), name); }
template <class... A> static void fails(const char* name, unsigned threads, A... a) { GIVES(CUDA_ERROR_LAUNCH_FAILED, launch1(fault(name), 1, threads, a...)); }
static std::vector<float> product_of(const char* name) {
    CUdeviceptr y = device(512);
    OK(launch1(fault(name), 1, 128, y));
    return download<float>(y, 128);
}
static CUdeviceptr some() { return upload(std::vector<float>(32, 1.f)); }

static void no_wait() {
    CUdeviceptr y = device(256);
    OK(launch1(fault("no_wait"), 1, 32, y, some()));
    auto v = download<float>(y, 64);
    for (int i = 0; i < 64; i++) EXPECT(i < 32 ? std::isnan(v[i]) : v[i] == 1);
}
static void healthy() {         // the twins of the faults, under all checks
    CUdeviceptr y = device(512);
    OK(launch1(fault("expects"), 1, 32, y, some(), 128));
    OK(launch1(fault("tries_once"), 1, 32, y));
    EXPECT(download<float>(y, 32)[31] == 1);
    OK(launch1(fault("stores"), 1, 32, y, 1, 1));
    EXPECT(download<float>(y, 32)[31] == 31);
    for (float v : product_of("product0")) EXPECT(v == 64);
    for (float v : product_of("product7")) EXPECT(v == 80);
    OK(launch1(fault("bytes"), 1, 64, y, 0));
}
static void early_accumulators() {
    for (float v : product_of("product4")) EXPECT(std::isnan(v));
}
static void wrong_swizzle() {   // the map has another swizzle than the descriptor: numbers, but not these
    void* m = kernels();
    int M = 64, n = 72, k = 64;
    auto A = numbers((size_t)M * k, 1), B = numbers((size_t)n * k, 2);
    CUdeviceptr pa = upload(halves(A, to_bf16)), pb = upload(halves(B, to_bf16)), c = device((size_t)M * n * 4);
    unsigned shared = 1024 + 3 * (64 + 72) * 128, wrong = 0;
    Map a = tiled(BF16, pa, {{(uint64_t)k, (uint64_t)M}, {64, 64}, {}, {}, 0}), b = tiled(BF16, pb, {{(uint64_t)k, (uint64_t)n}, {64, 72}, {}, {}, SW128});
    OK(launch(kernel(m, "gemm_bf16", shared), {1, 1, 1, 160, 1, 1, shared}, nullptr, a, b, c, M, n, k));
    auto C = download<float>(c, (size_t)M * n);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < n; j++) {
            float s = 0;
            for (int q = 0; q < k; q++) s += A[i * k + q] * B[j * k + q];
            wrong += C[i * n + j] != s;
        }
    EXPECT(wrong > 1000);
}
static Map small(int swizzle = 0) { return tiled(F32, upload(std::vector<float>(64, 1.f)), {{8, 8}, {8, 8}, {}, {}, swizzle}); }
static void speed() {
    void* m = kernels();
    int n = 512, k = 8192;
    auto A = numbers((size_t)n * k, 1);
    CUdeviceptr p = upload(halves(A, to_bf16)), c = device((size_t)n * n * 4);
    Map a = tiled(BF16, p, {{(uint64_t)k, (uint64_t)n}, {64, 64}, {}, {}, SW128}), b = tiled(BF16, p, {{(uint64_t)k, (uint64_t)n}, {64, 72}, {}, {}, SW128});
    unsigned shared = 1024 + 3 * (64 + 72) * 128;
    auto t = std::chrono::steady_clock::now();
    OK(launch(kernel(m, "gemm_bf16", shared), {8, 8, 1, 160, 1, 1, shared}, nullptr, a, b, c, n, n, k));
    double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count();
    printf("wgmma: %.1f GFLOP/s\n", 2.0 * n * n * k / s / 1e9);
}

static void all() { gemms(), gemm_k_first(), products(), conv(true), others(), healthy(); }

static const Case cases[] = {
    {"products by wgmma, K first or last, ragged", [] { gemms(), gemm_k_first(); }, "", ""},
    {"wgmma in each swizzle and major, A from registers", products, "", ""},
    {"convolutions over shifted descriptors and im2col", convolutions, "", ""},
    {"copies, stores, sums, prefetches of each rank", others, "", ""},
    {"boxes byte by byte", boxes, "", ""},
    {"im2col pixel by pixel", columns, "", ""},
    {"limits of tensor maps", refusals, "", ""},
    {"speed", speed, "", ""},
    {"healthy twins of the faults", healthy, "", ""},
    {"all, shuffled", all, "HADAL_EMU_SHUFFLE=7", ""},
    {"all, checked", all, "HADAL_EMU_CHECK=1 HADAL_EMU_RACE=1", ""},
    {"fault: no wait for a bulk copy", no_wait, "", ""},
    {"fault: the same, by the race detector", [] { fails("no_wait", 32, device(256), some()); }, "HADAL_EMU_RACE=1", "a bulk copy is on its way"},
    {"fault: a copy still on its way at the end", [] { fails("never_waits", 32, device(256), some()); }, "", "ended while a bulk copy"},
    {"fault: too many bytes expected", [] { fails("expects", 32, device(256), some(), 144); }, "", "16 bytes to come"},
    {"fault: too few bytes expected", [] { fails("expects", 32, device(256), some(), 112); }, "", "16 bytes too many"},
    {"fault: wrong parity", [] { fails("wrong_parity", 32, device(256)); }, "", "phase 1 has 32 of 32 arrivals to come"},
    {"fault: tries for ever", [] { fails("tries", 32, device(256)); }, "", "1 of 33 arrivals to come"},
    {"fault: asks for ever", [] { fails("tests", 32, device(256)); }, "", "asks for ever"},
    {"fault: too many arrivals", [] { fails("too_many", 32, device(256)); }, "", "3 arrivals at"},
    {"fault: mbarrier never initialized", [] { fails("no_init", 32, device(256)); }, "", "never initialized"},
    {"fault: mbarrier used too early", [] { fails("no_sync", 32, device(256)); }, "", "without a barrier in between"},
    {"fault: mbarrier written over", [] { fails("over_it", 32, device(256)); }, "", "wrote over"},
    {"fault: count of zero", [] { fails("zero_count", 1, device(256)); }, "", "a count of 0"},
    {"fault: more bytes than an mbarrier counts", [] { fails("much", 32, device(256)); }, "", "it can count to"},
    {"fault: initialization not made visible", [] { fails("no_fence_of_init", 32, device(256), some()); }, "", "no fence_mbarrier_init"},
    {"fault: copy of 120 bytes", [] { fails("short_copy", 32, device(256), some()); }, "", "no multiple of 16"},
    {"fault: copy past the end", [] { GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch1(fault("past_x"), 1, 32, device(256), some())); }, "", "reach past the end of allocation"},
    {"fault: store's source written too early", [] { fails("stores", 32, device(128), 0, 1); }, "", "before bulk_wait_read"},
    {"fault: store without a wait", [] { fails("stores", 32, device(128), 2, 1); }, "", "ended without bulk_wait"},
    {"fault: store without a proxy fence", [] { fails("stores", 32, device(128), 1, 0); }, "HADAL_EMU_RACE=1", "without fence.proxy.async"},
    {"fault: no tensor map", [] { fails("no_map", 32, device(256), Map{}); }, "", "no tensor map"},
    {"fault: map for im2col", [] { fails("two", 32, device(256), im2col(F32, device(256), {4, 4, 4, 1}, {0, 0}, {0, 0}, 4, 16, {1, 1, 1, 1}), 0); }, "", "a map of rank 4 for im2col"},
    {"fault: box at a place not aligned to 128", [] { GIVES(CUDA_ERROR_MISALIGNED_ADDRESS, launch1(fault("two"), 1, 32, device(256), small(), 4)); }, "", "no multiple of 128"},
    {"fault: box past shared memory", [] { GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch1(fault("two"), 1, 32, device(256), small(), 96)); }, "", "not all in shared memory"},
    {"fault: tensor freed", [] { CUdeviceptr p = device(256); Map m = tiled(F32, p, {{8, 8}, {8, 8}}); OK(cuMemFree_v2(p));
                                 GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch1(fault("two"), 1, 32, device(256), m, 0)); }, "", "use after free"},
    {"fault: wrong swizzle", wrong_swizzle, "", ""},
    {"fault: wgmma without a proxy fence", [] { fails("product1", 128, device(512)); }, "HADAL_EMU_RACE=1", "without fence.proxy.async"},
    {"fault: no wgmma_fence", [] { fails("product2", 128, device(512)); }, "", "no wgmma_fence before the first"},
    {"fault: accumulators read too early", early_accumulators, "", ""},
    {"fault: operands written too early", [] { fails("product5", 128, device(512)); }, "", "was written before wgmma_wait"},
    {"fault: accumulators written without a fence", [] { fails("product6", 128, device(512)); }, "", "written without a wgmma_fence"},
    {"fault: threads with different descriptors", [] { fails("product9", 128, device(512)); }, "", "bring different operands"},
    {"fault: wgmma outside of shared memory", [] { GIVES(CUDA_ERROR_ILLEGAL_ADDRESS, launch1(fault("product10"), 1, 128, device(512))); }, "", "outside of shared memory"},
    {"fault: half a warpgroup", [] { fails("product0", 96, device(512)); }, "", "no whole warpgroup"},
    {"fault: half a warpgroup goes on", [] { fails("product11", 128, device(512)); }, "", "without wgmma_wait"},
    {"fault: no wgmma_wait", [] { fails("product12", 128, device(512)); }, "", "without wgmma_wait"},
    {"fault: race on a byte", [] { fails("bytes", 64, device(512), 1); }, "HADAL_EMU_RACE=1", "race in shared memory"},
    {"fault: race on two bytes", [] { fails("bytes", 64, device(512), 2); }, "HADAL_EMU_RACE=1", "race in shared memory"},
};

int main(int argc, char** argv) { return run_cases(argc, argv, cases); }
