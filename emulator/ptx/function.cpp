#include "function.h"

#include <cctype>
#include <cstdlib>

// Where accumulators come back: which ones is known when the whole function has been read.
static const char* const back_mark = "@back@";

static const std::unordered_map<Str, Str> special_registers = {
    {"%tid.x", "emu_self->tid.x"}, {"%tid.y", "emu_self->tid.y"}, {"%tid.z", "emu_self->tid.z"},
    {"%ntid.x", "B->bdim.x"}, {"%ntid.y", "B->bdim.y"}, {"%ntid.z", "B->bdim.z"},
    {"%ctaid.x", "B->bid.x"}, {"%ctaid.y", "B->bid.y"}, {"%ctaid.z", "B->bid.z"},
    {"%nctaid.x", "B->gdim.x"}, {"%nctaid.y", "B->gdim.y"}, {"%nctaid.z", "B->gdim.z"},
    {"%laneid", "lane()"}, {"%warpid", "(emu_self->index >> 5)"}, {"WARP_SZ", "32u"},
    {"%cluster_ctarank", "B->cluster_rank"}, {"%cluster_nctarank", "(B->cluster_dim.x * B->cluster_dim.y * B->cluster_dim.z)"},
    {"%clock", "((u32)emu_clock())"}, {"%clock64", "((u64)emu_clock())"}, {"%globaltimer", "((u64)emu_clock())"},
    {"%lanemask_eq", "(1u << lane())"}, {"%lanemask_lt", "((1u << lane()) - 1)"}, {"%lanemask_le", "((2u << lane()) - 1)"},
    {"%lanemask_gt", "(~0u << lane() << 1)"}, {"%lanemask_ge", "(~0u << lane())"}};

Variable Module::place_shared(const Declaration& d) {
    if (d.external && !d.size) return {"shared", "((u64)(B->dynamic - B->shared))"};
    shared.push_back({d.name, d.size, d.align});
    return {"shared", "((u64)B->shared_at[" + num((long long)shared.size() - 1) + "])"};
}

// ---- statements

Str Function::body() {
    for (auto& statement : text.body) {
        s = &statement;
        line.clear();
        try {
            switch (s->kind) {
            case Statement::Label: line = local_name(s->text) + ":;"; break;
            case Statement::Open: line = "{", scopes.push_back({}); break;
            case Statement::Close: line = "}", scopes.pop_back(); break;
            case Statement::Declare: declare(s->text); break;
            case Statement::Instruction: instruction(); break;
            }
        } catch (Refused& r) {
            refuse(s->place.file + ":" + num(s->place.line) + ": in " + text.name + ", `" + s->text.substr(0, 160) + "`: " + r.why);
        }
        if (line.empty()) continue;
        if (s->kind == Statement::Instruction) out += "#line " + num(s->place.line) + " \"" + s->place.file + "\"\n";
        out += line + "\n";
    }
    for (size_t p; (p = out.find(back_mark)) != Str::npos;) out.replace(p, Str(back_mark).size(), accumulators_back());
    return "emu_block* const B = emu_self->block; char* const SH = B->shared; bool CC = false; (void)CC; (void)SH;\n" + accumulators_declared() + out;
}

void Function::declare(const Str& t) {
    if (starts(t, ".reg")) return declare_registers(t);
    Declaration d = parse_declaration(t);
    Str align = num(d.align > 16 ? d.align : 16), bytes = num(d.size ? d.size : 1);
    if (d.space == "shared") {
        variables[d.name] = module.place_shared(d);
    } else if (d.space == "local") {
        emit("alignas(" + align + ") char l_" + local_name(d.name) + "[" + bytes + "];");
        variables[d.name] = {"local", "((u64)l_" + local_name(d.name) + ")"};
    } else if (d.space == "param") {
        emit("alignas(" + align + ") char p_" + local_name(d.name) + "[" + bytes + "];");
        scopes.back()[d.name] = {"param", "((u64)p_" + local_name(d.name) + ")"};
    } else {
        refuse("a variable of ." + d.space + " within a function");
    }
}
// .reg .b32 %r<12>;   .reg .pred p, q;
void Function::declare_registers(const Str& t) {
    size_t dot = t.find('.', 1), blank = t.find(' ', dot);
    Str type = t.substr(dot + 1, blank - dot - 1), kind = type;
    if (!in(type, {"pred", "f32", "f64"})) kind = size_of(type) <= 2 ? "b16" : size_of(type) == 4 ? "b32" : "b64";
    Words names;
    for (auto& x : split(t.substr(blank), ',')) {
        size_t bracket = x.find('<');
        int n = bracket == Str::npos ? 0 : atoi(x.c_str() + bracket + 1);
        if (bracket == Str::npos) names.push_back(x);
        for (int k = 0; k < n; k++) names.push_back(x.substr(0, bracket) + num(k));
    }
    Words locals;
    for (auto& x : names) {
        locals.push_back(local_name(x));
        scopes.back()[x] = {kind, ""};
    }
    if (!names.empty()) emit(c_type(kind) + " " + join(locals) + ";");
}

