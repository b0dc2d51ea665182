// The three kernels of a recurrence (strategy.h), for any Step.
#pragma once
#include <type_traits>

#include "kernels/cuda/product.h"

namespace rx {
namespace cuda {

// The rows of one recurrent matrix: groups of them lie one after the other.
struct Grid {
  int64_t groups, rows;  // matrices, and rows under each
  int64_t tiles;         // blocks per group
  bool vec;              // rows are whole quads, all arrays 16-byte aligned
};

// One block carries `Rows` rows through all T steps. blockDim.x = padded_columns(n); dynamic shared memory persistent_bytes.
template <class Step, int Rows>
__global__ void __launch_bounds__(kThreadsMax, 1) persistent(typename Step::Params p, Grid g) {
  using T = typename Step::T;
  constexpr int kGates = Step::kCarries * Step::kProducts;
  using Product = typename ProductOf<typename Step::Element, Rows, Step::kCarries, Step::kProducts>::Type;
  constexpr int kOwn = Product::kOwn;
  RX_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t n = p.s.n, group = blockIdx.x / g.tiles, tile = blockIdx.x % g.tiles;
  const Product product(shared, n);
  product.template fill<Step::kTransposed>(p.w.p + (p.w.lead ? group * kGates * n * n : 0));

  KeptOf<Step> kept[kOwn];
  Place place[kOwn];
  bool live[kOwn];
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    kept[r] = {};
    const int64_t row = tile * Rows + product.first_row + r;
    live[r] = RX_BOUND(6, row < g.rows) && RX_BOUND(7, product.column < n);
    if (!live[r]) continue;
    place[r] = Place(p.s, group * g.rows + row, product.column, g.vec);
    Step::begin(p, place[r], kept[r]);
  }
  product.hand_over(0, kept);
  Quad<T> sums[kOwn][Step::kProducts];
  for (int64_t step = 0; step < p.s.T; ++step) {
    const int64_t t = Step::kBackwards ? p.s.T - 1 - step : step;
    typename Step::Loaded loaded[kOwn];
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      if (live[r]) Step::load(p, place[r], t, loaded[r]);
    }
    RX_BARRIER(10);  // the carry is there, and nobody reads the other copy any more
    product.multiply(step, sums);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      if (live[r]) Step::run(p, place[r], t, loaded[r], sums[r], kept[r]);
    }
    product.hand_over(step + 1, kept);
  }
  if constexpr (Step::kFinishes) {
    RX_BARRIER(11);
    product.multiply(p.s.T, sums);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      if (live[r]) Step::finish(p, place[r], sums[r], kept[r]);
    }
  }
}

// What a Step may say, false where it doesn't. kExtrasMove: a step changes the extras that `begin` makes; kReadsCarry: it reads
// the carry itself, not its product alone.
template <class Step, class = void>
struct ExtrasMove : std::false_type {};
template <class Step>
struct ExtrasMove<Step, std::void_t<decltype(Step::kExtrasMove)>> : std::bool_constant<Step::kExtrasMove> {};
template <class Step, class = void>
struct ReadsCarry : std::false_type {};
template <class Step>
struct ReadsCarry<Step, std::void_t<decltype(Step::kReadsCarry)>> : std::bool_constant<Step::kReadsCarry> {};

// What a step keeps between launches, for the rows of all groups.
template <class E>
struct Between {
  ComputeOf<E>* state;    // (rows, n)
  ComputeOf<E>* extra;    // (rows, kExtras n)
  ComputeOf<E>* product;  // (rows, kProducts n)
  E* carry;               // (rows, kCarries n)
};

enum class Part { Begin, Run, Finish };

// One step after its recurrent product; one thread per row and quad.
template <class Step, Part What>
__global__ void __launch_bounds__(256)
    pointwise(typename Step::Params p, Between<typename Step::Element> s, int64_t t, bool vec) {
  using T = typename Step::T;
  const int64_t quads = (p.s.n + kColumns - 1) / kColumns, i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (RX_BOUND(8, i < p.s.L * p.s.B * quads)) {
    const int64_t row = i / quads;
    const int column = static_cast<int>(i % quads) * kColumns;
    const Place at(p.s, row, column, vec);
    const auto offset = [&](int values, int k) { return (row * values + k) * p.s.n + column; };
    KeptOf<Step> kept = {};
    if constexpr (What == Part::Begin) {
      Step::begin(p, at, kept);
#pragma unroll
      for (int k = 0; k < Step::kExtras; ++k) {
        store_quad(s.extra + offset(Step::kExtras, k), kept.extra[k], at.count, vec);
      }
    } else {
      kept.state = load_quad(s.state + offset(1, 0), at.count, vec);
#pragma unroll
      for (int k = 0; k < Step::kExtras; ++k) {
        kept.extra[k] = load_quad(s.extra + offset(Step::kExtras, k), at.count, vec);
      }
      if constexpr (ReadsCarry<Step>::value) {
#pragma unroll
        for (int k = 0; k < Step::kCarries; ++k) {
          kept.carry[k] = load_quad(s.carry + offset(Step::kCarries, k), at.count, vec);
        }
      }
      Quad<T> product[Step::kProducts];
#pragma unroll
      for (int k = 0; k < Step::kProducts; ++k) {
        product[k] = load_quad(s.product + offset(Step::kProducts, k), at.count, vec);
      }
      if constexpr (What == Part::Run) {
        typename Step::Loaded loaded;
        Step::load(p, at, t, loaded);
        Step::run(p, at, t, loaded, product, kept);
        if (t >= at.length) return;  // state and carry stay as they are
      }
      if constexpr (What == Part::Finish) {
        Step::finish(p, at, product, kept);
        return;
      }
    }
    store_quad(s.state + offset(1, 0), kept.state, at.count, vec);
    if constexpr (What == Part::Run && ExtrasMove<Step>::value) {
#pragma unroll
      for (int k = 0; k < Step::kExtras; ++k) {
        store_quad(s.extra + offset(Step::kExtras, k), kept.extra[k], at.count, vec);
      }
    }
#pragma unroll
    for (int k = 0; k < Step::kCarries; ++k) {
      store_quad(s.carry + offset(Step::kCarries, k), kept.carry[k], at.count, vec);
    }
  }
}

// All steps of rules that carry nothing from unit to unit; one thread per row and quad.
template <class Step>
__global__ void __launch_bounds__(256) columns(typename Step::Params p, bool vec) {
  using T = typename Step::T;
  const int64_t quads = (p.s.n + kColumns - 1) / kColumns, i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (RX_BOUND(9, i < p.s.L * p.s.B * quads)) {
    const Place at(p.s, i / quads, static_cast<int>(i % quads) * kColumns, vec);
    static_assert(Step::kProducts == 1, "a step without transport takes no other product");
    const Quad<T> none = zero_quad<T>();
    KeptOf<Step> kept = {};
    Step::begin(p, at, kept);
    for (int64_t step = 0; step < p.s.T; ++step) {
      const int64_t t = Step::kBackwards ? p.s.T - 1 - step : step;
      typename Step::Loaded loaded;
      Step::load(p, at, t, loaded);
      Step::run(p, at, t, loaded, &none, kept);
    }
    if constexpr (Step::kFinishes) Step::finish(p, at, &none, kept);
  }
}

}  // namespace cuda
}  // namespace rx
