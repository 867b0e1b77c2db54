// CUDA's words for the host's C++ compiler. A kernel that compiles with this header should also compile with NVRTC, so
// nothing here comes from a standard header and no name is defined that NVRTC does not have.
#pragma once
#include "emu_abi.h"

// The running thread. A register of its own makes threadIdx one load, and a switch of fibers switches it as well.
#ifdef EMU_SELF_IN_REGISTER
register emu_thread* emu_self asm("r15");
#else
extern "C" __thread emu_thread* emu_self_tls;
#define emu_self emu_self_tls
#endif

typedef decltype(sizeof(0)) size_t;
typedef decltype((char*)0 - (char*)0) ptrdiff_t;

#define __CUDACC__ 1
#define __CUDACC_RTC__ 1
#define __NVCC__ 1
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 9

// These are found again in the preprocessed text: see translate.cpp.
#define __global__ __emu_global__
#define __shared__ __emu_shared__
#define __launch_bounds__(...) __emu_bounds__(__VA_ARGS__)
#define __cluster_dims__(...) __emu_cluster__(__VA_ARGS__)

#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __inline_hint__
#define __align__(n) alignas(n)
#define __maxnreg__(n)
#define __nv_pure__

#define EMU_IN inline __attribute__((always_inline))

// ---- where am I

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return uint3{x, y, z}; }
};
#define threadIdx ((const uint3&)emu_self->tid)
#define blockIdx ((const uint3&)emu_self->block->bid)
#define blockDim ((const dim3&)emu_self->block->bdim)
#define gridDim ((const dim3&)emu_self->block->gdim)
constexpr int warpSize = 32;
EMU_IN unsigned emu_lane() { return emu_self->index & 31; }

// ---- vector types

#define EMU_VEC(T, N, A2, A4)                                                                                                   \
    struct N##1 { T x; };                                                                                                       \
    struct alignas(A2) N##2 { T x, y; };                                                                                        \
    struct N##3 { T x, y, z; };                                                                                                 \
    struct alignas(A4) N##4 { T x, y, z, w; };                                                                                  \
    EMU_IN N##1 make_##N##1(T x) { return N##1{x}; }                                                                            \
    EMU_IN N##2 make_##N##2(T x, T y) { return N##2{x, y}; }                                                                    \
    EMU_IN N##3 make_##N##3(T x, T y, T z) { return N##3{x, y, z}; }                                                            \
    EMU_IN N##4 make_##N##4(T x, T y, T z, T w) { return N##4{x, y, z, w}; }
EMU_VEC(signed char, char, 2, 4)
EMU_VEC(unsigned char, uchar, 2, 4)
EMU_VEC(short, short, 4, 8)
EMU_VEC(unsigned short, ushort, 4, 8)
EMU_VEC(int, int, 8, 16)
EMU_VEC(long, long, 16, 16)
EMU_VEC(unsigned long, ulong, 16, 16)
EMU_VEC(long long, longlong, 16, 16)
EMU_VEC(unsigned long long, ulonglong, 16, 16)
EMU_VEC(float, float, 8, 16)
EMU_VEC(double, double, 16, 16)
struct uint1 { unsigned x; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
EMU_IN uint1 make_uint1(unsigned x) { return uint1{x}; }
EMU_IN uint2 make_uint2(unsigned x, unsigned y) { return uint2{x, y}; }
EMU_IN uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return uint3{x, y, z}; }
EMU_IN uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{x, y, z, w}; }
#undef EMU_VEC

// ---- barriers and warp collectives

#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
EMU_IN void __syncthreads(EMU_SITE) { emu_barrier(emu_self, 0, 0, file, line); }
EMU_IN int __syncthreads_count(int p, EMU_SITE) { return emu_barrier_reduce(emu_self, 0, p, file, line); }
EMU_IN int __syncthreads_and(int p, EMU_SITE) { return emu_barrier_reduce(emu_self, 1, p, file, line); }
EMU_IN int __syncthreads_or(int p, EMU_SITE) { return emu_barrier_reduce(emu_self, 2, p, file, line); }
EMU_IN void __syncwarp(unsigned mask = 0xffffffffu, EMU_SITE) { emu_warp(emu_self, mask, EMU_SYNCWARP, 0, 0, 0, file, line); }

