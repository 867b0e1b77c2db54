// Arithmetic that CUDA has without any header: math functions, conversions, bit tricks, atomics, cached loads.
#pragma once

// The compiler knows these as built-ins; the host's libm gives those that are no instruction.
extern "C" {
#define EMU_M1(n) double n(double) noexcept; float n##f(float) noexcept;
EMU_M1(exp) EMU_M1(exp2) EMU_M1(exp10) EMU_M1(expm1) EMU_M1(log) EMU_M1(log2) EMU_M1(log10) EMU_M1(log1p) EMU_M1(sqrt) EMU_M1(cbrt)
EMU_M1(sin) EMU_M1(cos) EMU_M1(tan) EMU_M1(asin) EMU_M1(acos) EMU_M1(atan) EMU_M1(sinh) EMU_M1(cosh) EMU_M1(tanh) EMU_M1(asinh)
EMU_M1(acosh) EMU_M1(atanh) EMU_M1(erf) EMU_M1(erfc) EMU_M1(tgamma) EMU_M1(lgamma) EMU_M1(fabs) EMU_M1(floor) EMU_M1(ceil)
EMU_M1(trunc) EMU_M1(round) EMU_M1(rint) EMU_M1(nearbyint) EMU_M1(logb)
#undef EMU_M1
#define EMU_M2(n) double n(double, double) noexcept; float n##f(float, float) noexcept;
EMU_M2(pow) EMU_M2(atan2) EMU_M2(fmod) EMU_M2(remainder) EMU_M2(hypot) EMU_M2(copysign) EMU_M2(nextafter) EMU_M2(fdim) EMU_M2(fmin) EMU_M2(fmax)
#undef EMU_M2
double fma(double, double, double) noexcept;
float fmaf(float, float, float) noexcept;
double ldexp(double, int) noexcept;
float ldexpf(float, int) noexcept;
double frexp(double, int*) noexcept;
float frexpf(float, int*) noexcept;
double modf(double, double*) noexcept;
float modff(float, float*) noexcept;
float scalbnf(float, int) noexcept;
void sincosf(float, float*, float*) noexcept;
void sincos(double, double*, double*) noexcept;
long lrintf(float) noexcept;
long lroundf(float) noexcept;
long long llrintf(float) noexcept;
int abs(int) noexcept;
long labs(long) noexcept;
long long llabs(long long) noexcept;
void* memcpy(void*, const void*, size_t) noexcept;
void* memset(void*, int, size_t) noexcept;
}
#define EMU_OVER(n) EMU_IN float n(float x) { return n##f(x); }
EMU_OVER(exp) EMU_OVER(exp2) EMU_OVER(expm1) EMU_OVER(log) EMU_OVER(log2) EMU_OVER(log10) EMU_OVER(log1p) EMU_OVER(sqrt) EMU_OVER(sin)
EMU_OVER(cos) EMU_OVER(tan) EMU_OVER(tanh) EMU_OVER(erf) EMU_OVER(fabs) EMU_OVER(floor) EMU_OVER(ceil) EMU_OVER(trunc) EMU_OVER(round)
EMU_OVER(rint)
#undef EMU_OVER
EMU_IN float pow(float a, float b) { return powf(a, b); }
EMU_IN float fmod(float a, float b) { return fmodf(a, b); }
EMU_IN float abs(float x) { return __builtin_fabsf(x); }
EMU_IN double abs(double x) { return __builtin_fabs(x); }
EMU_IN long long abs(long long x) { return x < 0 ? -x : x; }
EMU_IN bool isnan(float x) { return __builtin_isnan(x); }
EMU_IN bool isnan(double x) { return __builtin_isnan(x); }
EMU_IN bool isinf(float x) { return __builtin_isinf(x); }
EMU_IN bool isinf(double x) { return __builtin_isinf(x); }
EMU_IN bool isfinite(float x) { return __builtin_isfinite(x); }
EMU_IN bool isfinite(double x) { return __builtin_isfinite(x); }
EMU_IN bool signbit(float x) { return __builtin_signbit(x); }
EMU_IN bool signbit(double x) { return __builtin_signbit(x); }

