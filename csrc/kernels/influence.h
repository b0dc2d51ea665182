// Launch parameters of real-time recurrent learning, exact (RTRL) and on a sparse pattern (SnAp). No torch here. The influence
// matrix of a block of parameters (R, Q) is d state / d parameter; row r belongs to unit r mod n, R = G n. A state is s n +
// unit.
#pragma once
#include <cstdint>

namespace rx {

// One call applies K pending steps; the last `signals` of them have a signal. With K = 0 a single signal meets the influence as
// it is.
struct InfluenceShape {
  int64_t K, signals, B, S, n, R, Q;
};

// What the steps bring. All contiguous; none overlaps the influence or the gradient.
template <class T>
struct InfluenceSteps {
  const T* jacobian;  // (K, B, S n, S n), row = new state
  const T* psi;       // (K, B, S, R): d state (s, r mod n) / d parameter (r, q) is psi times pre
  const T* pre;       // (K, B, Q)
  const T* signal;    // (signals, B, S n) or null
  T* grad;            // (R, Q), added to, or null without signals
};

template <class T>
struct RtrlStep {
  InfluenceShape s;
  InfluenceSteps<T> in;
  T* influence;        // (B, S n, R Q), in place
  int64_t batch, row;  // numbers from one batch row, and from one state, to the next
};

// The influence of owner p's parameters on the states it reaches: a dense block (S |K_p|, G |C_p|), rows (s, i-th unit of K_p),
// columns (g, c-th column of C_p). The blocks of all owners stand one after the other.
struct SnapPattern {
  const int32_t* units;       // K_p, p itself first: units[unit_at[p]] to units[unit_at[p + 1] - 1]
  const int64_t* unit_at;     // (n + 1)
  const int32_t* columns;     // C_p, ascending
  const int64_t* column_at;   // (n + 1)
  const int32_t* links;       // of the i-th unit of K_p: places in K_p of the units it hears of; none at all: of every one
  const int64_t* link_at;     // (units + 1)
  const int32_t* link_pairs;  // of each link its place in `pairs`
  const int32_t* pairs;       // (2, pairs_all): every unit that hears of another or itself, and which
  const int64_t* at;          // (n + 1): first number of each block
  int64_t units_all, columns_all, pairs_all;
};

template <class T>
struct SnapStep {
  InfluenceShape s;
  InfluenceSteps<T> in;
  SnapPattern pattern;
  T* influence;   // (B, numbers of a pattern), in place
  int64_t batch;  // numbers from one batch row to the next
  T* values;      // (K, B, S, S, pairs), of the Jacobian: so close together that they stay in the cache. The CPU's alone
};

// One instruction set's kernels; scratch: 64-byte aligned, as many numbers as the function before says.
template <class T>
struct InfluenceKernels {
  int64_t columns;  // of a tile: pieces of the exact influence are whole tiles
  int64_t (*rtrl_scratch)(const InfluenceShape&, int64_t columns);
  // Columns [first, end) of the influence, all rows: any split gives the same bits.
  void (*rtrl)(const RtrlStep<T>&, int64_t first, int64_t end, T* scratch);
  // The values of steps and batch rows [first, end) of K B.
  void (*snap_values)(const SnapStep<T>&, int64_t first, int64_t end);
  int64_t (*snap_scratch)(const SnapStep<T>&);
  // Owners [first, end): any split gives the same bits.
  void (*snap)(const SnapStep<T>&, int64_t first, int64_t end, T* scratch);
};

template <class T>
const InfluenceKernels<T>& influence_kernels();

}  // namespace rx
