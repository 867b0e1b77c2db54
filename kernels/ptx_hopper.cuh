// Hopper's words, in inline PTX as in ptx.cuh: mbarriers, the copy engine with its tensor maps, named barriers, stmatrix,
// and (ptx_wgmma.cuh) the tensor cores of a warpgroup. Pointers to shared memory are generic ones; a barrier is 8 bytes.
// For sm_90 and newer; what is marked so wants sm_90a. Without `__cluster_dims__` a cluster is of one block.
#pragma once
#include "ptx.cuh"

#ifdef HADAL_EMULATOR_PTX
#include "emu_hopper.h"
#else

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

// Named barriers 0 to 15 (0 is __syncthreads'): `count` threads, a multiple of 32, arrive or wait.
__device__ __forceinline__ void bar_sync(int id, int count) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory"); }
__device__ __forceinline__ void bar_arrive(int id, int count) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(count) : "memory");
}

#if __CUDA_ARCH__ >= 900

// ---- mbarriers. A phase ends when `count` arrivals and all bytes expected have come; the next one begins at once. A waiting
// thread names the parity of the phase that it waits for: the first phase has parity 0, and a wait for parity 1 on a new
// barrier returns at once.

__device__ __forceinline__ void mbarrier_init(unsigned long long* bar, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_invalidate(unsigned long long* bar) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(bar)) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(unsigned long long* bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_count(unsigned long long* bar, unsigned count) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
// Arrives once, after so many more bytes are expected in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(unsigned long long* bar, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbarrier_expect(unsigned long long* bar, unsigned bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
// Whether the phase is over: asked at once, or after a while.
__device__ __forceinline__ bool mbarrier_test_wait(unsigned long long* bar, unsigned parity) {
  unsigned over;
  asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
               : "=r"(over)
               : "r"(shared_address(bar)), "r"(parity)
               : "memory");
  return over;
}
__device__ __forceinline__ bool mbarrier_try_wait(unsigned long long* bar, unsigned parity) {
  unsigned over;
  asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
               : "=r"(over)
               : "r"(shared_address(bar)), "r"(parity)
               : "memory");
  return over;
}
__device__ __forceinline__ void mbarrier_wait(unsigned long long* bar, unsigned parity) {
  while (!mbarrier_try_wait(bar, parity)) {
  }
}

// By the thread that initialized barriers, before copies complete on them and (with a block's barrier) others use them.
__device__ __forceinline__ void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// By every thread that wrote shared memory which the copy engine or wgmma touches next, before the barrier that tells them.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The same for global memory.
__device__ __forceinline__ void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// ---- clusters: blocks that run at the same time. They find each other's shared memory by rank and a place of their own.

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// The barrier of all threads of all blocks, but for those that have returned. It must be passed after barriers are initialized and
// before others use them, and before a block ends at whose memory or barriers others may still be.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// Arrives at the barrier that lies at the same place in the block `rank`. It orders what the thread has read, which is what
// stages that others write again need; to publish writes to other blocks it would have to be `.release.cluster`, which is slow.
__device__ __forceinline__ void mbarrier_arrive_cluster(unsigned long long* bar, unsigned rank) {
  asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(
                   shared_address(bar)),
               "r"(rank)
               : "memory");
}

// ---- the copy engine, told by one thread

// A multiple of 16 bytes between places aligned to 16; loads complete on an mbarrier.
__device__ __forceinline__ void bulk_load(void* dst, const void* src, unsigned bytes, unsigned long long* bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(dst)),
               "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(shared_address(bar))
               : "memory");
}
__device__ __forceinline__ void bulk_store(void* dst, const void* src, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(dst)),
               "r"(shared_address(src)), "r"(bytes)
               : "memory");
}
// Stores complete by the groups that their thread commits. Until `bulk_wait_read` the source must stay as it is; after
// `bulk_wait` the destination is written.
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int pending> __device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}
template <int pending> __device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// Adds eight halves to those in global memory, at a multiple of 16 bytes, in the L2 cache: each element at once, in no order.
#define REDUCE_ADD(type)                                                                                                  \
  __device__ __forceinline__ void reduce_add_##type(void* to, uint4 v) {                                                  \
    asm volatile("red.global.add.noftz.v4." #type "x2 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),       \
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)                                                                   \
                 : "memory");                                                                                             \
  }
