// The emulator's side of kernels/ptx_hopper.cuh, as emu_ptx.h is that of kernels/ptx.cuh.
#pragma once
#include "emu_ptx.h"

struct alignas(64) TensorMap { unsigned long long words[16]; };

// ---- mbarriers

EMU_IN void mbarrier_init(unsigned long long* e_bar, unsigned e_count, EMU_SITE) { emu_mbarrier_init(emu_self, e_bar, e_count, file, line); }
EMU_IN void mbarrier_invalidate(unsigned long long* e_bar, EMU_SITE) { emu_mbarrier_invalidate(emu_self, e_bar, file, line); }
EMU_IN void mbarrier_arrive(unsigned long long* e_bar, EMU_SITE) { emu_mbarrier_arrive(emu_self, e_bar, 1, 0, file, line); }
EMU_IN void mbarrier_arrive_count(unsigned long long* e_bar, unsigned e_count, EMU_SITE) { emu_mbarrier_arrive(emu_self, e_bar, e_count, 0, file, line); }
EMU_IN void mbarrier_arrive_expect(unsigned long long* e_bar, unsigned e_bytes, EMU_SITE) { emu_mbarrier_arrive(emu_self, e_bar, 1, e_bytes, file, line); }
EMU_IN void mbarrier_expect(unsigned long long* e_bar, unsigned e_bytes, EMU_SITE) { emu_mbarrier_arrive(emu_self, e_bar, 0, e_bytes, file, line); }
EMU_IN void mbarrier_arrive_cluster(unsigned long long* e_bar, unsigned e_rank, EMU_SITE) { emu_mbarrier_arrive_cluster(emu_self, e_bar, e_rank, file, line); }
EMU_IN bool mbarrier_test_wait(unsigned long long* e_bar, unsigned e_parity, EMU_SITE) { return emu_mbarrier_wait(emu_self, e_bar, e_parity, 0, file, line); }
EMU_IN bool mbarrier_try_wait(unsigned long long* e_bar, unsigned e_parity, EMU_SITE) { return emu_mbarrier_wait(emu_self, e_bar, e_parity, 1, file, line); }
EMU_IN void mbarrier_wait(unsigned long long* e_bar, unsigned e_parity, EMU_SITE) { emu_mbarrier_wait(emu_self, e_bar, e_parity, 2, file, line); }
EMU_IN void fence_mbarrier_init() { emu_fence_mbarrier_init(emu_self); }
EMU_IN void fence_proxy_async() { emu_fence_proxy_async(emu_self); }
EMU_IN void fence_proxy_async_global() {}

// ---- clusters

EMU_IN unsigned cluster_rank() { return emu_self->block->cluster_rank; }
EMU_IN unsigned cluster_size() { return emu_self->block->cluster_dim.x * emu_self->block->cluster_dim.y * emu_self->block->cluster_dim.z; }
EMU_IN void cluster_arrive(EMU_SITE) { emu_cluster_arrive(emu_self, file, line); }
EMU_IN void cluster_wait(EMU_SITE) { emu_cluster_wait(emu_self, file, line); }

// ---- the copy engine

EMU_IN void bulk_load(void* e_dst, const void* e_src, unsigned e_bytes, unsigned long long* e_bar, EMU_SITE) {
    emu_bulk_load(emu_self, e_dst, e_src, e_bytes, e_bar, file, line);
}
EMU_IN void bulk_store(void* e_dst, const void* e_src, unsigned e_bytes, EMU_SITE) { emu_bulk_store(emu_self, e_dst, e_src, e_bytes, file, line); }
EMU_IN void bulk_commit() { emu_bulk_commit(emu_self); }
template <int e_pending> EMU_IN void bulk_wait() { emu_bulk_wait(emu_self, e_pending); }
template <int e_pending> EMU_IN void bulk_wait_read() { emu_bulk_wait(emu_self, e_pending); }

#define EMU_REDUCE_ADD(type)                                                                                                    \
    EMU_IN void reduce_add_##type(void* e_to, uint4 e_v) {                                                                      \
        unsigned short* e_h = (unsigned short*)e_to;                                                                            \
        unsigned e_w[] = {e_v.x, e_v.y, e_v.z, e_v.w};                                                                          \
        for (int e_i = 0; e_i < 8; e_i++)                                                                                       \
            e_h[e_i] = f32_to_##type##_bits(type##_bits_to_f32(e_h[e_i]) +                                                      \
                                            type##_bits_to_f32((unsigned short)(e_w[e_i / 2] >> e_i % 2 * 16)));                \
    }
EMU_REDUCE_ADD(f16)
EMU_REDUCE_ADD(bf16)
#undef EMU_REDUCE_ADD
EMU_IN void reduce_add_f32(float* e_to, float e_v) { *e_to += e_v; }

