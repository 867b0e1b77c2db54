// What the parts of the stand-in driver know of each other.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../include/emu_abi.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
// libcuda is loaded late, so its thread-locals must be few; in return they cost one instruction.
#define TLS __thread __attribute__((tls_model("initial-exec")))

enum CUresult {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_FILE_NOT_FOUND = 301,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_ILLEGAL_STATE = 401,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
    CUDA_ERROR_LAUNCH_TIMEOUT = 702,
    CUDA_ERROR_ASSERT = 710,
    CUDA_ERROR_MISALIGNED_ADDRESS = 716,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_NOT_PERMITTED = 800,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_MERGE = 902,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
    CUDA_ERROR_STREAM_CAPTURE_IMPLICIT = 906,
    CUDA_ERROR_CAPTURED_EVENT = 907,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
    CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE = 910,
    CUDA_ERROR_INVALID_CLUSTER_SIZE = 912,
    CUDA_ERROR_UNKNOWN = 999,
};
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st* CUcontext;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUstream_st* CUstream;
typedef struct CUevent_st* CUevent;
typedef struct CUgraph_st* CUgraph;
typedef struct CUgraphNode_st* CUgraphNode;
typedef struct CUgraphExec_st* CUgraphExec;
typedef struct CUmemPool_st* CUmemoryPool;
typedef int CUdevice;

// ---- settings, read from the environment once (device.cpp)

struct Settings {
    int devices = 1;
    const char* name = "hadal emulator";
    int clock_khz = 1755000, memory_khz = 2619000, bus_bits = 5120;
    size_t l2 = 50 << 20;
    int cc_major = 9, cc_minor = 0;
    int multiprocessors = 132;
    size_t memory = 8ull << 30;
    int threads = 0;
    bool check = false;         // every access of a kernel is checked against the live allocations
    bool race = false;          // shared memory is watched for races
    bool shuffle = false;
    uint64_t seed = 0;
    bool stats = false;
    int driver = 13000;         // what cuDriverGetVersion answers
    bool pools = true;          // stream-ordered memory
    bool late = false;          // streams execute when somebody waits
    unsigned max_static_shared = 48 * 1024;
    unsigned max_shared = 227 * 1024;
    unsigned shared_per_sm = 228 * 1024;
    bool instrumented() const { return check || race; }
};
// What a card of this name has ($HADAL_EMU_CARD; cards.cpp); ends the program if there is none.
void take_card(Settings* s, const char* name);
// Shared memory and multiprocessors as usual for the capability.
void take_capability(Settings* s);
const Settings& settings();

// ---- device, context (device.cpp)

struct Device {
    int ordinal = 0;
    std::atomic<size_t> used{0};
    std::atomic<size_t> high{0};
    CUcontext primary = nullptr;
    int primary_refs = 0;
    unsigned primary_flags = 0;
    CUmemoryPool default_pool = nullptr, pool = nullptr;
};
struct CUctx_st {
    Device* dev;
    unsigned flags = 0;
    std::atomic<int> sticky{0};         // the first fault of a kernel; every later call returns it, as the driver does
    CUstream null_stream = nullptr;
    std::atomic<int> refs{0};
};
struct CUmemPool_st {
    Device* dev;
    uint64_t release_threshold = 0;
    std::atomic<uint64_t> used{0}, high{0};
    int flags[3] = {1, 1, 1};
    bool is_default = false;
};
extern TLS CUcontext current_ctx;
Device* device_at(int ordinal);
CUresult enter();                        // what every call that needs a context begins with

#define ENTER()                                  \
    do {                                         \
        CUresult e_ = enter();                   \
        if (e_ != CUDA_SUCCESS) return e_;       \
    } while (0)

// ---- memory (memory.cpp)

struct Alloc {
    uintptr_t start = 0;
    size_t size = 0;
    uintptr_t map = 0;
    size_t map_len = 0;
    int device = 0;
    uint32_t id = 0;
    bool live = false;
    bool in_graph = false;               // allocated by a captured cuMemAllocAsync: lives as long as its graph
    CUmemoryPool pool = nullptr;
};
namespace memory {
CUresult allocate(Device* dev, size_t bytes, CUmemoryPool pool, CUdeviceptr* out);
CUresult release(CUdeviceptr p);
// The window of addresses that device memory lies in, and for each of its pages the allocation.
extern uintptr_t window_base, window_end;
extern Alloc** window_owner;
inline bool in_arena(uintptr_t p) { return p >= window_base && p < window_end; }
// The allocation, live or freed, on whose pages p lies. Without a lock: kernels ask this at each access when they are
// checked, and nothing that they may use is freed meanwhile.
inline Alloc* find(uintptr_t p) { return in_arena(p) ? window_owner[(p - window_base) / 4096] : nullptr; }
bool range_ok(uintptr_t p, size_t bytes);            // wholly within one live allocation or registered range
void add_range(uintptr_t p, size_t bytes);           // module globals, pinned host memory
void drop_range(uintptr_t p);
bool in_ranges(uintptr_t p, size_t bytes);
std::string describe(uintptr_t p, size_t bytes = 1);
bool check_canaries(std::string* report);            // false if something wrote beside an allocation
void poison(uintptr_t p, size_t bytes);
}

struct Op;
// ---- kernels and launches (module.cpp, launch.cpp, block.cpp)

