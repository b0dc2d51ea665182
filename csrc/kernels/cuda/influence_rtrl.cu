// A step of exact RTRL on CUDA, M <- J M + I, in place; see influence.h. The kernel's own products: a block reads a panel of
// columns into shared memory, multiplies it by the Jacobian, which passes through shared memory in tiles, and writes the
// product where the panel was.
#include "kernels/cuda/influence.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kOwnRows = 8;  // a thread's sums: 8 rows, a quad of columns

// 16 bytes at a time. By name: here the compiler makes single numbers of store_quad's words.
#ifdef __CUDACC__
__device__ __forceinline__ void store_words(float* p, const Quad<float>& q) {
  __stcs(reinterpret_cast<float4*>(p), make_float4(q.v[0], q.v[1], q.v[2], q.v[3]));
}
__device__ __forceinline__ void store_words(double* p, const Quad<double>& q) {
  __stcs(reinterpret_cast<double2*>(p), make_double2(q.v[0], q.v[1]));
  __stcs(reinterpret_cast<double2*>(p) + 1, make_double2(q.v[2], q.v[3]));
}
#else
template <class T>
void store_words(T* p, const Quad<T>& q) {
  store_quad(p, q, kColumns, true);
}
#endif

constexpr int W = 64, Deep = 16;                 // columns of a panel; columns of the Jacobian in a tile
constexpr int kAbove = kThreads * kColumns / W;  // threads above each other
constexpr int kTall = kOwnRows * kAbove;         // rows of a tile
constexpr int kStride = kTall + kColumns;        // of the tile in shared memory, against bank conflicts
static_assert(kAbove * W <= Deep * kStride, "the sums under a signal take the tile's place");

template <class T>
struct Block {
  const RtrlStep<T>& p;
  int N, width, column, count, group;  // count: of the thread's columns, those inside
  bool vec;
  int64_t b, first;
  T *old, *tile, *m;
  // Of the thread's columns: the parameters' unit, places in psi and in pre.
  int own[kColumns], r[kColumns], q[kColumns];

  __device__ __forceinline__ Block(const RtrlStep<T>& step, T* shared, int64_t panels, bool whole) : p(step), vec(whole) {
    const InfluenceShape& s = p.s;
    const int64_t all = s.R * s.Q;
    N = static_cast<int>(s.S * s.n);
    b = blockIdx.x / panels;
    first = blockIdx.x % panels * W;
    width = static_cast<int>(all - first < W ? all - first : W);
    column = static_cast<int>(threadIdx.x) % (W / kColumns) * kColumns;
    count = width - column;
    group = static_cast<int>(threadIdx.x) / (W / kColumns);
    old = shared;
    tile = shared + static_cast<int64_t>(N) * W;
    m = p.influence + b * p.batch + first;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      r[c] = static_cast<int>((first + column + c) / s.Q);
      q[c] = static_cast<int>((first + column + c) % s.Q);
      own[c] = c < count ? r[c] % static_cast<int>(s.n) : -1;
    }
  }
  __device__ __forceinline__ void read_panel() const {
    if (count <= 0) return;  // what isn't read meets no column that is written
    for (int row = group; row < N; row += kAbove) {
      store_quad(old + row * W + column, load_quad(m + row * p.row + column, count, vec), kColumns, true);
    }
  }
  // Rows from `top` on, columns from `left` on of the Jacobian, turned.
  __device__ __forceinline__ void read_tile(const T* jacobian, int top, int left) const {
    for (int i = threadIdx.x; i < Deep * kTall; i += kThreads) {
      const int row = i / Deep, at = i % Deep;
      const bool inside = top + row < N && left + at < N;
      tile[at * kStride + row] = inside ? jacobian[static_cast<int64_t>(top + row) * N + left + at] : T(0);
    }
  }
  __device__ __forceinline__ void multiply(const T* jacobian, int top, T (*acc)[kColumns]) const {
    for (int left = 0; left < N; left += Deep) {
      __syncthreads();  // the tile before has been read
      read_tile(jacobian, top, left);
      __syncthreads();
      const int deep = N - left < Deep ? N - left : Deep;
      for (int at = 0; at < deep; ++at) {
        const Quad<T> x = load_quad(old + static_cast<int64_t>(left + at) * W + column, kColumns, true);
        const T* from = tile + at * kStride + group * kOwnRows;
#pragma unroll
        for (int half = 0; half < kOwnRows / kColumns; ++half) {
          const Quad<T> a = load_quad(from + half * kColumns, kColumns, true);
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
#pragma unroll
            for (int c = 0; c < kColumns; ++c) acc[half * kColumns + i][c] += a.v[i] * x.v[c];
          }
        }
      }
    }
  }
  // Writes the product's rows with the immediate term, and adds them to the sums under a signal.
  __device__ __forceinline__ void finish(int top, const T (*acc)[kColumns], const T* psi, const T* pre, const T* weights,
                                         T* sums) const {
#pragma unroll
    for (int i = 0; i < kOwnRows; ++i) {
      const int row = top + group * kOwnRows + i;
      if (row >= N) continue;
      const int n = static_cast<int>(p.s.n), state = row / n, unit = row % n;
      const T weight = weights ? weights[row] : T(0);
      Quad<T> value;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        value.v[c] = acc[i][c];
        if (own[c] == unit) value.v[c] += psi[state * p.s.R + r[c]] * pre[q[c]];
        sums[c] += weight * value.v[c];
      }
      if (count <= 0) continue;
      if (vec) {
        store_words(m + row * p.row + column, value);
      } else {
        store_quad(m + row * p.row + column, value, count, false);
      }
    }
  }
  // The threads' sums, over rows in a fixed order.
  __device__ __forceinline__ void put_sums(const T* sums, T* partial) const {
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kColumns; ++c) tile[group * W + column + c] = sums[c];
    __syncthreads();
    for (int c = threadIdx.x; c < width; c += kThreads) {
      T total = T(0);
      for (int g = 0; g < kAbove; ++g) total += tile[g * W + c];
      partial[first + c] = total;
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) rtrl_panels(RtrlStep<T> p, T* partial, int64_t panels, bool vec) {
  RX_DYNAMIC_SHARED(T, shared);
  const Block<T> block(p, shared, panels, vec);
  const InfluenceShape& s = p.s;
  const int64_t N = s.S * s.n, all = s.R * s.Q;
  for (int64_t k = 0; k < s.K; ++k) {
    const int64_t at = k * s.B + block.b, with = k - (s.K - s.signals);
    const T* weights = with >= 0 ? p.in.signal + (with * s.B + block.b) * N : nullptr;
    T sums[kColumns] = {};
    __syncthreads();  // the step before has been written, and its sums have been read
    block.read_panel();
    for (int top = 0; top < N; top += kTall) {
      T acc[kOwnRows][kColumns] = {};
      block.multiply(p.in.jacobian + at * N * N, top, acc);
      block.finish(top, acc, p.in.psi + at * s.S * s.R, p.in.pre + at * s.Q, weights, sums);
    }
    if (with >= 0) block.put_sums(sums, partial + (with * s.B + block.b) * all);
  }
}

