// The emulator's scheduler: fibers, barriers, exchanges within a warp, shared memory, deferred copies, launches.
#include "emulator.h"

#include <mutex>

#include "emulator_state.h"

// The macros for kernels would hide these names.
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace rx::emulator {

Thread* current = nullptr;

namespace {

uint64_t random_below(uint64_t bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state % bound;
}

void wait(State state, Site site) {
  running->state = state;
  running->site = site;
  running->stack.leave(launcher, false);
}

void entry() {
  FiberStack::started(launcher);
  acquire(start_order);
  (*body)();
  release(end_order);
  running->state = State::Exited;
  running->stack.leave(launcher, true);
  std::abort();
}

void* shared_memory(size_t bytes) {
  void* p = std::malloc(bytes);
#ifndef RX_EMULATOR_MSAN  // for which it is uninitialised; else NaN
  if (p) std::memset(p, 0xff, bytes);
#endif
  return p;
}

// Says for whom a lane waits in vain.
void report_missing_lane(const Fiber& f) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!((f.mask >> lane) & 1u)) continue;
    const int number = f.thread.warp * 32 + lane;
    const Fiber* peer = number < threads ? fibers[number].get() : nullptr;
    if (peer && peer->state == State::Warp && peer->mask == f.mask) continue;
    if (!peer) return report(f, "a warp operation with the mask %08x waits for lane %d, which does not exist", f.mask, lane);
    if (peer->state == State::Exited)
      return report(f, "a warp operation with the mask %08x waits for lane %d, which has exited", f.mask, lane);
    return report(f, "a warp operation with the mask %08x waits for lane %d, which waits at %s:%d", f.mask, lane,
                  peer->site.file, peer->site.line);
  }
}

// No thread can go on: frees those at the barrier, or reports why that is wrong.
void release_barrier() {
  Fiber *first = nullptr, *other = nullptr, *exited = nullptr;
  int waiting = 0, gone = 0;
  Votes votes = {0, true, false};
  for (int i = 0; i < threads; ++i) {
    Fiber& f = *fibers[i];
    if (f.state == State::Warp) return report_missing_lane(f);
    if (f.state == State::Exited) {
      ++gone;
      exited = &f;
      continue;
    }
    ++waiting;
    if (!first) first = &f;
    if (!same(f.site, first->site)) other = &f;
    votes.count += f.predicate != 0;
    votes.all = votes.all && f.predicate != 0;
    votes.any = votes.any || f.predicate != 0;
  }
  if (options().strict && other) {
    const uint3 t = first->thread.thread_index;
    report(*other, "waits at this barrier while thread (%u, %u, %u) of the block waits at another, %s:%d", t.x, t.y, t.z,
           first->site.file, first->site.line);
  } else if (options().strict && gone) {
    const uint3 t = exited->thread.thread_index;
    report(*first, "%d threads wait at a barrier while %d of the block have exited, such as thread (%u, %u, %u)", waiting, gone,
           t.x, t.y, t.z);
  }
  if (failed) return;
  block->votes = votes;
  ++block->generation;
  for (int i = 0; i < threads; ++i)
    if (fibers[i]->state == State::Barrier) fibers[i]->state = State::Ready;
}

void run_block() {
  std::vector<Fiber*> ready;
  for (;;) {
    ready.clear();
    int exited = 0;
    for (int i = 0; i < threads; ++i) {
      if (fibers[i]->state == State::Ready) ready.push_back(fibers[i].get());
      exited += fibers[i]->state == State::Exited;
    }
    if (exited == threads || failed) return;
    if (ready.empty()) release_barrier();
    if (options().order == Order::Reversed) std::reverse(ready.begin(), ready.end());
    if (options().order == Order::Random)
      for (size_t i = ready.size(); i > 1; --i) std::swap(ready[i - 1], ready[random_below(i)]);
    for (Fiber* fiber : ready) {
      running = fiber;
      current = &fiber->thread;
      fiber->stack.enter(launcher);
      current = nullptr;
      if (failed) return;
    }
  }
}

void start_block(uint64_t number, dim3 grid, dim3 size, size_t shared) {
  block = std::make_unique<Block>();
  block->warps.resize((threads + 31) / 32);
  if (shared > 0) block->dynamic = {nullptr, shared_memory(shared), shared};
  const uint64_t x = number % grid.x, y = number / grid.x % grid.y, z = number / (uint64_t{grid.x} * grid.y);
  for (int i = 0; i < threads; ++i) {
    Fiber& f = *fibers[i];
    const unsigned t = static_cast<unsigned>(i);
    f.thread = {{t % size.x, t / size.x % size.y, t / (size.x * size.y)},
                {static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)},
                size,
                grid,
                i,
                i & 31,
                i >> 5};
    f.state = State::Ready;
    f.copies.assign(1, {});
    f.stack.restart(entry);
  }
}

