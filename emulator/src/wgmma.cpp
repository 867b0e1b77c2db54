// wgmma. A product is computed when the last of its warpgroup's 128 threads has issued it, from what shared memory holds
// then; each thread gets its accumulators at the wait that covers it, and finds NaNs in them until then. When the first thread
// has waited, the operands must still be what they were.
#if defined(__F16C__)
#include <immintrin.h>
#endif
#include <algorithm>
#include <cstring>

#include "hopper.h"

// ---- operands

namespace {
// A matrix in shared memory as its descriptor tells: `rows` of M or N and 32 bytes (or, MN-major, 16 numbers) of K.
struct Operand {
    Worker* w;
    unsigned start, leading, stride, base, mode;
    unsigned low, high;                 // of dynamic shared memory
    const Product* p;

    Operand(Worker* w, unsigned long long d, const Product* p) : w(w), p(p) {
        // The hardware's field has 14 bits for an address of 18; in source mode the emulator's shared memory is longer, and its field two
        // bits wider, which the layout leaves unused.
        start = (unsigned)(d & 0xffff) << 4;
        leading = (unsigned)(d >> 16 & 0x3fff) << 4;
        stride = (unsigned)(d >> 32 & 0x3fff) << 4;
        base = (unsigned)(d >> 49 & 7);
        mode = (unsigned)(d >> 62);
        low = (unsigned)(w->block.dynamic - w->block.shared);
        high = low + w->launch->dynamic_shared;
    }
    unsigned units() const { return mode == 0 ? 1 : 16u >> mode; }      // of 16 bytes in the swizzle's span
    // 16 bytes; the swizzle changes the address's own bits 4.. by those from 7 on.
    const uint8_t* chunk(unsigned a) const {
        if (mode) a ^= (((a >> 7) - base) & (units() - 1)) << 4;
        if ((a < low || a + 16 > high) && !in_shared(w, a, 16))
            fault(CUDA_ERROR_ILLEGAL_ADDRESS, "wgmma reads outside of shared memory, at byte " + std::to_string((long long)a - low) + " of the dynamic part" + at(p->file, p->line));
        return (const uint8_t*)w->block.shared + a;
    }
    unsigned k_major(unsigned row, unsigned c) const {
        return start + row / 8 * stride + row % 8 * 16 * units() + c * (mode ? 16 : leading);
    }
    unsigned mn_major(unsigned k, unsigned unit) const {
        if (!mode) return start + unit * stride + k % 8 * 16 + k / 8 * leading;
        unsigned u = units();
        return start + unit % u * 16 + unit / u * leading + k % 8 * 16 * u + k / 8 * stride;
    }
    template <class F> void each(bool transposed, unsigned rows, F f) const {
        if (!transposed) {
            for (unsigned r = 0; r < rows; r++)
                for (unsigned c = 0; c < 2; c++) f(r, c, chunk(k_major(r, c)));
        } else {
            for (unsigned k = 0; k < 16; k++)
                for (unsigned u = 0; u < rows / 8; u++) f(k, u, chunk(mn_major(k, u)));
        }
    }
};

struct Numbers { float v[8]; };
}

