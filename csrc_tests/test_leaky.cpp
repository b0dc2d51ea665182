// Runs the launchers of the LeakyRNN recurrence on the cases of python_tests/leaky_cases.py; see cases.h.
//   test_leaky FILE
// A case: 16 int64 (kernel, strategy, order, seed, architecture, L, T, B, n, form, act, unit_leak, policy, window, inputs,
// element type: 0 double, 1 float, 2 bfloat16, 3 float16), 3 doubles (mu, decay, tolerance), lengths; then the inputs and 4
// outputs.
#include "cases.h"

namespace {

using rx::ComputeOf;
using rx::cases::start;

template <class E>
int run_case(int64_t number_of_case, const int64_t* h) {
  using T = ComputeOf<E>;
  const int64_t kernel = h[0], strategy = h[1];
  double options[3];
  if (!rx::cases::read(options, 3)) std::abort();
  const rx::cases::Case all = rx::cases::read_case(h[14], 4);
  rx::cases::Operands<E> x(all);
  const rx::LeakyShape s{
      h[5],        h[6], h[7], h[8], static_cast<rx::Form>(h[9]), static_cast<rx::Activation>(h[10]), h[11] != 0,
      x.lengths(), 0,    h[6], false};
  rx::cases::set_up(h[2], h[3], h[4]);
  const char* error = nullptr;
  if (kernel == 0) {
    const rx::LeakyForward<T, E> p{s,  x.in(0), x.in(1),  x.in(2),       x.in(3), x.wide(4),
                                   {}, nullptr, x.out(0), x.computed(1), x.out(2)};
    error = start<E>(x.heap, p, strategy, 1, true, &rx::cuda::forward<E>);
  } else if (kernel == 1) {
    const rx::LeakyBackward<T, E> p{s,
                                    static_cast<rx::Transport>(h[12]),
                                    options[0],
                                    h[13],
                                    options[1],
                                    x.in(0),
                                    x.wide(1),
                                    x.in(2),
                                    x.in(3),
                                    x.wide(4),
                                    x.in(5),
                                    x.wide(6),
                                    x.out(0),
                                    false,
                                    x.out(1),
                                    x.out(2),
                                    x.computed(3),
                                    nullptr};
    error = start<E>(x.heap, p, strategy, 1, false, &rx::cuda::backward<E>);
  } else if (kernel == 2) {
    const rx::LeakyForwardJvp<T, E> p{s,       x.in(0), x.in(1),   x.in(2),  x.wide(3),     {},       x.in(4),  x.wide(5),
                                      x.in(6), x.in(7), x.wide(8), x.out(0), x.computed(1), x.out(2), x.out(3), {},
                                      nullptr};
    error = start<E>(x.heap, p, strategy, 1, true, &rx::cuda::forward_jvp<E>);
  } else {
    const rx::LeakyBackwardJvp<T, E> p{s,          false,    x.in(0),   x.in(1),   x.wide(2),    x.in(3),
                                       x.wide(4),  x.in(5),  x.wide(6), x.wide(7), x.in(8),      x.in(9),
                                       x.wide(10), x.out(0), x.out(1),  x.out(2),  x.computed(3)};
    error = start<E>(x.heap, p, strategy, 1, false, &rx::cuda::backward_jvp<E>);
  }
  return x.judge(error, number_of_case, kernel, options[2]);
}

}  // namespace

int main(int argc, char** argv) {
  return rx::cases::run_file<16>(argc, argv, 15, [](auto element, int64_t number, const int64_t* head) {
    return run_case<decltype(element)>(number, head);
  });
}
