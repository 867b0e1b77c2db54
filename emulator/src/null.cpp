// Null mode: kernels, fills and copies do nothing, so that a program runs at full size in seconds. What the driver checks of them is
// checked: launch limits, shared memory, places. What comes back to the host is zeros.
#include <cstdio>
#include <cstring>

#include "internal.h"

static CUresult outside(const char* what, uintptr_t p, size_t bytes) {
    fprintf(stderr, "hadal emulator: %s of %zu bytes: %s\n", what, bytes, memory::describe(p, bytes).c_str());
    return CUDA_ERROR_ILLEGAL_ADDRESS;
}
static CUresult copy(Op& op) {
    bool to = memory::in_arena(op.dst), from = memory::in_arena(op.src);
    if (to && !memory::range_ok(op.dst, op.bytes)) return outside("copy", op.dst, op.bytes);
    if (from && !memory::range_ok(op.src, op.bytes)) return outside("copy", op.src, op.bytes);
    count(to && from ? Copies : to ? Uploads : Downloads);
    if (!to) memset((void*)op.dst, 0, op.bytes);
    return CUDA_SUCCESS;
}
bool run_nothing(Op& op, CUresult* r) {
    *r = CUDA_SUCCESS;
    if (op.kind == Op::Kernel) {
        // Again: a captured launch may have been allowed more shared memory than its function has when it is replayed.
        Launch l;
        l.fn = op.fn, l.grid = op.grid, l.block = op.block, l.cluster = op.cluster, l.dynamic_shared = op.dynamic_shared;
        *r = validate_launch(l);
        if (*r != CUDA_SUCCESS)
            fprintf(stderr, "hadal emulator: kernel `%s`: grid (%u,%u,%u), block (%u,%u,%u) and %u bytes of shared memory are refused\n", op.fn->name.c_str(), op.grid.x, op.grid.y,
                    op.grid.z, op.block.x, op.block.y, op.block.z, op.dynamic_shared);
        op.fn->launches++;
        count(Launches);
        return true;
    }
    if (op.kind == Op::Memcpy) {
        *r = copy(op);
        return true;
    }
    if (op.kind == Op::Memset) {
        size_t span = op.height == 1 ? op.bytes * op.width : op.pitch * (op.height - 1) + op.bytes * op.width;
        if (!memory::range_ok(op.dst, span)) *r = outside("fill", op.dst, span);
        count(Memsets);
        return true;
    }
    return op.kind == Op::Alloc;
}
