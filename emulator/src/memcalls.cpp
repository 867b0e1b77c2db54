// The driver's calls for memory: allocation (plain, stream-ordered, pools, host), copies, fills.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "internal.h"

#define NOT_IN_CAPTURE()                         \
    do {                                         \
        CUresult f_ = forbid_in_capture();       \
        if (f_ != CUDA_SUCCESS) return f_;       \
    } while (0)
#define STREAM(s, handle)                        \
    CUstream s = stream_of(handle);              \
    if (!s) return CUDA_ERROR_INVALID_HANDLE

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* p, size_t n) {
    ENTER();
    NOT_IN_CAPTURE();
    return memory::allocate(current_ctx->dev, n, nullptr, p);
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr p) {
    ENTER();
    if (!p) return CUDA_SUCCESS;
    NOT_IN_CAPTURE();
    if (CUresult e = run_late()) return e;
    return memory::release(p);
}
EXPORT CUresult cuMemAllocPitch_v2(CUdeviceptr* p, size_t* pitch, size_t width, size_t height, unsigned) {
    *pitch = (width + 511) & ~(size_t)511;
    return cuMemAlloc_v2(p, *pitch * height);
}
EXPORT CUresult cuMemAllocManaged(CUdeviceptr* p, size_t n, unsigned) { return cuMemAlloc_v2(p, n); }
EXPORT CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    ENTER();
    size_t used = current_ctx->dev->used.load();
    if (total) *total = settings().memory;
    if (free) *free = settings().memory > used ? settings().memory - used : 0;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr* base, size_t* size, CUdeviceptr p) {
    ENTER();
    Alloc* a = memory::find(p);
    if (!a || !a->live || p < a->start || p >= a->start + a->size) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = a->start;
    if (size) *size = a->size;
    return CUDA_SUCCESS;
}

// ---- stream-ordered

