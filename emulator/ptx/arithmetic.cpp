// Numbers: integers, floats, bits, comparisons and conversions.
#include "function.h"

// ---- what floating-point instructions have in common

Function::Floating Function::take_floating() {
    Floating f;
    f.rounding = take_one_of({"rn", "rz", "rm", "rp"});
    f.flush = take("ftz");
    f.saturate = take("sat");
    return f;
}
// A result that is no number is the canonical NaN in f32; in f64 its bits are not specified.
void Function::float_result(const Str& type, const Floating& how, const Str& cpp) {
    Str r = type == "f32" ? "canonical(" + cpp + ")" : cpp;
    if (how.flush && type == "f32") r = "flushed(" + r + ")";
    if (how.saturate) r = "saturated(" + r + ")";
    write(0, type, r);
}
static bool to_nearest(const Str& rounding) { return rounding.empty() || rounding == "rn"; }
static Str direction(const Str& rounding) { return rounding == "rz" ? "TowardsZero" : rounding == "rm" ? "Down" : "Up"; }
static Str unsigned_of(const Str& type) { return "u" + num(8 * size_of(type)); }
// Integers are computed without a sign, in 32 bits at least.
static Str wide(const Str& type) { return size_of(type) == 8 ? "u64" : "u32"; }
static Str twice(const Str& type) {
    if (type == "u16") return "u32";
    if (type == "s16") return "s32";
    if (type == "u32") return "u64";
    if (type == "s32") return "s64";
    refuse("no type is twice as wide as " + type);
}
static Str in_wide(const Str& type, const Str& a, const char* sign, const Str& b) {
    return "(" + c_type(type) + ")((" + wide(type) + ")" + a + " " + sign + " (" + wide(type) + ")" + b + ")";
}

// ---- sums and products