template <class T> EMU_IN unsigned long long emu_bits(T v) {
    static_assert(sizeof(T) <= 8, "a lane exchanges at most 8 bytes");
    unsigned long long u = 0;
    __builtin_memcpy(&u, &v, sizeof v);
    return u;
}
template <class T> EMU_IN T emu_from_bits(unsigned long long u) {
    T v;
    __builtin_memcpy(&v, &u, sizeof v);
    return v;
}
// A lane that is not there has no value: the hardware gives anything, the emulator gives all ones (a NaN).
template <class T> EMU_IN T emu_shfl(unsigned mask, T v, int from, bool take, const char* file, int line) {
    unsigned present;
    const unsigned long long* s = emu_warp(emu_self, mask, EMU_SHFL, emu_bits(v), &present, 0, file, line);
    if (!take) return v;
    return emu_from_bits<T>(present >> from & 1 ? s[from] : ~0ull);
}
template <class T> EMU_IN T __shfl_sync(unsigned mask, T v, int src, int width = 32, EMU_SITE) {
    int lane = emu_lane();
    return emu_shfl(mask, v, (lane & ~(width - 1)) | (src & (width - 1)), true, file, line);
}
template <class T> EMU_IN T __shfl_up_sync(unsigned mask, T v, unsigned d, int width = 32, EMU_SITE) {
    int lane = emu_lane(), from = lane - (int)d;
    bool in = from >= (lane & ~(width - 1));
    return emu_shfl(mask, v, in ? from : lane, in, file, line);
}
template <class T> EMU_IN T __shfl_down_sync(unsigned mask, T v, unsigned d, int width = 32, EMU_SITE) {
    int lane = emu_lane(), from = lane + (int)d;
    bool in = from <= (lane | (width - 1));
    return emu_shfl(mask, v, in ? from : lane, in, file, line);
}
template <class T> EMU_IN T __shfl_xor_sync(unsigned mask, T v, int x, int width = 32, EMU_SITE) {
    int lane = emu_lane(), from = lane ^ x;
    bool in = from <= (lane | (width - 1));
    return emu_shfl(mask, v, in ? from : lane, in, file, line);
}
EMU_IN unsigned emu_votes(unsigned mask, int p, unsigned* present, const char* file, int line) {
    const unsigned long long* s = emu_warp(emu_self, mask, EMU_VOTE, p != 0, present, 0, file, line);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++)
        if (*present >> i & 1) votes |= (unsigned)s[i] << i;
    return votes;
}
EMU_IN unsigned __ballot_sync(unsigned mask, int p, EMU_SITE) { unsigned t; return emu_votes(mask, p, &t, file, line); }
EMU_IN int __any_sync(unsigned mask, int p, EMU_SITE) { unsigned t; return emu_votes(mask, p, &t, file, line) != 0; }
EMU_IN int __all_sync(unsigned mask, int p, EMU_SITE) { unsigned t; return emu_votes(mask, p, &t, file, line) == t; }
// Who runs together is for the hardware to say; here: all lanes that have not returned.
EMU_IN unsigned __activemask() { return emu_active_lanes(emu_self); }
template <class T> EMU_IN unsigned __match_any_sync(unsigned mask, T v, EMU_SITE) {
    unsigned present, same = 0;
    const unsigned long long* s = emu_warp(emu_self, mask, EMU_MATCH, emu_bits(v), &present, 0, file, line);
    for (int i = 0; i < 32; i++)
        if ((present >> i & 1) && s[i] == emu_bits(v)) same |= 1u << i;
    return same;
}
template <class T> EMU_IN unsigned __match_all_sync(unsigned mask, T v, int* p, EMU_SITE) {
    unsigned same = __match_any_sync(mask, v, file, line);
    *p = same == (mask & __activemask());
    return *p ? mask : 0;
}
#define EMU_REDUCE_WORD(word, T, expr)                                                                                          \
    EMU_IN T __reduce_##word##_sync(unsigned mask, T v, EMU_SITE) {                                                             \
        unsigned present;                                                                                                       \
        const unsigned long long* s = emu_warp(emu_self, mask, EMU_REDUCE, emu_bits(v), &present, 0, file, line);              \
        bool first = true;                                                                                                      \
        T a = v;                                                                                                                \
        for (int i = 0; i < 32; i++)                                                                                            \
            if (present >> i & 1) {                                                                                             \
                T b = (T)s[i];                                                                                                  \
                a = first ? b : (expr);                                                                                         \
                first = false;                                                                                                  \
            }                                                                                                                   \
        return a;                                                                                                               \
    }
EMU_REDUCE_WORD(add, unsigned, a + b)
EMU_REDUCE_WORD(add, int, (int)((unsigned)a + (unsigned)b))
EMU_REDUCE_WORD(min, unsigned, a < b ? a : b)
EMU_REDUCE_WORD(min, int, a < b ? a : b)
EMU_REDUCE_WORD(max, unsigned, a > b ? a : b)
EMU_REDUCE_WORD(max, int, a > b ? a : b)
EMU_REDUCE_WORD(and, unsigned, a & b)
EMU_REDUCE_WORD(or, unsigned, a | b)
EMU_REDUCE_WORD(xor, unsigned, a ^ b)
#undef EMU_REDUCE_WORD

