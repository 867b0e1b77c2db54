// A stack of its own and the switch to another one.
#pragma once
#include <cstddef>

struct Stack {
    char* base = nullptr;       // lowest usable address
    size_t size = 0;
    ~Stack();
    void reserve(size_t bytes);
};

#if defined(__x86_64__) && !defined(EMU_PORTABLE)
struct Context { void* sp = nullptr; };
// Inline, so that the compiler keeps only what it still needs: a switch then touches two or three lines of a stack, and a
// block of hundreds of fibers stays in the cache. It pushes, hence -mno-red-zone. r15 is the kernel's emu_self; it is saved
// by the functions that have it, as all registers here that the calling convention preserves.
static inline __attribute__((always_inline)) void context_switch(Context* from, Context* to) {
    void *f = &from->sp, *t = to->sp;
    asm volatile(
        "pushq %%rbp\n\t"
        "pushq %%rbx\n\t"
        "leaq 1f(%%rip), %%rax\n\t"
        "pushq %%rax\n\t"
        "movq %%rsp, (%%rdi)\n\t"
        "movq %%rsi, %%rsp\n\t"
        "popq %%rax\n\t"
        "jmpq *%%rax\n"
        "1:\n\t"
        "popq %%rbx\n\t"
        "popq %%rbp"
        : "+D"(f), "+S"(t)
        :
        : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
          "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
#else
#include <ucontext.h>
struct Context { ucontext_t uc; };
void context_switch(Context* from, Context* to);
#endif

// Prepares `c` so that the first switch to it calls entry(arg) on the stack. `color` shifts the top a little: stacks that
// are all aligned alike would fight for the same lines of the cache.
void context_make(Context* c, const Stack& stack, size_t color, void (*entry)(void*), void* arg);
// Calls run(args) with the register that kernels keep their thread in.
struct emu_thread;
void kernel_call(void (*run)(void**), void** args, emu_thread* self);
