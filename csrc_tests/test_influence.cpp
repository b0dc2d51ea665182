// Runs the CUDA launchers of RTRL's and SnAp's steps without torch, each array in a heap block of its own, so that sanitizers
// see every access beyond it and TSan every race. Compares with plain loops over the whole influence matrix, which for SnAp is
// masked after each step; exits with 1 at the first difference.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "emulator.h"
#include "kernels/cuda/influence.h"

namespace {

struct Case {
  int64_t K, signals, B, S, n, G, Q;
};

// Numbers in a heap block of their own.
template <class T>
struct Array {
  int64_t size;
  std::unique_ptr<T[]> p;
  explicit Array(int64_t count) : size(count), p(new T[static_cast<size_t>(count)]) {}
  explicit Array(const std::vector<T>& from) : Array(static_cast<int64_t>(from.size())) {
    for (int64_t i = 0; i < size; ++i) (*this)[i] = from[static_cast<size_t>(i)];
  }
  Array(int64_t count, std::mt19937& random) : Array(count) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < size; ++i) (*this)[i] = normal(random);
  }
  T& operator[](int64_t i) { return p[static_cast<size_t>(i)]; }
  const T& operator[](int64_t i) const { return p[static_cast<size_t>(i)]; }
};
using Numbers = Array<double>;

// What SnAp keeps: units reached in one hop on a ring with a chord, columns by a checkered rule, unit 1 without any.
struct Ring {
  int64_t n, Q;
  bool hears(int64_t unit, int64_t of) const { return unit == of || unit == (of + 1) % n || (of == 0 && unit == n / 2); }
  bool has(int64_t unit, int64_t column) const { return unit != 1 && (unit + column) % 3 > 0; }
};

struct Lists {
  std::vector<int32_t> units, columns, links, pairs;
  std::vector<int64_t> unit_at{0}, column_at{0}, link_at{0}, at{0};
  int64_t most = 0;
};
Lists lists_of(const Ring& ring, const Case& c) {
  Lists l;
  for (int64_t p = 0; p < c.n; ++p) {
    std::vector<int64_t> near{p};
    for (int64_t u = 0; u < c.n; ++u) {
      if (u != p && ring.hears(u, p)) near.push_back(u);
    }
    for (const int64_t u : near) {
      l.units.push_back(static_cast<int32_t>(u));
      for (size_t j = 0; j < near.size(); ++j) {
        if (ring.hears(u, near[j])) l.links.push_back(static_cast<int32_t>(j));
      }
      l.link_at.push_back(static_cast<int64_t>(l.links.size()));
    }
    int64_t own = 0;
    for (int64_t q = 0; q < c.Q; ++q) {
      if (!ring.has(p, q)) continue;
      l.columns.push_back(static_cast<int32_t>(q));
      ++own;
    }
    l.unit_at.push_back(static_cast<int64_t>(l.units.size()));
    l.column_at.push_back(static_cast<int64_t>(l.columns.size()));
    l.at.push_back(l.at.back() + c.S * static_cast<int64_t>(near.size()) * c.G * own);
    l.most = std::max(l.most, static_cast<int64_t>(near.size()));
  }
  return l;
}

bool differs(const char* what, double got, double want) {
  if (std::fabs(got - want) <= 1e-11 * std::fmax(1, std::fabs(want))) return false;
  std::printf("%s: got %g, expected %g\n", what, got, want);
  return true;
}

