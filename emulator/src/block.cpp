// A block's threads as fibers: starting them, barriers, warp collectives, and what happens when nobody can go on.
#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "hopper.h"

static const size_t page = 4096, stack_size = 256 * 1024;

inline int FiberSet::next(unsigned i, unsigned words) const {
    unsigned word = (i + 1) / 64;
    if (word < words && word < max_fibers / 64) {
        uint64_t v = w[word] & (~0ull << ((i + 1) % 64));
        for (;;) {
            if (v) return (int)(word * 64 + __builtin_ctzll(v));
            if (++word == words) break;
            v = w[word];
        }
    }
    for (word = 0; word < words; word++)
        if (w[word]) return (int)(word * 64 + __builtin_ctzll(w[word]));
    return -1;
}
unsigned FiberSet::count() const {
    unsigned c = 0;
    for (auto x : w) c += __builtin_popcountll(x);
    return c;
}

std::string thread_name(const emu_block& b, unsigned i) {
    char s[64];
    snprintf(s, sizeof s, "(%u,%u,%u)", i % b.bdim.x, i / b.bdim.x % b.bdim.y, i / (b.bdim.x * b.bdim.y));
    return s;
}

Worker::Worker() : shared_at(max_shared_ids), shared_names(max_shared_ids), shared_sizes(max_shared_ids) {
    size_t body = static_base + static_room + 2 * page + dynamic_room;
    arena_len = page + body + 2 * page;
    arena = (char*)mmap(nullptr, arena_len + 65536, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    // The block's shared memory begins at a multiple of 64 KiB, so that offsets and addresses are aligned alike.
    block.shared = (char*)(((uintptr_t)arena + page + 65535) & ~(uintptr_t)65535);
    arena_len += 65536;
    mprotect(block.shared, static_base + static_room, PROT_READ | PROT_WRITE);
    abort_stack.reserve(64 * 1024);
    idle.clear();
    ready.clear();
    memset(&block.bid, 0, sizeof block.bid);
    block.shared_at = shared_at.data();
}
Worker::~Worker() {
    munmap(arena, arena_len);
}

static void fiber_main(void* p) {
    Fiber* f = (Fiber*)p;
    for (;;) {
        kernel_call(f->worker->launch->fn->run, f->worker->launch->args, f);
        f->worker->leave(f);
    }
}
void Worker::make_fiber(unsigned slot) {
    Fiber* f = fibers[slot].get();
    f->waits = WaitsNot;
    f->copies.clear();
    f->copy_group = 0;
    context_make(&f->context, f->stack, slot % 61 * 320, fiber_main, f);
}
Fiber* Worker::start_fiber() {
    int i = idle.next(max_fibers - 1, words);
    if (i < 0) {
        i = (int)fibers.size();
        fibers.emplace_back(new Fiber);
        Fiber* f = fibers.back().get();
        f->slot = (unsigned)i;
        words = (unsigned)i / 64 + 1;
        f->worker = this;
        f->block = &block;
        f->stack.reserve(stack_size);
        make_fiber((unsigned)i);
    }
    idle.reset((unsigned)i);
    Fiber* f = fibers[(unsigned)i].get();
    f->tid = {0, 0, 0};
    f->index = max_threads;
    return f;
}

void Worker::run_block(Launch& l, unsigned bx, unsigned by, unsigned bz) {
    begin(l, bx, by, bz);
    go();
    end();
}
void Worker::begin(Launch& l, unsigned bx, unsigned by, unsigned bz) {
    launch = &l;
    emu_block& b = block;
    b.bid = {bx, by, bz};
    b.bdim = {l.block.x, l.block.y, l.block.z};
    b.gdim = {l.grid.x, l.grid.y, l.grid.z};
    b.nthreads = l.block.x * l.block.y * l.block.z;
    b.next = 0;
    b.tracked = 0;
    b.linear = l.block.y == 1 && l.block.z == 1 && !settings().shuffle;
    waiting = 0;
    hopper_used = false;
    b.order = nullptr;
    b.cluster_dim = {1, 1, 1};
    b.cluster_rank = 0;
    cluster = nullptr;
    fresh = true;
    is_parked = false;
    if (settings().shuffle) {
        order.resize(b.nthreads);
        for (unsigned i = 0; i < b.nthreads; i++) order[i] = i;
        for (unsigned i = b.nthreads; i > 1; i--) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(order[i - 1], order[(random >> 33) % i]);
        }
        b.order = order.data();
    }
    if (ids_used) memset(shared_at.data(), 0, ids_used * sizeof(unsigned)), ids_used = 0;
    static_top = static_base;
    // Dynamic shared memory ends within 1 KiB of a page that cannot be touched, and starts at a multiple of 1 KiB, as on the
    // hardware when there is no static shared memory. What lies between is filled and looked at afterwards.
    // Kernels from PTX bring descriptors with addresses of 18 bits, and the size of their static variables: there it follows these,
    // after a page that cannot be touched.
    size_t fixed = static_base + (l.fn->from_ptx ? l.fn->static_shared.load(std::memory_order_relaxed) : static_room);
    size_t from = ((fixed + page - 1) & ~(page - 1)) + page;
    if (l.dynamic_shared) {
        size_t room = ((size_t)l.dynamic_shared + 1023) & ~(size_t)1023, pages = (room + page - 1) & ~(page - 1);
        place_dynamic(from, pages);
        b.dynamic = b.shared + from + pages - room;
        memset(b.dynamic, 0xFF, l.dynamic_shared);
        memset(b.dynamic + l.dynamic_shared, 0xA5, room - l.dynamic_shared);
    } else {
        place_dynamic(from, 0);
        b.dynamic = b.shared + from - page;     // a guard page: there is no such memory
    }
    if (settings().instrumented()) hooks_begin_block(this);
}
// Static variables end, and dynamic memory begins and ends, at pages that cannot be touched.
void Worker::place_dynamic(size_t from, size_t bytes) {
    if (from == dynamic_from && bytes == dynamic_pages) return;
    size_t all = static_base + static_room + 2 * page + dynamic_room;
    mprotect(block.shared, from - page, PROT_READ | PROT_WRITE);
    mprotect(block.shared + from - page, all - (from - page), PROT_NONE);
    if (bytes) mprotect(block.shared + from, bytes, PROT_READ | PROT_WRITE);
    dynamic_from = from, dynamic_pages = bytes;
}
void Worker::go() {
    if (is_parked) {
        context_switch(&main, &parked);
    } else {
        fresh = false;
        Fiber* f = start_fiber();
        running = f;
        context_switch(&main, &f->context);
    }
    if (!is_parked) running = nullptr;
}
void Worker::end() {
    Launch& l = *launch;
    emu_block& b = block;
    if (aborted) {
        aborted = false;
        for (unsigned i = 0; i < fibers.size(); i++) {
            make_fiber(i);
            idle.set(i);
        }
        ready.clear();
        for (unsigned i = 0; i < 16; i++)
            if (barriers_used >> i & 1) memset((void*)&barriers[i], 0, sizeof barriers[i]);
        barriers_used = 0;
        for (auto& w : warps) w.used = 0;
        registers.clear();
        return;
    }
    for (unsigned i = 0; i < (b.nthreads + 31) / 32; i++) warps[i].used = 0;
    if (hopper_used) hopper_end_block(this);
    if (!registers.empty()) registers_end_block(this);
    for (unsigned k = 0; k < -l.dynamic_shared % 1024; k++)
        if ((uint8_t)b.dynamic[l.dynamic_shared + k] != 0xA5) {
            char s[128];
            snprintf(s, sizeof s, "a thread wrote %u bytes past the end of the %u bytes of dynamic shared memory", k + 1, l.dynamic_shared);
            report_after_block(this, s);
            break;
        }
    unsigned used = static_top - static_base, seen = l.fn->static_shared.load(std::memory_order_relaxed);
    while (used > seen && !l.fn->static_shared.compare_exchange_weak(seen, used)) {}
}

