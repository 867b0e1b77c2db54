// Hopper: wgmma, mbarriers, clusters, the copy engine.
#include "function.h"

#include <cstdio>
#include <cstdlib>

int number_of_type(const Str& t);

// ---- wgmma: what is under way lies in an array for each set of registers. The registers themselves hold NaNs from the issue
// until the wait that covers it, whatever the compiler does with them in between.

void Function::wgmma() {
    if (take_all({"fence", "sync", "aligned"})) return emit("emu_wgmma_fence(emu_self);");
    if (take_all({"commit_group", "sync", "aligned"})) return emit("emu_wgmma_commit(emu_self, SITE);");
    if (take_all({"wait_group", "sync", "aligned"})) {
        operands(1);
        return emit("emu_wgmma_wait(emu_self, " + num(constant(0)) + ", SITE); @back@");
    }
    wgmma_product();
}
void Function::wgmma_product() {
    const Words& m = s->modifiers;      // mma_async.sync.aligned.m64n128k16.f32.bf16.bf16
    int n = 0, k = 0, type = m.size() == 7 ? number_of_type(m[5]) : -1;
    if (type < 0 || sscanf(m[3].c_str(), "m64n%dk%d", &n, &k) != 2 || n < 8 || n > 256 || n % 8 || k != (type == 2 ? 8 : 16) ||
        !take_all({"mma_async", "sync", "aligned", ("m64n" + num(n) + "k" + num(k)).c_str(), "f32", m[5].c_str(), m[5].c_str()}))
        refuse("a shape or type that is not known");
    // d, a, b, scale_d, scale_a, scale_b, and for 16-bit types trans_a (of a descriptor) and trans_b.
    Words d = vector_operand(0);
    bool registers = operand(1)[0] == '{';
    operands(6 + (type == 2 ? 0u : registers ? 1u : 2u));
    if ((int)d.size() != n / 2 || std::unordered_set<Str>(d.begin(), d.end()).size() != d.size()) refuse("the accumulators are not " + num(n / 2) + " registers");
    int scale_a = constant(4), scale_b = constant(5), trans_a = 0, trans_b = 0;
    if (type != 2) {
        if (!registers) trans_a = constant(6);
        trans_b = constant(operand_count() - 1);
    }
    if (std::abs(scale_a) != 1 || std::abs(scale_b) != 1 || (trans_a | trans_b) & ~1) refuse("a scale that is not 1 or -1, or a major that is not 0 or 1");

    Str all = join(d);
    size_t set = 0;
    while (set < accumulators.size() && join(accumulators[set]) != all) set++;
    if (set == accumulators.size()) accumulators.push_back(d);
    Str array = "acc" + num((long long)set), under_way = "under_way" + num((long long)set);
    emit("{ if (!" + under_way + ") { " + under_way + " = true;");
    for (size_t i = 0; i < d.size(); i++) emit(array + "[" + num((long long)i) + "] = " + value(d[i], "f32") + ";");
    emit("} emu_wgmma x = {" + num(type) + ", " + num(n) + ", " + (registers ? "1" : "0") + ", " + num(trans_a) + ", " + num(trans_b) + ", " + num(scale_a) + ", " + num(scale_b) + ", " +
         read(3, "pred") + ", " + (registers ? "0" : read(1, "b64")) + ", " + read(2, "b64") + ", {" + (registers ? join(values(vector_operand(1), "b32")) : "") + "}, " + array + "};");
    emit("emu_wgmma_issue(emu_self, &x, SITE);");
    for (auto& r : d) assign(r, "f32", "f32_of(~0u)");
    emit("}");
}
Str Function::accumulators_declared() const {
    Str r;
    for (size_t k = 0; k < accumulators.size(); k++)
        r += "alignas(16) float acc" + num((long long)k) + "[" + num((long long)accumulators[k].size()) + "]; bool under_way" + num((long long)k) + " = false;\n";
    return r;
}
Str Function::accumulators_back() const {
    Str r;
    for (size_t k = 0; k < accumulators.size(); k++) {
        Str array = "acc" + num((long long)k), under_way = "under_way" + num((long long)k);
        r += "if (" + under_way + " && !emu_wgmma_under_way(emu_self, " + array + ")) { " + under_way + " = false; ";
        for (size_t i = 0; i < accumulators[k].size(); i++) {
            Str x = array + "[" + num((long long)i) + "]";
            // The registers are declared as .f32, or as .b32 by NVRTC 13.
            r += "from_f32(" + local_name(accumulators[k][i]) + ", " + x + "); ";
        }
        r += "} ";
    }
    return r;
}
void Function::setmaxnreg() {
    Str how = need_one_of({"inc", "dec"});
    if (!take("sync") || !take("aligned") || take_type() != "u32") refuse("a form that is not known");
    operands(1);
    emit("emu_setmaxnreg(emu_self, " + num(constant(0)) + ", " + (how == "inc" ? "1" : "0") + ", SITE);");
}
// Launches follow one another here.
void Function::griddepcontrol() { need_one_of({"wait", "launch_dependents"}); emit(";"); }

