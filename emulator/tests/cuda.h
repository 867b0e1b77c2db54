// The few declarations of the driver and NVRTC that the tests need, and helpers that end the program on an error.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

typedef unsigned long long CUdeviceptr;
extern "C" {
int cuInit(unsigned);
int cuDeviceGet(int*, int);
int cuDeviceGetAttribute(int*, int, int);
int cuDevicePrimaryCtxRetain(void**, int);
int cuDevicePrimaryCtxReset_v2(int);
int cuCtxSetCurrent(void*);
int cuCtxSynchronize();
int cuMemAlloc_v2(CUdeviceptr*, size_t);
int cuMemAllocAsync(CUdeviceptr*, size_t, void*);
int cuMemFree_v2(CUdeviceptr);
int cuMemFreeAsync(CUdeviceptr, void*);
int cuMemGetInfo_v2(size_t*, size_t*);
int cuMemcpyHtoD_v2(CUdeviceptr, const void*, size_t);
int cuMemcpyDtoH_v2(void*, CUdeviceptr, size_t);
int cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, size_t, void*);
int cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, void*);
int cuMemsetD32Async(CUdeviceptr, unsigned, size_t, void*);
int cuModuleLoadData(void**, const void*);
int cuModuleUnload(void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuFuncGetAttribute(int*, int, void*);
int cuFuncGetParamInfo(void*, size_t, size_t*, size_t*);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuStreamCreate(void**, unsigned);
int cuStreamDestroy_v2(void*);
int cuStreamSynchronize(void*);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuStreamIsCapturing(void*, int*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
int cuGraphDestroy(void*);
int cuGraphExecDestroy(void*);
int cuGraphExecUpdate_v2(void*, void*, void*);
int cuGraphGetNodes(void*, void**, size_t*);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cuEventElapsedTime(float*, void*, void*);
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int*, void*, int, size_t);
int cuGetErrorName(int, const char**);
int cuGetProcAddress_v2(const char*, void**, int, uint64_t, int*);
int cuTensorMapEncodeTiled(void*, int, unsigned, void*, const uint64_t*, const uint64_t*, const unsigned*, const unsigned*, int, int, int, int);
int cuTensorMapEncodeIm2col(void*, int, unsigned, void*, const uint64_t*, const uint64_t*, const int*, const int*, unsigned, unsigned, const unsigned*, int, int, int, int);
int nvrtcCreateProgram(void**, const char*, const char*, int, const char* const*, const char* const*);
int nvrtcCompileProgram(void*, int, const char* const*);
int nvrtcGetCUBINSize(void*, size_t*);
int nvrtcGetCUBIN(void*, char*);
int nvrtcGetProgramLogSize(void*, size_t*);
int nvrtcGetProgramLog(void*, char*);
int nvrtcAddNameExpression(void*, const char*);
int nvrtcGetLoweredName(void*, const char*, const char**);
int nvrtcDestroyProgram(void**);
}

