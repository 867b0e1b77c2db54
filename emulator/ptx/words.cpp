#include "words.h"

#include <cctype>
#include <unordered_map>

void refuse(const Str& why) { throw Refused{why}; }

struct Type { const char* c; unsigned size; };
static const std::unordered_map<Str, Type> types = {
    {"b8", {"u8", 1}},    {"u8", {"u8", 1}},    {"s8", {"s8", 1}},    {"b16", {"u16", 2}},   {"u16", {"u16", 2}},    {"s16", {"s16", 2}},  {"f16", {"u16", 2}},
    {"bf16", {"u16", 2}}, {"b32", {"u32", 4}},  {"u32", {"u32", 4}},  {"s32", {"s32", 4}},   {"f32", {"f32", 4}},    {"tf32", {"u32", 4}}, {"f16x2", {"u32", 4}},
    {"bf16x2", {"u32", 4}}, {"b64", {"u64", 8}}, {"u64", {"u64", 8}}, {"s64", {"s64", 8}},   {"f64", {"f64", 8}},    {"pred", {"bool", 1}}};

static const Type& type(const Str& s) {
    auto i = types.find(s);
    if (i == types.end()) refuse("unknown type " + s);
    return i->second;
}
bool is_type(const Str& s) { return types.count(s) != 0; }
unsigned size_of(const Str& t) { return type(t).size; }
Str c_type(const Str& t) { return type(t).c; }
bool is_space(const Str& s) { return in(s, {"global", "shared", "shared::cta", "shared::cluster", "local", "param", "const", "param::entry", "param::func"}); }
bool is_float(const Str& t) { return t == "f32" || t == "f64"; }

bool in(const Str& s, std::initializer_list<const char*> list) {
    for (auto x : list)
        if (s == x) return true;
    return false;
}
bool starts(const Str& s, const char* prefix) { return s.rfind(prefix, 0) == 0; }
bool word_char(char c) { return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '%'; }
Str num(long long n) { return std::to_string(n); }
Str trim(const Str& s) {
    size_t b = s.find_first_not_of(" \t\r\n"), e = s.find_last_not_of(" \t\r\n");
    return b == Str::npos ? "" : s.substr(b, e - b + 1);
}
Str inside(const Str& s) {
    if (s.size() < 2) refuse("operand " + s);
    return trim(s.substr(1, s.size() - 2));
}
Words split(const Str& s, char at) {
    Words r;
    int depth = 0;
    Str part;
    for (char c : s) {
        if (c == '{' || c == '[' || c == '(') depth++;
        if (c == '}' || c == ']' || c == ')') depth--;
        if (c == at && depth == 0) r.push_back(trim(part)), part.clear();
        else part += c;
    }
    if (!trim(part).empty()) r.push_back(trim(part));
    return r;
}
Str join(const Words& w, const char* by) {
    Str r;
    for (size_t i = 0; i < w.size(); i++) r += (i ? by : "") + w[i];
    return r;
}
Str local_name(const Str& n) {
    Str r = "v_";
    for (char c : n)
        if (c == '$') r += "S";
        else if (c == '.') r += '_';
        else if (c != '%') r += c;
    return r;
}
Str global_name(const Str& n) {
    Str r;
    for (char c : n) r += c == '$' ? 'S' : c;
    return r;
}