static inline float bits_to_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
// The 8 or 4 numbers of 16 bytes.
static inline Numbers decode(int type, const uint8_t* p) {
    Numbers n;
    if (type == 2) {
        // What tf32 does not hold is cut off, not rounded.
        for (int i = 0; i < 4; i++) {
            uint32_t u;
            memcpy(&u, p + 4 * i, 4);
            n.v[i] = bits_to_f32(u & 0xffffe000);
        }
        return n;
    }
#if defined(__F16C__)
    if (type == 1) {
        _mm256_storeu_ps(n.v, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
        return n;
    }
#endif
    for (int i = 0; i < 8; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        n.v[i] = type == 0 ? bits_to_f32((uint32_t)h << 16) : emu_f16_to_f32(h);
    }
    return n;
}

static uint64_t sum_operands(Worker* w, const Product& p) {
    uint64_t h = 1;
    auto add = [&](unsigned, unsigned, const uint8_t* c) {
        uint64_t x, y;
        memcpy(&x, c, 8), memcpy(&y, c + 8, 8);
        h = (h ^ x) * 0x9E3779B97F4A7C15ull + (y ^ h >> 29);
    };
    if (!p.op.a_in_registers) Operand(w, p.op.a, &p).each(p.op.trans_a, 64, add);
    Operand(w, p.op.b, &p).each(p.op.trans_b, (unsigned)p.op.n, add);
    return h;
}

// ---- the product: 64 x K by K x n, K being 16 (8 of tf32). Products of two numbers are exact. They and the sum so far are added
// as tensor cores do, which is measured, not documented: all at once, each cut off where the largest has its 25th bit, the result where it
// has its own 24th. (One bit less than what has been found on Hopper.)

typedef float V __attribute__((vector_size(64), aligned(4), may_alias));
typedef int I __attribute__((vector_size(64), aligned(4), may_alias));

static inline V add_cut(const V* terms, unsigned count) {
    const I sign = I{} + 0x7fffffff, infinite = I{} + 0x7f800000;
    I top = I{};
    for (unsigned k = 0; k < count; k++) {
        I size = (I)terms[k] & sign;
        top = size > top ? size : top;
    }
    // In units of 2^-24 of the largest one's power of two; those of the smallest numbers stay normal ones.
    I power = top & infinite, least = I{} + (25 << 23);
    I strange = power == infinite;
    power = strange | (power < least) ? least : power;
    const V scale = (V)(I{} + (278 << 23) - power), unit = (V)(power - (24 << 23));
    I all = I{};
    V plain = V{};
    for (unsigned k = 0; k < count; k++) {
        all += __builtin_convertvector(strange ? V{} : terms[k] * scale, I);
        plain += terms[k];
    }
    V sum = __builtin_convertvector(all, V);
    I back = __builtin_convertvector(sum, I);
    I further = ((back < 0 ? -back : back) > (all < 0 ? -all : all));     // -1 where it was rounded up
    return strange ? plain : (V)((I)sum + further) * unit;
}

static void __attribute__((noinline)) compute(Worker* w, Product& p, Tile& t) {
    alignas(64) float a[64][16], b[16][272];
    const emu_wgmma& op = p.op;
    unsigned n = (unsigned)op.n, K = op.type == 2 ? 8 : 16, per = K / 2;
    bool race = settings().race;
    unsigned thread = w->running->index;
    auto look = [&](const uint8_t* c) {
        if (race) hooks_engine(w, thread, (unsigned)((const char*)c - w->block.shared), 16, false);
    };
    if (op.a_in_registers) {
        for (unsigned i = 0; i < 128; i++) {
            unsigned row = i / 32 * 16 + i % 32 / 4, q = i % 4;
            for (unsigned x = 0; x < 4; x++) {
                unsigned u = p.a[i * 4 + x], r = row + (x & 1) * 8;
                if (op.type == 2) {
                    a[r][q + x / 2 * 4] = bits_to_f32(u & 0xffffe000);
                } else {
                    for (unsigned h = 0; h < 2; h++) {
                        uint16_t v = (uint16_t)(u >> 16 * h);
                        a[r][2 * q + h + x / 2 * 8] = op.type == 0 ? bits_to_f32((uint32_t)v << 16) : emu_f16_to_f32(v);
                    }
                }
            }
        }
    } else {
        Operand(w, op.a, &p).each(op.trans_a, 64, [&](unsigned i, unsigned j, const uint8_t* c) {
            look(c);
            Numbers v = decode(op.type, c);
            if (op.trans_a) for (unsigned x = 0; x < 8; x++) a[j * 8 + x][i] = v.v[x];
            else for (unsigned x = 0; x < per; x++) a[i][j * per + x] = v.v[x];
        });
    }
    Operand(w, op.b, &p).each(op.trans_b, n, [&](unsigned i, unsigned j, const uint8_t* c) {
        look(c);
        Numbers v = decode(op.type, c);
        if (op.trans_b) memcpy(&b[i][j * 8], v.v, 32);
        else for (unsigned x = 0; x < per; x++) b[j * per + x][i] = v.v[x];
    });
    if (n % 16)
        for (unsigned k = 0; k < K; k++) memset(&b[k][n], 0, 32);
    if (op.scale_a * op.scale_b < 0)
        for (auto& r : a)
            for (unsigned k = 0; k < K; k++) r[k] = -r[k];
    bool fresh = !op.scale_d;
    for (unsigned j = 0; j < n; j += 16)
        for (unsigned i = 0; i < 64; i++) {
            V* sum = (V*)&t.sum[i][j];
            V terms[17];
            for (unsigned k = 0; k < K; k++) terms[k] = a[i][k] * *(const V*)&b[k][j];
            terms[K] = fresh ? V{} : *sum;
            *sum = add_cut(terms, K + 1);
        }
}

// ---- a thread's accumulators: register i of lane l of warp w is row 16w + l/4 (+8), column 8(i/4) + 2(l%4) + i%2.

static void take(Tile& t, unsigned index, const float* d, int n) {
    unsigned row = index % 128 / 32 * 16 + index % 32 / 4, column = 2 * (index % 4);
    for (int j = 0; j < n / 8; j++) {
        memcpy(&t.sum[row][j * 8 + column], d + 4 * j, 8);
        memcpy(&t.sum[row + 8][j * 8 + column], d + 4 * j + 2, 8);
    }
}
static void give(const Tile& t, unsigned index, float* d, int n) {
    unsigned row = index % 128 / 32 * 16 + index % 32 / 4, column = 2 * (index % 4);
    for (int j = 0; j < n / 8; j++) {
        memcpy(d + 4 * j, &t.sum[row][j * 8 + column], 8);
        memcpy(d + 4 * j + 2, &t.sum[row + 8][j * 8 + column], 8);
    }
}

static uint64_t sum_of(const float* d, int n) {
    uint64_t h = 1;
    for (int i = 0; i < n / 2; i += 2) {
        uint64_t x;
        memcpy(&x, d + i, 8);
        h = (h ^ x) * 0x9E3779B97F4A7C15ull;
    }
    return h;
}

[[noreturn]] static void __attribute__((noinline)) wrong(const std::string& what, const char* file, int line) { fault(CUDA_ERROR_LAUNCH_FAILED, "wgmma" + at(file, line) + ": " + what); }

static HopperThread& thread_of(Worker* w, Fiber* f, const char* file, int line) {
    Hopper& h = hopper_of(w);
    h.threads_used = w->block.nthreads;
    if ((f->index | 127) >= w->block.nthreads) wrong("the thread belongs to no whole warpgroup of 128 threads", file, line);
    return h.threads[f->index];
}

extern "C" void emu_wgmma_issue(emu_thread* self, const emu_wgmma* op, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    HopperThread& t = thread_of(w, f, file, line);
    Warpgroup& g = w->hopper->groups[f->index / 128];
    // Bits of the descriptors that mean nothing must be 0. (In source mode an address has two bits more.)
    const unsigned long long nothing = f->worker->launch->fn->from_ptx ? 0x3ff1c000c000c000ull : 0x3ff1c000c0000000ull;
    if ((op->b | (op->a_in_registers ? 0 : op->a)) & nothing) wrong("a descriptor has bits set that mean nothing", file, line);
    if (!t.ever_fenced) wrong("no wgmma_fence before the first one", file, line);

    unsigned number = t.issued++;
    if (number - g.first == g.products.size()) {
        g.products.emplace_back();
        Product& p = g.products.back();
        p.op = *op;
        p.file = file, p.line = line;
        if (op->a_in_registers) p.a.resize(512);
    }
    Product& p = g.products[number - g.first];
    const emu_wgmma& o = p.op;
    if (o.type != op->type || o.n != op->n || o.a_in_registers != op->a_in_registers || o.trans_a != op->trans_a || o.trans_b != op->trans_b || o.scale_a != op->scale_a ||
        o.scale_b != op->scale_b || o.scale_d != op->scale_d || o.b != op->b || (!o.a_in_registers && o.a != op->a))
        wrong("the threads of the warpgroup bring different operands or are at different instructions; another is at " + std::string(p.file) + ":" + std::to_string(p.line), file, line);
    if (op->a_in_registers) memcpy(&p.a[f->index % 128 * 4], op->ra, 16);

    Held* held = nullptr;
    for (auto& h : t.held)
        if (h.d == op->d && h.n == op->n) held = &h;
        else if (h.d < op->d + op->n / 2 && op->d < h.d + h.n / 2) wrong("its accumulators overlap those of another shape that are under way: wait first", file, line);
    if (!held) {
        if (op->scale_d && !t.fenced) {
            bool same = false;
            for (auto& v : t.given) same |= v.d == op->d && v.n == op->n && v.sum == sum_of(v.d, v.n);
            if (!same) wrong("the accumulators were written without a wgmma_fence after it", file, line);
        }
        if (p.tile < 0) {
            for (size_t i = 0; i < g.tiles.size() && p.tile < 0; i++)
                if (!g.tiles[i]->holders) p.tile = (int)i;
            if (p.tile < 0) p.tile = (int)g.tiles.size(), g.tiles.emplace_back(new Tile);
        }
        Tile& tile = *g.tiles[(size_t)p.tile];
        tile.holders++;
        tile.n = op->n;
        t.held.push_back({op->d, op->n, p.tile, number});
        held = &t.held.back();
        if (op->scale_d) take(tile, f->index, op->d, op->n);
        memset(op->d, 0xFF, sizeof(float) * (size_t)op->n / 2);
    }
    if (p.tile < 0) p.tile = held->tile;
    if (p.tile != held->tile) wrong("the threads of the warpgroup bring different accumulators", file, line);
    held->last = number;

    if (++p.arrived < 128) return;
    compute(w, p, *g.tiles[(size_t)p.tile]);
    p.operands = sum_operands(w, p);
    p.done = true;
    w->hopper->given_up = 0;
    w->wake(g.waiting);
}

extern "C" bool emu_wgmma_under_way(emu_thread* self, const float* d) {
    Fiber* f = (Fiber*)self;
    for (auto& h : thread_of(f->worker, f, "wgmma", 0).held)
        if (h.d == d) return true;
    return false;
}
extern "C" void emu_wgmma_fence(emu_thread* self) {
    Fiber* f = (Fiber*)self;
    HopperThread& t = thread_of(f->worker, f, "wgmma_fence", 0);
    t.fenced = t.ever_fenced = true;
    t.given.clear();
}
extern "C" void emu_wgmma_commit(emu_thread* self, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    HopperThread& t = thread_of(f->worker, f, file, line);
    t.groups.push_back(t.issued);
}
extern "C" void emu_wgmma_wait(emu_thread* self, unsigned pending, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    HopperThread& t = thread_of(w, f, file, line);
    Warpgroup& g = w->hopper->groups[f->index / 128];
    if (t.groups.size() > pending) {
        size_t done = t.groups.size() - pending;
        t.waited = t.groups[done - 1];
        t.groups.erase(t.groups.begin(), t.groups.begin() + (long)done);
    }
    while (t.waited > g.first && (t.waited - g.first > g.products.size() || !g.products[t.waited - 1 - g.first].done)) w->block_on(f, g.waiting, WaitsWgmma, &g);
    // The first thread that goes on may set others going: until now nobody may have touched the operands.
    while (g.first < t.waited) {
        Product& p = g.products.front();
        if (p.operands != sum_operands(w, p)) wrong("the shared memory that it reads was written before wgmma_wait", p.file, p.line);
        g.products.pop_front();
        g.first++;
    }
    for (size_t i = 0; i < t.held.size();) {
        Held h = t.held[i];
        if (h.last >= t.waited) {
            i++;
            continue;
        }
        Tile& tile = *g.tiles[(size_t)h.tile];
        give(tile, f->index, h.d, h.n);
        tile.holders--;
        for (size_t k = 0; k < t.given.size();)
            if (t.given[k].d == h.d) t.given.erase(t.given.begin() + (long)k);
            else k++;
        t.given.push_back({h.d, h.n, sum_of(h.d, h.n)});
        t.held.erase(t.held.begin() + (long)i);
        t.fenced = false;
    }
}