void Function::sum(bool minus) {
    Floating how = take_floating();
    bool carry = take("cc");
    Str type = take_type();
    operands(3);
    if (is_float(type)) {
        Str a = read_flushed(1, type, how.flush), b = read_flushed(2, type, how.flush);
        if (to_nearest(how.rounding)) return float_result(type, how, "(" + a + (minus ? " - " : " + ") + b + ")");
        if (type != "f32") refuse("rounds f64 in a direction");
        return float_result(type, how, "add_rounded(" + a + ", " + (minus ? "-" : "") + b + ", " + direction(how.rounding) + ")");
    }
    if (how.saturate || !how.rounding.empty() || how.flush) refuse("an integer that saturates or is rounded");
    if (carry) return with_carry(type, read(1, type), read(2, type), minus, false);
    write(0, type, in_wide(type, read(1, type), minus ? "-" : "+", read(2, type)));
}
void Function::add() { sum(false); }
void Function::sub() { sum(true); }
void Function::with_carry(const Str& type, const Str& a, const Str& b, bool minus, bool carry_in) {
    if (size_of(type) < 4) refuse("a carry of 16 bits");
    Str u = unsigned_of(type), w = size_of(type) == 8 ? "u128" : "u64", sign = minus ? " - " : " + ";
    bool carry_out = s->opcode.find(".cc") != Str::npos;
    emit("{ " + w + " x = (" + w + ")(" + u + ")" + a + sign + "(" + u + ")" + b + (carry_in ? sign + "CC" : "") + ";");
    if (carry_out) emit("CC = (bool)(x >> " + num(8 * size_of(type)) + " & 1);");
    write(0, type, "(" + c_type(type) + ")x");
    emit("}");
}
void Function::addc() { take("cc"); Str t = take_type(); operands(3); with_carry(t, read(1, t), read(2, t), false, true); }
void Function::subc() { take("cc"); Str t = take_type(); operands(3); with_carry(t, read(1, t), read(2, t), true, true); }
Str Function::low_product(const Str& type) {
    if (take("hi")) return "high_product(" + read(1, type) + ", " + read(2, type) + ")";
    if (!take("lo")) refuse("neither .lo nor .hi");
    return in_wide(type, read(1, type), "*", read(2, type));
}
void Function::madc() { take("cc"); Str t = take_type(); operands(4); with_carry(t, low_product(t), read(3, t), false, true); }
void Function::mul() {
    Floating how = take_floating();
    Str type = take_type();
    operands(3);
    if (is_float(type)) {
        Str a = read_flushed(1, type, how.flush), b = read_flushed(2, type, how.flush);
        if (to_nearest(how.rounding)) return float_result(type, how, "(" + a + " * " + b + ")");
        if (type != "f32") refuse("rounds f64 in a direction");
        return float_result(type, how, "mul_rounded(" + a + ", " + b + ", " + direction(how.rounding) + ")");
    }
    if (!take("wide")) return write(0, type, low_product(type));
    Str w = twice(type);
    write(0, w, "(" + w + ")" + read(1, type) + " * (" + w + ")" + read(2, type));
}
void Function::mad() {
    if (is_float(s->modifiers.back())) return fma();
    bool carry = take("cc");
    Str type = take_type();
    operands(4);
    if (take("wide")) {
        Str w = twice(type);
        return write(0, w, "(" + w + ")((u64)((" + w + ")" + read(1, type) + " * (" + w + ")" + read(2, type) + ") + (u64)" + read(3, w) + ")");
    }
    Str product = low_product(type);
    if (carry) return with_carry(type, product, read(3, type), false, false);
    write(0, type, in_wide(type, product, "+", read(3, type)));
}
void Function::fma() {
    Floating how = take_floating();
    Str type = take_type();
    operands(4);
    if (!is_float(type)) refuse("fma of " + type);
    Str abc = read_flushed(1, type, how.flush) + ", " + read_flushed(2, type, how.flush) + ", " + read_flushed(3, type, how.flush);
    if (to_nearest(how.rounding)) return float_result(type, how, (type == "f32" ? "__builtin_fmaf(" : "__builtin_fma(") + abc + ")");
    if (type != "f32") refuse("rounds f64 in a direction");
    float_result(type, how, "fma_rounded(" + abc + ", " + direction(how.rounding) + ")");
}
void Function::div() {
    bool approximate = take_one_of({"approx", "full"}) != "";
    Floating how = take_floating();
    Str type = take_type();
    operands(3);
    if (!is_float(type)) return write(0, type, "quotient<" + c_type(type) + ">(" + read(1, type) + ", " + read(2, type) + ", SITE)");
    if (!to_nearest(how.rounding)) refuse("a division that is rounded in a direction");
    Str a = read_flushed(1, type, how.flush), b = read_flushed(2, type, how.flush);
    float_result(type, how, approximate ? "div_approx(" + a + ", " + b + ")" : "(" + a + " / " + b + ")");
}
void Function::rem() {
    Str t = take_type();
    operands(3);
    write(0, t, "remainder<" + c_type(t) + ">(" + read(1, t) + ", " + read(2, t) + ", SITE)");
}
void Function::extreme(const char* which) {
    Floating how = take_floating();
    bool nan = take("NaN");
    Str t = take_type();
    operands(3);
    Str ab = "(" + read_flushed(1, t, how.flush) + ", " + read_flushed(2, t, how.flush) + ")";
    if (!is_float(t)) return write(0, t, Str("int_") + which + "<" + c_type(t) + ">" + ab);
    float_result(t, how, Str("float_") + which + (nan ? "_nan" : "") + ab);
}
void Function::min() { extreme("min"); }
void Function::max() { extreme("max"); }
// The signs of floats are bits: a NaN keeps its own.
void Function::abs() {
    bool flush = take("ftz");
    Str t = take_type();
    operands(2);
    Str a = read_flushed(1, t, flush);
    if (is_float(t)) return write(0, t, Str("__builtin_fabs") + (t == "f32" ? "f" : "") + "(" + a + ")");
    write(0, t, "(" + a + " < 0 ? (" + c_type(t) + ")(0 - (u64)" + a + ") : " + a + ")");
}
void Function::neg() {
    bool flush = take("ftz");
    Str t = take_type();
    operands(2);
    Str a = read_flushed(1, t, flush);
    write(0, t, is_float(t) ? "(-" + a + ")" : "(" + c_type(t) + ")(0 - (u64)" + a + ")");
}
void Function::copysign() {
    Str t = take_type();
    operands(3);
    write(0, t, Str("__builtin_copysign") + (t == "f32" ? "f" : "") + "(" + read(2, t) + ", " + read(1, t) + ")");
}
void Function::float_call(const char* f32, const char* f64) {
    bool approximate = take("approx");
    Floating how = take_floating();
    Str t = take_type();
    operands(2);
    const char* f = t == "f32" ? f32 : t == "f64" ? f64 : nullptr;
    if (!f || !to_nearest(how.rounding)) refuse("not known for " + t + how.rounding);
    Str a = read_flushed(1, t, how.flush);
    // The approximate functions of f64 take and give the upper half of a double.
    if (approximate && t == "f64") return write(0, t, Str("upper_half(") + f + "(upper_half(" + a + ")))");
    float_result(t, how, Str(f) + (approximate ? "_approx(" : "(") + a + ")");
}
void Function::sqrt() { float_call("square_root", "square_root"); }
void Function::rcp() { float_call("reciprocal", "reciprocal"); }
void Function::rsqrt() { float_call("inverse_root", "inverse_root"); }
void Function::ex2() { float_call("exp2", nullptr); }
void Function::lg2() { float_call("log2", nullptr); }
void Function::sin() { float_call("sin", nullptr); }
void Function::cos() { float_call("cos", nullptr); }
void Function::tanh() { float_call("tanh", nullptr); }
void Function::testp() {
    Str how = need_one_of({"finite", "infinite", "number", "notanumber", "normal"}), t = take_type();
    operands(2);
    Str a = read(1, t);
    write(0, "pred", how == "number" ? "(" + a + " == " + a + ")" : how == "notanumber" ? "(" + a + " != " + a + ")"
                   : "(bool)__builtin_is" + Str(how == "infinite" ? "inf" : how) + "(" + a + ")");
}

