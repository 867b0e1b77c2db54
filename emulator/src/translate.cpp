// From preprocessed CUDA to C++: places for __shared__ variables, and the table of kernels.
//
//   __shared__ float a[16][16];        a reference into the block's shared memory
//   extern __shared__ float s[];       a reference to where dynamic shared memory begins
//   __global__ void f(...)             a line in the table, with a trampoline made by a template (emu_words.h)
//
// Working on the text after the preprocessor has run means that macros may produce any of these.
#include <cctype>
#include <cstring>
#include <string>
#include <vector>

#include "internal.h"

namespace {
enum Kind { Word, Number, Text, Punct, Directive };
struct Token { Kind kind; size_t begin, end; };

struct Scope { bool function; std::string prefix; };

struct Translator {
    const std::string& in;
    std::vector<Token> t;
    std::string out;
    std::string error;
    std::vector<std::string> table;
    std::string clusters;                    // of each of its lines: what __cluster_dims__ says
    std::vector<std::string> seen;
    std::vector<std::string> outside;       // dynamic shared memory declared outside of functions
    unsigned serial = 0;

    explicit Translator(const std::string& s) : in(s) { scan(); }

    std::string text(size_t i) const { return in.substr(t[i].begin, t[i].end - t[i].begin); }
    bool is(size_t i, const char* s) const {
        if (i >= t.size()) return false;
        size_t n = strlen(s);
        return t[i].end - t[i].begin == n && in.compare(t[i].begin, n, s) == 0;
    }

    void scan() {
        size_t i = 0, n = in.size();
        bool line_start = true;
        while (i < n) {
            char c = in[i];
            if (c == '\n') { line_start = true; i++; continue; }
            if (isspace((unsigned char)c)) { i++; continue; }
            size_t b = i;
            if (c == '#' && line_start) {
                while (i < n && in[i] != '\n') i++;
                t.push_back({Directive, b, i});
                continue;
            }
            line_start = false;
            if (isalpha((unsigned char)c) || c == '_' || c == '$' || (unsigned char)c >= 128) {
                while (i < n && (isalnum((unsigned char)in[i]) || in[i] == '_' || in[i] == '$' || (unsigned char)in[i] >= 128)) i++;
                if (i < n && in[i] == '"' && in[i - 1] == 'R') {        // raw string
                    size_t p = in.find('(', i);
                    std::string close = ")" + in.substr(i + 1, p - i - 1) + "\"";
                    size_t e = in.find(close, p);
                    i = e == std::string::npos ? n : e + close.size();
                    t.push_back({Text, b, i});
                    continue;
                }
                t.push_back({Word, b, i});
            } else if (isdigit((unsigned char)c) || (c == '.' && i + 1 < n && isdigit((unsigned char)in[i + 1]))) {
                while (i < n && (isalnum((unsigned char)in[i]) || in[i] == '.' || in[i] == '_' ||
                                 (in[i] == '\'' && i + 1 < n && isalnum((unsigned char)in[i + 1])) ||
                                 ((in[i] == '+' || in[i] == '-') && strchr("eEpP", in[i - 1]) && !(in[b] == '0' && (in[b + 1] | 32) == 'x' && (in[i - 1] | 32) == 'e'))))
                    i++;
                t.push_back({Number, b, i});
            } else if (c == '"' || c == '\'') {
                i++;
                while (i < n && in[i] != c && in[i] != '\n') i += in[i] == '\\' ? 2 : 1;
                i = i < n ? i + 1 : n;
                t.push_back({Text, b, i});
            } else {
                i++;
                if (c == ':' && i < n && in[i] == ':') i++;
                if (c == '-' && i < n && in[i] == '>') i++;
                t.push_back({Punct, b, i});
            }
        }
    }
    // The token after the bracket that closes the one at i.
    size_t after_group(size_t i) const {
        int depth = 0;
        for (; i < t.size(); i++) {
            if (is(i, "(") || is(i, "[") || is(i, "{")) depth++;
            if (is(i, ")") || is(i, "]") || is(i, "}"))
                if (--depth == 0) return i + 1;
        }
        return i;
    }

