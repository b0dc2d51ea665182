// Runs the CUDA launchers of the LeakyRNN recurrence without torch on cases that Python wrote to a file (python_tests/
// leaky_cases.py), each array in a heap block of its own, so that sanitizers see every access beyond it. Exits with 1 at the
// first difference from the results in the file.
//   test_leaky FILE
// A case: 16 int64 (kernel, strategy, order, seed, architecture, L, T, B, n, form, act, unit_leak, policy, window, inputs,
// element type: 0 double, 1 float, 2 bfloat16, 3 float16), 3 doubles (mu, decay, tolerance), lengths; then the inputs and 4
// outputs. An array: int64 lead (-1: absent), int64 count, doubles.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#include "kernels/cuda/half.h"
#include "kernels/cuda/launch.h"

namespace {

using rx::ComputeOf;
using rx::In;

// Memory of the device, where there is one; each block on its own.
void* allocate(size_t bytes) {
#ifdef __CUDACC__
  void* p = nullptr;
  if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
    std::printf("no memory: %s\n", rx::cuda::last_error());
    std::exit(3);
  }
  return p;
#else
  return std::malloc(bytes);
#endif
}
void release(void* p) {
#ifdef __CUDACC__
  cudaFree(p);
#else
  std::free(p);
#endif
}
// To or from it; waits for what was started before.
void copy(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
#ifdef __CUDACC__
  static_cast<void>(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
#else
  std::memcpy(to, from, bytes);
#endif
}
template <class T>
std::vector<T> on_host(const T* p, int64_t count) {
  std::vector<T> numbers(static_cast<size_t>(count));
  copy(numbers.data(), p, sizeof(T) * numbers.size());
  return numbers;
}
// Null when all that was started is done without an error.
const char* finished() {
#ifdef __CUDACC__
  static_cast<void>(cudaDeviceSynchronize());
#endif
  return rx::cuda::last_error();
}
void set_up(int64_t order, int64_t seed, int64_t architecture) {
#ifdef __CUDACC__
  static_cast<void>(order + seed + architecture);  // the device's own
#else
  rx::emulator::options().order = static_cast<rx::emulator::Order>(order);
  rx::emulator::options().seed = static_cast<uint64_t>(seed);
  rx::emulator::set_architecture(static_cast<int>(architecture));
#endif
}

struct Array {
  int64_t lead = -1, count = 0;
  std::vector<double> numbers;
};

// Arrays of element type E or ComputeOf<E>, each in a block of its own.
class Heap {
 public:
  template <class T>
  In<T> in(const Array& a) {
    if (a.lead < 0) return {};
    std::vector<T> numbers;
    for (double x : a.numbers) numbers.push_back(rx::cuda::narrow<T>(static_cast<ComputeOf<T>>(x)));
    T* p = put(numbers);
    return {p, a.lead == 1};
  }
  template <class T>
  T* put(const std::vector<T>& numbers) {
    T* p = fresh<T>(static_cast<int64_t>(numbers.size()));
    copy(p, numbers.data(), sizeof(T) * numbers.size());
    return p;
  }
  template <class T>
  T* fresh(int64_t count) {
    blocks_.emplace_back(allocate(sizeof(T) * static_cast<size_t>(count)), release);
    return static_cast<T*>(blocks_.back().get());
  }

 private:
  std::vector<std::unique_ptr<void, void (*)(void*)>> blocks_;
};

FILE* file = nullptr;

template <class T>
bool read(T* to, int64_t count) {
  return std::fread(to, sizeof(T), static_cast<size_t>(count), file) == static_cast<size_t>(count);
}
Array read_array() {
  Array a;
  int64_t head[2];
  if (!read(head, 2)) std::abort();
  a.lead = head[0];
  a.count = head[1];
  a.numbers.resize(static_cast<size_t>(a.count));
  if (!read(a.numbers.data(), a.count)) std::abort();
  return a;
}

// What a stepwise run multiplies with: product = carry M or carry M^T, rows of a group under one matrix.
template <class E>
struct Multiply {
  const E *carry, *matrix;
  ComputeOf<E>* product;
  int64_t groups, rows, n;
  bool transposed;
  static void call(void* context) {
    const Multiply& m = *static_cast<const Multiply*>(context);
    const std::vector<E> w = on_host(m.matrix, m.groups * m.n * m.n), carry = on_host(m.carry, m.groups * m.rows * m.n);
    std::vector<ComputeOf<E>> product(carry.size());
    auto at = [](const std::vector<E>& x, int64_t i) {
      return static_cast<double>(rx::cuda::widen(x[static_cast<size_t>(i)]));
    };
    for (int64_t r = 0; r < m.groups * m.rows; ++r) {
      const int64_t matrix = r / m.rows * m.n * m.n;
      for (int64_t j = 0; j < m.n; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < m.n; ++k) {
          sum += at(carry, r * m.n + k) * at(w, matrix + (m.transposed ? j * m.n + k : k * m.n + j));
        }
        product[static_cast<size_t>(r * m.n + j)] = static_cast<ComputeOf<E>>(sum);
      }
    }
    copy(m.product, product.data(), sizeof(ComputeOf<E>) * product.size());
  }
};

