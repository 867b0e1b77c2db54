// PTX text as functions, variables and statements, each with its place in the kernel's source.
#pragma once
#include <vector>

#include "words.h"

struct Place {
    Str file = "PTX";
    int line = 0;
};
// .space .align n .type name[count] = init
struct Declaration {
    Str space, type, name, init;
    unsigned align = 0, size = 0;
    bool external = false;
};
struct Statement {
    enum Kind { Label, Open, Close, Declare, Instruction } kind;
    Place place;
    Str text;                   // as written; of a label, its name
    Str guard;                  // of an instruction: %p1 or !%p1
    Str opcode;                 // add.rn.f32
    Words modifiers, operands;  // rn, f32
};
struct FunctionText {
    Str name, directives;
    bool kernel = false, defined = false;
    std::vector<Declaration> results, parameters;
    std::vector<Statement> body;
};
struct ModuleText {
    std::vector<Declaration> variables;
    std::vector<FunctionText> functions;
};

Declaration parse_declaration(Str text);
ModuleText parse_module(const Str& ptx);
