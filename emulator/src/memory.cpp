// Device memory is host memory in a window of addresses of its own: each allocation ends at a page that cannot be touched,
// freed pages cannot be touched either, and new memory is full of NaNs.
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <map>

#include "internal.h"

namespace {
const size_t page = 4096;
const uint8_t poison_byte = 0xFF, canary_byte = 0xA5;

struct Arena {
    std::mutex lock;
    uintptr_t base = 0, end = 0, bump = 0;
    Alloc** owner = nullptr;                // per page, with the guard page after an allocation
    std::map<uintptr_t, Alloc*> live;       // by map address
    uint32_t count = 0;
    std::map<uintptr_t, size_t> ranges;

    Arena() {
        // Large, so that freed addresses stay unused for long; small enough for its page tables not to matter.
        for (size_t len = 256ull << 30; len >= 4ull << 30; len /= 2) {
            void* p = mmap(nullptr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (p == MAP_FAILED) continue;
            base = (uintptr_t)p;
            end = base + len;
            break;
        }
        bump = memory::window_base = base;
        owner = (Alloc**)mmap(nullptr, (end - base) / page * sizeof(Alloc*), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        memory::window_owner = owner;
        memory::window_end = end;
    }
    // A place for `len` bytes and a guard page: onwards from the last one, from the start again when the window is used up.
    uintptr_t place(size_t len) {
        for (int round = 0; round < 2; round++) {
            uintptr_t p = bump;
            auto it = live.upper_bound(p);
            if (it != live.begin()) {
                auto before = std::prev(it);
                uintptr_t e = before->first + before->second->map_len + page;
                if (e > p) p = e;
            }
            while (it != live.end() && it->first < p + len + page) {
                p = it->first + it->second->map_len + page;
                ++it;
            }
            if (p + len + page <= end) {
                bump = p + len + page;
                return p;
            }
            bump = base;
        }
        return 0;
    }
};
Arena& arena() {
    static Arena* a = new Arena;
    return *a;
}
bool intact(const Alloc& a, uintptr_t* at) {
    for (uintptr_t p = a.map; p < a.start; p++)
        if (*(uint8_t*)p != canary_byte) { *at = p; return false; }
    for (uintptr_t p = a.start + a.size; p < a.map + a.map_len; p++)
        if (*(uint8_t*)p != canary_byte) { *at = p; return false; }
    return true;
}
}

namespace memory {

CUresult allocate(Device* dev, size_t bytes, CUmemoryPool pool, CUdeviceptr* out) {
    if (!bytes || !out) return CUDA_ERROR_INVALID_VALUE;
    size_t charge = (bytes + 511) & ~(size_t)511;
    if (bytes > settings().memory) return CUDA_ERROR_OUT_OF_MEMORY;
    if (dev->used.fetch_add(charge) + charge > settings().memory) {
        dev->used -= charge;
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    size_t h = dev->high.load(), u = dev->used.load();
    while (u > h && !dev->high.compare_exchange_weak(h, u)) {}
    Arena& a = arena();
    Alloc* r;
    {
        std::lock_guard<std::mutex> g(a.lock);
        // The end is at the guard page, the start at a multiple of 16; up to 15 bytes between are watched for writes.
        size_t body = (bytes + 15) & ~(size_t)15, len = (body + page - 1) & ~(page - 1);
        uintptr_t map = a.place(len);
        if (!map || mprotect((void*)map, len, PROT_READ | PROT_WRITE)) {
            dev->used -= charge;
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        r = new Alloc;                      // kept for good: a report may need to tell what was freed
        r->id = ++a.count;
        r->map = map, r->map_len = len, r->start = map + len - body, r->size = bytes;
        r->device = dev->ordinal, r->pool = pool, r->live = true;
        a.live[map] = r;
        for (size_t i = 0; i <= len / page; i++) a.owner[(map - a.base) / page + i] = r;
    }
    memset((void*)r->map, canary_byte, r->start - r->map);
    poison(r->start, bytes);
    memset((void*)(r->start + bytes), canary_byte, r->map + r->map_len - r->start - bytes);
    *out = r->start;
    if (pool) {
        uint64_t p = pool->used += charge, ph = pool->high.load();
        while (p > ph && !pool->high.compare_exchange_weak(ph, p)) {}
    }
    return CUDA_SUCCESS;
}

void poison(uintptr_t p, size_t bytes) {
    if (compiler::mode() == compiler::Nothing) return;      // nobody reads it
    // A very large block is left as the host gives it (zeros) in its middle: touching it all would commit it all.
    const size_t most = 1ull << 30;
    if (bytes <= most) {
        memset((void*)p, poison_byte, bytes);
    } else {
        memset((void*)p, poison_byte, most / 2);
        memset((void*)(p + bytes - most / 2), poison_byte, most / 2);
    }
}

CUresult release(CUdeviceptr p) {
    Arena& a = arena();
    std::lock_guard<std::mutex> g(a.lock);
    Alloc* r = nullptr;
    if (p >= a.base && p < a.end) {
        r = a.owner[(p - a.base) / page];
    }
    if (!r || !r->live || r->start != p) {
        if (r && !r->live && r->start == p) fprintf(stderr, "hadal emulator: freed twice: allocation #%u of %zu bytes\n", r->id, r->size);
        return CUDA_ERROR_INVALID_VALUE;
    }
    uintptr_t at;
    if (!intact(*r, &at)) {
        fprintf(stderr, "hadal emulator: something wrote %lld bytes %s allocation #%u of %zu bytes (noticed when it was freed)\n",
                (long long)(at < r->start ? r->start - at : at - r->start - r->size), at < r->start ? "before the start of" : "past the end of", r->id, r->size);
    }
    size_t charge = (r->size + 511) & ~(size_t)511;
    device_at(r->device)->used -= charge;
    if (r->pool) r->pool->used -= charge;
    r->live = false;
    a.live.erase(r->map);
    mmap((void*)r->map, r->map_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return CUDA_SUCCESS;
}

uintptr_t window_base, window_end = 0;
Alloc** window_owner;

bool in_ranges(uintptr_t p, size_t bytes) {
    Arena& a = arena();
    std::lock_guard<std::mutex> g(a.lock);
    auto it = a.ranges.upper_bound(p);
    if (it == a.ranges.begin()) return false;
    --it;
    return p + bytes <= it->first + it->second;
}
bool range_ok(uintptr_t p, size_t bytes) {
    Arena& a = arena();
    if (p >= a.base && p < a.end) {
        std::lock_guard<std::mutex> g(a.lock);
        if (!a.owner[(p - a.base) / page]) return false;
        Alloc& r = *a.owner[(p - a.base) / page];
        return r.live && p >= r.start && bytes <= r.size && p - r.start <= r.size - bytes;
    }
    return in_ranges(p, bytes);
}
void add_range(uintptr_t p, size_t bytes) {
    Arena& a = arena();
    std::lock_guard<std::mutex> g(a.lock);
    a.ranges[p] = bytes;
}
void drop_range(uintptr_t p) {
    Arena& a = arena();
    std::lock_guard<std::mutex> g(a.lock);
    a.ranges.erase(p);
}

std::string describe(uintptr_t p, size_t bytes) {
    char s[256];
    Alloc* r = find(p);
    if (!r) {
        snprintf(s, sizeof s, in_arena(p) ? "device memory that was never allocated" : p < 4096 ? "a null pointer" : "not device memory");
        return s;
    }
    // A page belongs to the allocation before its guard; the one after may be nearer.
    if (p >= r->start + r->size || p + bytes > r->start + r->size) {
        long long past = (long long)(p - (r->start + r->size));
        if (past >= 0)
            snprintf(s, sizeof s, "%lld bytes past the end of%s allocation #%u of %zu bytes", past, r->live ? "" : " the freed", r->id, r->size);
        else
            snprintf(s, sizeof s, "%zu bytes that reach past the end of%s allocation #%u of %zu bytes", bytes, r->live ? "" : " the freed", r->id, r->size);
    } else if (p < r->start) {
        snprintf(s, sizeof s, "%llu bytes before the start of%s allocation #%u of %zu bytes", (unsigned long long)(r->start - p), r->live ? "" : " the freed", r->id, r->size);
    } else {
        snprintf(s, sizeof s, "byte %llu of %sallocation #%u of %zu bytes%s", (unsigned long long)(p - r->start), r->live ? "" : "the freed ", r->id, r->size,
                 r->live ? "" : ": use after free");
    }
    return s;
}

bool check_canaries(std::string* report) {
    Arena& a = arena();
    std::lock_guard<std::mutex> g(a.lock);
    uintptr_t at;
    for (auto& e : a.live)
        if (!intact(*e.second, &at)) {
            char s[200];
            Alloc& r = *e.second;
            snprintf(s, sizeof s, "something wrote %lld bytes %s allocation #%u of %zu bytes", (long long)(at < r.start ? r.start - at : at - r.start - r.size + 1),
                     at < r.start ? "before the start of" : "past the end of", r.id, r.size);
            *report = s;
            // Mended, so that it is told once.
            memset((void*)r.map, canary_byte, r.start - r.map);
            memset((void*)(r.start + r.size), canary_byte, r.map + r.map_len - r.start - r.size);
            return false;
        }
    return true;
}
}
