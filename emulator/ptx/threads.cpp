// Where threads go, how they meet, and the warp's matrix instructions.
#include "function.h"

#include <cstdio>
#include <cstdlib>

void Function::bra() {
    take("uni");
    operands(1);
    emit("goto " + local_name(operand(0)) + ";");
}
void Function::ret() {
    take("uni");
    operands(0);
    emit("return;");
}
void Function::trap() { emit("emu_trap(emu_self, \"trap\", SITE);"); }
void Function::bar() {
    take("aligned");
    if (take("cluster")) {
        if (take("arrive")) {
            take_one_of({"release", "relaxed"});
            return emit("emu_cluster_arrive(emu_self, SITE);");
        }
        if (!take("wait")) refuse("neither arrives nor waits");
        take("acquire");
        return emit("emu_cluster_wait(emu_self, SITE);");
    }
    if (take("warp")) {
        if (!take("sync")) refuse("does not wait");
        operands(1);
        return emit("emu_warp(emu_self, " + read(0, "u32") + ", EMU_SYNCWARP, 0, 0, 0, SITE);");
    }
    take("cta");
    if (take("red")) {
        Str how = need_one_of({"popc", "and", "or"}), type = take_type();
        operands(3);
        if (constant(1) != 0) refuse("a reduction at a barrier other than 0");
        Str x = Str("emu_barrier_reduce(emu_self, ") + (how == "popc" ? "0" : how == "and" ? "1" : "2") + ", " + read(2, "pred") + ", SITE)";
        return how == "popc" ? write(0, type, "(u32)" + x) : write(0, type, "(" + x + " != 0)");
    }
    Str how = need_one_of({"sync", "arrive"});
    if (operand_count() > 2 || (how == "arrive" && operand_count() < 2)) refuse("operands");
    emit(Str("emu_barrier") + (how == "arrive" ? "_arrive" : "") + "(emu_self, " + read(0, "u32") + ", " + (operand_count() > 1 ? read(1, "u32") : "0") + ", SITE);");
}
void Function::shfl() {
    if (!take("sync") || take_type() != "b32") refuse("a form that is not known");
    Str how = need_one_of({"up", "down", "bfly", "idx"});
    operands(5);
    auto to = pair_operand(0);
    emit("{ bool q; u32 x = shuffle_" + how + "(" + read(1, "u32") + ", " + read(2, "u32") + ", " + read(3, "u32") + ", " + read(4, "u32") + ", &q, SITE);");
    assign(to.first, "b32", "x");
    if (!to.second.empty()) assign(to.second, "pred", "q");
    emit("}");
}
void Function::vote() {
    if (!take("sync")) refuse("does not wait");
    Str how = need_one_of({"all", "any", "uni", "ballot"}), type = take_type();
    operands(3);
    emit("{ u32 there, x = votes(" + read(2, "u32") + ", " + read(1, "pred") + ", &there, SITE);");
    write(0, type, how == "ballot" ? "x" : how == "any" ? "(x != 0)" : how == "all" ? "(x == there)" : "(x == 0 || x == there)");
    emit("}");
}
void Function::match() {
    if (!take("any") || !take("sync")) refuse("a form that is not known");
    Str type = take_type();
    operands(3);
    write(0, "b32", "match_any(" + read(2, "u32") + ", " + read(1, type) + ", SITE)");
}
void Function::activemask() {
    take_types();
    operands(1);
    write(0, "b32", "emu_active_lanes(emu_self)");
}
void Function::redux() {
    if (!take("sync")) refuse("does not wait");
    static const std::unordered_map<Str, Str> operations = {{"add", "a + b"}, {"min", "a < b ? a : b"}, {"max", "a > b ? a : b"}, {"and", "a & b"}, {"or", "a | b"}, {"xor", "a ^ b"}};
    Str how = need_one_of({"add", "min", "max", "and", "or", "xor"}), type = take_type(), c = c_type(type);
    operands(3);
    write(0, type, "reduce_lanes<" + c + ">(" + read(2, "u32") + ", " + read(1, type) + ", [](" + c + " a, " + c + " b) { return (" + c + ")(" + operations.at(how) + "); }, SITE)");
}
void Function::elect() {
    if (!take("sync")) refuse("does not wait");
    operands(2);
    auto to = pair_operand(0);
    emit("{ u32 leader; bool x = elected(" + read(1, "u32") + ", &leader, SITE);");
    assign(to.first, "b32", "leader");
    if (!to.second.empty()) assign(to.second, "pred", "x");
    emit("}");
}
void Function::nanosleep() {
    take_types();
    operands(1);
    emit("(void)" + read(0, "u32") + "; emu_yield(emu_self);");
}
void Function::membar() {
    need_one_of({"cta", "gl", "sys"});
    emit("__atomic_thread_fence(__ATOMIC_SEQ_CST);");
}
void Function::fence() {
    if (take_all({"mbarrier_init", "release", "cluster"})) return emit("emu_fence_mbarrier_init(emu_self);");
    if (take_all({"proxy", "async", "shared::cta"}) || take_all({"proxy", "async"})) return emit("emu_fence_proxy_async(emu_self);");
    if (take_all({"proxy", "async", "global"})) return emit(";");        // global memory has one proxy here
    need_one_of({"sc", "acq_rel"});
    need_one_of({"cta", "cluster", "gpu", "sys"});
    emit("__atomic_thread_fence(__ATOMIC_SEQ_CST);");
}

