// Runs the launchers of the GRU and LSTM recurrences on the cases of python_tests/gated_cases.py; see cases.h.
//   test_gated FILE
// A case: 13 int64 (kernel: GRU's four, then LSTM's, strategy, order, seed, architecture, L, T, B, n, policy, window, inputs,
// element type: 0 double, 1 float, 2 bfloat16, 3 float16), 1 double (tolerance), lengths; then the inputs and 5 outputs.
#include "cases.h"

namespace {

using rx::ComputeOf;
using rx::GatedCell;
using rx::cases::start;

template <class E>
int run_case(int64_t number_of_case, const int64_t* h) {
  using T = ComputeOf<E>;
  const int64_t kernel = h[0], strategy = h[1];
  const bool lstm = kernel >= 4;
  const GatedCell cell = lstm ? GatedCell::Lstm : GatedCell::Gru;
  const int64_t gates = rx::gates(cell);
  double tolerance = 0;
  if (!rx::cases::read(&tolerance, 1)) std::abort();
  const rx::cases::Case all = rx::cases::read_case(h[11], 5);
  rx::cases::Operands<E> x(all);
  const rx::GatedShape s{h[5], h[6], h[7], h[8], x.lengths()};
  const rx::In<E> none;
  rx::cases::set_up(h[2], h[3], h[4]);
  const char* error = nullptr;
  if (kernel % 4 == 0) {
    const rx::GatedForward<T, E> p = lstm ? rx::GatedForward<T, E>{s,    cell,     x.in(0),       x.in(1),  x.in(2), x.in(3),
                                                                   none, x.out(0), x.computed(1), x.out(2), x.out(3)}
                                          : rx::GatedForward<T, E>{s,       cell,     x.in(0),       x.in(1),  none,   x.in(2),
                                                                   x.in(3), x.out(0), x.computed(1), x.out(2), nullptr};
    error = start<E>(x.heap, p, strategy, gates, true, &rx::cuda::gated_forward<E>);
  } else if (kernel % 4 == 1) {
    const auto transport = static_cast<rx::Transport>(h[9]);
    const rx::GatedBackward<T, E> p =
        lstm
            ? rx::GatedBackward<T, E>{s,         cell,    transport, h[10],    x.in(0),  x.in(1),  x.in(2),       none,
                                      x.wide(3), x.in(4), x.in(5),   x.out(0), x.out(1), x.out(2), x.computed(3), x.computed(4)}
            : rx::GatedBackward<T, E>{s,         cell,    transport, h[10],    x.in(0),  x.in(1), none,          x.in(2),
                                      x.wide(3), x.in(4), x.in(5),   x.out(0), x.out(1), nullptr, x.computed(2), nullptr};
    error = start<E>(x.heap, p, strategy, gates, false, &rx::cuda::gated_backward<E>);
  } else if (kernel % 4 == 2) {
    const rx::GatedForwardJvp<T, E> p =
        lstm ? rx::GatedForwardJvp<T, E>{s,       cell,    x.in(0),  x.in(1),       x.in(2),  none,    x.wide(3),
                                         x.in(4), x.in(5), x.out(0), x.computed(1), x.out(2), x.out(3)}
             : rx::GatedForwardJvp<T, E>{s,       cell,    x.in(0),  x.in(1),       none,     x.in(2), x.wide(3),
                                         x.in(4), x.in(5), x.out(0), x.computed(1), x.out(2), nullptr};
    error = start<E>(x.heap, p, strategy, gates, true, &rx::cuda::gated_forward_jvp<E>);
  } else {
    const rx::GatedBackwardJvp<T, E> p =
        lstm ? rx::GatedBackwardJvp<T, E>{s,         cell,      x.in(0),   x.in(1),  x.in(2), none,
                                          none,      x.wide(5), x.wide(3), x.in(6),  x.in(4), x.wide(7),
                                          x.wide(8), x.in(9),   x.out(0),  x.out(1), x.out(2)}
             : rx::GatedBackwardJvp<T, E>{s,           cell,      x.in(0),   x.in(1),  none,    x.in(5),
                                          x.in(2),     x.wide(6), x.wide(3), x.in(7),  x.in(4), x.wide(8),
                                          rx::In<T>{}, x.in(9),   x.out(0),  x.out(1), nullptr};
    error = start<E>(x.heap, p, strategy, gates, false, &rx::cuda::gated_backward_jvp<E>);
  }
  return x.judge(error, number_of_case, kernel, tolerance);
}

}  // namespace

int main(int argc, char** argv) {
  return rx::cases::run_file<13>(argc, argv, 12, [](auto element, int64_t number, const int64_t* head) {
    return run_case<decltype(element)>(number, head);
  });
}
