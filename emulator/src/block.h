// One block at a time on a host thread: its fibers, its shared memory, and what they wait for.
#pragma once
#include <memory>
#include <vector>

#include "fiber.h"
#include "internal.h"

const unsigned max_threads = 1024, max_warps = 32, max_fibers = 1024, max_cluster = 8;
const unsigned max_shared_ids = 4096;
// The block's shared memory: nothing at offset 0 (a null pointer must not be a valid place), static variables, then dynamic.
const unsigned static_base = 1024, static_room = 256 * 1024, dynamic_room = 256 * 1024;

struct FiberSet {
    uint64_t w[max_fibers / 64];
    void clear() { for (auto& x : w) x = 0; }
    void set(unsigned i) { w[i / 64] |= 1ull << (i % 64); }
    void reset(unsigned i) { w[i / 64] &= ~(1ull << (i % 64)); }
    // The next member after i, going round; -1 if there is none.
    int next(unsigned i, unsigned words = max_fibers / 64) const;
    unsigned count() const;
};

struct PendingCopy { char* dst; unsigned bytes; unsigned group; uint8_t data[16]; };

enum Waits : uint8_t { WaitsNot, WaitsBarrier, WaitsMeeting, WaitsYield, WaitsMbarrier, WaitsTry, WaitsWgmma, WaitsCluster };

// What a switch touches comes first, in one line of the cache.
struct alignas(64) Fiber : emu_thread {
    Context context;
    Worker* worker;
    const void* waits_in = nullptr;     // the Barrier or Meeting
    unsigned slot;
    Waits waits = WaitsNot;
    unsigned copy_group = 0;            // cp.async
    Stack stack;
    std::vector<PendingCopy> copies;
};

struct Barrier {
    unsigned arrived, expected;
    const char* file;
    int line;
    unsigned first_thread;
    FiberSet waiting;
    int count, all, any;                // of the arrivals so far
    int result[3];
};

// A meeting of the lanes of one mask. Two sets of slots: a lane may already be at the next meeting while another still
// reads what this one brought.
struct Meeting {
    unsigned mask, arrived, kind, generation;
    const char* file;
    int line;
    emu_meet last;
    int fiber[32];
    unsigned present[2];
    unsigned long long slots[2][32];
};
struct Warp {
    std::vector<std::unique_ptr<Meeting>> meetings;     // kept from block to block
    unsigned used = 0;
};

// Who touched two bytes of shared memory last, and when.
struct RaceWord {
    uint32_t write_time, read_time;     // the block's time of barriers
    uint32_t write_warp_time, read_warp_time;
    uint32_t write_fences;              // the worker's count of proxy fences at the write
    uint16_t writer, reader;            // thread + 1; from max_threads + 1 on: another block of the cluster, by rank
    uint8_t write_bytes, read_bytes;    // which of the two
    bool many_readers;
    bool by_engine;                     // the last write was a bulk copy's
    bool in_flight;                     // of a bulk copy that nobody has waited for
};

struct Hopper;                          // hopper.h

// Blocks that run together, each in a worker of its own, by turns on one host thread (cluster.cpp): one runs until none of its
// threads can go on.
struct Cluster {
    std::vector<Worker*> blocks;            // by rank
    // The barrier of all their threads.
    uint32_t phase = 0;
    unsigned arrived = 0;
    const char* file = nullptr;             // where the first one arrived
    int line = 0;
    bool stuck = false;                     // nobody can go on: the next to run reports it
    unsigned alive() const;
    void complete_if_all();
};

struct Signal {
    int number = 0;
    uintptr_t address = 0;
    bool write = false, misaligned = false, wild = false;
};

struct Worker {
    Worker();
    ~Worker();
    void run_block(Launch& l, unsigned bx, unsigned by, unsigned bz);
    // Of the cluster whose first block this is.
    void run_cluster(Launch& l, Dim size, unsigned bx, unsigned by, unsigned bz);

