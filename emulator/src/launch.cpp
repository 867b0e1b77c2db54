// A launch: what the driver refuses, the blocks spread over the host's threads, and faults.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <thread>

#include "block.h"

TLS Worker* current_worker;

// ---- one worker per host thread, given back when the thread ends

static std::mutex workers_lock;
static std::vector<Worker*> spare_workers;
namespace {
struct Lease {
    Worker* w = nullptr;
    char* alt_stack = nullptr;
    ~Lease() {
        if (alt_stack) {
            stack_t off{};
            off.ss_flags = SS_DISABLE;
            stack_t now{};
            if (sigaltstack(nullptr, &now) == 0 && now.ss_sp == alt_stack) sigaltstack(&off, nullptr);
            munmap(alt_stack, 64 * 1024);
        }
        if (!w) return;
        std::lock_guard<std::mutex> g(workers_lock);
        spare_workers.push_back(w);
    }
};
}
static thread_local Lease lease;

Worker* take_worker() {
    if (lease.w) return lease.w;
    // A fault may be the overflow of a fiber's stack, so its handler needs another one. Rust's threads bring their own.
    stack_t now{};
    if (sigaltstack(nullptr, &now) == 0 && (now.ss_flags & SS_DISABLE)) {
        lease.alt_stack = (char*)mmap(nullptr, 64 * 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        stack_t on{};
        on.ss_sp = lease.alt_stack;
        on.ss_size = 64 * 1024;
        sigaltstack(&on, nullptr);
    }
    std::lock_guard<std::mutex> g(workers_lock);
    if (!spare_workers.empty()) {
        lease.w = spare_workers.back();
        spare_workers.pop_back();
    } else {
        lease.w = new Worker;
    }
    return lease.w;
}

// ---- one launch's work, shared by the threads that help

namespace {
struct Job {
    Launch* l;
    uint64_t total, mul = 1, add = 0;
    std::atomic<uint64_t> next{0};
    std::atomic<int> error{0};
    std::mutex report;
};
}
static TLS Job* current_job;

static void work(Job& job) {
    Worker* w = take_worker();
    Worker* outer = current_worker;
    current_worker = w;
    current_job = &job;
    Launch& l = *job.l;
    Dim c = cluster_of(l);
    Dim grid = {l.grid.x / c.x, l.grid.y / c.y, l.grid.z / c.z};        // of clusters
    uint64_t xy = (uint64_t)grid.x * grid.y;
    uint64_t chunk = job.total > 4096 ? 16 : 1;
    while (!job.error.load(std::memory_order_relaxed)) {
        uint64_t i = job.next.fetch_add(chunk, std::memory_order_relaxed);
        if (i >= job.total) break;
        for (uint64_t k = i; k < i + chunk && k < job.total && !job.error.load(std::memory_order_relaxed); k++) {
            uint64_t b = job.mul == 1 ? k : (uint64_t)(((unsigned __int128)k * job.mul + job.add) % job.total);
            w->random = settings().seed * 0x9E3779B97F4A7C15ull + b;
            unsigned x = (unsigned)(b % grid.x), y = (unsigned)(b / grid.x % grid.y), z = (unsigned)(b / xy);
            if (!l.fn->cluster.x && c.x * c.y * c.z == 1) w->run_block(l, x, y, z);
            else w->run_cluster(l, c, x * c.x, y * c.y, z * c.z);
        }
    }
    current_worker = outer;
    current_job = nullptr;
}

namespace {
class Pool {
public:
    Pool() {
        int n = settings().threads ? settings().threads : (int)std::thread::hardware_concurrency();
        if (n > 16 && !settings().threads) n = 16;
        for (int i = 1; i < n; i++) std::thread([this] { helper(); }).detach();
        helpers = n - 1;
    }
    // The caller works as well. While one launch has the helpers, others run on their callers alone.
    void run(Job& job) {
        Launch& l = *job.l;
        Dim c = cluster_of(l);
        uint64_t threads = job.total * c.x * c.y * c.z * l.block.x * l.block.y * l.block.z;
        if (helpers == 0 || job.total < 2 || threads < 2048 || !busy.try_lock()) {
            work(job);
            return;
        }
        {
            std::lock_guard<std::mutex> g(m);
            current = &job;
            round++;
            running = 0;
        }
        wake.notify_all();
        work(job);
        {
            std::unique_lock<std::mutex> g(m);
            current = nullptr;
            finished.wait(g, [&] { return running == 0; });
        }
        busy.unlock();
    }

private:
    void helper() {
        sigset_t all;
        sigfillset(&all);
        for (int s : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&all, s);
        pthread_sigmask(SIG_BLOCK, &all, nullptr);
        uint64_t seen = 0;
        for (;;) {
            Job* job;
            {
                std::unique_lock<std::mutex> g(m);
                wake.wait(g, [&] { return current && round != seen; });
                seen = round;
                job = current;
                running++;
            }
            work(*job);
            {
                std::lock_guard<std::mutex> g(m);
                if (--running == 0) finished.notify_all();
            }
        }
    }
    std::mutex busy, m;
    std::condition_variable wake, finished;
    Job* current = nullptr;
    uint64_t round = 0;
    int running = 0, helpers = 0;
};
}
static Pool& pool() {
    static Pool* p = new Pool;      // never destroyed: its threads outlive main
    return *p;
}

Dim cluster_of(const Launch& l) {
    const Dim &c = l.fn->cluster, &own = c.x ? c : l.cluster;
    return {own.x, own.y ? own.y : 1, own.z ? own.z : 1};
}
CUresult validate_launch(const Launch& l) {
    auto& s = settings();
    if (!l.fn) return CUDA_ERROR_INVALID_HANDLE;
    const Dim &g = l.grid, &b = l.block;
    if (!g.x || !g.y || !g.z || !b.x || !b.y || !b.z) return CUDA_ERROR_INVALID_VALUE;
    if (g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) return CUDA_ERROR_INVALID_VALUE;
    if (b.x > 1024 || b.y > 1024 || b.z > 64 || (uint64_t)b.x * b.y * b.z > 1024) return CUDA_ERROR_INVALID_VALUE;
    Dim c = cluster_of(l);
    unsigned most = l.fn->nonportable_cluster ? 16 : max_cluster;
    if (!c.x || c.x > most || c.y > most || c.z > most || c.x * c.y * c.z > most || g.x % c.x || g.y % c.y || g.z % c.z) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    if (c.x * c.y * c.z > 1 && s.cc_major < 9) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    unsigned threads = b.x * b.y * b.z;
    if (l.fn->max_threads && threads > l.fn->max_threads) return CUDA_ERROR_INVALID_VALUE;
    unsigned fixed = l.fn->static_shared.load();
    if (l.dynamic_shared > l.fn->max_dynamic_shared || l.dynamic_shared + fixed > s.max_shared) return CUDA_ERROR_INVALID_VALUE;
    if (l.fn->max_dynamic_shared <= 48 * 1024 && l.dynamic_shared + fixed > 48 * 1024) return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
}

static std::atomic<uint64_t> launch_number{0};
CUresult run_launch(Launch& l) {
    l.fn->launches++;
    count(Launches);
    Job job;
    job.l = &l;
    Dim c = cluster_of(l);
    job.total = (uint64_t)l.grid.x * l.grid.y * l.grid.z / (c.x * c.y * c.z);
    if (settings().shuffle && job.total > 1) {
        uint64_t r = (settings().seed + 1) * 0x9E3779B97F4A7C15ull + launch_number++ * 0xD1B54A32D192ED03ull;
        r ^= r >> 29;
        auto gcd = [](uint64_t a, uint64_t b) { while (b) { uint64_t t = a % b; a = b; b = t; } return a; };
        job.mul = r % job.total | 1;
        while (gcd(job.mul, job.total) != 1 || job.mul == 1) {
            job.mul = (job.mul + 1) % (2 * job.total + 3);
            if (job.mul == 0) job.mul = 2;
        }
        job.add = (r >> 32) % job.total;
    }
    pool().run(job);
    CUresult e = (CUresult)job.error.load();
    if (e != CUDA_SUCCESS && l.fn->module) {
        int none = 0;
        l.fn->module->ctx->sticky.compare_exchange_strong(none, e);
    }
    return e;
}

// ---- faults

std::string where_am_i() {
    Worker* w = current_worker;
    if (!w) return "";
    const emu_block& b = w->block;
    char s[256];
    snprintf(s, sizeof s, "kernel `%s`, block (%u,%u,%u)", w->launch->fn->name.c_str(), b.bid.x, b.bid.y, b.bid.z);
    std::string r = s;
    if (w->running) r += ", thread " + thread_name(b, w->running->index);
    return r;
}

static void report(CUresult code, const std::string& what, const std::string& where) {
    Job* job = current_job;
    std::lock_guard<std::mutex> g(job->report);
    int none = 0;
    if (!job->error.compare_exchange_strong(none, code)) return;     // the first one is the one to read
    fprintf(stderr, "hadal emulator: %s: %s\n", where.c_str(), what.c_str());
    fflush(stderr);
}
void fault(CUresult code, const std::string& what) {
    {
        std::string w = what;
        report(code, w, where_am_i());
    }
    current_worker->abort_block();
}
void report_after_block(Worker* w, const std::string& what, CUresult code) {
    w->running = nullptr;
    report(code, what, where_am_i());
}

static struct sigaction previous[NSIG];

// The handler itself only notes what happened: it may run on a small stack (Rust gives its threads 8 KiB). On its return the
// thread goes on in after_signal, on a stack that is sound and large enough to write a report; so the signal's own stack
// and mask are put away by the kernel, and no longjmp crosses stacks.
static void after_signal() {
    Worker* w = current_worker;
    const Signal& s = w->signal;
    CUresult code = CUDA_ERROR_LAUNCH_FAILED;
    std::string what;
    char t[160];
    Stack& st = w->running->stack;
    if (s.number == SIGFPE) {
        what = "integer division by zero (or an overflowing one)";
    } else if (s.number == SIGILL) {
        what = "illegal instruction (an unreachable place was reached)";
    } else if (s.address >= (uintptr_t)st.base - 4096 && s.address < (uintptr_t)st.base) {
        snprintf(t, sizeof t, "stack overflow: a thread has %zu KiB for its local variables", st.size / 1024);
        what = t;
    } else if (s.misaligned) {
        code = CUDA_ERROR_MISALIGNED_ADDRESS;
        what = "misaligned address: a vector load or store that is not at a multiple of its size";
    } else if (s.wild) {
        code = CUDA_ERROR_ILLEGAL_ADDRESS;
        what = "illegal access through a wild pointer";
    } else {
        code = CUDA_ERROR_ILLEGAL_ADDRESS;
        snprintf(t, sizeof t, "illegal %s at 0x%llx: ", s.write ? "write" : "read", (unsigned long long)s.address);
        what = t;
        uintptr_t shared = (uintptr_t)w->block.shared, d = (uintptr_t)w->block.dynamic;
        unsigned n = w->launch->dynamic_shared;
        if (s.address >= (uintptr_t)w->arena && s.address < (uintptr_t)w->arena + w->arena_len) {
            if (n && s.address >= d)
                snprintf(t, sizeof t, "%lld bytes past the end of the %u bytes of dynamic shared memory", (long long)(s.address - d - n), n);
            else if (n && s.address + 4096 >= d)
                snprintf(t, sizeof t, "%llu bytes before dynamic shared memory", (unsigned long long)(d - s.address));
            else
                snprintf(t, sizeof t, "outside of shared memory (offset %lld; the launch asked for %u bytes of dynamic shared memory)", (long long)(s.address - shared), n);
            what += t;
        } else {
            what += memory::describe(s.address);
        }
    }
    fault(code, what);
}

static void handler(int sig, siginfo_t* info, void* context) {
    Worker* w = current_worker;
    if (!w || !w->running || w->aborted) {
        struct sigaction& old = previous[sig];
        if (old.sa_flags & SA_SIGINFO) {
            old.sa_sigaction(sig, info, context);
        } else if (old.sa_handler == SIG_DFL || old.sa_handler == SIG_IGN) {
            signal(sig, SIG_DFL);       // comes again, and ends the process as it would have
        } else {
            old.sa_handler(sig);
        }
        return;
    }
    auto* uc = (ucontext_t*)context;
    w->signal = Signal{};
    w->signal.number = sig;
    w->signal.address = (uintptr_t)info->si_addr;
    uintptr_t sp = ((uintptr_t)w->abort_stack.base + w->abort_stack.size - 256) & ~(uintptr_t)63;
#if defined(__x86_64__)
    auto& regs = uc->uc_mcontext.gregs;
    w->signal.write = regs[REG_ERR] & 2;
    if (sig == SIGSEGV && info->si_code == SI_KERNEL) {
        // A general protection fault, which tells no address: an aligned vector instruction (movaps, movdqa and their
        // younger forms, which are known by these bytes) met an unaligned address, or a pointer is nonsense.
        auto* ip = (const unsigned char*)regs[REG_RIP];
        bool aligned = false;
        for (int i = 1; i < 7; i++) aligned |= ip[i] == 0x28 || ip[i] == 0x29 || ip[i] == 0x6f || ip[i] == 0x7f;
        (aligned ? w->signal.misaligned : w->signal.wild) = true;
    }
    regs[REG_RSP] = (long long)(sp - 8);
    regs[REG_RIP] = (long long)(uintptr_t)after_signal;
#elif defined(__aarch64__)
    if (sig == SIGBUS && info->si_code == BUS_ADRALN) w->signal.misaligned = true;
    uc->uc_mcontext.sp = sp;
    uc->uc_mcontext.pc = (uintptr_t)after_signal;
#else
#error "how does a signal handler change where its thread goes on?"
#endif
}

void install_fault_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction a{};
        a.sa_sigaction = handler;
        a.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&a.sa_mask);
        for (int s : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigaction(s, &a, &previous[s]);
    });
}
