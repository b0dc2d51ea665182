// The ALIF and LIF recurrences as PyTorch ops: checks, memory and parameters; `Target` says where they run.
#pragma once
#include "kernels/alif.h"

#include <cmath>
#include <functional>
#include <tuple>

#include "ops/tensors.h"

namespace rx {

inline AlifShape alif_shape(int64_t L, int64_t T, int64_t B, int64_t n, const int64_t* lengths, double v_th, bool scaling,
                            int64_t reset) {
  STD_TORCH_CHECK(std::isfinite(v_th) && v_th > 0, "v_th is " + std::to_string(v_th) + ", expected a positive number");
  STD_TORCH_CHECK(reset == 0 || reset == 1, "reset must be 0 (subtract) or 1 (zero)");
  return {L, T, B, n, 0, T, lengths, v_th, scaling, static_cast<Reset>(reset)};
}

inline void check_together(const OptionalTensor& rho, const OptionalTensor& beta) {
  STD_TORCH_CHECK(rho.has_value() == beta.has_value(), "rho and beta must both be given (ALIF) or both be absent (LIF)");
}

using AlifResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Target>
AlifResults alif_forward(const Tensor& pre, const Tensor& z0, const Tensor& v0, const OptionalTensor& a0,
                         const OptionalTensor& count0, const Tensor& w, const Tensor& alpha, const OptionalTensor& rho,
                         const OptionalTensor& beta, const OptionalTensor& lengths, double v_th, double gamma, bool scaling,
                         int64_t reset, int64_t surrogate, int64_t refractory, bool want_states) {
  STD_TORCH_CHECK(pre.dim() == 4, "pre must have 4 dimensions (L, T, B, n)");
  STD_TORCH_CHECK(surrogate >= 0 && surrogate <= 2, "surrogate must be 0 (triangular), 1 (fast sigmoid) or 2 (arctan)");
  STD_TORCH_CHECK(refractory >= 0, "refractory is " + std::to_string(refractory) + ", expected at least 0");
  STD_TORCH_CHECK(refractory == 0 || count0, "count0 is needed where refractory is above 0");
  STD_TORCH_CHECK(a0.has_value() == beta.has_value(), "a0 must be given where beta is, and only there");
  check_together(rho, beta);
  const int64_t T_ = pre.size(1), B = pre.size(2), n = pre.size(3);
  const OptionalTensor none;
  const OptionalTensor& counter = refractory > 0 ? count0 : none;
  Arguments args(pre);
  args.add(pre, "pre", {T_, B, n});
  args.add(z0, "z0", {B, n});
  args.add(v0, "v0", {B, n});
  args.add(a0, "a0", {B, n});
  args.add(count0, "count0", {B, n});
  args.add(w, "w", {n, n});
  args.add(alpha, "alpha", {n});
  args.add(rho, "rho", {n});
  args.add(beta, "beta", {n});
  const int64_t L = args.L();
  const AlifShape shape = alif_shape(L, T_, B, n, args.lengths(lengths, B), v_th, scaling, reset);
  const auto sequence = [&](bool wanted) { return wanted ? make(pre, {L, T_, B, n}) : make(pre, {0}); };
  const auto state = [&](bool wanted) { return wanted ? make(pre, {L, B, n}) : make(pre, {0}); };
  Tensor z = sequence(true), psi = sequence(true), v = sequence(want_states || reset == 1), a = sequence(want_states && a0);
  Tensor v_n = state(true), a_n = state(a0.has_value()), count_n = state(counter.has_value());
  if (lengths) {  // of rows whose length is out of range
    for (Tensor& x : {std::ref(v_n), std::ref(a_n), std::ref(count_n)}) torch::stable::zero_(x);
  }
  if (v_n.numel() == 0 || T_ == 0) return {z, psi, v, a, v_n, a_n, count_n};
  Target::with_dtype(pre.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    AlifForward<T> p{};
    p.s = shape;
    p.gamma = gamma;
    p.surrogate = static_cast<Surrogate>(surrogate);
    p.refractory = refractory;
    p.pre = args.in<T>(pre);
    p.z0 = args.in<T>(z0);
    p.v0 = args.in<T>(v0);
    p.a0 = args.in<T>(a0);
    p.count0 = args.in<T>(counter);
    p.w = args.in<T>(w);
    p.alpha = args.in<T>(alpha);
    p.rho = args.in<T>(rho);
    p.beta = args.in<T>(beta);
    p.z = out<T>(z);
    p.psi = out<T>(psi);
    p.v = out<T>(v);
    p.a = out<T>(a);
    p.v_n = out<T>(v_n);
    p.a_n = out<T>(a_n);
    p.count_n = out<T>(count_n);
    Target::run(p, pre, w);
  });
  return {z, psi, v, a, v_n, a_n, count_n};
}

