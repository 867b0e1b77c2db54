// Clusters: blocks that run together. Each has a worker of its own, with its shared memory and its fibers; all are on one host
// thread, and one runs until none of its threads can go on, or until one of them polls.
#include "block.h"
#include "hopper.h"

unsigned Cluster::alive() const {
    unsigned n = 0;
    for (Worker* w : blocks) n += w->alive;
    return n;
}
void Cluster::complete_if_all() {
    if (!arrived || arrived < alive()) return;
    arrived = 0;
    phase++;
    for (Worker* w : blocks) {
        w->time++;
        w->wake(w->cluster_waiting);
        mbarriers_heard(w);
    }
}

static Cluster& cluster_of(Fiber* f, const char* what, const char* file, int line) {
    Cluster* c = f->worker->cluster;
    if (!c) fault(CUDA_ERROR_LAUNCH_FAILED, std::string(what) + " in a launch without clusters, which is not emulated" + at(file, line));
    return *c;
}
extern "C" void emu_cluster_arrive(emu_thread* self, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Cluster& c = cluster_of(f, "cluster_arrive", file, line);
    uint32_t& mine = f->worker->arrived_at[f->index];
    if (mine) fault(CUDA_ERROR_LAUNCH_FAILED, "cluster_arrive" + at(file, line) + " by a thread that has arrived and not waited");
    mine = c.phase + 1;
    if (!c.arrived++) c.file = file, c.line = line;
    c.complete_if_all();
}
extern "C" void emu_cluster_wait(emu_thread* self, const char* file, int line) {
    Fiber* f = (Fiber*)self;
    Cluster& c = cluster_of(f, "cluster_wait", file, line);
    uint32_t& mine = f->worker->arrived_at[f->index];
    if (!mine) fault(CUDA_ERROR_LAUNCH_FAILED, "cluster_wait" + at(file, line) + " by a thread that has not arrived");
    if (c.phase < mine) f->worker->block_on(f, f->worker->cluster_waiting, WaitsCluster, &c);
    mine = 0;
}
void cluster_exit(Fiber* f) {
    Worker* w = f->worker;
    if (w->arrived_at[f->index]) fault(CUDA_ERROR_LAUNCH_FAILED, "a thread ended between cluster_arrive and cluster_wait");
    w->cluster->complete_if_all();
}

// ---- turns

void Worker::others_run() {
    is_parked = true;
    context_switch(&parked, &main);
    is_parked = false;
}

void Worker::run_cluster(Launch& l, Dim size, unsigned bx, unsigned by, unsigned bz) {
    Cluster c;
    unsigned n = size.x * size.y * size.z;
    uint64_t seed = random;
    while (mates.size() + 1 < n) mates.emplace_back(new Worker);
    for (unsigned r = 0; r < n; r++) {
        Worker* w = r ? mates[r - 1].get() : this;
        c.blocks.push_back(w);
        w->random = seed + r;
        w->begin(l, bx + r % size.x, by + r / size.x % size.y, bz + r / (size.x * size.y));
        w->block.cluster_dim = {size.x, size.y, size.z};
        w->block.cluster_rank = r;
        w->cluster = &c;
        for (auto& a : w->arrived_at) a = 0;
        w->cluster_waiting.clear();
        // Other blocks ask who is alive before anybody here has waited.
        w->block.tracked = 1;
        w->alive = w->block.nthreads;
        unsigned warps = (w->block.nthreads + 31) / 32;
        for (unsigned i = 0; i < warps; i++) w->exited[i] = 0;
        if (w->block.nthreads % 32) w->exited[warps - 1] = ~0u << (w->block.nthreads % 32);
    }
    unsigned left = n, failed = n;
    for (unsigned turn = settings().shuffle ? (unsigned)(seed >> 33) : 0; left && failed == n; turn++) {
        bool ran = false;
        for (unsigned i = 0; i < n && failed == n; i++) {
            unsigned r = (turn + i) % n;
            Worker* w = c.blocks[r];
            if (w->over() || (!w->fresh && !c.stuck && !w->polls && !w->can_go_on())) continue;
            ran = true;
            current_worker = w;
            w->polls = false;
            w->go();
            if (w->aborted) failed = r;
            else if (w->over()) w->end(), left--;
        }
        if (ran) continue;
        bool somebody = false;
        for (Worker* w : c.blocks) somebody |= !w->over() && w->waits_give_up();
        c.stuck = !somebody;
    }
    // A fault ends the cluster: what its other blocks wait for will not come.
    for (unsigned r = 0; r < n && failed < n; r++) {
        Worker* w = c.blocks[r];
        if (w->over() && r != failed) continue;
        current_worker = w;
        w->aborted = true;
        w->running = nullptr;
        w->is_parked = w->fresh = false;
        w->end();
    }
    for (Worker* w : c.blocks) w->cluster = nullptr;
    current_worker = this;
}
