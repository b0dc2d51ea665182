// Trace updates as PyTorch ops: checks and parameters; `Target` says where they run. The ops change tensors in place; that
// versions are counted and nothing overlaps is seen to in Python (rtrl_ext/_trace.py, functional/traces.py).
#pragma once
#include <torch/csrc/stable/library.h>

#include "kernels/trace.h"
#include "ops/tensors.h"

namespace rx {

// The arguments of one call: sizes, dtype and device are checked, inputs get stride 1 in their last dimension.
class TraceArguments {
 public:
  explicit TraceArguments(const Tensor& like) : dtype_(like.scalar_type()), device_(like.device()) {}

  void check(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes) const {
    STD_TORCH_CHECK(x.scalar_type() == dtype_, std::string(name) + " has another dtype than trace");
    STD_TORCH_CHECK(x.device() == device_, std::string(name) + " is on another device than trace");
    bool good = x.dim() == static_cast<int64_t>(sizes.size());
    int64_t i = 0;
    std::string expected, came;
    for (int64_t size : sizes) {
      good = good && x.size(i) == size;
      expected += (i++ ? ", " : "") + std::to_string(size);
    }
    for (int64_t d = 0; d < x.dim(); ++d) came += (d ? ", " : "") + std::to_string(x.size(d));
    STD_TORCH_CHECK(good, std::string(name) + " has the wrong shape: expected (" + expected + "), got (" + came + ")");
  }
  // Something that is written: where it is.
  void check_out(const Tensor& x, const char* name, std::initializer_list<int64_t> sizes) const {
    check(x, name, sizes);
    const int64_t last = x.dim() - 1;
    STD_TORCH_CHECK(x.size(last) <= 1 || x.stride(last) == 1, std::string(name) + " must have stride 1 in its last dimension");
  }
  // x, or a copy whose last dimension has stride 1 (or 0, if `same` allows that).
  Tensor rows(const Tensor& x, bool same = false) const {
    const int64_t last = x.dim() - 1, stride = x.size(last) <= 1 ? 1 : x.stride(last);
    return stride == 1 || (same && stride == 0) ? x : torch::stable::contiguous(x);
  }

 private:
  ScalarType dtype_;
  torch::stable::Device device_;
};

template <class T>
Steps<const T> steps_of(const Tensor& x, bool states = false) {
  return {static_cast<const T*>(x.const_data_ptr()), x.stride(0), x.stride(1), states ? x.stride(2) : 0};
}

inline void check_counts(const TraceShape& s, bool grad, bool grad_bias, bool bias) {
  STD_TORCH_CHECK(s.commit >= 0 && s.commit <= s.K, "commit must be 0 to " + std::to_string(s.K));
  STD_TORCH_CHECK(s.signals <= s.K + 1, "signal has more steps than there are states to contract");
  STD_TORCH_CHECK(s.n > 0 && s.R % s.n == 0, "the rows of psi must be a multiple of the units");
  STD_TORCH_CHECK(grad == (s.signals > 0), "grad and signal go together");
  STD_TORCH_CHECK(grad_bias == (grad && bias), "grad_bias goes with bias and signal");
}

template <class Target>
void trace_step(const Tensor& trace, const OptionalTensor& bias, const Tensor& decay, const Tensor& psi, const Tensor& pre,
                const OptionalTensor& signal, const OptionalTensor& grad, const OptionalTensor& grad_bias, int64_t commit) {
  STD_TORCH_CHECK(trace.dim() == 4, "trace must have 4 dimensions (B, S, R, Q)");
  STD_TORCH_CHECK(decay.dim() == 5, "decay must have 5 dimensions (K, B, S, S, n)");
  STD_TORCH_CHECK(!signal || signal->dim() == 4, "signal must have 4 dimensions (K', B, S, n)");
  const int64_t B = trace.size(0), S = trace.size(1), R = trace.size(2), Q = trace.size(3), K = decay.size(0),
                n = decay.size(4);
  STD_TORCH_CHECK(S >= 1 && S <= 3, "a trace has 1 to 3 states, got " + std::to_string(S));
  const TraceShape shape{B, S, R, Q, n, K, commit, signal ? signal->size(0) : 0};
  const TraceArguments args(trace);
  args.check_out(trace, "trace", {B, S, R, Q});
  if (bias) args.check_out(*bias, "bias", {B, S, R});
  args.check(decay, "decay", {K, B, S, S, n});
  args.check(psi, "psi", {K, B, S, R});
  args.check(pre, "pre", {K, B, Q});
  if (signal) args.check(*signal, "signal", {shape.signals, B, S, n});
  if (grad) args.check_out(*grad, "grad", {R, Q});
  if (grad_bias) args.check_out(*grad_bias, "grad_bias", {R});
  check_counts(shape, grad.has_value(), grad_bias.has_value(), bias.has_value());
  if (B == 0 || R == 0 || (Q == 0 && !bias) || (K == 0 && !signal)) return;
  const Tensor d = args.rows(decay, true), f = args.rows(psi), x = args.rows(pre);
  const OptionalTensor g = signal ? OptionalTensor(args.rows(*signal)) : std::nullopt;
  with_dtype(trace.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    TraceStep<T> p{};
    p.s = shape;
    p.trace = {out<T>(trace), 0, trace.stride(0), trace.stride(1)};
    p.trace_row = trace.stride(2);
    if (bias) p.bias = {out<T>(*bias), 0, bias->stride(0), bias->stride(1)};
    p.decay = steps_of<T>(d, true);
    p.decay_from = d.stride(3);
    p.decay_unit = d.stride(4);
    p.psi = steps_of<T>(f, true);
    p.pre = steps_of<T>(x);
    if (g) p.signal = steps_of<T>(*g, true);
    if (grad) {
      p.grad = out<T>(*grad);
      p.grad_row = grad->stride(0);
    }
    if (grad_bias) p.grad_bias = out<T>(*grad_bias);
    Target::run(p, trace);
  });
}

