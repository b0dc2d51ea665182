// Runs the CUDA launchers of trace updates without torch, each array in a heap block of its own, so that sanitizers see every
// access beyond it and TSan every race. Compares with plain loops; exits with 1 at the first difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "emulator.h"
#include "kernels/cuda/trace.h"

namespace {

struct Case {
  int64_t B, S, n, gates, Q, K, signals, commit;
  bool rows_first;  // memory layout (R, B, S, Q)
};

struct Array {
  std::unique_ptr<double[]> p;
  int64_t size;
  explicit Array(int64_t count) : p(new double[static_cast<size_t>(count)]), size(count) {}
  Array(int64_t count, std::mt19937& random) : Array(count) {
    std::normal_distribution<double> normal(0, 1);
    for (int64_t i = 0; i < count; ++i) p[i] = normal(random);
  }
  double& operator[](int64_t i) const { return p[i]; }
  std::vector<double> copy() const { return {p.get(), p.get() + size}; }
};

bool differs(const char* what, const Array& got, const std::vector<double>& want) {
  for (int64_t i = 0; i < got.size; ++i) {
    const double x = want[static_cast<size_t>(i)];
    if (std::abs(got[i] - x) <= 1e-11 * std::fmax(1, std::abs(x))) continue;
    std::printf("%s[%d]: got %g, expected %g\n", what, static_cast<int>(i), got[i], x);
    return true;
  }
  return false;
}

bool failed(const char* error) {
  if (error) std::printf("%s\n", error);
  return error != nullptr;
}

// One parameter's trace in one row of the batch through all steps, and what its gradient gains at each signal.
struct Loop {
  const Case& c;
  const Array &decay, &psi, &signal;
  void run(int64_t b, int64_t r, const std::vector<double>& pre, std::vector<double>& e, std::vector<double>& stored,
           std::vector<double>& gains) const {
    const int64_t R = c.n * c.gates, u = r % c.n;
    for (int64_t k = 0; k <= c.K; ++k) {
      if (k > 0) {
        std::vector<double> next(static_cast<size_t>(c.S));
        for (int64_t s = 0; s < c.S; ++s) {
          double x = psi[(((k - 1) * c.B + b) * c.S + s) * R + r] * pre[static_cast<size_t>(k - 1)];
          for (int64_t o = 0; o < c.S; ++o) {
            x += decay[((((k - 1) * c.B + b) * c.S + s) * c.S + o) * c.n + u] * e[static_cast<size_t>(o)];
          }
          next[static_cast<size_t>(s)] = x;
        }
        e = next;
      }
      if (k == c.commit) stored = e;
      const int64_t m = k - (c.K + 1 - c.signals);
      for (int64_t s = 0; m >= 0 && s < c.S; ++s) {
        gains[static_cast<size_t>(m)] += signal[((m * c.B + b) * c.S + s) * c.n + u] * e[static_cast<size_t>(s)];
      }
    }
  }
};

bool full_wrong(const Case& c) {
  std::mt19937 random(7);
  const int64_t R = c.n * c.gates;
  Array trace(c.B * c.S * R * c.Q, random), bias(c.B * c.S * R, random), grad(R * c.Q, random), grad_bias(R, random);
  Array decay(c.K * c.B * c.S * c.S * c.n, random), psi(c.K * c.B * c.S * R, random), pre(c.K * c.B * c.Q, random);
  Array signal(c.signals * c.B * c.S * c.n, random);
  rx::TraceStep<double> p{};
  p.s = {c.B, c.S, R, c.Q, c.n, c.K, c.commit, c.signals};
  p.trace = c.rows_first ? rx::Steps<double>{trace.p.get(), 0, c.S * c.Q, c.Q}
                         : rx::Steps<double>{trace.p.get(), 0, c.S * R * c.Q, R * c.Q};
  p.trace_row = c.rows_first ? c.B * c.S * c.Q : c.Q;
  p.bias = {bias.p.get(), 0, c.S * R, R};
  p.psi = {psi.p.get(), c.B * c.S * R, c.S * R, R};
  p.pre = {pre.p.get(), c.B * c.Q, c.Q, 0};
  p.decay = {decay.p.get(), c.B * c.S * c.S * c.n, c.S * c.S * c.n, c.S * c.n};
  p.decay_from = c.n;
  p.decay_unit = 1;
  if (c.signals) {
    p.signal = {signal.p.get(), c.B * c.S * c.n, c.S * c.n, c.n};
    p.grad = grad.p.get();
    p.grad_row = c.Q;
    p.grad_bias = grad_bias.p.get();
  }
  std::vector<double> want_trace = trace.copy(), want_bias = bias.copy(), want = grad.copy(), want_one = grad_bias.copy();
  if (failed(rx::cuda::trace_step(p, nullptr))) return true;
  const Loop loop{c, decay, psi, signal};
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t q = 0; q <= c.Q; ++q) {  // the last is the bias
      const bool one = q == c.Q;
      std::vector<double> gains(static_cast<size_t>(c.signals));
      for (int64_t b = 0; b < c.B; ++b) {
        std::vector<double> column, e, stored;
        for (int64_t k = 0; k < c.K; ++k) column.push_back(one ? 1 : pre[(k * c.B + b) * c.Q + q]);
        const auto at = [&](int64_t s) -> double& {
          if (one) return want_bias[static_cast<size_t>((b * c.S + s) * R + r)];
          return want_trace[static_cast<size_t>(b * p.trace.b + s * p.trace.s + r * p.trace_row + q)];
        };
        for (int64_t s = 0; s < c.S; ++s) e.push_back(at(s));
        stored = e;
        loop.run(b, r, column, e, stored, gains);
        for (int64_t s = 0; s < c.S; ++s) at(s) = stored[static_cast<size_t>(s)];
      }
      for (double gain : gains) (one ? want_one[static_cast<size_t>(r)] : want[static_cast<size_t>(r * c.Q + q)]) += gain;
    }
  }
  return differs("trace", trace, want_trace) || differs("bias", bias, want_bias) || differs("grad", grad, want) ||
         differs("grad_bias", grad_bias, want_one);
}

