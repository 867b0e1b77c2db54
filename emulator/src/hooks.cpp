// Watching every access of a kernel. In a checking mode kernels are compiled with -fsanitize=thread, which puts a call of
// __tsan_readN or __tsan_writeN before each access to memory; those functions are here, and no other runtime is linked.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "block.h"

#if !defined(__x86_64__) || defined(EMU_PORTABLE)
extern "C" __thread emu_thread* emu_self_tls;
#endif

static std::string hex(uintptr_t p) {
    char s[32];
    snprintf(s, sizeof s, "0x%llx", (unsigned long long)p);
    return s;
}
static std::string source_line(void* pc) {
    std::string l = pc ? line_of(pc) : "";
    return l.empty() ? l : " at " + l;
}

bool Worker::owns(uintptr_t p) const {
    if (p >= (uintptr_t)this && p < (uintptr_t)(this + 1)) return true;
    for (auto& f : fibers) {
        if (p >= (uintptr_t)f->stack.base && p < (uintptr_t)f->stack.base + f->stack.size) return true;
        if (p >= (uintptr_t)f.get() && p < (uintptr_t)(f.get() + 1)) return true;
    }
    for (auto& x : warps)
        for (unsigned i = 0; i < x.used; i++)
            if (p >= (uintptr_t)x.meetings[i].get() && p < (uintptr_t)(x.meetings[i].get() + 1)) return true;
#if !defined(__x86_64__) || defined(EMU_PORTABLE)
    if (p == (uintptr_t)&emu_self_tls) return true;
#endif
    return p >= (uintptr_t)shared_at.data() && p < (uintptr_t)(shared_at.data() + shared_at.size());
}

// ---- races in shared memory: each pair of bytes remembers who wrote and read it last, and when. Time advances at barriers of the
// block (and of a part of it, and when the phase of an mbarrier completes); within a warp also at each meeting of its lanes.

void hooks_begin_block(Worker* w) {
    if (!settings().race) return;
    w->race.resize((static_base + static_room + dynamic_room + 16384) / 2);
    // A new time makes all that was noted before old: no need to clear.
    w->time++;
    if (w->time > 0xfffffff0u) {
        std::fill(w->race.begin(), w->race.end(), RaceWord{});
        w->time = 1;
    }
    w->block_time = w->time;
}

std::string shared_name(Worker* w, unsigned offset) {
    char s[160];
    for (unsigned id = 0; id < w->ids_used; id++)
        if (w->shared_at[id] && offset >= w->shared_at[id] && offset < w->shared_at[id] + w->shared_sizes[id]) {
            snprintf(s, sizeof s, "byte %u of shared variable `%s`", offset - w->shared_at[id], w->shared_names[id]);
            return s;
        }
    snprintf(s, sizeof s, "byte %lld of dynamic shared memory", (long long)(w->block.shared + offset - w->block.dynamic));
    return s;
}

[[noreturn]] static void __attribute__((noinline)) tell_race(Worker* w, unsigned offset, bool write, const char* what, const char* which, void* pc) {
    fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + ": " + (write ? "write" : "read") + " of " + shared_name(w, offset) + source_line(pc) + which);
}

static std::string who(Worker* w, unsigned index) {
    return index < max_threads ? "thread " + thread_name(w->block, index) : "block " + std::to_string(index - max_threads) + " of the cluster";
}

// `engine`: on behalf of the thread, by the tensor cores or the copy engine, which see ordinary writes after a fence of the writer only.
static void race(Worker* w, unsigned index, unsigned offset, unsigned bytes, bool write, bool engine, void* pc) {
    uint32_t now = w->time, warp_now = w->warp_time[index / 32];
    uint16_t me = (uint16_t)(index + 1);
    for (unsigned at = offset & ~1u; at < offset + bytes && at / 2 < w->race.size(); at += 2) {
        RaceWord& r = w->race[at / 2];
        uint8_t mine = (uint8_t)((at >= offset ? 1 : 0) | (at + 1 < offset + bytes ? 2 : 0));
        auto conflicts = [&](uint32_t other, uint32_t time, uint32_t warp_time, uint8_t theirs) {
            if (!other || other == me || time != now || !(theirs & mine)) return false;
            return (other - 1) / 32 != index / 32 || warp_time == warp_now;
        };
        if (r.in_flight && r.write_time >= w->block_time && !(engine && write))
            tell_race(w, at, write, "race with a bulk copy", ", where a bulk copy is on its way that nobody has waited for", pc);
        if (engine && r.writer && !r.by_engine && r.write_time >= w->block_time && (r.write_bytes & mine) && w->fenced[r.writer - 1] <= r.write_fences) {
            std::string t = ", which thread " + thread_name(w->block, r.writer - 1u) + " wrote without fence.proxy.async after it";
            tell_race(w, at, write, "missing proxy fence", t.c_str(), pc);
        }
        bool by_write = conflicts(r.writer, r.write_time, r.write_warp_time, r.write_bytes);
        bool by_read = write && (conflicts(r.reader, r.read_time, r.read_warp_time, r.read_bytes) ||
                                 (r.many_readers && r.read_time == now && (r.read_bytes & mine) && (r.reader == me || (r.reader - 1u) / 32 == index / 32)));
        if (by_write || by_read) {
            uint32_t other = by_write ? r.writer : r.reader;
            std::string t = other == me ? ", which another thread" : ", which " + who(w, other - 1);
            t += by_write ? " wrote" : " read";
            t += " without a barrier in between";
            tell_race(w, at, write, "race in shared memory", t.c_str(), pc);
        }
        if (write) {
            // The other byte's writer is forgotten, which may miss a race and invents none.
            bool same = r.writer == me && r.write_time == now && r.write_warp_time == warp_now && r.by_engine == engine;
            r.write_bytes = same ? r.write_bytes | mine : mine;
            r.writer = me, r.write_time = now, r.write_warp_time = warp_now;
            r.write_fences = w->fences;
            r.by_engine = engine, r.in_flight = false;
        } else {
            // With many readers, read_bytes are those that readers of two warps have read.
            bool fresh = r.read_time != now || !r.reader, same = r.reader == me;
            uint8_t both = r.read_bytes & mine;
            if (fresh) r.many_readers = false;
            else if (!same && both && (r.reader - 1u) / 32 != index / 32) r.many_readers = true;
            if (!fresh && !both && !same) r.many_readers = false;
            r.read_bytes = r.many_readers ? both : !fresh && same ? r.read_bytes | mine : mine;
            r.reader = me, r.read_time = now, r.read_warp_time = warp_now;
        }
    }
}

