// The copy engine: bulk copies and tensor copies. A copy into shared memory takes its data at once and delivers it when
// somebody waits on its mbarrier; until then its place holds NaNs. A store keeps a copy of what it found, writes when its
// thread waits, and looks whether shared memory is still the same: if not, somebody wrote there too early.
#include <cstring>

#include "hopper.h"

static void check_bytes(unsigned bytes, const void* global, const char* what, const char* file, int line) {
    if (bytes == 0 || bytes % 16) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + " of " + std::to_string(bytes) + " bytes, which is no multiple of 16" + at(file, line));
    if ((uintptr_t)global % 16) fault(CUDA_ERROR_MISALIGNED_ADDRESS, std::string(what) + " with a global address that is no multiple of 16" + at(file, line));
}
static void check_global(const void* p, unsigned bytes, const char* what, const char* file, int line) {
    Alloc* a = memory::find((uintptr_t)p);
    uintptr_t u = (uintptr_t)p;
    if (a ? a->live && u >= a->start && u + bytes <= a->start + a->size : memory::in_ranges(u, bytes)) return;
    fault(CUDA_ERROR_ILLEGAL_ADDRESS, std::string(what) + " of " + memory::describe(u, bytes) + at(file, line));
}
static void issue_load(Worker* w, unsigned thread, Mbarrier& m, BulkCopy&& c) {
    hooks_engine(w, thread, c.offset, c.bytes, true);
    memset(w->block.shared + c.offset, 0xFF, c.bytes);
    mbarrier_issue(w, m, std::move(c));
}
static void issue_store(Worker* w, Fiber* f, BulkCopy&& c) {
    hooks_engine(w, f->index, c.offset, c.bytes, false);
    c.data.assign(w->block.shared + c.offset, w->block.shared + c.offset + c.bytes);
    Hopper& h = hopper_of(w);
    h.threads_used = w->block.nthreads;
    HopperThread& t = h.threads[f->index];
    t.stores.emplace_back(t.store_group, std::move(c));
}

extern "C" void emu_bulk_load(emu_thread* self, void* dst, const void* src, unsigned bytes, void* bar, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    check_bytes(bytes, src, "bulk_load", file, line);
    check_global(src, bytes, "bulk_load", file, line);
    BulkCopy c{};
    c.offset = shared_offset(w, dst, bytes, 16, "bulk_load", file, line);
    c.bytes = bytes;
    c.file = file, c.line = line;
    c.data.assign((const uint8_t*)src, (const uint8_t*)src + bytes);
    issue_load(w, f->index, mbarrier_at(w, bar, "bulk_load", file, line), std::move(c));
}
extern "C" void emu_bulk_store(emu_thread* self, void* dst, const void* src, unsigned bytes, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    check_bytes(bytes, dst, "bulk_store", file, line);
    check_global(dst, bytes, "bulk_store", file, line);
    BulkCopy c{};
    c.offset = shared_offset(w, src, bytes, 16, "bulk_store", file, line);
    c.bytes = bytes;
    c.file = file, c.line = line;
    c.global = (uint8_t*)dst;
    issue_store(w, f, std::move(c));
}

static TensorMap read_map(const char* name, const void* map, int rank, int im2col, const char* file, int line) {
    if ((uintptr_t)map % 64) fault(CUDA_ERROR_MISALIGNED_ADDRESS, std::string(name) + " with a tensor map that is not at a multiple of 64 bytes" + at(file, line));
    TensorMap m;
    memcpy((void*)&m, map, sizeof m);
    if (!m.sound()) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(name) + " with 128 bytes that are no tensor map" + at(file, line));
    if (m.rank != rank || m.im2col != im2col)
        fault(CUDA_ERROR_LAUNCH_FAILED, std::string(name) + " with " + std::to_string(rank) + (im2col ? " im2col" : "") + " coordinates and a map of rank " +
                                            std::to_string(m.rank) + (m.im2col ? " for im2col" : "") + at(file, line));
    return m;
}

