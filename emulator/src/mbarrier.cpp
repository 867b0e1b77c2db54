// mbarriers: phases that end when as many arrivals and bytes have come as are expected. A barrier's state is kept here; its
// eight bytes in shared memory hold a mark, so that writing over it is noticed.
#include <cstdio>
#include <cstring>

#include "hopper.h"

static const uint64_t mark = 0x6d62617272696572ull;
static const unsigned most_arrivals = (1u << 20) - 1;
static const long long most_bytes = (1 << 20) - 1;

std::string at(const char* file, int line) { return std::string(" at ") + file + ":" + std::to_string(line); }

Hopper& hopper_of(Worker* w) {
    if (!w->hopper) {
        w->hopper = new Hopper;
        w->hopper->barrier_at.resize((static_base + static_room + dynamic_room + 16384) / 8);
    }
    Hopper& h = *w->hopper;
    if (!w->hopper_used) {
        // What a block that failed left behind goes, too.
        w->hopper_used = true;
        for (auto& m : h.barriers) {
            h.barrier_at[m->offset / 8] = 0;
            for (auto& c : m->copies) delete c.map;
        }
        h.barriers.clear();
        for (auto& g : h.groups) {
            g.products.clear();
            g.first = 0;
            for (auto& t : g.tiles) t->holders = 0;
            g.waiting.clear();
        }
        for (unsigned i = 0; i < h.threads_used; i++) h.threads[i].clear();
        h.threads_used = 0;
        h.given_up = h.spins = 0;
    }
    return h;
}

// Keeps the vectors' memory: a block is soon followed by the next.
void HopperThread::clear() {
    issued = waited = store_group = 0;
    fenced = ever_fenced = false;
    for (auto& s : stores) delete s.second.map;
    groups.clear(), held.clear(), given.clear(), stores.clear();
}

bool in_shared(Worker* w, unsigned offset, unsigned bytes) {
    unsigned dynamic = (unsigned)(w->block.dynamic - w->block.shared);
    return (offset >= static_base && offset + bytes <= w->static_top) || (offset >= dynamic && offset + bytes <= dynamic + w->launch->dynamic_shared);
}
unsigned shared_offset(Worker* w, const void* p, unsigned bytes, unsigned align, const char* what, const char* file, int line) {
    size_t offset = (size_t)((const char*)p - w->block.shared);
    if (offset > ~0u || !in_shared(w, (unsigned)offset, bytes))
        fault(CUDA_ERROR_ILLEGAL_ADDRESS, std::string(what) + " of " + std::to_string(bytes) + " bytes that are not all in shared memory" + at(file, line));
    if (offset % align)
        fault(CUDA_ERROR_MISALIGNED_ADDRESS, std::string(what) + " at a place of shared memory that is no multiple of " + std::to_string(align) + at(file, line));
    return (unsigned)offset;
}

static std::string name_of(Worker* w, const Mbarrier& m) { return "the mbarrier at " + shared_name(w, m.offset); }
static std::string state_of(const Mbarrier& m) {
    char s[160];
    snprintf(s, sizeof s, "phase %u has %u of %u arrivals to come and %lld bytes %s", m.phase, m.pending, m.expected, m.transactions < 0 ? -m.transactions : m.transactions,
             m.transactions < 0 ? "too many" : "to come");
    return s;
}

Mbarrier& mbarrier_at(Worker* w, const void* bar, const char* what, const char* file, int line) {
    unsigned offset = shared_offset(w, bar, 8, 8, what, file, line);
    Hopper& h = hopper_of(w);
    unsigned i = h.barrier_at[offset / 8];
    if (!i) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + " on an mbarrier that was never initialized" + at(file, line));
    Mbarrier& m = *h.barriers[i - 1];
    if (*(volatile uint64_t*)bar != (mark ^ offset)) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + ": something wrote over " + name_of(w, m) + at(file, line));
    Fiber* f = w->running;
    if (f->index != m.owner && w->time == m.time && (f->index / 32 != m.owner / 32 || w->warp_time[f->index / 32] == m.warp_time))
        fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + " on an mbarrier that thread " + thread_name(w->block, m.owner) + " initialized, without a barrier in between" + at(file, line));
    return m;
}

static void went_on(Worker* w) {
    w->hopper->given_up = w->hopper->spins = 0;
    for (unsigned r = 0; w->cluster && r < w->cluster->blocks.size(); r++)
        if (Hopper* h = w->cluster->blocks[r]->hopper) h->given_up = h->spins = 0;
}

