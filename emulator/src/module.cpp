// Modules: the shared object out of an image, its table of kernels, launches by handle, occupancy.
#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "internal.h"

static std::mutex modules_lock;
static std::vector<CUmodule> modules;
// Statistics outlive their modules.
static std::vector<std::pair<std::string, uint64_t>> retired;

static void print_stats() {
    std::lock_guard<std::mutex> g(modules_lock);
    std::vector<std::pair<std::string, uint64_t>> all = retired;
    for (CUmodule m : modules)
        for (auto& f : m->functions) all.push_back({f->name, f->launches.load()});
    std::sort(all.begin(), all.end());
    fprintf(stderr, "hadal emulator: launches per kernel\n");
    for (size_t i = 0; i < all.size();) {
        uint64_t n = 0;
        size_t k = i;
        for (; k < all.size() && all[k].first == all[i].first; k++) n += all[k].second;
        if (n) fprintf(stderr, "%10llu  %s\n", (unsigned long long)n, all[i].first.c_str());
        i = k;
    }
}

// Only for a report, so it may be slow: asks addr2line about the object, which was kept for this when it was loaded.
std::string line_of(void* pc) {
    std::lock_guard<std::mutex> g(modules_lock);
    for (CUmodule m : modules) {
        if ((uintptr_t)pc < m->low || (uintptr_t)pc >= m->high || m->object.empty()) continue;
        std::string path = compiler::cache_dir() + "/line-" + std::to_string(getpid()) + ".so";
        FILE* f = fopen(path.c_str(), "wb");
        if (!f) return "";
        fwrite(m->object.data(), 1, m->object.size(), f);
        fclose(f);
        char command[512], line[1024] = "";
        snprintf(command, sizeof command, "LD_LIBRARY_PATH= addr2line -e '%s' 0x%llx 2>/dev/null", path.c_str(), (unsigned long long)((uintptr_t)pc - 1 - m->low));
        if (FILE* p = popen(command, "r")) {
            if (!fgets(line, sizeof line, p)) line[0] = 0;
            pclose(p);
        }
        unlink(path.c_str());
        std::string r = line;
        r = r.substr(0, r.find_first_of(" \n"));
        if (r.compare(0, 2, "./") == 0) r = r.substr(2);
        return r.compare(0, 2, "??") == 0 ? "" : r;
    }
    return "";
}

static int find_extent(dl_phdr_info* info, size_t, void* p) {
    auto* m = (CUmod_st*)p;
    uintptr_t low = ~(uintptr_t)0, high = 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD) {
            low = std::min(low, (uintptr_t)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr));
            high = std::max(high, (uintptr_t)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz));
        }
    if (m->low < low || m->low >= high) return 0;
    m->low = low, m->high = high;
    return 1;
}

