// The warp's matrix instructions and asynchronous copies, as kernels/ptx.cuh wraps them.
#include <cstring>

#include "block.h"

// ---- cp.async: the data is taken at once and delivered at the wait. Until then the destination holds NaNs, so that a
// kernel which forgets to wait shows it.

extern "C" void emu_cp_async(emu_thread* self, void* dst, const void* src, int bytes, int src_bytes) {
    Fiber* f = (Fiber*)self;
    if ((uintptr_t)dst % (unsigned)bytes || (src_bytes && (uintptr_t)src % (unsigned)bytes))
        fault(CUDA_ERROR_MISALIGNED_ADDRESS, "cp.async of " + std::to_string(bytes) + " bytes from or to an address that is not a multiple of it");
    if (src_bytes < 0 || src_bytes > bytes) fault(CUDA_ERROR_LAUNCH_FAILED, "cp.async with a source size beyond its own");
    char* shared = f->block->shared;
    if ((char*)dst < shared || (char*)dst >= shared + static_base + static_room + dynamic_room + 8192)
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, "cp.async to a place outside of shared memory");
    PendingCopy c;
    c.dst = (char*)dst;
    c.bytes = (unsigned)bytes;
    c.group = f->copy_group;
    hooks_access((uintptr_t)src, (unsigned)src_bytes, false);
    hooks_access((uintptr_t)dst, (unsigned)bytes, true);
    memset(c.data, 0, sizeof c.data);
    memcpy(c.data, src, (size_t)src_bytes);
    memset(dst, 0xFF, (size_t)bytes);
    f->copies.push_back(c);
}
extern "C" void emu_cp_async_commit(emu_thread* self) { ((Fiber*)self)->copy_group++; }
extern "C" void emu_cp_async_wait(emu_thread* self, int pending) {
    Fiber* f = (Fiber*)self;
    // A negative count is wait_all: it takes what was never committed, too.
    size_t k = 0;
    for (; k < f->copies.size(); k++) {
        PendingCopy& c = f->copies[k];
        if (pending >= 0 && c.group + (unsigned)pending >= f->copy_group) break;
        hooks_access((uintptr_t)c.dst, c.bytes, true);
        memcpy(c.dst, c.data, c.bytes);
    }
    f->copies.erase(f->copies.begin(), f->copies.begin() + (long)k);
}

// ---- numbers

extern "C" float emu_f16_to_f32(unsigned short h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023, u;
    if (e == 31) {
        u = sign | 0x7f800000 | m << 13;
    } else if (e) {
        u = sign | (e + 112) << 23 | m << 13;
    } else if (!m) {
        u = sign;
    } else {
        int s = __builtin_clz(m) - 21;
        u = sign | (uint32_t)(113 - s) << 23 | (m << s & 1023) << 13;
    }
    float f;
    memcpy(&f, &u, 4);
    return f;
}
extern "C" unsigned short emu_f32_to_f16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    uint32_t sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) return 0x7fff;                          // NaN: cvt.rn.f16.f32 gives this one
    if (a >= 0x477ff000) return (unsigned short)(sign | 0x7c00);
    if (a < 0x33000000) return (unsigned short)sign;
    if (a < 0x38800000) {                                       // subnormal
        uint32_t shift = 126 - (a >> 23), m = (a & 0x7fffff) | 0x800000, r = m >> shift, rest = m & ((1u << shift) - 1), half = 1u << (shift - 1);
        if (rest > half || (rest == half && r & 1)) r++;
        return (unsigned short)(sign | r);
    }
    uint32_t r = (a - 0x38000000) >> 13, rest = a & 0x1fff;
    if (rest > 0x1000 || (rest == 0x1000 && r & 1)) r++;
    return (unsigned short)(sign | r);
}
static float bf16(uint32_t h) {
    h <<= 16;
    float f;
    memcpy(&f, &h, 4);
    return f;
}

// ---- mma.sync m16n8k8 and m16n8k16: the last lane to arrive computes the warp's product. Lane = 4*group + t holds
//   A  rows group and group+8, B  column group, D  rows group, group+8, columns 2t, 2t+1.
// Products are exact; they are added in f32 in the order of k, which the hardware does not promise.