// ---- who runs next

// Threads are started in order on one fiber until one waits. So at that moment all that were started have returned, but the
// one that asks; and a block in which nobody waits needs no records at all.
void Worker::track() {
    emu_block& b = block;
    if (b.tracked) return;
    b.tracked = 1;
    unsigned nwarps = (b.nthreads + 31) / 32, me = running->index;
    for (unsigned i = 0; i < nwarps; i++) exited[i] = 0;
    if (b.nthreads % 32) exited[nwarps - 1] = ~0u << (b.nthreads % 32);
    alive = b.nthreads - b.next + 1;
    for (unsigned i = 0; i < b.next; i++) {
        unsigned t = b.order ? b.order[i] : i;
        if (t != me) exited[t / 32] |= 1u << (t % 32);
    }
}
extern "C" unsigned emu_active_lanes(emu_thread* self) {
    Fiber* f = (Fiber*)self;
    f->worker->track();
    return ~f->worker->exited[f->index >> 5];
}

inline __attribute__((always_inline)) void Worker::wait(Fiber* f) {
    waiting++;
    Fiber* to;
    if (block.next < block.nthreads) {
        to = start_fiber();
    } else {
        int i = ready.next(f->slot, words);
        if (i < 0) i = (int)nobody_ready();
        to = fibers[(unsigned)i].get();
        ready.reset((unsigned)i);
    }
    if (to != f) {
        running = to;
        context_switch(&f->context, &to->context);
    }
    f->waits = WaitsNot;
}
void Worker::leave(Fiber* f) {
    idle.set(f->slot);
    int i = ready.next(f->slot, words);
    if (i >= 0) {
        ready.reset((unsigned)i);
        running = fibers[(unsigned)i].get();
        context_switch(&f->context, &running->context);
        return;
    }
    if (block.tracked && alive) {
        running = fibers[nobody_ready()].get();
        context_switch(&f->context, &running->context);
        return;
    }
    context_switch(&f->context, &main);
}
void Worker::block_on(Fiber* f, FiberSet& set, Waits how, const void* in) {
    track();
    set.set(f->slot);
    f->waits = how;
    f->waits_in = in;
    wait(f);
}
void Worker::wake(FiberSet& set) {
    for (unsigned i = 0; i < max_fibers / 64; i++) {
        ready.w[i] |= set.w[i];
        waiting -= __builtin_popcountll(set.w[i]);
        set.w[i] = 0;
    }
}
void Worker::abort_block() {
    aborted = true;
    Context dropped;
    context_switch(&dropped, &main);
    __builtin_unreachable();
}