bool allowed(const void* kernel, dim3 grid, dim3 size, size_t shared) {
  const uint64_t count = uint64_t{size.x} * size.y * size.z;
  if (count < 1 || count > 1024 || size.x > 1024 || size.y > 1024 || size.z > 64)
    return refuse(kConfiguration, "block of (%u, %u, %u) threads, at most 1024 in all and 64 along z", size.x, size.y, size.z);
  if (grid.x < 1 || grid.x > 0x7fffffffu || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535)
    return refuse(kConfiguration, "grid of (%u, %u, %u) blocks, at most (2^31 - 1, 65535, 65535)", grid.x, grid.y, grid.z);
  const size_t most = static_cast<size_t>(options().limits.max_dynamic_shared);
  size_t limit = std::min<size_t>(48 << 10, most);
  for (const Kernel& k : kernels)
    if (k.kernel == kernel) limit = std::min(std::max(limit, k.max_dynamic_shared), most);
  if (shared > limit)
    return refuse(kValue, "%zu bytes of dynamic shared memory, %zu allowed by default or set_max_dynamic_shared", shared,
                  limit);
  return true;
}

}  // namespace

Options& options() {
  static Options chosen;
  return chosen;
}

bool set_architecture(int sm) {
  const struct {
    int sm;
    int64_t shared;
    int count, threads;
  } known[] = {{75, 64, 68, 1024},   {80, 163, 108, 2048},  {86, 99, 84, 1536},  {89, 99, 128, 1536},
               {90, 227, 132, 2048}, {100, 227, 148, 2048}, {120, 99, 170, 1536}};
  for (const auto& k : known)
    if (k.sm == sm) {
      options().limits = {sm / 10, sm % 10, k.shared << 10, k.count, k.threads};
      return true;
    }
  return false;
}

void fail(Site site, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  report(running, site, format, arguments);
  va_end(arguments);
  running->stack.leave(launcher, true);  // abort_on_error is false: the launch ends
  std::abort();
}

Votes barrier(Site site, int predicate) {
  char& order = block->order[block->generation & 1];
  running->predicate = predicate;
  release(order);
  wait(State::Barrier, site);
  acquire(order);
  return block->votes;
}

void fence() {
  release(fence_order);
  acquire(fence_order);
}

const Slot* exchange(Site site, unsigned mask, const Slot& mine, bool orders_memory) {
  const int lane = running->thread.lane;
  if (!((mask >> lane) & 1u)) fail(site, "lane %d takes part in a warp operation whose mask %08x leaves it out", lane, mask);
  auto& groups = block->warps[running->thread.warp];
  Group* group = nullptr;
  for (const auto& g : groups)
    if (g->mask == mask) group = g.get();
  if (!group) {
    const AsLauncher as;
    groups.push_back(std::make_unique<Group>());
    group = groups.back().get();
    group->mask = mask;
  }
  if (group->arrived && !same(group->site, site))
    fail(site, "lanes of one warp meet in different operations, the other at %s:%d", group->site.file, group->site.line);
  const unsigned parity = group->generation & 1;
  group->site = site;
  group->slots[parity][lane] = mine;
  group->arrived |= 1u << lane;
  if (orders_memory) release(group->order[parity]);
  if (group->arrived == mask) {
    group->arrived = 0;
    ++group->generation;
    for (int l = 0; l < 32; ++l)
      if ((mask >> l) & 1u) {
        Fiber& peer = *fibers[running->thread.warp * 32 + l];
        if (peer.state == State::Warp && peer.mask == mask) peer.state = State::Ready;
      }
  } else {
    running->mask = mask;
    wait(State::Warp, site);
  }
  if (orders_memory) acquire(group->order[parity]);
  return group->slots[parity];
}

Slot read(const Slot* slots, int lane) {
  return slots[lane];
}

void* static_shared(Site site, const void* key, size_t bytes) {
  size_t sum = bytes;
  for (const Shared& s : block->shared) {
    if (s.key == key) {
      acquire(block->shared_order);
      return s.p;
    }
    sum += s.bytes;
  }
  if (sum > 48 << 10) fail(site, "%zu bytes of static shared memory, at most 49152", sum);
  const size_t limit = static_cast<size_t>(options().limits.max_dynamic_shared), all = sum + block->dynamic.bytes;
  if (all > limit) fail(site, "%zu bytes of static and dynamic shared memory, at most %zu", all, limit);
  void* p;
  {
    const AsLauncher as;
    p = shared_memory(bytes);
    block->shared.push_back({key, p, bytes});
    release(block->shared_order);
  }
  acquire(block->shared_order);
  return p;
}

void* dynamic_shared() {
  return block->dynamic.p;
}