// ---- bits

void Function::logic(const char* sign) {
    Str t = take_type();
    operands(3);
    Str e = "(" + read(1, t) + " " + sign + " " + read(2, t) + ")";
    write(0, t, "(" + c_type(t) + ")" + e);
}
void Function::and_() { logic("&"); }
void Function::or_() { logic("|"); }
void Function::xor_() { logic("^"); }
void Function::not_() {
    Str t = take_type();
    operands(2);
    write(0, t, "(" + c_type(t) + ")" + (t == "pred" ? "!" : "~") + read(1, t));
}
void Function::shl() { Str t = take_type(); operands(3); write(0, t, "shift_left<" + c_type(t) + ">(" + read(1, t) + ", " + read(2, "u32") + ")"); }
void Function::shr() { Str t = take_type(); operands(3); write(0, t, "shift_right<" + c_type(t) + ">(" + read(1, t) + ", " + read(2, "u32") + ")"); }
void Function::shf() {
    Str side = need_one_of({"l", "r"}), how = need_one_of({"wrap", "clamp"});
    if (take_type() != "b32") refuse("not of 32 bits");
    operands(4);
    write(0, "b32", "funnel_" + side + "(" + read(1, "u32") + ", " + read(2, "u32") + ", " + (how == "wrap" ? read(3, "u32") + " & 31" : "int_min<u32>(" + read(3, "u32") + ", 32)") + ")");
}
void Function::lop3() {
    if (take_type() != "b32") refuse("not of 32 bits");
    operands(5);
    write(0, "b32", "lop3(" + read(1, "u32") + ", " + read(2, "u32") + ", " + read(3, "u32") + ", " + num(constant(4)) + ")");
}
void Function::prmt() {
    if (take_type() != "b32") refuse("not of 32 bits");
    operands(4);
    write(0, "b32", "permute_bytes(" + read(1, "u32") + ", " + read(2, "u32") + ", " + read(3, "u32") + ")");
}
void Function::bfe() { Str t = take_type(); operands(4); write(0, t, "extract_bits<" + c_type(t) + ">(" + read(1, t) + ", " + read(2, "u32") + ", " + read(3, "u32") + ")"); }
void Function::bfi() {
    Str t = take_type();
    operands(5);
    write(0, t, "insert_bits<" + c_type(t) + ">(" + read(1, t) + ", " + read(2, t) + ", " + read(3, "u32") + ", " + read(4, "u32") + ")");
}
void Function::clz() { Str t = take_type(); operands(2); write(0, "u32", "leading_zeros<" + unsigned_of(t) + ">(" + read(1, t) + ")"); }
void Function::popc() { Str t = take_type(); operands(2); write(0, "u32", "(u32)__builtin_popcountll(" + read(1, t) + ")"); }
void Function::brev() { Str t = take_type(); operands(2); write(0, t, "reversed_bits<" + unsigned_of(t) + ">(" + read(1, t) + ")"); }
void Function::bfind() {
    bool shift = take("shiftamt");
    Str t = take_type();
    operands(2);
    write(0, "u32", "find_bit<" + c_type(t) + ">(" + read(1, t) + ", " + (shift ? "true" : "false") + ")");
}

