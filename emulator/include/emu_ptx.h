// The emulator's side of kernels/ptx.cuh: what that file wraps in inline PTX for the hardware, as plain functions of the same
// names. Names of parameters and templates are long on purpose: -D may have made macros of the short ones.
#pragma once

EMU_IN unsigned short f32_to_f16_bits(float e_x) {
#if defined(__F16C__)
    typedef float e_v4 __attribute__((vector_size(16)));
    typedef short e_h8 __attribute__((vector_size(16)));
    e_v4 e_v = {e_x, 0, 0, 0};
    e_h8 e_h = (e_h8)__builtin_ia32_vcvtps2ph(e_v, 0);
    return e_x != e_x ? 0x7fff : (unsigned short)e_h[0];
#else
    return emu_f32_to_f16(e_x);
#endif
}
EMU_IN float f16_bits_to_f32(unsigned short e_h) {
#if defined(__F16C__)
    typedef float e_v4 __attribute__((vector_size(16)));
    typedef short e_h8 __attribute__((vector_size(16)));
    e_h8 e_v = {(short)e_h, 0, 0, 0, 0, 0, 0, 0};
    e_v4 e_r = __builtin_ia32_vcvtph2ps(e_v);
    return e_r[0];
#else
    return emu_f16_to_f32(e_h);
#endif
}
EMU_IN unsigned short f32_to_bf16_bits(float e_x) {
    unsigned e_u = __float_as_uint(e_x);
    if (e_x != e_x) return (unsigned short)(e_u >> 16 | 0x40);
    return (unsigned short)((e_u + 0x7fff + (e_u >> 16 & 1)) >> 16);
}
EMU_IN float bf16_bits_to_f32(unsigned short e_h) { return __uint_as_float((unsigned)e_h << 16); }
EMU_IN unsigned f32_pair_to_f16_bits(float e_low, float e_high) { return f32_to_f16_bits(e_low) | (unsigned)f32_to_f16_bits(e_high) << 16; }
EMU_IN unsigned f32_pair_to_bf16_bits(float e_low, float e_high) { return f32_to_bf16_bits(e_low) | (unsigned)f32_to_bf16_bits(e_high) << 16; }

// cp.async: bytes beyond e_src_bytes become zero.
EMU_IN void cp_async_16(void* e_dst, const void* e_src, int e_src_bytes = 16) { emu_cp_async(emu_self, e_dst, e_src, 16, e_src_bytes); }
EMU_IN void cp_async_8(void* e_dst, const void* e_src, int e_src_bytes = 8) { emu_cp_async(emu_self, e_dst, e_src, 8, e_src_bytes); }
EMU_IN void cp_async_4(void* e_dst, const void* e_src, int e_src_bytes = 4) { emu_cp_async(emu_self, e_dst, e_src, 4, e_src_bytes); }
EMU_IN void cp_async_commit() { emu_cp_async_commit(emu_self); }
template <int e_pending> EMU_IN void cp_async_wait() { emu_cp_async_wait(emu_self, e_pending); }
EMU_IN void cp_async_wait_all() { emu_cp_async_wait(emu_self, -1); }

EMU_IN void store_16(void* e_dst, uint4 e_v) { *(uint4*)e_dst = e_v; }

// Named barriers.
EMU_IN void bar_sync(int e_id, int e_count, EMU_SITE) { emu_barrier(emu_self, (unsigned)e_id, (unsigned)e_count, file, line); }
EMU_IN void bar_arrive(int e_id, int e_count, EMU_SITE) { emu_barrier_arrive(emu_self, (unsigned)e_id, (unsigned)e_count, file, line); }

