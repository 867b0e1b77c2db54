// What a process did, for $HADAL_EMU_COUNTS: a file to which each library appends one line when the process ends, and in null mode one
// at each synchronization: the difference of two is what was done between.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "internal.h"

static std::atomic<uint64_t> counted[Counts];
static const char* const names[Counts] = {"translated", "kept", "launches", "memsets", "uploads", "downloads", "copies", "encodes", "attributes", "replays", "synchronizations"};

// One write, so that the lines of several processes do not mix.
static void write_line(const char* path, const char* head) {
    std::string line = head;
    for (int i = 0; i < Counts; i++)
        if (uint64_t n = counted[i].load()) line += " " + std::string(names[i]) + "=" + std::to_string(n);
    if (line == head) return;
    line += "\n";
    int f = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (f < 0) return;
    if (write(f, line.data(), line.size()) < 0) fprintf(stderr, "hadal emulator: cannot write %s\n", path);
    close(f);
}
void count(Count c) {
    static const char* const path = [] {
        const char* p = getenv("HADAL_EMU_COUNTS");
        if (p && *p) atexit([] { write_line(getenv("HADAL_EMU_COUNTS"), "end"); });
        return p && *p ? p : nullptr;
    }();
    if (path) counted[c].fetch_add(1, std::memory_order_relaxed);
}
void count_synchronization() {
    count(Synchronizations);
    const char* path = getenv("HADAL_EMU_COUNTS");
    if (compiler::mode() == compiler::Nothing && path && *path) write_line(path, "sync");
}
