// Runs the CUDA launcher of UORO's steps without torch, each array in a heap block of its own, so that sanitizers see every
// access beyond it and TSan every race. Compares with plain loops over whole matrices; exits with 1 at the first difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "emulator.h"
#include "kernels/cuda/uoro.h"

namespace {

struct Size {
  int64_t gates, Q;
};
struct Case {
  int64_t B, S, n;
  std::vector<Size> blocks;
  bool known, signal, drops;
};

// Numbers in a heap block of their own.
struct Array {
  size_t size;
  std::unique_ptr<double[]> p;
  explicit Array(int64_t count) : size(static_cast<size_t>(count)), p(new double[size]) {}
  Array(int64_t count, std::mt19937& random) : Array(count) {
    std::normal_distribution<double> normal;
    for (size_t i = 0; i < size; ++i) p[i] = normal(random);
  }
  Array copy() const {
    Array made(static_cast<int64_t>(size));
    for (size_t i = 0; i < size; ++i) made.p[i] = p[i];
    return made;
  }
  double& operator[](int64_t i) { return p[static_cast<size_t>(i)]; }
  double operator[](int64_t i) const { return p[static_cast<size_t>(i)]; }
};

struct Block {
  int64_t R, Q;
  Array psi, pre, theta, grad, a, sums;
};

bool differs(const char* what, double got, double want) {
  if (std::fabs(got - want) <= 1e-11 * std::fmax(1, std::fabs(want))) return false;
  std::printf("%s: got %g, expected %g\n", what, got, want);
  return true;
}

double norm(const std::vector<Array>& blocks, int64_t b, int64_t B) {
  double sum = 0;
  for (const Array& x : blocks) {
    const int64_t each = static_cast<int64_t>(x.size) / B;
    for (int64_t i = 0; i < each; ++i) sum += x[b * each + i] * x[b * each + i];
  }
  return std::sqrt(sum);
}

double root(double x, double y) {
  return x > 0 && y > 0 ? std::sqrt(x / y) : 1;
}

// The step with nu^T I as whole matrices.
void plain(const Case& c, const std::vector<Block>& blocks, const Array& J, const Array& nu, const Array& signal,
           const bool* keep, Array& s, std::vector<Array>& theta, std::vector<Array>& grad, Array& norms) {
  const int64_t states = c.S * c.n;
  std::vector<Array> injected;
  for (const Block& k : blocks) {
    injected.emplace_back(c.B * k.R * k.Q);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t r = 0; r < k.R; ++r) {
        for (int64_t q = 0; q < k.Q; ++q) {
          double sum = 0;
          for (int64_t i = 0; i < c.S; ++i) {
            sum += nu[b * states + i * c.n + r % c.n] * k.psi[(b * c.S + i) * k.R + r] * k.pre[b * k.Q + q];
          }
          injected.back()[(b * k.R + r) * k.Q + q] = sum;
        }
      }
    }
  }
  for (int64_t b = 0; b < c.B; ++b) {
    const bool kept = !keep || keep[b];
    std::vector<double> moved(static_cast<size_t>(states));
    double moves = 0, signs = 0, weight = 0;
    for (int64_t i = 0; i < states; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < states && kept; ++j) sum += J[(b * states + i) * states + j] * s[b * states + j];
      moved[static_cast<size_t>(i)] = sum;
      moves += sum * sum;
      signs += nu[b * states + i] * nu[b * states + i];
    }
    const double rho0 = root(kept ? norm(theta, b, c.B) : 0, std::sqrt(moves));
    const double rho1 = root(norm(injected, b, c.B), std::sqrt(signs));
    for (int64_t i = 0; i < states; ++i) {
      s[b * states + i] = rho0 * moved[static_cast<size_t>(i)] + rho1 * nu[b * states + i];
      weight += signal[b * states + i] * s[b * states + i];
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      const int64_t each = blocks[i].R * blocks[i].Q;
      for (int64_t j = 0; j < each; ++j) {
        double& x = theta[i][b * each + j];
        x = (kept ? x / rho0 : 0) + injected[i][b * each + j] / rho1;
        if (c.signal) grad[i][j] += weight * x;
      }
    }
    norms[b] = norm(theta, b, c.B);
  }
}