struct Problem {
  Case c;
  int64_t N, R;
  Numbers jacobian, psi, pre, signal, grad;
  Problem(const Case& c, std::mt19937& random)
      : c(c),
        N(c.S * c.n),
        R(c.G * c.n),
        jacobian(c.K * c.B * N * N, random),
        psi(c.K * c.B * c.S * R, random),
        pre(c.K * c.B * c.Q, random),
        signal(c.signals * c.B * N, random),
        grad(R * c.Q, random) {}
  rx::InfluenceShape shape() const { return {c.K, c.signals, c.B, c.S, c.n, R, c.Q}; }
  rx::InfluenceSteps<double> steps(Numbers& to) const {
    return {jacobian.p.get(), psi.p.get(), pre.p.get(), c.signals ? signal.p.get() : nullptr, to.p.get()};
  }
  // Plain loops: m (B, N, R, Q) and g (R, Q); with a ring, only what SnAp keeps.
  void expect(std::vector<double>& m, std::vector<double>& g, const Ring* ring) const {
    const int64_t all = R * c.Q;
    const auto place = [&](int64_t b, int64_t i, int64_t j) { return static_cast<size_t>((b * N + i) * all + j); };
    for (int64_t k = 0; k < std::max<int64_t>(c.K, 1); ++k) {
      for (int64_t b = 0; b < c.B && c.K > 0; ++b) {
        std::vector<double> now(static_cast<size_t>(N * all));
        for (int64_t i = 0; i < N; ++i) {
          for (int64_t j = 0; j < all; ++j) {
            const int64_t r = j / c.Q, q = j % c.Q, unit = r % c.n;
            if (ring && !(ring->has(unit, q) && ring->hears(i % c.n, unit))) continue;
            double sum = i % c.n == unit ? psi[((k * c.B + b) * c.S + i / c.n) * R + r] * pre[(k * c.B + b) * c.Q + q] : 0;
            for (int64_t l = 0; l < N; ++l) {
              if (ring && !ring->hears(i % c.n, l % c.n)) continue;
              sum += jacobian[((k * c.B + b) * N + i) * N + l] * m[place(b, l, j)];
            }
            now[static_cast<size_t>(i * all + j)] = sum;
          }
        }
        for (int64_t i = 0; i < N * all; ++i) m[place(b, 0, i)] = now[static_cast<size_t>(i)];
      }
      const int64_t with = c.K == 0 ? 0 : k - (c.K - c.signals);
      for (int64_t b = 0; b < c.B && with >= 0 && c.signals > 0; ++b) {
        for (int64_t i = 0; i < N * all; ++i) {
          g[static_cast<size_t>(i % all)] += signal[(with * c.B + b) * N + i / all] * m[place(b, 0, i)];
        }
      }
    }
  }
};

std::vector<double> copied(const Numbers& x) {
  return {x.p.get(), x.p.get() + x.size};
}

// The product that a launcher asks for, by plain loops.
struct Loops {
  const Problem& problem;
  const Numbers& m;
  Numbers& out;

  static void multiply(void* context, int64_t k, int64_t first, int64_t columns) {
    const Loops& l = *static_cast<const Loops*>(context);
    const int64_t N = l.problem.N, B = l.problem.c.B, all = l.problem.R * l.problem.c.Q;
    for (int64_t i = 0; i < B * N * columns; ++i) {
      const int64_t b = i / (N * columns), row = i / columns % N, column = first + i % columns;
      double sum = 0;
      for (int64_t o = 0; o < N; ++o)
        sum += l.problem.jacobian[((k * B + b) * N + row) * N + o] * l.m[(b * N + o) * all + column];
      l.out[i] = sum;
    }
  }
};

bool rtrl_wrong(const Case& c, int64_t most) {
  std::mt19937 random(7);
  Problem problem(c, random);
  const int64_t all = problem.R * c.Q;
  Numbers m(c.B * problem.N * all, random), partial(c.signals * c.B * all);
  std::vector<double> want = copied(m), grad = copied(problem.grad);
  problem.expect(want, grad, nullptr);
  const rx::RtrlStep<double> p{problem.shape(), problem.steps(problem.grad), m.p.get(), problem.N * all, all};
  Numbers product(c.B * problem.N * most);
  Loops loops{problem, m, product};
  const rx::cuda::Products products{product.p.get(), most, &Loops::multiply, &loops};
  if (const char* error = rx::cuda::rtrl_step(p, most ? &products : nullptr, partial.p.get(), nullptr)) {
    std::printf("%s\n", error);
    return true;
  }
  bool bad = false;
  for (int64_t i = 0; i < m.size; ++i) bad |= differs("influence", m[i], want[static_cast<size_t>(i)]);
  for (int64_t i = 0; i < all; ++i) bad |= differs("grad", problem.grad[i], grad[static_cast<size_t>(i)]);
  return bad;
}