extern "C" void emu_pick(emu_thread* self) {
    emu_block* b = self->block;
    unsigned i = b->next - 1;
    if (b->order) {
        i = b->order[i];
    } else if (self->index + 1 == i && i % b->bdim.x) {
        self->index = i;
        self->tid.x++;
        return;
    }
    self->index = i;
    self->tid = {i % b->bdim.x, i / b->bdim.x % b->bdim.y, i / (b->bdim.x * b->bdim.y)};
}
extern "C" void emu_yield(emu_thread* self) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    w->track();
    if (w->cluster) w->polls = true, w->others_run();
    if (w->block.next >= w->block.nthreads && w->ready.next(f->slot, w->words) < 0) return;
    w->ready.set(f->slot);
    f->waits = WaitsYield;
    w->wait(f);
    w->waiting--;
}

// ---- barriers

void Worker::complete(Barrier& b) {
    b.result[0] = b.count, b.result[1] = b.all, b.result[2] = b.any;
    b.arrived = 0;
    // For the race detector. A named barrier orders its own threads only; forgetting what the others did may miss a race,
    // but invents none.
    time++;
    wake(b.waiting);
}

static const char* kind_name(unsigned kind) {
    static const char* names[] = {"__syncwarp", "a __shfl_sync", "a vote", "a __reduce_sync", "a __match_sync", "mma", "ldmatrix", "stmatrix", "wgmma", "elect"};
    return names[kind];
}

