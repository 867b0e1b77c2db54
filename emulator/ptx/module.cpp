// A module of PTX as a C++ file: variables, functions, and the table of kernels that the driver looks for.
#include "module.h"

#include <cctype>
#include <cstdlib>
#include <cstring>

#include "function.h"

namespace {
struct Kernel {
    Str name;
    size_t parameters;
    unsigned threads, blocks, shared, cluster[3];
};
class Translation {
public:
    Translation(const ModuleText& text, const std::map<Str, Str>& names) : text(text), names(names) {}
    Str run();

private:
    const ModuleText& text;
    const std::map<Str, Str>& names;
    Module module;
    Words out;
    std::vector<Kernel> kernels;
    std::unordered_set<Str> shared_of_functions;

    void variable(const Declaration& d);
    void function(const FunctionText& f);
    void kernel(const FunctionText& f);
    Str table() const;
};
}

// A list of numbers: 1, 0xff, 0f3F800000; braces only group them.
static Str initializer(const Declaration& d) {
    Words items;
    Str list = d.init;
    for (char& c : list)
        if (c == '{' || c == '}') c = ' ';
    for (auto x : split(list, ',')) {
        if (x.empty() || !(isdigit((unsigned char)x[0]) || x[0] == '-')) refuse("initializer " + x + " of " + d.name);
        if (x.size() > 2 && x[0] == '0' && tolower(x[1]) == 'f') x = "f32_of(0x" + x.substr(2) + "u)";
        else if (x.size() > 2 && x[0] == '0' && tolower(x[1]) == 'd') x = "f64_of(0x" + x.substr(2) + "ull)";
        items.push_back("(" + c_type(d.type) + ")(" + x + ")");
    }
    return " = {" + join(items) + "}";
}
void Translation::variable(const Declaration& d) {
    if (d.space == "shared") {
        module.variables[d.name] = module.place_shared(d);
        return;
    }
    if (d.space != "global" && d.space != "const") refuse("variable " + d.name + " of ." + d.space);
    unsigned count = d.size / size_of(d.type);
    Str name = global_name(d.name);
    out.push_back("extern \"C\" { VISIBLE alignas(" + num(d.align) + ") " + c_type(d.type) + " " + name + "[" + num(count ? count : 1) + "]" + (d.init.empty() ? "" : initializer(d)) + "; }");
    module.variables[d.name] = {d.space, "((u64)" + name + ")"};
}

// A .func has its result and its parameters by their places.
void Translation::function(const FunctionText& f) {
    Function translated(module, f);
    Words places;
    for (auto& d : f.results) places.push_back("char* p_" + local_name(d.name)), translated.add_parameter(d.name, "((u64)p_" + local_name(d.name) + ")");
    for (auto& d : f.parameters) places.push_back("const char* p_" + local_name(d.name)), translated.add_parameter(d.name, "((u64)p_" + local_name(d.name) + ")");
    Str head = "static void f_" + global_name(f.name) + "(" + join(places) + ")";
    module.functions.insert(f.name);
    out.push_back(f.defined ? head + " {\n" + translated.body() + "}" : head + ";");
    shared_of_functions.insert(translated.shared_used.begin(), translated.shared_used.end());
}

