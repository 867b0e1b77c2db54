// Tensor maps: what the driver accepts, and where each element of a box lies in global and in shared memory.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "hopper.h"

static const uint64_t map_magic = 0x70616d726f736e74ull;
static const unsigned sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
static const char* names[] = {"u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16", "f32 (flushed)", "tf32", "tf32 (flushed)"};
enum { U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16, F32_FTZ, TF32, TF32_FTZ, types };

unsigned TensorMap::element() const { return sizes[type]; }
const char* TensorMap::type_name() const { return names[type]; }
static uint64_t sum_of(const TensorMap& m) {
    uint64_t h = map_magic;
    const uint8_t* p = (const uint8_t*)&m;
    for (size_t i = 0; i < offsetof(TensorMap, sum); i++) h = (h ^ p[i]) * 0x100000001b3ull;
    return h;
}
bool TensorMap::sound() const { return magic == map_magic && sum == sum_of(*this); }

unsigned TensorMap::rows() const {
    if (im2col) return box[1];
    unsigned n = 1;
    for (int i = 1; i < rank; i++) n *= (box[i] + step[i] - 1u) / step[i];
    return n;
}

// ---- encoding. Refusals say why on stderr, since the driver's one error tells nothing.

static CUresult refuse(const char* f, const std::string& why) {
    fprintf(stderr, "hadal emulator: %s: %s\n", f, why.c_str());
    return CUDA_ERROR_INVALID_VALUE;
}

