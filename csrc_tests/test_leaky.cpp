// Runs the CUDA launchers of the LeakyRNN recurrence without torch on cases that Python wrote to a file (python_tests/cuda/
// cases.py), each array in a heap block of its own, so that sanitizers see every access beyond it. Exits with 1 at the first
// difference from the results in the file.
//   test_leaky FILE
// A case: 15 int64 (kernel, strategy, order, seed, architecture, L, T, B, n, form, act, unit_leak, policy, window, inputs),
// 2 doubles (mu, decay), lengths; then the inputs and 4 outputs. An array: int64 lead (-1: absent), int64 count, doubles.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "emulator.h"
#include "kernels/cuda/launch.h"

namespace {

using rx::In;
using Number = double;

struct Array {
  int64_t lead = -1, count = 0;
  std::unique_ptr<Number[]> numbers;

  In<Number> in() const { return lead < 0 ? In<Number>{} : In<Number>{numbers.get(), lead == 1}; }
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
  a.numbers.reset(new Number[static_cast<size_t>(a.count)]);
  if (!read(a.numbers.get(), a.count)) std::abort();
  return a;
}

// What a stepwise run multiplies with: product = carry M or carry M^T, rows of a group under one matrix.
struct Multiply {
  const Number *carry, *matrix;
  Number* product;
  int64_t groups, rows, n;
  bool transposed;
  static void call(void* context) {
    const Multiply& m = *static_cast<const Multiply*>(context);
    for (int64_t g = 0; g < m.groups; ++g) {
      const Number* w = m.matrix + g * m.n * m.n;
      for (int64_t r = g * m.rows; r < (g + 1) * m.rows; ++r) {
        for (int64_t j = 0; j < m.n; ++j) {
          Number sum = 0;
          for (int64_t k = 0; k < m.n; ++k) sum += m.carry[r * m.n + k] * (m.transposed ? w[j * m.n + k] : w[k * m.n + j]);
          m.product[r * m.n + j] = sum;
        }
      }
    }
  }
};

template <class P>
const char* start(const P& p, int64_t strategy, bool transposed,
                  const char* (*run)(const P&, const rx::cuda::Launch<Number>&)) {
  rx::cuda::Launch<Number> launch{};
  if (const char* error = rx::cuda::describe(launch.card)) return error;
  launch.strategy = static_cast<rx::cuda::Strategy>(strategy);
  const int64_t rows = p.s.L * p.s.B, size = rows * p.s.n;
  std::unique_ptr<Number[]> kept[4];
  for (auto& k : kept) k.reset(new Number[static_cast<size_t>(size)]);
  launch.state = kept[0].get();
  launch.extra = kept[1].get();
  launch.carry = kept[2].get();
  launch.product = kept[3].get();
  Multiply multiply{launch.carry, p.w.p, launch.product, p.w.lead ? p.s.L : 1, p.w.lead ? p.s.B : rows, p.s.n, transposed};
  launch.multiply = &Multiply::call;
  launch.context = &multiply;
  return run(p, launch);
}

int run_case(int64_t number, const int64_t* h) {
  const auto [kernel, strategy, order, seed, architecture] = std::tuple(h[0], h[1], h[2], h[3], h[4]);
  Number options[2];
  if (!read(options, 2)) std::abort();
  rx::LeakyShape s{h[5],    h[6], h[7], h[8], static_cast<rx::Form>(h[9]), static_cast<rx::Activation>(h[10]), h[11] != 0,
                   nullptr, 0,    h[6], false};
  int64_t count = 0;
  if (!read(&count, 1)) std::abort();
  std::unique_ptr<int64_t[]> lengths(new int64_t[static_cast<size_t>(count)]);
  if (!read(lengths.get(), count)) std::abort();
  if (count > 0) s.lengths = lengths.get();
  std::vector<Array> a, expected;
  for (int64_t i = 0; i < h[14]; ++i) a.push_back(read_array());
  for (int64_t i = 0; i < 4; ++i) expected.push_back(read_array());
  std::unique_ptr<Number[]> out[4];
  Number* o[4] = {};
  for (int i = 0; i < 4; ++i) {
    if (expected[static_cast<size_t>(i)].count == 0) continue;
    out[i].reset(new Number[static_cast<size_t>(expected[static_cast<size_t>(i)].count)]);
    o[i] = out[i].get();
  }
  rx::emulator::options().order = static_cast<rx::emulator::Order>(order);
  rx::emulator::options().seed = static_cast<uint64_t>(seed);
  rx::emulator::set_architecture(static_cast<int>(architecture));
  auto in = [&](int i) { return a[static_cast<size_t>(i)].in(); };
  const char* error = nullptr;
  if (kernel == 0) {
    const rx::LeakyForward<Number> p{s, in(0), in(1), in(2), in(3), in(4), {}, nullptr, o[0], o[1], o[2]};
    error = start(p, strategy, true, &rx::cuda::forward<Number>);
  } else if (kernel == 1) {
    const rx::LeakyBackward<Number> p{s,          static_cast<rx::Transport>(h[12]),
                                      options[0], h[13],
                                      options[1], in(0),
                                      in(1),      in(2),
                                      in(3),      in(4),
                                      in(5),      in(6),
                                      o[0],       false,
                                      o[1],       o[2],
                                      o[3],       nullptr};
    error = start(p, strategy, false, &rx::cuda::backward<Number>);
  } else if (kernel == 2) {
    const rx::LeakyForwardJvp<Number> p{s,     in(0), in(1), in(2), in(3), {},   in(4), in(5),  in(6),
                                        in(7), in(8), o[0],  o[1],  o[2],  o[3], {},    nullptr};
    error = start(p, strategy, true, &rx::cuda::forward_jvp<Number>);
  } else {
    const rx::LeakyBackwardJvp<Number> p{s,     false, in(0), in(1),  in(2), in(3), in(4), in(5), in(6),
                                         in(7), in(8), in(9), in(10), o[0],  o[1],  o[2],  o[3]};
    error = start(p, strategy, false, &rx::cuda::backward_jvp<Number>);
  }
  if (error != nullptr) {
    std::printf("case %lld: %s\n", static_cast<long long>(number), error);
    return 1;
  }
  for (int i = 0; i < 4; ++i) {
    const Array& want = expected[static_cast<size_t>(i)];
    for (int64_t j = 0; j < want.count; ++j) {
      const Number difference = std::fabs(o[i][j] - want.numbers[static_cast<size_t>(j)]);
      if (!(difference <= 1e-9 * (1 + std::fabs(want.numbers[static_cast<size_t>(j)])))) {
        std::printf("case %lld, kernel %lld: result %d differs at %lld\n", static_cast<long long>(number),
                    static_cast<long long>(kernel), i, static_cast<long long>(j));
        return 1;
      }
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || (file = std::fopen(argv[1], "rb")) == nullptr) return 2;
  int64_t head[15], number = 0;
  for (; read(head, 15); ++number) {
    if (const int status = run_case(number, head)) return status;
  }
  std::fclose(file);
  std::printf("%lld cases\n", static_cast<long long>(number));
  return number > 0 ? 0 : 2;
}
