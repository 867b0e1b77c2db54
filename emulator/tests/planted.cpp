// Mistakes in the inline PTX of kernels/, planted one at a time. Each small kernel is right as it stands, in source mode and from
// NVRTC's PTX; with its mistake it is right in source mode, which never sees the asm, and wrong from the PTX: that is what the PTX is for.
// Needs the real NVRTC.
#include <cmath>
#include <fstream>
#include <functional>
#include <sstream>

#include "cuda.h"

static std::string read(const std::string& path) {
    std::ifstream f(path);
    std::stringstream s;
    s << f.rdbuf();
    return s.str();
}
static const char* const headers[] = {"ptx.cuh", "ptx_hopper.cuh", "ptx_wgmma.cuh"};

// The headers with `from` replaced by `to`, wherever it stands; it must stand somewhere.
static std::string folder_with(const std::string& from, const std::string& to) {
    char folder[] = "/tmp/hadal-planted-XXXXXX";
    if (!mkdtemp(folder)) exit(3);
    size_t found = 0;
    for (auto h : headers) {
        std::string text = read(std::string(HADAL_ROOT "/kernels/") + h);
        for (size_t p = 0; !from.empty() && (p = text.find(from, p)) != std::string::npos; p += to.size(), found++) text.replace(p, from.size(), to);
        std::ofstream(std::string(folder) + "/" + h) << text;
    }
    if (!from.empty() && !found) {
        printf("the headers have no `%s`: this mistake tests nothing\n", from.c_str());
        exit(3);
    }
    return folder;
}

struct Mistake {
    const char *name, *from, *to, *kernel;
    unsigned threads;
    float (*right)(int i);      // y[i], of 256 numbers
};

// x[i] = i as floats. Whole numbers, so that sums are exact in any order.
static const char* const begin_text = R"(
#include "ptx_hopper.cuh"
typedef unsigned long long u64;
__device__ __forceinline__ unsigned bf(float f) { return __float_as_uint(f) >> 16; }
extern "C" __global__ void __launch_bounds__(THREADS) k(float* y, const float* x) {
  __shared__ __align__(1024) unsigned char t[16384];
  int i = threadIdx.x;
)";

static float number(int row, int column) { return float((row * 7 + column * 3) % 5 - 2); }

static const Mistake mistakes[] = {
    {"the halves of a pair swapped", R"("=r"(word) : "f"(high), "f"(low))", R"("=r"(word) : "f"(low), "f"(high))",
     "unsigned w = f32_pair_to_bf16_bits(x[i], 100.f); y[i] = bf16_bits_to_f32((unsigned short)w);", 32, [](int i) { return i < 32 ? float(i) : 0.f; }},
    {"a .trans too much", R"(LDMATRIX(ldmatrix_x1, "x1",)", R"(LDMATRIX(ldmatrix_x1, "x1.trans",)",
     R"(((unsigned short*)t)[i] = i, ((unsigned short*)t)[i + 32] = i + 32; __syncwarp();
        unsigned r[1]; ldmatrix_x1(r, t + i % 8 * 16); y[i] = r[0] & 0xffff;)", 32, [](int i) { return i < 32 ? 2.f * float(i) : 0.f; }},
    {"registers of A swapped", "{%4, %5, %6, %7}", "{%4, %6, %5, %7}",
     R"(float d[4] = {}; unsigned a[4] = {bf(1), bf(2), bf(4), bf(8)}, b[2] = {bf(1), bf(16)};
        mma_m16n8k16_bf16(d, a, b); y[i] = d[0];)", 32, [](int i) { return i < 32 ? 4 * (1.f + 4 * 16) : 0.f; }},
    {"the bytes of a source not told", R"(, 16, %2;")", R"(, 16;")",
     R"(cp_async_16(t + 16 * i, x + 4 * i, i < 16 ? 16 : 4); cp_async_commit(); cp_async_wait<0>(); __syncwarp();
        for (int j = 0; j < 4; ++j) y[4 * i + j] = ((float*)t)[4 * i + j];)", 32, [](int i) { return i < 64 || (i < 128 && i % 4 == 0) ? float(i) : 0.f; }},
    {"an accumulator that is written only", R"("+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]))", R"("=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]))",
     R"(float c = x[5], d[4] = {c, c, c, c}; unsigned a[4] = {bf(1), bf(2), bf(4), bf(8)}, b[2] = {bf(1), bf(16)};
        mma_m16n8k16_bf16(d, a, b); y[i] = d[0];)", 32, [](int i) { return i < 32 ? 4 * (1.f + 4 * 16) + 5 : 0.f; }},
    {"a wait for the other parity", R"("r"(shared_address(bar)), "r"(parity))", R"("r"(shared_address(bar)), "r"(parity ^ 1))",
     R"(__shared__ u64 bar; if (i == 0) mbarrier_init(&bar, 1), fence_mbarrier_init(), mbarrier_arrive_expect(&bar, 128), bulk_load(t, x, 128, &bar);
        __syncthreads(); mbarrier_wait(&bar, 0); y[i] = ((float*)t)[i];)", 32, [](int i) { return i < 32 ? float(i) : 0.f; }},
    {"a descriptor's mode one bit too low", "mode << 62", "mode << 61", "wgmma 0 0", 128, nullptr},
    {"a descriptor's address without its top bits", "(shared_address(tile) & 0x3ffff) >> 4", "(shared_address(tile) & 0xfff) >> 4", "wgmma 0 0", 128, nullptr},
    {"the majors of A and B swapped", R"(", %" #ta ", %" #tb)", R"(", %" #tb ", %" #ta)", "wgmma 0 1", 128, nullptr},
    {"a sum begun where it should go on", R"(setp.ne.b32 p, %" #at_d ", 0;)", R"(setp.eq.b32 p, %" #at_d ", 0;)", "wgmma 1 0", 128, nullptr},
    {"an instruction that does not exist", "wgmma.fence.sync.aligned;", "wgmma.fense.sync.aligned;", "wgmma 1 1", 128, nullptr},
};