    // ---- the block
    emu_block block;
    unsigned exited[max_warps];         // lanes that returned or never were; kept once the block is tracked
    unsigned alive = 0;                 // threads that have not returned; likewise
    unsigned waiting = 0;               // fibers that wait for something
    Launch* launch = nullptr;
    Barrier barriers[16] = {};
    unsigned barriers_used = 0;         // bits
    Warp warps[max_warps];
    unsigned static_top = 0;
    uint32_t time = 0;                      // advances with each barrier of the whole block
    uint32_t warp_time[max_warps + 1] = {};  // with each meeting of a warp; other blocks have none
    std::vector<unsigned> shared_at, order;
    unsigned ids_used = 0;
    std::vector<const char*> shared_names;
    std::vector<unsigned> shared_sizes;

    // ---- fibers
    std::vector<std::unique_ptr<Fiber>> fibers;
    FiberSet ready, idle;
    unsigned words = 0;                 // of a FiberSet that can have members
    Context main;
    Fiber* running = nullptr;
    bool aborted = false;
    uint64_t random = 0;

    // ---- the cluster
    Cluster* cluster = nullptr;
    std::vector<std::unique_ptr<Worker>> mates;         // for its other blocks, where this is the first
    Context parked;                     // where the block goes on when it is its turn
    bool is_parked = false, fresh = false;
    bool polls = false;                 // parked by a thread that asks again
    uint32_t arrived_at[max_threads] = {};  // each thread's phase of the cluster's barrier + 1, until it has waited
    FiberSet cluster_waiting;

    // ---- memory
    char* arena = nullptr;              // guard, shared memory, guard
    size_t arena_len = 0;
    size_t dynamic_pages = 0;
    size_t dynamic_from = 0;            // where these begin
    void place_dynamic(size_t from, size_t bytes);
    Stack abort_stack;
    Signal signal;                      // that ended the running block
    std::vector<RaceWord> race;         // one per two bytes of shared memory
    uint32_t fences = 0, fenced[max_threads] = {};      // proxy fences so far, and the last one of each thread
    uint32_t block_time = 0;            // when the block began

    std::vector<unsigned short> registers;  // of each warp's threads, once one has changed them by setmaxnreg

    Hopper* hopper = nullptr;           // mbarriers, bulk copies, wgmma; made when first used
    bool hopper_used = false;           // by this block

    void begin(Launch& l, unsigned bx, unsigned by, unsigned bz);
    bool over() const { return !fresh && !is_parked && running == nullptr; }
    void go();                          // until the block is over or, in a cluster, cannot go on
    void end();
    void others_run();                  // the other blocks of the cluster, until it is this one's turn again
    bool can_go_on() const;
    bool waits_give_up();               // those that may; whether somebody can go on now
    std::string who_waits();
    void track();                       // begins to keep `exited` and `alive`
    void wait(Fiber* f);                // gives the host thread to another fiber
    void leave(Fiber* f);               // f has no thread left to run
    void wake(FiberSet& set);
    Fiber* start_fiber();
    [[noreturn]] void abort_block();
    unsigned nobody_ready();            // lets waits give up that may; reports a deadlock if there are none
    void block_on(Fiber* f, FiberSet& set, Waits how, const void* in);
    void complete(Barrier& b);
    void complete(unsigned index, Meeting& m);
    void make_fiber(unsigned slot);
    bool owns(uintptr_t p) const;       // fiber stacks and the emulator's own records, which kernels touch as well
};

std::string thread_name(const emu_block& b, unsigned index);
void registers_end_block(Worker* w);    // registers.cpp
void cluster_exit(Fiber* f);            // a thread of a cluster returned
Worker* take_worker();                  // this host thread's
void hooks_begin_block(Worker* w);
// Checks an access that the emulator makes on behalf of the running thread, or of another lane of its warp (hooks.cpp).
void hooks_access(uintptr_t p, unsigned bytes, bool write);
void hooks_access_as(unsigned lane, uintptr_t p, unsigned bytes, bool write);
// The same for shared memory that the tensor cores or the copy engine touch on behalf of a thread of the block; a copy that
// is under way until hooks_arrived.
void hooks_engine(Worker* w, unsigned thread, unsigned offset, unsigned bytes, bool write);
void hooks_arrived(Worker* w, unsigned offset, unsigned bytes);
void report_after_block(Worker* w, const std::string& what, CUresult code = CUDA_ERROR_ILLEGAL_ADDRESS);   // no thread of the block runs any more