static CUresult encode(const char* f, TensorMap& m, void* out, int type, unsigned rank, void* address, const uint64_t* extent, const uint64_t* strides,
                       const unsigned* steps, int interleave, int swizzle, int promotion, int fill) {
    if (!out || (uintptr_t)out % 64) return refuse(f, "the map must lie at a multiple of 64 bytes");
    if (type < 0 || type >= types) return refuse(f, "no such data type");
    if (!extent || !steps || (rank > 1 && !strides)) return refuse(f, "a null pointer");
    if (interleave < 0 || interleave > 2 || swizzle < 0 || swizzle > 3 || promotion < 0 || promotion > 3 || fill < 0 || fill > 1) return refuse(f, "no such interleave, swizzle, promotion or fill");
    if (interleave) {
        fprintf(stderr, "hadal emulator: %s: interleaved layouts are not emulated\n", f);
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if ((uintptr_t)address % 16) return refuse(f, "the tensor's address must be a multiple of 16");
    if (fill && type < F16) return refuse(f, "NaN fills floating-point types only");
    m.magic = map_magic;
    m.address = (uint64_t)address;
    m.type = (uint8_t)type, m.rank = (uint8_t)rank, m.swizzle = (uint8_t)swizzle, m.nan = (uint8_t)fill;
    for (unsigned i = 0; i < rank; i++) {
        if (!extent[i] || extent[i] > 1ull << 32) return refuse(f, "extent " + std::to_string(i) + " is not in 1..2^32");
        m.extent[i] = (uint32_t)(extent[i] - 1);
        if (steps[i] < 1 || steps[i] > 8) return refuse(f, "element stride " + std::to_string(i) + " is not in 1..8");
        m.step[i] = i ? (uint8_t)steps[i] : 1;
    }
    for (unsigned i = 0; i + 1 < rank; i++) {
        if (strides[i] % 16 || strides[i] >= 1ull << 40) return refuse(f, "stride " + std::to_string(i) + " is no multiple of 16 bytes below 2^40");
        m.strides[i] = strides[i];
    }
    return CUDA_SUCCESS;
}
static CUresult finish(const char* f, TensorMap& m, void* out) {
    static const unsigned spans[] = {0, 32, 64, 128};
    if (m.row_bytes() % 16) return refuse(f, "a row of the box must have a multiple of 16 bytes");
    if (m.swizzle && m.row_bytes() > spans[m.swizzle]) return refuse(f, "a row of the box is longer than the swizzle's " + std::to_string(spans[m.swizzle]) + " bytes");
    m.sum = sum_of(m);
    memset(out, 0, 128);
    memcpy(out, &m, sizeof m);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuTensorMapEncodeTiled(void* out, int type, unsigned rank, void* address, const uint64_t* extent, const uint64_t* strides, const unsigned* box,
                                       const unsigned* steps, int interleave, int swizzle, int promotion, int fill) {
    ENTER();
    const char* f = "cuTensorMapEncodeTiled";
    count(Encodes);
    if (settings().cc_major < 9) return CUDA_ERROR_NOT_SUPPORTED;
    if (rank < 1 || rank > 5) return refuse(f, "the rank is not in 1..5");
    TensorMap m;
    memset((void*)&m, 0, sizeof m);
    if (CUresult e = encode(f, m, out, type, rank, address, extent, strides, steps, interleave, swizzle, promotion, fill)) return e;
    if (!box) return refuse(f, "a null pointer");
    for (unsigned i = 0; i < rank; i++) {
        if (box[i] < 1 || box[i] > 256) return refuse(f, "extent " + std::to_string(i) + " of the box is not in 1..256");
        m.box[i] = (uint16_t)box[i];
    }
    return finish(f, m, out);
}
EXPORT CUresult cuTensorMapEncodeIm2col(void* out, int type, unsigned rank, void* address, const uint64_t* extent, const uint64_t* strides, const int* lower,
                                        const int* upper, unsigned channels, unsigned pixels, const unsigned* steps, int interleave, int swizzle, int promotion,
                                        int fill) {
    ENTER();
    const char* f = "cuTensorMapEncodeIm2col";
    count(Encodes);
    if (settings().cc_major < 9) return CUDA_ERROR_NOT_SUPPORTED;
    if (rank < 3 || rank > 5) return refuse(f, "the rank is not in 3..5");
    TensorMap m;
    memset((void*)&m, 0, sizeof m);
    if (CUresult e = encode(f, m, out, type, rank, address, extent, strides, steps, interleave, swizzle, promotion, fill)) return e;
    if (!lower || !upper) return refuse(f, "a null pointer");
    int limit = rank == 3 ? 1 << 15 : rank == 4 ? 1 << 7 : 1 << 4;
    for (unsigned i = 0; i < rank - 2; i++) {
        if (lower[i] < -limit || lower[i] >= limit || upper[i] < -limit || upper[i] >= limit)
            return refuse(f, "a corner of the bounding box is not in -" + std::to_string(limit) + ".." + std::to_string(limit - 1));
        m.lower[i] = (int16_t)lower[i], m.upper[i] = (int16_t)upper[i];
    }
    if (channels < 1 || channels > 256) return refuse(f, "the channels of a pixel are not in 1..256");
    if (pixels < 1 || pixels > 1024) return refuse(f, "the pixels of a column are not in 1..1024");
    m.box[0] = (uint16_t)channels, m.box[1] = (uint16_t)pixels;
    m.im2col = 1;
    return finish(f, m, out);
}
EXPORT CUresult cuTensorMapReplaceAddress(void* map, void* address) {
    TensorMap m;
    if (!map || (uintptr_t)map % 64) return CUDA_ERROR_INVALID_VALUE;
    memcpy((void*)&m, map, sizeof m);
    if (!m.sound() || (uintptr_t)address % 16) return CUDA_ERROR_INVALID_VALUE;
    m.address = (uint64_t)address;
    m.sum = sum_of(m);
    memcpy(map, &m, sizeof m);
    return CUDA_SUCCESS;
}

// ---- places

unsigned TensorMap::place(unsigned offset, unsigned at) const {
    unsigned p = offset + at;
    // Bits 4.. of the shared-memory address itself, by those from 7 on: nothing depends on where the box begins.
    static const unsigned masks[] = {0, 1, 3, 7};
    return p ^ (p >> 7 & masks[swizzle]) << 4;
}

void TensorMap::each_row(const int* coordinates, const int* offsets, const std::function<void(unsigned, uint64_t, unsigned, unsigned)>& f) const {
    // The elements of a row that exist; the coordinate may be negative.
    long long c0 = coordinates[0], from = c0 < 0 ? -c0 : 0, to = (long long)extent[0] + 1 - c0;
    if (to > box[0]) to = box[0];
    if (from > to) from = to = 0;
    unsigned n = rows(), spatial = rank - 2u;
    long long p[5], begin[5];
    for (int i = 0; i < rank; i++) begin[i] = p[i] = coordinates[i];
    if (im2col)
        for (unsigned i = 0; i < spatial; i++)
            if (p[i + 1] < lower[i] || p[i + 1] > (long long)extent[i + 1] + upper[i])
                fault(CUDA_ERROR_LAUNCH_FAILED, "an im2col copy from coordinate " + std::to_string(p[i + 1]) + " of axis " + std::to_string(i + 1) + ": outside of the bounding box");
    for (unsigned row = 0; row < n; row++) {
        uint64_t a = address + (uint64_t)(c0 * (long long)element());
        bool inside = true;
        for (int i = 1; i < rank; i++) {
            long long at = p[i] + (im2col && offsets && i <= (int)spatial ? offsets[i - 1] : 0);
            inside &= at >= 0 && at <= (long long)extent[i];
            a += (uint64_t)at * strides[i - 1];
        }
        f(row, a, inside ? (unsigned)from : 0, inside ? (unsigned)to : 0);
        for (int i = 1; i < rank; i++) {
            p[i] += step[i];
            if (im2col) {
                if (i == rank - 1 || p[i] <= (long long)extent[i] + upper[i - 1]) break;
                p[i] = lower[i - 1];
            } else {
                if (p[i] < begin[i] + box[i]) break;
                p[i] = begin[i];
            }
        }
    }
}

static void check_global(uint64_t p, unsigned bytes, bool write) {
    Alloc* a = memory::find(p);
    if (a && a->live && p >= a->start && p + bytes <= a->start + a->size) return;
    if (!a && memory::in_ranges(p, bytes)) return;
    fault(CUDA_ERROR_ILLEGAL_ADDRESS, std::string("illegal ") + (write ? "write" : "read") + " by a tensor copy: " + memory::describe(p, bytes));
}
static void check_swizzle(const TensorMap& m) {
    static const unsigned spans[] = {0, 32, 64, 128};
    if (m.swizzle && m.row_bytes() != spans[m.swizzle])
        fault(CUDA_ERROR_NOT_SUPPORTED, "a box whose rows are shorter than the swizzle's span: where they lie is not documented, and not emulated");
}

static float flushed(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0, x) : x; }

void TensorMap::load(uint8_t* out, unsigned offset, const int* coordinates, const int* offsets) const {
    check_swizzle(*this);
    unsigned e = element(), length = row_bytes();
    each_row(coordinates, offsets, [&](unsigned row, uint64_t a, unsigned from, unsigned to) {
        alignas(16) uint8_t line[256 * 8];
        memset(line, nan ? 0xFF : 0, length);
        if (from < to) {
            check_global(a + from * e, (to - from) * e, false);
            memcpy(line + from * e, (const void*)(a + from * e), (to - from) * e);
            auto* words = (uint32_t*)line;
            for (unsigned i = from; i < to && type >= F32_FTZ; i++) {
                float x;
                memcpy(&x, words + i, 4);
                if (type != TF32) x = flushed(x);
                memcpy(words + i, &x, 4);
                // To the nearest; which way ties go is not documented.
                if (type >= TF32 && std::isfinite(x)) words[i] = (words[i] + 0x1000) & 0xffffe000;
            }
        }
        for (unsigned i = 0; i < length; i += 16) memcpy(out + (place(offset, row * length + i) - offset), line + i, 16);
    });
}

static uint16_t f32_to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if (f != f) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static void add_element(int type, void* to, const void* from) {
    auto add = [&](auto zero) {
        decltype(zero) a, b;
        memcpy(&a, to, sizeof a), memcpy(&b, from, sizeof b);
        a = (decltype(zero))(a + b);
        memcpy(to, &a, sizeof a);
    };
    uint16_t a, b;
    switch (type) {
    case U32: case S32: return add(uint32_t());
    case U64: return add(uint64_t());
    case F32: case F32_FTZ: return add(float());
    case F16:
        memcpy(&a, to, 2), memcpy(&b, from, 2);
        a = emu_f32_to_f16(emu_f16_to_f32(a) + emu_f16_to_f32(b));
        memcpy(to, &a, 2);
        return;
    case BF16: {
        memcpy(&a, to, 2), memcpy(&b, from, 2);
        uint32_t ua = (uint32_t)a << 16, ub = (uint32_t)b << 16;
        float x, y;
        memcpy(&x, &ua, 4), memcpy(&y, &ub, 4);
        a = f32_to_bf16(x + y);
        memcpy(to, &a, 2);
        return;
    }
    default: fault(CUDA_ERROR_NOT_SUPPORTED, std::string("a reducing store adds no ") + names[type]);
    }
}

static std::mutex adding;      // blocks run on several host threads

void TensorMap::store(const uint8_t* in, unsigned offset, const int* coordinates, bool add) const {
    check_swizzle(*this);
    unsigned e = element(), length = row_bytes();
    each_row(coordinates, nullptr, [&](unsigned row, uint64_t a, unsigned from, unsigned to) {
        if (from >= to) return;
        alignas(16) uint8_t line[256 * 8];
        for (unsigned i = 0; i < length; i += 16) memcpy(line + i, in + (place(offset, row * length + i) - offset), 16);
        check_global(a + from * e, (to - from) * e, true);
        if (!add) {
            memcpy((void*)(a + from * e), line + from * e, (to - from) * e);
            return;
        }
        std::lock_guard<std::mutex> g(adding);
        for (unsigned i = from; i < to; i++) add_element(type, (void*)(a + i * e), line + i * e);
    });
}
