// Cards by name: capability, multiprocessors, L2 cache and memory as NVIDIA's data sheets have them. Shared memory follows the capability;
// each multiprocessor has 65536 registers in all of them.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "internal.h"

namespace {
struct Card {
    const char *name, *full;
    int major, minor, multiprocessors;
    size_t l2, memory;                  // MiB, GiB
    int clock_mhz, memory_mhz, bus_bits;
};
}
static const Card cards[] = {
    {"t4", "Tesla T4", 7, 5, 40, 4, 15, 1590, 5001, 256},
    {"a100", "NVIDIA A100-SXM4-40GB", 8, 0, 108, 40, 40, 1410, 1215, 5120},
    {"rtx3090", "NVIDIA GeForce RTX 3090", 8, 6, 82, 6, 24, 1695, 9751, 384},
    {"rtx4090", "NVIDIA GeForce RTX 4090", 8, 9, 128, 72, 24, 2520, 10501, 384},
    {"h100", "NVIDIA H100 80GB HBM3", 9, 0, 132, 50, 80, 1980, 2619, 5120},
    {"b200", "NVIDIA B200", 10, 0, 148, 126, 180, 1965, 3996, 8192},
    {"rtx5090", "NVIDIA GeForce RTX 5090", 12, 0, 170, 96, 32, 2407, 14001, 512},
};

void take_capability(Settings* s) {
    int cc = s->cc_major * 10 + s->cc_minor;
    s->multiprocessors = cc >= 100 ? 148 : cc >= 90 ? 132 : cc >= 80 ? 108 : 68;
    unsigned kib = cc == 75 ? 64 : cc == 70 ? 96 : cc == 80 || cc == 87 ? 163 : cc < 90 || cc >= 120 ? 99 : 227;
    s->max_shared = kib * 1024;
    s->shared_per_sm = (kib + (cc < 80 ? 0 : 1)) * 1024;
}
void take_card(Settings* s, const char* name) {
    for (auto& c : cards) {
        if (strcmp(c.name, name)) continue;
        s->name = c.full;
        s->cc_major = c.major, s->cc_minor = c.minor;
        take_capability(s);
        s->multiprocessors = c.multiprocessors;
        s->l2 = c.l2 << 20, s->memory = c.memory << 30;
        s->clock_khz = c.clock_mhz * 1000, s->memory_khz = c.memory_mhz * 1000, s->bus_bits = c.bus_bits;
        return;
    }
    fprintf(stderr, "hadal emulator: HADAL_EMU_CARD=%s is none of", name);
    for (auto& c : cards) fprintf(stderr, " %s", c.name);
    fputc('\n', stderr);
    exit(2);
}