static CUresult allocate_async(CUdeviceptr* p, size_t n, CUmemoryPool pool, CUstream s) {
    if (!settings().pools) return CUDA_ERROR_NOT_SUPPORTED;
    CUresult e = memory::allocate(s->ctx->dev, n, pool, p);
    if (e == CUDA_ERROR_OUT_OF_MEMORY && run_late() == CUDA_SUCCESS) e = memory::allocate(s->ctx->dev, n, pool, p);
    if (e != CUDA_SUCCESS || !s->capture) return e;
    // Captured: the address belongs to the graph from now on, and each replay finds the memory fresh.
    Alloc* a = memory::find(*p);
    a->in_graph = true;
    Op op;
    op.kind = Op::Alloc;
    op.dst = *p;
    op.bytes = n;
    return enqueue(s, std::move(op));
}
EXPORT CUresult cuMemAllocAsync(CUdeviceptr* p, size_t n, CUstream h) {
    ENTER();
    STREAM(s, h);
    return allocate_async(p, n, s->ctx->dev->pool, s);
}
EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr* p, size_t n, CUmemoryPool pool, CUstream h) {
    ENTER();
    STREAM(s, h);
    if (!pool) return CUDA_ERROR_INVALID_VALUE;
    return allocate_async(p, n, pool, s);
}
EXPORT CUresult cuMemFreeAsync(CUdeviceptr p, CUstream h) {
    ENTER();
    if (!settings().pools) return CUDA_ERROR_NOT_SUPPORTED;
    STREAM(s, h);
    if (!p) return CUDA_SUCCESS;
    Alloc* a = memory::find(p);
    if (!a || !a->live || a->start != p) return memory::release(p);
    Op op;
    op.kind = Op::Free;
    op.dst = p;
    return enqueue(s, std::move(op));
}
EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool* p, CUdevice dev) {
    Device* d = device_at(dev);
    if (!d) return CUDA_ERROR_INVALID_DEVICE;
    *p = d->default_pool;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetMemPool(CUmemoryPool* p, CUdevice dev) {
    Device* d = device_at(dev);
    if (!d) return CUDA_ERROR_INVALID_DEVICE;
    *p = d->pool;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceSetMemPool(CUdevice dev, CUmemoryPool p) {
    Device* d = device_at(dev);
    if (!d) return CUDA_ERROR_INVALID_DEVICE;
    d->pool = p;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemPoolCreate(CUmemoryPool* p, const void* props) {
    ENTER();
    // CUmemPoolProps: allocation type, handle types, then the location's type and id.
    int id = props ? ((const int*)props)[3] : 0;
    Device* d = device_at(id);
    if (!d) return CUDA_ERROR_INVALID_VALUE;
    *p = new CUmemPool_st{d};
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemPoolDestroy(CUmemoryPool p) {
    if (!p || p->is_default) return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;        // the record stays: allocations may still point at it
}
EXPORT CUresult cuMemPoolTrimTo(CUmemoryPool p, size_t) { return p ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
EXPORT CUresult cuMemPoolGetAttribute(CUmemoryPool p, int attribute, void* v) {
    if (!p || !v) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case 1: case 2: case 3: *(int*)v = p->flags[attribute - 1]; break;
    case 4: *(uint64_t*)v = p->release_threshold; break;
    case 5: case 7: *(uint64_t*)v = p->used; break;
    case 6: case 8: *(uint64_t*)v = p->high; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemPoolSetAttribute(CUmemoryPool p, int attribute, void* v) {
    if (!p || !v) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case 1: case 2: case 3: p->flags[attribute - 1] = *(int*)v; break;
    case 4: p->release_threshold = *(uint64_t*)v; break;
    case 6: case 8: p->high = p->used.load(); break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemPoolSetAccess(CUmemoryPool, const void*, size_t) { return CUDA_SUCCESS; }

// ---- host memory that the device can see

static std::mutex host_lock;
static std::vector<std::pair<void*, size_t>> host_blocks;
EXPORT CUresult cuMemHostAlloc(void** p, size_t n, unsigned) {
    ENTER();
    if (!n || !p) return CUDA_ERROR_INVALID_VALUE;
    if (posix_memalign(p, 4096, n)) return CUDA_ERROR_OUT_OF_MEMORY;
    std::lock_guard<std::mutex> g(host_lock);
    host_blocks.push_back({*p, n});
    memory::add_range((uintptr_t)*p, n);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemAllocHost_v2(void** p, size_t n) { return cuMemHostAlloc(p, n, 0); }
EXPORT CUresult cuMemFreeHost(void* p) {
    ENTER();
    if (CUresult e = run_late()) return e;
    std::lock_guard<std::mutex> g(host_lock);
    for (size_t i = 0; i < host_blocks.size(); i++)
        if (host_blocks[i].first == p) {
            host_blocks.erase(host_blocks.begin() + (long)i);
            memory::drop_range((uintptr_t)p);
            free(p);
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_VALUE;
}
EXPORT CUresult cuMemHostRegister_v2(void* p, size_t n, unsigned) {
    ENTER();
    memory::add_range((uintptr_t)p, n);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemHostUnregister(void* p) {
    ENTER();
    memory::drop_range((uintptr_t)p);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* d, void* p, unsigned) {
    *d = (CUdeviceptr)(uintptr_t)p;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemHostGetFlags(unsigned* f, void*) { *f = 0; return CUDA_SUCCESS; }
EXPORT CUresult cuPointerGetAttribute(void* v, int attribute, CUdeviceptr p) {
    ENTER();
    Alloc* a = memory::find(p);
    bool device = a && a->live && p >= a->start && p < a->start + a->size;
    if (!device && !memory::in_ranges(p, 1)) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case 1: *(CUcontext*)v = current_ctx; break;
    case 2: *(unsigned*)v = device ? 2 : 1; break;
    case 3: *(CUdeviceptr*)v = p; break;
    case 4: if (device) return CUDA_ERROR_INVALID_VALUE; *(void**)v = (void*)p; break;
    case 8: *(unsigned*)v = 0; break;
    case 9: *(int*)v = device ? a->device : 0; break;
    case 11: *(CUdeviceptr*)v = device ? a->start : p; break;
    case 12: *(size_t*)v = device ? a->size : 0; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemPrefetchAsync(CUdeviceptr, size_t, CUdevice, CUstream) { return CUDA_SUCCESS; }
EXPORT CUresult cuMemPrefetchAsync_v2(CUdeviceptr, size_t, uint64_t, unsigned, CUstream) { return CUDA_SUCCESS; }
EXPORT CUresult cuMemAdvise(CUdeviceptr, size_t, int, CUdevice) { return CUDA_SUCCESS; }
EXPORT CUresult cuMemAdvise_v2(CUdeviceptr, size_t, int, uint64_t) { return CUDA_SUCCESS; }
EXPORT CUresult cuStreamAttachMemAsync(CUstream, CUdeviceptr, size_t, unsigned) { return CUDA_SUCCESS; }

// ---- copies

enum { DST_DEVICE = 1, SRC_DEVICE = 2 };
static CUresult copy(uintptr_t dst, uintptr_t src, size_t n, int which, CUstream h, bool async) {
    ENTER();
    STREAM(s, h);
    if (!async) NOT_IN_CAPTURE();
    if (!n) return CUDA_SUCCESS;
    if ((which & DST_DEVICE && !memory::range_ok(dst, n)) || (which & SRC_DEVICE && !memory::range_ok(src, n))) {
        bool d = which & DST_DEVICE && !memory::range_ok(dst, n);
        fprintf(stderr, "hadal emulator: copy of %zu bytes %s device memory refused: %s\n", n, d ? "to" : "from", memory::describe(d ? dst : src, n).c_str());
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (!dst || !src) return CUDA_ERROR_INVALID_VALUE;
    Op op;
    op.kind = Op::Memcpy;
    op.dst = dst, op.src = src, op.bytes = n;
    CUresult e = enqueue(s, std::move(op));
    // A copy to pageable memory returns when it is done, as does every copy that is not asynchronous.
    bool pageable = !(which & DST_DEVICE) && !memory::in_ranges(dst, n);
    return e == CUDA_SUCCESS && !s->capture && (!async || pageable) ? run_late() : e;
}
EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr d, const void* s, size_t n) { return copy(d, (uintptr_t)s, n, DST_DEVICE, nullptr, false); }
EXPORT CUresult cuMemcpyDtoH_v2(void* d, CUdeviceptr s, size_t n) { return copy((uintptr_t)d, s, n, SRC_DEVICE, nullptr, false); }
EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr d, CUdeviceptr s, size_t n) { return copy(d, s, n, DST_DEVICE | SRC_DEVICE, nullptr, false); }
EXPORT CUresult cuMemcpy(CUdeviceptr d, CUdeviceptr s, size_t n) {
    return copy(d, s, n, (memory::in_arena(d) ? DST_DEVICE : 0) | (memory::in_arena(s) ? SRC_DEVICE : 0), nullptr, false);
}
EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void* s, size_t n, CUstream h) { return copy(d, (uintptr_t)s, n, DST_DEVICE, h, true); }
EXPORT CUresult cuMemcpyDtoHAsync_v2(void* d, CUdeviceptr s, size_t n, CUstream h) { return copy((uintptr_t)d, s, n, SRC_DEVICE, h, true); }
EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream h) { return copy(d, s, n, DST_DEVICE | SRC_DEVICE, h, true); }
EXPORT CUresult cuMemcpyAsync(CUdeviceptr d, CUdeviceptr s, size_t n, CUstream h) {
    return copy(d, s, n, (memory::in_arena(d) ? DST_DEVICE : 0) | (memory::in_arena(s) ? SRC_DEVICE : 0), h, true);
}
EXPORT CUresult cuMemcpyPeer(CUdeviceptr d, CUcontext, CUdeviceptr s, CUcontext, size_t n) { return cuMemcpyDtoD_v2(d, s, n); }
EXPORT CUresult cuMemcpyPeerAsync(CUdeviceptr d, CUcontext, CUdeviceptr s, CUcontext, size_t n, CUstream h) { return cuMemcpyDtoDAsync_v2(d, s, n, h); }

// CUDA_MEMCPY2D
struct Copy2D {
    size_t src_x, src_y;
    unsigned src_type;
    const void* src_host;
    CUdeviceptr src_device;
    void* src_array;
    size_t src_pitch, dst_x, dst_y;
    unsigned dst_type;
    void* dst_host;
    CUdeviceptr dst_device;
    void* dst_array;
    size_t dst_pitch, width, height;
};
static CUresult copy2d(const Copy2D* c, CUstream h, bool async) {
    if (!c || c->src_type == 3 || c->dst_type == 3) return CUDA_ERROR_NOT_SUPPORTED;
    bool sd = c->src_type != 1, dd = c->dst_type != 1;
    uintptr_t src = sd ? c->src_device : (uintptr_t)c->src_host, dst = dd ? c->dst_device : (uintptr_t)c->dst_host;
    size_t sp = c->src_pitch ? c->src_pitch : c->width, dp = c->dst_pitch ? c->dst_pitch : c->width;
    for (size_t y = 0; y < c->height; y++) {
        CUresult e = copy(dst + (c->dst_y + y) * dp + c->dst_x, src + (c->src_y + y) * sp + c->src_x, c->width,
                          (dd ? DST_DEVICE : 0) | (sd ? SRC_DEVICE : 0), h, async);
        if (e != CUDA_SUCCESS) return e;
    }
    return CUDA_SUCCESS;
}
EXPORT CUresult cuMemcpy2D_v2(const Copy2D* c) { return copy2d(c, nullptr, false); }
EXPORT CUresult cuMemcpy2DUnaligned_v2(const Copy2D* c) { return copy2d(c, nullptr, false); }
EXPORT CUresult cuMemcpy2DAsync_v2(const Copy2D* c, CUstream h) { return copy2d(c, h, true); }

// ---- fills

static CUresult fill(CUdeviceptr d, unsigned v, unsigned width, size_t n, size_t pitch, size_t height, CUstream h, bool async) {
    ENTER();
    STREAM(s, h);
    if (!async) NOT_IN_CAPTURE();
    if (!n || !height) return CUDA_SUCCESS;
    size_t bytes = height == 1 ? n * width : pitch * (height - 1) + n * width;
    if (d % width || !memory::range_ok(d, bytes)) {
        fprintf(stderr, "hadal emulator: fill of %zu bytes refused: %s\n", bytes, memory::describe(d, bytes).c_str());
        return CUDA_ERROR_INVALID_VALUE;
    }
    Op op;
    op.kind = Op::Memset;
    op.dst = d, op.value = v, op.width = width, op.bytes = n, op.pitch = pitch, op.height = height;
    return enqueue(s, std::move(op));
}
EXPORT CUresult cuMemsetD8_v2(CUdeviceptr d, unsigned char v, size_t n) { return fill(d, v, 1, n, 0, 1, nullptr, false); }
EXPORT CUresult cuMemsetD16_v2(CUdeviceptr d, unsigned short v, size_t n) { return fill(d, v, 2, n, 0, 1, nullptr, false); }
EXPORT CUresult cuMemsetD32_v2(CUdeviceptr d, unsigned v, size_t n) { return fill(d, v, 4, n, 0, 1, nullptr, false); }
EXPORT CUresult cuMemsetD8Async(CUdeviceptr d, unsigned char v, size_t n, CUstream s) { return fill(d, v, 1, n, 0, 1, s, true); }
EXPORT CUresult cuMemsetD16Async(CUdeviceptr d, unsigned short v, size_t n, CUstream s) { return fill(d, v, 2, n, 0, 1, s, true); }
EXPORT CUresult cuMemsetD32Async(CUdeviceptr d, unsigned v, size_t n, CUstream s) { return fill(d, v, 4, n, 0, 1, s, true); }
EXPORT CUresult cuMemsetD2D8_v2(CUdeviceptr d, size_t p, unsigned char v, size_t w, size_t h) { return fill(d, v, 1, w, p, h, nullptr, false); }
EXPORT CUresult cuMemsetD2D32_v2(CUdeviceptr d, size_t p, unsigned v, size_t w, size_t h) { return fill(d, v, 4, w, p, h, nullptr, false); }
EXPORT CUresult cuMemsetD2D8Async(CUdeviceptr d, size_t p, unsigned char v, size_t w, size_t h, CUstream s) { return fill(d, v, 1, w, p, h, s, true); }
EXPORT CUresult cuMemsetD2D32Async(CUdeviceptr d, size_t p, unsigned v, size_t w, size_t h, CUstream s) { return fill(d, v, 4, w, p, h, s, true); }