// ---- ldmatrix, stmatrix, mma

void Function::matrices(bool store) {
    for (auto m : {"sync", "aligned", "m8n8"})
        if (!take(m)) refuse(Str("not .") + m);
    Str count = need_one_of({"x1", "x2", "x4"});
    bool transposed = take("trans");
    Str space = take_space();
    if (!starts(space, "shared") || take_type() != "b16") refuse("a form that is not known");
    operands(2);
    size_t n = (size_t)(count[1] - '0');
    Words r = vector_operand(store ? 1 : 0);
    if (r.size() != n) refuse("has not " + num((long long)n) + " registers");
    Str tail = address(store ? 0 : 1, "shared") + ", " + num((long long)n) + ", " + (transposed ? "1" : "0") + ", SITE);";
    if (store) return emit("{ u32 r[4] = {" + join(values(r, "b32")) + "}; store_matrices(r, " + tail + " }");
    emit("{ u32 r[4]; load_matrices(r, " + tail);
    for (size_t k = 0; k < n; k++) assign(r[k], "b32", "r[" + num((long long)k) + "]");
    emit("}");
}
void Function::ldmatrix() { matrices(false); }
void Function::stmatrix() { matrices(true); }

int number_of_type(const Str& t) { return t == "bf16" ? 0 : t == "f16" ? 1 : t == "tf32" ? 2 : -1; }

void Function::mma() {
    const Words& m = s->modifiers;      // sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
    int k = 0, type = m.size() == 9 ? number_of_type(m[6]) : -1;
    if (type < 0 || sscanf(m[2].c_str(), "m16n8k%d", &k) != 1 || m[2] != "m16n8k" + num(k) || !(type == 2 ? k == 4 || k == 8 : k == 8 || k == 16) ||
        !take_all({"sync", "aligned", m[2].c_str(), "row", "col", "f32", m[6].c_str(), m[6].c_str(), "f32"}))
        refuse("a shape or type that is not known");
    operands(4);
    Words d = vector_operand(0), a = vector_operand(1), b = vector_operand(2), c = vector_operand(3);
    size_t of_a = k == (type == 2 ? 4 : 8) ? 2 : 4;
    if (d.size() != 4 || c.size() != 4 || a.size() != of_a || b.size() != of_a / 2) refuse("has not as many registers as the shape wants");
    emit("{ float d[4] = {" + join(values(c, "f32")) + "}; emu_mma x; x.type = " + num(type) + "; x.k = " + num(k) + "; x.d = d;");
    for (size_t i = 0; i < a.size(); i++) emit("x.a[" + num((long long)i) + "] = " + value(a[i], "b32") + ";");
    for (size_t i = 0; i < b.size(); i++) emit("x.b[" + num((long long)i) + "] = " + value(b[i], "b32") + ";");
    emit("multiply_matrices(x, SITE);");
    for (size_t i = 0; i < 4; i++) assign(d[i], "f32", "d[" + num((long long)i) + "]");
    emit("}");
}