// ---- mbarriers

void Function::mbarrier() {
    Str what = need_one_of({"arrive", "init", "inval", "expect_tx", "test_wait", "try_wait"});
    bool expect = what == "arrive" && take("expect_tx"), parity = take("parity");
    take_one_of({"relaxed", "release", "acquire"});
    take_one_of({"cta", "cluster"});
    Str space = take_space();
    if (take_type() != "b64") refuse("not of 64 bits");
    if (what == "init") { operands(2); return emit("emu_mbarrier_init(emu_self, " + address(0, "shared") + ", " + read(1, "u32") + ", SITE);"); }
    if (what == "inval") { operands(1); return emit("emu_mbarrier_invalidate(emu_self, " + address(0, "shared") + ", SITE);"); }
    if (what == "expect_tx") { operands(2); return emit("emu_mbarrier_arrive(emu_self, " + address(0, "shared") + ", 0, " + read(1, "u32") + ", SITE);"); }
    if (what != "arrive") {
        if (!parity) refuse("waits for a state");
        operands(3);
        return write(0, "pred", "emu_mbarrier_wait(emu_self, " + address(1, "shared") + ", " + read(2, "u32") + ", " + (what == "try_wait" ? "1" : "0") + ", SITE)");
    }
    if (operand(0) != "_") refuse("gives a state");
    if (space == "shared::cluster") {
        operands(2);
        if (expect) refuse("expects bytes in another block");
        return emit("arrive_in_cluster(SH, " + address(1, space) + ", SITE);");
    }
    if (operand_count() > 3 || (expect && operand_count() != 3)) refuse("operands");
    Str number = operand_count() > 2 ? read(2, "u32") : "1";
    emit("emu_mbarrier_arrive(emu_self, " + address(1, "shared") + ", " + (expect ? "1, " + number : number + ", 0") + ", SITE);");
}
// An address in another block's shared memory: the offset, and from bit 24 on the rank + 1.
void Function::mapa() {
    if (!take_all({"shared::cluster", "u32"})) refuse("a form that is not known");
    operands(3);
    write(0, "u32", "(" + read(1, "u32") + " | (" + read(2, "u32") + " + 1) << 24)");
}

// ---- copies