EMU_IN float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
EMU_IN double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
EMU_IN float rsqrt(float x) { return rsqrtf(x); }
EMU_IN float rcbrtf(float x) { return 1.0f / __builtin_cbrtf(x); }
EMU_IN float normcdff(float x) { return 0.5f * __builtin_erfcf(-x * 0.70710678118654752f); }
EMU_IN double normcdf(double x) { return 0.5 * __builtin_erfc(-x * 0.70710678118654752440); }
EMU_IN float sinpif(float x) { return (float)__builtin_sin(3.14159265358979323846 * x); }
EMU_IN float cospif(float x) { return (float)__builtin_cos(3.14159265358979323846 * x); }
EMU_IN void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
EMU_IN float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
EMU_IN float __expf(float x) { return __builtin_expf(x); }
EMU_IN float __exp10f(float x) { return __builtin_exp10f(x); }
EMU_IN float __logf(float x) { return __builtin_logf(x); }
EMU_IN float __log2f(float x) { return __builtin_log2f(x); }
EMU_IN float __log10f(float x) { return __builtin_log10f(x); }
EMU_IN float __sinf(float x) { return __builtin_sinf(x); }
EMU_IN float __cosf(float x) { return __builtin_cosf(x); }
EMU_IN float __tanf(float x) { return __builtin_tanf(x); }
EMU_IN float __tanhf(float x) { return __builtin_tanhf(x); }
EMU_IN void __sincosf(float x, float* s, float* c) { *s = __sinf(x), *c = __cosf(x); }
EMU_IN float __powf(float x, float y) { return __builtin_powf(x, y); }
EMU_IN float __fdividef(float a, float b) { return a / b; }

#define EMU_MINMAX(T)                                                                                                           \
    EMU_IN constexpr T min(T a, T b) { return b < a ? b : a; }                                                                  \
    EMU_IN constexpr T max(T a, T b) { return a < b ? b : a; }
EMU_MINMAX(int) EMU_MINMAX(unsigned) EMU_MINMAX(long) EMU_MINMAX(unsigned long) EMU_MINMAX(long long) EMU_MINMAX(unsigned long long)
#undef EMU_MINMAX
// CUDA takes a mixed pair as unsigned.
EMU_IN constexpr unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
EMU_IN constexpr unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
EMU_IN constexpr unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
EMU_IN constexpr unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
EMU_IN constexpr unsigned long long min(long long a, unsigned long long b) { return min((unsigned long long)a, b); }
EMU_IN constexpr unsigned long long min(unsigned long long a, long long b) { return min(a, (unsigned long long)b); }
EMU_IN constexpr unsigned long long max(long long a, unsigned long long b) { return max((unsigned long long)a, b); }
EMU_IN constexpr unsigned long long max(unsigned long long a, long long b) { return max(a, (unsigned long long)b); }
// As fminf and fmaxf: a NaN loses against a number.
EMU_IN float min(float a, float b) { return a < b || b != b ? a : b; }
EMU_IN float max(float a, float b) { return a > b || b != b ? a : b; }
EMU_IN double min(double a, double b) { return a < b || b != b ? a : b; }
EMU_IN double max(double a, double b) { return a > b || b != b ? a : b; }
EMU_IN double min(float a, double b) { return min((double)a, b); }
EMU_IN double min(double a, float b) { return min(a, (double)b); }
EMU_IN double max(float a, double b) { return max((double)a, b); }
EMU_IN double max(double a, float b) { return max(a, (double)b); }
EMU_IN int __mul24(int a, int b) { return (int)((unsigned)(a << 8 >> 8) * (unsigned)(b << 8 >> 8)); }
EMU_IN unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
EMU_IN int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
EMU_IN unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
EMU_IN unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }
EMU_IN long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
EMU_IN int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_IN int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_IN int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
EMU_IN int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
EMU_IN int __ffs(int x) { return __builtin_ffs(x); }
EMU_IN int __ffsll(long long x) { return __builtin_ffsll(x); }
EMU_IN unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555) | (x & 0x55555555) << 1;
    x = (x >> 2 & 0x33333333) | (x & 0x33333333) << 2;
    x = (x >> 4 & 0x0f0f0f0f) | (x & 0x0f0f0f0f) << 4;
    return __builtin_bswap32(x);
}
EMU_IN unsigned long long __brevll(unsigned long long x) { return (unsigned long long)__brev((unsigned)x) << 32 | __brev((unsigned)(x >> 32)); }
EMU_IN unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    unsigned long long v = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned sel = s >> (4 * i), byte = (unsigned)(v >> ((sel & 7) * 8)) & 0xff;
        if (sel & 8) byte = byte & 0x80 ? 0xff : 0;
        r |= byte << (8 * i);
    }
    return r;
}
EMU_IN unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) { return (unsigned)((((unsigned long long)hi << 32 | lo) << (s & 31)) >> 32); }
EMU_IN unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned s) { return (unsigned)(((unsigned long long)hi << 32 | lo) >> (s & 31)); }
EMU_IN unsigned __sad(int a, int b, unsigned c) { return c + (unsigned)(a > b ? (long long)a - b : (long long)b - a); }
EMU_IN int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (signed char)(a >> 8 * i) * (signed char)(b >> 8 * i);
    return c;
}

// ---- the same bits as another type, and conversions with a named rounding

