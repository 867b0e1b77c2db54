// What C++ that was made from PTX (ptx/) is made of. Registers hold bits; every operation is defined for every operand, as the
// PTX ISA has it.
#pragma once
#include "emu_abi.h"

#ifdef EMU_SELF_IN_REGISTER
register emu_thread* emu_self asm("r15");
#else
extern "C" __thread emu_thread* emu_self_tls;
#define emu_self emu_self_tls
#endif
typedef unsigned char u8; typedef signed char s8;
typedef unsigned short u16; typedef short s16;
typedef unsigned u32; typedef int s32;
typedef unsigned long long u64; typedef long long s64;
typedef float f32; typedef double f64;
typedef unsigned __int128 u128; typedef __int128 s128;
#define IN static inline __attribute__((always_inline))
#define VISIBLE __attribute__((visibility("default")))
#define SITE __FILE__, __LINE__
#define SITE_ARGS const char *file, int line

template <class To, class From> IN To as(From v) {
    static_assert(sizeof(To) == sizeof(From), "");
    To r;
    __builtin_memcpy(&r, &v, sizeof r);
    return r;
}
IN f32 f32_of(u32 u) { return as<f32>(u); }
IN f64 f64_of(u64 u) { return as<f64>(u); }
IN u32 bits_of(f32 f) { return as<u32>(f); }
IN u64 bits_of(f64 f) { return as<u64>(f); }

// ---- memory: an access must be at a multiple of its whole size, vectors too