extern "C" void emu_warp_mma(unsigned long long* slots, unsigned present) {
    if (present != 0xffffffffu) fault(CUDA_ERROR_LAUNCH_FAILED, "mma needs all 32 lanes of its warp");
    float a[16][16], b[16][8], d[16][8];
    emu_mma* first = (emu_mma*)slots[0];
    int type = first->type, K = first->k;
    for (int lane = 0; lane < 32; lane++) {
        emu_mma& m = *(emu_mma*)slots[lane];
        if (m.type != type || m.k != K) fault(CUDA_ERROR_LAUNCH_FAILED, "lanes of one warp meet at different mma instructions");
        int g = lane >> 2, t = lane & 3;
        if (type == 2) {                                        // tf32: a number is a register, its low 13 bits are ignored
            auto tf = [](unsigned u) { u &= 0xffffe000; float f; memcpy(&f, &u, 4); return f; };
            for (int i = 0; i < (K == 4 ? 2 : 4); i++) a[g + (i & 1) * 8][t + (i >> 1) * 4] = tf(m.a[i]);
            for (int i = 0; i < (K == 4 ? 1 : 2); i++) b[t + i * 4][g] = tf(m.b[i]);
        } else {
            for (int i = 0; i < (K == 8 ? 2 : 4); i++)
                for (int h = 0; h < 2; h++) {
                    unsigned u = m.a[i] >> (16 * h) & 0xffff;
                    a[g + (i & 1) * 8][2 * t + h + (i >> 1) * 8] = type == 0 ? bf16(u) : emu_f16_to_f32((unsigned short)u);
                }
            for (int i = 0; i < (K == 8 ? 1 : 2); i++)
                for (int h = 0; h < 2; h++) {
                    unsigned u = m.b[i] >> (16 * h) & 0xffff;
                    b[2 * t + h + i * 8][g] = type == 0 ? bf16(u) : emu_f16_to_f32((unsigned short)u);
                }
        }
        for (int i = 0; i < 4; i++) d[g + (i >> 1) * 8][2 * t + (i & 1)] = m.d[i];
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < K; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; lane++) {
        emu_mma& m = *(emu_mma*)slots[lane];
        int g = lane >> 2, t = lane & 3;
        for (int i = 0; i < 4; i++) m.d[i] = d[g + (i >> 1) * 8][2 * t + (i & 1)];
    }
}

// ---- ldmatrix, stmatrix: lanes 0-7 give the rows of matrix 0, 8-15 of matrix 1 and so on; lane 4*r + c gets row r,
// columns 2c, 2c+1.

static void check_row(const char* row) {
    if ((uintptr_t)row % 16) fault(CUDA_ERROR_MISALIGNED_ADDRESS, "ldmatrix or stmatrix with a row that is not at a multiple of 16 bytes");
    char* shared = current_worker->block.shared;
    if (row < shared || row >= shared + static_base + static_room + dynamic_room + 8192)
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, "ldmatrix or stmatrix with a row outside of shared memory");
}
extern "C" void emu_warp_ldmatrix(unsigned long long* slots, unsigned present) {
    if (present != 0xffffffffu) fault(CUDA_ERROR_LAUNCH_FAILED, "ldmatrix needs all 32 lanes of its warp");
    emu_ldmatrix& f = *(emu_ldmatrix*)slots[0];
    for (int i = 0; i < f.count; i++) {
        unsigned short m[8][8];
        for (int r = 0; r < 8; r++) {
            const char* row = ((emu_ldmatrix*)slots[i * 8 + r])->row;
            check_row(row);
            hooks_access_as((unsigned)(i * 8 + r), (uintptr_t)row, 16, false);
            memcpy(m[r], row, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            int r = lane >> 2, c = lane & 3;
            unsigned lo = f.trans ? m[2 * c][r] : m[r][2 * c], hi = f.trans ? m[2 * c + 1][r] : m[r][2 * c + 1];
            ((emu_ldmatrix*)slots[lane])->r[i] = lo | hi << 16;
        }
    }
}
extern "C" void emu_warp_stmatrix(unsigned long long* slots, unsigned present) {
    if (present != 0xffffffffu) fault(CUDA_ERROR_LAUNCH_FAILED, "stmatrix needs all 32 lanes of its warp");
    emu_ldmatrix& f = *(emu_ldmatrix*)slots[0];
    for (int i = 0; i < f.count; i++) {
        unsigned short m[8][8];
        for (int lane = 0; lane < 32; lane++) {
            int r = lane >> 2, c = lane & 3;
            unsigned v = ((emu_ldmatrix*)slots[lane])->r[i];
            (f.trans ? m[2 * c][r] : m[r][2 * c]) = (unsigned short)v;
            (f.trans ? m[2 * c + 1][r] : m[r][2 * c + 1]) = (unsigned short)(v >> 16);
        }
        for (int r = 0; r < 8; r++) {
            char* row = (char*)((emu_ldmatrix*)slots[i * 8 + r])->row;
            check_row(row);
            hooks_access_as((unsigned)(i * 8 + r), (uintptr_t)row, 16, true);
            memcpy(row, m[r], 16);
        }
    }
}

extern "C" unsigned long long emu_clock() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (unsigned long long)t.tv_sec * 1000000000ull + (unsigned long long)t.tv_nsec;
}