bool wrong(const Case& c) {
  std::mt19937 random(7);
  const int64_t states = c.S * c.n;
  Array J(c.B * states * states, random), nu(c.B * states, random), signal(c.B * states, random), s(c.B * states, random);
  for (size_t i = 0; i < nu.size; ++i) nu.p[i] = nu.p[i] > 0 ? 1 : -1;
  std::unique_ptr<bool[]> keep(new bool[static_cast<size_t>(c.B)]);
  for (int64_t b = 0; b < c.B; ++b) keep[static_cast<size_t>(b)] = b % 2 == 0;
  std::vector<Block> blocks;
  std::vector<Array> theta, grad;
  for (const Size& size : c.blocks) {
    const int64_t R = size.gates * c.n, Q = size.Q;
    blocks.push_back({R, Q, Array(c.B * c.S * R, random), Array(c.B * Q, random), Array(c.B * R * Q, random),
                      Array(R * Q, random), Array(c.B * R), Array(c.B * R * rx::cuda::uoro_parts(Q))});
    theta.push_back(blocks.back().theta.copy());
    grad.push_back(blocks.back().grad.copy());
  }
  Array moved(c.B * states), scale(c.B), weight(c.B), norms(c.B), expected(c.B), after = s.copy();
  for (int64_t b = 0; b < c.B && c.known; ++b) norms[b] = norm(theta, b, c.B);
  std::vector<rx::UoroBlock<double>> given;
  for (Block& k : blocks) {
    given.push_back({k.R, k.Q, k.psi.p.get(), k.pre.p.get(), k.theta.p.get(), c.signal ? k.grad.p.get() : nullptr, k.a.p.get(),
                     k.sums.p.get(), nullptr});
  }
  const rx::Uoro<double> step{c.B,
                              c.S,
                              c.n,
                              J.p.get(),
                              nu.p.get(),
                              c.signal ? signal.p.get() : nullptr,
                              c.drops ? keep.get() : nullptr,
                              s.p.get(),
                              norms.p.get(),
                              moved.p.get(),
                              scale.p.get(),
                              weight.p.get(),
                              given.data(),
                              static_cast<int64_t>(given.size())};
  if (const char* error = rx::cuda::uoro_step(step, c.known, nullptr)) {
    std::printf("%s\n", error);
    return true;
  }
  plain(c, blocks, J, nu, signal, c.drops ? keep.get() : nullptr, after, theta, grad, expected);
  bool bad = false;
  for (int64_t i = 0; i < c.B * states; ++i) bad |= differs("s", s[i], after[i]);
  for (int64_t b = 0; b < c.B; ++b) bad |= differs("norm", norms[b], expected[b]);
  for (size_t i = 0; i < blocks.size(); ++i) {
    for (size_t j = 0; j < theta[i].size; ++j) bad |= differs("theta", blocks[i].theta.p[j], theta[i].p[j]);
    for (size_t j = 0; j < grad[i].size; ++j) bad |= differs("grad", blocks[i].grad.p[j], grad[i].p[j]);
  }
  return bad;
}

}  // namespace

int main() {
  const Case cases[] = {
      {1, 1, 1, {{1, 1}}, false, true, false},          {3, 1, 5, {{1, 9}, {3, 6}}, true, true, false},
      {2, 2, 3, {{4, 132}, {4, 1}}, false, true, true}, {3, 1, 9, {{1, 128}}, true, false, true},
      {5, 2, 4, {{1, 257}}, false, false, false},
  };
  for (const Case& c : cases) {
    for (const auto order : rx::emulator::ORDERS) {
      rx::emulator::options().order = order;
      rx::emulator::options().seed = 3;
      if (!wrong(c)) continue;
      std::printf("B=%d S=%d n=%d, order %d\n", static_cast<int>(c.B), static_cast<int>(c.S), static_cast<int>(c.n),
                  static_cast<int>(order));
      return 1;
    }
  }
  std::printf("all equal\n");
  return 0;
}
