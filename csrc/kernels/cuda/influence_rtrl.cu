// A step of exact RTRL on CUDA, M <- J M + I, in place; see influence.h. A block reads a panel of columns into shared memory,
// multiplies it by the Jacobian, which passes through shared memory in tiles, and writes the product where the panel was.
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

// W columns in a panel, Deep columns of the Jacobian in a tile.
template <int W, int Deep>
struct Panel {
  static constexpr int kGroups = kThreads * kColumns / W;  // threads above each other
  static constexpr int kTall = kOwnRows * kGroups;         // rows of a tile
  static constexpr int kStride = kTall + kColumns;         // of the tile in shared memory, against bank conflicts
  static_assert(kGroups * W <= Deep * kStride, "the sums under a signal take the tile's place");
  static int64_t numbers(int64_t states) { return states * W + Deep * kStride; }
};

template <class T, int W, int Deep>
struct Block {
  using P = Panel<W, Deep>;
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
    for (int row = group; row < N; row += P::kGroups) {
      store_quad(old + row * W + column, load_quad(m + row * p.row + column, count, vec), kColumns, true);
    }
  }
  // Rows from `top` on, columns from `left` on of the Jacobian, turned.
  __device__ __forceinline__ void read_tile(const T* jacobian, int top, int left) const {
    for (int i = threadIdx.x; i < Deep * P::kTall; i += kThreads) {
      const int row = i / Deep, at = i % Deep;
      const bool inside = top + row < N && left + at < N;
      tile[at * P::kStride + row] = inside ? jacobian[static_cast<int64_t>(top + row) * N + left + at] : T(0);
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
        const T* from = tile + at * P::kStride + group * kOwnRows;
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
      for (int g = 0; g < P::kGroups; ++g) total += tile[g * W + c];
      partial[first + c] = total;
    }
  }
};

template <class T, int W, int Deep>
__global__ void __launch_bounds__(kThreads) rtrl_panels(RtrlStep<T> p, T* partial, int64_t panels, bool vec) {
  RX_DYNAMIC_SHARED(T, shared);
  const Block<T, W, Deep> block(p, shared, panels, vec);
  const InfluenceShape& s = p.s;
  const int64_t N = s.S * s.n, all = s.R * s.Q;
  for (int64_t k = 0; k < s.K; ++k) {
    const int64_t at = k * s.B + block.b, with = k - (s.K - s.signals);
    const T* weights = with >= 0 ? p.in.signal + (with * s.B + block.b) * N : nullptr;
    T sums[kColumns] = {};
    __syncthreads();  // the step before has been written, and its sums have been read
    block.read_panel();
    for (int top = 0; top < N; top += Panel<W, Deep>::kTall) {
      T acc[kOwnRows][kColumns] = {};
      block.multiply(p.in.jacobian + at * N * N, top, acc);
      block.finish(top, acc, p.in.psi + at * s.S * s.R, p.in.pre + at * s.Q, weights, sums);
    }
    if (with >= 0) block.put_sums(sums, partial + (with * s.B + block.b) * all);
  }
  if (s.K > 0) return;
  T sums[kColumns] = {};
  for (int row = block.group; block.count > 0 && row < N; row += Panel<W, Deep>::kGroups) {
    const Quad<T> value = load_quad(block.m + row * p.row + block.column, block.count, vec);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) sums[c] += p.in.signal[block.b * N + row] * value.v[c];
  }
  block.put_sums(sums, partial + block.b * all);
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

template <class T, int W, int Deep>
const char* start(const RtrlStep<T>& p, T* partial, int64_t bytes, int64_t most, void* stream) {
  const char* name = "rtrl_step";
  const int64_t all = p.s.R * p.s.Q, panels = (all + W - 1) / W, blocks = panels * p.s.B;
  if (blocks > 0x7fffffff) return error_of(name, "more blocks than a grid can have");
  if (!set_max_dynamic_shared(rtrl_panels<T, W, Deep>, static_cast<size_t>(most))) return error_of(name, last_error());
  const bool vec = whole_words(all, p.influence) && p.row % kColumns == 0 && p.batch % kColumns == 0;
  RX_LAUNCH((rtrl_panels<T, W, Deep>), dim3(static_cast<unsigned>(blocks)), dim3(kThreads), static_cast<size_t>(bytes), stream,
            p, partial, panels, vec);
  if (p.s.signals > 0) {
    const int64_t each = kThreads * kColumns, grid = (all + each - 1) / each;
    RX_LAUNCH((rtrl_gradient<T>), dim3(static_cast<unsigned>(grid)), dim3(kThreads), 0, stream, p, partial,
              whole_words(all, p.in.grad, partial));
  }
  return error_of(name, last_error());
}

}  // namespace

template <class T>
const char* rtrl_step(const RtrlStep<T>& p, T* partial, void* stream) {
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  const int64_t most = limits().max_dynamic_shared, N = p.s.S * p.s.n;
  const auto bytes = [&](int64_t numbers) { return numbers * static_cast<int64_t>(sizeof(T)); };
  // Wide panels where several blocks share a processor.
  if (const int64_t wide = bytes(Panel<64, 16>::numbers(N)); 3 * wide <= most) {
    return start<T, 64, 16>(p, partial, wide, most, stream);
  }
  if (const int64_t narrow = bytes(Panel<16, 8>::numbers(N)); narrow <= most) {
    return start<T, 16, 8>(p, partial, narrow, most, stream);
  }
  const int64_t least = bytes(Panel<4, 4>::numbers(N));
  if (least > most) return error_of("rtrl_step", "more states than a block's shared memory holds");
  return start<T, 4, 4>(p, partial, least, most, stream);
}

template const char* rtrl_step(const RtrlStep<float>&, float*, void*);
template const char* rtrl_step(const RtrlStep<double>&, double*, void*);

}  // namespace cuda
}  // namespace rx
