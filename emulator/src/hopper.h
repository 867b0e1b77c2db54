// What a block has under way on Hopper: mbarriers with the copies that complete on them, bulk stores, and the warpgroups'
// matrix products. One per host thread, made when a kernel first uses one of these words.
#pragma once
#include <deque>

#include "block.h"

// ---- mbarriers (mbarrier.cpp)

struct TensorMap;
// A copy that has been issued: what it will do is known, and done when somebody waits for it.
struct BulkCopy {
    unsigned offset, bytes;             // of shared memory, swizzled or not
    std::vector<uint8_t> data;          // as it will lie, or (for a store) lay when it was issued
    uint8_t* global = nullptr;          // a plain store
    TensorMap* map = nullptr;           // a tensor's store: owned
    int coordinates[5];
    bool im2col, add;
    const char* file;
    int line;
};
struct Mbarrier {
    unsigned offset;
    unsigned expected, pending;
    long long transactions = 0;         // bytes expected less bytes arrived
    unsigned phase = 0;
    unsigned owner;                     // the thread that initialized it, and when
    uint32_t time, warp_time;
    bool fenced = false;                // made visible to the copy engine
    uint32_t cluster_phase = 0;         // when it was initialized
    bool from_others = false;           // an arrival of this phase came from another block of the cluster
    bool unheard = false;               // another block arrived, and nobody here has waited since
    FiberSet waiting;
    std::vector<BulkCopy> copies;
};

// ---- wgmma (wgmma.cpp)

// The accumulators of a warpgroup that are under way: 64 rows, up to 256 columns.
struct Tile {
    alignas(64) float sum[64][256];
    int n = 0;
    unsigned holders = 0;               // threads that have not got theirs back
};
struct Product {
    emu_wgmma op;                       // the descriptors; those of the first thread to come
    unsigned arrived = 0;
    int tile = -1;
    bool done = false, looked = false;  // looked: the operands were compared when the first thread had waited
    uint64_t operands = 0;              // a sum over the shared memory that was read
    std::vector<unsigned> a;            // 128 times 4 registers
    const char* file;
    int line;
};
struct Warpgroup {
    std::deque<Product> products;
    unsigned first = 0;                 // number of products.front()
    std::vector<std::unique_ptr<Tile>> tiles;
    FiberSet waiting;
};
struct Held { float* d; int n, tile; unsigned last; };      // last: the product that wrote it last
struct Given { float* d; int n; uint64_t sum; };            // accumulators as a wait left them, and a sum over them
struct HopperThread {
    unsigned issued = 0, waited = 0;
    std::vector<unsigned> groups;       // for each commit, how many products had been issued
    bool fenced = false, ever_fenced = false;
    std::vector<Held> held;
    std::vector<Given> given;           // since the last fence
    // Bulk stores.
    std::vector<std::pair<unsigned, BulkCopy>> stores;  // with their group
    unsigned store_group = 0;
    void clear();
};

struct Hopper {
    std::vector<std::unique_ptr<Mbarrier>> barriers;
    std::vector<uint16_t> barrier_at;   // by offset / 8, counted from 1
    Warpgroup groups[8];
    HopperThread threads[max_threads];
    unsigned threads_used = 0;          // how many may hold something
    unsigned given_up = 0;              // waits that gave up since anything went on
    unsigned spins = 0;

    void give_up(Fiber* f);
    std::string waits_for(Fiber* f);
};
Hopper& hopper_of(Worker* w);           // ready for this block
void hopper_end_block(Worker* w);       // what was never waited for

// The offset of a place in shared memory, or a fault.
unsigned shared_offset(Worker* w, const void* p, unsigned bytes, unsigned align, const char* what, const char* file, int line);
bool in_shared(Worker* w, unsigned offset, unsigned bytes);
std::string shared_name(Worker* w, unsigned offset);      // hooks.cpp
std::string at(const char* file, int line);
// ---- bulk copies (bulk.cpp)
Mbarrier& mbarrier_at(Worker* w, const void* bar, const char* what, const char* file, int line);
// That of another block of the cluster, at the same place.
Mbarrier& mbarrier_of(Worker* w, unsigned rank, const void* bar, const char* what, const char* file, int line);
void mbarrier_issue(Worker* w, Mbarrier& m, BulkCopy&& c);
void mbarriers_heard(Worker* w);        // a barrier of the cluster is over
void finish_store(BulkCopy& c);

// ---- tensor maps (tensor_map.cpp)

struct TensorMap {
    uint64_t magic;
    uint64_t address;
    uint64_t strides[4];                // bytes, of axes 1 and up
    uint32_t extent[5];                 // less one
    int16_t lower[3], upper[3];         // im2col: corners of the bounding box, W first
    uint16_t box[5];                    // tiled; im2col: channels, pixels
    uint8_t step[5];                    // element strides
    uint8_t rank, type, swizzle, im2col, nan;
    uint64_t sum;

    unsigned element() const;
    unsigned rows() const;
    unsigned row_bytes() const { return box[0] * element(); }
    unsigned bytes() const { return rows() * row_bytes(); }
    bool sound() const;
    const char* type_name() const;
    // Each row of the box: its place in global memory, the elements of it that exist, and its number. `row` may be
    // null in memory: wholly outside.
    void each_row(const int* coordinates, const int* offsets, const std::function<void(unsigned row, uint64_t address, unsigned from, unsigned to)>& f) const;
    // Where byte `at` of the packed box lies, the box at `offset` of shared memory.
    unsigned place(unsigned offset, unsigned at) const;
    void load(uint8_t* out, unsigned offset, const int* coordinates, const int* offsets) const;
    void store(const uint8_t* in, unsigned offset, const int* coordinates, bool add) const;
};
static_assert(sizeof(TensorMap) <= 128, "a CUtensorMap has 128 bytes");