    // The declaration of shared variables whose tokens are [b, e), e at the semicolon.
    std::string shared(size_t b, size_t e, bool in_function) {
        bool dynamic = false;
        std::vector<size_t> keep;
        std::string align;
        for (size_t i = b; i < e;) {
            if (t[i].kind == Directive) { i++; continue; }
            if (is(i, "extern")) { dynamic = true; i++; continue; }
            if (is(i, "static") || is(i, "__emu_shared__") || is(i, "inline")) { i++; continue; }
            if (is(i, "alignas")) {
                size_t end = after_group(i + 1);
                std::string inner = in.substr(t[i + 1].end, t[end - 1].begin - t[i + 1].end);
                align += ", emu_align_of(" + inner + ")";
                i = end;
                continue;
            }
            if (is(i, "__attribute__")) {
                size_t end = after_group(i + 1);
                for (size_t k = i; k < end; k++)
                    if ((is(k, "aligned") || is(k, "__aligned__")) && is(k + 1, "(")) {
                        size_t close = after_group(k + 1);
                        align += ", (unsigned)(" + in.substr(t[k + 1].end, t[close - 1].begin - t[k + 1].end) + ")";
                    }
                i = end;
                continue;
            }
            keep.push_back(i++);
        }
        // Each declarator's name is the word before its first `[`, or its last word. Before the first name, `<` opens a list of
        // template arguments.
        struct Name { size_t token; };
        std::vector<size_t> names;
        int angle = 0;
        size_t last_word = (size_t)-1;
        bool have = false;
        for (size_t k = 0; k < keep.size(); k++) {
            size_t i = keep[k];
            if (is(i, "<") && names.empty() && !have) { angle++; continue; }
            if (is(i, ">") && angle) { angle--; continue; }
            if (is(i, "(") || is(i, "[") || is(i, "{")) {
                if (is(i, "[") && !angle && !have && last_word != (size_t)-1) names.push_back(last_word), have = true;
                size_t end = after_group(i);
                while (k + 1 < keep.size() && keep[k + 1] < end) k++;
                continue;
            }
            if (angle) continue;
            if (is(i, "=")) { error = "a __shared__ variable cannot be initialized"; return ""; }
            if (is(i, ",")) {
                if (!have && last_word != (size_t)-1) names.push_back(last_word);
                have = false;
                last_word = (size_t)-1;
                continue;
            }
            if (t[i].kind == Word) last_word = i;
        }
        if (!have && last_word != (size_t)-1) names.push_back(last_word);
        if (names.empty()) { error = "cannot read a __shared__ declaration"; return ""; }

        std::string id = std::to_string(serial++), r = "typedef";
        for (size_t i : keep) {
            bool name = false;
            for (size_t n : names) name |= n == i;
            r += " ";
            if (name) r += "emu_type" + id + "_";
            r += text(i);
        }
        r += ";";
        for (size_t n : names) {
            std::string v = text(n), type = "emu_type" + id + "_" + v;
            if (dynamic && in_function) {
                r += " " + type + "& " + v + " = emu_shared_dynamic<" + type + ">();";
            } else if (dynamic) {
                r += " static inline " + type + "& emu_outside_" + v + "() { return emu_shared_dynamic<" + type + ">(); }";
                outside.push_back(v);
            } else if (in_function) {
                std::string tag = "emu_tag" + id + "_" + v;
                r += " struct " + tag + " {}; " + type + "& " + v + " = emu_shared_var<" + type + ", " + tag + ", emu_larger((unsigned)alignof(" + type + ")" + align +
                     ")>(\"" + v + "\");";
            } else {
                std::string tag = "emu_tag" + id + "_" + v;
                r += " struct " + tag + " {}; static inline " + type + "& emu_outside_" + v + "() { return emu_shared_var<" + type + ", " + tag +
                     ", emu_larger((unsigned)alignof(" + type + ")" + align + ")>(\"" + v + "\"); }";
                outside.push_back(v);
            }
        }
        return r;
    }

