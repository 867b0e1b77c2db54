#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "internal.h"

static const size_t page = 4096;

void Stack::reserve(size_t bytes) {
    // A guard page below: a kernel that overflows its stack faults instead of spoiling its neighbour's.
    void* p = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    mprotect(p, page, PROT_NONE);
    base = (char*)p + page;
    size = bytes;
}
Stack::~Stack() {
    if (base) munmap(base - page, size + page);
}

#if defined(__x86_64__) && !defined(EMU_PORTABLE)

extern "C" void emu_start();
extern "C" void emu_kernel_call(void (*run)(void**), void** args, emu_thread* self);
asm(R"(
.text
.globl emu_start
.hidden emu_start
.type emu_start,@function
emu_start:
    popq %rdi
    popq %rax
    callq *%rax
    ud2
.size emu_start,.-emu_start

.globl emu_kernel_call
.hidden emu_kernel_call
.type emu_kernel_call,@function
emu_kernel_call:
    pushq %r15
    movq %rdi, %rax
    movq %rsi, %rdi
    movq %rdx, %r15
    callq *%rax
    popq %r15
    ret
.size emu_kernel_call,.-emu_kernel_call
)");

void context_make(Context* c, const Stack& s, size_t color, void (*entry)(void*), void* arg) {
    uintptr_t top = ((uintptr_t)s.base + s.size - color) & ~(uintptr_t)63;
    void** sp = (void**)top;        // emu_start calls with the stack aligned to 16
    *--sp = (void*)entry;
    *--sp = arg;
    *--sp = (void*)emu_start;
    c->sp = sp;
}
void kernel_call(void (*run)(void**), void** args, emu_thread* self) { emu_kernel_call(run, args, self); }

#else

extern "C" __attribute__((visibility("default"))) __thread emu_thread* emu_self_tls;
__thread emu_thread* emu_self_tls;

static void start(unsigned e0, unsigned e1, unsigned a0, unsigned a1) {
    auto entry = (void (*)(void*))((uintptr_t)e0 | (uintptr_t)e1 << 32);
    entry((void*)((uintptr_t)a0 | (uintptr_t)a1 << 32));
    abort();
}
void context_make(Context* c, const Stack& s, size_t color, void (*entry)(void*), void* arg) {
    getcontext(&c->uc);
    c->uc.uc_stack.ss_sp = s.base;
    c->uc.uc_stack.ss_size = (s.size - color) & ~(size_t)63;
    c->uc.uc_link = nullptr;
    uintptr_t e = (uintptr_t)entry, a = (uintptr_t)arg;
    makecontext(&c->uc, (void (*)())start, 4, (unsigned)e, (unsigned)(e >> 32), (unsigned)a, (unsigned)(a >> 32));
}
void context_switch(Context* from, Context* to) {
    emu_thread* self = emu_self_tls;
    swapcontext(&from->uc, &to->uc);
    emu_self_tls = self;
}
void kernel_call(void (*run)(void**), void** args, emu_thread* self) {
    emu_self_tls = self;
    run(args);
}

#endif