struct Dim { unsigned x, y, z; };
struct CUfunc_st {
    std::string name;
    emu_run run = nullptr;
    CUmodule module = nullptr;
    unsigned nparams = 0;
    const unsigned* sizes = nullptr;
    unsigned max_threads = 0;
    unsigned max_dynamic_shared = 48 * 1024;
    int carveout = -1;
    bool nonportable_cluster = false;
    bool from_ptx = false;                           // static_shared is exact, and shared memory lies as on the hardware
    unsigned min_blocks = 0;
    Dim cluster{0, 0, 0};                            // from __cluster_dims__, 0 where it says nothing
    std::atomic<unsigned> static_shared{0};          // largest seen so far: known only once a block has run
    std::atomic<uint64_t> launches{0};
};
struct CUmod_st {
    CUcontext ctx;
    void* handle = nullptr;
    std::vector<std::unique_ptr<CUfunc_st>> functions;
    std::vector<uintptr_t> globals;
    uintptr_t low = 0, high = 0;                     // where the module lies in memory
    std::string object;                              // kept in the checking modes, for line numbers
};
struct Launch {
    CUfunction fn;
    Dim grid, block, cluster{1, 1, 1};
    unsigned dynamic_shared = 0;
    void** args = nullptr;
};
Dim cluster_of(const Launch& l);                     // the kernel's own, else the launch's
CUresult validate_launch(const Launch& l);
CUresult run_launch(Launch& l);
bool run_nothing(Op& op, CUresult* r);               // in null mode (null.cpp); false: as in the others
std::string line_of(void* pc);                       // file:line of a place in an instrumented kernel

// The kernel that this host thread is running, for reports; null outside of one.
struct Fiber;
struct Worker;
extern TLS Worker* current_worker;
// Ends the running block: the launch fails with `code`, and everything that was waiting is dropped.
[[noreturn]] void fault(CUresult code, const std::string& what);
std::string where_am_i();
void install_fault_handler();

// ---- streams, events, graphs (stream.cpp, graph.cpp)

struct Op {
    enum Kind { Kernel, Memcpy, Memset, Host, Child, Empty, WaitEvent, RecordEvent, Alloc, Free } kind = Empty;
    // Kernel
    CUfunction fn = nullptr;
    Dim grid{}, block{}, cluster{1, 1, 1};
    unsigned dynamic_shared = 0;
    std::vector<uint8_t> params;         // the arguments' bytes, each at a multiple of 16
    // Memcpy, Memset, Alloc, Free
    uintptr_t dst = 0, src = 0;
    size_t bytes = 0;                    // of a memset: elements
    size_t pitch = 0, height = 1;
    unsigned value = 0, width = 1;
    // Host
    void (*host)(void*) = nullptr;
    void* user = nullptr;
    CUgraph child = nullptr;
    CUevent event = nullptr;
    void** borrowed_args = nullptr;      // the caller's own array, valid during the call only
    void own_params();
};
struct Capture;
struct CUstream_st {
    CUcontext ctx;
    unsigned flags = 0;
    int priority = 0;
    uint64_t id = 0;
    std::shared_ptr<Capture> capture;
    std::vector<CUgraphNode> tail;       // under capture: what the next operation depends on
};
CUstream stream_of(CUstream handle);     // null, legacy and per-thread handles too; null pointer if it is none
CUresult enqueue(CUstream s, Op&& op, CUgraphNode* node = nullptr);
CUresult execute(Op& op);
// With HADAL_EMU_LATE: does what streams have not done yet. Every call that waits begins with it, or frees what the work may use.
CUresult run_late();
// Calls that a capture forbids (they might wait for the device): refuse, and spoil the capture as the driver does.
CUresult forbid_in_capture();

// ---- counts (counts.cpp; in both libraries)

enum Count {
    Translated, Kept,                                // programs from PTX: now, or found in the cache
    Launches, Memsets, Uploads, Downloads, Copies,   // copies from the host, to it, and on the device
    Encodes, Attributes, Replays, Synchronizations,
    Counts
};
void count(Count c);
void count_synchronization();                        // in null mode a line of all counts so far

// ---- compiling (compile.cpp, translate.cpp; in both libraries)

namespace compiler {
// What a kernel becomes: its own source for the host's compiler, the real NVRTC's PTX translated for it, or nothing.
enum Mode { FromSource, FromPtx, Nothing };
Mode mode();                                         // $HADAL_EMU: source, ptx or null
// The library that the real NVRTC lies in, or "" and a sentence (real_nvrtc.cpp).
const std::string& real_nvrtc(std::string* why);
// Its version and architectures.
struct About { int version[2] = {0, 0}; std::vector<int> archs; };
const About& about_real_nvrtc();
int run(const std::vector<std::string>& command, std::string* said, const std::string& out_path = "");
bool read_file(const std::string& path, std::string* out);
std::string home();                                  // the folder that the libraries lie in
struct Source {
    std::string name, text;
    std::vector<std::pair<std::string, std::string>> headers;
    std::vector<std::string> options;
    std::vector<std::string> expressions;            // nvrtcAddNameExpression
};
struct Result {
    bool ok = false;
    std::string log, image;                          // image: what nvrtcGetCUBIN returns
    std::vector<std::pair<std::string, std::string>> lowered;
    std::string key;                                 // its name in the cache
    int error = 0;
};
std::string text_of(const Result& r);                // what nvrtcGetPTX returns: text, as some callers expect
Result compile(const Source& s);
// The shared object inside an image, in the mode that this process runs in: an image from a kernel cache may have been
// made without instrumentation or for another machine, and is then compiled again from the source that it carries.
bool object_of(const std::string& image, std::string* object, std::string* why);
size_t image_size(const void* image);                // 0 if it is none of ours
unsigned image_arch(const void* image);              // 90 for sm_90; 0 for PTX, which suits every device
std::string cache_dir();
}
std::string translate(const std::string& preprocessed, const std::vector<std::string>& expressions, std::string* error);
