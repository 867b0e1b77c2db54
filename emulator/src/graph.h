// Graphs and the captures that make them.
#pragma once
#include <map>
#include <memory>
#include <thread>

#include "internal.h"

struct CUgraphNode_st {
    Op op;
    std::vector<CUgraphNode> deps;
    CUgraph graph = nullptr;
};
struct CUgraph_st {
    std::vector<std::unique_ptr<CUgraphNode_st>> nodes;    // in an order that respects the dependencies
    CUgraphNode add(Op&& op, std::vector<CUgraphNode> deps);
    ~CUgraph_st();
};
struct CUgraphExec_st {
    std::unique_ptr<CUgraph_st> graph;
    std::map<CUgraphNode, CUgraphNode> from;               // the node of the graph it was made of -> ours
};
std::unique_ptr<CUgraph_st> clone_graph(const CUgraph_st& g, std::map<CUgraphNode, CUgraphNode>* from);
CUresult run_graph(CUgraph_st& g);

enum CaptureMode { CaptureGlobal = 0, CaptureThreadLocal = 1, CaptureRelaxed = 2 };
struct Capture {
    CUstream origin;
    CUgraph graph;
    int mode;
    uint64_t id;
    std::thread::id thread;
    bool invalid = false;
    std::vector<CUstream> streams;                          // that take part
};
