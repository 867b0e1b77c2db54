// Memory, and calls of functions. Generic, global, local and parameter addresses are the host's; shared ones are offsets in the
// block's shared memory.
#include "function.h"

#include <cctype>

// Hints that change nothing here: how long the caches keep it, and that nobody writes it.
static const std::initializer_list<const char*> hints = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_normal", "L1::evict_first", "L1::evict_last", "L1::no_allocate",
                                                         "L2::64B", "L2::128B", "L2::256B"};
static const std::initializer_list<const char*> scopes_of_memory = {"cta", "cluster", "gpu", "sys"};

void Function::ld() {
    bool atomic = take_one_of({"volatile", "relaxed", "acquire"}) != "";
    take_one_of(scopes_of_memory);
    while (take_one_of(hints) != "") {}
    Str space = take_space(), lanes = take_one_of({"v2", "v4", "v8"}), type = take_types().back();
    operands(2);
    Words to = vector_operand(0);
    if ((lanes.empty() ? 1 : lanes[1] - '0') != (int)to.size()) refuse("the destination has not as many registers");
    unsigned bytes = size_of(type), n = (unsigned)to.size();
    bool parameter = starts(space, "param");
    emit("{ const char* a = " + address(1, space) + ";");
    if (!parameter) emit("aligned(a, " + num(bytes * n) + ", SITE);");
    for (unsigned k = 0; k < n; k++)
        emit(c_type(type) + " x" + num(k) + " = " + (parameter ? "load_parameter<" : atomic ? "load_atomic<" : "load<") + c_type(type) + ">(a + " + num(k * bytes) + ");");
    for (unsigned k = 0; k < n; k++) assign(to[k], type, "x" + num(k));
    emit("}");
}
void Function::st() {
    bool atomic = take_one_of({"volatile", "relaxed", "release"}) != "";
    take_one_of(scopes_of_memory);
    while (take_one_of(hints) != "") {}
    Str space = take_space(), lanes = take_one_of({"v2", "v4", "v8"}), type = take_types().back();
    operands(2);
    Words from = vector_operand(1);
    if ((lanes.empty() ? 1 : lanes[1] - '0') != (int)from.size()) refuse("the source has not as many registers");
    unsigned bytes = size_of(type), n = (unsigned)from.size();
    emit("{ char* a = " + address(0, space) + ";");
    if (!starts(space, "param")) emit("aligned(a, " + num(bytes * n) + ", SITE);");
    for (unsigned k = 0; k < n; k++) emit((atomic ? "store_atomic<" : "store<") + c_type(type) + ">(a + " + num(k * bytes) + ", " + value(from[k], type) + ");");
    emit("}");
}
void Function::mov() {
    Str type = take_type();
    operands(2);
    Words to = vector_operand(0), from = vector_operand(1);
    auto part = [&](size_t n) {
        unsigned bytes = size_of(type) / (unsigned)n;
        return Str(bytes == 1 ? "b8" : bytes == 2 ? "b16" : bytes == 4 ? "b32" : "b64");
    };
    if (to.size() > 1) {
        Str p = part(to.size());
        emit("{ " + c_type(type) + " x = " + value(from[0], type) + ";");
        for (size_t k = 0; k < to.size(); k++) assign(to[k], p, "(" + c_type(p) + ")(x >> " + num(8 * size_of(p) * (long long)k) + ")");
        return emit("}");
    }
    if (from.size() > 1) {
        Str p = part(from.size());
        Words parts;
        for (size_t k = 0; k < from.size(); k++) parts.push_back("((" + c_type(type) + ")" + value(from[k], p) + " << " + num(8 * size_of(p) * (long long)k) + ")");
        return assign(to[0], type, join(parts, " | "));
    }
    assign(to[0], type, value(from[0], type));
}
void Function::cvta() {
    bool to_space = take("to");
    Str space = take_space();
    if (!in(take_type(), {"u64", "b64"})) refuse("not of 64 bits");
    operands(2);
    Str x = read(1, "u64");
    if (starts(space, "shared")) x = to_space ? "(" + x + " - (u64)SH)" : "((u64)SH + (u32)" + x + ")";
    write(0, "u64", x);
}
void Function::prefetch() {
    // prefetch.tensormap and prefetch.global.L2: nothing to see, but that the address is one.
    if (!take("tensormap")) need_one_of({"L1", "L2"});
    emit("(void)" + address(0, take_space()) + ";");
}

