// Streams run what is enqueued at once, on the caller's thread; with HADAL_EMU_LATE when somebody waits. Under capture they record instead.
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>

#include "graph.h"

struct CUevent_st {
    unsigned flags = 0;
    bool recorded = false;
    int64_t ns = 0;
    std::shared_ptr<Capture> capture;                       // last recorded in this capture, after these nodes
    std::vector<CUgraphNode> tail;
};

static std::mutex capture_lock;
static std::vector<std::shared_ptr<Capture>> captures;      // that have begun and not ended
static std::atomic<uint64_t> next_id{1};
static thread_local int thread_mode = CaptureGlobal;

static int64_t now() { return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

static std::mutex streams_lock;
static std::vector<CUstream> streams;                       // a handle that is not here was destroyed, or never was one

CUstream stream_of(CUstream h) {
    if ((uintptr_t)h <= 2) return current_ctx ? current_ctx->null_stream : nullptr;
    std::lock_guard<std::mutex> g(streams_lock);
    return std::find(streams.begin(), streams.end(), h) == streams.end() ? nullptr : h;
}
#define STREAM(s, handle)                        \
    CUstream s = stream_of(handle);              \
    if (!s) return CUDA_ERROR_INVALID_HANDLE

CUresult forbid_in_capture() {
    std::lock_guard<std::mutex> g(capture_lock);
    for (auto& c : captures) {
        bool applies = (c->mode == CaptureGlobal && thread_mode == CaptureGlobal) ||
                       (c->mode != CaptureRelaxed && thread_mode != CaptureRelaxed && c->thread == std::this_thread::get_id());
        if (!applies) continue;
        c->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return CUDA_SUCCESS;
}

// ---- running an operation

void Op::own_params() {
    if (kind != Kernel || !borrowed_args) return;
    for (unsigned i = 0; i < fn->nparams; i++) {
        size_t at = params.size();
        params.resize(at + ((fn->sizes[i] + 15) & ~15u));
        memcpy(params.data() + at, borrowed_args[i], fn->sizes[i]);
    }
    borrowed_args = nullptr;
}

CUresult execute(Op& op) {
    CUresult nothing;
    if (compiler::mode() == compiler::Nothing && run_nothing(op, &nothing)) return nothing;
    switch (op.kind) {
    case Op::Kernel: {
        Launch l;
        l.fn = op.fn, l.grid = op.grid, l.block = op.block, l.cluster = op.cluster, l.dynamic_shared = op.dynamic_shared;
        if (op.borrowed_args || !op.fn->nparams) {
            l.args = op.borrowed_args;
            return run_launch(l);
        }
        std::vector<void*> args(op.fn->nparams);
        size_t at = 0;
        for (unsigned i = 0; i < op.fn->nparams; i++) {
            args[i] = op.params.data() + at;
            at += (op.fn->sizes[i] + 15) & ~15u;
        }
        l.args = args.data();
        return run_launch(l);
    }
    case Op::Memcpy:
        // Checked again: a replay comes long after the capture.
        if ((memory::in_arena(op.dst) && !memory::range_ok(op.dst, op.bytes)) || (memory::in_arena(op.src) && !memory::range_ok(op.src, op.bytes))) {
            bool d = memory::in_arena(op.dst) && !memory::range_ok(op.dst, op.bytes);
            fprintf(stderr, "hadal emulator: copy of %zu bytes %s device memory: %s\n", op.bytes, d ? "to" : "from", memory::describe(d ? op.dst : op.src, op.bytes).c_str());
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        }
        memmove((void*)op.dst, (const void*)op.src, op.bytes);
        return CUDA_SUCCESS;
    case Op::Memset: {
        size_t span = op.height == 1 ? op.bytes * op.width : op.pitch * (op.height - 1) + op.bytes * op.width;
        if (!memory::range_ok(op.dst, span)) {
            fprintf(stderr, "hadal emulator: fill of %zu bytes: %s\n", span, memory::describe(op.dst, span).c_str());
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        }
        for (size_t y = 0; y < op.height; y++) {
            uintptr_t p = op.dst + y * op.pitch;
            if (op.width == 1) memset((void*)p, (int)op.value, op.bytes);
            else if (op.width == 2) std::fill_n((uint16_t*)p, op.bytes, (uint16_t)op.value);
            else std::fill_n((uint32_t*)p, op.bytes, op.value);
        }
        return CUDA_SUCCESS;
    }
    case Op::Host:
        op.host(op.user);
        return CUDA_SUCCESS;
    case Op::Child:
        return run_graph(*op.child);
    case Op::Alloc:
        memory::poison(op.dst, op.bytes);
        return CUDA_SUCCESS;
    case Op::Free: {
        Alloc* a = memory::find(op.dst);
        if (a && a->in_graph) return CUDA_SUCCESS;      // the graph frees it when it is destroyed
        return memory::release(op.dst);
    }
    case Op::RecordEvent:
        op.event->recorded = true;
        op.event->ns = now();
        return CUDA_SUCCESS;
    case Op::WaitEvent:
    case Op::Empty:
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_UNKNOWN;
}

// ---- work that is done late

namespace {
struct Later {
    CUcontext ctx;
    Op op;
    std::vector<uint8_t> was;       // what the host's pageable memory held when the copy was asked for
};
std::recursive_mutex late_lock;
std::deque<Later> late;
const size_t most_late = 256;       // a device is not behind for good
}
static void lost(CUcontext c, CUresult e) {
    int none = 0;
    c->sticky.compare_exchange_strong(none, e);
}
CUresult run_late() {
    if (!settings().late) return CUDA_SUCCESS;
    std::lock_guard<std::recursive_mutex> g(late_lock);
    while (!late.empty()) {
        Later l = std::move(late.front());
        late.pop_front();
        CUresult e = CUDA_SUCCESS;
        if (!l.was.empty()) {
            // The memory may be gone: it is read as another process would.
            std::vector<uint8_t> now(l.was.size());
            iovec to{now.data(), now.size()}, from{(void*)l.op.src, now.size()};
            if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != (ssize_t)now.size() || now != l.was) {
                fprintf(stderr, "hadal emulator: %zu bytes of pageable host memory were freed or changed before a copy to the device read them\n", now.size());
                e = CUDA_ERROR_ILLEGAL_ADDRESS;
            }
        }
        if (e == CUDA_SUCCESS) e = execute(l.op);
        if (e != CUDA_SUCCESS) {
            lost(l.ctx, e);
            late.clear();
            return e;
        }
    }
    return CUDA_SUCCESS;
}
static CUresult run_later(CUstream s, Op&& op) {
    std::lock_guard<std::recursive_mutex> g(late_lock);
    op.own_params();
    Later l{s->ctx, std::move(op), {}};
    bool upload = l.op.kind == Op::Memcpy && memory::in_arena(l.op.dst) && !memory::in_arena(l.op.src);
    if (upload && !memory::in_ranges(l.op.src, l.op.bytes)) l.was.assign((uint8_t*)l.op.src, (uint8_t*)l.op.src + l.op.bytes);
    late.push_back(std::move(l));
    return late.size() > most_late ? run_late() : CUDA_SUCCESS;
}

CUresult enqueue(CUstream s, Op&& op, CUgraphNode* node) {
    if (s->capture) {
        std::lock_guard<std::mutex> g(capture_lock);
        Capture& c = *s->capture;
        if (c.invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        op.own_params();
        CUgraphNode n = c.graph->add(std::move(op), s->tail);
        s->tail = {n};
        if (node) *node = n;
        return CUDA_SUCCESS;
    }
    if (s == s->ctx->null_stream) {
        // The legacy stream waits for all blocking streams, and cannot wait for one that is being captured.
        std::lock_guard<std::mutex> g(capture_lock);
        for (auto& c : captures)
            for (CUstream t : c->streams)
                if (!(t->flags & 1) && t->ctx == s->ctx) {
                    c->invalid = true;
                    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
                }
    }
    if (settings().late) return run_later(s, std::move(op));
    CUresult e = execute(op);
    if (e == CUDA_ERROR_ILLEGAL_ADDRESS) lost(s->ctx, e);
    return e;
}

// ---- streams

static CUresult create(CUstream* out, unsigned flags, int priority) {
    ENTER();
    if (!out || flags > 1) return CUDA_ERROR_INVALID_VALUE;
    auto* s = new CUstream_st;
    s->ctx = current_ctx;
    s->flags = flags;
    s->priority = std::max(-5, std::min(0, priority));
    s->id = next_id++;
    std::lock_guard<std::mutex> g(streams_lock);
    streams.push_back(s);
    *out = s;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamCreate(CUstream* s, unsigned flags) { return create(s, flags, 0); }
EXPORT CUresult cuStreamCreateWithPriority(CUstream* s, unsigned flags, int priority) { return create(s, flags, priority); }
EXPORT CUresult cuStreamDestroy_v2(CUstream h) {
    ENTER();
    run_late();
    if ((uintptr_t)h <= 2) return CUDA_ERROR_INVALID_HANDLE;
    std::lock_guard<std::mutex> g(streams_lock);
    auto it = std::find(streams.begin(), streams.end(), h);
    if (it == streams.end()) return CUDA_ERROR_INVALID_HANDLE;
    streams.erase(it);
    if (h->capture) {
        std::lock_guard<std::mutex> c(capture_lock);
        h->capture->invalid = true;
        auto& v = h->capture->streams;
        v.erase(std::remove(v.begin(), v.end(), h), v.end());
        if (h->capture->origin == h) captures.erase(std::remove(captures.begin(), captures.end(), h->capture), captures.end());
    }
    delete h;
    return CUDA_SUCCESS;
}
static CUresult wait_for(CUstream h, bool query) {
    ENTER();
    STREAM(s, h);
    (void)query;
    if (s->capture) {
        std::lock_guard<std::mutex> g(capture_lock);
        s->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    return run_late();
}
EXPORT CUresult cuStreamSynchronize(CUstream s) {
    count_synchronization();
    return wait_for(s, false);
}
EXPORT CUresult cuStreamQuery(CUstream s) { return wait_for(s, true); }
EXPORT CUresult cuStreamGetPriority(CUstream h, int* p) {
    ENTER();
    STREAM(s, h);
    *p = s->priority;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamGetFlags(CUstream h, unsigned* f) {
    ENTER();
    STREAM(s, h);
    *f = s->flags;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamGetCtx(CUstream h, CUcontext* c) {
    ENTER();
    STREAM(s, h);
    *c = s->ctx;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamGetCtx_v2(CUstream h, CUcontext* c, void** green) {
    if (green) *green = nullptr;
    return cuStreamGetCtx(h, c);
}
EXPORT CUresult cuStreamGetId(CUstream h, unsigned long long* id) {
    ENTER();
    STREAM(s, h);
    *id = s->id;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuLaunchHostFunc(CUstream h, void (*fn)(void*), void* user) {
    ENTER();
    STREAM(s, h);
    Op op;
    op.kind = Op::Host;
    op.host = fn, op.user = user;
    return enqueue(s, std::move(op));
}
EXPORT CUresult cuStreamAddCallback(CUstream h, void (*fn)(CUstream, CUresult, void*), void* user, unsigned) {
    ENTER();
    STREAM(s, h);
    if (s->capture) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (CUresult e = run_late()) return e;
    fn(h, CUDA_SUCCESS, user);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamCopyAttributes(CUstream, CUstream) { return CUDA_SUCCESS; }
EXPORT CUresult cuStreamSetAttribute(CUstream, int, const void*) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxRecordEvent(CUcontext, CUevent) { return CUDA_ERROR_NOT_SUPPORTED; }

// ---- events

EXPORT CUresult cuEventCreate(CUevent* e, unsigned flags) {
    ENTER();
    *e = new CUevent_st;
    (*e)->flags = flags;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuEventDestroy_v2(CUevent e) {
    ENTER();
    run_late();
    if (!e) return CUDA_ERROR_INVALID_HANDLE;
    delete e;
    return CUDA_SUCCESS;
}
static CUresult record(CUevent e, CUstream h) {
    ENTER();
    STREAM(s, h);
    if (!e) return CUDA_ERROR_INVALID_HANDLE;
    if (s->capture) {
        std::lock_guard<std::mutex> g(capture_lock);
        if (s->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        e->capture = s->capture;
        e->tail = s->tail;
        return CUDA_SUCCESS;
    }
    e->capture.reset();
    e->tail.clear();
    e->recorded = true;
    e->ns = now();
    if (!settings().late) return CUDA_SUCCESS;
    Op op;
    op.kind = Op::RecordEvent;
    op.event = e;
    return enqueue(s, std::move(op));
}
EXPORT CUresult cuEventRecord(CUevent e, CUstream s) { return record(e, s); }
EXPORT CUresult cuEventRecordWithFlags(CUevent e, CUstream h, unsigned flags) {
    if (!(flags & 1)) return record(e, h);
    ENTER();
    STREAM(s, h);
    if (!s->capture) return record(e, h);
    Op op;      // an external event: a node of the graph
    op.kind = Op::RecordEvent;
    op.event = e;
    return enqueue(s, std::move(op));
}
static CUresult event_done(CUevent e) {
    ENTER();
    if (!e) return CUDA_ERROR_INVALID_HANDLE;
    if (e->capture) {
        std::lock_guard<std::mutex> g(capture_lock);
        e->capture->invalid = true;
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    return run_late();
}
EXPORT CUresult cuEventQuery(CUevent e) { return event_done(e); }
EXPORT CUresult cuEventSynchronize(CUevent e) { return event_done(e); }
static CUresult elapsed(float* ms, CUevent a, CUevent b) {
    ENTER();
    if (!a || !b || !ms || !a->recorded || !b->recorded || (a->flags | b->flags) & 2) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult late = run_late()) return late;
    *ms = (float)((double)(b->ns - a->ns) * 1e-6);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuEventElapsedTime(float* ms, CUevent a, CUevent b) { return elapsed(ms, a, b); }
EXPORT CUresult cuEventElapsedTime_v2(float* ms, CUevent a, CUevent b) { return elapsed(ms, a, b); }

static void merge(std::vector<CUgraphNode>& into, const std::vector<CUgraphNode>& more) {
    for (CUgraphNode n : more)
        if (std::find(into.begin(), into.end(), n) == into.end()) into.push_back(n);
}
EXPORT CUresult cuStreamWaitEvent(CUstream h, CUevent e, unsigned flags) {
    ENTER();
    STREAM(s, h);
    if (!e) return CUDA_ERROR_INVALID_HANDLE;
    if (flags & 1 && s->capture) {
        Op op;
        op.kind = Op::WaitEvent;
        op.event = e;
        return enqueue(s, std::move(op));
    }
    std::lock_guard<std::mutex> g(capture_lock);
    if (!e->capture) {
        // Work that the capture does not know of cannot be a dependency within it.
        if (s->capture && e->recorded) {
            s->capture->invalid = true;
            return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
        return CUDA_SUCCESS;
    }
    bool active = std::find(captures.begin(), captures.end(), e->capture) != captures.end();
    if (!active) return s->capture ? CUDA_ERROR_STREAM_CAPTURE_ISOLATION : CUDA_ERROR_CAPTURED_EVENT;
    if (e->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (s->capture && s->capture != e->capture) {
        s->capture->invalid = e->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_MERGE;
    }
    if (!s->capture) {
        if (s == s->ctx->null_stream) {
            e->capture->invalid = true;
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
        s->capture = e->capture;
        s->capture->streams.push_back(s);
        s->tail.clear();
    }
    merge(s->tail, e->tail);
    return CUDA_SUCCESS;
}

// ---- capture

EXPORT CUresult cuStreamBeginCapture_v2(CUstream h, int mode) {
    ENTER();
    STREAM(s, h);
    if (s == s->ctx->null_stream) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (s->capture || mode < 0 || mode > 2) return s->capture ? CUDA_ERROR_ILLEGAL_STATE : CUDA_ERROR_INVALID_VALUE;
    std::lock_guard<std::mutex> g(capture_lock);
    auto c = std::make_shared<Capture>();
    c->origin = s;
    c->graph = new CUgraph_st;
    c->mode = mode;
    c->id = next_id++;
    c->thread = std::this_thread::get_id();
    c->streams = {s};
    s->capture = c;
    s->tail.clear();
    captures.push_back(c);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamEndCapture(CUstream h, CUgraph* out) {
    ENTER();
    STREAM(s, h);
    if (out) *out = nullptr;
    if (!s->capture) return CUDA_ERROR_ILLEGAL_STATE;
    std::lock_guard<std::mutex> g(capture_lock);
    auto c = s->capture;
    if (c->origin != s) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    if (c->mode != CaptureRelaxed && c->thread != std::this_thread::get_id()) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    // Everything recorded has to lead back to the stream that began.
    std::vector<CUgraphNode> reached = s->tail;
    for (size_t i = 0; i < reached.size(); i++) merge(reached, reached[i]->deps);
    bool joined = reached.size() == c->graph->nodes.size();
    for (CUstream t : c->streams) t->capture.reset(), t->tail.clear();
    captures.erase(std::remove(captures.begin(), captures.end(), c), captures.end());
    if (c->invalid || !joined) {
        delete c->graph;
        return c->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    }
    *out = c->graph;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamIsCapturing(CUstream h, int* status) {
    ENTER();
    STREAM(s, h);
    *status = !s->capture ? 0 : s->capture->invalid ? 2 : 1;
    return CUDA_SUCCESS;
}
static CUresult capture_info(CUstream h, int* status, uint64_t* id, CUgraph* graph, const CUgraphNode** deps, size_t* n) {
    ENTER();
    STREAM(s, h);
    *status = !s->capture ? 0 : s->capture->invalid ? 2 : 1;
    if (*status != 1) return CUDA_SUCCESS;
    if (id) *id = s->capture->id;
    if (graph) *graph = s->capture->graph;
    if (deps) *deps = s->tail.data();
    if (n) *n = s->tail.size();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamGetCaptureInfo_v2(CUstream h, int* status, uint64_t* id, CUgraph* graph, const CUgraphNode** deps, size_t* n) {
    return capture_info(h, status, id, graph, deps, n);
}
EXPORT CUresult cuStreamGetCaptureInfo_v3(CUstream h, int* status, uint64_t* id, CUgraph* graph, const CUgraphNode** deps, const void** edges, size_t* n) {
    if (edges) *edges = nullptr;
    return capture_info(h, status, id, graph, deps, n);
}
EXPORT CUresult cuStreamUpdateCaptureDependencies(CUstream h, CUgraphNode* deps, size_t n, unsigned flags) {
    ENTER();
    STREAM(s, h);
    if (!s->capture) return CUDA_ERROR_ILLEGAL_STATE;
    std::lock_guard<std::mutex> g(capture_lock);
    if (flags & 1) s->tail.clear();
    merge(s->tail, std::vector<CUgraphNode>(deps, deps + n));
    return CUDA_SUCCESS;
}
EXPORT CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
    std::swap(*mode, thread_mode);
    return CUDA_SUCCESS;
}
