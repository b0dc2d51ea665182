// A step of UORO on CUDA; see uoro.h. Five launches: J s, a warp for each state; the coefficients, a block for each batch row;
// the pass over theta of each parameter block, a warp for 128 columns of a row; and the norm. Where the step has a gradient,
// the warps of a block share the batch rows and add their sums in order; else batch rows are spread over the grid.
#include "kernels/cuda/uoro.h"

#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp, kEach = static_cast<int>(kUoroColumns) / kWarp;

template <class T>
struct Blocks {
  UoroBlock<T> at[kUoroBlocks];
};

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int by = kWarp / 2; by > 0; by /= 2) x += __shfl_xor_sync(0xffffffffu, x, by);
  return x;
}
// The same for a block, every thread of which calls it; `shared` has a number for each warp.
template <class T>
__device__ __forceinline__ T block_sum(T x, T* shared) {
  x = warp_sum(x);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x % kWarp == 0) shared[warp] = x;
  __syncthreads();
  T sum = shared[0];
  for (int i = 1; i < kWarps; ++i) sum += shared[i];
  __syncthreads();  // before the next call writes
  return sum;
}

// x where the past of batch row b is kept, else 0.
template <class T>
__device__ __forceinline__ bool kept(const Uoro<T>& p, int64_t b) {
  return p.keep == nullptr || p.keep[b];
}

template <class T>
__global__ void __launch_bounds__(kThreads) move(Uoro<T> p) {
  const int64_t states = p.S * p.n, i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= p.B * states) return;
  const int64_t b = i / states;
  const T *row = p.jacobian + i * states, *s = p.s + b * states;
  T sum = 0;
  if (kept(p, b)) {
    for (int64_t j = threadIdx.x % kWarp; j < states; j += kWarp) sum += row[j] * s[j];
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) p.moved[i] = sum;
}

__device__ __forceinline__ double root_of_ratio(double x, double y) {
  return x > 0 && y > 0 ? sqrt(x / y) : 1;
}

template <class T>
__global__ void __launch_bounds__(kThreads) weigh(Uoro<T> p, Blocks<T> blocks) {
  RX_SHARED(shared, T[kWarps]);
  const int64_t b = blockIdx.x, states = p.S * p.n, first = threadIdx.x;
  const T *nu = p.signs + b * states, *moved = p.moved + b * states;
  double injected = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const UoroBlock<T>& k = blocks.at[i];
    const T *psi = k.psi + b * p.S * k.R, *pre = k.pre + b * k.Q;
    T rows = 0, columns = 0;
    for (int64_t r = first; r < k.R; r += kThreads) {
      T a = 0;
      for (int64_t s = 0; s < p.S; ++s) a += nu[s * p.n + r % p.n] * psi[s * k.R + r];
      k.a[b * k.R + r] = a;
      rows += a * a;
    }
    for (int64_t q = first; q < k.Q; q += kThreads) columns += pre[q] * pre[q];
    rows = block_sum(rows, shared);
    columns = block_sum(columns, shared);
    injected += static_cast<double>(rows) * static_cast<double>(columns);
  }
  T moves = 0, signs = 0;
  for (int64_t j = first; j < states; j += kThreads) {
    moves += moved[j] * moved[j];
    signs += nu[j] * nu[j];
  }
  moves = block_sum(moves, shared);
  signs = block_sum(signs, shared);
  const double norm = kept(p, b) ? static_cast<double>(p.norm[b]) : 0;
  const double rho0 = root_of_ratio(norm, sqrt(static_cast<double>(moves)));
  const double rho1 = root_of_ratio(sqrt(injected), sqrt(static_cast<double>(signs)));
  const T keeps = static_cast<T>(rho0), adds = static_cast<T>(rho1), over = static_cast<T>(1 / rho1);
  T weight = 0;
  for (int64_t j = first; j < states; j += kThreads) {
    const T s = keeps * moved[j] + adds * nu[j];
    p.s[b * states + j] = s;
    if (p.signal) weight += p.signal[b * states + j] * s;
  }
  weight = block_sum(weight, shared);
  if (threadIdx.x == 0) {
    p.scale[b] = static_cast<T>(1 / rho0);
    p.weight[b] = weight;
  }
  for (int64_t i = 0; i < p.count; ++i) {
    const UoroBlock<T>& k = blocks.at[i];
    for (int64_t r = first; r < k.R; r += kThreads) k.a[b * k.R + r] *= over;
  }
}

// What a lane has of 128 columns: four neighbours where rows are whole quads (vec), else every 32nd number, so that a warp's
// accesses stay together either way.
template <class T>
struct Lane {
  int64_t column, step;
  int count;  // numbers inside the row
  bool vec;

  __device__ __forceinline__ Lane(int64_t part, int64_t Q, bool whole) : vec(whole) {
    const int64_t lane = threadIdx.x % kWarp;
    column = part * kUoroColumns + (vec ? lane * kEach : lane);
    step = vec ? 1 : kWarp;
    const int64_t rest = column < Q ? (Q - column + step - 1) / step : 0;
    count = static_cast<int>(rest < kEach ? rest : kEach);
  }
  __device__ __forceinline__ Quad<T> get(const T* row) const {
    if (vec) return count ? load_quad(row + column, count, true) : zero_quad<T>();
    Quad<T> q;
#pragma unroll
    for (int i = 0; i < kEach; ++i) q.v[i] = i < count ? row[column + i * kWarp] : T(0);
    return q;
  }
  __device__ __forceinline__ void put(T* row, const Quad<T>& q) const {
    if (vec) {
      if (count) store_quad(row + column, q, count, true);
      return;
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (i < count) row[column + i * kWarp] = q.v[i];
    }
  }
};

