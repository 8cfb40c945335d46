#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace tilewright::emulation {

Stack::Stack(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  bytes_ = (bytes + page - 1) / page * page + page;
  // Memory is only taken where it is touched. The lowest page stays closed, so that an overflow ends in a fault there.
  base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base_ == MAP_FAILED || mprotect(base_, page, PROT_NONE) != 0) throw std::bad_alloc();
}

Stack::~Stack() {
  munmap(base_, bytes_);
#if !defined(__x86_64__) && !defined(__aarch64__)
  delete static_cast<ucontext_t*>(context_);
#endif
}

#if defined(__x86_64__)

// System V: rbx, rbp and r12 to r15 are kept, and the stack is a multiple of 16 before a call. A new stack holds six
// values to restore and an address to return to: `begin`, which calls rbx(r12).
asm(R"(
.text
.type tw_switch_context, @function
tw_switch_context:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tw_switch_context, .-tw_switch_context
.type tw_begin_context, @function
tw_begin_context:
  movq %r12, %rdi
  callq *%rbx
  ud2
.size tw_begin_context, .-tw_begin_context
)");
extern "C" void tw_switch_context(Context* from, Context to) __attribute__((visibility("hidden")));
extern "C" void tw_begin_context() __attribute__((visibility("hidden")));

Context Stack::start(void (*entry)(void*), void* argument) {
  auto* top = reinterpret_cast<uintptr_t*>(static_cast<char*>(base_) + bytes_);
  *--top = 0;  // nothing to return to, and one more, so that the stack is a multiple of 16 where `begin` calls
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(&tw_begin_context);
  *--top = 0;                                      // rbp
  *--top = reinterpret_cast<uintptr_t>(entry);     // rbx
  *--top = reinterpret_cast<uintptr_t>(argument);  // r12
  for (int i = 0; i < 3; ++i) *--top = 0;          // r13 to r15
  return top;
}

void switch_context(Context* from, Context to) { tw_switch_context(from, to); }

#elif defined(__aarch64__)

// AAPCS64: x19 to x30 and d8 to d15 are kept. A new stack restores x19 and x20, and returns to `begin`: x19(x20).
asm(R"(
.text
.type tw_switch_context, %function
tw_switch_context:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size tw_switch_context, .-tw_switch_context
.type tw_begin_context, %function
tw_begin_context:
  mov x0, x20
  blr x19
  brk #1
.size tw_begin_context, .-tw_begin_context
)");
extern "C" void tw_switch_context(Context* from, Context to) __attribute__((visibility("hidden")));
extern "C" void tw_begin_context() __attribute__((visibility("hidden")));

Context Stack::start(void (*entry)(void*), void* argument) {
  auto* frame = reinterpret_cast<uintptr_t*>(static_cast<char*>(base_) + bytes_) - 20;
  std::memset(frame, 0, 160);
  frame[0] = reinterpret_cast<uintptr_t>(entry);               // x19
  frame[1] = reinterpret_cast<uintptr_t>(argument);            // x20
  frame[11] = reinterpret_cast<uintptr_t>(&tw_begin_context);  // x30
  return frame;
}

void switch_context(Context* from, Context to) { tw_switch_context(from, to); }

#else

Context Stack::start(void (*entry)(void*), void* argument) {
  if (context_ == nullptr) context_ = new ucontext_t;
  auto* context = static_cast<ucontext_t*>(context_);
  getcontext(context);
  context->uc_stack.ss_sp = base_;
  context->uc_stack.ss_size = bytes_;
  context->uc_link = nullptr;
  // makecontext passes ints, so the pointers travel in halves.
  const auto e = reinterpret_cast<uintptr_t>(entry), a = reinterpret_cast<uintptr_t>(argument);
  const auto half = [](uintptr_t x, int high) { return static_cast<unsigned>(high ? uint64_t{x} >> 32 : x); };
  void (*begin)(unsigned, unsigned, unsigned, unsigned) = [](unsigned e0, unsigned e1, unsigned a0, unsigned a1) {
    const auto whole = [](unsigned low, unsigned high) { return static_cast<uintptr_t>(uint64_t{high} << 32 | low); };
    reinterpret_cast<void (*)(void*)>(whole(e0, e1))(reinterpret_cast<void*>(whole(a0, a1)));
  };
  makecontext(context, reinterpret_cast<void (*)()>(begin), 4, half(e, 0), half(e, 1), half(a, 0), half(a, 1));
  return context;
}

void switch_context(Context* from, Context to) {
  ucontext_t here;
  *from = &here;  // on the stack of the fiber that stops, so it is there until that fiber goes on
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

#endif

}  // namespace tilewright::emulation