EMU_IN void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
EMU_IN void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
EMU_IN void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
EMU_IN void __nanosleep(unsigned) { emu_yield(emu_self); }
EMU_IN long long clock64() { return (long long)emu_clock(); }
EMU_IN int clock() { return (int)emu_clock(); }
EMU_IN long long emu_globaltimer() { return (long long)emu_clock(); }
[[noreturn]] EMU_IN void __trap(EMU_SITE) { emu_trap(emu_self, "__trap()", file, line); }
EMU_IN void __brkpt() {}
extern "C" int printf(const char*, ...);
#define assert(e) ((e) ? (void)0 : emu_trap(emu_self, "assert(" #e ")", __FILE__, __LINE__))
#define __builtin_assume(e) ((e) ? (void)0 : emu_trap(emu_self, "__builtin_assume(" #e ") does not hold", __FILE__, __LINE__))
#define __builtin_nv_unreachable() __builtin_unreachable()
#define __nv_isClusterShared(p) 0

// ---- shared memory: each variable has a place in the block's memory, given when the block first meets it (translate.cpp)

static unsigned emu_shared_count;
template <class Tag> struct emu_shared_id { static const unsigned id; };
template <class Tag> const unsigned emu_shared_id<Tag>::id = emu_shared_count++;
constexpr unsigned emu_align_of(size_t n) { return (unsigned)n; }
constexpr unsigned emu_larger(unsigned a) { return a; }
template <class... A> constexpr unsigned emu_larger(unsigned a, unsigned b, A... more) { return emu_larger(a > b ? a : b, more...); }
template <class T, class Tag, unsigned Align> EMU_IN T& emu_shared_var(const char* name) {
    static_assert(sizeof(T) <= 48 * 1024, "static shared memory is limited to 48 KiB");
    unsigned id = emu_shared_id<Tag>::id;
    unsigned at = emu_self->block->shared_at[id];
    if (__builtin_expect(!at, 0)) at = emu_place_shared(emu_self, id, sizeof(T), Align, name);
    return *reinterpret_cast<T*>(emu_self->block->shared + at);
}
template <class T> EMU_IN T& emu_shared_dynamic() { return *reinterpret_cast<T*>(emu_self->block->dynamic); }
EMU_IN size_t __cvta_generic_to_shared(const void* p) { return (size_t)((const char*)p - emu_self->block->shared); }
EMU_IN void* __cvta_shared_to_generic(size_t a) { return emu_self->block->shared + (unsigned)a; }
EMU_IN size_t __cvta_generic_to_global(const void* p) { return (size_t)p; }

// ---- entry points: a module's table says how each kernel is called from the driver's untyped arguments

template <class T> EMU_IN T emu_arg(const void* p) {
    alignas(T) unsigned char b[sizeof(T)];
    __builtin_memcpy(b, p, sizeof(T));
    return *reinterpret_cast<T*>(b);
}
template <int... I> struct emu_seq {};
template <int N, int... I> struct emu_iota : emu_iota<N - 1, N - 1, I...> {};
template <int... I> struct emu_iota<0, I...> { typedef emu_seq<I...> type; };
template <class T> struct emu_value { typedef T type; };
template <class T> struct emu_value<const T> { typedef T type; };
template <auto F, class Fn> struct emu_entry_of;
template <auto F, class... A> struct emu_entry_of<F, void (*)(A...)> {
    static constexpr unsigned n = sizeof...(A);
    static constexpr unsigned sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};
    template <int... I> static EMU_IN void call(void** a, emu_seq<I...>) { F(emu_arg<typename emu_value<A>::type>(a[I])...); }
    // The block's threads one after another on this stack. One that has to wait leaves the stack to itself, and the driver
    // enters here again on another stack; a kernel without barriers thus never switches.
    static void run(void** a) {
        for (;;) {
            emu_thread* t = emu_self;
            emu_block* b = t->block;
            unsigned i = b->next;
            if (i >= b->nthreads) return;
            b->next = i + 1;
            if (__builtin_expect(b->linear, 1)) {
                t->index = t->tid.x = i;
            } else {
                emu_pick(t);
            }
            call(a, typename emu_iota<sizeof...(A)>::type());
            if (__builtin_expect(b->tracked, 0)) emu_thread_exit(emu_self);
        }
    }
};
#define EMU_ENTRY(text, F, bounds)                                                                                              \
    { text, emu_entry_of<&F, decltype(&F)>::run, emu_entry_of<&F, decltype(&F)>::n, emu_entry_of<&F, decltype(&F)>::sizes, bounds }

#include "emu_math.h"