static CUresult load(CUmodule* out, const void* image) {
    ENTER();
    if (!out || !image) return CUDA_ERROR_INVALID_VALUE;
    size_t size = compiler::image_size(image);
    if (!size) {
        fprintf(stderr, "hadal emulator: this module was not made by the emulator's NVRTC\n");
        return CUDA_ERROR_INVALID_IMAGE;
    }
    // A cubin runs on devices of its own major version that are no older.
    unsigned arch = compiler::image_arch(image);
    if (arch && ((int)arch / 10 != settings().cc_major || (int)arch % 10 > settings().cc_minor)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    if (compiler::mode() == compiler::Nothing) {
        auto* m = new CUmod_st;
        m->ctx = current_ctx;
        std::lock_guard<std::mutex> g(modules_lock);
        modules.push_back(m);
        *out = m;
        return CUDA_SUCCESS;
    }
    std::string object, why;
    if (!compiler::object_of(std::string((const char*)image, size), &object, &why)) {
        fprintf(stderr, "hadal emulator: cannot load a module: %s\n", why.c_str());
        return CUDA_ERROR_INVALID_IMAGE;
    }
    // A name of its own each time: two loads of one image are two modules with their own globals.
    static std::atomic<unsigned> serial{0};
    std::string path = compiler::cache_dir() + "/load-" + std::to_string(getpid()) + "-" + std::to_string(serial++) + ".so";
    FILE* f = fopen(path.c_str(), "wb");
    bool ok = f && fwrite(object.data(), 1, object.size(), f) == object.size();
    if (f) ok = fclose(f) == 0 && ok;
    void* h = ok ? dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!h) fprintf(stderr, "hadal emulator: cannot load a module: %s\n", ok ? dlerror() : ("cannot write " + path).c_str());
    if (!getenv("HADAL_EMU_KEEP")) unlink(path.c_str());
    if (!h) return CUDA_ERROR_INVALID_IMAGE;
    auto* table = (const emu_kernel*)dlsym(h, "emu_kernels");
    auto* count = (const unsigned*)dlsym(h, "emu_kernel_count");
    auto* clusters = (const unsigned(*)[3])dlsym(h, "emu_kernel_clusters");      // older images have none
    bool from_ptx = dlsym(h, "emu_from_ptx") != nullptr;
    if (!table || !count) {
        dlclose(h);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    std::unique_ptr<CUmod_st> m(new CUmod_st);
    m->ctx = current_ctx;
    m->handle = h;
    m->low = (uintptr_t)table;
    if (settings().instrumented()) m->object = object;
    dl_iterate_phdr(find_extent, m.get());
    for (unsigned i = 0; i < *count; i++) {
        std::unique_ptr<CUfunc_st> fn(new CUfunc_st);
        fn->name = table[i].name;
        fn->run = table[i].run;
        fn->module = m.get();
        fn->nparams = table[i].nparams;
        fn->sizes = table[i].sizes;
        fn->max_threads = table[i].max_threads;
        fn->from_ptx = from_ptx, fn->min_blocks = table[i].min_blocks;
        if (from_ptx) fn->static_shared = table[i].static_shared;
        if (clusters) fn->cluster = {clusters[i][0], clusters[i][1], clusters[i][2]};
        m->functions.push_back(std::move(fn));
    }
    std::lock_guard<std::mutex> g(modules_lock);
    static bool once = (settings().stats ? atexit(print_stats) : 0, true);
    (void)once;
    modules.push_back(m.get());
    *out = m.release();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleLoadData(CUmodule* m, const void* image) { return load(m, image); }
EXPORT CUresult cuModuleLoadDataEx(CUmodule* m, const void* image, unsigned, int*, void**) { return load(m, image); }
EXPORT CUresult cuModuleLoadFatBinary(CUmodule* m, const void* image) { return load(m, image); }
EXPORT CUresult cuModuleLoad(CUmodule* m, const char* path) {
    ENTER();
    FILE* f = fopen(path, "rb");
    if (!f) return CUDA_ERROR_FILE_NOT_FOUND;
    std::string s;
    char buffer[65536];
    for (size_t n; (n = fread(buffer, 1, sizeof buffer, f)) > 0;) s.append(buffer, n);
    fclose(f);
    s.append(64, '\0');
    return load(m, s.data());
}
EXPORT CUresult cuModuleUnload(CUmodule m) {
    ENTER();
    run_late();
    if (!m) return CUDA_ERROR_INVALID_HANDLE;
    std::lock_guard<std::mutex> g(modules_lock);
    auto it = std::find(modules.begin(), modules.end(), m);
    if (it == modules.end()) return CUDA_ERROR_INVALID_HANDLE;
    modules.erase(it);
    if (settings().stats)
        for (auto& f : m->functions) retired.push_back({f->name, f->launches.load()});
    for (uintptr_t p : m->globals) memory::drop_range(p);
    if (m->handle) dlclose(m->handle);
    delete m;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetFunction(CUfunction* out, CUmodule m, const char* name) {
    ENTER();
    if (!m || !name) return CUDA_ERROR_INVALID_HANDLE;
    std::unique_lock<std::mutex> g(modules_lock, std::defer_lock);
    if (compiler::mode() == compiler::Nothing) g.lock();
    for (auto& f : m->functions)
        if (f->name == name) {
            *out = f.get();
            return CUDA_SUCCESS;
        }
    if (compiler::mode() == compiler::Nothing) {
        // Nothing was compiled, so it has what it is asked for.
        m->functions.emplace_back(new CUfunc_st);
        *out = m->functions.back().get();
        (*out)->name = name, (*out)->module = m;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
}
EXPORT CUresult cuModuleGetFunctionCount(unsigned* n, CUmodule m) { *n = (unsigned)m->functions.size(); return CUDA_SUCCESS; }
EXPORT CUresult cuModuleEnumerateFunctions(CUfunction* out, unsigned n, CUmodule m) {
    for (unsigned i = 0; i < n && i < m->functions.size(); i++) out[i] = m->functions[i].get();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr* p, size_t* bytes, CUmodule m, const char* name) {
    ENTER();
    void* at = m->handle ? dlsym(m->handle, name) : nullptr;
    Dl_info info;
    const ElfW(Sym)* sym = nullptr;
    if (!at || !dladdr1(at, &info, (void**)&sym, RTLD_DL_SYMENT) || !sym || (uintptr_t)at < m->low || (uintptr_t)at >= m->high) return CUDA_ERROR_NOT_FOUND;
    if (p) *p = (CUdeviceptr)(uintptr_t)at;
    if (bytes) *bytes = sym->st_size;
    memory::add_range((uintptr_t)at, sym->st_size);
    m->globals.push_back((uintptr_t)at);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetLoadingMode(int* mode) { *mode = 1; return CUDA_SUCCESS; }

// ---- functions

EXPORT CUresult cuFuncGetAttribute(int* v, int attribute, CUfunction f) {
    ENTER();
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    switch (attribute) {
    case 0: *v = f->max_threads ? (int)f->max_threads : 1024; break;
    case 1: *v = (int)f->static_shared.load(); break;
    case 4: *v = 32; break;
    case 5: case 6: *v = settings().cc_major * 10 + settings().cc_minor; break;
    case 8: *v = (int)f->max_dynamic_shared; break;
    case 9: *v = f->carveout; break;
    case 14: *v = f->nonportable_cluster; break;
    default: *v = 0;
    }
    return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetAttribute(CUfunction f, int attribute, int v) {
    ENTER();
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    count(Attributes);
    switch (attribute) {
    case 8:
        if (v < 0 || (unsigned)v + f->static_shared > settings().max_shared) return CUDA_ERROR_INVALID_VALUE;
        f->max_dynamic_shared = (unsigned)v;        // the function's, for all threads: lowered as well as raised
        break;
    case 9: f->carveout = v; break;
    case 14: f->nonportable_cluster = v != 0; break;
    case 11: case 12: case 13: case 15: break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncSetCacheConfig(CUfunction f, int) { return f ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
EXPORT CUresult cuFuncSetSharedMemConfig(CUfunction f, int) { return f ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; }
EXPORT CUresult cuFuncGetModule(CUmodule* m, CUfunction f) { *m = f->module; return CUDA_SUCCESS; }
EXPORT CUresult cuFuncGetName(const char** s, CUfunction f) { *s = f->name.c_str(); return CUDA_SUCCESS; }
EXPORT CUresult cuFuncIsLoaded(int* state, CUfunction) { *state = 1; return CUDA_SUCCESS; }
EXPORT CUresult cuFuncLoad(CUfunction) { return CUDA_SUCCESS; }
EXPORT CUresult cuFuncGetParamInfo(CUfunction f, size_t i, size_t* offset, size_t* size) {
    if (compiler::mode() == compiler::Nothing) return CUDA_ERROR_NOT_SUPPORTED;     // nothing was compiled
    if (!f || i >= f->nparams) return CUDA_ERROR_INVALID_VALUE;
    size_t at = 0;      // sizes are known, alignments are not: natural up to 8, as pointers and numbers have it
    for (size_t k = 0; k <= i; k++) {
        size_t s = f->sizes[k], a = s >= 8 ? 8 : s >= 4 ? 4 : s >= 2 ? 2 : 1;
        at = (at + a - 1) / a * a;
        if (k == i) break;
        at += s;
    }
    if (offset) *offset = at;
    if (size) *size = f->sizes[i];
    return CUDA_SUCCESS;
}

// ---- launches

static CUresult launch(CUfunction f, Dim g, Dim b, unsigned shared, CUstream h, void** params, void** extra, Dim cluster) {
    ENTER();
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    CUstream s = stream_of(h);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (extra) return CUDA_ERROR_NOT_SUPPORTED;
    if (f->nparams && !params) return CUDA_ERROR_INVALID_VALUE;
    // The kernel and the stream are of the context that is current.
    if (s->ctx != current_ctx || f->module->ctx != current_ctx) return CUDA_ERROR_INVALID_HANDLE;
    Launch l;
    l.fn = f, l.grid = g, l.block = b, l.cluster = cluster, l.dynamic_shared = shared;
    CUresult e = validate_launch(l);
    if (e != CUDA_SUCCESS) return e;
    Op op;
    op.kind = Op::Kernel;
    op.fn = f, op.grid = g, op.block = b, op.cluster = cluster, op.dynamic_shared = shared, op.borrowed_args = params;
    return enqueue(s, std::move(op));
}
EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                               CUstream s, void** params, void** extra) {
    return launch(f, {gx, gy, gz}, {bx, by, bz}, shared, s, params, extra, {1, 1, 1});
}
EXPORT CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                          unsigned shared, CUstream s, void** params) {
    return launch(f, {gx, gy, gz}, {bx, by, bz}, shared, s, params, nullptr, {1, 1, 1});
}
struct LaunchAttribute { int id, pad; union { unsigned cluster[3]; char value[64]; }; };
struct LaunchConfig { unsigned gx, gy, gz, bx, by, bz, shared; CUstream stream; LaunchAttribute* attributes; unsigned count; };
EXPORT CUresult cuLaunchKernelEx(const LaunchConfig* c, CUfunction f, void** params, void** extra) {
    if (!c) return CUDA_ERROR_INVALID_VALUE;
    Dim cluster{1, 1, 1};
    for (unsigned i = 0; i < c->count; i++)
        if (c->attributes[i].id == 4) cluster = {c->attributes[i].cluster[0], c->attributes[i].cluster[1], c->attributes[i].cluster[2]};
    return launch(f, {c->gx, c->gy, c->gz}, {c->bx, c->by, c->bz}, c->shared, c->stream, params, extra, cluster);
}

// ---- occupancy, by shared memory and threads alone: there are no registers to count

static int blocks_per_sm(CUfunction f, int threads, size_t dynamic) {
    auto& s = settings();
    int cc = s.cc_major * 10 + s.cc_minor;
    if (threads <= 0 || threads > (f->max_threads ? (int)f->max_threads : 1024)) return 0;
    int warps = (threads + 31) / 32, by_threads = (cc == 75 ? 1024 : (cc > 80 && cc < 90) || cc >= 120 ? 1536 : 2048) / (warps * 32);
    size_t shared = dynamic + f->static_shared + 1024;
    if (dynamic + f->static_shared > s.max_shared) return 0;
    int by_shared = (int)(s.shared_per_sm / shared);
    return std::min({by_threads, by_shared, cc == 75 ? 16 : 32});
}
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, CUfunction f, int threads, size_t shared, unsigned) {
    ENTER();
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    *n = blocks_per_sm(f, threads, shared);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, CUfunction f, int threads, size_t shared) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, threads, shared, 0);
}
EXPORT CUresult cuOccupancyMaxPotentialBlockSizeWithFlags(int* grid, int* block, CUfunction f, size_t (*shared_of)(int), size_t shared, int limit, unsigned) {
    ENTER();
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    int most = f->max_threads ? (int)f->max_threads : 1024;
    if (limit > 0) most = std::min(most, limit);
    int best = 0;
    *block = 0;
    for (int t = most / 32 * 32; t >= 32; t -= 32) {
        int n = blocks_per_sm(f, t, shared_of ? shared_of(t) : shared) * t;
        if (n > best) best = n, *block = t;
    }
    if (!best) return CUDA_ERROR_INVALID_VALUE;
    *grid = best / *block * settings().multiprocessors;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction f, size_t (*shared_of)(int), size_t shared, int limit) {
    return cuOccupancyMaxPotentialBlockSizeWithFlags(grid, block, f, shared_of, shared, limit, 0);
}
EXPORT CUresult cuOccupancyAvailableDynamicSMemPerBlock(size_t* n, CUfunction f, int blocks, int) {
    ENTER();
    if (!f || blocks <= 0) return CUDA_ERROR_INVALID_VALUE;
    size_t each = settings().shared_per_sm / (unsigned)blocks, fixed = f->static_shared + 1024;
    *n = std::min<size_t>(each > fixed ? each - fixed : 0, settings().max_shared - f->static_shared);
    return CUDA_SUCCESS;
}