template <class Target>
AlifResults alif_backward(const OptionalTensor& gz, const OptionalTensor& gv_n, const OptionalTensor& ga_n, const Tensor& z,
                          const Tensor& psi, const Tensor& v, const Tensor& z0, const Tensor& v0, const OptionalTensor& w,
                          const Tensor& alpha, const OptionalTensor& rho, const OptionalTensor& beta,
                          const OptionalTensor& lengths, double v_th, bool scaling, int64_t reset, int64_t policy, double mu,
                          int64_t window, double decay, bool want_states) {
  STD_TORCH_CHECK(psi.dim() == 4, "psi must have 4 dimensions (L, T, B, n)");
  STD_TORCH_CHECK(policy >= 0 && policy <= 4, "policy must be 0 to 4 (full, local, diagonal, hop, state)");
  STD_TORCH_CHECK(policy == 1 || w, "w is needed by every policy but 1");
  STD_TORCH_CHECK(window >= 0 && (window == 0 || policy <= 1), "window must be at least 0, and 0 with policies above 1");
  STD_TORCH_CHECK(decay == 0 || policy == 1, "decay must be 0 with every policy but 1");
  STD_TORCH_CHECK(!ga_n || beta, "ga_n is given without beta, that is, for a cell without adaptation");
  check_together(rho, beta);
  const int64_t T_ = psi.size(1), B = psi.size(2), n = psi.size(3);
  const Transport transport = static_cast<Transport>(policy);
  const OptionalTensor none, voltage = reset == 1 ? OptionalTensor(v) : none;
  const OptionalTensor& weight = transport == Transport::Local ? none : w;
  Arguments args(psi);
  args.add(psi, "psi", {T_, B, n});
  args.add(gz, "gz", {T_, B, n});
  args.add(gv_n, "gv_n", {B, n});
  args.add(ga_n, "ga_n", {B, n});
  args.add(z, "z", {T_, B, n});
  args.add(voltage, "v", {T_, B, n});
  args.add(z0, "z0", {B, n});
  args.add(v0, "v0", {B, n});
  args.add(weight, "w", {n, n});
  args.add(alpha, "alpha", {n});
  args.add(rho, "rho", {n});
  args.add(beta, "beta", {n});
  const int64_t L = args.L();
  const AlifShape shape = alif_shape(L, T_, B, n, args.lengths(lengths, B), v_th, scaling, reset);
  const bool adapts = beta.has_value();
  const auto sequence = [&](bool wanted) { return wanted ? make(psi, {L, T_, B, n}) : make(psi, {0}); };
  Tensor delta = sequence(true), gz0 = make(psi, {L, B, n}), gv0 = make(psi, {L, B, n});
  Tensor ga0 = adapts ? make(psi, {L, B, n}) : make(psi, {0});
  Tensor dv = sequence(want_states), da = sequence(want_states && adapts), dx = sequence(want_states);
  if (gz0.numel() == 0 || T_ == 0) return {delta, gz0, gv0, ga0, dv, da, dx};
  Target::with_dtype(psi.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    AlifBackward<T> p{};
    p.s = shape;
    p.transport = transport;
    p.mu = mu;
    p.window = window;
    p.decay = decay;
    p.gz = args.in<T>(gz);
    p.gv_n = args.in<T>(gv_n);
    p.ga_n = args.in<T>(ga_n);
    p.z = args.in<T>(z);
    p.psi = args.in<T>(psi);
    p.v = args.in<T>(voltage);
    p.z0 = args.in<T>(z0);
    p.v0 = args.in<T>(v0);
    p.w = args.in<T>(weight);
    p.alpha = args.in<T>(alpha);
    p.rho = args.in<T>(rho);
    p.beta = args.in<T>(beta);
    p.delta = out<T>(delta);
    p.gz0 = out<T>(gz0);
    p.gv0 = out<T>(gv0);
    p.ga0 = out<T>(ga0);
    p.dv = out<T>(dv);
    p.da = out<T>(da);
    p.dx = out<T>(dx);
    Target::run(p, psi, weight);
  });
  return {delta, gz0, gv0, ga0, dv, da, dx};
}

// Their schemas, for every library that has them.
inline void define_alif(torch::stable::detail::StableLibrary& m) {
  m.def(
      "alif_forward(Tensor pre, Tensor z0, Tensor v0, Tensor? a0, Tensor? count0, Tensor w, Tensor alpha, Tensor? rho, "
      "Tensor? beta, Tensor? lengths, float v_th, float gamma, bool scaling, int reset, int surrogate, int refractory, "
      "bool want_states) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "alif_backward(Tensor? gz, Tensor? gv_n, Tensor? ga_n, Tensor z, Tensor psi, Tensor v, Tensor z0, Tensor v0, Tensor? w, "
      "Tensor alpha, Tensor? rho, Tensor? beta, Tensor? lengths, float v_th, bool scaling, int reset, int policy, float mu, "
      "int window, float decay, bool want_states) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

}  // namespace rx
