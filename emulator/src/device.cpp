// The device, its attributes, contexts: everything about the machine that the stand-in pretends to be.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <strings.h>

#include "internal.h"

TLS CUcontext current_ctx;
static std::atomic<bool> initialized{false};
static std::mutex device_lock;

// ---- settings

static const char* env(const char* name) {
    const char* v = getenv(name);
    return v && *v ? v : nullptr;
}
static bool flag(const char* name) {
    const char* v = env(name);
    return v && strcmp(v, "0") != 0;
}
static size_t bytes_of(const char* v) {
    char* end;
    double x = strtod(v, &end);
    switch (*end | 32) {
    case 'k': x *= 1024; break;
    case 'm': x *= 1024. * 1024; break;
    case 'g': x *= 1024. * 1024 * 1024; break;
    }
    return (size_t)x;
}
const Settings& settings() {
    static const Settings* s = [] {
        auto* s = new Settings;
        if (auto v = env("HADAL_EMU_DEVICES")) s->devices = atoi(v);
        if (auto v = env("HADAL_EMU_CC")) {
            s->cc_major = atoi(v);
            const char* dot = strchr(v, '.');
            s->cc_minor = dot ? atoi(dot + 1) : 0;
            if (!dot && s->cc_major >= 50) s->cc_minor = s->cc_major % 10, s->cc_major /= 10;
        }
        take_capability(s);
        if (auto v = env("HADAL_EMU_CARD")) take_card(s, v);
        if (auto v = env("HADAL_EMU_SMS")) s->multiprocessors = atoi(v);
        if (auto v = env("HADAL_EMU_MEMORY")) s->memory = bytes_of(v);
        if (auto v = env("HADAL_EMU_THREADS")) s->threads = atoi(v);
        if (auto v = env("HADAL_EMU_SHUFFLE")) s->shuffle = true, s->seed = strtoull(v, nullptr, 0);
        s->check = flag("HADAL_EMU_CHECK");
        s->race = flag("HADAL_EMU_RACE");
        s->stats = flag("HADAL_EMU_STATS");
        if (auto v = env("HADAL_EMU_DRIVER")) {
            const char* dot = strchr(v, '.');
            s->driver = atoi(v) * 1000 + (dot ? atoi(dot + 1) * 10 : 0);
        }
        if (auto v = env("HADAL_EMU_POOLS")) s->pools = strcmp(v, "0") != 0;
        s->late = flag("HADAL_EMU_LATE");
        return s;
    }();
    return *s;
}

// ---- devices and contexts

Device* device_at(int i) {
    static Device* all = [] {
        auto* d = new Device[(size_t)settings().devices + 1];
        for (int k = 0; k < settings().devices; k++) {
            d[k].ordinal = k;
            d[k].default_pool = d[k].pool = new CUmemPool_st{&d[k]};
            d[k].default_pool->is_default = true;
        }
        return d;
    }();
    return i >= 0 && i < settings().devices ? &all[i] : nullptr;
}
CUresult enter() {
    if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
    if (!current_ctx) return CUDA_ERROR_INVALID_CONTEXT;
    return (CUresult)current_ctx->sticky.load(std::memory_order_relaxed);
}
static CUcontext new_context(Device* d, unsigned flags) {
    auto* c = new CUctx_st;
    c->dev = d;
    c->flags = flags;
    c->null_stream = new CUstream_st;
    c->null_stream->ctx = c;
    return c;
}
#define DEVICE(d, ordinal)                                    \
    if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;      \
    Device* d = device_at(ordinal);                           \
    if (!d) return CUDA_ERROR_INVALID_DEVICE

