// A stack of its own that code can leave and come back to, known to the sanitizers. For emulator.cpp alone.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define RX_FIBER_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RX_FIBER_ASAN
#endif
#endif
#ifdef RX_FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef RX_EMULATOR_MSAN
extern "C" void __msan_start_switch_fiber(const void* stack, size_t bytes);
extern "C" void __msan_finish_switch_fiber(const void** stack, size_t* bytes);
#endif
#ifdef RX_EMULATOR_TSAN  // given by hand: this file must be compiled without -fsanitize=thread
extern "C" void* __tsan_get_current_fiber();
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void __tsan_destroy_fiber(void* fiber);
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#endif

#if defined(__x86_64__) && !defined(RX_FIBER_UCONTEXT)
extern "C" void rx_fiber_switch(void** from, void* to);
asm(R"(
.text
.globl rx_fiber_switch
.type rx_fiber_switch,@function
rx_fiber_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size rx_fiber_switch,.-rx_fiber_switch
)");
#else
#include <ucontext.h>
#endif

namespace rx::emulator {

constexpr size_t kStackBytes = 256 << 10, kGuardBytes = 4096;

#if defined(__x86_64__) && !defined(RX_FIBER_UCONTEXT)
struct Context {
  void* stack_pointer = nullptr;
};
inline void switch_context(Context& from, Context& to) {
  rx_fiber_switch(&from.stack_pointer, to.stack_pointer);
}
inline void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStackBytes - 64);  // a multiple of 16
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
#else
struct Context {
  ucontext_t u;
};
inline void switch_context(Context& from, Context& to) {
  swapcontext(&from.u, &to.u);
}
inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.u);
  context.u.uc_stack.ss_sp = stack + kGuardBytes;
  context.u.uc_stack.ss_size = kStackBytes - kGuardBytes;
  context.u.uc_link = nullptr;
  makecontext(&context.u, entry, 0);
}
#endif

// The stack the launch was called on.
struct Launcher {
  Context context;
  const void* stack = nullptr;
  size_t bytes = 0;
  void* fake = nullptr;
  void* tsan = nullptr;
};

class FiberStack {
 public:
  FiberStack() {
    void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<char*>(p);
    mprotect(stack_, kGuardBytes, PROT_NONE);
  }
  ~FiberStack() {
#ifdef RX_FIBER_ASAN
    __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
    munmap(stack_, kStackBytes);
  }
  FiberStack(const FiberStack&) = delete;
  FiberStack& operator=(const FiberStack&) = delete;

  // Makes the next enter() call `entry`, which calls started() first and leave(launcher, true) last.
  void restart(void (*entry)()) {
#ifdef RX_FIBER_ASAN
    __asan_unpoison_memory_region(stack_ + kStackBytes - 16384, 16384);
#endif
#ifdef RX_EMULATOR_TSAN  // a fresh mapping: TSan forgets what the fiber before did here
    mmap(stack_ + kGuardBytes, kStackBytes - kGuardBytes, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    tsan = __tsan_create_fiber(0);
#endif
    prepare(context_, stack_, entry);
  }

  void enter(Launcher& launcher) {
#ifdef RX_FIBER_ASAN
    __sanitizer_start_switch_fiber(&launcher.fake, stack_, kStackBytes);
#endif
#ifdef RX_EMULATOR_MSAN
    __msan_start_switch_fiber(stack_, kStackBytes);
#endif
#ifdef RX_EMULATOR_TSAN
    __tsan_switch_to_fiber(tsan, 1);
#endif
    switch_context(launcher.context, context_);
#ifdef RX_FIBER_ASAN
    const void* stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(launcher.fake, &stack, &bytes);
#endif
#ifdef RX_EMULATOR_MSAN
    const void* stack;
    size_t bytes;
    __msan_finish_switch_fiber(&stack, &bytes);
#endif
  }

  static void started([[maybe_unused]] Launcher& launcher, [[maybe_unused]] void* fake = nullptr) {
#ifdef RX_FIBER_ASAN
    __sanitizer_finish_switch_fiber(fake, &launcher.stack, &launcher.bytes);
#endif
#ifdef RX_EMULATOR_MSAN
    __msan_finish_switch_fiber(&launcher.stack, &launcher.bytes);
#endif
  }

  void leave(Launcher& launcher, [[maybe_unused]] bool for_good) {
    void* fake = nullptr;
#ifdef RX_FIBER_ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, launcher.stack, launcher.bytes);
#endif
#ifdef RX_EMULATOR_MSAN
    __msan_start_switch_fiber(launcher.stack, launcher.bytes);
#endif
#ifdef RX_EMULATOR_TSAN
    __tsan_switch_to_fiber(launcher.tsan, 1);
#endif
    switch_context(context_, launcher.context);
    started(launcher, fake);
  }

  void* tsan = nullptr;

 private:
  char* stack_;
  Context context_;
};

}  // namespace rx::emulator
