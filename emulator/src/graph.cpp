// Graphs: made by capture or node by node, instantiated, updated, launched.
#include "graph.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

// Memory that a capture allocated is shared by the graph and what was instantiated from it: it stays as long as one of them.
static std::mutex graph_memory_lock;
static std::map<uintptr_t, int> graph_memory;
static void hold_memory(const Op& op, int by) {
    if (op.kind != Op::Alloc) return;
    std::lock_guard<std::mutex> g(graph_memory_lock);
    int& n = graph_memory[op.dst];
    n += by;
    if (n <= 0) {
        graph_memory.erase(op.dst);
        memory::release(op.dst);
    }
}

CUgraphNode CUgraph_st::add(Op&& op, std::vector<CUgraphNode> deps) {
    nodes.emplace_back(new CUgraphNode_st);
    CUgraphNode n = nodes.back().get();
    n->op = std::move(op);
    n->deps = std::move(deps);
    n->graph = this;
    if (n->op.kind == Op::Alloc) hold_memory(n->op, 1);
    return n;
}
CUgraph_st::~CUgraph_st() {
    for (auto& n : nodes) {
        hold_memory(n->op, -1);
        if (n->op.kind == Op::Child) delete n->op.child;
    }
}
std::unique_ptr<CUgraph_st> clone_graph(const CUgraph_st& g, std::map<CUgraphNode, CUgraphNode>* from) {
    std::unique_ptr<CUgraph_st> c(new CUgraph_st);
    std::map<CUgraphNode, CUgraphNode> map;
    // Nodes added by hand may come in any order; dependencies first.
    std::vector<CUgraphNode> todo;
    for (auto& n : g.nodes) todo.push_back(n.get());
    while (!todo.empty()) {
        std::vector<CUgraphNode> later;
        for (CUgraphNode n : todo) {
            std::vector<CUgraphNode> deps;
            for (CUgraphNode d : n->deps)
                if (map.count(d)) deps.push_back(map[d]);
            if (deps.size() != n->deps.size()) {
                later.push_back(n);
                continue;
            }
            Op op = n->op;
            if (op.kind == Op::Child) op.child = clone_graph(*op.child, nullptr).release();
            map[n] = c->add(std::move(op), deps);
        }
        if (later.size() == todo.size()) return nullptr;    // a cycle
        todo = later;
    }
    if (from) *from = map;
    return c;
}
CUresult run_graph(CUgraph_st& g) {
    for (auto& n : g.nodes) {
        CUresult e = execute(n->op);
        if (e != CUDA_SUCCESS) return e;
    }
    return CUDA_SUCCESS;
}

static int type_of(const Op& op) {
    switch (op.kind) {
    case Op::Kernel: return 0;
    case Op::Memcpy: return 1;
    case Op::Memset: return 2;
    case Op::Host: return 3;
    case Op::Child: return 4;
    case Op::Empty: return 5;
    case Op::WaitEvent: return 6;
    case Op::RecordEvent: return 7;
    case Op::Alloc: return 10;
    case Op::Free: return 11;
    }
    return 5;
}

