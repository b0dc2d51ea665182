// A step of SnAp on CUDA, M_p <- J[K_p, K_p] M_p + I, in place; see influence.h. A block has one owner's numbers of one batch
// row, some columns at a time in shared memory.
#include "kernels/cuda/influence.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

constexpr int kThreads = 128;

// W columns in a panel; a thread has a quad of them.
template <class T, int W>
struct OwnerBlock {
  static constexpr int kGroups = kThreads * kColumns / W;  // threads above each other, each with every kGroups-th row
  const SnapStep<T>& p;
  int64_t owner, b, first_unit, units, first_column, columns, rows, width;
  int column, group;
  bool whole, vec;
  T *old, *between, *m;

  __device__ __forceinline__ OwnerBlock(const SnapStep<T>& step, T* shared, bool words) : p(step) {
    const SnapPattern& at = p.pattern;
    owner = blockIdx.x % p.s.n;
    b = blockIdx.x / p.s.n;
    first_unit = at.unit_at[owner];
    units = at.unit_at[owner + 1] - first_unit;
    first_column = at.column_at[owner];
    columns = at.column_at[owner + 1] - first_column;
    rows = p.s.S * units;
    width = p.s.R / p.s.n * columns;
    whole = at.link_at[first_unit] == at.link_at[first_unit + units];
    column = static_cast<int>(threadIdx.x) % (W / kColumns) * kColumns;
    group = static_cast<int>(threadIdx.x) / (W / kColumns);
    between = shared;
    old = shared + kThreads * kColumns;
    m = p.influence + b * p.batch + at.at[owner];
    vec = words && at.at[owner] % kColumns == 0 && width % kColumns == 0;
  }
  __device__ __forceinline__ int64_t unit(int64_t i) const { return p.pattern.units[first_unit + i]; }
  __device__ __forceinline__ int inside(int64_t left) const {
    const int64_t rest = width - left - column;
    return static_cast<int>(rest < 0 ? 0 : rest < kColumns ? rest : kColumns);
  }
  __device__ __forceinline__ Quad<T> get(int64_t i, int64_t left) const {
    return load_quad(m + i * width + left + column, inside(left), vec);
  }
  __device__ __forceinline__ static void add(Quad<T>& to, T factor, const Quad<T>& x) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) to.v[c] += factor * x.v[c];
  }
  // A row of the product in this thread's columns of the panel.
  __device__ __forceinline__ Quad<T> product(const T* row, int64_t i) const {
    Quad<T> total = zero_quad<T>();
    const int64_t from = whole ? 0 : p.pattern.link_at[first_unit + i];
    const int64_t to = whole ? units : p.pattern.link_at[first_unit + i + 1];
    for (int64_t state = 0; state < p.s.S; ++state) {
      for (int64_t l = from; l < to; ++l) {
        const int64_t j = whole ? l : p.pattern.links[l];
        add(total, row[state * p.s.n + unit(j)], load_quad(old + (state * units + j) * W + column, kColumns, true));
      }
    }
    return total;
  }
  // What the owner's own rows get.
  __device__ __forceinline__ void immediate(Quad<T>& value, int64_t left, int64_t at, int64_t state) const {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (c >= inside(left)) continue;
      const int64_t gate = (left + column + c) / columns, place = (left + column + c) % columns;
      value.v[c] += p.in.psi[(at * p.s.S + state) * p.s.R + gate * p.s.n + owner] *
                    p.in.pre[at * p.s.Q + p.pattern.columns[first_column + place]];
    }
  }
  // The threads' sums, over rows in a fixed order.
  __device__ __forceinline__ void put_sum(const Quad<T>& sum, int64_t left, T* partial) const {
    store_quad(between + group * W + column, sum, kColumns, true);
    __syncthreads();
    for (int64_t c = threadIdx.x; c < W && left + c < width; c += kThreads) {
      T total = T(0);
      for (int g = 0; g < kGroups; ++g) total += between[g * W + c];
      partial[p.s.R / p.s.n * first_column + left + c] = total;
    }
    __syncthreads();
  }
  // One step for the columns from `left` on; sums under the signal, if there are weights (S n), to `partial`.
  __device__ __forceinline__ void step(int64_t left, int64_t k, const T* weights, T* partial) const {
    const InfluenceShape& s = p.s;
    const int64_t at = k * s.B + b, N = s.S * s.n, mine = inside(left) > 0 ? rows : 0;
    for (int64_t i = group; i < mine; i += kGroups) store_quad(old + i * W + column, get(i, left), kColumns, true);
    __syncthreads();
    Quad<T> sum = zero_quad<T>();
    for (int64_t i = group; i < mine; i += kGroups) {
      const int64_t state = i / units, place = i % units, row = state * s.n + unit(place);
      Quad<T> value = product(p.in.jacobian + (at * N + row) * N, place);
      if (place == 0) immediate(value, left, at, state);
      store_quad(m + i * width + left + column, value, inside(left), vec);
      if (weights) add(sum, weights[row], value);
    }
    if (weights) {
      put_sum(sum, left, partial);
    } else {
      __syncthreads();  // all have read what the next step replaces
    }
  }
  __device__ __forceinline__ void contract(int64_t left, const T* weights, T* partial) const {
    Quad<T> sum = zero_quad<T>();
    const int64_t mine = inside(left) > 0 ? rows : 0;
    for (int64_t i = group; i < mine; i += kGroups) {
      add(sum, weights[i / units * p.s.n + unit(i % units)], get(i, left));
    }
    put_sum(sum, left, partial);
  }
};