inline std::string error_name(int e) {
    const char* s = nullptr;
    cuGetErrorName(e, &s);
    return s ? s : std::to_string(e);
}
#define OK(call)                                                                                     \
    do {                                                                                             \
        int e_ = (call);                                                                             \
        if (e_) {                                                                                    \
            printf("%s:%d: %s gave %s\n", __FILE__, __LINE__, #call, error_name(e_).c_str());        \
            exit(1);                                                                                 \
        }                                                                                            \
    } while (0)
#define EXPECT(condition)                                                                            \
    do {                                                                                             \
        if (!(condition)) {                                                                          \
            printf("%s:%d: expected %s\n", __FILE__, __LINE__, #condition);                          \
            exit(1);                                                                                 \
        }                                                                                            \
    } while (0)
#define GIVES(error, call)                                                                           \
    do {                                                                                             \
        int e_ = (call);                                                                             \
        if (error_name(e_) != #error) {                                                              \
            printf("%s:%d: %s gave %s, not %s\n", __FILE__, __LINE__, #call, error_name(e_).c_str(), #error); \
            exit(1);                                                                                 \
        }                                                                                            \
    } while (0)

inline void begin() {
    OK(cuInit(0));
    void* c;
    OK(cuDevicePrimaryCtxRetain(&c, 0));
    OK(cuCtxSetCurrent(c));
}
// The cubin, or an empty string and the log.
inline std::string compile(const std::string& source, std::vector<std::string> options = {}, std::string* log = nullptr,
                           std::vector<std::pair<std::string, std::string>>* names = nullptr) {
    void* p;
    OK(nvrtcCreateProgram(&p, source.c_str(), "test.cu", 0, nullptr, nullptr));
    options.push_back("--gpu-architecture=sm_90a");
    std::vector<const char*> o;
    for (auto& s : options) o.push_back(s.c_str());
    if (names)
        for (auto& n : *names) OK(nvrtcAddNameExpression(p, n.first.c_str()));
    int e = nvrtcCompileProgram(p, (int)o.size(), o.data());
    size_t n;
    OK(nvrtcGetProgramLogSize(p, &n));
    std::string l(n, 0);
    OK(nvrtcGetProgramLog(p, &l[0]));
    if (log) *log = l.c_str();
    std::string image;
    if (!e) {
        if (names)
            for (auto& nm : *names) {
                const char* s;
                OK(nvrtcGetLoweredName(p, nm.first.c_str(), &s));
                nm.second = s;
            }
        OK(nvrtcGetCUBINSize(p, &n));
        image.resize(n);
        OK(nvrtcGetCUBIN(p, &image[0]));
    } else if (!log) {
        printf("%s\n", l.c_str());
        exit(1);
    }
    OK(nvrtcDestroyProgram(&p));
    return image;
}
inline void* module_of(const std::string& source, std::vector<std::string> options = {}) {
    void* m;
    OK(cuModuleLoadData(&m, compile(source, options).data()));
    return m;
}
inline void* function_of(void* module, const char* name) {
    void* f;
    OK(cuModuleGetFunction(&f, module, name));
    return f;
}
template <class T> CUdeviceptr upload(const std::vector<T>& v) {
    CUdeviceptr p;
    OK(cuMemAlloc_v2(&p, v.size() * sizeof(T)));
    OK(cuMemcpyHtoD_v2(p, v.data(), v.size() * sizeof(T)));
    return p;
}
template <class T> std::vector<T> download(CUdeviceptr p, size_t n) {
    std::vector<T> v(n);
    OK(cuMemcpyDtoH_v2(v.data(), p, n * sizeof(T)));
    return v;
}
inline CUdeviceptr device(size_t bytes) {
    CUdeviceptr p;
    OK(cuMemAlloc_v2(&p, bytes));
    return p;
}
struct Grid { unsigned gx, gy, gz, bx, by, bz, shared; };
template <class... A> int launch(void* f, Grid g, void* stream, A... a) {
    void* args[] = {(void*)&a..., nullptr};
    return cuLaunchKernel(f, g.gx, g.gy, g.gz, g.bx, g.by, g.bz, g.shared, stream, args, nullptr);
}
template <class... A> int launch1(void* f, unsigned grid, unsigned block, A... a) { return launch(f, Grid{grid, 1, 1, block, 1, 1, 0}, (void*)nullptr, a...); }

// Each case is a run of the program of its own, since a fault in a kernel ends the context's life. Without arguments a program
// runs all of its cases and looks at how each ended and what it wrote to stderr.
struct Case { const char* name; void (*run)(); const char* env; const char* said; };
template <size_t n> int run_cases(int argc, char** argv, const Case (&cases)[n]) {
    if (argc > 1) {
        begin();
        cases[atoi(argv[1])].run();
        return 0;
    }
    int passed = 0, failed = 0;
    for (size_t i = 0; i < n; i++) {
        const Case& c = cases[i];
        std::string command = std::string(c.env) + " " + argv[0] + " " + std::to_string(i) + " 2>&1", said;
        FILE* p = popen(command.c_str(), "r");
        char b[4096];
        while (size_t k = fread(b, 1, sizeof b, p)) said.append(b, k);
        int status = pclose(p);
        bool ok = status == 0 && said.find(c.said) != std::string::npos;
        if (!*c.said && said.find("hadal emulator") != std::string::npos && !strstr(c.name, "limits")) ok = false;
        (ok ? passed : failed)++;
        printf("%s %s\n", ok ? "ok    " : "FAILED", c.name);
        if (!ok || getenv("VERBOSE") || (!*c.said && !said.empty())) printf("    %s%s\n", said.c_str(), ok ? "" : ("    expected: " + std::string(c.said)).c_str());
        fflush(stdout);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
