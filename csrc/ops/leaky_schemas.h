// Schemas of the LeakyRNN recurrence's operations, for every library that has them.
#pragma once
#include <torch/csrc/stable/library.h>

namespace rx {

inline void define_leaky(torch::stable::detail::StableLibrary& m) {
  m.def(
      "leaky_forward(Tensor pre, Tensor y0, Tensor s0, Tensor w, Tensor leak, Tensor? lengths, int form, int act, "
      "bool unit_leak) -> (Tensor, Tensor, Tensor)");
  m.def(
      "leaky_backward(Tensor? gy, Tensor? gaux, Tensor? gs_n, Tensor y, Tensor aux, Tensor? w, Tensor leak, Tensor? lengths, "
      "int form, int act, bool unit_leak, int policy, float mu, int window, float decay, bool want_lam) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "leaky_forward_jvp(Tensor dpre, Tensor dy0, Tensor ds0, Tensor? dleak, Tensor y, Tensor aux, Tensor y0, Tensor s0, "
      "Tensor w, Tensor leak, Tensor? lengths, int form, int act, bool unit_leak, bool want_du) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "leaky_backward_jvp(Tensor dgy, Tensor? dgs_n, Tensor? dleak, Tensor dy, Tensor daux, Tensor y, Tensor aux, Tensor lam, "
      "Tensor delta, Tensor w, Tensor leak, Tensor? lengths, int form, int act, bool unit_leak, bool want_dlam) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

}  // namespace rx