enum class Pass { Square, Step, Gradient };

template <Pass kPass, class T>
__global__ void __launch_bounds__(kThreads) pass(Uoro<T> p, UoroBlock<T> k, int64_t parts, int slices, bool vec) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, slice = warp % slices;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kWarps / slices) + warp / slices, r = i / parts;
  const bool there = r < k.R;
  const Lane<T> lane(i % parts, k.Q, vec);
  Quad<T> total = zero_quad<T>();
  const int64_t first = kPass == Pass::Gradient ? slice : blockIdx.y, every = kPass == Pass::Gradient ? slices : gridDim.y;
#pragma unroll(sizeof(T) == 4 ? 2 : 1)
  for (int64_t b = there ? first : p.B; b < p.B; b += every) {
    const int64_t row = b * k.R + r;
    T* theta = k.theta + row * k.Q;
    Quad<T> x = zero_quad<T>();
    if (kPass == Pass::Square || kept(p, b)) x = lane.get(theta);
    if (kPass != Pass::Square) {
      const Quad<T> pre = lane.get(k.pre + b * k.Q);
      const T scale = p.scale[b], a = k.a[row];
#pragma unroll
      for (int c = 0; c < kEach; ++c) x.v[c] = a * pre.v[c] + scale * x.v[c];
      lane.put(theta, x);
    }
    T squares = 0;
#pragma unroll
    for (int c = 0; c < kEach; ++c) squares += x.v[c] * x.v[c];
    squares = warp_sum(squares);
    if (threadIdx.x % kWarp == 0) k.sums[row * parts + i % parts] = squares;
    if (kPass == Pass::Gradient) {
      const T weight = p.weight[b];
#pragma unroll
      for (int c = 0; c < kEach; ++c) total.v[c] += weight * x.v[c];
    }
  }
  if constexpr (kPass == Pass::Gradient) {
    RX_SHARED(shared, T[kEach * kThreads]);
#pragma unroll
    for (int c = 0; c < kEach; ++c) shared[c * kThreads + threadIdx.x] = total.v[c];
    __syncthreads();
    if (!there || slice > 0) return;
    Quad<T> grad = lane.get(k.grad + r * k.Q);
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      T sum = shared[c * kThreads + threadIdx.x];
      for (int other = 1; other < slices; ++other) sum += shared[c * kThreads + threadIdx.x + other * kWarp];
      grad.v[c] += sum;
    }
    lane.put(k.grad + r * k.Q, grad);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) norms(Uoro<T> p, Blocks<T> blocks) {
  RX_SHARED(shared, double[kWarps]);
  const int64_t b = blockIdx.x;
  double total = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const UoroBlock<T>& k = blocks.at[i];
    const int64_t count = k.R * uoro_parts(k.Q);
    for (int64_t j = threadIdx.x; j < count; j += kThreads) total += static_cast<double>(k.sums[b * count + j]);
  }
  total = block_sum(total, shared);
  if (threadIdx.x == 0) p.norm[b] = static_cast<T>(sqrt(total));
}

// Thread blocks that have a warp for each of these.
int64_t blocks_of(int64_t warps) {
  return (warps + kWarps - 1) / kWarps;
}

// Warps that fill a card.
constexpr int64_t kFull = 4096;

template <Pass kPass, class T>
void passes(const Uoro<T>& p, void* stream) {
  for (int64_t i = 0; i < p.count; ++i) {
    const UoroBlock<T>& k = p.blocks[i];
    const int64_t parts = uoro_parts(k.Q);
    const bool vec = whole_words(k.Q, k.theta, k.pre, k.grad);
    const int64_t across = kPass == Pass::Gradient ? 1 : p.B < 65535 ? p.B : 65535;
    int slices = 1;
    while (kPass == Pass::Gradient && slices < kWarps && 2 * slices <= p.B && k.R * parts * slices < kFull) slices *= 2;
    const dim3 grid(static_cast<unsigned>(blocks_of(k.R * parts * slices)), static_cast<unsigned>(across));
    RX_LAUNCH((pass<kPass, T>), grid, dim3(kThreads), 0, stream, p, k, parts, slices, vec);
  }
}

}  // namespace

template <class T>
const char* uoro_step(const Uoro<T>& p, bool known, void* stream) {
  const char* name = "uoro_step";
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  Blocks<T> blocks = {};
  bool graded = false;
  int64_t most = p.B > blocks_of(p.B * p.S * p.n) ? p.B : blocks_of(p.B * p.S * p.n);
  for (int64_t i = 0; i < p.count; ++i) {
    const UoroBlock<T>& k = blocks.at[i] = p.blocks[i];
    const int64_t count = blocks_of(k.R * uoro_parts(k.Q) * kWarps);
    most = count > most ? count : most;
    graded = graded || k.grad;
  }
  if (most > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  const dim3 rows(static_cast<unsigned>(p.B)), states(static_cast<unsigned>(blocks_of(p.B * p.S * p.n))), threads(kThreads);
  if (!known) {
    passes<Pass::Square>(p, stream);
    RX_LAUNCH((norms<T>), rows, threads, 0, stream, p, blocks);
  }
  RX_LAUNCH((move<T>), states, threads, 0, stream, p);
  RX_LAUNCH((weigh<T>), rows, threads, 0, stream, p, blocks);
  if (graded && p.signal) {
    passes<Pass::Gradient>(p, stream);
  } else {
    passes<Pass::Step>(p, stream);
  }
  RX_LAUNCH((norms<T>), rows, threads, 0, stream, p, blocks);
  return error_of(name, last_error());
}

template const char* uoro_step(const Uoro<float>&, bool, void*);
template const char* uoro_step(const Uoro<double>&, bool, void*);

}  // namespace cuda
}  // namespace rx