const std::unordered_map<Str, Function::Handler>& Function::handlers() {
    typedef Function F;
    static const std::unordered_map<Str, Handler> h = {
        {"ld", &F::ld}, {"st", &F::st}, {"mov", &F::mov}, {"cvta", &F::cvta}, {"atom", &F::atom}, {"red", &F::red}, {"prefetch", &F::prefetch}, {"call", &F::call},
        {"add", &F::add}, {"sub", &F::sub}, {"mul", &F::mul}, {"mad", &F::mad}, {"fma", &F::fma}, {"addc", &F::addc}, {"subc", &F::subc}, {"madc", &F::madc},
        {"div", &F::div}, {"rem", &F::rem}, {"min", &F::min}, {"max", &F::max}, {"abs", &F::abs}, {"neg", &F::neg}, {"copysign", &F::copysign},
        {"sqrt", &F::sqrt}, {"rcp", &F::rcp}, {"rsqrt", &F::rsqrt}, {"ex2", &F::ex2}, {"lg2", &F::lg2}, {"sin", &F::sin}, {"cos", &F::cos}, {"tanh", &F::tanh},
        {"testp", &F::testp}, {"and", &F::and_}, {"or", &F::or_}, {"xor", &F::xor_}, {"not", &F::not_}, {"shl", &F::shl}, {"shr", &F::shr}, {"shf", &F::shf},
        {"lop3", &F::lop3}, {"prmt", &F::prmt}, {"bfe", &F::bfe}, {"bfi", &F::bfi}, {"clz", &F::clz}, {"popc", &F::popc}, {"brev", &F::brev}, {"bfind", &F::bfind},
        {"setp", &F::setp}, {"set", &F::set}, {"selp", &F::selp}, {"slct", &F::slct}, {"cvt", &F::cvt},
        {"bra", &F::bra}, {"ret", &F::ret}, {"exit", &F::ret}, {"trap", &F::trap}, {"bar", &F::bar}, {"barrier", &F::bar}, {"shfl", &F::shfl}, {"vote", &F::vote},
        {"match", &F::match}, {"activemask", &F::activemask}, {"redux", &F::redux}, {"elect", &F::elect}, {"nanosleep", &F::nanosleep}, {"membar", &F::membar},
        {"fence", &F::fence}, {"ldmatrix", &F::ldmatrix}, {"stmatrix", &F::stmatrix}, {"mma", &F::mma}, {"wgmma", &F::wgmma}, {"mbarrier", &F::mbarrier},
        {"mapa", &F::mapa}, {"cp", &F::cp}, {"setmaxnreg", &F::setmaxnreg}, {"griddepcontrol", &F::griddepcontrol}};
    return h;
}
void Function::instruction() {
    auto h = handlers().find(s->opcode.substr(0, s->opcode.find('.')));
    if (h == handlers().end()) refuse("unknown instruction " + s->opcode);
    modifier_taken.assign(s->modifiers.size(), false);
    operand_taken.assign(s->operands.size(), false);
    (this->*h->second)();
    for (size_t i = 0; i < modifier_taken.size(); i++)
        if (!modifier_taken[i]) refuse("unknown modifier ." + s->modifiers[i]);
    for (size_t i = 0; i < operand_taken.size(); i++)
        if (!operand_taken[i]) refuse("unknown operand " + s->operands[i]);
    if (s->guard.empty()) return;
    bool negated = s->guard[0] == '!';
    line = Str("if (") + (negated ? "!" : "") + value(s->guard.substr(negated), "pred") + ") { " + line + "}";
}