void Function::atomic(bool returns) {
    Str kind = need_one_of({"add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"});
    take_one_of({"relaxed", "acquire", "release", "acq_rel"});
    take_one_of(scopes_of_memory);
    bool noftz = take("noftz");
    Str space = take_space(), lanes = take_one_of({"v2", "v4", "v8"}), type = take_types().back();
    size_t to = returns ? 1 : 0;
    operands(to + (kind == "cas" ? 3 : 2));
    emit("{ char* a = " + address(to, space) + ";");
    if (!lanes.empty() || type == "f16x2" || type == "bf16x2") {
        Words v = vector_operand(to + 1);
        if (returns || kind != "add" || !in(type, {"f16x2", "bf16x2", "f32"}) || (type != "f32" && !noftz)) refuse("a form that is not known");
        emit("aligned(a, " + num(size_of(type) * (long long)v.size()) + ", SITE);");
        for (size_t k = 0; k < v.size(); k++) {
            Str f = type == "f32" ? "add_f32" : type == "f16x2" ? "add_f16x2" : "add_bf16x2";
            emit(f + "(a + " + num(4 * (long long)k) + ", " + value(v[k], type == "f32" ? "f32" : "b32") + ");");
        }
        return emit("}");
    }
    static const std::unordered_map<Str, Str> operations = {
        {"add", "o + v"}, {"min", "o < v ? o : v"}, {"max", "o > v ? o : v"}, {"exch", "v"}, {"cas", "o == v ? w : o"}, {"and", "o & v"}, {"or", "o | v"}, {"xor", "o ^ v"},
        {"inc", "o >= v ? 0 : o + 1"}, {"dec", "o == 0 || o > v ? v : o - 1"}};
    if (in(type, {"f16", "bf16"})) refuse("adds halves");
    Str c = c_type(type), u = "u" + num(8 * size_of(type));
    emit("aligned(a, " + num(size_of(type)) + ", SITE); " + c + " v = " + read(to + 1, type) + ";");
    if (kind == "cas") emit(c + " w = " + read(to + 2, type) + ";");
    emit(u + " x = change<" + u + ">(a, [&](" + u + " bits) { " + c + " o = as<" + c + ">(bits); return as<" + u + ">((" + c + ")(" + operations.at(kind) + ")); });");
    if (returns) write(0, type, "as<" + c + ">(x)");
    emit("(void)x; }");
}
void Function::atom() { atomic(true); }
void Function::red() { atomic(false); }

// call.uni (result), function, (parameters): all of them variables of .param.
void Function::call() {
    take("uni");
    Words all;
    size_t i = 0;
    if (operand(0)[0] == '(') all = split(inside(operand(i++)), ',');
    Str name = operand(i++);
    Words arguments = i < operand_count() ? split(inside(operand(i)), ',') : Words{};
    all.insert(all.end(), arguments.begin(), arguments.end());
    for (auto& x : all) {
        const Register* r = find_register(x);
        if (!r || r->address.empty()) refuse("argument " + x);
        x = "(char*)" + r->address;
    }
    if (name == "__assertfail") return emit("assert_failed(" + join(all) + ");");
    if (name == "vprintf") return emit("store<u32>(" + all.at(0) + ", print_formatted(" + all.at(1) + ", " + all.at(2) + "));");
    if (!module.functions.count(name)) refuse("call of " + name + ", which is not known");
    emit("f_" + global_name(name) + "(" + join(all) + ");");
}