EMU_IN void emu_matrix(unsigned* e_r, const void* e_row, int e_count, int e_trans, bool e_store, const char* e_file, int e_line) {
    emu_ldmatrix e_op = {(const char*)e_row, e_r, e_count, e_trans};
    emu_warp(emu_self, 0xffffffffu, e_store ? EMU_STMATRIX : EMU_LDMATRIX, (unsigned long long)&e_op, 0, e_store ? emu_warp_stmatrix : emu_warp_ldmatrix, e_file, e_line);
}
EMU_IN void ldmatrix_x1(unsigned* e_r, const void* e_row, EMU_SITE) { emu_matrix(e_r, e_row, 1, 0, false, file, line); }
EMU_IN void ldmatrix_x2(unsigned* e_r, const void* e_row, EMU_SITE) { emu_matrix(e_r, e_row, 2, 0, false, file, line); }
EMU_IN void ldmatrix_x4(unsigned* e_r, const void* e_row, EMU_SITE) { emu_matrix(e_r, e_row, 4, 0, false, file, line); }
EMU_IN void ldmatrix_x1_trans(unsigned* e_r, const void* e_row, EMU_SITE) { emu_matrix(e_r, e_row, 1, 1, false, file, line); }
EMU_IN void ldmatrix_x2_trans(unsigned* e_r, const void* e_row, EMU_SITE) { emu_matrix(e_r, e_row, 2, 1, false, file, line); }
EMU_IN void ldmatrix_x4_trans(unsigned* e_r, const void* e_row, EMU_SITE) { emu_matrix(e_r, e_row, 4, 1, false, file, line); }
EMU_IN void stmatrix_x2(void* e_row, const unsigned* e_r, EMU_SITE) { emu_matrix((unsigned*)e_r, e_row, 2, 0, true, file, line); }
EMU_IN void stmatrix_x4(void* e_row, const unsigned* e_r, EMU_SITE) { emu_matrix((unsigned*)e_r, e_row, 4, 0, true, file, line); }
EMU_IN void stmatrix_x2_trans(void* e_row, const unsigned* e_r, EMU_SITE) { emu_matrix((unsigned*)e_r, e_row, 2, 1, true, file, line); }
EMU_IN void stmatrix_x4_trans(void* e_row, const unsigned* e_r, EMU_SITE) { emu_matrix((unsigned*)e_r, e_row, 4, 1, true, file, line); }

// D += A * B, row.col, accumulating in f32.
EMU_IN void emu_mma_sync(int e_type, int e_k, float* e_d, const unsigned* e_a, const unsigned* e_b, const char* e_file, int e_line) {
    emu_mma e_op;
    e_op.type = e_type, e_op.k = e_k;
    int e_na = e_type == 2 ? (e_k == 4 ? 2 : 4) : (e_k == 8 ? 2 : 4);
    for (int e_i = 0; e_i < e_na; e_i++) e_op.a[e_i] = e_a[e_i];
    for (int e_i = 0; e_i < e_na / 2; e_i++) e_op.b[e_i] = e_b[e_i];
    float e_acc[4] = {e_d[0], e_d[1], e_d[2], e_d[3]};
    e_op.d = e_acc;
    emu_warp(emu_self, 0xffffffffu, EMU_MMA, (unsigned long long)&e_op, 0, emu_warp_mma, e_file, e_line);
    // What the other lanes wrote into e_acc is invisible to the compiler.
    asm volatile("" : : "r"(e_acc) : "memory");
    for (int e_i = 0; e_i < 4; e_i++) e_d[e_i] = e_acc[e_i];
}
EMU_IN void mma_m16n8k16_bf16(float* e_d, const unsigned* e_a, const unsigned* e_b, EMU_SITE) { emu_mma_sync(0, 16, e_d, e_a, e_b, file, line); }
EMU_IN void mma_m16n8k16_f16(float* e_d, const unsigned* e_a, const unsigned* e_b, EMU_SITE) { emu_mma_sync(1, 16, e_d, e_a, e_b, file, line); }
EMU_IN void mma_m16n8k8_bf16(float* e_d, const unsigned* e_a, const unsigned* e_b, EMU_SITE) { emu_mma_sync(0, 8, e_d, e_a, e_b, file, line); }
EMU_IN void mma_m16n8k8_f16(float* e_d, const unsigned* e_a, const unsigned* e_b, EMU_SITE) { emu_mma_sync(1, 8, e_d, e_a, e_b, file, line); }
EMU_IN void mma_m16n8k8_tf32(float* e_d, const unsigned* e_a, const unsigned* e_b, EMU_SITE) { emu_mma_sync(2, 8, e_d, e_a, e_b, file, line); }
EMU_IN void mma_m16n8k4_tf32(float* e_d, const unsigned* e_a, const unsigned* e_b, EMU_SITE) { emu_mma_sync(2, 4, e_d, e_a, e_b, file, line); }
// cvt.rna.tf32.f32: to the nearest, ties away from zero.
EMU_IN unsigned f32_to_tf32_bits(float e_x) {
    unsigned e_u = __float_as_uint(e_x);
    if ((e_u & 0x7f800000) == 0x7f800000) return e_u;
    return (e_u + 0x1000) & 0xffffe000;
}
