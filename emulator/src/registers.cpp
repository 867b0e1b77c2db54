// setmaxnreg: what the warps of a block have of the register file. A kernel starts with as many registers each thread as its launch
// bounds leave room for; who takes more needs others to have given some back. It is checked when the block ends: on the hardware a
// warp that takes too much waits for ever.
#include <algorithm>

#include "block.h"
#include "hopper.h"

static unsigned at_launch(const Launch& l) {
    unsigned threads = l.fn->max_threads * l.fn->min_blocks;
    return threads ? std::min(255u, 65536 / threads) & ~7u : 0;
}

extern "C" void emu_setmaxnreg(emu_thread* self, unsigned count, int takes, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Worker* w = f->worker;
    std::string name = std::string(takes ? "setmaxnreg.inc" : "setmaxnreg.dec") + at(file, line) + ": ";
    if (count < 24 || count > 256 || count % 8) fault(CUDA_ERROR_LAUNCH_FAILED, name + std::to_string(count) + " registers; it has 24 to 256, by eights");
    if (!w->launch->fn->from_ptx) return;       // the launch bounds' second number is not known
    unsigned first = at_launch(*w->launch);
    if (!first) fault(CUDA_ERROR_LAUNCH_FAILED, name + "the kernel names no blocks in its launch bounds, so ptxas would leave it out");
    if (w->registers.empty()) w->registers.assign(max_threads, (unsigned short)first);
    unsigned short& mine = w->registers[f->index];
    if (takes ? count < mine : count > mine)
        fault(CUDA_ERROR_LAUNCH_FAILED, name + "from " + std::to_string(mine) + " registers to " + std::to_string(count) + " is the other direction");
    mine = (unsigned short)count;
}
void registers_end_block(Worker* w) {
    unsigned n = w->block.nthreads, first = at_launch(*w->launch), all = 0;
    for (unsigned i = 0; i < n; i++) {
        all += w->registers[i];
        // By warpgroups: all of them execute the same one.
        if (w->registers[i] != w->registers[i / 128 * 128]) {
            report_after_block(w, "setmaxnreg: thread " + thread_name(w->block, i) + " has not the registers of its warpgroup's first thread", CUDA_ERROR_LAUNCH_FAILED);
            break;
        }
    }
    if (all > first * n)
        report_after_block(w, "setmaxnreg: the block's threads take " + std::to_string(all) + " registers of " + std::to_string(first * n) + ": one of its warps would wait for ever",
                           CUDA_ERROR_LAUNCH_FAILED);
    w->registers.clear();
}
