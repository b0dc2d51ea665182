// Runs the launchers of the GRU and LSTM recurrences on the cases of python_tests/gated_cases.py; see cases.h.
//   test_gated FILE
// A case: 13 int64 (kernel: GRU's four, then LSTM's, strategy, order, seed, architecture, L, T, B, n, policy, window, inputs,
// element type: 0 double, 1 float, 2 bfloat16, 3 float16), 2 doubles (decay, tolerance), lengths; then the inputs and 5
// outputs.
#include "cases.h"

namespace {

using rx::ComputeOf;
using rx::GatedCell;
using rx::cases::start;

template <class E>
int run_case(int64_t number_of_case, const int64_t* head) {
  using T = ComputeOf<E>;
  const int64_t kernel = head[0], strategy = head[1];
  const bool lstm = kernel >= 4;
  const GatedCell cell = lstm ? GatedCell::Lstm : GatedCell::Gru;
  const int64_t gates = rx::gates(cell);
  double options[2];
  if (!rx::cases::read(options, 2)) std::abort();
  const rx::cases::Case all = rx::cases::read_case(head[11], 5);
  rx::cases::Operands<E> x(all);
  const rx::GatedShape s{head[5], head[6], head[7], head[8], x.lengths(), 0, head[6], false};
  const rx::In<E> none;
  rx::cases::set_up(head[2], head[3], head[4]);
  const char* error = nullptr;
  const size_t h = lstm ? 1 : 0;  // LSTM's arrays of c come between the others
  if (kernel % 4 == 0) {
    rx::GatedForward<T, E> p{};
    p.s = s;
    p.cell = cell;
    p.pre = x.in(0);
    p.h0 = x.in(1);
    p.c0 = lstm ? x.in(2) : none;
    p.w = x.in(2 + h);
    p.bias = lstm ? none : x.in(3);
    p.y = x.out(0);
    p.aux = x.computed(1);
    p.h_n = x.out(2);
    p.c_n = lstm ? x.out(3) : nullptr;
    error = start<E>(x.heap, p, strategy, gates, true, &rx::cuda::gated_forward<E>);
  } else if (kernel % 4 == 1) {
    rx::GatedBackward<T, E> p{};
    p.s = s;
    p.cell = cell;
    p.transport = static_cast<rx::Transport>(head[9]);
    p.window = head[10];
    p.decay = options[0];
    p.gy = x.in(0);
    p.gh_n = x.in(1);
    p.gc_n = lstm ? x.in(2) : none;
    p.y = lstm ? none : x.in(2);
    p.aux = x.wide(3);
    p.before = x.in(4);
    p.w = x.in(5);
    p.delta = x.out(0);
    p.delta_row = 4 * s.n;
    p.gh0 = x.out(1);
    p.gc0 = lstm ? x.out(2) : nullptr;
    p.lam = x.computed(2 + h);
    p.to_c = lstm ? x.computed(4) : nullptr;
    error = start<E>(x.heap, p, strategy, gates, false, &rx::cuda::gated_backward<E>);
  } else if (kernel % 4 == 2) {
    rx::GatedForwardJvp<T, E> p{};
    p.s = s;
    p.cell = cell;
    p.du = x.in(0);
    p.dh0 = x.in(1);
    p.dc0 = lstm ? x.in(2) : none;
    p.y = lstm ? none : x.in(2);
    p.aux = x.wide(3);
    p.before = x.in(4);
    p.w = x.in(5);
    p.dy = x.out(0);
    p.daux = x.computed(1);
    p.dh_n = x.out(2);
    p.dc_n = lstm ? x.out(3) : nullptr;
    error = start<E>(x.heap, p, strategy, gates, true, &rx::cuda::gated_forward_jvp<E>);
  } else {
    rx::GatedBackwardJvp<T, E> p{};
    p.s = s;
    p.cell = cell;
    p.dgy = x.in(0);
    p.dgh_n = x.in(1);
    p.dgc_n = lstm ? x.in(2) : none;
    p.dy = lstm ? none : x.in(2);
    p.daux = x.wide(3);
    p.dbefore = x.in(4);
    p.y = lstm ? none : x.in(5);
    p.aux = x.wide(lstm ? 5 : 6);
    p.before = x.in(lstm ? 6 : 7);
    p.lam = x.wide(lstm ? 7 : 8);
    if (lstm) p.to_c = x.wide(8);
    p.w = x.in(9);
    p.ddelta = x.out(0);
    p.dgh0 = x.out(1);
    p.dgc0 = lstm ? x.out(2) : nullptr;
    error = start<E>(x.heap, p, strategy, gates, false, &rx::cuda::gated_backward_jvp<E>);
  }
  return x.judge(error, number_of_case, kernel, options[1]);
}

}  // namespace

int main(int argc, char** argv) {
  return rx::cases::run_file<13>(argc, argv, 12, [](auto element, int64_t number, const int64_t* head) {
    return run_case<decltype(element)>(number, head);
  });
}