// D = A B twice over, 64 x 8 x 16, in each pair of majors.
static std::string product_text(int trans_a, int trans_b) {
    std::string t = "const int TA = " + std::to_string(trans_a) + ", TB = " + std::to_string(trans_b) + ";";
    return t + R"(
  // Rows of 128 bytes, swizzled: of K-major A 64 rows of 64 k, of M-major A 16 rows (k) of 64 m; of B 8 rows, or 16 rows of 64 n.
  auto at = [](int row, int column) { int a = row * 128 + column * 2; return a ^ (a >> 7 & 7) << 4; };
  for (int e = i; e < 64 * 16; e += 128) {
    int m = e / 16, k = e % 16;
    *(unsigned short*)(t + (TA ? at(k, m) : at(m, k))) = (unsigned short)bf((m * 7 + k * 3) % 5 - 2);
  }
  for (int e = i; e < 64 * 16; e += 128) {
    int n = e / 16, k = e % 16;
    if (TB || n < 8) *(unsigned short*)(t + 8192 + (TB ? at(k, n) : at(n, k))) = (unsigned short)bf((k * 7 + n * 3) % 5 - 2);
  }
  fence_proxy_async();
  __syncthreads();
  float d[4] = {};
  u64 da = wgmma_descriptor(t, 8192, 1024, 128), db = wgmma_descriptor(t + 8192, 8192, 1024, 128);
  wgmma_fence();
  wgmma_bf16<8, TA, TB>(d, da, db, 0);
  wgmma_bf16<8, TA, TB>(d, da, db, 1);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_results(d);
  // The first 32 of the rows.
  int row = i / 32 * 16 + i % 32 / 4, column = i % 4 * 2;
  if (row < 24) y[row * 8 + column] = d[0], y[row * 8 + column + 1] = d[1];
  if (row < 16) y[(row + 8) * 8 + column] = d[2], y[(row + 8) * 8 + column + 1] = d[3];
)";
}
static float product_at(int i) {
    int m = i / 8, n = i % 8;
    float s = 0;
    for (int k = 0; k < 16; k++) s += 2 * number(m, k) * number(k, n);
    return m < 24 ? s : 0.f;
}

// Whether the kernel of mistake `at` gives what it should, with the mistake or without.
static bool is_right(size_t at, bool mistaken) {
    const Mistake& m = mistakes[at];
    std::string folder = folder_with(mistaken ? m.from : "", m.to), body = m.kernel, log;
    if (body.compare(0, 5, "wgmma") == 0) body = product_text(body[6] - '0', body[8] - '0');
    std::string image = compile(begin_text + body + "\n}\n", {"--include-path=" + folder, "-DTHREADS=" + std::to_string(m.threads), "--std=c++17", "-default-device"}, &log);
    int e = system(("rm -rf " + folder).c_str());
    if (image.empty()) printf("%s", log.c_str());
    if (e || image.empty()) return false;
    void* module;
    OK(cuModuleLoadData(&module, image.data()));
    std::vector<float> x(256), zero(256);
    for (int i = 0; i < 256; i++) x[(size_t)i] = float(i);
    CUdeviceptr y = upload(zero);
    if (launch1(function_of(module, "k"), 1, m.threads, y, upload(x))) return false;
    auto v = download<float>(y, 256);
    for (int i = 0; i < 256; i++)
        if (v[(size_t)i] != (m.right ? m.right(i) : product_at(i))) {
            printf("y[%d] = %g, not %g\n", i, v[(size_t)i], m.right ? m.right(i) : product_at(i));
            return false;
        }
    return true;
}

int main(int argc, char** argv) {
    if (argc > 2) {
        begin();
        printf("%s\n", is_right((size_t)atoi(argv[1]), argv[2][0] == '1') ? "right" : "wrong");
        return 0;
    }
    int passed = 0, failed = 0;
    auto run = [&](size_t i, const char* mode, int mistaken, std::string* said) {
        std::string command = std::string("HADAL_EMU=") + mode + " " + argv[0] + " " + std::to_string(i) + " " + std::to_string(mistaken) + " 2>&1";
        FILE* p = popen(command.c_str(), "r");
        char b[4096];
        said->clear();
        while (size_t k = fread(b, 1, sizeof b, p)) said->append(b, k);
        int status = pclose(p);
        return status ? std::string("died") : said->find("right\n") != std::string::npos ? std::string("right") : std::string("wrong");
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        struct { const char* mode; int mistaken; const char* want; } runs[] = {{"source", 0, "right"}, {"source", 1, "right"}, {"ptx", 0, "right"}, {"ptx", 1, "wrong"}};
        bool ok = true;
        std::string all;
        for (auto& r : runs) {
            std::string said, got = run(i, r.mode, r.mistaken, &said);
            if (got != r.want) ok = false, all += std::string("    ") + r.mode + (r.mistaken ? " with" : " without") + " the mistake: " + got + ", not " + r.want + "\n" + said;
        }
        (ok ? passed : failed)++;
        printf("%s planted: %s\n%s", ok ? "ok    " : "FAILED", mistakes[i].name, all.c_str());
        fflush(stdout);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