Mbarrier& mbarrier_of(Worker* w, unsigned rank, const void* bar, const char* what, const char* file, int line) {
    unsigned offset = shared_offset(w, bar, 8, 8, what, file, line);
    std::string its = " of block " + std::to_string(rank) + " of the cluster" + at(file, line);
    if (!w->cluster || rank >= w->cluster->blocks.size()) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + " on an mbarrier" + its + ", which has no such block");
    Worker* o = w->cluster->blocks[rank];
    if (o->over()) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + " on an mbarrier" + its + ", which has ended: a cluster's blocks must wait for each other before they end");
    unsigned i = hopper_of(o).barrier_at[offset / 8];
    if (!i) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + " on an mbarrier" + its + ", which has not initialized it: no barrier of the cluster in between?");
    Mbarrier& m = *o->hopper->barriers[i - 1];
    if (*(volatile uint64_t*)(o->block.shared + offset) != (mark ^ offset)) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + ": something wrote over the mbarrier" + its);
    if (m.cluster_phase == w->cluster->phase)
        fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + " on an mbarrier" + its + ", which initialized it without a barrier of the cluster in between");
    if (!m.fenced) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + " on an mbarrier" + its + ", whose initialization no fence_mbarrier_init has made visible");
    return m;
}
void mbarriers_heard(Worker* w) {
    for (unsigned i = 0; w->hopper_used && i < w->hopper->barriers.size(); i++) w->hopper->barriers[i]->unheard = false;
}

// Copies arrive, where somebody waits for them.
static void arrive_copies(Worker* w, Mbarrier& m) {
    for (auto& c : m.copies) {
        memcpy(w->block.shared + c.offset, c.data.data(), c.bytes);
        hooks_arrived(w, c.offset, c.bytes);
        m.transactions -= c.bytes;
    }
    m.copies.clear();
    if (m.transactions < -most_bytes) fault(CUDA_ERROR_LAUNCH_FAILED, "more bytes arrived at " + name_of(w, m) + " than it can count");
}
static void check_phase(Worker* w, Mbarrier& m) {
    if (m.pending) return;
    bool waited = false;
    for (auto x : m.waiting.w) waited |= x != 0;
    if (waited) arrive_copies(w, m);
    if (m.transactions) return;
    if (!m.copies.empty()) return;
    m.phase++;
    m.pending = m.expected;
    // For the race detector: what was done before is ordered before what comes after.
    w->time++;
    if (m.from_others)
        for (Worker* o : w->cluster->blocks)
            if (o != w) o->time++;
    m.from_others = false;
    went_on(w);
    w->wake(m.waiting);
}
void mbarrier_issue(Worker* w, Mbarrier& m, BulkCopy&& c) {
    if (!m.fenced) fault(CUDA_ERROR_LAUNCH_FAILED, "a bulk copy on an mbarrier whose initialization no fence_mbarrier_init or fence_proxy_async has made visible" + at(c.file, c.line));
    m.copies.push_back(std::move(c));
    check_phase(w, m);
}

extern "C" void emu_mbarrier_init(emu_thread* self, void* bar, unsigned count, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    unsigned offset = shared_offset(w, bar, 8, 8, "mbarrier_init", file, line);
    Hopper& h = hopper_of(w);
    if (count == 0 || count > most_arrivals) fault(CUDA_ERROR_LAUNCH_FAILED, "mbarrier_init with a count of " + std::to_string(count) + at(file, line));
    if (h.barrier_at[offset / 8]) fault(CUDA_ERROR_LAUNCH_FAILED, "mbarrier_init on a live mbarrier: invalidate it first" + at(file, line));
    h.barriers.emplace_back(new Mbarrier);
    h.barrier_at[offset / 8] = (uint16_t)h.barriers.size();
    Mbarrier& m = *h.barriers.back();
    m.offset = offset;
    m.expected = m.pending = count;
    m.owner = f->index, m.time = w->time, m.warp_time = w->warp_time[f->index / 32];
    m.waiting.clear();
    if (w->cluster) m.cluster_phase = w->cluster->phase;
    *(uint64_t*)bar = mark ^ offset;
}
extern "C" void emu_mbarrier_invalidate(emu_thread* self, void* bar, const char* file, int line) {
    Worker* w = ((Fiber*)self)->worker;
    Mbarrier& m = mbarrier_at(w, bar, "mbarrier_invalidate", file, line);
    for (auto x : m.waiting.w)
        if (x) fault(CUDA_ERROR_LAUNCH_FAILED, "mbarrier_invalidate while threads wait" + at(file, line));
    if (!m.copies.empty()) fault(CUDA_ERROR_LAUNCH_FAILED, "mbarrier_invalidate while bulk copies are on their way" + at(file, line));
    w->hopper->barrier_at[m.offset / 8] = 0;
    *(uint64_t*)bar = ~0ull;
}
extern "C" void emu_fence_mbarrier_init(emu_thread* self) {
    Fiber* f = (Fiber*)self;
    for (auto& m : hopper_of(f->worker).barriers)
        if (m->owner == f->index) m->fenced = true;
}
extern "C" void emu_fence_proxy_async(emu_thread* self) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    w->fenced[f->index] = ++w->fences;
    emu_fence_mbarrier_init(self);
}

