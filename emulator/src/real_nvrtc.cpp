// The real NVRTC, for kernels that run from its PTX: looked for as src/cuda/nvrtc.rs does, but never the emulator's own.
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "internal.h"

namespace compiler {

static std::vector<std::string> matching(const std::string& pattern) {
    glob_t g{};
    std::vector<std::string> r;
    if (glob(pattern.c_str(), 0, nullptr, &g) == 0) r.assign(g.gl_pathv, g.gl_pathv + g.gl_pathc);
    globfree(&g);
    std::reverse(r.begin(), r.end());       // the newest name first
    return r;
}
static std::string library_in(const std::string& folder) {
    char own[4096], real[4096];
    const char* here = realpath(home().c_str(), own);
    for (auto& path : matching(folder + "/libnvrtc.so*")) {
        const char* p = realpath(path.c_str(), real);
        if (p && here && std::string(p).substr(0, std::string(p).rfind('/')) != here) return path;
    }
    return "";
}
static std::string find() {
    // emulator/run moves $HADAL_NVRTC there, since the program's own NVRTC is the emulator's.
    if (const char* chosen = getenv("HADAL_EMU_NVRTC"); chosen && *chosen) {
        struct stat s;
        if (stat(chosen, &s) == 0 && !S_ISDIR(s.st_mode)) return chosen;
        return library_in(chosen);
    }
    std::vector<std::string> patterns;
    auto add = [&](const char* variable, const char* tail) {
        if (const char* v = getenv(variable); v && *v) patterns.push_back(std::string(v) + tail);
    };
    for (auto v : {"CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"}) add(v, "/lib64");
    for (auto p : {"/usr/local/cuda/lib64", "/opt/cuda/lib64", "/usr/local/cuda-*/lib64"}) patterns.push_back(p);
    add("CONDA_PREFIX", "/lib");
    for (auto v : {"VIRTUAL_ENV", "CONDA_PREFIX"}) add(v, "/lib/python3*/*-packages/nvidia/c*/lib");
    add("HOME", "/.local/lib/python3*/*-packages/nvidia/c*/lib");
    for (auto p : {"/usr/local", "/usr"}) patterns.push_back(std::string(p) + "/lib/python3*/*-packages/nvidia/c*/lib");
    for (auto& pattern : patterns)
        for (auto& folder : matching(pattern)) {
            std::string found = library_in(folder);
            if (!found.empty()) return found;
        }
    return "";
}
const std::string& real_nvrtc(std::string* why) {
    static const std::string path = find();
    if (path.empty()) *why = "no real NVRTC is found; `pip install nvidia-cuda-nvrtc-cu12`, or set HADAL_NVRTC to its folder";
    return path;
}

const About& about_real_nvrtc() {
    static const About about = [] {
        About a;
        std::string why, said;
        const std::string& library = real_nvrtc(&why);
        if (!library.empty()) run({home() + "/ptx2cpp", "about", library}, &said);
        std::istringstream words(said);
        words >> a.version[0] >> a.version[1];
        for (int arch; words >> arch;) a.archs.push_back(arch);
        return a;
    }();
    return about;
}
}