EXPORT CUresult cuGraphCreate(CUgraph* g, unsigned) {
    ENTER();
    *g = new CUgraph_st;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphDestroy(CUgraph g) {
    if (!g) return CUDA_ERROR_INVALID_VALUE;
    delete g;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphClone(CUgraph* out, CUgraph g) {
    ENTER();
    *out = clone_graph(*g, nullptr).release();
    return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
// Whether each kernel may still be launched as it was when it was captured: a function's limits may have changed since.
static CUresult validate(const CUgraph_st& g) {
    for (auto& n : g.nodes) {
        CUresult e = CUDA_SUCCESS;
        if (n->op.kind == Op::Child && n->op.child) e = validate(*n->op.child);
        if (n->op.kind == Op::Kernel) {
            Launch l;
            l.fn = n->op.fn, l.grid = n->op.grid, l.block = n->op.block, l.cluster = n->op.cluster, l.dynamic_shared = n->op.dynamic_shared;
            e = validate_launch(l);
        }
        if (e != CUDA_SUCCESS) return e;
    }
    return CUDA_SUCCESS;
}
static CUresult instantiate(CUgraphExec* out, CUgraph g) {
    ENTER();
    if (!g || !out) return CUDA_ERROR_INVALID_VALUE;
    if (CUresult e = validate(*g)) return e;
    std::unique_ptr<CUgraphExec_st> x(new CUgraphExec_st);
    x->graph = clone_graph(*g, &x->from);
    if (!x->graph) return CUDA_ERROR_INVALID_VALUE;
    *out = x.release();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* x, CUgraph g, unsigned long long) { return instantiate(x, g); }
EXPORT CUresult cuGraphInstantiateWithParams(CUgraphExec* x, CUgraph g, void*) { return instantiate(x, g); }
EXPORT CUresult cuGraphInstantiate_v2(CUgraphExec* x, CUgraph g, CUgraphNode*, char*, size_t) { return instantiate(x, g); }
EXPORT CUresult cuGraphExecDestroy(CUgraphExec x) {
    ENTER();
    run_late();
    if (!x) return CUDA_ERROR_INVALID_VALUE;
    delete x;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphExecGetFlags(CUgraphExec, unsigned long long* f) { *f = 0; return CUDA_SUCCESS; }
EXPORT CUresult cuGraphUpload(CUgraphExec x, CUstream h) {
    ENTER();
    return x && stream_of(h) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
EXPORT CUresult cuGraphLaunch(CUgraphExec x, CUstream h) {
    ENTER();
    CUstream s = stream_of(h);
    if (!x || !s) return CUDA_ERROR_INVALID_HANDLE;
    if (CUresult e = validate(*x->graph)) return e;
    count(Replays);
    Op op;
    op.kind = Op::Child;
    if (s->capture) {
        op.child = clone_graph(*x->graph, nullptr).release();
        return enqueue(s, std::move(op));
    }
    op.child = x->graph.get();
    return enqueue(s, std::move(op));
}

// ---- looking at a graph

template <class T> static CUresult list(const std::vector<T>& all, T* out, size_t* n) {
    if (!n) return CUDA_ERROR_INVALID_VALUE;
    if (out) {
        size_t k = std::min(*n, all.size());
        std::copy(all.begin(), all.begin() + (long)k, out);
        for (size_t i = k; i < *n; i++) out[i] = nullptr;
    }
    *n = all.size();
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphGetNodes(CUgraph g, CUgraphNode* out, size_t* n) {
    if (!g) return CUDA_ERROR_INVALID_VALUE;
    std::vector<CUgraphNode> all;
    for (auto& x : g->nodes) all.push_back(x.get());
    return list(all, out, n);
}
EXPORT CUresult cuGraphGetRootNodes(CUgraph g, CUgraphNode* out, size_t* n) {
    if (!g) return CUDA_ERROR_INVALID_VALUE;
    std::vector<CUgraphNode> all;
    for (auto& x : g->nodes)
        if (x->deps.empty()) all.push_back(x.get());
    return list(all, out, n);
}
static CUresult edges(CUgraph g, CUgraphNode* from, CUgraphNode* to, size_t* n) {
    if (!g || !n) return CUDA_ERROR_INVALID_VALUE;
    size_t k = 0;
    for (auto& x : g->nodes)
        for (CUgraphNode d : x->deps) {
            if (from && to && k < *n) from[k] = d, to[k] = x.get();
            k++;
        }
    *n = k;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphGetEdges(CUgraph g, CUgraphNode* from, CUgraphNode* to, size_t* n) { return edges(g, from, to, n); }
EXPORT CUresult cuGraphGetEdges_v2(CUgraph g, CUgraphNode* from, CUgraphNode* to, void*, size_t* n) { return edges(g, from, to, n); }
EXPORT CUresult cuGraphNodeGetType(CUgraphNode n, int* type) {
    if (!n) return CUDA_ERROR_INVALID_VALUE;
    *type = type_of(n->op);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphNodeGetDependencies(CUgraphNode n, CUgraphNode* out, size_t* count) {
    return n ? list(n->deps, out, count) : CUDA_ERROR_INVALID_VALUE;
}
EXPORT CUresult cuGraphDebugDotPrint(CUgraph g, const char* path, unsigned) {
    FILE* f = fopen(path, "w");
    if (!f) return CUDA_ERROR_UNKNOWN;
    fprintf(f, "digraph {\n");
    static const char* names[] = {"kernel", "memcpy", "memset", "host", "graph", "empty", "wait", "record", "", "", "alloc", "free"};
    for (auto& n : g->nodes) {
        fprintf(f, "n%p [label=\"%s %s\"]\n", (void*)n.get(), names[type_of(n->op)], n->op.fn ? n->op.fn->name.c_str() : "");
        for (CUgraphNode d : n->deps) fprintf(f, "n%p -> n%p\n", (void*)d, (void*)n.get());
    }
    fprintf(f, "}\n");
    fclose(f);
    return CUDA_SUCCESS;
}

// ---- nodes by hand, and changing them

struct KernelParams {       // CUDA_KERNEL_NODE_PARAMS_v2
    CUfunction fn;
    unsigned gx, gy, gz, bx, by, bz, shared;
    void** params;
    void** extra;
    void* kern;
    CUcontext ctx;
};
struct MemsetParams {       // CUDA_MEMSET_NODE_PARAMS
    CUdeviceptr dst;
    size_t pitch;
    unsigned value, width;
    size_t n, height;
};
struct HostParams { void (*fn)(void*); void* user; };

static CUresult kernel_op(const KernelParams* p, Op* op) {
    if (!p || !p->fn || p->extra) return CUDA_ERROR_INVALID_VALUE;
    op->kind = Op::Kernel;
    op->fn = p->fn;
    op->grid = {p->gx, p->gy, p->gz}, op->block = {p->bx, p->by, p->bz};
    op->dynamic_shared = p->shared;
    Launch l;
    l.fn = op->fn, l.grid = op->grid, l.block = op->block, l.dynamic_shared = op->dynamic_shared;
    CUresult e = validate_launch(l);
    if (e != CUDA_SUCCESS) return e;
    if (p->fn->nparams && !p->params) return CUDA_ERROR_INVALID_VALUE;
    op->params.clear();
    op->borrowed_args = p->params;
    op->own_params();
    return CUDA_SUCCESS;
}
static void memset_op(const MemsetParams* p, Op* op) {
    op->kind = Op::Memset;
    op->dst = p->dst, op->pitch = p->pitch, op->value = p->value, op->width = p->width, op->bytes = p->n, op->height = p->height;
}
static CUresult add(CUgraphNode* out, CUgraph g, const CUgraphNode* deps, size_t n, Op&& op) {
    if (!out || !g) return CUDA_ERROR_INVALID_VALUE;
    *out = g->add(std::move(op), std::vector<CUgraphNode>(deps, deps + n));
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphAddKernelNode_v2(CUgraphNode* out, CUgraph g, const CUgraphNode* deps, size_t n, const KernelParams* p) {
    ENTER();
    Op op;
    CUresult e = kernel_op(p, &op);
    return e != CUDA_SUCCESS ? e : add(out, g, deps, n, std::move(op));
}
EXPORT CUresult cuGraphAddMemsetNode(CUgraphNode* out, CUgraph g, const CUgraphNode* deps, size_t n, const MemsetParams* p, CUcontext) {
    ENTER();
    Op op;
    memset_op(p, &op);
    return add(out, g, deps, n, std::move(op));
}
EXPORT CUresult cuGraphAddHostNode(CUgraphNode* out, CUgraph g, const CUgraphNode* deps, size_t n, const HostParams* p) {
    ENTER();
    Op op;
    op.kind = Op::Host;
    op.host = p->fn, op.user = p->user;
    return add(out, g, deps, n, std::move(op));
}
EXPORT CUresult cuGraphAddEmptyNode(CUgraphNode* out, CUgraph g, const CUgraphNode* deps, size_t n) {
    ENTER();
    return add(out, g, deps, n, Op());
}
EXPORT CUresult cuGraphAddChildGraphNode(CUgraphNode* out, CUgraph g, const CUgraphNode* deps, size_t n, CUgraph child) {
    ENTER();
    Op op;
    op.kind = Op::Child;
    op.child = clone_graph(*child, nullptr).release();
    return add(out, g, deps, n, std::move(op));
}
EXPORT CUresult cuGraphAddDependencies(CUgraph, const CUgraphNode* from, const CUgraphNode* to, size_t n) {
    for (size_t i = 0; i < n; i++) to[i]->deps.push_back(from[i]);
    return CUDA_SUCCESS;
}
// The pointers in what these give back stay valid until the node changes.
EXPORT CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode n, KernelParams* p) {
    if (!n || n->op.kind != Op::Kernel) return CUDA_ERROR_INVALID_VALUE;
    static thread_local std::vector<void*> args;
    Op& op = n->op;
    args.resize(op.fn->nparams);
    size_t at = 0;
    for (unsigned i = 0; i < op.fn->nparams; i++) {
        args[i] = op.params.data() + at;
        at += (op.fn->sizes[i] + 15) & ~15u;
    }
    *p = {op.fn, op.grid.x, op.grid.y, op.grid.z, op.block.x, op.block.y, op.block.z, op.dynamic_shared, args.data(), nullptr, nullptr, nullptr};
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode n, const KernelParams* p) {
    if (!n || n->op.kind != Op::Kernel) return CUDA_ERROR_INVALID_VALUE;
    return kernel_op(p, &n->op);
}
static CUgraphNode ours(CUgraphExec x, CUgraphNode n, Op::Kind kind) {
    auto it = x->from.find(n);
    return it == x->from.end() || it->second->op.kind != kind ? nullptr : it->second;
}
EXPORT CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec x, CUgraphNode n, const KernelParams* p) {
    ENTER();
    CUgraphNode m = ours(x, n, Op::Kernel);
    return m ? kernel_op(p, &m->op) : CUDA_ERROR_INVALID_VALUE;
}
EXPORT CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec x, CUgraphNode n, const MemsetParams* p, CUcontext) {
    ENTER();
    CUgraphNode m = ours(x, n, Op::Memset);
    if (!m) return CUDA_ERROR_INVALID_VALUE;
    memset_op(p, &m->op);
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphMemsetNodeGetParams(CUgraphNode n, MemsetParams* p) {
    if (!n || n->op.kind != Op::Memset) return CUDA_ERROR_INVALID_VALUE;
    *p = {n->op.dst, n->op.pitch, n->op.value, n->op.width, n->op.bytes, n->op.height};
    return CUDA_SUCCESS;
}
// result (CUgraphExecUpdateResultInfo): what differs, the node, the node it was. Same nodes in the same order, new parameters.
struct UpdateInfo { int result; int pad; CUgraphNode node, from; };
EXPORT CUresult cuGraphExecUpdate_v2(CUgraphExec x, CUgraph g, UpdateInfo* info) {
    ENTER();
    if (!x || !g) return CUDA_ERROR_INVALID_VALUE;
    UpdateInfo dummy;
    if (!info) info = &dummy;
    *info = {0, 0, nullptr, nullptr};
    auto& a = x->graph->nodes;
    std::map<CUgraphNode, CUgraphNode> map;
    auto fresh = clone_graph(*g, &map);
    if (!fresh || fresh->nodes.size() != a.size()) {
        info->result = 2;       // topology
        return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    }
    std::map<CUgraphNode, size_t> old_place, new_place;
    for (size_t i = 0; i < a.size(); i++) old_place[a[i].get()] = i, new_place[fresh->nodes[i].get()] = i;
    for (size_t i = 0; i < a.size(); i++) {
        CUgraphNode o = a[i].get(), n = fresh->nodes[i].get();
        bool same = o->deps.size() == n->deps.size();
        for (size_t k = 0; same && k < o->deps.size(); k++) same = old_place[o->deps[k]] == new_place[n->deps[k]];
        int why = !same ? 2 : o->op.kind != n->op.kind ? 3 : o->op.kind == Op::Kernel && o->op.fn->module != n->op.fn->module ? 4 : 0;
        if (why) {
            *info = {why, 0, n, o};
            return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
        }
    }
    x->graph = std::move(fresh);
    x->from = map;
    return CUDA_SUCCESS;
}
EXPORT CUresult cuGraphExecUpdate(CUgraphExec x, CUgraph g, CUgraphNode* bad, int* result) {
    UpdateInfo info;
    CUresult e = cuGraphExecUpdate_v2(x, g, &info);
    if (bad) *bad = info.node;
    if (result) *result = info.result;
    return e;
}
EXPORT CUresult cuDeviceGraphMemTrim(CUdevice) { return CUDA_SUCCESS; }