// .maxntid 384, 1, 1 as three numbers.
static bool directive(const Str& directives, const char* word, unsigned* v) {
    size_t p = directives.find(word);
    if (p == Str::npos) return false;
    const char* c = directives.c_str() + p + strlen(word);
    for (int i = 0; i < 3; i++) {
        char* end;
        v[i] = (unsigned)strtoul(c, &end, 10);
        while (isspace((unsigned char)*end)) end++;
        if (*end != ',') break;
        c = end + 1;
    }
    return true;
}
void Translation::kernel(const FunctionText& f) {
    Function translated(module, f);
    Kernel k{f.name, f.parameters.size(), 0, 0, 0, {0, 0, 0}};
    // Parameters lie in one buffer as PTX lays them out.
    Words sizes;
    Str copies, places;
    unsigned end = 0, align = 128;
    for (size_t i = 0; i < f.parameters.size(); i++) {
        auto& d = f.parameters[i];
        end = (end + d.align - 1) / d.align * d.align;
        translated.add_parameter(d.name, "((u64)(P + " + num(end) + "))");
        copies += "__builtin_memcpy(P + " + num(end) + ", a[" + num((long long)i) + "], " + num(d.size) + "); ";
        sizes.push_back(num(d.size));
        end += d.size;
    }
    sizes.push_back("0");
    Str body = translated.body();
    for (size_t i = 0; i < module.shared.size(); i++) {
        auto& v = module.shared[i];
        if (!translated.shared_used.count(v.name) && !shared_of_functions.count(v.name)) continue;
        unsigned at = v.align > 16 ? v.align : 16;
        places += "if (!B->shared_at[" + num((long long)i) + "]) emu_place_shared(emu_self, " + num((long long)i) + ", " + num(v.size) + ", " + num(at) + ", \"" + v.name + "\"); ";
        k.shared = (k.shared + at - 1) / at * at + v.size;
    }
    unsigned v[3] = {1, 1, 1};
    if (directive(f.directives, ".maxntid", v) || directive(f.directives, ".reqntid", v)) k.threads = v[0] * v[1] * v[2];
    if (directive(f.directives, ".minnctapersm", v)) k.blocks = v[0];
    k.cluster[1] = k.cluster[2] = 1;
    if (!directive(f.directives, ".reqnctapercluster", k.cluster)) k.cluster[1] = k.cluster[2] = 0;
    Str name = global_name(f.name);
    out.push_back("static void k_" + name + "(const char* P) {\n" + body + "}");
    out.push_back("static void run_" + name + "(void** a) { emu_block* B = emu_self->block; (void)B; (void)a; alignas(" + num(align) + ") char P[" + num(end ? end : 1) + "]; " + copies + places +
                  "run_threads<k_" + name + ">(P); }");
    out.push_back("static const unsigned sizes_" + name + "[] = {" + join(sizes) + "};");
    kernels.push_back(k);
}
Str Translation::table() const {
    Words entries, clusters;
    for (auto& k : kernels) {
        // A template is asked for by the name that it was registered under.
        auto n = names.find(k.name);
        Str name = global_name(k.name);
        entries.push_back("{\"" + (n == names.end() ? k.name : n->second) + "\", run_" + name + ", " + num((long long)k.parameters) + ", sizes_" + name + ", " + num(k.threads) + ", " +
                          num(k.blocks) + ", " + num(k.shared) + "}");
        clusters.push_back("{" + num(k.cluster[0]) + ", " + num(k.cluster[1]) + ", " + num(k.cluster[2]) + "}");
    }
    entries.push_back("{}"), clusters.push_back("{}");
    return "extern \"C\" {\nextern VISIBLE const emu_kernel emu_kernels[]; extern VISIBLE const unsigned emu_kernel_count, emu_from_ptx; extern VISIBLE const unsigned emu_kernel_clusters[][3];\n"
           "const emu_kernel emu_kernels[] = {" + join(entries, ",\n") + "};\nconst unsigned emu_kernel_count = " + num((long long)kernels.size()) +
           ", emu_from_ptx = 1;\nconst unsigned emu_kernel_clusters[][3] = {" + join(clusters) + "};\n}\n";
}
Str Translation::run() {
    for (auto& d : text.variables) variable(d);
    for (auto& f : text.functions) f.kernel ? kernel(f) : function(f);
    return "#include \"emu_run_ptx.h\"\n" + join(out, "\n") + "\n#line 1 \"kernels\"\n" + table();
}

Str ptx_to_cpp(const Str& ptx, const std::map<Str, Str>& names) {
    ModuleText text = parse_module(ptx);
    return Translation(text, names).run();
}