static void arrive(Worker* w, Mbarrier& m, unsigned arrivals, unsigned bytes, const char* file, int line) {
    m.transactions += bytes;
    if (m.transactions > most_bytes)
        fault(CUDA_ERROR_LAUNCH_FAILED, name_of(w, m) + " would expect " + std::to_string(m.transactions) + " bytes: it can count to " + std::to_string(most_bytes) + at(file, line));
    if (arrivals > m.pending)
        fault(CUDA_ERROR_LAUNCH_FAILED, std::to_string(arrivals) + " arrivals at " + name_of(w, m) + ", but " + state_of(m) + at(file, line));
    m.pending -= arrivals;
    if (arrivals || bytes) check_phase(w, m);
}
extern "C" void emu_mbarrier_arrive(emu_thread* self, void* bar, unsigned arrivals, unsigned bytes, const char* file, int line) {
    Worker* w = ((Fiber*)self)->worker;
    arrive(w, mbarrier_at(w, bar, "mbarrier_arrive", file, line), arrivals, bytes, file, line);
}
extern "C" void emu_mbarrier_arrive_cluster(emu_thread* self, void* bar, unsigned rank, const char* file, int line) {
    Worker* w = ((Fiber*)self)->worker;
    if (rank == w->block.cluster_rank) return emu_mbarrier_arrive(self, bar, 1, 0, file, line);
    Mbarrier& m = mbarrier_of(w, rank, bar, "mbarrier_arrive_cluster", file, line);
    m.from_others = m.unheard = true;
    arrive(w->cluster->blocks[rank], m, 1, 0, file, line);
}

extern "C" bool emu_mbarrier_wait(emu_thread* self, void* bar, unsigned parity, int how, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    Mbarrier& m = mbarrier_at(w, bar, "mbarrier_wait", file, line);
    if (parity > 1) fault(CUDA_ERROR_LAUNCH_FAILED, "mbarrier_wait with a parity of " + std::to_string(parity) + at(file, line));
    auto over = [&] {
        bool is = (m.phase & 1) != parity;
        if (is && !m.from_others) m.unheard = false;
        return is;
    };
    if (over()) return true;
    arrive_copies(w, m);
    check_phase(w, m);
    if (over()) return true;
    if (how == 0) {
        if (++w->hopper->spins > 10000000) fault(CUDA_ERROR_LAUNCH_FAILED, "mbarrier_test_wait asks for ever: " + name_of(w, m) + ", " + state_of(m) + at(file, line));
        emu_yield(self);
        return over();
    }
    w->block_on(f, m.waiting, how == 1 ? WaitsTry : WaitsMbarrier, &m);
    return over();
}
void Hopper::give_up(Fiber* f) { ((Mbarrier*)f->waits_in)->waiting.reset(f->slot); }

std::string Hopper::waits_for(Fiber* f) {
    if (f->waits == WaitsWgmma) {
        unsigned arrived = 0;
        auto* g = (Warpgroup*)f->waits_in;
        for (auto& p : g->products)
            if (!p.done) {
                arrived = p.arrived;
                return "wgmma_wait for the product" + at(p.file, p.line) + ", which " + std::to_string(arrived) + " of the warpgroup's 128 threads have issued";
            }
        return "wgmma_wait";
    }
    auto& m = *(Mbarrier*)f->waits_in;
    return "mbarrier_wait on " + name_of(f->worker, m) + ": " + state_of(m);
}

void hopper_end_block(Worker* w) {
    Hopper& h = *w->hopper;
    for (auto& m : h.barriers)
        if (m->unheard) {
            report_after_block(w, "the block ended while another one of its cluster may still arrive at " + name_of(w, *m) + ": nobody waited for that, nor for the cluster", CUDA_ERROR_LAUNCH_FAILED);
            return;
        }
    for (auto& m : h.barriers)
        if (!m->copies.empty()) {
            auto& c = m->copies[0];
            report_after_block(w, "the block ended while a bulk copy into its shared memory was on its way, issued" + at(c.file, c.line), CUDA_ERROR_LAUNCH_FAILED);
            return;
        }
    for (unsigned i = 0; i < h.threads_used; i++) {
        HopperThread& t = h.threads[i];
        if (!t.stores.empty()) {
            auto& c = t.stores[0].second;
            report_after_block(w, "thread " + thread_name(w->block, i) + " ended without bulk_wait for the store" + at(c.file, c.line) + ", which may still read shared memory",
                               CUDA_ERROR_LAUNCH_FAILED);
            return;
        }
        if (!t.held.empty()) {
            report_after_block(w, "thread " + thread_name(w->block, i) + " ended without wgmma_wait for its products", CUDA_ERROR_LAUNCH_FAILED);
            return;
        }
    }
}
