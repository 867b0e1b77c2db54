// Kernel source to a shared object, by the host's compiler, with a cache on disk.
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "internal.h"

extern char** environ;

namespace compiler {

static const char magic[] = "HADALEMU";
static const char text_magic[] = "// hadal emulator: image ";
struct Header {
    char magic[8];
    uint64_t total, mode, arch, source, flags, object;
};

Mode mode() {
    static const Mode m = [] {
        const char* v = getenv("HADAL_EMU");
        if (!v || !*v || !strcmp(v, "source")) return FromSource;
        if (!strcmp(v, "ptx")) return FromPtx;
        if (!strcmp(v, "null")) return Nothing;
        fprintf(stderr, "hadal emulator: HADAL_EMU=%s is none of source, ptx, null\n", v);
        exit(2);
    }();
    return m;
}
static bool instrumented() {
    for (const char* n : {"HADAL_EMU_CHECK", "HADAL_EMU_RACE"}) {
        const char* v = getenv(n);
        if (v && *v && strcmp(v, "0") != 0) return true;
    }
    return false;
}

static uint64_t hash(const std::string& s, uint64_t h = 0xcbf29ce484222325ull) {
    // FNV, then mixed: 64 bits twice with different starts make the names of cache entries.
    for (unsigned char c : s) h = (h ^ c) * 0x100000001b3ull;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93ull;
    return h ^ h >> 32;
}
static std::string name_of(const std::string& s) {
    char b[40];
    snprintf(b, sizeof b, "%016llx%016llx", (unsigned long long)hash(s), (unsigned long long)hash(s, 0x9ae16a3b2f90404full));
    return b;
}

bool read_file(const std::string& path, std::string* out) {
    FILE* f = fopen(path.c_str(), "rb");
    if (!f) return false;
    out->clear();
    char b[65536];
    for (size_t n; (n = fread(b, 1, sizeof b, f)) > 0;) out->append(b, n);
    fclose(f);
    return true;
}
static bool write_file(const std::string& path, const std::string& data) {
    FILE* f = fopen(path.c_str(), "wb");
    if (!f) return false;
    bool ok = fwrite(data.data(), 1, data.size(), f) == data.size();
    return fclose(f) == 0 && ok;
}
static void make_dirs(const std::string& path) {
    for (size_t i = 1; i <= path.size(); i++)
        if (i == path.size() || path[i] == '/') mkdir(path.substr(0, i).c_str(), 0777);
}

std::string cache_dir() {
    static const std::string d = [] {
        std::string p;
        if (const char* e = getenv("HADAL_EMULATOR_CACHE"); e && *e) p = e;
        else if (const char* x = getenv("XDG_CACHE_HOME"); x && *x) p = std::string(x) + "/hadal-emulator";
        else if (const char* h = getenv("HOME"); h && *h) p = std::string(h) + "/.cache/hadal-emulator";
        else p = "/tmp/hadal-emulator";
        make_dirs(p);
        if (access(p.c_str(), W_OK) != 0) {
            p = "/tmp/hadal-emulator-" + std::to_string(getuid());
            make_dirs(p);
        }
        return p;
    }();
    return d;
}

std::string home() {
    Dl_info i;
    dladdr((void*)&home, &i);
    char real[4096];
    std::string p = realpath(i.dli_fname, real) ? real : i.dli_fname;
    return p.substr(0, p.rfind('/'));
}
static std::string cxx() {
    const char* c = getenv("CXX");
    return c && *c ? c : "g++";
}
// What the object depends on besides source and flags: the compiler, the machine, our headers.
static const std::string& environment() {
    static const std::string e = [] {
        std::string s = cxx(), path = cxx();
        if (path.find('/') == std::string::npos) {
            const char* p = getenv("PATH");
            std::string all = p ? p : "";
            for (size_t b = 0; b <= all.size();) {
                size_t c = all.find(':', b);
                if (c == std::string::npos) c = all.size();
                std::string f = all.substr(b, c - b) + "/" + path;
                if (access(f.c_str(), X_OK) == 0) { path = f; break; }
                b = c + 1;
            }
        }
        struct stat st;
        if (stat(path.c_str(), &st) == 0) s += std::to_string(st.st_size) + "," + std::to_string(st.st_mtime);
        std::string cpu;
        if (read_file("/proc/cpuinfo", &cpu)) {
            size_t f = cpu.find("flags");
            if (f == std::string::npos) f = cpu.find("Features");
            if (f != std::string::npos) s += cpu.substr(f, cpu.find('\n', f) - f);
            size_t m = cpu.find("model name");
            if (m != std::string::npos) s += cpu.substr(m, cpu.find('\n', m) - m);
        }
#if !defined(__x86_64__) || defined(EMU_PORTABLE)
        s += "portable";
#endif
        std::string text, why;
        for (const char* h : {"emu_abi.h", "emu_words.h", "emu_math.h", "emu_ptx.h", "emu_hopper.h", "emu_run_ptx.h"})
            if (read_file(home() + "/include/" + h, &text)) s += text;
        if (mode() == FromPtx) {
            const std::string& library = real_nvrtc(&why);
            if (read_file(home() + "/ptx2cpp", &text)) s += text;
            if (stat(library.c_str(), &st) == 0) s += library + std::to_string(st.st_size) + "," + std::to_string(st.st_mtime);
        }
        return s;
    }();
    return e;
}

// Writes a file of the cache beside its place and moves it there: others may be writing the same one.
static void keep(const std::string& path, const std::string& data) {
    std::string temp = path + ".XXXXXX";
    int fd = mkstemp(&temp[0]);
    if (fd < 0) return;
    close(fd);
    if (!write_file(temp, data) || rename(temp.c_str(), path.c_str())) unlink(temp.c_str());
}

// Runs a command; what it says on stdout and stderr goes to `said`.
int run(const std::vector<std::string>& command, std::string* said, const std::string& out_path) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC)) return -1;
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, fds[1], 2);
    if (out_path.empty()) posix_spawn_file_actions_adddup2(&fa, fds[1], 1);
    else posix_spawn_file_actions_addopen(&fa, 1, out_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
    std::vector<char*> argv;
    for (auto& a : command) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    std::vector<char*> env;
    for (char** e = environ; *e; e++)
        if (strncmp(*e, "LD_PRELOAD=", 11) && strncmp(*e, "LC_", 3) && strncmp(*e, "LANG=", 5)) env.push_back(*e);
    char c_locale[] = "LC_ALL=C";
    env.push_back(c_locale);
    env.push_back(nullptr);
    pid_t pid;
    int e = posix_spawnp(&pid, argv[0], &fa, nullptr, argv.data(), env.data());
    posix_spawn_file_actions_destroy(&fa);
    close(fds[1]);
    if (e) {
        close(fds[0]);
        *said += "cannot run " + command[0] + ": " + strerror(e) + "\n";
        return -1;
    }
    char b[4096];
    for (;;) {
        ssize_t n = read(fds[0], b, sizeof b);
        if (n > 0) said->append(b, (size_t)n);
        else if (n == 0 || errno != EINTR) break;
    }
    close(fds[0]);
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

namespace {
struct TempDir {
    std::string path;
    // Both libraries of a process compile, each with statics of its own: the name is the system's to choose.
    TempDir() : path(cache_dir() + "/tmp-XXXXXX") {
        make_dirs(cache_dir());
        if (!mkdtemp(&path[0])) path = cache_dir() + "/tmp-none";
    }
    ~TempDir() {
        std::string said;
        if (!getenv("HADAL_EMU_KEEP")) run({"rm", "-rf", path}, &said);
    }
};
}

// file:12:5: error: ...  ->  file(12): error: ..., as NVRTC writes it
static std::string as_nvrtc(const std::string& log) {
    std::string r;
    size_t b = 0;
    while (b < log.size()) {
        size_t e = log.find('\n', b);
        if (e == std::string::npos) e = log.size();
        std::string line = log.substr(b, e - b);
        b = e + 1;
        for (const char* word : {": error: ", ": fatal error: ", ": warning: ", ": note: "}) {
            size_t w = line.find(word);
            if (w == std::string::npos) continue;
            size_t c2 = line.rfind(':', w - 1), c1 = c2 == std::string::npos || c2 == 0 ? c2 : line.rfind(':', c2 - 1);
            bool two = c1 != std::string::npos && c1 + 1 < c2 && line.find_first_not_of("0123456789", c1 + 1) == c2;
            if (two) line = line.substr(0, c1) + "(" + line.substr(c1 + 1, c2 - c1 - 1) + ")" + line.substr(w);
            else if (c2 != std::string::npos && c2 < w && line.find_first_not_of("0123456789", c2 + 1) == w)
                line = line.substr(0, c2) + "(" + line.substr(c2 + 1, w - c2 - 1) + ")" + line.substr(w);
            break;
        }
        r += line + "\n";
    }
    return r;
}

static std::string flags_of(bool fmad) {
    // CUDA contracts a*b+c by default; in PTX that is done. Punning through pointers is usual in kernels.
    bool ptx = mode() == FromPtx;
    return std::string(ptx ? "-O1 -fwrapv" : "-fpreprocessed -O2") + std::string(" -std=gnu++17 -march=native -fPIC -w -fno-exceptions -fno-rtti -fno-asynchronous-unwind-tables -fno-stack-protector "
                       "-fno-threadsafe-statics -fno-semantic-interposition -fno-strict-aliasing -fno-math-errno -fno-trapping-math "
                       "-fno-gnu-unique -fno-diagnostics-show-caret -fno-ident -Wno-register -ffp-contract=") + (fmad && !ptx ? "fast" : "off")
#if defined(__x86_64__) && !defined(EMU_PORTABLE)
           + " -ffixed-r15"
#else
           + " -DEMU_PORTABLE"
#endif
        ;
}
static std::vector<std::string> words(const std::string& s) {
    std::vector<std::string> r;
    for (size_t b = 0; b < s.size();) {
        size_t e = s.find(' ', b);
        if (e == std::string::npos) e = s.size();
        if (e > b) r.push_back(s.substr(b, e - b));
        b = e + 1;
    }
    return r;
}

// Translated source to an object, in the mode of this process.
static bool make_object(const std::string& source, const std::string& flags, std::string* object, std::string* log) {
    TempDir tmp;
    std::string ii = tmp.path + "/kernel.ii", so = tmp.path + "/kernel.so";
    write_file(ii, source);
    std::vector<std::string> c = {cxx(), "-x", "c++", "-I", home() + "/include"};
    for (auto& w : words(flags)) c.push_back(w);
    if (instrumented()) {
        // Every access becomes a call of __tsan_read4 and so on, which are ours (hooks.cpp).
        for (auto w : {"-fsanitize=thread", "-g1", "--param", "tsan-instrument-func-entry-exit=0"}) c.push_back(w);
        char cwd[4096];
        if (getcwd(cwd, sizeof cwd)) c.push_back("-fdebug-prefix-map=" + std::string(cwd) + "=.");
        // -fsanitize when linking would bring the compiler's own runtime.
        c.push_back("-c");
        c.push_back(ii);
        c.push_back("-o");
        c.push_back(tmp.path + "/kernel.o");
        if (run(c, log)) return false;
        c = {cxx(), tmp.path + "/kernel.o"};
    } else {
        c.push_back(ii);
    }
    for (auto w : {"-shared", "-fPIC", "-nostdlib", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-Wl,--build-id=none", "-Wl,--hash-style=gnu", "-o"}) c.push_back(w);
    c.push_back(so);
    c.push_back("-x");
    c.push_back("none");
    c.push_back(home() + "/libcuda.so.1");
    for (auto w : {"-lm", "-lc", "-lgcc"}) c.push_back(w);
    if (run(c, log)) return false;
    return read_file(so, object);
}

static std::string make_image(const std::string& source, const std::string& flags, const std::string& object, unsigned arch) {
    Header h;
    memcpy(h.magic, magic, 8);
    h.mode = hash(environment() + (instrumented() ? "instrumented" : ""));
    h.arch = arch;
    h.source = source.size(), h.flags = flags.size(), h.object = object.size();
    h.total = sizeof h + h.source + h.flags + h.object;
    return std::string((char*)&h, sizeof h) + source + flags + object;
}
size_t image_size(const void* p) {
    if (memcmp(p, magic, 8) == 0) {
        Header h;
        memcpy(&h, p, sizeof h);
        return h.total;
    }
    if (strncmp((const char*)p, text_magic, sizeof text_magic - 1) == 0) return strlen((const char*)p);
    return 0;
}
unsigned image_arch(const void* p) {
    if (memcmp(p, magic, 8)) return 0;
    Header h;
    memcpy(&h, p, sizeof h);
    return (unsigned)h.arch;
}
std::string text_of(const Result& r) { return text_magic + r.key + "\n// The kernels themselves are in the emulator's cache.\n"; }
bool object_of(const std::string& given, std::string* object, std::string* why) {
    std::string image = given;
    if (given.compare(0, sizeof text_magic - 1, text_magic) == 0) {
        std::string name = given.substr(sizeof text_magic - 1, 32);
        if (!read_file(cache_dir() + "/" + name + ".image", &image)) {
            *why = "this PTX belongs to a cache entry that is gone";
            return false;
        }
    }
    Header h;
    if (image.size() < sizeof h) { *why = "truncated image"; return false; }
    memcpy(&h, image.data(), sizeof h);
    if (h.total != image.size() || h.total != sizeof h + h.source + h.flags + h.object) { *why = "truncated image"; return false; }
    if (h.mode == hash(environment() + (instrumented() ? "instrumented" : ""))) {
        *object = image.substr(sizeof h + h.source + h.flags);
        return true;
    }
    std::string source = image.substr(sizeof h, h.source), flags = image.substr(sizeof h + h.source, h.flags);
    if ((flags.find("-fpreprocessed") == std::string::npos) != (mode() == FromPtx)) {
        *why = "this image was made in another mode of HADAL_EMU: clear the kernel cache, or set HADAL_CACHE=off";
        return false;
    }
    std::string path = cache_dir() + "/" + name_of(environment() + source + flags + (instrumented() ? "instrumented" : "")) + ".object";
    if (read_file(path, object)) return true;
    if (!make_object(source, flags, object, why)) return false;
    keep(path, *object);
    return true;
}

// The real NVRTC in a process of its own, which also translates (ptx/main.cpp).
static Result through_ptx(const Source& s, unsigned arch, const std::string& path, Result r) {
    TempDir tmp;
    std::string cu = tmp.path + "/source.cu", cpp = tmp.path + "/kernel.cpp", why, source, object;
    r.error = 6;
    const std::string& library = real_nvrtc(&why);
    if (library.empty()) {
        r.log = "HADAL_EMU=ptx: " + why + "\n";
        return r;
    }
    write_file(cu, s.text);
    std::vector<std::string> c = {home() + "/ptx2cpp", "compile", library, cu, cpp, "--name", s.name.empty() ? "default_program" : s.name};
    for (size_t i = 0; i < s.headers.size(); i++) {
        std::string h = tmp.path + "/header" + std::to_string(i);
        write_file(h, s.headers[i].second);
        for (auto& w : {std::string("--header"), s.headers[i].first, h}) c.push_back(w);
    }
    for (auto& e : s.expressions) c.push_back("--expression"), c.push_back(e);
    c.push_back("--");
    for (auto& o : s.options) c.push_back(o);
    if (run(c, &r.log) || !read_file(cpp, &source) || !make_object(source, flags_of(true), &object, &r.log)) return r;
    count(Translated);
    r.image = make_image(source, flags_of(true), object, arch);
    keep(path, r.image);
    r.ok = true, r.error = 0;
    return r;
}

Result compile(const Source& s) {
    Result r;
    std::string defines, standard = "gnu++17";
    std::vector<std::string> includes;
    unsigned arch = 75;
    bool real = false, arch_a = false, fmad = true;
    auto define = [&](const std::string& d) {
        size_t q = d.find('=');
        defines += q == std::string::npos ? "#define " + d + " 1\n" : "#define " + d.substr(0, q) + " " + d.substr(q + 1) + "\n";
    };
    auto target = [&](const std::string& v) {
        size_t u = v.find('_');
        if (u == std::string::npos) return false;
        real = v.compare(0, 2, "sm") == 0;
        arch = (unsigned)atoi(v.c_str() + u + 1);
        arch_a = !isdigit((unsigned char)v.back());
        return arch >= 50;
    };
    for (size_t i = 0; i < s.options.size(); i++) {
        std::string o = s.options[i], v;
        while (!o.empty() && o.back() == ' ') o.pop_back();
        auto value = [&](std::initializer_list<const char*> names) {
            for (const char* n : names) {
                size_t len = strlen(n);
                if (o.compare(0, len, n)) continue;
                if (o.size() == len && i + 1 < s.options.size()) { v = s.options[++i]; return true; }
                if (o.size() > len && o[len] == '=') { v = o.substr(len + 1); return true; }
                if (o.size() > len && len == 2) { v = o.substr(len); return true; }
            }
            return false;
        };
        bool ok = true;
        if (value({"--gpu-architecture", "-arch"})) ok = target(v);
        else if (value({"--define-macro", "-D"})) define(v);
        else if (value({"--undefine-macro", "-U"})) defines += "#undef " + v + "\n";
        else if (value({"--include-path", "-I"})) includes.push_back(v);
        else if (value({"--std", "-std"})) ok = v == "c++03" || v == "c++11" || v == "c++14" || v == "c++17" || v == "c++20";
        else if (value({"--fmad", "-fmad"})) fmad = v != "false";
        else if (value({"--ftz", "-ftz", "--prec-div", "-prec-div", "--prec-sqrt", "-prec-sqrt", "--maxrregcount", "-maxrregcount", "--ptxas-options", "-Xptxas",
                        "--diag-suppress", "-diag-suppress", "--diag-error", "--diag-warn", "--split-compile", "--modify-stack-limit", "--restrict",
                        "--minimal", "--jump-table-density", "--gen-opt-lto", "--fdevice-time-trace", "--pch-dir", "--dopt", "-dopt"})) {}
        else if (o == "--use_fast_math" || o == "-use_fast_math" || o == "-default-device" || o == "--device-as-default-execution-space" || o == "-lineinfo" ||
                 o == "--generate-line-info" || o == "-G" || o == "--device-debug" || o == "-w" || o == "--disable-warnings" || o == "-restrict" ||
                 o == "--extra-device-vectorization" || o == "-extra-device-vectorization" || o == "--relocatable-device-code=false" || o == "-rdc=false" ||
                 o == "--display-error-number" || o == "--no-display-error-number" || o == "-no-cache" || o == "--no-cache" || o == "--minimal" || o == "-minimal" || o.empty()) {}
        else ok = false;
        if (!ok) {
            r.log = "nvrtc: error: invalid value or unrecognized option: " + s.options[i] + "\n";
            r.error = 5;
            return r;
        }
    }
    std::string options;
    for (auto& o : s.options) options += o + "\n";
    std::string all = environment() + "\n" + options + s.name + "\n" + s.text + (instrumented() ? "\ninstrumented" : "");
    for (auto& h : s.headers) all += h.first + "\n" + h.second + "\n";
    for (auto& e : s.expressions) all += e + "\n";
    for (auto& e : s.expressions) r.lowered.push_back({e, e});
    r.key = name_of(all);
    if (mode() == Nothing) {
        r.image = make_image("", "", "", real ? arch : 0);
        r.ok = true;
        return r;
    }
    std::string path = cache_dir() + "/" + r.key + ".image";
    if (includes.empty() && read_file(path, &r.image) && r.image.size() > sizeof(Header) && image_size(r.image.data()) == r.image.size()) {
        r.ok = true;
        if (mode() == FromPtx) count(Kept);
        return r;
    }
    r.image.clear();

    if (mode() == FromPtx) return through_ptx(s, real ? arch : 0, path, std::move(r));
    TempDir tmp;
    std::string cu = tmp.path + "/source.cu", ii = tmp.path + "/source.ii";
    for (auto& h : s.headers) {
        std::string p = tmp.path + "/include/" + h.first;
        make_dirs(p.substr(0, p.rfind('/')));
        write_file(p, h.second);
    }
    // -D after our own header: a kernel may well define T or N.
    std::string file = s.name.empty() ? "default_program" : s.name;
    write_file(cu, defines + "#line 1 \"" + file + "\"\n" + s.text + "\n");
    std::vector<std::string> c = {cxx(), "-E", "-x", "c++", "-std=" + standard, "-nostdinc", "-nostdinc++", "-w", "-fno-diagnostics-show-caret",
                                  "-DHADAL_EMULATOR_PTX=1", "-D__CUDA_ARCH__=" + std::to_string(arch * 10)};
    if (arch_a) c.push_back("-D__CUDA_ARCH_FEAT_SM" + std::to_string(arch) + "_ALL=1");
#if !defined(__x86_64__) || defined(EMU_PORTABLE)
    c.push_back("-DEMU_PORTABLE=1");
#endif
    for (auto& w : {std::string("-I"), home() + "/include", std::string("-I"), tmp.path + "/include"}) c.push_back(w);
    for (auto& i : includes) c.push_back("-I"), c.push_back(i);
    c.push_back("-include");
    c.push_back("emu_words.h");
    c.push_back(cu);
    std::string said, preprocessed, error;
    if (run(c, &said, ii) || !read_file(ii, &preprocessed)) {
        r.log = as_nvrtc(said);
        r.error = 6;
        return r;
    }
    std::string source = translate(preprocessed, s.expressions, &error), object, flags = flags_of(fmad);
    if (!error.empty()) {
        r.log = file + ": error: " + error + "\n";
        r.error = 6;
        return r;
    }
    if (!make_object(source, flags, &object, &said)) {
        r.log = as_nvrtc(said);
        r.error = 6;
        return r;
    }
    r.log = as_nvrtc(said);
    r.image = make_image(source, flags, object, real ? arch : 0);
    keep(path, r.image);
    r.ok = true;
    return r;
}
}
