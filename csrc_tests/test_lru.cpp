// Runs the CUDA launchers of the LRU's scans without torch, each array in a heap block of its own, so that sanitizers see every
// access beyond it and TSan every race. Compares with a plain loop in complex numbers; exits with 1 at the first difference.
#include <cmath>
#include <complex>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "emulator.h"
#include "kernels/cuda/lru.h"

namespace {

using rx::In;
using Number = std::complex<double>;

struct Case {
  int64_t L, T, B, n, window;
  bool ragged, shared, signals;  // shared: lambda and s0 have a leading 1; signals: both gs and gs_n
};

// An array (lead, rows, 2, n) of planes.
struct Array {
  int64_t lead, rows, n;
  std::unique_ptr<double[]> p;
  Array(int64_t lead, int64_t rows, int64_t n)
      : lead(lead), rows(rows), n(n), p(new double[static_cast<size_t>(lead * rows * 2 * n)]) {}
  void fill(std::mt19937& random, double scale) {
    std::normal_distribution<double> normal(0, scale);
    for (int64_t i = 0; i < lead * rows * 2 * n; ++i) p[i] = normal(random);
  }
  Number at(int64_t l, int64_t row, int64_t j) const {
    const double* x = p.get() + ((lead == 1 ? 0 : l) * rows + row) * 2 * n + j;
    return {x[0], x[n]};
  }
  In<double> in() const { return {p.get(), lead != 1}; }
};

bool differs(const char* what, Number got, Number want) {
  if (std::abs(got - want) <= 1e-11 * std::fmax(1, std::abs(want))) return false;
  std::printf("%s: got (%g, %g), expected (%g, %g)\n", what, got.real(), got.imag(), want.real(), want.imag());
  return true;
}

// One unit of one row.
bool row_differs(const Case& c, int64_t l, int64_t b, int64_t j, int64_t length, const Array& lam, const Array& u,
                 const Array& s0, const Array& states, const Array& s_n, const Array& gs, const Array& gs_n, const Array& a,
                 const Array& gs0, Number& glam) {
  const Number rate = lam.at(l, 0, j);
  std::vector<Number> before(static_cast<size_t>(c.T));
  Number s = s0.at(l, b, j);
  bool bad = false;
  for (int64_t t = 0; t < c.T; ++t) {
    before[static_cast<size_t>(t)] = s;
    if (t < length) s = rate * s + u.at(l, t * c.B + b, j);
    bad |= differs("states", states.at(l, t * c.B + b, j), t < length ? s : 0);
  }
  bad |= differs("s_n", s_n.at(l, b, j), s);
  Number carried = 0;
  for (int64_t t = c.T - 1; t >= 0; --t) {
    Number now = 0;
    if (t < length) {
      const int64_t left = length - t - 1;
      now = c.signals ? gs.at(l, t * c.B + b, j) : 0;
      if (left == 0) now += gs_n.at(l, b, j);
      if (left > 0 && (c.window == 0 || left % c.window != 0)) now += carried;
    }
    bad |= differs("a", a.at(l, t * c.B + b, j), now);
    carried = std::conj(rate) * now;
    glam += now * std::conj(before[static_cast<size_t>(t)]);
  }
  return bad | differs("gs0", gs0.at(l, b, j), carried);
}

bool wrong(const Case& c) {
  std::mt19937 random(7);
  const int64_t lead = c.shared ? 1 : c.L;
  Array lam(lead, 1, c.n), u(c.L, c.T * c.B, c.n), s0(lead, c.B, c.n), states(c.L, c.T * c.B, c.n), s_n(c.L, c.B, c.n);
  Array gs(c.L, c.T * c.B, c.n), gs_n(c.L, c.B, c.n), a(c.L, c.T * c.B, c.n), gs0(c.L, c.B, c.n), glam(c.L, 1, c.n);
  lam.fill(random, 0.5);
  for (Array* x : {&u, &s0, &gs, &gs_n}) x->fill(random, 1);
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < c.B; ++b) lengths.push_back(c.ragged ? 1 + static_cast<int64_t>(random()) % c.T : c.T);
  const rx::LruShape shape{c.L, c.T, c.B, c.n, 0, c.T, c.ragged ? lengths.data() : nullptr};
  const size_t size = static_cast<size_t>(rx::cuda::lru_between(shape));
  std::unique_ptr<double[]> between(new double[size]), sums(new double[size]);
  const rx::LruScan<double> scan{shape, lam.in(), u.in(), s0.in(), states.p.get(), s_n.p.get()};
  const char* error = rx::cuda::lru_scan(scan, between.get(), nullptr);
  const rx::LruBackward<double> back{shape,       c.window,    lam.in(), c.signals ? gs.in() : In<double>{},
                                     gs_n.in(),   states.in(), s0.in(),  a.p.get(),
                                     gs0.p.get(), nullptr};
  between.reset(new double[size]);
  if (!error) error = rx::cuda::lru_backward(back, between.get(), sums.get(), glam.p.get(), nullptr);
  if (error) {
    std::printf("%s\n", error);
    return true;
  }
  bool bad = false;
  for (int64_t l = 0; l < c.L; ++l) {
    for (int64_t j = 0; j < c.n; ++j) {
      Number total = 0;
      for (int64_t b = 0; b < c.B; ++b) {
        bad |= row_differs(c, l, b, j, lengths[static_cast<size_t>(b)], lam, u, s0, states, s_n, gs, gs_n, a, gs0, total);
      }
      bad |= differs("glam", glam.at(l, 0, j), total);
    }
  }
  return bad;
}

}  // namespace

int main() {
  const Case cases[] = {
      {1, 1, 1, 1, 0, false, false, true}, {1, 33, 2, 5, 0, true, false, true},  {2, 70, 3, 8, 0, false, true, true},
      {2, 97, 2, 6, 3, true, false, true}, {1, 100, 1, 4, 40, true, true, true}, {1, 65, 5, 3, 1, false, false, false},
  };
  for (const Case& c : cases) {
    for (const auto order : rx::emulator::ORDERS) {
      rx::emulator::options().order = order;
      rx::emulator::options().seed = 3;
      if (!wrong(c)) continue;
      std::printf("L=%d T=%d B=%d n=%d window=%d, order %d\n", static_cast<int>(c.L), static_cast<int>(c.T),
                  static_cast<int>(c.B), static_cast<int>(c.n), static_cast<int>(c.window), static_cast<int>(order));
      return 1;
    }
  }
  std::printf("all equal\n");
  return 0;
}