void copy_async(Site site, void* to, const void* from, int bytes, int valid) {
  const uintptr_t low = reinterpret_cast<uintptr_t>(to), both = low | reinterpret_cast<uintptr_t>(from);
  if (both & static_cast<uintptr_t>(bytes - 1)) fail(site, "an asynchronous copy of %d bytes is not aligned to them", bytes);
  if (valid < 0 || valid > bytes) fail(site, "an asynchronous copy of %d bytes reads %d", bytes, valid);
  const auto holds = [low](const Shared& s) { return low - reinterpret_cast<uintptr_t>(s.p) < s.bytes; };
  if (!holds(block->dynamic) && std::none_of(block->shared.begin(), block->shared.end(), holds))
    fail(site, "an asynchronous copy goes to %p, which is no shared memory of the block", to);
#ifdef RX_EMULATOR_MSAN
  __msan_poison(to, static_cast<size_t>(bytes));
#else
  std::memset(to, 0xff, static_cast<size_t>(bytes));  // NaN until the copy is waited for
#endif
  const AsLauncher as;
  running->copies.back().push_back({to, from, bytes, valid});
}

void copy_commit() {
  const AsLauncher as;
  running->copies.emplace_back();
}

void copy_wait(int keep) {
  std::vector<std::vector<Copy>>& groups = running->copies;
  while (static_cast<int>(groups.size()) - 1 > keep) {
    for (const Copy& c : groups.front()) {
      std::memcpy(c.to, c.from, static_cast<size_t>(c.valid));
      std::memset(static_cast<char*>(c.to) + c.valid, 0, static_cast<size_t>(c.bytes - c.valid));
    }
    const AsLauncher as;
    groups.erase(groups.begin());
  }
}

bool set_max_dynamic_shared(const void* kernel, size_t bytes) {
  kernel_name = "(set_max_dynamic_shared)";
  if (bytes > static_cast<size_t>(options().limits.max_dynamic_shared))
    return refuse(kValue, "%zu bytes of dynamic shared memory, at most %lld on sm_%d%d", bytes,
                  static_cast<long long>(options().limits.max_dynamic_shared), options().limits.major, options().limits.minor);
  for (Kernel& k : kernels)
    if (k.kernel == kernel) {
      k.max_dynamic_shared = bytes;
      return true;
    }
  kernels.push_back({kernel, bytes});
  return true;
}

void launch(const char* name, const void* kernel, dim3 grid, dim3 size, size_t shared, const std::function<void()>& run) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  kernel_name = name;
  if (!allowed(kernel, grid, size, shared)) return;
  body = &run;
  failed = false;
  threads = static_cast<int>(size.x * size.y * size.z);
  random_state = (options().seed * 0x9e3779b97f4a7c15u) | 1;
  while (static_cast<int>(fibers.size()) < threads) fibers.push_back(std::make_unique<Fiber>());
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint64_t> order;
  if (options().order == Order::Random) {
    order.resize(blocks);
    for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
    for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
  }
#ifdef RX_EMULATOR_TSAN
  // Nothing is given back before the end: an address or a TSan fiber in use again would hide races between blocks.
  std::vector<std::unique_ptr<Block>> kept_blocks;
  std::vector<void*> kept_fibers;
  const auto destroy_fibers = [&] {
    for (void* fiber : kept_fibers) __tsan_destroy_fiber(fiber);
    kept_fibers.clear();
  };
  launcher.tsan = __tsan_get_current_fiber();
#endif
  release(start_order);
  for (uint64_t i = 0; i < blocks && !failed; ++i) {
#ifdef RX_EMULATOR_TSAN
    if (kept_fibers.size() + static_cast<size_t>(threads) > 7800) destroy_fibers();  // TSan knows 8192 at a time
#endif
    start_block(!order.empty() ? order[i] : options().order == Order::Reversed ? blocks - 1 - i : i, grid, size, shared);
    run_block();
#ifdef RX_EMULATOR_TSAN
    for (int t = 0; t < threads; ++t) kept_fibers.push_back(fibers[t]->stack.tsan);
    kept_blocks.push_back(std::move(block));
#endif
    block.reset();
  }
#ifdef RX_EMULATOR_TSAN
  for (int t = 0; failed && t < threads; ++t) {  // who did not get to the end is over all the same
    __tsan_switch_to_fiber(fibers[t]->stack.tsan, 1);
    release(end_order);
  }
  __tsan_switch_to_fiber(launcher.tsan, 1);
#endif
  acquire(end_order);
#ifdef RX_EMULATOR_TSAN
  destroy_fibers();
#endif
  if (failed) fibers.clear();  // with stacks that nobody returns from
}

}  // namespace rx::emulator

rx::cuda::Limits rx::cuda::limits() {
  return emulator::options().limits;
}

const char* rx::cuda::last_error() {
  using emulator::message;
  using emulator::told;
  if (message[0] == '\0') return nullptr;
  std::memcpy(told, message, sizeof told);
  message[0] = '\0';
  return told;
}