void hooks_engine(Worker* w, unsigned thread, unsigned offset, unsigned bytes, bool write) {
    if (!settings().race) return;
    race(w, thread, offset, bytes, write, true, nullptr);
    if (write)
        for (unsigned at = offset / 2; at < (offset + bytes + 1) / 2; at++) w->race[at].in_flight = true;
}
void hooks_arrived(Worker* w, unsigned offset, unsigned bytes) {
    if (!settings().race) return;
    for (unsigned at = offset / 2; at < (offset + bytes + 1) / 2; at++) w->race[at].in_flight = false;
}

// ---- every access

static void __attribute__((noinline)) bad(uintptr_t p, unsigned bytes, bool write, void* pc) {
    std::string s = std::string("illegal ") + (write ? "write" : "read") + " of " + std::to_string(bytes) + " bytes at " + hex(p) + source_line(pc) + ": " +
                    memory::describe(p, bytes);
    fault(CUDA_ERROR_ILLEGAL_ADDRESS, s);
}

static inline void access_by(Worker* w, unsigned index, uintptr_t p, unsigned bytes, bool write, void* pc) {
    if (memory::in_arena(p)) {
        Alloc* a = memory::find(p);
        if (!a || !a->live || p < a->start || p + bytes > a->start + a->size) bad(p, bytes, write, pc);
        return;
    }
    uintptr_t shared = (uintptr_t)w->block.shared;
    if (p >= (uintptr_t)w->arena && p < (uintptr_t)w->arena + w->arena_len) {
        uintptr_t d = (uintptr_t)w->block.dynamic;
        bool in_static = p >= shared + static_base && p + bytes <= shared + w->static_top;
        bool in_dynamic = p >= d && p + bytes <= d + w->launch->dynamic_shared;
        if (!in_static && !in_dynamic) {
            char t[200];
            snprintf(t, sizeof t, "illegal %s of %u bytes%s: outside of shared memory (%u bytes static, %u dynamic); byte %lld of the dynamic part", write ? "write" : "read",
                     bytes, source_line(pc).c_str(), w->static_top - static_base, w->launch->dynamic_shared, (long long)(p - d));
            fault(CUDA_ERROR_ILLEGAL_ADDRESS, t);
        }
        if (settings().race) race(w, index, (unsigned)(p - shared), bytes, write, false, pc);
        return;
    }
    Fiber* f = w->running;
    if (f && p >= (uintptr_t)f->stack.base && p < (uintptr_t)f->stack.base + f->stack.size) return;
    if (f && p >= (uintptr_t)f && p < (uintptr_t)(f + 1)) return;
    if (p >= (uintptr_t)w && p < (uintptr_t)(w + 1)) return;
    CUmodule m = w->launch->fn->module;
    if (p >= m->low && p < m->high) return;
    // The launch's own arguments lie on the host.
    void** args = w->launch->args;
    unsigned n = w->launch->fn->nparams;
    if (p >= (uintptr_t)args && p < (uintptr_t)(args + n)) return;
    for (unsigned i = 0; i < n; i++)
        if (p >= (uintptr_t)args[i] && p < (uintptr_t)args[i] + w->launch->fn->sizes[i]) return;
    if (w->owns(p) || memory::in_ranges(p, bytes)) return;
    bad(p, bytes, write, pc);
}
static inline void access(uintptr_t p, unsigned bytes, bool write, void* pc) {
    Worker* w = current_worker;
    if (!w || !w->running) return;      // a module's initializers, when it is loaded
    access_by(w, w->running->index, p, bytes, write, pc);
}
// For what the emulator does on behalf of a thread.
void hooks_access(uintptr_t p, unsigned bytes, bool write) {
    if (settings().instrumented() && bytes) access(p, bytes, write, nullptr);
}
void hooks_access_as(unsigned lane, uintptr_t p, unsigned bytes, bool write) {
    if (!settings().instrumented()) return;
    Worker* w = current_worker;
    access_by(w, (w->running->index & ~31u) | lane, p, bytes, write, nullptr);
}