IN void aligned(const void* p, unsigned bytes, SITE_ARGS) {
    if (__builtin_expect((u64)p & (bytes - 1), 0)) emu_misaligned(emu_self, p, bytes, file, line);
}
template <class T> IN T load(const void* p) { return *(const T*)p; }
template <class T> IN void store(void* p, T v) { *(T*)p = v; }
template <class T> IN T load_parameter(const void* p) { T r; __builtin_memcpy(&r, p, sizeof r); return r; }
template <class T> IN T load_atomic(const void* p) { T r; __atomic_load((T*)p, &r, __ATOMIC_ACQUIRE); return r; }
template <class T> IN void store_atomic(void* p, T v) { __atomic_store((T*)p, &v, __ATOMIC_RELEASE); }
// Changes what lies there in one step; gives what was there.
template <class U, class F> IN U change(void* p, F f) {
    U old = __atomic_load_n((U*)p, __ATOMIC_RELAXED);
    for (;;) {
        U now = f(old);
        if (__atomic_compare_exchange_n((U*)p, &old, now, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) return old;
    }
}

// ---- integers

template <class T> IN T shift_left(T a, u32 n) { return n >= sizeof(T) * 8 ? 0 : (T)((u64)a << n); }
template <class T> IN T shift_right(T a, u32 n) { return n >= sizeof(T) * 8 ? (a < 0 ? (T)-1 : 0) : (T)(a >> n); }
template <class T> IN T int_min(T a, T b) { return a < b ? a : b; }
template <class T> IN T int_max(T a, T b) { return a > b ? a : b; }
IN u16 high_product(u16 a, u16 b) { return (u16)((u32)a * b >> 16); }
IN s16 high_product(s16 a, s16 b) { return (s16)((s32)a * b >> 16); }
IN u32 high_product(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
IN s32 high_product(s32 a, s32 b) { return (s32)((s64)a * b >> 32); }
IN u64 high_product(u64 a, u64 b) { return (u64)((u128)a * b >> 64); }
IN s64 high_product(s64 a, s64 b) { return (s64)((s128)a * b >> 64); }
template <class T> IN T quotient(T a, T b, SITE_ARGS) {
    if (__builtin_expect(b == 0, 0)) emu_trap(emu_self, "integer division by zero", file, line);
    if ((T)-1 < 0 && b == (T)-1) return (T)(0 - (u64)a);
    return (T)(a / b);
}
template <class T> IN T remainder(T a, T b, SITE_ARGS) {
    if (__builtin_expect(b == 0, 0)) emu_trap(emu_self, "integer division by zero", file, line);
    if ((T)-1 < 0 && b == (T)-1) return 0;
    return (T)(a % b);
}
// bfe: bits from `at` on; beyond the top, and for the sign of a signed field, its last bit that exists.
template <class T> IN T extract_bits(T a, u32 at, u32 count) {
    const u32 width = sizeof(T) * 8;
    at &= 255, count &= 255;
    if (!count) return 0;
    bool is_signed = (T)-1 < 0;
    u32 last = int_min<u32>(at + count - 1, width - 1);
    u64 sign = is_signed ? (u64)a >> last & 1 : 0, field = at < width ? (is_signed ? (u64)(s64)a : (u64)a) >> at : 0;
    u32 real = at < width ? int_min<u32>(count, width - at) : 0;
    u64 mask = real >= 64 ? ~0ull : (1ull << real) - 1;
    return (T)((field & mask) | (sign ? ~mask : 0));
}
template <class T> IN T insert_bits(T a, T into, u32 at, u32 count) {
    const u32 width = sizeof(T) * 8;
    at &= 255, count &= 255;
    if (at >= width || !count) return into;
    T mask = (T)((count >= width ? ~(T)0 : (T)(((T)1 << count) - 1)) << at);
    return (T)((into & ~mask) | ((T)(a << at) & mask));
}
template <class T> IN u32 find_bit(T a, bool as_shift) {
    u64 x = (T)-1 < 0 && a < 0 ? (u64)~a : (u64)a;
    u32 at = x ? 63 - (u32)__builtin_clzll(x) : ~0u;
    return as_shift && x ? (u32)sizeof(T) * 8 - 1 - at : at;
}
template <class T> IN u32 leading_zeros(T a) { return a ? (u32)__builtin_clzll(a) - (64 - (u32)sizeof(T) * 8) : (u32)sizeof(T) * 8; }
template <class T> IN T reversed_bits(T a) {
    T r = 0;
    for (u32 i = 0; i < sizeof(T) * 8; i++) r |= (T)((a >> i & 1) << (sizeof(T) * 8 - 1 - i));
    return r;
}
IN u32 permute_bytes(u32 a, u32 b, u32 selector) {
    u64 all = (u64)b << 32 | a;
    u32 r = 0;
    for (int i = 0; i < 4; i++) {
        u32 s = selector >> 4 * i & 15, x = (u32)(all >> (s & 7) * 8) & 255;
        if (s & 8) x = x & 128 ? 255 : 0;
        r |= x << 8 * i;
    }
    return r;
}
IN u32 funnel_l(u32 low, u32 high, u32 n) { return (u32)(((u64)high << 32 | low) << n >> 32); }
IN u32 funnel_r(u32 low, u32 high, u32 n) { return (u32)(((u64)high << 32 | low) >> n); }
IN u32 lop3(u32 a, u32 b, u32 c, u32 table) {
    u32 r = 0;
    for (u32 i = 0; i < 8; i++)
        if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
}

// ---- floats

extern "C" { float exp2f(float); float log2f(float); float sinf(float); float cosf(float); float tanhf(float); float sqrtf(float); double sqrt(double); }
IN f32 flushed(f32 x) { return __builtin_fabsf(x) < 1.17549435e-38f ? __builtin_copysignf(0.f, x) : x; }
IN f32 canonical(f32 x) { return x != x ? f32_of(0x7fffffff) : x; }
IN f32 saturated(f32 x) { return !(x > 0) ? 0.f : x > 1 ? 1.f : x; }
IN f64 saturated(f64 x) { return !(x > 0) ? 0. : x > 1 ? 1. : x; }
// One NaN gives the other number; -0 is less than +0.
IN bool negative(f32 x) { return bits_of(x) >> 31; }
IN bool negative(f64 x) { return bits_of(x) >> 63; }
template <class F> IN F float_min(F a, F b) { return a != a ? b : b != b ? a : a == b ? (negative(a) ? a : b) : a < b ? a : b; }
template <class F> IN F float_max(F a, F b) { return a != a ? b : b != b ? a : a == b ? (negative(a) ? b : a) : a > b ? a : b; }
template <class F> IN F float_min_nan(F a, F b) { return a != a ? a : b != b ? b : float_min(a, b); }
template <class F> IN F float_max_nan(F a, F b) { return a != a ? a : b != b ? b : float_max(a, b); }
// Rounded in a direction: x + error is exact, x to the nearest of f64 and the error's sign decides.
enum Direction { TowardsZero, Down, Up };
IN f32 rounded(f64 x, f64 error, Direction to) {
    f32 r = (f32)x;
    f64 d = (f64)r - x;
    bool above = d > 0 || (d == 0 && error < 0), below = d < 0 || (d == 0 && error > 0);
    if (__builtin_isinf(r) && !__builtin_isinf(x)) above = r > 0, below = r < 0;
    if ((to == Down || (to == TowardsZero && x > 0)) && above) return r > 0 ? f32_of(bits_of(r) - 1) : r == 0 ? f32_of(0x80000001) : f32_of(bits_of(r) + 1);
    if ((to == Up || (to == TowardsZero && x < 0)) && below) return r < 0 ? f32_of(bits_of(r) - 1) : r == 0 ? f32_of(1) : f32_of(bits_of(r) + 1);
    return r;
}
IN f32 fma_rounded(f32 a, f32 b, f32 c, Direction to) {
    f64 p = (f64)a * b, s = p + c, back = s - p, error = (p - (s - back)) + (c - back);
    if (__builtin_isinf(s) || s != s) return (f32)s;
    if (s == 0 && error == 0 && to == Down && (negative(p) != negative((f64)c))) return -0.f;
    return rounded(s, error, to);
}
IN f32 add_rounded(f32 a, f32 b, Direction to) { return fma_rounded(a, 1.f, b, to); }
IN f32 mul_rounded(f32 a, f32 b, Direction to) { return rounded((f64)a * b, 0, to); }
// The approximate functions are the host's, correctly rounded or nearly so: the device's are off by 1 or 2 units in the last place.
IN f32 div_approx(f32 a, f32 b) { return a / b; }
IN f32 reciprocal(f32 x) { return 1.f / x; }
IN f64 reciprocal(f64 x) { return 1. / x; }
IN f32 reciprocal_approx(f32 x) { return 1.f / x; }
IN f32 square_root(f32 x) { return sqrtf(x); }
IN f64 square_root(f64 x) { return sqrt(x); }
IN f32 square_root_approx(f32 x) { return sqrtf(x); }
IN f64 inverse_root(f64 x) { return 1. / sqrt(x); }
IN f32 inverse_root_approx(f32 x) { return (f32)(1. / sqrt((f64)x)); }
IN f32 exp2_approx(f32 x) { return exp2f(x); }
IN f32 log2_approx(f32 x) { return log2f(x); }
IN f32 sin_approx(f32 x) { return sinf(x); }
IN f32 cos_approx(f32 x) { return cosf(x); }
IN f32 tanh_approx(f32 x) { return tanhf(x); }
IN f64 upper_half(f64 x) { return __builtin_fabs(x) < 2.2250738585072014e-308 ? __builtin_copysign(0., x) : f64_of(bits_of(x) & 0xffffffff00000000ull); }

// To an integer of the type: saturates. A NaN is 0, or for 64 bits the lowest number.
template <class I, class F> IN I to_integer(F x) {
    const bool is_signed = (I)-1 < 0;
    const u32 width = sizeof(I) * 8;
    const I low = is_signed ? (I)((u64)1 << (width - 1)) : 0, high = is_signed ? (I)~((u64)1 << (width - 1)) : (I)-1;
    const f64 beyond = is_signed ? (f64)((u64)1 << (width - 1)) : width == 64 ? 18446744073709551616. : (f64)((u64)1 << width % 64);
    if (x != x) return width == 64 ? (I)((u64)1 << 63) : 0;
    if ((f64)x >= beyond) return high;
    if ((f64)x <= (f64)low) return low;
    return (I)x;
}
IN f32 from_f16(u16 h) { return emu_f16_to_f32(h); }
IN u16 to_f16(f32 f) { return emu_f32_to_f16(f); }
IN f32 from_bf16(u16 h) { return f32_of((u32)h << 16); }
IN u16 to_bf16(f32 f) {
    u32 u = bits_of(f);
    return f != f ? 0x7fff : (u16)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
IN u32 to_tf32(f32 f) {
    u32 u = bits_of(f);
    if ((u & 0x7f800000) == 0x7f800000) return f != f ? 0x7fffffff : u;
    return (u + 0x1000) & 0xffffe000;
}
IN void from_f32(f32& r, f32 x) { r = x; }
IN void from_f32(u32& r, f32 x) { r = bits_of(x); }
IN void add_f32(void* to, f32 v) { change<u32>(to, [=](u32 o) { return bits_of(canonical(f32_of(o) + v)); }); }
IN void add_f16x2(void* to, u32 v) {
    change<u32>(to, [=](u32 o) { return (u32)to_f16(from_f16((u16)o) + from_f16((u16)v)) | (u32)to_f16(from_f16((u16)(o >> 16)) + from_f16((u16)(v >> 16))) << 16; });
}
IN void add_bf16x2(void* to, u32 v) {
    change<u32>(to, [=](u32 o) { return (u32)to_bf16(from_bf16((u16)o) + from_bf16((u16)v)) | (u32)to_bf16(from_bf16((u16)(o >> 16)) + from_bf16((u16)(v >> 16))) << 16; });
}

// ---- threads

IN u32 lane() { return emu_self->index & 31; }
// A lane that is not there has no value: all ones, a NaN. `c` holds the width of a segment and the clamp, as shfl has them.
IN u32 shuffle(u32 a, int from, bool inside, u32 mask, bool* p, SITE_ARGS) {
    u32 present;
    const u64* s = emu_warp(emu_self, mask, EMU_SHFL, a, &present, 0, file, line);
    if (!inside) from = (int)lane();
    *p = inside;
    return present >> from & 1 ? (u32)s[from] : ~0u;
}
IN int segment_low(u32 c) { return (int)(lane() & (c >> 8 & 31)); }
IN int segment_high(u32 c) { return (int)((lane() & (c >> 8 & 31)) | (c & 31 & ~(c >> 8))); }
IN u32 shuffle_up(u32 a, u32 b, u32 c, u32 mask, bool* p, SITE_ARGS) { int j = (int)lane() - (int)(b & 31); return shuffle(a, j, j >= segment_high(c), mask, p, file, line); }
IN u32 shuffle_down(u32 a, u32 b, u32 c, u32 mask, bool* p, SITE_ARGS) { int j = (int)(lane() + (b & 31)); return shuffle(a, j, j <= segment_high(c), mask, p, file, line); }
IN u32 shuffle_bfly(u32 a, u32 b, u32 c, u32 mask, bool* p, SITE_ARGS) { int j = (int)(lane() ^ (b & 31)); return shuffle(a, j, j <= segment_high(c), mask, p, file, line); }
IN u32 shuffle_idx(u32 a, u32 b, u32 c, u32 mask, bool* p, SITE_ARGS) {
    int j = segment_low(c) | (int)(b & 31 & ~(c >> 8));
    return shuffle(a, j, j <= segment_high(c), mask, p, file, line);
}
IN u32 votes(u32 mask, bool p, u32* present, SITE_ARGS) {
    const u64* s = emu_warp(emu_self, mask, EMU_VOTE, p, present, 0, file, line);
    u32 r = 0;
    for (int i = 0; i < 32; i++)
        if (*present >> i & 1) r |= (u32)s[i] << i;
    return r;
}
IN u32 match_any(u32 mask, u64 v, SITE_ARGS) {
    u32 present, same = 0;
    const u64* s = emu_warp(emu_self, mask, EMU_MATCH, v, &present, 0, file, line);
    for (int i = 0; i < 32; i++)
        if ((present >> i & 1) && s[i] == v) same |= 1u << i;
    return same;
}
template <class T, class F> IN T reduce_lanes(u32 mask, T v, F f, SITE_ARGS) {
    u32 present;
    const u64* s = emu_warp(emu_self, mask, EMU_REDUCE, (u64)v, &present, 0, file, line);
    bool first = true;
    T r = v;
    for (int i = 0; i < 32; i++)
        if (present >> i & 1) r = first ? (T)s[i] : f(r, (T)s[i]), first = false;
    return r;
}
IN bool elected(u32 mask, u32* leader, SITE_ARGS) {
    u32 present;
    emu_warp(emu_self, mask, EMU_ELECT, 0, &present, 0, file, line);
    *leader = (u32)__builtin_ctz(present);
    return *leader == lane();
}
IN void load_matrices(u32* r, const char* row, int count, int transposed, SITE_ARGS) {
    emu_ldmatrix x = {row, r, count, transposed};
    emu_warp(emu_self, ~0u, EMU_LDMATRIX, (u64)&x, 0, emu_warp_ldmatrix, file, line);
    asm volatile("" : : "r"(r) : "memory");
}
IN void store_matrices(u32* r, const char* row, int count, int transposed, SITE_ARGS) {
    emu_ldmatrix x = {row, r, count, transposed};
    emu_warp(emu_self, ~0u, EMU_STMATRIX, (u64)&x, 0, emu_warp_stmatrix, file, line);
    asm volatile("" : : "r"(r) : "memory");
}
IN void multiply_matrices(emu_mma& x, SITE_ARGS) {
    emu_warp(emu_self, ~0u, EMU_MMA, (u64)&x, 0, emu_warp_mma, file, line);
    asm volatile("" : : "r"(x.d) : "memory");
}
// `there`: what mapa gave, or an address in the own block.
IN void arrive_in_cluster(char* shared, u32 there, SITE_ARGS) {
    if (there >> 24) emu_mbarrier_arrive_cluster(emu_self, shared + (there & 0xffffff), (there >> 24) - 1, file, line);
    else emu_mbarrier_arrive(emu_self, shared + there, 1, 0, file, line);
}

// ---- calls

extern "C" { int printf(const char*, ...); int snprintf(char*, unsigned long, const char*, ...); char* strchr(const char*, int); }
[[noreturn]] IN void assert_failed(const void* what, const void* file, const void* line, const void*, const void*) {
    char t[400];
    snprintf(t, sizeof t, "assert(%s)", load_parameter<const char*>(what));
    emu_trap(emu_self, t, load_parameter<const char*>(file), load_parameter<s32>(line));
}
// vprintf: numbers of up to 8 bytes each at a multiple of its size.
static __attribute__((noinline)) u32 print_formatted(const void* format_place, const void* values_place) {
    const char *f = load_parameter<const char*>(format_place), *v = load_parameter<const char*>(values_place);
    u64 at = 0;
    u32 count = 0;
    while (*f) {
        char piece[64];
        u32 n = 0;
        bool number = *f == '%' && f[1] != '%', wide = false;
        piece[n++] = *f++;
        if (number) {
            while (*f && n < 60 && !strchr("diouxXcsfFeEgGaAp", *f)) wide |= *f == 'l', piece[n++] = *f++;
            if (*f) piece[n++] = *f++;
        } else if (piece[0] == '%') {
            piece[n++] = *f++;
        }
        piece[n] = 0;
        if (!number) {
            printf(piece);
            continue;
        }
        bool real = strchr("fFeEgGaA", piece[n - 1]), eight = real || wide || strchr("sp", piece[n - 1]);
        at = (at + (eight ? 7 : 3)) & ~(u64)(eight ? 7 : 3);
        if (real) printf(piece, load_parameter<f64>(v + at));
        else if (eight) printf(piece, load_parameter<u64>(v + at));
        else printf(piece, load_parameter<s32>(v + at));
        at += eight ? 8 : 4;
        count++;
    }
    return count;
}

// The block's threads one after another on this stack; see emu_words.h.
template <void (*K)(const char*)> static void run_threads(const char* parameters) {
    for (;;) {
        emu_thread* t = emu_self;
        emu_block* b = t->block;
        unsigned i = b->next;
        if (i >= b->nthreads) return;
        b->next = i + 1;
        if (__builtin_expect(b->linear, 1)) t->index = t->tid.x = i;
        else emu_pick(t);
        K(parameters);
        if (__builtin_expect(b->tracked, 0)) emu_thread_exit(emu_self);
    }
}
