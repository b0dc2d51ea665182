// The linear recurrent unit: a diagonal complex linear recurrence s_t = lambda s_{t-1} + u_t, in reals; instantiated with plain
// scalars or SIMD vectors. It is linear in s and u and bilinear in lambda and s: its tangents are the same functions again.
#pragma once
#include "kernels/primitives.h"

namespace rx {
namespace RX_NS {

template <class S>
struct Complex {
  S re, im;
};

// lambda s + u.
template <class S>
RX_FN Complex<S> lru_state(Complex<S> lam, Complex<S> s, Complex<S> u) {
  return {u.re + lam.re * s.re - lam.im * s.im, u.im + lam.re * s.im + lam.im * s.re};
}

// conj(lambda) a + g: the adjoint of s_{t-1} from that of s_t, a, and what else reaches it, g.
template <class S>
RX_FN Complex<S> lru_adjoint(Complex<S> lam, Complex<S> a, Complex<S> g) {
  return {g.re + lam.re * a.re + lam.im * a.im, g.im + lam.re * a.im - lam.im * a.re};
}

// sum + a conj(s_{t-1}): what step t adds to the gradient of lambda, (d/d Re, d/d Im).
template <class S>
RX_FN Complex<S> lru_rate(Complex<S> a, Complex<S> before, Complex<S> sum) {
  return {sum.re + a.re * before.re + a.im * before.im, sum.im + a.im * before.re - a.re * before.im};
}

}  // namespace RX_NS
}  // namespace rx