REDUCE_ADD(f16)
REDUCE_ADD(bf16)
#undef REDUCE_ADD
__device__ __forceinline__ void reduce_add_f32(float* to, float v) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "f"(v) : "memory");
}

// What cuTensorMapEncode* made, as a parameter `const __grid_constant__ TensorMap map`.
struct alignas(64) TensorMap {
  unsigned long long words[16];
};
__device__ __forceinline__ void tensor_map_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// A box of a tensor with its corner at the coordinates (channels first), to or from a place aligned to 128 bytes. What lies
// outside of the tensor is loaded as zeros (or NaNs, as the map says), counts among the bytes, and is not stored.
#define LIST(...) __VA_ARGS__
// With `mask` the box goes to the same place in all blocks of the cluster whose bits are set, and completes on the barrier at
// the same place as `bar` in each.
#define TENSOR_WORDS(rank, parameters, from2, from3, from4, operands)                                                     \
  __device__ __forceinline__ void tensor_load(void* dst, const TensorMap* map, unsigned long long* bar, parameters) {     \
    asm volatile("cp.async.bulk.tensor." rank                                                                             \
                 ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {" from3 "}], [%2];" ::"r"(        \
                     shared_address(dst)),                                                                                \
                 "l"(map), "r"(shared_address(bar)), operands                                                             \
                 : "memory");                                                                                             \
  }                                                                                                                       \
  __device__ __forceinline__ void tensor_load_multicast(void* dst, const TensorMap* map, unsigned long long* bar,         \
                                                        unsigned mask, parameters) {                                      \
    asm volatile("cp.async.bulk.tensor." rank                                                                             \
                 ".shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {" from4        \
                 "}], [%2], %3;" ::"r"(shared_address(dst)),                                                              \
                 "l"(map), "r"(shared_address(bar)), "h"((unsigned short)mask), operands                                  \
                 : "memory");                                                                                             \
  }                                                                                                                       \
  __device__ __forceinline__ void tensor_store(const TensorMap* map, const void* src, parameters) {                       \
    asm volatile("cp.async.bulk.tensor." rank ".global.shared::cta.tile.bulk_group [%0, {" from2 "}], [%1];" ::"l"(map),  \
                 "r"(shared_address(src)), operands                                                                       \
                 : "memory");                                                                                             \
  }                                                                                                                       \
  /* Adds to what is there, in the map's type: each element at once, in no order. */                                      \
  __device__ __forceinline__ void tensor_reduce_add(const TensorMap* map, const void* src, parameters) {                  \
    asm volatile("cp.reduce.async.bulk.tensor." rank ".global.shared::cta.add.tile.bulk_group [%0, {" from2               \
                 "}], [%1];" ::"l"(map),                                                                                  \
                 "r"(shared_address(src)), operands                                                                       \
                 : "memory");                                                                                             \
  }                                                                                                                       \
  /* Into the L2 cache. */                                                                                                \
  __device__ __forceinline__ void tensor_prefetch(const TensorMap* map, parameters) {                                     \
    asm volatile("cp.async.bulk.prefetch.tensor." rank ".L2.global.tile [%0, {" from2 "}];" ::"l"(map), "r"(0), operands  \
                 : "memory");                                                                                             \
  }
TENSOR_WORDS("1d", int c, "%2", "%3", "%4", "r"(c))
TENSOR_WORDS("2d", LIST(int c, int w), "%2, %3", "%3, %4", "%4, %5", LIST("r"(c), "r"(w)))
TENSOR_WORDS("3d", LIST(int c, int w, int h), "%2, %3, %4", "%3, %4, %5", "%4, %5, %6", LIST("r"(c), "r"(w), "r"(h)))
TENSOR_WORDS("4d", LIST(int c, int w, int h, int n), "%2, %3, %4, %5", "%3, %4, %5, %6", "%4, %5, %6, %7",
             LIST("r"(c), "r"(w), "r"(h), "r"(n)))
TENSOR_WORDS("5d", LIST(int c, int w, int h, int d, int n), "%2, %3, %4, %5, %6", "%3, %4, %5, %6, %7",
             "%4, %5, %6, %7, %8", LIST("r"(c), "r"(w), "r"(h), "r"(d), "r"(n)))