// ---- comparisons

Str Function::compare(const Str& how, const Str& t, const Str& a, const Str& b) {
    static const std::unordered_map<Str, Str> signs = {{"eq", "=="}, {"ne", "!="}, {"lt", "<"}, {"le", "<="}, {"gt", ">"}, {"ge", ">="},
                                                       {"lo", "<"}, {"ls", "<="}, {"hi", ">"}, {"hs", ">="}};
    // What holds for NaNs too is the contrary of what does not.
    static const std::unordered_map<Str, Str> contraries = {{"ltu", ">="}, {"leu", ">"}, {"gtu", "<="}, {"geu", "<"}};
    auto sign = signs.find(how), contrary = contraries.find(how);
    if (!is_float(t)) {
        if (sign == signs.end() || (t[0] == 'b' && !in(how, {"eq", "ne"})) || (t[0] == 's' && in(how, {"lo", "ls", "hi", "hs"}))) refuse("comparison ." + how + " of " + t);
        return "(" + a + " " + sign->second + " " + b + ")";
    }
    if (how == "num") return "(" + a + " == " + a + " && " + b + " == " + b + ")";
    if (how == "nan") return "(" + a + " != " + a + " || " + b + " != " + b + ")";
    if (how == "ne") return "(" + a + " < " + b + " || " + a + " > " + b + ")";
    if (how == "neu") return "(" + a + " != " + b + ")";
    if (how == "equ") return "(!(" + a + " < " + b + " || " + a + " > " + b + "))";
    if (contrary != contraries.end()) return "(!(" + a + " " + contrary->second + " " + b + "))";
    if (!in(how, {"eq", "lt", "le", "gt", "ge"})) refuse("comparison ." + how + " of " + t);
    return "(" + a + " " + sign->second + " " + b + ")";
}
static const std::initializer_list<const char*> comparisons = {"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};

void Function::setp() {
    Str how = need_one_of(comparisons), with = take_one_of({"and", "or", "xor"});
    bool flush = take("ftz");
    Str t = take_type();
    operands(with.empty() ? 3 : 4);
    auto to = pair_operand(0);
    emit("{ bool x = " + compare(how, t, read_flushed(1, t, flush), read_flushed(2, t, flush)) + ";");
    Str sign = with == "and" ? " & " : with == "or" ? " | " : " != ";
    if (!with.empty()) emit("bool y = " + read(3, "pred") + ";");
    assign(to.first, "pred", with.empty() ? "x" : "(bool)(x" + sign + "y)");
    if (!to.second.empty()) assign(to.second, "pred", with.empty() ? "!x" : "(bool)(!x" + sign + "y)");
    emit("}");
}
void Function::set() {
    Str how = need_one_of(comparisons);
    bool flush = take("ftz");
    Words t = take_types();
    operands(3);
    if (t.size() != 2) refuse("has not two types");
    write(0, t[0], "(" + compare(how, t[1], read_flushed(1, t[1], flush), read_flushed(2, t[1], flush)) + " ? (" + c_type(t[0]) + ")" + (t[0] == "f32" ? "1" : "~0u") + " : 0)");
}
void Function::selp() { Str t = take_type(); operands(4); write(0, t, "(" + read(3, "pred") + " ? " + read(1, t) + " : " + read(2, t) + ")"); }
void Function::slct() {
    Words t = take_types();
    operands(4);
    if (t.size() != 2) refuse("has not two types");
    write(0, t[0], "(" + read(3, t[1]) + " >= 0 ? " + read(1, t[0]) + " : " + read(2, t[0]) + ")");
}

// ---- conversions

static bool floating(const Str& t) { return in(t, {"f16", "bf16", "f32", "f64"}); }

void Function::cvt() {
    Words t = take_types();
    if (t.size() != 2) refuse("has not two types");
    Str to = t[0], from = t[1], rounding = take_one_of({"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna"});
    bool flush = take("ftz"), saturate = take("sat");
    if (to == "f16x2" || to == "bf16x2") {
        // The first source becomes the upper half.
        operands(3);
        if (from != "f32" || rounding != "rn" || saturate) refuse("a form that is not known");
        Str half = to == "f16x2" ? "to_f16(" : "to_bf16(";
        return write(0, "b32", "((u32)" + half + read(1, "f32") + ") << 16 | " + half + read(2, "f32") + "))");
    }
    operands(2);
    if (to == "tf32") {
        if (from != "f32" || rounding != "rna" || saturate) refuse("a form that is not known");
        return write(0, "b32", "to_tf32(" + read(1, "f32") + ")");
    }
    Str x = read(1, from == "f16" || from == "bf16" ? "b16" : from);
    if (!floating(from)) {
        if (saturate || flush) refuse("an integer that saturates");
        if (floating(to) ? rounding != "rn" || !is_float(to) : rounding != "") refuse("rounding ." + rounding);
        return write(0, to, "(" + c_type(to) + ")(" + x + ")");
    }
    if (from == "f16") x = "from_f16(" + x + ")", from = "f32";
    if (from == "bf16") x = "from_bf16(" + x + ")", from = "f32";
    if (flush && from == "f32") x = "flushed(" + x + ")";
    Str whole = rounding == "rni" ? "__builtin_rint" : rounding == "rzi" ? "__builtin_trunc" : rounding == "rmi" ? "__builtin_floor" : rounding == "rpi" ? "__builtin_ceil" : "";
    if (whole != "") x = whole + (from == "f32" ? "f" : "") + "(" + x + ")";
    if (!floating(to)) {
        if (whole == "" || saturate) refuse("rounding ." + rounding);
        return write(0, to, "to_integer<" + c_type(to) + ">(" + x + ")");
    }
    if (to == "f16" || to == "bf16") {
        if (rounding != "rn" || from != "f32" || saturate) refuse("a form that is not known");
        return write(0, "b16", (to == "f16" ? "to_f16(" : "to_bf16(") + x + ")");
    }
    bool narrower = to == "f32" && from == "f64";
    if (narrower ? rounding != "rn" : whole == "" && rounding != "") refuse("rounding ." + rounding);
    x = "(" + c_type(to) + ")(" + x + ")";
    if (to == "f32") return float_result(to, {"", flush, saturate}, x);
    if (saturate) refuse("f64 that saturates");
    write(0, to, x);
}