extern "C" void emu_tensor_copy(emu_thread* self, int kind, void* shared, const void* map, void* bar, int rank, const int* coordinates, int im2col,
                                const int* offsets, const char* file, int line) {
    static const char* names[] = {"tensor_load", "tensor_store", "tensor_reduce_add", "tensor_prefetch"};
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    TensorMap m = read_map(names[kind], map, rank, im2col, file, line);
    if (kind == 3) return;
    for (int i = 0; im2col && offsets && i < rank - 2; i++)
        if (offsets[i] < 0 || offsets[i] > 65535 >> (rank == 3 ? 0 : rank == 4 ? 8 : 11))
            fault(CUDA_ERROR_LAUNCH_FAILED, std::string(names[kind]) + " with an im2col offset of " + std::to_string(offsets[i]) + at(file, line));
    BulkCopy c{};
    c.bytes = m.bytes();
    c.offset = shared_offset(w, shared, c.bytes, 128, names[kind], file, line);
    c.file = file, c.line = line;
    if (kind == 0) {
        Mbarrier& b = mbarrier_at(w, bar, names[kind], file, line);
        c.data.resize(c.bytes);
        m.load(c.data.data(), c.offset, coordinates, offsets);
        issue_load(w, f->index, b, std::move(c));
        return;
    }
    c.map = new TensorMap(m);
    c.add = kind == 2;
    memcpy(c.coordinates, coordinates, sizeof(int) * (size_t)rank);
    issue_store(w, f, std::move(c));
}

// The same bytes for each block, since its place is the same; each block's mbarrier counts its own.
extern "C" void emu_tensor_multicast(emu_thread* self, void* shared, const void* map, void* bar, unsigned mask, int rank, const int* coordinates,
                                     const char* file, int line) {
    const char* name = "tensor_load_multicast";
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    TensorMap m = read_map(name, map, rank, 0, file, line);
    unsigned size = w->cluster ? (unsigned)w->cluster->blocks.size() : 1;
    if (!mask || mask >> size) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(name) + " with mask " + std::to_string(mask) + " in a cluster of " + std::to_string(size) + at(file, line));
    BulkCopy c{};
    c.bytes = m.bytes();
    c.offset = shared_offset(w, shared, c.bytes, 128, name, file, line);
    c.file = file, c.line = line;
    c.data.resize(c.bytes);
    m.load(c.data.data(), c.offset, coordinates, nullptr);
    for (unsigned r = 0; r < size; r++) {
        if (!(mask >> r & 1)) continue;
        bool own = r == w->block.cluster_rank;
        Worker* to = own ? w : w->cluster->blocks[r];
        Mbarrier& b = own ? mbarrier_at(w, bar, name, file, line) : mbarrier_of(w, r, bar, name, file, line);
        issue_load(to, own ? f->index : max_threads + w->block.cluster_rank, b, BulkCopy(c));
    }
}

extern "C" void emu_bulk_commit(emu_thread* self) {
    Fiber* f = (Fiber*)self;
    Hopper& h = hopper_of(f->worker);
    h.threads_used = f->block->nthreads;
    h.threads[f->index].store_group++;
}
extern "C" void emu_bulk_wait(emu_thread* self, unsigned pending) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    HopperThread& t = hopper_of(w).threads[f->index];
    while (!t.stores.empty()) {
        auto& s = t.stores.front();
        if (s.first + pending >= t.store_group) break;
        BulkCopy c = std::move(s.second);
        t.stores.erase(t.stores.begin());
        if (memcmp(c.data.data(), w->block.shared + c.offset, c.bytes))
            fault(CUDA_ERROR_LAUNCH_FAILED, "shared memory that the store" + at(c.file, c.line) + " reads was written before bulk_wait_read");
        if (c.map) c.map->store(c.data.data(), c.offset, c.coordinates, c.add);
        else memcpy(c.global, c.data.data(), c.bytes);
        delete c.map;
    }
}