// The gradient from what each batch row adds to it, step by step.
template <class T>
__global__ void __launch_bounds__(kThreads) rtrl_gradient(RtrlStep<T> p, const T* partial, bool vec) {
  const int64_t all = p.s.R * p.s.Q, i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kColumns;
  if (i >= all) return;
  const int count = static_cast<int>(all - i < kColumns ? all - i : kColumns);
  Quad<T> grad = load_quad(p.in.grad + i, count, vec);
  for (int64_t k = 0; k < p.s.signals; ++k) {
    Quad<T> total = zero_quad<T>();
    for (int64_t b = 0; b < p.s.B; ++b) {
      const Quad<T> one = load_quad(partial + (k * p.s.B + b) * all + i, count, vec);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) total.v[c] += one.v[c];
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) grad.v[c] += total.v[c];
  }
  store_quad(p.in.grad + i, grad, count, vec);
}

// The vendor's product of some columns, with the immediate term, into the influence; `kGroups` threads above each other share
// the rows.
constexpr int kAcross = 32, kGroups = 8;
template <class T>
struct Finish {
  RtrlStep<T> p;
  const T* product;  // (B, S n, columns); null: the influence as it is
  int64_t k, first, columns, panels;
  const T* signal;  // (B, S n) or null
  T* partial;       // (B, R Q) or null
  bool vec;
};
template <class T>
__global__ void __launch_bounds__(kAcross* kGroups) rtrl_finish(const __grid_constant__ Finish<T> f) {
  const InfluenceShape& s = f.p.s;
  const int n = static_cast<int>(s.n), N = static_cast<int>(s.S * s.n);
  const int64_t b = blockIdx.x / f.panels, at = f.k * s.B + b;
  const int64_t column = (blockIdx.x % f.panels * kAcross + threadIdx.x % kAcross) * kColumns;
  const int group = threadIdx.x / kAcross;
  const int count = static_cast<int>(f.columns - column < kColumns ? f.columns - column : kColumns);
  T sums[kColumns] = {};
  if (count > 0) {
    int own[kColumns];
    const T* psi[kColumns];
    T pre[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t j = f.first + column + (c < count ? c : 0), r = j / s.Q;
      own[c] = c < count ? static_cast<int>(r % n) : -1;
      psi[c] = f.p.in.psi + at * s.S * s.R + r;
      pre[c] = f.product ? f.p.in.pre[at * s.Q + j % s.Q] : T(0);
    }
    T* to = f.p.influence + b * f.p.batch + f.first + column;
    const T* from = f.product ? f.product + b * N * f.columns + column : to;
    const int64_t below = f.product ? f.columns : f.p.row;
#pragma unroll 2
    for (int row = group; row < N; row += kGroups) {
      Quad<T> value = load_quad(from + row * below, count, f.vec);
      const T weight = f.signal ? f.signal[b * N + row] : T(0);
      const int unit = row % n;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        if (f.product && own[c] == unit) value.v[c] += psi[c][row / n * s.R] * pre[c];
        sums[c] += weight * value.v[c];
      }
      if (!f.product) continue;
      if (f.vec) {
        store_words(to + row * f.p.row, value);
      } else {
        store_quad(to + row * f.p.row, value, count, false);
      }
    }
  }
  if (!f.partial) return;
  RX_SHARED(parts, T[kGroups * kAcross * kColumns]);
