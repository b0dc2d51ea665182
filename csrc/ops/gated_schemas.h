// Schemas of the operations of gated cells, for every library that has them.
#pragma once
#include <torch/csrc/stable/library.h>

namespace rx {

inline void define_gated(torch::stable::detail::StableLibrary& m) {
  m.def("gru_forward(Tensor pre, Tensor h0, Tensor w, Tensor b_hn, Tensor? lengths) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gru_backward(Tensor? gy, Tensor? gs_n, Tensor y, Tensor aux, Tensor h0, Tensor? w, Tensor? lengths, int policy, "
      "int window, float decay, bool want_lam) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gru_forward_jvp(Tensor du, Tensor dh0, Tensor y, Tensor aux, Tensor h0, Tensor w, Tensor? lengths) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "gru_backward_jvp(Tensor dgy, Tensor? dgs_n, Tensor dy, Tensor daux, Tensor dh0, Tensor y, Tensor aux, Tensor h0, "
      "Tensor lam, Tensor w, Tensor? lengths) -> (Tensor, Tensor)");
  m.def("lstm_forward(Tensor pre, Tensor h0, Tensor c0, Tensor w, Tensor? lengths) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lstm_backward(Tensor? gy, Tensor? gh_n, Tensor? gc_n, Tensor aux, Tensor c0, Tensor? w, Tensor? lengths, int policy, "
      "int window, float decay, bool want_lam) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lstm_forward_jvp(Tensor du, Tensor dh0, Tensor dc0, Tensor aux, Tensor c0, Tensor w, Tensor? lengths) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "lstm_backward_jvp(Tensor dgy, Tensor? dgh_n, Tensor? dgc_n, Tensor daux, Tensor dc0, Tensor aux, Tensor c0, Tensor lam, "
      "Tensor to_c, Tensor w, Tensor? lengths) -> (Tensor, Tensor, Tensor)");
}

}  // namespace rx