#define PC __builtin_return_address(0)
#define HOOK(n)                                                                                                                \
    EXPORT void __tsan_read##n(void* p) { access((uintptr_t)p, n, false, PC); }                                                \
    EXPORT void __tsan_write##n(void* p) { access((uintptr_t)p, n, true, PC); }                                                \
    EXPORT void __tsan_unaligned_read##n(void* p) { access((uintptr_t)p, n, false, PC); }                                      \
    EXPORT void __tsan_unaligned_write##n(void* p) { access((uintptr_t)p, n, true, PC); }                                      \
    EXPORT void __tsan_volatile_read##n(void* p) { access((uintptr_t)p, n, false, PC); }                                       \
    EXPORT void __tsan_volatile_write##n(void* p) { access((uintptr_t)p, n, true, PC); }
HOOK(1) HOOK(2) HOOK(4) HOOK(8) HOOK(16)
EXPORT void __tsan_init() {}
EXPORT void __tsan_func_entry(void*) {}
EXPORT void __tsan_func_exit() {}
EXPORT void __tsan_vptr_update(void**, void*) {}
EXPORT void __tsan_vptr_read(void**) {}
EXPORT void __tsan_read_range(void* p, size_t n) { access((uintptr_t)p, (unsigned)n, false, PC); }
EXPORT void __tsan_write_range(void* p, size_t n) { access((uintptr_t)p, (unsigned)n, true, PC); }
EXPORT void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
EXPORT void __tsan_atomic_signal_fence(int) {}

// Atomics are checked for bounds; among themselves they never race.
template <class T> static T* atomic(volatile T* p, void* pc) {
    Worker* w = current_worker;
    if (w && w->running && memory::in_arena((uintptr_t)p)) access((uintptr_t)p, sizeof(T), true, pc);
    return (T*)p;
}
#define ATOMICS(n, T)                                                                                                                            \
    EXPORT T __tsan_atomic##n##_load(const volatile T* p, int) { return __atomic_load_n(atomic((volatile T*)p, PC), __ATOMIC_SEQ_CST); }          \
    EXPORT void __tsan_atomic##n##_store(volatile T* p, T v, int) { __atomic_store_n(atomic(p, PC), v, __ATOMIC_SEQ_CST); }                       \
    EXPORT T __tsan_atomic##n##_exchange(volatile T* p, T v, int) { return __atomic_exchange_n(atomic(p, PC), v, __ATOMIC_SEQ_CST); }             \
    EXPORT T __tsan_atomic##n##_fetch_add(volatile T* p, T v, int) { return __atomic_fetch_add(atomic(p, PC), v, __ATOMIC_SEQ_CST); }             \
    EXPORT T __tsan_atomic##n##_fetch_sub(volatile T* p, T v, int) { return __atomic_fetch_sub(atomic(p, PC), v, __ATOMIC_SEQ_CST); }             \
    EXPORT T __tsan_atomic##n##_fetch_and(volatile T* p, T v, int) { return __atomic_fetch_and(atomic(p, PC), v, __ATOMIC_SEQ_CST); }             \
    EXPORT T __tsan_atomic##n##_fetch_or(volatile T* p, T v, int) { return __atomic_fetch_or(atomic(p, PC), v, __ATOMIC_SEQ_CST); }               \
    EXPORT T __tsan_atomic##n##_fetch_xor(volatile T* p, T v, int) { return __atomic_fetch_xor(atomic(p, PC), v, __ATOMIC_SEQ_CST); }             \
    EXPORT bool __tsan_atomic##n##_compare_exchange_strong(volatile T* p, T* c, T v, int, int) {                                                 \
        return __atomic_compare_exchange_n(atomic(p, PC), c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                                      \
    }                                                                                                                                            \
    EXPORT bool __tsan_atomic##n##_compare_exchange_weak(volatile T* p, T* c, T v, int, int) {                                                   \
        return __atomic_compare_exchange_n(atomic(p, PC), c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                                      \
    }                                                                                                                                            \
    EXPORT T __tsan_atomic##n##_compare_exchange_val(volatile T* p, T c, T v, int, int) {                                                        \
        __atomic_compare_exchange_n(atomic(p, PC), &c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                                            \
        return c;                                                                                                                                \
    }
ATOMICS(8, uint8_t) ATOMICS(16, uint16_t) ATOMICS(32, uint32_t) ATOMICS(64, uint64_t)