template <class Target>
void rank1_trace_step(const Tensor& trace, const OptionalTensor& bias, const Tensor& decay, const OptionalTensor& psi,
                      const Tensor& pre, const OptionalTensor& signal, const OptionalTensor& grad,
                      const OptionalTensor& grad_bias, int64_t commit) {
  STD_TORCH_CHECK(trace.dim() == 2, "trace must have 2 dimensions (B, Q)");
  STD_TORCH_CHECK(decay.dim() == 2, "decay must have 2 dimensions (K, B)");
  STD_TORCH_CHECK(psi.has_value() == signal.has_value(), "psi and signal go together");
  STD_TORCH_CHECK(!signal || (signal->dim() == 3 && psi->dim() == 3), "psi and signal must have 3 dimensions (K', B, R | n)");
  const int64_t B = trace.size(0), Q = trace.size(1), K = decay.size(0);
  const int64_t R = signal ? psi->size(2) : 1, n = signal ? signal->size(2) : 1, signals = signal ? signal->size(0) : 0;
  const TraceShape shape{B, 1, R, Q, n, K, commit, signals};
  const TraceArguments args(trace);
  args.check_out(trace, "trace", {B, Q});
  if (bias) args.check(*bias, "bias", {B});
  args.check(decay, "decay", {K, B});
  args.check(pre, "pre", {K, B, Q});
  if (signal) args.check(*signal, "signal", {signals, B, n});
  if (psi) args.check(*psi, "psi", {signals, B, R});
  if (grad) args.check_out(*grad, "grad", {R, Q});
  if (grad_bias) args.check_out(*grad_bias, "grad_bias", {R});
  check_counts(shape, grad.has_value(), grad_bias.has_value(), bias.has_value());
  if (B == 0 || (Q == 0 && !bias) || (K == 0 && !signal)) return;
  const Tensor x = args.rows(pre);
  const OptionalTensor g = signal ? OptionalTensor(args.rows(*signal)) : std::nullopt;
  const OptionalTensor f = psi ? OptionalTensor(args.rows(*psi)) : std::nullopt;
  const Tensor states = make(trace, {signals, B, Q}), ones = make(trace, {bias ? signals : 0, B});
  with_dtype(trace.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    RankOneStep<T> p{};
    p.s = shape;
    p.trace = {out<T>(trace), 0, trace.stride(0), 0};
    if (bias) p.bias = {out<T>(*bias), 0, bias->stride(0), 0};
    p.decay = steps_of<T>(decay);
    p.pre = steps_of<T>(x);
    if (f) p.psi = steps_of<T>(*f);
    if (g) p.signal = steps_of<T>(*g);
    if (grad) {
      p.grad = out<T>(*grad);
      p.grad_row = grad->stride(0);
    }
    if (grad_bias) p.grad_bias = out<T>(*grad_bias);
    p.states = out<T>(states);
    p.ones = out<T>(ones);
    Target::run(p, trace);
  });
}

inline void define_trace(torch::stable::detail::StableLibrary& m) {
  m.def(
      "trace_step(Tensor(a!) trace, Tensor(b!)? bias, Tensor decay, Tensor psi, Tensor pre, Tensor? signal, Tensor(c!)? grad, "
      "Tensor(d!)? grad_bias, int commit) -> ()");
  m.def(
      "rank1_trace_step(Tensor(a!) trace, Tensor(b!)? bias, Tensor decay, Tensor? psi, Tensor pre, Tensor? signal, "
      "Tensor(c!)? grad, Tensor(d!)? grad_bias, int commit) -> ()");
}

}  // namespace rx