// Out of line: what they build for their message would make the frames of all waiting threads larger.
[[noreturn]] static void __attribute__((noinline)) no_barrier(unsigned id) {
    fault(CUDA_ERROR_LAUNCH_FAILED, "barrier " + std::to_string(id) + " does not exist: there are 16");
}
[[noreturn]] static void __attribute__((noinline)) divergent(Worker* w, const Barrier& b, const char* file, int line) {
    char t[512];
    snprintf(t, sizeof t, "divergent barrier: this thread is at %s:%d, but thread %s waits at %s:%d", file, line,
             thread_name(w->block, b.first_thread).c_str(), b.file, b.line);
    fault(CUDA_ERROR_LAUNCH_FAILED, t);
}
[[noreturn]] static void __attribute__((noinline)) not_in_mask(unsigned kind, unsigned mask, unsigned lane, const char* file, int line) {
    char t[256];
    snprintf(t, sizeof t, "%s with mask 0x%08x, in which the calling lane %u is missing, at %s:%d", kind_name(kind), mask, lane, file, line);
    fault(CUDA_ERROR_LAUNCH_FAILED, t);
}
[[noreturn]] static void __attribute__((noinline)) other_kind(unsigned kind, const Meeting& m, unsigned lane, const char* file, int line) {
    char t[256];
    snprintf(t, sizeof t, "divergent warp: lane %u is in %s at %s:%d while other lanes of mask 0x%08x wait in %s at %s:%d", lane, kind_name(kind), file, line,
             m.mask, kind_name(m.kind), m.file, m.line);
    fault(CUDA_ERROR_LAUNCH_FAILED, t);
}

static inline __attribute__((always_inline)) Barrier& arrive(Fiber* f, unsigned id, unsigned count, const char* file, int line, bool* done) {
    Worker* w = f->worker;
    if (!w->block.tracked) w->track();
    if (id >= 16) no_barrier(id);
    Barrier& b = w->barriers[id];
    w->barriers_used |= 1u << id;
    if (b.arrived == 0) {
        b.expected = count;
        b.file = file, b.line = line, b.first_thread = f->index;
        b.count = 0, b.all = 1, b.any = 0;
    } else if (b.expected != count || (count == 0 && (b.line != line || (b.file != file && strcmp(b.file, file) != 0)))) {
        divergent(w, b, file, line);
    }
    b.arrived++;
    *done = b.arrived >= (count ? count : w->alive);
    return b;
}
static inline __attribute__((always_inline)) void barrier_wait(Fiber* f, Barrier& b) {
    b.waiting.set(f->slot);
    f->waits = WaitsBarrier;
    f->waits_in = &b;
    f->worker->wait(f);
}
extern "C" void emu_barrier(emu_thread* self, unsigned id, unsigned count, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    bool done;
    Barrier& b = arrive(f, id, count, file, line, &done);
    if (done) f->worker->complete(b);
    else barrier_wait(f, b);
}
extern "C" void emu_barrier_arrive(emu_thread* self, unsigned id, unsigned count, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    bool done;
    Barrier& b = arrive(f, id, count, file, line, &done);
    if (done) f->worker->complete(b);
}
extern "C" int emu_barrier_reduce(emu_thread* self, int op, int p, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    bool done;
    Barrier& b = arrive(f, 0, 0, file, line, &done);
    b.count += p != 0, b.all &= p != 0, b.any |= p != 0;
    if (done) f->worker->complete(b);
    else barrier_wait(f, b);
    return b.result[op];
}

// ---- warp collectives

void Worker::complete(unsigned index, Meeting& m) {
    unsigned g = m.generation & 1;
    m.present[g] = m.arrived;
    if (m.last) m.last(m.slots[g], m.arrived);
    for (unsigned left = m.arrived; left; left &= left - 1) {
        int f = m.fiber[__builtin_ctz(left)];
        if (f >= 0) ready.set((unsigned)f), waiting--;
    }
    m.arrived = 0;
    m.generation++;
    warp_time[index]++;
}