bool rank_one_wrong(const Case& c) {
  std::mt19937 random(8);
  const int64_t R = c.n * c.gates;
  Array trace(c.B * c.Q, random), bias(c.B, random), grad(R * c.Q, random), grad_bias(R, random);
  Array decay(c.K * c.B, random), pre(c.K * c.B * c.Q, random), states(c.signals * c.B * c.Q), ones(c.signals * c.B);
  Array psi(c.signals * c.B * R, random), signal(c.signals * c.B * c.n, random);
  rx::RankOneStep<double> p{};
  p.s = {c.B, 1, R, c.Q, c.n, c.K, c.commit, c.signals};
  p.trace = {trace.p.get(), 0, c.Q, 0};
  p.bias = {bias.p.get(), 0, 1, 0};
  p.decay = {decay.p.get(), c.B, 1, 0};
  p.pre = {pre.p.get(), c.B * c.Q, c.Q, 0};
  p.psi = {psi.p.get(), c.B * R, R, 0};
  p.signal = {signal.p.get(), c.B * c.n, c.n, 0};
  p.grad = grad.p.get();
  p.grad_row = c.Q;
  p.grad_bias = grad_bias.p.get();
  p.states = states.p.get();
  p.ones = ones.p.get();
  std::vector<double> want_trace = trace.copy(), want_bias = bias.copy(), want = grad.copy(), want_one = grad_bias.copy();
  if (failed(rx::cuda::rank1_trace_step(p, nullptr))) return true;
  for (int64_t b = 0; b < c.B; ++b) {
    for (int64_t q = 0; q <= c.Q; ++q) {
      const bool one = q == c.Q;
      double &z = one ? want_bias[static_cast<size_t>(b)] : want_trace[static_cast<size_t>(b * c.Q + q)], x = z;
      for (int64_t k = 0; k <= c.K; ++k) {
        if (k > 0) x = decay[(k - 1) * c.B + b] * x + (one ? 1 : pre[((k - 1) * c.B + b) * c.Q + q]);
        if (k == c.commit) z = x;
        const int64_t m = k - (c.K + 1 - c.signals);
        for (int64_t r = 0; m >= 0 && r < R; ++r) {
          const double gain = signal[(m * c.B + b) * c.n + r % c.n] * psi[(m * c.B + b) * R + r] * x;
          (one ? want_one[static_cast<size_t>(r)] : want[static_cast<size_t>(r * c.Q + q)]) += gain;
        }
      }
    }
  }
  return differs("trace", trace, want_trace) || differs("bias", bias, want_bias) || differs("grad", grad, want) ||
         differs("grad_bias", grad_bias, want_one);
}

}  // namespace

int main() {
  const Case cases[] = {
      {1, 1, 1, 1, 1, 1, 1, 1, false},  {5, 1, 3, 2, 8, 1, 1, 1, true},  {3, 2, 5, 1, 6, 4, 2, 3, false},
      {6, 2, 2, 3, 4, 6, 6, 2, true},   {9, 1, 7, 1, 5, 0, 1, 0, false}, {2, 2, 3, 1, 9, 3, 0, 3, false},
      {4, 1, 17, 1, 40, 2, 3, 2, true}, {5, 3, 3, 2, 7, 3, 2, 3, false},
  };
  for (const Case& c : cases) {
    for (const auto order : rx::emulator::ORDERS) {
      rx::emulator::options().order = order;
      rx::emulator::options().seed = 3;
      if (!full_wrong(c) && (c.signals == 0 || !rank_one_wrong(c))) continue;
      std::printf("B=%d S=%d n=%d gates=%d Q=%d K=%d signals=%d, order %d\n", static_cast<int>(c.B), static_cast<int>(c.S),
                  static_cast<int>(c.n), static_cast<int>(c.gates), static_cast<int>(c.Q), static_cast<int>(c.K),
                  static_cast<int>(c.signals), static_cast<int>(order));
      return 1;
    }
  }
  std::printf("all equal\n");
  return 0;
}