// ---- what an instruction takes

bool Function::take(const char* modifier) {
    for (size_t i = 0; i < s->modifiers.size(); i++)
        if (!modifier_taken[i] && s->modifiers[i] == modifier) return modifier_taken[i] = true;
    return false;
}
Str Function::take_one_of(std::initializer_list<const char*> list) {
    for (auto x : list)
        if (take(x)) return x;
    return "";
}
Str Function::need_one_of(std::initializer_list<const char*> list) {
    Str r = take_one_of(list);
    if (r.empty()) refuse("none of the known forms of " + s->opcode);
    return r;
}
Words Function::take_types() {
    Words r;
    for (size_t i = 0; i < s->modifiers.size(); i++)
        if (!modifier_taken[i] && is_type(s->modifiers[i])) modifier_taken[i] = true, r.push_back(s->modifiers[i]);
    return r;
}
Str Function::take_type() {
    Words t = take_types();
    if (t.size() != 1) refuse("has no single type");
    if (in(t[0], {"f16", "bf16", "tf32"})) refuse("computes in " + t[0]);
    return t[0];
}
Str Function::take_space() {
    for (size_t i = 0; i < s->modifiers.size(); i++)
        if (!modifier_taken[i] && is_space(s->modifiers[i])) {
            modifier_taken[i] = true;
            return s->modifiers[i];
        }
    return "";
}
bool Function::take_all(std::initializer_list<const char*> list) {
    if (s->modifiers.size() != list.size()) return false;
    size_t i = 0;
    for (auto x : list)
        if (s->modifiers[i++] != x) return false;
    modifier_taken.assign(list.size(), true);
    return true;
}
const Str& Function::operand(size_t i) {
    if (i >= s->operands.size()) refuse("too few operands");
    operand_taken[i] = true;
    return s->operands[i];
}
Words Function::vector_operand(size_t i) {
    const Str& o = operand(i);
    return o[0] == '{' ? split(inside(o), ',') : Words{o};
}
std::pair<Str, Str> Function::pair_operand(size_t i) {
    const Str& o = operand(i);
    size_t bar = o.find('|');
    return bar == Str::npos ? std::make_pair(o, Str()) : std::make_pair(trim(o.substr(0, bar)), trim(o.substr(bar + 1)));
}
int Function::constant(size_t i) {
    const Str& o = operand(i);
    char* end;
    long v = strtol(o.c_str(), &end, 0);
    if (o.empty() || *end) refuse("operand " + o + " must be a constant");
    return (int)v;
}

// ---- operands as C++

const Function::Register* Function::find_register(const Str& name) const {
    for (size_t i = scopes.size(); i--;) {
        auto r = scopes[i].find(name);
        if (r != scopes[i].end()) return &r->second;
    }
    return nullptr;
}
const Variable* Function::find_variable(const Str& name) {
    for (auto* all : {&variables, &module.variables}) {
        auto v = all->find(name);
        if (v == all->end()) continue;
        if (v->second.space == "shared") shared_used.insert(name);
        return &v->second;
    }
    return nullptr;
}
static unsigned register_size(const Str& kind) { return kind == "b16" ? 2 : kind == "b32" || kind == "f32" ? 4 : 8; }