#undef TENSOR_WORDS

// A column of pixels of the bounding box from the coordinates on, W first, then H, D, N, in steps of the map's element
// strides; each is read at its place plus the offsets: one tap of a convolution. Channels come first.
#define TENSOR_WORDS(rank, parameters, from2, from3, operands, offset_parameters, offset_text, offset_operands)           \
  __device__ __forceinline__ void tensor_load_im2col(void* dst, const TensorMap* map, unsigned long long* bar,            \
                                                     parameters, offset_parameters) {                                     \
    asm volatile("cp.async.bulk.tensor." rank                                                                             \
                 ".shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {" from3 "}], [%2], {"           \
                 offset_text "};" ::"r"(shared_address(dst)),                                                             \
                 "l"(map), "r"(shared_address(bar)), operands, offset_operands                                            \
                 : "memory");                                                                                             \
  }                                                                                                                       \
  __device__ __forceinline__ void tensor_store_im2col(const TensorMap* map, const void* src, parameters) {                \
    asm volatile("cp.async.bulk.tensor." rank ".global.shared::cta.im2col_no_offs.bulk_group [%0, {" from2                \
                 "}], [%1];" ::"l"(map),                                                                                  \
                 "r"(shared_address(src)), operands                                                                       \
                 : "memory");                                                                                             \
  }
TENSOR_WORDS("3d", LIST(int c, int w, int n), "%2, %3, %4", "%3, %4, %5", LIST("r"(c), "r"(w), "r"(n)),
             int s, "%6", "h"((unsigned short)s))
TENSOR_WORDS("4d", LIST(int c, int w, int h, int n), "%2, %3, %4, %5", "%3, %4, %5, %6",
             LIST("r"(c), "r"(w), "r"(h), "r"(n)), LIST(int s, int r), "%7, %8",
             LIST("h"((unsigned short)s), "h"((unsigned short)r)))
TENSOR_WORDS("5d", LIST(int c, int w, int h, int d, int n), "%2, %3, %4, %5, %6", "%3, %4, %5, %6, %7",
             LIST("r"(c), "r"(w), "r"(h), "r"(d), "r"(n)), LIST(int s, int r, int t),
             "%8, %9, %10", LIST("h"((unsigned short)s), "h"((unsigned short)r), "h"((unsigned short)t)))
#undef TENSOR_WORDS
#undef LIST

// ---- stmatrix: lanes 0-7 give the rows of matrix 0, 8-15 of matrix 1 and so on, 16 bytes each; a register holds columns
// 2(lane%4) and the next of row lane/4, or (trans) these rows of that column.
#define STMATRIX(name, shape, text, ...)                                                                                  \
  __device__ __forceinline__ void name(void* row, const unsigned* r) {                                                    \
    asm volatile("stmatrix.sync.aligned.m8n8." shape ".shared.b16 [%0], {" text "};" ::"r"(shared_address(row)),          \
                 __VA_ARGS__                                                                                              \
                 : "memory");                                                                                             \
  }
STMATRIX(stmatrix_x2, "x2", "%1, %2", "r"(r[0]), "r"(r[1]))
STMATRIX(stmatrix_x4, "x4", "%1, %2, %3, %4", "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]))
STMATRIX(stmatrix_x2_trans, "x2.trans", "%1, %2", "r"(r[0]), "r"(r[1]))
STMATRIX(stmatrix_x4_trans, "x4.trans", "%1, %2, %3, %4", "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]))
#undef STMATRIX

// Two bf16, rounded to nearest even: the first in the lower half.
__device__ __forceinline__ unsigned f32_to_bf16x2(float first, float second) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

// True in one lane of a whole warp.
__device__ __forceinline__ bool elect_one() {
  unsigned mine;
  asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(mine));
  return mine;
}

// Between dependent launches: until the grid before has finished its writes; the grid after may start.
__device__ __forceinline__ void grid_dependency_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void grid_dependency_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Registers of each thread of a warpgroup from here on, 24 to 256 by eights, in a kernel with a cap by __launch_bounds__.
template <int count> __device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count> __device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
#endif

#include "ptx_wgmma.cuh"
#endif