    // Looks at what follows __global__ up to the name; the table gets a line unless it is a template.
    void kernel(size_t at, size_t statement, const std::string& prefix) {
        std::string bounds = "0", cluster;
        size_t name = 0;
        for (size_t i = at + 1; i < t.size() && !is(i, ";") && !is(i, "{"); i++) {
            if (is(i, "__emu_bounds__") && is(i + 1, "(")) {
                size_t end = after_group(i + 1), stop = i + 2;
                int depth = 0;
                for (; stop < end - 1; stop++) {
                    if (is(stop, "(") || is(stop, "<")) depth++;
                    if (is(stop, ")") || is(stop, ">")) depth--;
                    if (is(stop, ",") && depth == 0) break;
                }
                bounds = in.substr(t[i + 2].begin, t[stop - 1].end - t[i + 2].begin);
                i = end - 1;
                continue;
            }
            if (is(i, "__emu_cluster__") && is(i + 1, "(")) {
                size_t end = after_group(i + 1);
                cluster = in.substr(t[i + 2].begin, t[end - 1].begin - t[i + 2].begin);
                i = end - 1;
                continue;
            }
            if ((is(i, "__attribute__") || is(i, "alignas")) && is(i + 1, "(")) { i = after_group(i + 1) - 1; continue; }
            if (t[i].kind == Word && is(i + 1, "(")) { name = i; break; }
        }
        for (size_t i = statement; i < at; i++) {
            if (is(i, "template") && is(i + 1, "<") && !is(i + 2, ">")) return;
            if (is(i, "__emu_bounds__") && is(i + 1, "(")) bounds = in.substr(t[i + 2].begin, t[after_group(i + 1) - 2].end - t[i + 2].begin);
        }
        if (!name) return;
        std::string n = text(name);
        for (auto& s : seen)
            if (s == n) return;
        seen.push_back(n);
        add_entry(n, prefix + n, bounds, cluster);
    }
    void add_entry(const std::string& name, const std::string& expr, const std::string& bounds, const std::string& cluster) {
        std::string quoted;
        for (char c : name) {
            if (c == '"' || c == '\\') quoted += '\\';
            quoted += c;
        }
        std::string e = "emu_entry_of<(&" + expr + "), decltype(&" + expr + ")>::";
        clusters += "{" + cluster + "}, ";
        table.push_back("{ \"" + quoted + "\", " + e + "run, " + e + "n, " + e + "sizes, (unsigned)(" + bounds + ") }");
    }