Str Function::immediate(const Str& t, const Str& type) const {
    // 0f3F800000 and 0d3FF0000000000000 are bits of a float and of a double.
    bool f32 = t.size() == 10 && t[0] == '0' && tolower(t[1]) == 'f', f64 = t.size() == 18 && t[0] == '0' && tolower(t[1]) == 'd';
    if (f32 || f64) {
        Str bits = "0x" + t.substr(2) + (f32 ? "u" : "ull");
        if (type == (f32 ? "f32" : "f64")) return (f32 ? "f32_of(" : "f64_of(") + bits + ")";
        if (is_float(type)) refuse("operand " + t + " for " + type);
        return "((" + c_type(type) + ")" + bits + ")";
    }
    char* end;
    unsigned long long v = t[0] == '-' ? (unsigned long long)strtoll(t.c_str(), &end, 0) : strtoull(t.c_str(), &end, 0);
    if (*end && Str(end) != "U") refuse("operand " + t);
    if (type == "pred") return v ? "true" : "false";
    if (is_float(type)) refuse("operand " + t + " for " + type);
    return "((" + c_type(type) + ")" + std::to_string(v) + "ull)";
}
Str Function::value(const Str& t, const Str& type) {
    if (t.empty()) refuse("an operand is missing");
    if (t[0] == '!') return "(!" + value(t.substr(1), type) + ")";
    if (const Register* r = find_register(t)) {
        if (!r->address.empty()) return r->address;
        Str name = local_name(t);
        if ((type == "pred") != (r->kind == "pred")) refuse("register " + t + " for " + type);
        if (type == "pred") return name;
        if (size_of(type) > register_size(r->kind) || (is_float(type) && size_of(type) != register_size(r->kind))) refuse("register " + t + " is not of the size of " + type);
        if (type == r->kind) return name;
        if (type == "f32") return "f32_of(" + name + ")";
        if (type == "f64") return "f64_of(" + name + ")";
        return "((" + c_type(type) + ")" + (is_float(r->kind) ? "bits_of(" + name + ")" : name) + ")";
    }
    auto special = special_registers.find(t);
    if (special != special_registers.end()) return "((" + c_type(type) + ")" + special->second + ")";
    if (isdigit((unsigned char)t[0]) || (t[0] == '-' && t.size() > 1)) return immediate(t, type);
    size_t plus = t.find('+');
    if (const Variable* v = find_variable(trim(t.substr(0, plus))))
        return "((" + c_type(type) + ")(" + v->address + (plus == Str::npos ? "" : " + " + num(strtoll(t.c_str() + plus + 1, nullptr, 0))) + "))";
    refuse("unknown operand " + t);
}
Words Function::values(const Words& texts, const Str& type) {
    Words r;
    for (auto& t : texts) r.push_back(value(t, type));
    return r;
}
Str Function::read_flushed(size_t i, const Str& type, bool flush) {
    Str v = read(i, type);
    return flush && type == "f32" ? "flushed(" + v + ")" : v;
}
// `cpp` has the C++ type of `type`.
void Function::assign(const Str& to, const Str& type, Str cpp) {
    if (to == "_") return emit("(void)(" + cpp + ");");
    const Register* r = find_register(to);
    if (!r || !r->address.empty()) refuse("no register " + to);
    if ((type == "pred") != (r->kind == "pred")) refuse("register " + to + " for " + type);
    if (type != "pred" && size_of(type) > register_size(r->kind)) refuse("register " + to + " is too small for " + type);
    if (type != r->kind && type != "pred") {
        if (is_float(type)) cpp = "bits_of(" + cpp + ")";
        else cpp = "(" + c_type(type) + ")(" + cpp + ")";
        cpp = r->kind == "f32" ? "f32_of((u32)(" + cpp + "))" : r->kind == "f64" ? "f64_of((u64)(" + cpp + "))" : "(" + c_type(r->kind) + ")(" + cpp + ")";
    }
    emit(local_name(to) + " = " + cpp + ";");
}
// [register + offset], [variable + offset] or [number]: a char*; of another block's shared memory, a u32.
Str Function::address(size_t i, const Str& space) {
    Str o = operand(i);
    if (o.size() < 3 || o[0] != '[') refuse("operand " + o + " is no address");
    o = inside(o);
    size_t plus = o.find('+');
    Str base = trim(o.substr(0, plus)), offset = plus == Str::npos ? "0" : num(strtoll(o.c_str() + plus + 1, nullptr, 0));
    bool shared = starts(space, "shared");
    if (const Register* r = find_register(base)) {
        if (!r->address.empty()) return "(char*)(" + r->address + " + " + offset + ")";
        Str at = local_name(base) + " + " + offset;
        if (space == "shared::cluster") return "(u32)(" + at + ")";
        if (shared) return "(SH + (u32)(" + at + "))";
        if (r->kind != "b64") refuse("a 32-bit address in ." + space);
        return "(char*)(" + at + "ll)";
    }
    if (const Variable* v = find_variable(base)) {
        if (shared != (v->space == "shared")) refuse("the variable " + base + " lies in ." + v->space);
        return shared ? "(SH + (u32)(" + v->address + " + " + offset + "))" : "(char*)(" + v->address + " + " + offset + "ll)";
    }
    refuse("unknown address [" + o + "]");
}