bool snap_wrong(const Case& c) {
  std::mt19937 random(7);
  Problem problem(c, random);
  const Ring ring{c.n, c.Q};
  const Lists l = lists_of(ring, c);
  const Array<int32_t> units(l.units), columns(l.columns), links(l.links), pairs(l.pairs);
  const Array<int64_t> unit_at(l.unit_at), column_at(l.column_at), link_at(l.link_at), at(l.at);
  const int64_t all = problem.R * c.Q, size = l.at.back();
  Numbers m(c.B * size, random), partial(c.signals * c.B * c.G * columns.size);
  const auto each = [&](auto&& f) {  // f(number, place in the whole matrix)
    for (int64_t b = 0, i = 0; b < c.B; ++b) {
      for (int64_t p = 0; p < c.n; ++p) {
        for (int64_t s = 0; s < c.S; ++s) {
          for (int64_t u = unit_at[p]; u < unit_at[p + 1]; ++u) {
            for (int64_t g = 0; g < c.G; ++g) {
              for (int64_t q = column_at[p]; q < column_at[p + 1]; ++q, ++i) {
                f(i, (b * problem.N + s * c.n + units[u]) * all + (g * c.n + p) * c.Q + columns[q]);
              }
            }
          }
        }
      }
    }
  };
  std::vector<double> want(static_cast<size_t>(c.B * problem.N * all)), grad = copied(problem.grad);
  each([&](int64_t i, int64_t place) { want[static_cast<size_t>(place)] = m[i]; });
  problem.expect(want, grad, &ring);
  const rx::SnapPattern pattern{units.p.get(), unit_at.p.get(), columns.p.get(), column_at.p.get(),
                                links.p.get(), link_at.p.get(), nullptr,         nullptr,
                                at.p.get(),    units.size,      columns.size,    0};
  const rx::SnapStep<double> p{problem.shape(), problem.steps(problem.grad), pattern, m.p.get(), size, nullptr};
  if (const char* error = rx::cuda::snap_step(p, l.most, partial.p.get(), nullptr)) {
    std::printf("%s\n", error);
    return true;
  }
  bool bad = false;
  each([&](int64_t i, int64_t place) { bad |= differs("influence", m[i], want[static_cast<size_t>(place)]); });
  for (int64_t i = 0; i < all; ++i) bad |= differs("grad", problem.grad[i], grad[static_cast<size_t>(i)]);
  return bad;
}

}  // namespace

int main() {
  // K, signals, B, S, n, G, Q
  const Case cases[] = {{1, 1, 1, 1, 4, 1, 1},  {1, 1, 2, 1, 5, 1, 4}, {2, 1, 2, 2, 4, 3, 7},
                        {3, 3, 1, 1, 12, 1, 8}, {2, 0, 2, 1, 6, 2, 5}, {0, 1, 2, 2, 4, 1, 6}};
  for (const Case& c : cases) {
    for (const auto order : rx::emulator::ORDERS) {
      rx::emulator::options().order = order;
      rx::emulator::options().seed = 3;
      for (const int way : {-1, 0, 4, 32}) {  // SnAp; RTRL by its own product, by so many columns of another's
        if (!(way < 0 ? snap_wrong(c) : rtrl_wrong(c, way))) continue;
        std::printf("%s: K=%d B=%d S=%d n=%d G=%d Q=%d, way %d, order %d\n", way < 0 ? "snap" : "rtrl", static_cast<int>(c.K),
                    static_cast<int>(c.B), static_cast<int>(c.S), static_cast<int>(c.n), static_cast<int>(c.G),
                    static_cast<int>(c.Q), way, static_cast<int>(order));
        return 1;
      }
    }
  }
  std::printf("all equal\n");
  return 0;
}