    std::string run(const std::vector<std::string>& expressions) {
        std::vector<Scope> scopes;
        size_t statement = 0, copied = 0;
        for (size_t i = 0; i < t.size(); i++) {
            if (t[i].kind == Directive) {
                // Loops that CUDA unrolls index arrays that it keeps in registers; here it is worth it for short ones.
                std::string d = text(i);
                if (d.compare(0, 14, "#pragma unroll") == 0) {
                    out += in.substr(copied, t[i].begin - copied);
                    copied = t[i].end;
                }
                if (statement == i) statement = i + 1;
                continue;
            }
            if (is(i, "{")) {
                Scope s{false, scopes.empty() ? "" : scopes.back().prefix};
                bool outer = scopes.empty() || !scopes.back().function;
                bool is_namespace = false, is_type = false, is_linkage = false;
                for (size_t k = statement; outer && k < i; k++) {
                    if (is(k, "namespace")) {
                        is_namespace = true;
                        for (size_t w = k + 1; w < i; w++)
                            if (t[w].kind == Word) s.prefix += text(w) + "::";
                    }
                    if (is(k, "extern") && k + 1 < i && t[k + 1].kind == Text && k + 2 == i) is_linkage = true;
                    if ((is(k, "struct") || is(k, "class") || is(k, "union") || is(k, "enum")) && !is(i - 1, ")")) is_type = true;
                }
                s.function = !(outer && (is_namespace || is_type || is_linkage || is(i - 1, "=")));
                scopes.push_back(s);
                statement = i + 1;
                continue;
            }
            if (is(i, "}")) {
                if (!scopes.empty()) scopes.pop_back();
                statement = i + 1;
                continue;
            }
            if (is(i, ";")) { statement = i + 1; continue; }
            if (t[i].kind != Word) continue;
            if (is(i, "__emu_shared__")) {
                size_t end = i;
                while (end < t.size() && !is(end, ";")) end = is(end, "(") || is(end, "[") || is(end, "{") ? after_group(end) : end + 1;
                if (end >= t.size()) break;
                // `statement` may begin with a label or a condition; a declaration begins after them.
                size_t b = i;
                while (b > statement && (t[b - 1].kind == Word || is(b - 1, ")") || is(b - 1, "(") || t[b - 1].kind == Number || t[b - 1].kind == Directive)) b--;
                out += in.substr(copied, t[b].begin - copied);
                bool function = !scopes.empty() && scopes.back().function;
                std::string made = shared(b, end, function);
                if (!error.empty()) return "";
                out += made;
                // Line numbers below stay right if the declaration took several lines.
                for (size_t k = t[b].begin; k < t[end].begin; k++)
                    if (in[k] == '\n') out += '\n';
                copied = t[end].end;
                i = end;
                statement = end + 1;
                continue;
            }
            if (is(i, "__emu_global__")) {
                kernel(i, statement, scopes.empty() ? "" : scopes.back().prefix);
                // Static, so that its only copy is the one within its trampoline: half the code to compile.
                size_t from = i;
                if (is(statement, "extern") && statement + 2 <= i && t[statement + 1].kind == Text) {
                    out += in.substr(copied, t[statement].begin - copied);
                    copied = t[statement + 1].end;
                }
                bool linked = false;
                for (size_t k = statement; k < from; k++) linked |= is(k, "static");
                out += in.substr(copied, t[i].begin - copied) + (linked ? "" : "static");
                copied = t[i].end;
                continue;
            }
            if ((is(i, "__emu_bounds__") || is(i, "__emu_cluster__")) && is(i + 1, "(")) {
                out += in.substr(copied, t[i].begin - copied);
                size_t end = after_group(i + 1);
                copied = t[end - 1].end;
                i = end - 1;
                continue;
            }
            if (!outside.empty() && i > 0 && !is(i - 1, ".") && !is(i - 1, "->"))
                for (auto& v : outside)
                    if (is(i, v.c_str())) {
                        out += in.substr(copied, t[i].begin - copied) + "emu_outside_" + v + "()";
                        copied = t[i].end;
                        break;
                    }
        }
        out += in.substr(copied);
        for (auto& e : expressions) {
            size_t b = e.find_first_not_of(" &\t");
            std::string s = b == std::string::npos ? e : e.substr(b);
            bool known = false;
            for (auto& n : seen) known |= n == s;
            if (!known) add_entry(e, s, "0", "");
        }
        out += "\n# 1 \"the table of kernels\"\nextern \"C\" {\n"
               "extern __attribute__((visibility(\"default\"))) const emu_kernel emu_kernels[];\n"
               "extern __attribute__((visibility(\"default\"))) const unsigned emu_kernel_count;\n"
               "extern __attribute__((visibility(\"default\"))) const unsigned emu_kernel_clusters[][3];\n"
               "const emu_kernel emu_kernels[] = {\n";
        for (auto& e : table) out += e + ",\n";
        out += "{0, 0, 0, 0, 0}};\nconst unsigned emu_kernel_count = " + std::to_string(table.size()) + ";\nconst unsigned emu_kernel_clusters[][3] = {" + clusters + "{}};\n}\n";
        return out;
    }
};
}

std::string translate(const std::string& preprocessed, const std::vector<std::string>& expressions, std::string* error) {
    Translator tr(preprocessed);
    std::string r = tr.run(expressions);
    *error = tr.error;
    return r;
}