EMU_IN int __float_as_int(float x) { return emu_from_bits<int>(emu_bits(x)); }
EMU_IN unsigned __float_as_uint(float x) { return emu_from_bits<unsigned>(emu_bits(x)); }
EMU_IN float __int_as_float(int x) { return emu_from_bits<float>(emu_bits(x)); }
EMU_IN float __uint_as_float(unsigned x) { return emu_from_bits<float>(emu_bits(x)); }
EMU_IN long long __double_as_longlong(double x) { return emu_from_bits<long long>(emu_bits(x)); }
EMU_IN double __longlong_as_double(long long x) { return emu_from_bits<double>(emu_bits(x)); }
EMU_IN int __double2hiint(double x) { return (int)(emu_bits(x) >> 32); }
EMU_IN int __double2loint(double x) { return (int)emu_bits(x); }
EMU_IN double __hiloint2double(int hi, int lo) { return emu_from_bits<double>((unsigned long long)(unsigned)hi << 32 | (unsigned)lo); }
// The hardware's conversions saturate, and take NaN to 0; a C++ cast out of range is undefined.
template <class T> EMU_IN T emu_saturate(double x, double lo, double hi, T least, T most) {
    if (x != x) return 0;
    return x <= lo ? least : x >= hi ? most : (T)x;
}
EMU_IN int emu_to_int(double x) { return emu_saturate<int>(x, -2147483648.0, 2147483647.0, -2147483647 - 1, 2147483647); }
EMU_IN unsigned emu_to_uint(double x) { return emu_saturate<unsigned>(x, 0.0, 4294967295.0, 0u, 4294967295u); }
EMU_IN long long emu_to_ll(double x) { return emu_saturate<long long>(x, -9223372036854775808.0, 9223372036854775807.0, (-9223372036854775807ll - 1), 9223372036854775807ll); }
#define EMU_CONV(from, F)                                                                                                       \
    EMU_IN int __##from##2int_rn(F x) { return emu_to_int(__builtin_rint(x)); }                                                 \
    EMU_IN int __##from##2int_rz(F x) { return emu_to_int(__builtin_trunc(x)); }                                                \
    EMU_IN int __##from##2int_rd(F x) { return emu_to_int(__builtin_floor(x)); }                                                \
    EMU_IN int __##from##2int_ru(F x) { return emu_to_int(__builtin_ceil(x)); }                                                 \
    EMU_IN unsigned __##from##2uint_rn(F x) { return emu_to_uint(__builtin_rint(x)); }                                          \
    EMU_IN unsigned __##from##2uint_rz(F x) { return emu_to_uint(__builtin_trunc(x)); }                                         \
    EMU_IN unsigned __##from##2uint_rd(F x) { return emu_to_uint(__builtin_floor(x)); }                                         \
    EMU_IN unsigned __##from##2uint_ru(F x) { return emu_to_uint(__builtin_ceil(x)); }                                          \
    EMU_IN long long __##from##2ll_rn(F x) { return emu_to_ll(__builtin_rint(x)); }                                             \
    EMU_IN long long __##from##2ll_rz(F x) { return emu_to_ll(__builtin_trunc(x)); }
EMU_CONV(float, float) EMU_CONV(double, double)
#undef EMU_CONV
EMU_IN float __int2float_rn(int x) { return (float)x; }
EMU_IN float __uint2float_rn(unsigned x) { return (float)x; }
EMU_IN float __ll2float_rn(long long x) { return (float)x; }
EMU_IN float __ull2float_rn(unsigned long long x) { return (float)x; }
EMU_IN double __int2double_rn(int x) { return x; }
EMU_IN double __uint2double_rn(unsigned x) { return x; }
EMU_IN double __ll2double_rn(long long x) { return (double)x; }
EMU_IN float __double2float_rn(double x) { return (float)x; }
EMU_IN float __double2float_rz(double x) {
    float f = (float)x;
    if (__builtin_fabs((double)f) > __builtin_fabs(x)) f = __int_as_float(__float_as_int(f) - 1);
    return f;
}

// These are never contracted into a fused multiply-add: the result passes through an empty asm.
#if defined(__x86_64__)
#define EMU_OPAQUE(r) asm("" : "+x"(r))
#else
#define EMU_OPAQUE(r) asm("" : "+w"(r))
#endif
#define EMU_RN(name, T, a, b, expr) EMU_IN T name(T a, T b) { T r = expr; EMU_OPAQUE(r); return r; }
EMU_RN(__fmul_rn, float, a, b, a * b)
EMU_RN(__fadd_rn, float, a, b, a + b)
EMU_RN(__fsub_rn, float, a, b, a - b)
EMU_RN(__fdiv_rn, float, a, b, a / b)
EMU_RN(__dmul_rn, double, a, b, a * b)
EMU_RN(__dadd_rn, double, a, b, a + b)
EMU_RN(__dsub_rn, double, a, b, a - b)
EMU_RN(__ddiv_rn, double, a, b, a / b)
#undef EMU_RN
EMU_IN float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
EMU_IN double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
EMU_IN float __frcp_rn(float x) { return 1.0f / x; }
EMU_IN double __drcp_rn(double x) { return 1.0 / x; }
EMU_IN float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
EMU_IN double __dsqrt_rn(double x) { return __builtin_sqrt(x); }
EMU_IN float __frsqrt_rn(float x) { return (float)(1.0 / __builtin_sqrt((double)x)); }

