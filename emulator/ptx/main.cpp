// A kernel's source through the real NVRTC to PTX, and on to C++. A process of its own: a crash of NVRTC stays outside, several
// compile at a time, and its symbols do not meet those of the emulator's stand-in.
//
//   ptx2cpp about LIBRARY                                         its version and architectures, on one line
//   ptx2cpp compile LIBRARY SOURCE C++ [--name NAME] [--header NAME FILE] [--expression E] [-- OPTIONS]
//
// $HADAL_EMU_KEEP_PTX names a folder in which the PTX of each program is kept.
#include <dlfcn.h>
#include <glob.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "module.h"

namespace {
struct Nvrtc {
    void* library;
    explicit Nvrtc(const char* path) {
        // NVRTC 13 looks its builtins up by name only: they have to be there first.
        Str folder = Str(path).substr(0, Str(path).rfind('/') + 1);
        glob_t found{};
        glob((folder + "libnvrtc-builtins.so*").c_str(), 0, nullptr, &found);
        for (size_t i = 0; i < found.gl_pathc; i++) dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_GLOBAL);
        globfree(&found);
        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library) throw Refused{Str("cannot open the real NVRTC: ") + dlerror()};
    }
    template <class F> F get(const char* name) const {
        void* f = dlsym(library, name);
        if (!f) throw Refused{Str("the real NVRTC has no ") + name};
        return (F)f;
    }
    Str text(void* program, const char* size, const char* get_text) const {
        size_t n = 0;
        if (get<int (*)(void*, size_t*)>(size)(program, &n) || !n) return "";
        Str s(n, 0);
        get<int (*)(void*, char*)>(get_text)(program, &s[0]);
        s.resize(n - 1);
        return s;
    }
};
}

static Str read_file(const char* path) {
    std::ifstream f(path, std::ios::binary);
    if (!f) throw Refused{Str("cannot read ") + path};
    std::stringstream s;
    s << f.rdbuf();
    return s.str();
}

static int about(const Nvrtc& nvrtc) {
    int major = 0, minor = 0, n = 0, archs[64] = {};
    nvrtc.get<int (*)(int*, int*)>("nvrtcVersion")(&major, &minor);
    nvrtc.get<int (*)(int*)>("nvrtcGetNumSupportedArchs")(&n);
    if (n > 64) n = 64;
    nvrtc.get<int (*)(int*)>("nvrtcGetSupportedArchs")(archs);
    printf("%d %d", major, minor);
    for (int i = 0; i < n; i++) printf(" %d", archs[i]);
    printf("\n");
    return 0;
}

// PTX for the virtual architecture of the one that is asked for. -lineinfo: messages then name the kernel's file and line.
static Words options_of(int n, char** v) {
    Words r;
    for (int i = 0; i < n; i++) {
        Str o = v[i];
        size_t p = o.find("sm_");
        if (p != Str::npos && (o.find("arch") != Str::npos || (i && Str(v[i - 1]).find("arch") != Str::npos))) o.replace(p, 3, "compute_");
        r.push_back(o);
    }
    r.push_back("-lineinfo");
    return r;
}

static int compile(const Nvrtc& nvrtc, int n, char** v) {
    Str name = "default_program", source = read_file(v[0]);
    Words header_names, header_texts, expressions;
    int i = 2;
    for (; i + 1 < n && Str(v[i]) != "--"; i += 2) {
        Str o = v[i];
        if (o == "--name") name = v[i + 1];
        if (o == "--expression") expressions.push_back(v[i + 1]);
        if (o == "--header") header_names.push_back(v[i + 1]), header_texts.push_back(read_file(v[i + 2])), i++;
    }
    Words options = options_of(n - i - 1, v + i + 1);
    auto pointers = [](const Words& w) {
        std::vector<const char*> r;
        for (auto& x : w) r.push_back(x.c_str());
        return r;
    };
    auto names = pointers(header_names), texts = pointers(header_texts), given = pointers(options);
    void* program = nullptr;
    auto create = nvrtc.get<int (*)(void**, const char*, const char*, int, const char* const*, const char* const*)>("nvrtcCreateProgram");
    if (create(&program, source.c_str(), name.c_str(), (int)names.size(), texts.data(), names.data())) throw Refused{"nvrtcCreateProgram failed"};
    for (auto& e : expressions) nvrtc.get<int (*)(void*, const char*)>("nvrtcAddNameExpression")(program, e.c_str());
    int error = nvrtc.get<int (*)(void*, int, const char* const*)>("nvrtcCompileProgram")(program, (int)given.size(), given.data());
    fputs(nvrtc.text(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").c_str(), stderr);
    if (error) return 1;
    Str ptx = nvrtc.text(program, "nvrtcGetPTXSize", "nvrtcGetPTX");
    std::map<Str, Str> called;
    for (auto& e : expressions) {
        const char* lowered = nullptr;
        if (!nvrtc.get<int (*)(void*, const char*, const char**)>("nvrtcGetLoweredName")(program, e.c_str(), &lowered) && lowered) called[lowered] = e;
    }
    if (const char* keep = getenv("HADAL_EMU_KEEP_PTX")) {
        Str file = name;
        for (char& c : file)
            if (c == '/') c = '_';
        std::ofstream(Str(keep) + "/" + file + "-" + num((long long)(std::hash<Str>()(source + join(options)) >> 1)) + ".ptx") << ptx;
    }
    Str cpp = ptx_to_cpp(ptx, called);
    std::ofstream out(v[1], std::ios::binary);
    out << cpp;
    return out.flush() ? 0 : 1;
}

int main(int n, char** v) {
    try {
        if (n > 2 && Str(v[1]) == "about") return about(Nvrtc(v[2]));
        if (n > 4 && Str(v[1]) == "compile") return compile(Nvrtc(v[2]), n - 3, v + 3);
        throw Refused{"usage: ptx2cpp about LIBRARY | ptx2cpp compile LIBRARY SOURCE C++ ..."};
    } catch (Refused& r) {
        fprintf(stderr, "%s\n", r.why.c_str());
    } catch (std::exception& e) {
        fprintf(stderr, "the PTX is malformed: %s\n", e.what());
    }
    return 1;
}