template <class T, int W>
__global__ void __launch_bounds__(kThreads) snap_blocks(SnapStep<T> p, T* partial, bool vec) {
  RX_DYNAMIC_SHARED(T, shared);
  const OwnerBlock<T, W> block(p, shared, vec);
  const InfluenceShape& s = p.s;
  const int64_t N = s.S * s.n, all = s.R / s.n * p.pattern.columns_all;
  for (int64_t left = 0; left < block.width; left += W) {
    for (int64_t k = 0; k < s.K; ++k) {
      const int64_t with = k - (s.K - s.signals), at = with * s.B + block.b;
      block.step(left, k, with >= 0 ? p.in.signal + at * N : nullptr, with >= 0 ? partial + at * all : nullptr);
    }
    if (s.K == 0) block.contract(left, p.in.signal + block.b * N, partial + block.b * all);
  }
}

// The gradient from what each batch row adds to it, step by step; a block has one owner.
template <class T>
__global__ void __launch_bounds__(kThreads) snap_gradient(SnapStep<T> p, const T* partial) {
  const InfluenceShape& s = p.s;
  const int64_t owner = blockIdx.x, gates = s.R / s.n, all = gates * p.pattern.columns_all;
  const int64_t first = p.pattern.column_at[owner], columns = p.pattern.column_at[owner + 1] - first;
  for (int64_t i = threadIdx.x; i < gates * columns; i += kThreads) {
    const int64_t place = (i / columns * s.n + owner) * s.Q + p.pattern.columns[first + i % columns];
    T grad = p.in.grad[place];
    for (int64_t k = 0; k < s.signals; ++k) {
      T total = T(0);
      for (int64_t b = 0; b < s.B; ++b) total += partial[(k * s.B + b) * all + gates * first + i];
      grad += total;
    }
    p.in.grad[place] = grad;
  }
}

template <class T, int W>
const char* start(const SnapStep<T>& p, T* partial, int64_t bytes, int64_t most, void* stream) {
  const char* name = "snap_step";
  const int64_t blocks = p.s.n * p.s.B;
  if (blocks > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  if (!set_max_dynamic_shared(snap_blocks<T, W>, static_cast<size_t>(most))) return error_of(name, last_error());
  RX_LAUNCH((snap_blocks<T, W>), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), static_cast<size_t>(bytes), stream, p,
            partial, whole_words(p.batch, p.influence));
  if (p.s.signals > 0) {
    RX_LAUNCH((snap_gradient<T>), dim3(static_cast<unsigned>(p.s.n)), dim3(kThreads), 0, stream, p, partial);
  }
  return error_of(name, last_error());
}

}  // namespace

template <class T>
const char* snap_step(const SnapStep<T>& p, int64_t most_units, T* partial, void* stream) {
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  const int64_t most = limits().max_dynamic_shared, rows = p.s.S * most_units;
  const auto bytes = [&](int64_t width) { return (kThreads * kColumns + rows * width) * static_cast<int64_t>(sizeof(T)); };
  if (bytes(32) <= most) return start<T, 32>(p, partial, bytes(32), most, stream);
  if (bytes(4) > most) return error_of("snap_step", "more states than a block's shared memory holds");
  return start<T, 4>(p, partial, bytes(4), most, stream);
}

template const char* snap_step(const SnapStep<float>&, int64_t, float*, void*);
template const char* snap_step(const SnapStep<double>&, int64_t, double*, void*);

}  // namespace cuda
}  // namespace rx