EXPORT CUresult cuInit(unsigned flags) {
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (settings().devices < 1) return CUDA_ERROR_NO_DEVICE;
    device_at(0);
    install_fault_handler();
    initialized = true;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDriverGetVersion(int* v) {
    if (!v) return CUDA_ERROR_INVALID_VALUE;
    *v = settings().driver;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGet(CUdevice* out, int ordinal) {
    DEVICE(d, ordinal);
    *out = d->ordinal;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetCount(int* n) {
    if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
    *n = settings().devices;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetName(char* name, int len, CUdevice dev) {
    DEVICE(d, dev);
    (void)d;
    // A kernel cache knows cards apart by name: what one mode compiled is of no use in another.
    auto mode = compiler::mode();
    snprintf(name, (size_t)len, "%s%s", settings().name, mode == compiler::FromPtx ? " (from PTX)" : mode == compiler::Nothing ? " (null)" : "");
    return CUDA_SUCCESS;
}
static CUresult uuid(unsigned char* out, CUdevice dev) {
    DEVICE(d, dev);
    memcpy(out, "hadal emulator!", 15);
    out[15] = (unsigned char)d->ordinal;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetUuid(unsigned char* out, CUdevice dev) { return uuid(out, dev); }
EXPORT CUresult cuDeviceGetUuid_v2(unsigned char* out, CUdevice dev) { return uuid(out, dev); }
EXPORT CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice dev) {
    DEVICE(d, dev);
    (void)d;
    *bytes = settings().memory;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice dev) {
    DEVICE(d, dev);
    (void)d;
    *major = settings().cc_major, *minor = settings().cc_minor;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetPCIBusId(char* s, int len, CUdevice dev) {
    DEVICE(d, dev);
    snprintf(s, (size_t)len, "0000:%02x:00.0", d->ordinal + 1);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceCanAccessPeer(int* can, CUdevice, CUdevice) {
    *can = 0;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetAttribute(int* v, int attribute, CUdevice dev) {
    DEVICE(d, dev);
    auto& s = settings();
    int cc = s.cc_major * 10 + s.cc_minor;
    switch (attribute) {
    case 1: case 2: case 3: *v = 1024; break;                           // threads per block, block x, y
    case 4: *v = 64; break;
    case 5: *v = 0x7fffffff; break;
    case 6: case 7: *v = 65535; break;
    case 8: *v = 48 * 1024; break;                                      // shared memory per block without asking
    case 9: *v = 65536; break;                                          // constant memory
    case 10: *v = 32; break;
    case 11: *v = 0x7fffffff; break;
    case 12: case 82: *v = 65536; break;                                // registers per block, per multiprocessor
    case 13: *v = s.clock_khz; break;                                       // clock, kHz
    case 14: *v = 512; break;
    case 15: case 19: case 31: case 41: *v = 1; break;                  // overlap, mapped host memory, concurrency, one address space
    case 16: *v = s.multiprocessors; break;
    case 33: *v = d->ordinal + 1; break;
    case 36: *v = s.memory_khz; break;
    case 37: *v = s.bus_bits; break;
    case 38: *v = (int)s.l2; break;                                      // L2
    case 39: *v = cc == 75 ? 1024 : (cc > 80 && cc < 90) || cc >= 120 ? 1536 : 2048; break;
    case 40: *v = 3; break;
    case 75: *v = s.cc_major; break;
    case 76: *v = s.cc_minor; break;
    case 78: case 79: case 80: case 83: case 89: case 90: case 95: *v = 1; break;
    case 81: *v = (int)s.shared_per_sm; break;
    case 97: *v = (int)s.max_shared; break;
    case 106: *v = cc == 75 ? 16 : (cc > 80 && cc < 90) || cc >= 120 ? 24 : 32; break;
    case 111: *v = cc >= 80 ? 1024 : 0; break;
    case 115: *v = s.pools; break;                                            // memory pools
    case 120: *v = s.cc_major >= 9; break;                              // clusters
    default: *v = 0;
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice dev) {
    DEVICE(d, dev);
    std::lock_guard<std::mutex> g(device_lock);
    if (!d->primary) d->primary = new_context(d, d->primary_flags);
    d->primary_refs++;
    *out = d->primary;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
    DEVICE(d, dev);
    std::lock_guard<std::mutex> g(device_lock);
    if (d->primary_refs == 0) return CUDA_ERROR_INVALID_CONTEXT;
    d->primary_refs--;      // kept even at zero: what is left of it may still be freed
    return CUDA_SUCCESS;
}
// The only way to go on after a fault, as with the driver.
EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice dev) {
    DEVICE(d, dev);
    std::lock_guard<std::mutex> g(device_lock);
    if (d->primary) d->primary->sticky = 0;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned flags) {
    DEVICE(d, dev);
    d->primary_flags = flags;
    if (d->primary) d->primary->flags = flags;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice dev, unsigned* flags, int* active) {
    DEVICE(d, dev);
    *flags = d->primary_flags;
    *active = d->primary_refs > 0;
    return CUDA_SUCCESS;
}

static CUresult create_context(CUcontext* out, unsigned flags, CUdevice dev) {
    DEVICE(d, dev);
    *out = current_ctx = new_context(d, flags);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxCreate_v2(CUcontext* out, unsigned flags, CUdevice dev) { return create_context(out, flags, dev); }
EXPORT CUresult cuCtxCreate_v3(CUcontext* out, void*, int, unsigned flags, CUdevice dev) { return create_context(out, flags, dev); }
EXPORT CUresult cuCtxCreate_v4(CUcontext* out, void*, unsigned flags, CUdevice dev) { return create_context(out, flags, dev); }
EXPORT CUresult cuCtxDestroy_v2(CUcontext c) {
    if (!c) return CUDA_ERROR_INVALID_CONTEXT;
    if (current_ctx == c) current_ctx = nullptr;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetCurrent(CUcontext* c) {
    if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
    *c = current_ctx;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetCurrent(CUcontext c) {
    if (!initialized) return CUDA_ERROR_NOT_INITIALIZED;
    current_ctx = c;
    return CUDA_SUCCESS;
}
static thread_local std::vector<CUcontext> pushed;
EXPORT CUresult cuCtxPushCurrent_v2(CUcontext c) {
    pushed.push_back(current_ctx);
    current_ctx = c;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* c) {
    if (c) *c = current_ctx;
    if (pushed.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    current_ctx = pushed.back();
    pushed.pop_back();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetDevice(CUdevice* d) {
    if (!current_ctx) return CUDA_ERROR_INVALID_CONTEXT;
    *d = current_ctx->dev->ordinal;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetFlags(unsigned* f) {
    if (!current_ctx) return CUDA_ERROR_INVALID_CONTEXT;
    *f = current_ctx->flags;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetFlags(unsigned f) {
    if (!current_ctx) return CUDA_ERROR_INVALID_CONTEXT;
    current_ctx->flags = f;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetId(CUcontext c, unsigned long long* id) {
    *id = (unsigned long long)(uintptr_t)(c ? c : current_ctx);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetApiVersion(CUcontext, unsigned* v) {
    *v = 13000;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSynchronize() {
    count_synchronization();
    ENTER();
    CUresult e = forbid_in_capture();
    if (e != CUDA_SUCCESS) return e;
    e = run_late();
    if (e != CUDA_SUCCESS) return e;
    // Nothing is left to wait for: a moment to look whether anything was overwritten.
    std::string report;
    if (!memory::check_canaries(&report)) {
        fprintf(stderr, "hadal emulator: %s (noticed at a synchronization; HADAL_EMU_CHECK=1 names the kernel)\n", report.c_str());
        current_ctx->sticky = CUDA_ERROR_ILLEGAL_ADDRESS;
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER();
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
}
static size_t limits[16] = {1024, 1 << 20, 8 << 20, 2, 2048, 128, 0};
EXPORT CUresult cuCtxGetLimit(size_t* v, int limit) {
    ENTER();
    if (limit < 0 || limit >= 16) return CUDA_ERROR_INVALID_VALUE;
    *v = limits[limit];
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetLimit(int limit, size_t v) {
    ENTER();
    if (limit < 0 || limit >= 16) return CUDA_ERROR_INVALID_VALUE;
    limits[limit] = v;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetCacheConfig(int* c) { *c = 0; return CUDA_SUCCESS; }
EXPORT CUresult cuCtxSetCacheConfig(int) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxResetPersistingL2Cache() { return CUDA_SUCCESS; }
EXPORT CUresult cuProfilerStart() { return CUDA_SUCCESS; }
EXPORT CUresult cuProfilerStop() { return CUDA_SUCCESS; }

// ---- names of errors

#define ERRORS(X)                                                                                                               \
    X(CUDA_SUCCESS, "no error") X(CUDA_ERROR_INVALID_VALUE, "invalid argument") X(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")     \
    X(CUDA_ERROR_NOT_INITIALIZED, "initialization error") X(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected")          \
    X(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal") X(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid")         \
    X(CUDA_ERROR_INVALID_CONTEXT, "invalid device context") X(CUDA_ERROR_FILE_NOT_FOUND, "file not found")                       \
    X(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device")                                  \
    X(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle")                                                                     \
    X(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state")                                       \
    X(CUDA_ERROR_NOT_FOUND, "named symbol not found") X(CUDA_ERROR_NOT_READY, "device not ready")                                \
    X(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered")                                                   \
    X(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch")                                            \
    X(CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated")                                                     \
    X(CUDA_ERROR_ASSERT, "device-side assert triggered") X(CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address")                  \
    X(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure") X(CUDA_ERROR_NOT_PERMITTED, "operation not permitted")             \
    X(CUDA_ERROR_NOT_SUPPORTED, "operation not supported")                                                                      \
    X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing")                                \
    X(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture")                         \
    X(CUDA_ERROR_STREAM_CAPTURE_MERGE, "operation would result in a merge of separate capture sequences")                       \
    X(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "capture was not ended in the same stream as it began")                              \
    X(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work")                                                 \
    X(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream")                           \
    X(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream")       \
    X(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream")                     \
    X(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread")       \
    X(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE, "the graph update was not performed because it included changes which violated constraints specific to instantiated graph update") \
    X(CUDA_ERROR_INVALID_CLUSTER_SIZE, "invalid cluster size")                                                                   \
    X(CUDA_ERROR_UNKNOWN, "unknown error")
EXPORT CUresult cuGetErrorName(int e, const char** s) {
    switch (e) {
#define X(code, text) case code: *s = #code; return CUDA_SUCCESS;
        ERRORS(X)
#undef X
    }
    *s = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}
EXPORT CUresult cuGetErrorString(int e, const char** s) {
    switch (e) {
#define X(code, text) case code: *s = text; return CUDA_SUCCESS;
        ERRORS(X)
#undef X
    }
    *s = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

// ---- looking functions up by name: the newest variant that there is

static void* self_handle() {
    static void* h = [] {
        Dl_info i;
        dladdr((void*)&cuInit, &i);
        return dlopen(i.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    }();
    return h;
}
EXPORT CUresult cuGetProcAddress_v2(const char* name, void** fn, int, uint64_t, int* status) {
    if (!name || !fn) return CUDA_ERROR_INVALID_VALUE;
    *fn = nullptr;
    for (const char* suffix : {"_v4", "_v3", "_v2", ""}) {
        *fn = dlsym(self_handle(), (std::string(name) + suffix).c_str());
        if (*fn) break;
    }
    if (status) *status = *fn ? 0 : 1;
    return *fn ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
EXPORT CUresult cuGetProcAddress(const char* name, void** fn, int version, uint64_t flags) { return cuGetProcAddress_v2(name, fn, version, flags, nullptr); }
EXPORT CUresult cuGetExportTable(const void** table, const void*) {
    *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}
