#include "syntax.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <map>

Declaration parse_declaration(Str s) {
    Declaration d;
    size_t equals = s.find('=');
    if (equals != Str::npos) d.init = trim(s.substr(equals + 1)), s = s.substr(0, equals);
    size_t i = 0;
    auto blanks = [&] { while (i < s.size() && isspace((unsigned char)s[i])) i++; };
    for (blanks(); i < s.size() && s[i] == '.'; blanks()) {
        size_t begin = ++i;
        while (i < s.size() && (word_char(s[i]) || s[i] == ':')) i++;
        Str word = s.substr(begin, i - begin);
        if (word == "align") {
            char* end;
            d.align = (unsigned)strtoul(s.c_str() + i, &end, 10);
            i = (size_t)(end - s.c_str());
        } else if (is_type(word)) {
            d.type = word;
        } else if (is_space(word)) {
            d.space = word;
        } else if (word == "extern") {
            d.external = true;
        } else if (!in(word, {"visible", "weak", "common", "ptr"})) {
            refuse("unknown word ." + word + " in the declaration " + s);
        }
    }
    size_t begin = i;
    while (i < s.size() && word_char(s[i])) i++;
    d.name = s.substr(begin, i - begin);
    unsigned count = 1;
    for (blanks(); i < s.size() && s[i] == '['; blanks()) {
        count *= (unsigned)strtoul(s.c_str() + i + 1, nullptr, 10);
        i = s.find(']', i) + 1;
    }
    if (d.name.empty() || d.type.empty() || i < s.size()) refuse("declaration " + s);
    d.size = count * size_of(d.type);
    if (!d.align) d.align = size_of(d.type);
    return d;
}

namespace {
class Parser {
public:
    ModuleText module;

    explicit Parser(const Str& ptx) {
        for (size_t i = 0; i < ptx.size(); i++) {
            if (ptx.compare(i, 2, "//") == 0) i = std::min(ptx.find('\n', i), ptx.size());
            if (i < ptx.size()) t += ptx[i];
        }
        char* here = getcwd(nullptr, 0);
        Str folder = Str(here ? here : "") + "/";
        free(here);
        // Names of files, and the debugger's sections, follow the code.
        size_t end = std::min(t.find("\n\t.section"), t.size());
        for (size_t p = 0; (p = t.find("\n\t.file", p)) != Str::npos; p++) {
            int number = atoi(t.c_str() + p + 7);
            size_t from = t.find('"', p), to = t.find('"', from + 1);
            // NVRTC puts the working folder before names that are relative.
            Str name = t.substr(from + 1, to - from - 1);
            files[number] = starts(name, folder.c_str()) ? name.substr(folder.size()) : name;
            end = std::min(end, p);
        }
        t.resize(end);
    }
    void run() {
        for (blanks(); i < t.size(); blanks()) {
            if (next(".version") || next(".target") || next(".address_size") || next(".pragma")) {
                i = std::min(t.find('\n', i), t.size());
                continue;
            }
            size_t begin = i;
            Str word;
            while (i < t.size() && t[i] == '.' && word != ".entry" && word != ".func") {
                size_t b = i++;
                while (i < t.size() && word_char(t[i])) i++;
                word = t.substr(b, i - b);
                blanks();
            }
            if (word == ".entry" || word == ".func") {
                function(word == ".entry");
                continue;
            }
            size_t end = t.find(';', begin);
            if (end == Str::npos) refuse("the text ends within a declaration");
            if (end > begin) module.variables.push_back(parse_declaration(trim(t.substr(begin, end - begin))));
            i = end + 1;
        }
    }

private:
    Str t;
    size_t i = 0;
    std::map<int, Str> files;

    void blanks() { while (i < t.size() && isspace((unsigned char)t[i])) i++; }
    bool next(const char* word) const { return t.compare(i, Str(word).size(), word) == 0; }

    std::vector<Declaration> declarations() {
        std::vector<Declaration> r;
        if (i >= t.size() || t[i] != '(') return r;
        size_t end = t.find(')', i);
        if (end == Str::npos) refuse("a list of parameters does not end");
        for (auto& d : split(t.substr(i + 1, end - i - 1), ',')) r.push_back(parse_declaration(d));
        i = end + 1;
        blanks();
        return r;
    }
    void function(bool kernel) {
        FunctionText f;
        f.kernel = kernel;
        f.results = declarations();
        size_t begin = i;
        while (i < t.size() && word_char(t[i])) i++;
        f.name = t.substr(begin, i - begin);
        blanks();
        f.parameters = declarations();
        size_t end = t.find_first_of("{;", i);
        if (end == Str::npos) refuse("function " + f.name + " has no body");
        f.directives = t.substr(i, end - i);
        i = end + 1;
        if (t[end] == '{') {
            f.defined = true;
            body(f);
        }
        module.functions.push_back(std::move(f));
    }
    void body(FunctionText& f) {
        Place place;
        int depth = 1;
        auto add = [&](Statement::Kind kind, const Str& text) -> Statement& {
            f.body.push_back({kind, place, text, "", "", {}, {}});
            return f.body.back();
        };
        for (blanks(); i < t.size(); blanks()) {
            if (next(".loc")) {
                char* end;
                long file = strtol(t.c_str() + i + 4, &end, 10), line = strtol(end, &end, 10);
                if (line) place.file = files.count((int)file) ? files[(int)file] : "PTX", place.line = (int)line;
                i = std::min(t.find('\n', i), t.size());
                continue;
            }
            if (t[i] == '{' || t[i] == '}') {
                bool open = t[i++] == '{';
                depth += open ? 1 : -1;
                if (!depth) return;
                add(open ? Statement::Open : Statement::Close, "");
                continue;
            }
            size_t end = i;
            while (end < t.size() && word_char(t[end])) end++;
            if (end > i && end + 1 < t.size() && t[end] == ':' && t[end + 1] != ':') {
                add(Statement::Label, t.substr(i, end - i));
                i = end + 1;
                continue;
            }
            int brackets = 0;
            for (end = i; end < t.size() && !(t[end] == ';' && !brackets); end++) {
                if (t[end] == '{' || t[end] == '(') brackets++;
                if (t[end] == '}' || t[end] == ')') brackets--;
            }
            Str text;
            for (; i < end; i++)
                if (!isspace((unsigned char)t[i])) text += t[i];
                else if (!text.empty() && text.back() != ' ') text += ' ';
            i = end + 1;
            text = trim(text);
            if (text.empty() || starts(text, ".pragma")) continue;
            if (text[0] == '.') add(Statement::Declare, text);
            else instruction(add(Statement::Instruction, text));
        }
        refuse("function " + f.name + " does not end");
    }
    static void instruction(Statement& s) {
        Str text = s.text;
        if (text[0] == '@') {
            size_t end = text.find(' ');
            s.guard = text.substr(1, end - 1);
            text = trim(text.substr(end));
        }
        size_t end = 0;
        while (end < text.size() && (word_char(text[end]) || text[end] == '.' || text[end] == ':')) end++;
        s.opcode = text.substr(0, end);
        s.operands = split(text.substr(end), ',');
        s.modifiers = split(s.opcode, '.');
        s.modifiers.erase(s.modifiers.begin());
    }
};
}

ModuleText parse_module(const Str& ptx) {
    Parser p(ptx);
    p.run();
    return std::move(p.module);
}
