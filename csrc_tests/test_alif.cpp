// Runs the launchers of the ALIF and LIF recurrences on the cases of python_tests/alif_cases.py; see cases.h.
//   test_alif FILE
// A case: 17 int64 (kernel: 0 forward, 1 backward, strategy, order, seed, architecture, L, T, B, n, policy, window, scaling,
// reset, surrogate, refractory, inputs, element type: 0 double, 1 float), 5 doubles (mu, decay, v_th, gamma, tolerance),
// lengths; then the inputs and 7 outputs.
#include "cases.h"

namespace {

template <class T>
int run_case(int64_t number_of_case, const int64_t* head) {
  double options[5];
  if (!rx::cases::read(options, 5)) std::abort();
  const rx::cases::Case all = rx::cases::read_case(head[15], 7);
  rx::cases::Operands<T> x(all);
  const int64_t kernel = head[0], strategy = head[1], refractory = head[14];
  const rx::AlifShape s{head[5], head[6],     head[7],    head[8],       0,
                        head[6], x.lengths(), options[2], head[11] != 0, static_cast<rx::Reset>(head[12])};
  rx::cases::set_up(head[2], head[3], head[4]);
  const char* error = nullptr;
  if (kernel == 0) {
    rx::AlifForward<T> p{};
    p.s = s;
    p.gamma = options[3];
    p.surrogate = static_cast<rx::Surrogate>(head[13]);
    p.refractory = refractory;
    p.pre = x.in(0);
    p.z0 = x.in(1);
    p.v0 = x.in(2);
    p.a0 = x.in(3);
    p.count0 = x.in(4);
    p.w = x.in(5);
    p.alpha = x.in(6);
    p.rho = x.in(7);
    p.beta = x.in(8);
    p.z = x.out(0);
    p.psi = x.out(1);
    p.v = x.out(2);
    p.a = x.out(3);
    p.v_n = x.out(4);
    p.a_n = x.out(5);
    p.count_n = x.out(6);
    error = rx::cases::start<T>(x.heap, p, strategy, 1, true, &rx::cuda::alif_forward<T>, 2);
  } else {
    const bool zero = s.reset == rx::Reset::Zero;
    rx::AlifBackward<T> p{};
    p.s = s;
    p.transport = static_cast<rx::Transport>(head[9]);
    p.mu = options[0];
    p.window = head[10];
    p.decay = options[1];
    p.gz = x.in(0);
    p.gv_n = x.in(1);
    p.ga_n = x.in(2);
    p.z = x.in(3);
    p.psi = x.in(4);
    p.v = zero ? x.in(5) : rx::In<T>{};
    p.z0 = x.in(6);
    p.v0 = x.in(7);
    p.w = x.in(8);
    p.alpha = x.in(9);
    p.rho = x.in(10);
    p.beta = x.in(11);
    p.delta = x.out(0);
    p.gz0 = x.out(1);
    p.gv0 = x.out(2);
    p.ga0 = x.out(3);
    p.dv = x.out(4);
    p.da = x.out(5);
    p.dx = x.out(6);
    error = rx::cases::start<T>(x.heap, p, strategy, 1, false, &rx::cuda::alif_backward<T>, 1);
  }
  return x.judge(error, number_of_case, kernel, options[4]);
}

}  // namespace

int main(int argc, char** argv) {
  return rx::cases::run_file<17>(argc, argv, 16, [](auto element, int64_t number, const int64_t* head) {
    using T = decltype(element);
    if constexpr (sizeof(T) < sizeof(float)) {
      std::printf("case %lld: half precision\n", static_cast<long long>(number));
      return 2;
    } else {
      return run_case<T>(number, head);
    }
  });
}