EMU_IN void tensor_map_prefetch(const TensorMap*) {}
#define EMU_TENSOR(rank, coordinates, ...)                                                                                      \
    EMU_IN void tensor_load(void* e_dst, const TensorMap* e_map, unsigned long long* e_bar, coordinates, EMU_SITE) {            \
        int e_c[] = {__VA_ARGS__};                                                                                              \
        emu_tensor_copy(emu_self, 0, e_dst, e_map, e_bar, rank, e_c, 0, 0, file, line);                                         \
    }                                                                                                                           \
    EMU_IN void tensor_load_multicast(void* e_dst, const TensorMap* e_map, unsigned long long* e_bar, unsigned e_mask, coordinates, EMU_SITE) { \
        int e_c[] = {__VA_ARGS__};                                                                                              \
        emu_tensor_multicast(emu_self, e_dst, e_map, e_bar, e_mask, rank, e_c, file, line);                                     \
    }                                                                                                                           \
    EMU_IN void tensor_store(const TensorMap* e_map, const void* e_src, coordinates, EMU_SITE) {                                \
        int e_c[] = {__VA_ARGS__};                                                                                              \
        emu_tensor_copy(emu_self, 1, (void*)e_src, e_map, 0, rank, e_c, 0, 0, file, line);                                      \
    }                                                                                                                           \
    EMU_IN void tensor_reduce_add(const TensorMap* e_map, const void* e_src, coordinates, EMU_SITE) {                           \
        int e_c[] = {__VA_ARGS__};                                                                                              \
        emu_tensor_copy(emu_self, 2, (void*)e_src, e_map, 0, rank, e_c, 0, 0, file, line);                                      \
    }                                                                                                                           \
    EMU_IN void tensor_prefetch(const TensorMap* e_map, coordinates, EMU_SITE) {                                                \
        int e_c[] = {__VA_ARGS__};                                                                                              \
        emu_tensor_copy(emu_self, 3, 0, e_map, 0, rank, e_c, 0, 0, file, line);                                                 \
    }
#define EMU_LIST(...) __VA_ARGS__
EMU_TENSOR(1, int e_0, e_0)
EMU_TENSOR(2, EMU_LIST(int e_0, int e_1), e_0, e_1)
EMU_TENSOR(3, EMU_LIST(int e_0, int e_1, int e_2), e_0, e_1, e_2)
EMU_TENSOR(4, EMU_LIST(int e_0, int e_1, int e_2, int e_3), e_0, e_1, e_2, e_3)
EMU_TENSOR(5, EMU_LIST(int e_0, int e_1, int e_2, int e_3, int e_4), e_0, e_1, e_2, e_3, e_4)
#undef EMU_TENSOR

#define EMU_IM2COL(rank, coordinates, offsets, list, ...)                                                                       \
    EMU_IN void tensor_load_im2col(void* e_dst, const TensorMap* e_map, unsigned long long* e_bar, coordinates, offsets, EMU_SITE) { \
        int e_c[] = {list};                                                                                                     \
        int e_o[] = {__VA_ARGS__};                                                                                   \
        emu_tensor_copy(emu_self, 0, e_dst, e_map, e_bar, rank, e_c, 1, e_o, file, line);                                       \
    }                                                                                                                           \
    EMU_IN void tensor_store_im2col(const TensorMap* e_map, const void* e_src, coordinates, EMU_SITE) {                         \
        int e_c[] = {list};                                                                                                     \
        emu_tensor_copy(emu_self, 1, (void*)e_src, e_map, 0, rank, e_c, 1, 0, file, line);                                      \
    }
EMU_IM2COL(3, EMU_LIST(int e_0, int e_1, int e_2), int e_3, EMU_LIST(e_0, e_1, e_2), e_3)
EMU_IM2COL(4, EMU_LIST(int e_0, int e_1, int e_2, int e_3), EMU_LIST(int e_4, int e_5), EMU_LIST(e_0, e_1, e_2, e_3), e_4, e_5)
EMU_IM2COL(5, EMU_LIST(int e_0, int e_1, int e_2, int e_3, int e_4), EMU_LIST(int e_5, int e_6, int e_7),
           EMU_LIST(e_0, e_1, e_2, e_3, e_4), e_5, e_6, e_7)
#undef EMU_IM2COL
#undef EMU_LIST

EMU_IN unsigned f32_to_bf16x2(float e_first, float e_second) { return f32_to_bf16_bits(e_first) | (unsigned)f32_to_bf16_bits(e_second) << 16; }

// ---- wgmma