void Function::tensor(int kind, size_t map, int rank, size_t shared, const Str& barrier, int im2col, int offsets, int mask) {
    Words w = split(inside(operand(map)), ',');     // [map, {coordinates}]
    if (w.size() != 2 || w[1][0] != '{') refuse("operand " + operand(map));
    Words at = values(split(inside(w[1]), ','), "s32"), by = offsets < 0 ? Words{} : values(vector_operand((size_t)offsets), "u16");
    if ((int)at.size() != rank || (offsets >= 0 && (int)by.size() != rank - 2)) refuse("has not as many coordinates or offsets as the rank wants");
    emit("{ int c[] = {" + join(at) + "}; int f[] = {" + (by.empty() ? "0" : join(by)) + "}; (void)f;");
    Str to = kind == 3 ? "(char*)0" : address(shared, "shared"), place = ", (const void*)" + value(w[0], "u64") + ", " + barrier + ", ";
    if (mask >= 0) emit("emu_tensor_multicast(emu_self, " + to + place + read((size_t)mask, "u16") + ", " + num(rank) + ", c, SITE); }");
    else emit("emu_tensor_copy(emu_self, " + num(kind) + ", " + to + place + num(rank) + ", c, " + num(im2col) + ", " + (by.empty() ? "0" : "f") + ", SITE); }");
}
bool Function::cp_bulk() {
    if (take_all({"async", "bulk", "commit_group"})) { emit("emu_bulk_commit(emu_self);"); return true; }
    if (take_all({"async", "bulk", "wait_group"}) || take_all({"async", "bulk", "wait_group", "read"})) {
        operands(1);
        emit("emu_bulk_wait(emu_self, " + num(constant(0)) + ");");
        return true;
    }
    if (take_all({"async", "bulk", "shared::cluster", "global", "mbarrier::complete_tx::bytes"})) {
        operands(4);
        emit("emu_bulk_load(emu_self, " + address(0, "shared") + ", " + address(1, "global") + ", " + read(2, "u32") + ", " + address(3, "shared") + ", SITE);");
        return true;
    }
    if (take_all({"async", "bulk", "global", "shared::cta", "bulk_group"})) {
        operands(3);
        emit("emu_bulk_store(emu_self, " + address(0, "global") + ", " + address(1, "shared") + ", " + read(2, "u32") + ", SITE);");
        return true;
    }
    for (int rank = 1; rank <= 5; rank++) {
        Str r = num(rank) + "d";
        const char* d = r.c_str();
        if (take_all({"async", "bulk", "tensor", d, "shared::cluster", "global", "tile", "mbarrier::complete_tx::bytes"})) {
            operands(3);
            return tensor(0, 1, rank, 0, address(2, "shared"), 0, -1, -1), true;
        }
        if (take_all({"async", "bulk", "tensor", d, "shared::cluster", "global", "tile", "mbarrier::complete_tx::bytes", "multicast::cluster"})) {
            operands(4);
            return tensor(0, 1, rank, 0, address(2, "shared"), 0, -1, 3), true;
        }
        if (take_all({"async", "bulk", "tensor", d, "shared::cluster", "global", "im2col", "mbarrier::complete_tx::bytes"})) {
            operands(4);
            return tensor(0, 1, rank, 0, address(2, "shared"), 1, 3, -1), true;
        }
        if (take_all({"async", "bulk", "tensor", d, "global", "shared::cta", "tile", "bulk_group"})) {
            operands(2);
            return tensor(1, 0, rank, 1, "0", 0, -1, -1), true;
        }
        if (take_all({"async", "bulk", "tensor", d, "global", "shared::cta", "im2col_no_offs", "bulk_group"})) {
            operands(2);
            return tensor(1, 0, rank, 1, "0", 1, -1, -1), true;
        }
        if (take_all({"reduce", "async", "bulk", "tensor", d, "global", "shared::cta", "add", "tile", "bulk_group"})) {
            operands(2);
            return tensor(2, 0, rank, 1, "0", 0, -1, -1), true;
        }
        if (take_all({"async", "bulk", "prefetch", "tensor", d, "L2", "global", "tile"})) {
            operands(1);
            return tensor(3, 0, rank, 0, "0", 0, -1, -1), true;
        }
    }
    return false;
}
void Function::cp() {
    if (cp_bulk()) return;
    if (take_all({"async", "commit_group"})) return emit("emu_cp_async_commit(emu_self);");
    if (take_all({"async", "wait_group"})) { operands(1); return emit("emu_cp_async_wait(emu_self, " + num(constant(0)) + ");"); }
    if (take_all({"async", "wait_all"})) return emit("emu_cp_async_wait(emu_self, -1);");
    bool past_l1 = take_all({"async", "cg", "shared", "global"});
    if (!past_l1 && !take_all({"async", "ca", "shared", "global"})) refuse("a form that is not known");
    int bytes = constant(2);
    if (bytes != 16 && (past_l1 || (bytes != 4 && bytes != 8))) refuse("of " + num(bytes) + " bytes");
    if (operand_count() > 4) refuse("operands");
    emit("emu_cp_async(emu_self, " + address(0, "shared") + ", " + address(1, "global") + ", " + num(bytes) + ", (int)" + (operand_count() > 3 ? read(3, "u32") : num(bytes)) + ");");
}
