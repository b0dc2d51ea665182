// The three kernels of a recurrence (strategy.h), for any Step.
#pragma once
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
  using Product = typename ProductOf<typename Step::Element, Rows>::Type;
  constexpr int kOwn = Product::kOwn;
  RX_DYNAMIC_SHARED(unsigned char, shared);
  const int64_t n = p.s.n, group = blockIdx.x / g.tiles, tile = blockIdx.x % g.tiles;
  const Product product(shared, n);
  product.template fill<Step::kTransposed>(p.w.p + (p.w.lead ? group * n * n : 0));

  Kept<T> kept[kOwn];
  Place place[kOwn];
  bool live[kOwn];
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    kept[r].carry = kept[r].state = kept[r].extra = zero_quad<T>();
    const int64_t row = tile * Rows + product.first_row + r;
    live[r] = RX_BOUND(6, row < g.rows) && RX_BOUND(7, product.column < n);
    if (!live[r]) continue;
    place[r] = Place(p.s, group * g.rows + row, product.column, g.vec);
    Step::begin(p, place[r], kept[r]);
  }
  product.hand_over(0, kept);
  Quad<T> sums[kOwn];
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

// What a step keeps between launches: (rows, n) each, rows of all groups.
template <class E>
struct Between {
  ComputeOf<E>*state, *extra, *product;
  E* carry;
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
    const int64_t offset = row * p.s.n + column;
    Kept<T> kept;
    if constexpr (What == Part::Begin) {
      kept.carry = kept.state = kept.extra = zero_quad<T>();
      Step::begin(p, at, kept);
    } else {
      kept.state = load_quad(s.state + offset, at.count, vec);
      kept.extra = load_quad(s.extra + offset, at.count, vec);
      kept.carry = load_quad(s.carry + offset, at.count, vec);
      const Quad<T> product = load_quad(s.product + offset, at.count, vec);
      if constexpr (What == Part::Run) {
        typename Step::Loaded loaded;
        Step::load(p, at, t, loaded);
        Step::run(p, at, t, loaded, product, kept);
      }
      if constexpr (What == Part::Finish) {
        Step::finish(p, at, product, kept);
        return;
      }
    }
    store_quad(s.state + offset, kept.state, at.count, vec);
    store_quad(s.extra + offset, kept.extra, at.count, vec);
    store_quad(s.carry + offset, kept.carry, at.count, vec);
  }
}

// All steps of rules that carry nothing from unit to unit; one thread per row and quad.
template <class Step>
__global__ void __launch_bounds__(256) columns(typename Step::Params p, bool vec) {
  using T = typename Step::T;
  const int64_t quads = (p.s.n + kColumns - 1) / kColumns, i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (RX_BOUND(9, i < p.s.L * p.s.B * quads)) {
    const Place at(p.s, i / quads, static_cast<int>(i % quads) * kColumns, vec);
    Kept<T> kept;
    kept.carry = kept.state = kept.extra = zero_quad<T>();
    Step::begin(p, at, kept);
    for (int64_t step = 0; step < p.s.T; ++step) {
      const int64_t t = Step::kBackwards ? p.s.T - 1 - step : step;
      typename Step::Loaded loaded;
      Step::load(p, at, t, loaded);
      Step::run(p, at, t, loaded, zero_quad<T>(), kept);
    }
    if constexpr (Step::kFinishes) Step::finish(p, at, zero_quad<T>(), kept);
  }
}

}  // namespace cuda
}  // namespace rx