EMU_IN unsigned long long wgmma_descriptor(const void* e_tile, unsigned e_leading, unsigned e_stride, int e_swizzle) {
    unsigned long long e_mode = e_swizzle == 128 ? 1 : e_swizzle == 64 ? 2 : e_swizzle == 32 ? 3 : 0;
    return (unsigned)__cvta_generic_to_shared(e_tile) >> 4 | (unsigned long long)(e_leading >> 4) << 16 | (unsigned long long)(e_stride >> 4) << 32 | e_mode << 62;
}
EMU_IN void wgmma_fence() { emu_wgmma_fence(emu_self); }
EMU_IN void wgmma_commit(EMU_SITE) { emu_wgmma_commit(emu_self, file, line); }
template <int e_count> EMU_IN void wgmma_results(float (&)[e_count]) {}
template <int e_pending> EMU_IN void wgmma_wait(EMU_SITE) { emu_wgmma_wait(emu_self, e_pending, file, line); }

EMU_IN void emu_wgmma_of(int e_type, int e_n, float* e_d, const unsigned* e_ra, unsigned long long e_a, unsigned long long e_b, int e_scale_d, int e_trans_a,
                         int e_trans_b, int e_scale_a, int e_scale_b, const char* e_file, int e_line) {
    emu_wgmma e_op = {e_type, e_n, e_ra != 0, e_trans_a, e_trans_b, e_scale_a, e_scale_b, e_scale_d != 0, e_a, e_b, {0, 0, 0, 0}, e_d};
    if (e_ra)
        for (int e_i = 0; e_i < 4; e_i++) e_op.ra[e_i] = e_ra[e_i];
    emu_wgmma_issue(emu_self, &e_op, e_file, e_line);
}
#define EMU_WGMMA(name, type)                                                                                                   \
    template <int e_n, int e_trans_a = 0, int e_trans_b = 0, int e_scale_a = 1, int e_scale_b = 1>                              \
    EMU_IN void wgmma_##name(float* e_d, unsigned long long e_a, unsigned long long e_b, int e_scale_d, EMU_SITE) {             \
        static_assert(e_n >= 8 && e_n <= 256 && e_n % 8 == 0, "wgmma has 8 to 256 columns, by eights");                         \
        emu_wgmma_of(type, e_n, e_d, 0, e_a, e_b, e_scale_d, e_trans_a, e_trans_b, e_scale_a, e_scale_b, file, line);           \
    }                                                                                                                           \
    template <int e_n, int e_trans_b = 0, int e_scale_a = 1, int e_scale_b = 1>                                                 \
    EMU_IN void wgmma_##name(float* e_d, const unsigned* e_a, unsigned long long e_b, int e_scale_d, EMU_SITE) {                \
        static_assert(e_n >= 8 && e_n <= 256 && e_n % 8 == 0, "wgmma has 8 to 256 columns, by eights");                         \
        emu_wgmma_of(type, e_n, e_d, e_a, 0, e_b, e_scale_d, 0, e_trans_b, e_scale_a, e_scale_b, file, line);                   \
    }
EMU_WGMMA(bf16, 0)
EMU_WGMMA(f16, 1)
#undef EMU_WGMMA
template <int e_n, int e_scale_a = 1, int e_scale_b = 1>
EMU_IN void wgmma_tf32(float* e_d, unsigned long long e_a, unsigned long long e_b, int e_scale_d, EMU_SITE) {
    static_assert(e_n >= 8 && e_n <= 256 && e_n % 8 == 0, "wgmma has 8 to 256 columns, by eights");
    emu_wgmma_of(2, e_n, e_d, 0, e_a, e_b, e_scale_d, 0, 0, e_scale_a, e_scale_b, file, line);
}
template <int e_n, int e_scale_a = 1, int e_scale_b = 1>
EMU_IN void wgmma_tf32(float* e_d, const unsigned* e_a, unsigned long long e_b, int e_scale_d, EMU_SITE) {
    static_assert(e_n >= 8 && e_n <= 256 && e_n % 8 == 0, "wgmma has 8 to 256 columns, by eights");
    emu_wgmma_of(2, e_n, e_d, e_a, 0, e_b, e_scale_d, 0, 0, e_scale_a, e_scale_b, file, line);
}

// ---- the rest

EMU_IN bool elect_one(EMU_SITE) {
    unsigned e_present;
    emu_warp(emu_self, 0xffffffffu, EMU_ELECT, 0, &e_present, 0, file, line);
    return (unsigned)__builtin_ctz(e_present) == emu_lane();
}
template <int e_count> EMU_IN void setmaxnreg_inc() { static_assert(e_count >= 24 && e_count <= 256 && e_count % 8 == 0, "24 to 256 registers, by eights"); }
template <int e_count> EMU_IN void setmaxnreg_dec() { static_assert(e_count >= 24 && e_count <= 256 && e_count % 8 == 0, "24 to 256 registers, by eights"); }
// Launches follow one another here.
EMU_IN void grid_dependency_wait() {}
EMU_IN void grid_dependency_launch() {}
