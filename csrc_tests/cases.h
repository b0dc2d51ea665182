// Runs CUDA launchers without torch on cases that Python wrote to a file, each array in a heap block of its own, so that
// sanitizers see every access beyond it. A driver exits with 1 at the first difference from the results in the file. Under
// nvcc the same on a GPU. An array in the file: int64 lead (-1: absent), int64 count, doubles.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/cuda/half.h"
#include "kernels/cuda/launch.h"

namespace rx {
namespace cases {

// Memory of the device, where there is one; each block on its own.
inline void* allocate(size_t bytes) {
#ifdef __CUDACC__
  void* p = nullptr;
  if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) {
    std::printf("no memory: %s\n", cuda::last_error());
    std::exit(3);
  }
  return p;
#else
  return std::malloc(bytes);
#endif
}
inline void release(void* p) {
#ifdef __CUDACC__
  cudaFree(p);
#else
  std::free(p);
#endif
}
// To or from it; waits for what was started before.
inline void copy(void* to, const void* from, size_t bytes) {
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
inline const char* finished() {
#ifdef __CUDACC__
  static_cast<void>(cudaDeviceSynchronize());
#endif
  return cuda::last_error();
}
inline void set_up(int64_t order, int64_t seed, int64_t architecture) {
#ifdef __CUDACC__
  static_cast<void>(order + seed + architecture);  // the device's own
#else
  emulator::options().order = static_cast<emulator::Order>(order);
  emulator::options().seed = static_cast<uint64_t>(seed);
  emulator::set_architecture(static_cast<int>(architecture));
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
    for (double x : a.numbers) numbers.push_back(cuda::narrow<T>(static_cast<ComputeOf<T>>(x)));
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

inline FILE* file = nullptr;

template <class T>
bool read(T* to, int64_t count) {
  return std::fread(to, sizeof(T), static_cast<size_t>(count), file) == static_cast<size_t>(count);
}
inline Array read_array() {
  Array a;
  int64_t head[2];
  if (!read(head, 2)) std::abort();
  a.lead = head[0];
  a.count = head[1];
  a.numbers.resize(static_cast<size_t>(a.count));
  if (!read(a.numbers.data(), a.count)) std::abort();
  return a;
}

// What a stepwise run multiplies with: product = carry M or carry M^T, rows of a group under one matrix (gates n, n).
template <class E>
struct Multiply {
  const E *carry, *matrix;  // (groups rows, n) or (groups rows, gates n); (groups, gates n, n)
  ComputeOf<E>* product;    // (groups rows, the other of n and gates n)
  int64_t groups, rows, n, gates;
  bool forward;  // M^T
  static void call(void* context) {
    const Multiply& m = *static_cast<const Multiply*>(context);
    const int64_t wide = m.gates * m.n, from = m.forward ? m.n : wide, to = m.forward ? wide : m.n;
    const std::vector<E> w = on_host(m.matrix, m.groups * wide * m.n), carry = on_host(m.carry, m.groups * m.rows * from);
    std::vector<ComputeOf<E>> product(static_cast<size_t>(m.groups * m.rows * to));
    auto at = [](const std::vector<E>& x, int64_t i) { return static_cast<double>(cuda::widen(x[static_cast<size_t>(i)])); };
    for (int64_t r = 0; r < m.groups * m.rows; ++r) {
      const int64_t matrix = r / m.rows * wide * m.n;
      for (int64_t j = 0; j < to; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < from; ++k) {
          sum += at(carry, r * from + k) * at(w, matrix + (m.forward ? j * m.n + k : k * m.n + j));
        }
        product[static_cast<size_t>(r * to + j)] = static_cast<ComputeOf<E>>(sum);
      }
    }
    copy(m.product, product.data(), sizeof(ComputeOf<E>) * product.size());
  }
};

template <class E, class P>
const char* start(Heap& heap, const P& p, int64_t strategy, int64_t gates, bool forward,
                  const char* (*run)(const P&, const cuda::Launch<E>&), int64_t extras = 1) {
  using T = ComputeOf<E>;
  cuda::Launch<E> launch{};
  if (const char* error = cuda::describe(launch.card)) return error;
  launch.strategy = static_cast<cuda::Strategy>(strategy);
  const int64_t rows = p.s.L * p.s.B, size = rows * p.s.n;
  launch.state = heap.fresh<T>(size);
  launch.extra = heap.fresh<T>(size * extras);
  launch.product = heap.fresh<T>(forward ? size * gates : size);
  launch.carry = heap.fresh<E>(forward ? size : size * gates);
  Multiply<E> multiply{launch.carry, p.w.p, launch.product, p.w.lead ? p.s.L : 1, p.w.lead ? p.s.B : rows,
                       p.s.n,        gates, forward};
  launch.multiply = &Multiply<E>::call;
  launch.context = &multiply;
  return run(p, launch);
}

template <class T>
bool equal(const T* results, const Array& want, double tolerance) {
  const std::vector<T> got = on_host(results, want.count);
  for (int64_t j = 0; j < want.count; ++j) {
    const double right = want.numbers[static_cast<size_t>(j)];
    if (!(std::fabs(static_cast<double>(cuda::widen(got[static_cast<size_t>(j)])) - right) <=
          tolerance * (1 + std::fabs(right))))
      return false;
  }
  return true;
}

// A case's arrays, beside what its own numbers say.
struct Case {
  std::vector<int64_t> lengths;
  std::vector<Array> inputs, expected;
};
inline Case read_case(int64_t inputs, int64_t results) {
  Case c;
  int64_t count = 0;
  if (!read(&count, 1)) std::abort();
  c.lengths.resize(static_cast<size_t>(count));
  if (!read(c.lengths.data(), count)) std::abort();
  for (int64_t i = 0; i < inputs; ++i) c.inputs.push_back(read_array());
  for (int64_t i = 0; i < results; ++i) c.expected.push_back(read_array());
  return c;
}

// Its arrays where kernels read and write them, in the elements' type and in that of computation.
template <class E>
class Operands {
 public:
  using T = ComputeOf<E>;
  explicit Operands(const Case& c) : case_(c), e_(c.expected.size()), t_(c.expected.size()) {}
  In<E> in(size_t i) { return heap.in<E>(case_.inputs[i]); }
  In<T> wide(size_t i) { return heap.in<T>(case_.inputs[i]); }
  E* out(size_t i) { return e_[i] = size(i) ? heap.fresh<E>(size(i)) : nullptr; }
  T* computed(size_t i) { return t_[i] = size(i) ? heap.fresh<T>(size(i)) : nullptr; }
  const int64_t* lengths() { return case_.lengths.empty() ? nullptr : heap.put(case_.lengths); }
  // What went wrong, if anything did: `error`, or a difference from the results in the file. 1 or 0.
  int judge(const char* error, int64_t number_of_case, int64_t kernel, double tolerance) const {
    if (error == nullptr) error = finished();
    if (error != nullptr) {
      std::printf("case %lld: %s\n", static_cast<long long>(number_of_case), error);
      return 1;
    }
    for (size_t i = 0; i < e_.size(); ++i) {
      const Array& want = case_.expected[i];
      if (e_[i] ? equal(e_[i], want, tolerance) : !t_[i] || equal(t_[i], want, tolerance)) continue;
      std::printf("case %lld, kernel %lld, %d bytes an element: result %d differs\n", static_cast<long long>(number_of_case),
                  static_cast<long long>(kernel), static_cast<int>(sizeof(E)), static_cast<int>(i));
      return 1;
    }
    return 0;
  }
  Heap heap;

 private:
  int64_t size(size_t i) const { return case_.expected[i].count; }
  const Case& case_;
  std::vector<E*> e_;
  std::vector<T*> t_;
};

// Runs every case of the file, `head` numbers each; run(element type, number of the case, numbers) returns 0 if it is right.
template <int Head, class Run>
int run_file(int argc, char** argv, int type_at, Run&& run) {
  if (argc != 2 || (file = std::fopen(argv[1], "rb")) == nullptr) return 2;
  int64_t head[Head], number = 0;
  for (; read(head, Head); ++number) {
    const int64_t type = head[type_at];
    const int status = type == 1   ? run(float{}, number, head)
                       : type == 2 ? run(BFloat16{}, number, head)
                       : type == 3 ? run(Float16{}, number, head)
                                   : run(double{}, number, head);
    if (status) return status;
  }
  std::fclose(file);
  std::printf("%lld cases\n", static_cast<long long>(number));
  return number > 0 ? 0 : 2;
}

}  // namespace cases
}  // namespace rx
