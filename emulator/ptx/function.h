// One PTX function as C++: registers are locals, labels stay labels, each instruction is one line of C++ after a #line of its
// place in the kernel. What the C++ calls stands in include/emu_run_ptx.h.
//
// An instruction takes its modifiers and its operands; what is left over is an error, so nothing unknown is skipped.
#pragma once
#include <map>
#include <unordered_map>
#include <unordered_set>

#include "syntax.h"

struct Variable {
    Str space, address;         // C++: a 64-bit address, of shared memory an offset
};
struct SharedVariable { Str name; unsigned size, align; };

// What the functions of a module share.
struct Module {
    std::unordered_map<Str, Variable> variables;
    std::unordered_set<Str> functions;
    std::vector<SharedVariable> shared;             // in the order of their numbers
    Variable place_shared(const Declaration& d);
};

class Function {
public:
    Function(Module& module, const FunctionText& text) : module(module), text(text) {}
    void add_parameter(const Str& name, const Str& address) { variables[name] = {"param", address}; }
    Str body();                                     // C++ between the braces
    std::unordered_set<Str> shared_used;

private:
    struct Register {
        Str kind;               // pred, b16, b32, b64, f32, f64
        Str address;            // of a .param variable within a call
    };
    Module& module;
    const FunctionText& text;
    std::unordered_map<Str, Variable> variables;
    std::vector<std::unordered_map<Str, Register>> scopes{{}};
    Str out;

    // The statement at hand, and its C++ so far.
    const Statement* s = nullptr;
    std::vector<bool> modifier_taken, operand_taken;
    Str line;

    void declare(const Str& text);
    void declare_registers(const Str& text);
    void instruction();
    typedef void (Function::*Handler)();
    static const std::unordered_map<Str, Handler>& handlers();

    // ---- what an instruction takes
    bool take(const char* modifier);
    Str take_one_of(std::initializer_list<const char*> list);       // "" if there is none of them
    Str need_one_of(std::initializer_list<const char*> list);
    Words take_types();
    Str take_type();                                // the only one
    Str take_space();
    bool take_all(std::initializer_list<const char*> list);         // all its modifiers, in this order
    size_t operand_count() const { return s->operands.size(); }
    const Str& operand(size_t i);
    void operands(size_t n) { if (operand_count() != n) refuse("has " + num((long long)operand_count()) + " operands instead of " + num((long long)n)); }
    Words vector_operand(size_t i);                 // {a, b} or a alone
    std::pair<Str, Str> pair_operand(size_t i);     // a|b, or a and ""
    int constant(size_t i);

    // ---- operands as C++
    const Register* find_register(const Str& name) const;
    const Variable* find_variable(const Str& name);
    Str immediate(const Str& text, const Str& type) const;
    Str value(const Str& text, const Str& type);
    Str read(size_t i, const Str& type) { return value(operand(i), type); }
    Str read_flushed(size_t i, const Str& type, bool flush);
    Words values(const Words& texts, const Str& type);
    Str address(size_t i, const Str& space);
    void emit(const Str& cpp) { line += cpp + " "; }
    void assign(const Str& destination, const Str& type, Str cpp);
    void write(size_t i, const Str& type, const Str& cpp) { assign(operand(i), type, cpp); }

    // ---- memory.cpp
    void ld(); void st(); void mov(); void cvta(); void atom(); void red(); void atomic(bool returns); void prefetch(); void call();
    // ---- arithmetic.cpp
    void add(); void sub(); void mul(); void mad(); void fma(); void addc(); void subc(); void madc(); void div(); void rem(); void min(); void max(); void abs(); void neg();
    void copysign(); void sqrt(); void rcp(); void rsqrt(); void ex2(); void lg2(); void sin(); void cos(); void tanh(); void testp();
    void and_(); void or_(); void xor_(); void not_(); void shl(); void shr(); void shf(); void lop3(); void prmt(); void bfe(); void bfi(); void clz(); void popc();
    void brev(); void bfind(); void setp(); void set(); void selp(); void slct(); void cvt();
    struct Floating { Str rounding; bool flush, saturate; };
    Floating take_floating();
    void float_result(const Str& type, const Floating& how, const Str& cpp);
    void sum(bool minus);
    void with_carry(const Str& type, const Str& a, const Str& b, bool minus, bool carry_in);
    Str low_product(const Str& type);
    void extreme(const char* which);
    void float_call(const char* f32, const char* f64);
    void logic(const char* sign);
    Str compare(const Str& how, const Str& type, const Str& a, const Str& b);
    // ---- threads.cpp
    void bra(); void ret(); void trap(); void bar(); void shfl(); void vote(); void match(); void activemask(); void redux(); void elect(); void nanosleep(); void membar();
    void fence(); void ldmatrix(); void stmatrix(); void matrices(bool store); void mma();
    // ---- hopper.cpp
    void wgmma(); void wgmma_product(); void mbarrier(); void mapa(); void cp(); bool cp_bulk(); void setmaxnreg(); void griddepcontrol();
    void tensor(int kind, size_t map, int rank, size_t shared, const Str& barrier, int im2col, int offsets, int mask);
    std::vector<Words> accumulators;                // each set of registers that some wgmma adds to
    Str accumulators_declared() const;
    Str accumulators_back() const;
};