// ---- loads and stores with a cache hint are loads and stores

#define EMU_LOAD(name) template <class T> EMU_IN T name(const T* p) { return *p; }
EMU_LOAD(__ldg) EMU_LOAD(__ldcs) EMU_LOAD(__ldca) EMU_LOAD(__ldcg) EMU_LOAD(__ldlu) EMU_LOAD(__ldcv)
#undef EMU_LOAD
template <class T> struct emu_same { typedef T type; };
#define EMU_STORE(name) template <class T> EMU_IN void name(T* p, typename emu_same<T>::type v) { *p = v; }
EMU_STORE(__stcs) EMU_STORE(__stcg) EMU_STORE(__stwb) EMU_STORE(__stwt)
#undef EMU_STORE

// ---- atomics: blocks run on several host threads, so these are real ones

template <class T, class U, class Op> EMU_IN T emu_atomic(T* p, Op op) {
    static_assert(sizeof(T) == sizeof(U), "");
    U* q = reinterpret_cast<U*>(p);
    U old = __atomic_load_n(q, __ATOMIC_RELAXED);
    for (;;) {
        U now = (U)emu_bits(op(emu_from_bits<T>(old)));
        if (__atomic_compare_exchange_n(q, &old, now, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) return emu_from_bits<T>(old);
    }
}
#define EMU_ATOMIC(T, U)                                                                                                        \
    EMU_IN T atomicAdd(T* p, T v) { return emu_atomic<T, U>(p, [=](T o) { return (T)(o + v); }); }                              \
    EMU_IN T atomicExch(T* p, T v) { return emu_atomic<T, U>(p, [=](T) { return v; }); }
#define EMU_ATOMIC_INT(T, U)                                                                                                    \
    EMU_ATOMIC(T, U)                                                                                                            \
    EMU_IN T atomicMax(T* p, T v) { return emu_atomic<T, U>(p, [=](T o) { return o > v ? o : v; }); }                           \
    EMU_IN T atomicMin(T* p, T v) { return emu_atomic<T, U>(p, [=](T o) { return o < v ? o : v; }); }                           \
    EMU_IN T atomicAnd(T* p, T v) { return emu_atomic<T, U>(p, [=](T o) { return (T)(o & v); }); }                              \
    EMU_IN T atomicOr(T* p, T v) { return emu_atomic<T, U>(p, [=](T o) { return (T)(o | v); }); }                               \
    EMU_IN T atomicXor(T* p, T v) { return emu_atomic<T, U>(p, [=](T o) { return (T)(o ^ v); }); }                              \
    EMU_IN T atomicCAS(T* p, T cmp, T v) {                                                                                      \
        U old = (U)cmp;                                                                                                         \
        __atomic_compare_exchange_n(reinterpret_cast<U*>(p), &old, (U)v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);            \
        return (T)old;                                                                                                          \
    }
EMU_ATOMIC(float, unsigned)
EMU_ATOMIC(double, unsigned long long)
EMU_ATOMIC_INT(int, unsigned)
EMU_ATOMIC_INT(unsigned, unsigned)
EMU_ATOMIC_INT(unsigned long long, unsigned long long)
#undef EMU_ATOMIC
#undef EMU_ATOMIC_INT
EMU_IN long long atomicMax(long long* p, long long v) { return emu_atomic<long long, unsigned long long>(p, [=](long long o) { return o > v ? o : v; }); }
EMU_IN long long atomicMin(long long* p, long long v) { return emu_atomic<long long, unsigned long long>(p, [=](long long o) { return o < v ? o : v; }); }
EMU_IN unsigned short atomicCAS(unsigned short* p, unsigned short cmp, unsigned short v) {
    __atomic_compare_exchange_n(p, &cmp, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return cmp;
}
EMU_IN int atomicSub(int* p, int v) { return atomicAdd(p, -v); }
EMU_IN unsigned atomicSub(unsigned* p, unsigned v) { return atomicAdd(p, 0u - v); }
EMU_IN unsigned atomicInc(unsigned* p, unsigned v) { return emu_atomic<unsigned, unsigned>(p, [=](unsigned o) { return o >= v ? 0 : o + 1; }); }
EMU_IN unsigned atomicDec(unsigned* p, unsigned v) { return emu_atomic<unsigned, unsigned>(p, [=](unsigned o) { return o == 0 || o > v ? v : o - 1; }); }
