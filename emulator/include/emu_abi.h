// What a compiled kernel and the driver share: a thread, its block, the table of a module's kernels, and the calls that
// a kernel makes when it has to wait for others. No standard header: kernels see this file.
#pragma once

struct emu_uint3 { unsigned x, y, z; };

struct emu_block;

// One per fiber; a fiber runs one thread of the block after another until one of them has to wait.
struct emu_thread {
    emu_uint3 tid;
    unsigned index;        // tid in one number, x fastest
    emu_block* block;
};

struct emu_block {
    emu_uint3 bid, bdim, gdim;
    unsigned nthreads;
    unsigned next;              // the first thread that has not been started
    unsigned tracked;           // set once a thread waits: from then on the driver is told of each thread that returns
    unsigned linear;            // bdim is (n,1,1)
    char* shared;               // the block's shared memory; a 32-bit shared address is an offset from here
    char* dynamic;              // where `extern __shared__` begins
    unsigned* shared_at;        // offset of each static shared variable, 0 until the block first meets it
    const unsigned* order;      // threads in shuffled order, or null
    emu_uint3 cluster_dim;      // 1,1,1 without clusters; x is fastest in the rank
    unsigned cluster_rank;
};

typedef void (*emu_run)(void** args);

struct emu_kernel {
    const char* name;
    emu_run run;
    unsigned nparams;
    const unsigned* sizes;
    unsigned max_threads;       // from __launch_bounds__, 0 if there is none
    unsigned min_blocks;        // its second number; known of kernels from PTX only
    unsigned static_shared;     // bytes; likewise
};

enum emu_kind { EMU_SYNCWARP, EMU_SHFL, EMU_VOTE, EMU_REDUCE, EMU_MATCH, EMU_MMA, EMU_LDMATRIX, EMU_STMATRIX, EMU_WGMMA, EMU_ELECT };

// Runs once when all lanes of a mask have arrived, by the last of them. `slots` holds what each lane brought.
typedef void (*emu_meet)(unsigned long long* slots, unsigned present);

#pragma GCC visibility push(default)
extern "C" {
// Sets `self` up as the thread that was just taken, where that is more than counting on.
void emu_pick(emu_thread* self);
// A thread returned while others wait: it may have been the one they wait for.
void emu_thread_exit(emu_thread* self);
unsigned emu_active_lanes(emu_thread* self);
// Barrier `id` for `count` threads (0: all of the block).
void emu_barrier(emu_thread* self, unsigned id, unsigned count, const char* file, int line);
void emu_barrier_arrive(emu_thread* self, unsigned id, unsigned count, const char* file, int line);
// op 0 counts, 1 and, 2 or.
int emu_barrier_reduce(emu_thread* self, int op, int predicate, const char* file, int line);
// The lanes of `mask` meet; each leaves a value and then sees all of them.
const unsigned long long* emu_warp(emu_thread* self, unsigned mask, int kind, unsigned long long value, unsigned* present,
                                   emu_meet last, const char* file, int line);
// First use of a static shared variable in a block.
unsigned emu_place_shared(emu_thread* self, unsigned id, unsigned bytes, unsigned align, const char* name);
// Lets others of the block run; for loops that poll.
void emu_yield(emu_thread* self);
[[noreturn]] void emu_misaligned(emu_thread* self, const void* p, unsigned bytes, const char* file, int line);
[[noreturn]] void emu_trap(emu_thread* self, const char* what, const char* file, int line);

void emu_cp_async(emu_thread* self, void* dst, const void* src, int bytes, int src_bytes);
void emu_cp_async_commit(emu_thread* self);
void emu_cp_async_wait(emu_thread* self, int pending);
void emu_warp_mma(unsigned long long* slots, unsigned present);
void emu_warp_ldmatrix(unsigned long long* slots, unsigned present);
void emu_warp_stmatrix(unsigned long long* slots, unsigned present);

// Hopper's words (mbarrier.cpp, bulk.cpp, wgmma.cpp).
void emu_mbarrier_init(emu_thread* self, void* bar, unsigned count, const char* file, int line);
void emu_mbarrier_invalidate(emu_thread* self, void* bar, const char* file, int line);
// Counts `arrivals` down after `bytes` more are expected; either may be 0.
void emu_mbarrier_arrive(emu_thread* self, void* bar, unsigned arrivals, unsigned bytes, const char* file, int line);
// how 0: asks only; 1: may wait, and may give up; 2: waits for as long as it takes.
bool emu_mbarrier_wait(emu_thread* self, void* bar, unsigned parity, int how, const char* file, int line);
// In the block of that rank, at the same place.
void emu_mbarrier_arrive_cluster(emu_thread* self, void* bar, unsigned rank, const char* file, int line);
void emu_fence_mbarrier_init(emu_thread* self);
void emu_fence_proxy_async(emu_thread* self);
void emu_bulk_load(emu_thread* self, void* dst, const void* src, unsigned bytes, void* bar, const char* file, int line);
void emu_bulk_store(emu_thread* self, void* dst, const void* src, unsigned bytes, const char* file, int line);
// kind 0 load, 1 store, 2 store that adds, 3 prefetch; offsets: null, or those of an im2col copy.
void emu_tensor_copy(emu_thread* self, int kind, void* shared, const void* map, void* bar, int rank, const int* coordinates, int im2col,
                     const int* offsets, const char* file, int line);
// A load into the blocks of the cluster that `mask` names.
void emu_tensor_multicast(emu_thread* self, void* shared, const void* map, void* bar, unsigned mask, int rank, const int* coordinates,
                          const char* file, int line);
void emu_bulk_commit(emu_thread* self);
void emu_bulk_wait(emu_thread* self, unsigned pending);
struct emu_wgmma;
void emu_wgmma_issue(emu_thread* self, const emu_wgmma* op, const char* file, int line);
void emu_wgmma_fence(emu_thread* self);
void emu_wgmma_commit(emu_thread* self, const char* file, int line);
void emu_wgmma_wait(emu_thread* self, unsigned pending, const char* file, int line);
// Whether these accumulators belong to a product that the thread has not waited for.
bool emu_wgmma_under_way(emu_thread* self, const float* d);
// The warp gives registers back, or takes more, up to `count` each thread (registers.cpp).
void emu_setmaxnreg(emu_thread* self, unsigned count, int takes, const char* file, int line);
// The barrier of all threads of a cluster (cluster.cpp).
void emu_cluster_arrive(emu_thread* self, const char* file, int line);
void emu_cluster_wait(emu_thread* self, const char* file, int line);
unsigned long long emu_clock();
unsigned short emu_f32_to_f16(float);
float emu_f16_to_f32(unsigned short);
}
#pragma GCC visibility pop

// Operands of one lane for the warp's matrix instructions; a slot of emu_warp holds a pointer to one.
struct emu_mma {
    int type;                   // 0 bf16, 1 f16, 2 tf32
    int k;
    unsigned a[4], b[4];
    float* d;
};
struct emu_wgmma {
    int type, n;                // 0 bf16, 1 f16, 2 tf32
    int a_in_registers, trans_a, trans_b, scale_a, scale_b, scale_d;
    unsigned long long a, b;    // descriptors
    unsigned ra[4];
    float* d;                   // n / 2 registers
};
struct emu_ldmatrix {
    const char* row;            // the address that this lane gives
    unsigned* r;
    int count, trans;
};

#if defined(__x86_64__) && !defined(EMU_PORTABLE)
#define EMU_SELF_IN_REGISTER 1
#endif
