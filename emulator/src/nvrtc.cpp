// NVRTC's face.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "internal.h"

enum nvrtcResult {
    NVRTC_SUCCESS = 0,
    NVRTC_ERROR_OUT_OF_MEMORY,
    NVRTC_ERROR_PROGRAM_CREATION_FAILURE,
    NVRTC_ERROR_INVALID_INPUT,
    NVRTC_ERROR_INVALID_PROGRAM,
    NVRTC_ERROR_INVALID_OPTION,
    NVRTC_ERROR_COMPILATION,
    NVRTC_ERROR_BUILTIN_OPERATION_FAILURE,
    NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION,
    NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION,
    NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID,
    NVRTC_ERROR_INTERNAL_ERROR,
};
struct Program {
    compiler::Source source;
    compiler::Result result;
    bool compiled = false, real = false;
    std::string ptx;
};
typedef Program* nvrtcProgram;

EXPORT nvrtcResult nvrtcVersion(int* major, int* minor) {
    if (!major || !minor) return NVRTC_ERROR_INVALID_INPUT;
    // A copy of this file under another version's name (libnvrtc.so.13.0) passes for it.
    *major = 12, *minor = 9;
    if (compiler::mode() == compiler::FromPtx) {
        auto& real = compiler::about_real_nvrtc();
        if (!real.version[0]) return NVRTC_ERROR_INTERNAL_ERROR;
        *major = real.version[0], *minor = real.version[1];
    }
    Dl_info info;
    const char* name = dladdr((void*)&nvrtcVersion, &info) && info.dli_fname ? strrchr(info.dli_fname, '/') : nullptr;
    int other = 0, its = 0;
    if (name && sscanf(name, "/libnvrtc.so.%d.%d", &other, &its) == 2) *major = other, *minor = its;
    return NVRTC_SUCCESS;
}
static const std::vector<int>& archs() {
    static const std::vector<int> own = {50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121};
    return compiler::mode() == compiler::FromPtx ? compiler::about_real_nvrtc().archs : own;
}
EXPORT nvrtcResult nvrtcGetNumSupportedArchs(int* n) {
    *n = (int)archs().size();
    return NVRTC_SUCCESS;
}
EXPORT nvrtcResult nvrtcGetSupportedArchs(int* out) {
    std::copy(archs().begin(), archs().end(), out);
    return NVRTC_SUCCESS;
}
EXPORT const char* nvrtcGetErrorString(nvrtcResult r) {
    static const char* names[] = {"NVRTC_SUCCESS", "NVRTC_ERROR_OUT_OF_MEMORY", "NVRTC_ERROR_PROGRAM_CREATION_FAILURE", "NVRTC_ERROR_INVALID_INPUT",
                                  "NVRTC_ERROR_INVALID_PROGRAM", "NVRTC_ERROR_INVALID_OPTION", "NVRTC_ERROR_COMPILATION",
                                  "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE", "NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION",
                                  "NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION", "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID", "NVRTC_ERROR_INTERNAL_ERROR"};
    return (unsigned)r < sizeof names / sizeof *names ? names[r] : "NVRTC_ERROR unknown";
}
EXPORT nvrtcResult nvrtcCreateProgram(nvrtcProgram* p, const char* src, const char* name, int n, const char* const* headers, const char* const* names) {
    if (!p || !src || n < 0) return NVRTC_ERROR_INVALID_INPUT;
    auto* q = new Program;
    q->source.text = src;
    q->source.name = name ? name : "default_program";
    for (int i = 0; i < n; i++) q->source.headers.push_back({names[i], headers[i]});
    *p = q;
    return NVRTC_SUCCESS;
}
EXPORT nvrtcResult nvrtcDestroyProgram(nvrtcProgram* p) {
    if (!p || !*p) return NVRTC_ERROR_INVALID_PROGRAM;
    delete *p;
    return NVRTC_SUCCESS;       // cudarc passes a pointer to a constant: *p is left alone
}
EXPORT nvrtcResult nvrtcAddNameExpression(nvrtcProgram p, const char* e) {
    if (!p || !e) return NVRTC_ERROR_INVALID_INPUT;
    if (p->compiled) return NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION;
    p->source.expressions.push_back(e);
    return NVRTC_SUCCESS;
}
EXPORT nvrtcResult nvrtcGetLoweredName(nvrtcProgram p, const char* e, const char** out) {
    if (!p || !e || !out) return NVRTC_ERROR_INVALID_INPUT;
    if (!p->compiled) return NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION;
    for (auto& l : p->result.lowered)
        if (l.first == e) {
            *out = l.second.c_str();
            return NVRTC_SUCCESS;
        }
    return NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID;
}
EXPORT nvrtcResult nvrtcCompileProgram(nvrtcProgram p, int n, const char* const* options) {
    if (!p) return NVRTC_ERROR_INVALID_PROGRAM;
    p->source.options.clear();
    p->real = false;
    for (int i = 0; i < n; i++) {
        p->source.options.push_back(options[i]);
        if (strstr(options[i], "arch") && strstr(options[i], "sm_")) p->real = true;
        if (i && strstr(options[i - 1], "arch") && strncmp(options[i], "sm_", 3) == 0) p->real = true;
    }
    p->result = compiler::compile(p->source);
    p->compiled = p->result.ok;
    if (p->compiled) {
        p->ptx = compiler::text_of(p->result);
        return NVRTC_SUCCESS;
    }
    return (nvrtcResult)(p->result.error ? p->result.error : NVRTC_ERROR_COMPILATION);
}
static nvrtcResult size(nvrtcProgram p, const std::string& s, size_t extra, size_t* n) {
    if (!p || !n) return NVRTC_ERROR_INVALID_INPUT;
    *n = s.size() + extra;
    return NVRTC_SUCCESS;
}
static nvrtcResult give(nvrtcProgram p, const std::string& s, size_t extra, char* out) {
    if (!p || !out) return NVRTC_ERROR_INVALID_INPUT;
    memcpy(out, s.c_str(), s.size() + extra);
    return NVRTC_SUCCESS;
}
static const std::string nothing;
// As with NVRTC, a virtual architecture (compute_90) gives PTX alone.
EXPORT nvrtcResult nvrtcGetCUBINSize(nvrtcProgram p, size_t* n) { return size(p, p && p->real ? p->result.image : nothing, 0, n); }
EXPORT nvrtcResult nvrtcGetCUBIN(nvrtcProgram p, char* out) { return give(p, p && p->real ? p->result.image : nothing, 0, out); }
EXPORT nvrtcResult nvrtcGetPTXSize(nvrtcProgram p, size_t* n) { return size(p, p ? p->ptx : nothing, 1, n); }
EXPORT nvrtcResult nvrtcGetPTX(nvrtcProgram p, char* out) { return give(p, p ? p->ptx : nothing, 1, out); }
EXPORT nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram p, size_t* n) { return size(p, p ? p->result.log : nothing, 1, n); }
EXPORT nvrtcResult nvrtcGetProgramLog(nvrtcProgram p, char* out) { return give(p, p ? p->result.log : nothing, 1, out); }
#define NONE(name)                                                                                         \
    EXPORT nvrtcResult nvrtcGet##name##Size(nvrtcProgram p, size_t* n) { return size(p, nothing, 0, n); }  \
    EXPORT nvrtcResult nvrtcGet##name(nvrtcProgram, char*) { return NVRTC_ERROR_INVALID_INPUT; }
NONE(LTOIR) NONE(OptiXIR) NONE(TileIR) NONE(NVVM)
EXPORT nvrtcResult nvrtcGetPCHHeapSize(size_t* n) { *n = 0; return NVRTC_SUCCESS; }
EXPORT nvrtcResult nvrtcSetPCHHeapSize(size_t) { return NVRTC_SUCCESS; }
EXPORT nvrtcResult nvrtcGetPCHCreateStatus(nvrtcProgram) { return NVRTC_ERROR_INVALID_INPUT; }
EXPORT nvrtcResult nvrtcGetPCHHeapSizeRequired(nvrtcProgram, size_t* n) { *n = 0; return NVRTC_SUCCESS; }
EXPORT nvrtcResult nvrtcSetFlowCallback(nvrtcProgram, int (*)(void*, void*), void*) { return NVRTC_SUCCESS; }