#pragma unroll
  for (int c = 0; c < kColumns; ++c) parts[(group * kColumns + c) * kAcross + threadIdx.x % kAcross] = sums[c];
  __syncthreads();
  if (group > 0) return;
  for (int c = 0; c < count && c < kColumns; ++c) {
    T total = T(0);
    for (int g = 0; g < kGroups; ++g) total += parts[(g * kColumns + c) * kAcross + threadIdx.x];
    f.partial[b * s.R * s.Q + f.first + column + c] = total;
  }
}

template <class T>
const char* add_up(const RtrlStep<T>& p, const T* partial, void* stream) {
  if (p.s.signals == 0) return nullptr;
  const int64_t all = p.s.R * p.s.Q, each = kThreads * kColumns, grid = (all + each - 1) / each;
  RX_LAUNCH((rtrl_gradient<T>), dim3(static_cast<unsigned>(grid)), dim3(kThreads), 0, stream, p, partial,
            whole_words(all, p.in.grad, partial));
  return error_of("rtrl_step", last_error());
}

template <class T>
const char* finish(const RtrlStep<T>& p, const T* product, int64_t k, int64_t first, int64_t columns, T* partial,
                   void* stream) {
  const InfluenceShape& s = p.s;
  const int64_t all = s.R * s.Q, with = s.K == 0 ? 0 : k - (s.K - s.signals);
  Finish<T> f{p,       product, k,    first, columns, (columns + kAcross * kColumns - 1) / (kAcross * kColumns),
              nullptr, nullptr, false};
  if (with >= 0) {
    f.signal = p.in.signal + with * s.B * s.S * s.n;
    f.partial = partial + with * s.B * all;
  }
  f.vec = whole_words(columns, product, p.influence) && (first | p.row | p.batch) % kColumns == 0;
  const int64_t blocks = f.panels * s.B;
  if (blocks > 0x7fffffff) return error_of("rtrl_step", "more blocks than a grid can have");
  RX_LAUNCH((rtrl_finish<T>), dim3(static_cast<unsigned>(blocks)), dim3(kAcross * kGroups), 0, stream, f);
  return error_of("rtrl_step", last_error());
}

// Steps by the vendor's products.
template <class T>
const char* run(const RtrlStep<T>& p, const Products& products, T* partial, void* stream) {
  const int64_t all = p.s.R * p.s.Q;
  for (int64_t k = 0; k < p.s.K; ++k) {
    for (int64_t first = 0; first < all; first += products.most) {
      const int64_t columns = all - first < products.most ? all - first : products.most;
      products.multiply(products.context, k, first, columns);
      if (const char* error = finish(p, static_cast<const T*>(products.out), k, first, columns, partial, stream)) return error;
    }
  }
  return add_up(p, partial, stream);
}

}  // namespace

template <class T>
const char* rtrl_step(const RtrlStep<T>& p, const Products* products, T* partial, void* stream) {
  const char* name = "rtrl_step";
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  const int64_t all = p.s.R * p.s.Q, panels = (all + W - 1) / W, blocks = panels * p.s.B, most = limits().max_dynamic_shared;
  if (p.s.K == 0) {
    const char* error = finish<T>(p, nullptr, 0, 0, all, partial, stream);
    return error ? error : add_up(p, partial, stream);
  }
  if (products) return run(p, *products, partial, stream);
  const int64_t bytes = (p.s.S * p.s.n * W + Deep * kStride) * static_cast<int64_t>(sizeof(T));
  if (bytes > most) return error_of(name, "so many states that products must be the vendor's");
  if (blocks > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  if (!set_max_dynamic_shared(rtrl_panels<T>, static_cast<size_t>(most))) return error_of(name, last_error());
  const bool vec = whole_words(all, p.influence) && p.row % kColumns == 0 && p.batch % kColumns == 0;
  RX_LAUNCH((rtrl_panels<T>), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), static_cast<size_t>(bytes), stream, p,
            partial, panels, vec);
  if (const char* error = last_error()) return error_of(name, error);
  return add_up(p, partial, stream);
}

template const char* rtrl_step(const RtrlStep<float>&, const Products*, float*, void*);
template const char* rtrl_step(const RtrlStep<double>&, const Products*, double*, void*);

}  // namespace cuda
}  // namespace rx