extern "C" const unsigned long long* emu_warp(emu_thread* self, unsigned mask, int kind, unsigned long long value, unsigned* present,
                                              emu_meet last, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    if (!w->block.tracked) w->track();
    unsigned lane = f->index & 31, index = f->index >> 5;
    Warp& warp = w->warps[index];
    if (!(mask >> lane & 1)) not_in_mask((unsigned)kind, mask, lane, file, line);
    Meeting* m = nullptr;
    for (unsigned i = 0; i < warp.used && !m; i++)
        if (warp.meetings[i]->mask == mask) m = warp.meetings[i].get();
    if (!m) {
        if (warp.used == warp.meetings.size()) warp.meetings.emplace_back(new Meeting);
        m = warp.meetings[warp.used++].get();
        m->mask = mask, m->arrived = 0, m->generation = 0;
    }
    if (m->arrived && m->kind != (unsigned)kind) other_kind((unsigned)kind, *m, lane, file, line);
    m->kind = (unsigned)kind;
    m->last = last;
    m->file = file, m->line = line;
    unsigned g = m->generation & 1;
    m->slots[g][lane] = value;
    m->arrived |= 1u << lane;
    if (m->arrived == (mask & ~w->exited[index])) {
        m->fiber[lane] = -1;
        w->complete(index, *m);
    } else {
        m->fiber[lane] = (int)f->slot;
        f->waits = WaitsMeeting;
        f->waits_in = m;
        w->wait(f);
    }
    if (present) *present = m->present[g];
    return m->slots[g];
}

extern "C" void emu_thread_exit(emu_thread* self) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    w->alive--;
    w->exited[f->index >> 5] |= 1u << (f->index & 31);
    if (!f->copies.empty()) f->copies.clear();
    f->copy_group = 0;
    if (w->cluster) cluster_exit(f);
    if (!w->waiting) return;
    Barrier& b = w->barriers[0];
    if (b.arrived && b.expected == 0 && b.arrived >= w->alive) w->complete(b);
    unsigned index = f->index >> 5;
    Warp& warp = w->warps[index];
    for (unsigned i = 0; i < warp.used; i++) {
        Meeting& m = *warp.meetings[i];
        if (m.arrived && m.arrived == (m.mask & ~w->exited[index])) w->complete(index, m);
    }
}

// ---- nobody can go on

