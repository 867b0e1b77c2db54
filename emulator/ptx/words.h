// Strings of PTX: types, lists, names.
#pragma once
#include <initializer_list>
#include <string>
#include <vector>

typedef std::string Str;
typedef std::vector<Str> Words;

// What the translator does not know, or what is wrong with the text.
struct Refused { Str why; };
[[noreturn]] void refuse(const Str& why);

// PTX's types, by their words without the dot: b32, f16x2, pred.
bool is_type(const Str& s);
unsigned size_of(const Str& type);
Str c_type(const Str& type);            // of a register's value: u32, f32, bool
bool is_space(const Str& s);
bool is_float(const Str& type);         // f32, f64

bool in(const Str& s, std::initializer_list<const char*> list);
bool starts(const Str& s, const char* prefix);
bool word_char(char c);                 // of a name
Str num(long long n);
Str trim(const Str& s);
Str inside(const Str& s);               // without its first and last character
Words split(const Str& s, char at);     // not within brackets
Str join(const Words& w, const char* by = ", ");
// C++ names: of a register or label, and of a variable or function.
Str local_name(const Str& ptx);
Str global_name(const Str& ptx);
