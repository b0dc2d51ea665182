// Launch parameters of trace updates. No torch here. B rows of a batch, S states per unit (1 to 3), n units, R = G n parameter
// rows (row r belongs to unit r mod n), Q columns, K pending steps. The states of a trace are numbered 0 (as stored) to K; the
// last `signals` of them are contracted, state `commit` is stored.
#pragma once
#include <cstdint>

namespace rx {

// An array by strides, with stride 1 in its last dimension unless said otherwise; stride 0: the same for all.
template <class T>
struct Steps {
  T* p = nullptr;
  int64_t k = 0, b = 0, s = 0;  // from one step, row of the batch, state to the next
};

struct TraceShape {
  int64_t B, S, R, Q, n;
  int64_t K, commit, signals;  // commit <= K, 0: nothing is stored; signals <= K + 1
};

// e = trace; per step e = decay e + psi pre; grad += sum over the batch of sum_s signal[s] e[s], step after step, each step's
// sum by itself before it joins.
template <class T>
struct TraceStep {
  TraceShape s;
  Steps<T> trace;         // (B, S, R, Q), rows `trace_row` apart
  Steps<T> bias;          // (B, S, R) or null: the trace of a column of ones
  Steps<const T> psi;     // (K, B, S, R)
  Steps<const T> pre;     // (K, B, Q); null on CUDA: ones
  Steps<const T> signal;  // (signals, B, S, n)
  Steps<const T> decay;   // (K, B, S, S, n); .s: from one receiving state to the next
  int64_t decay_from, decay_unit, trace_row, grad_row;
  T* grad;       // (R, Q), rows grad_row apart; null without signals
  T* grad_bias;  // (R) or null
};

// One trace for all rows: z = decay z + pre; grad[r] += sum over the batch of signal[r mod n] psi[r] z.
template <class T>
struct RankOneStep {
  TraceShape s;           // S = 1
  Steps<T> trace;         // (B, Q)
  Steps<T> bias;          // (B), stride in .b, or null
  Steps<const T> decay;   // (K, B), both by stride
  Steps<const T> pre;     // (K, B, Q)
  Steps<const T> psi;     // (signals, B, R)
  Steps<const T> signal;  // (signals, B, n)
  int64_t grad_row;
  T* grad;       // (R, Q)
  T* grad_bias;  // (R) or null
  T* states;     // (signals, B, Q): the contracted states of the trace
  T* ones;       // (signals, B): those of the bias
};

// One instruction set's kernels; scratch: 64-byte aligned. Any split of rows gives the same bits.
template <class T>
struct TraceKernels {
  int64_t (*scratch_size)(const TraceShape&);
  void (*step)(const TraceStep<T>&, int64_t first, int64_t end, T* scratch);  // parameter rows [first, end)
  // Rows [first, end) of the batch: the trace and what is to be contracted.
  void (*filter)(const RankOneStep<T>&, int64_t first, int64_t end);
  // Parameter rows [first, end); scratch: rank_one_scratch numbers.
  int64_t (*rank_one_scratch)(const TraceShape&, int64_t rows);
  void (*contract)(const RankOneStep<T>&, int64_t first, int64_t end, T* scratch);
};

template <class T>
const TraceKernels<T>& trace_kernels();

}  // namespace rx