bool Worker::can_go_on() const { return ready.next(max_fibers - 1, words) >= 0; }
unsigned Worker::nobody_ready() {
    if (cluster) {
        // Another block may wake one of this block's; the cluster lets waits give up when none can.
        do others_run();
        while (!can_go_on() && !cluster->stuck);
    } else {
        waits_give_up();
    }
    int i = ready.next(max_fibers - 1, words);
    if (i >= 0) {
        ready.reset((unsigned)i);
        return (unsigned)i;
    }
    std::string s = "deadlock: no thread of the block can go on";
    if (!cluster) fault(CUDA_ERROR_LAUNCH_FAILED, s + who_waits());
    s = "deadlock: no thread of the cluster can go on";
    for (Worker* w : cluster->blocks) s += "\n  block " + std::to_string(w->block.cluster_rank) + " of the cluster" + (w->is_parked || w == this ? "" : ", which has ended") + w->who_waits();
    fault(CUDA_ERROR_LAUNCH_FAILED, s);
}
// Waits that may give up do so: their threads may have something else to do. Not for ever, though.
bool Worker::waits_give_up() {
    if (!hopper_used || hopper->given_up++ >= 1000) return false;
    for (auto& f : fibers)
        if (f->waits == WaitsTry) {
            hopper->give_up(f.get());
            ready.set(f->slot);
            f->waits = WaitsNot;
            waiting--;
        }
    return can_go_on();
}
std::string Worker::who_waits() {
    std::string s;
    std::vector<const void*> told;
    for (auto& p : fibers) {
        Fiber* f = p.get();
        if (f->waits == WaitsNot || f->waits == WaitsYield) continue;
        bool known = false;
        for (auto t : told) known |= t == f->waits_in;
        if (known) continue;
        told.push_back(f->waits_in);
        if (told.size() == 7) {
            s += "\n    and others";
            break;
        }
        unsigned same = 0;
        for (auto& q : fibers) same += q->waits != WaitsNot && q->waits_in == f->waits_in;
        char t[512];
        s += "\n    thread " + thread_name(block, f->index);
        if (same > 1) s += " and " + std::to_string(same - 1) + " more";
        s += same > 1 ? " wait in " : " waits in ";
        if (f->waits == WaitsBarrier) {
            auto* b = (const Barrier*)f->waits_in;
            if (b == barriers)
                snprintf(t, sizeof t, "__syncthreads at %s:%d, which %u of %u threads have reached", b->file, b->line, b->arrived, alive);
            else
                snprintf(t, sizeof t, "barrier %d at %s:%d, which %u of %u threads have reached", (int)(b - barriers), b->file, b->line, b->arrived, b->expected);
        } else if (f->waits == WaitsCluster) {
            snprintf(t, sizeof t, "the cluster's barrier, at which %u of its %u threads have arrived, the first at %s:%d", cluster->arrived, cluster->alive(),
                     cluster->file ? cluster->file : "", cluster->line);
        } else if (f->waits == WaitsMbarrier || f->waits == WaitsTry || f->waits == WaitsWgmma) {
            snprintf(t, sizeof t, "%s", hopper->waits_for(f).c_str());
        } else {
            auto* m = (const Meeting*)f->waits_in;
            unsigned index = f->index >> 5;
            snprintf(t, sizeof t, "%s with mask 0x%08x at %s:%d; lanes 0x%08x of warp %u never arrived", kind_name(m->kind), m->mask, m->file, m->line,
                     m->mask & ~exited[index] & ~m->arrived, index);
        }
        s += t;
    }
    return s;
}

extern "C" void emu_trap(emu_thread*, const char* what, const char* file, int line) {
    bool is_assert = strncmp(what, "assert", 6) == 0;
    fault(is_assert ? CUDA_ERROR_ASSERT : CUDA_ERROR_LAUNCH_FAILED, std::string(what) + (is_assert ? " failed at " : " at ") + file + ":" + std::to_string(line));
}

extern "C" void emu_misaligned(emu_thread*, const void* p, unsigned bytes, const char* file, int line) {
    char t[160];
    snprintf(t, sizeof t, "misaligned address: %u bytes at 0x%llx, at %s:%d", bytes, (unsigned long long)(uintptr_t)p, file, line);
    fault(CUDA_ERROR_MISALIGNED_ADDRESS, t);
}

extern "C" unsigned emu_place_shared(emu_thread* self, unsigned id, unsigned bytes, unsigned align, const char* name) {
    Worker* w = ((Fiber*)self)->worker;
    if (id >= max_shared_ids) fault(CUDA_ERROR_LAUNCH_FAILED, "too many static shared variables in one module");
    // The blocks of a cluster find each other's variables at the same place.
    unsigned top = w->static_top, at = 0;
    if (w->cluster)
        for (Worker* o : w->cluster->blocks) {
            top = std::max(top, o->static_top);
            if (id < o->ids_used && o->shared_at[id]) at = o->shared_at[id];
        }
    if (!at) at = (top + align - 1) & ~(align - 1);
    if (at + bytes - static_base > settings().max_static_shared)
        fault(CUDA_ERROR_LAUNCH_FAILED, std::string("static shared memory grows past 48 KiB with `") + name + "`: ptxas would refuse this kernel");
    w->static_top = std::max(w->static_top, at + bytes);
    if (id >= w->ids_used) w->ids_used = id + 1;
    w->shared_at[id] = at;
    w->shared_names[id] = name;
    w->shared_sizes[id] = bytes;
    memset(w->block.shared + at, 0xFF, bytes);
    return at;
}