template <class E, class P>
const char* start(Heap& heap, const P& p, int64_t strategy, bool transposed,
                  const char* (*run)(const P&, const rx::cuda::Launch<E>&)) {
  using T = ComputeOf<E>;
  rx::cuda::Launch<E> launch{};
  if (const char* error = rx::cuda::describe(launch.card)) return error;
  launch.strategy = static_cast<rx::cuda::Strategy>(strategy);
  const int64_t rows = p.s.L * p.s.B, size = rows * p.s.n;
  launch.state = heap.fresh<T>(size);
  launch.extra = heap.fresh<T>(size);
  launch.product = heap.fresh<T>(size);
  launch.carry = heap.fresh<E>(size);
  Multiply<E> multiply{launch.carry, p.w.p, launch.product, p.w.lead ? p.s.L : 1, p.w.lead ? p.s.B : rows, p.s.n, transposed};
  launch.multiply = &Multiply<E>::call;
  launch.context = &multiply;
  return run(p, launch);
}

template <class T>
bool equal(const T* results, const Array& want, double tolerance) {
  const std::vector<T> got = on_host(results, want.count);
  for (int64_t j = 0; j < want.count; ++j) {
    const double right = want.numbers[static_cast<size_t>(j)];
    if (!(std::fabs(static_cast<double>(rx::cuda::widen(got[static_cast<size_t>(j)])) - right) <=
          tolerance * (1 + std::fabs(right))))
      return false;
  }
  return true;
}

template <class E>
int run_case(int64_t number_of_case, const int64_t* h) {
  using T = ComputeOf<E>;
  const auto [kernel, strategy, order, seed, architecture] = std::tuple(h[0], h[1], h[2], h[3], h[4]);
  double options[3];
  if (!read(options, 3)) std::abort();
  rx::LeakyShape s{h[5],    h[6], h[7], h[8], static_cast<rx::Form>(h[9]), static_cast<rx::Activation>(h[10]), h[11] != 0,
                   nullptr, 0,    h[6], false};
  Heap heap;
  int64_t count = 0;
  if (!read(&count, 1)) std::abort();
  std::vector<int64_t> lengths(static_cast<size_t>(count));
  if (!read(lengths.data(), count)) std::abort();
  if (count > 0) s.lengths = heap.put(lengths);
  std::vector<Array> a, expected;
  for (int64_t i = 0; i < h[14]; ++i) a.push_back(read_array());
  for (int64_t i = 0; i < 4; ++i) expected.push_back(read_array());
  auto at = [](const std::vector<Array>& all, int i) -> const Array& { return all[static_cast<size_t>(i)]; };
  auto size = [&](int i) { return at(expected, i).count; };
  E* e[4] = {};
  T* t[4] = {};  // results in the type of computation
  auto out = [&](int i) { return e[i] = size(i) ? heap.fresh<E>(size(i)) : nullptr; };
  auto computed = [&](int i) { return t[i] = size(i) ? heap.fresh<T>(size(i)) : nullptr; };
  auto in = [&](int i) { return heap.in<E>(at(a, i)); };
  auto wide = [&](int i) { return heap.in<T>(at(a, i)); };
  set_up(order, seed, architecture);
  const char* error = nullptr;
  if (kernel == 0) {
    const rx::LeakyForward<T, E> p{s, in(0), in(1), in(2), in(3), wide(4), {}, nullptr, out(0), computed(1), out(2)};
    error = start<E>(heap, p, strategy, true, &rx::cuda::forward<E>);
  } else if (kernel == 1) {
    const rx::LeakyBackward<T, E> p{s,           static_cast<rx::Transport>(h[12]),
                                    options[0],  h[13],
                                    options[1],  in(0),
                                    wide(1),     in(2),
                                    in(3),       wide(4),
                                    in(5),       wide(6),
                                    out(0),      false,
                                    out(1),      out(2),
                                    computed(3), nullptr};
    error = start<E>(heap, p, strategy, false, &rx::cuda::backward<E>);
  } else if (kernel == 2) {
    const rx::LeakyForwardJvp<T, E> p{s,     in(0),   in(1),  in(2),       wide(3), {},     in(4), wide(5), in(6),
                                      in(7), wide(8), out(0), computed(1), out(2),  out(3), {},    nullptr};
    error = start<E>(heap, p, strategy, true, &rx::cuda::forward_jvp<E>);
  } else {
    const rx::LeakyBackwardJvp<T, E> p{s,       false, in(0), in(1),    wide(2), in(3),  wide(4), in(5),      wide(6),
                                       wide(7), in(8), in(9), wide(10), out(0),  out(1), out(2),  computed(3)};
    error = start<E>(heap, p, strategy, false, &rx::cuda::backward_jvp<E>);
  }
  if (error == nullptr) error = finished();
  if (error != nullptr) {
    std::printf("case %lld: %s\n", static_cast<long long>(number_of_case), error);
    return 1;
  }
  for (int i = 0; i < 4; ++i) {
    if (e[i] ? equal(e[i], at(expected, i), options[2]) : !t[i] || equal(t[i], at(expected, i), options[2])) continue;
    std::printf("case %lld, kernel %lld, element type %lld: result %d differs\n", static_cast<long long>(number_of_case),
                static_cast<long long>(kernel), static_cast<long long>(h[15]), i);
    return 1;
  }
  return 0;
}

int run_any(int64_t number_of_case, const int64_t* h) {
  if (h[15] == 1) return run_case<float>(number_of_case, h);
  if (h[15] == 2) return run_case<rx::BFloat16>(number_of_case, h);
  if (h[15] == 3) return run_case<rx::Float16>(number_of_case, h);
  return run_case<double>(number_of_case, h);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || (file = std::fopen(argv[1], "rb")) == nullptr) return 2;
  int64_t head[16], number = 0;
  for (; read(head, 16); ++number) {
    if (const int status = run_any(number, head)) return status;
  }
  std::fclose(file);
  std::printf("%lld cases\n", static_cast<long long>(number));
  return number > 0 ? 0 : 2;
}
