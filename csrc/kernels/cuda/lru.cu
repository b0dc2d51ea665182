// The LRU's scans on CUDA; see lru.h. A thread has four units of a row and, where time is cut, a chunk of it.
#include "kernels/cuda/lru.h"

#include "cells/lru.h"
#include "kernels/cuda/run.h"

namespace rx {
namespace cuda {
namespace {

using namespace RX_NS;

constexpr int kThreads = 256;

// Four complex numbers.
template <class T>
struct Planes {
  Quad<T> re, im;
};
template <class T, class F>
__device__ __forceinline__ Planes<T> each(F&& f) {
  Planes<T> out;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const Complex<T> z = f(i);
    out.re.v[i] = z.re;
    out.im.v[i] = z.im;
  }
  return out;
}
template <class T>
__device__ __forceinline__ Complex<T> at(const Planes<T>& x, int i) {
  return {x.re.v[i], x.im.v[i]};
}
template <class T>
__device__ __forceinline__ Planes<T> nothing() {
  return {zero_quad<T>(), zero_quad<T>()};
}
template <class T>
__device__ __forceinline__ Planes<T> state(const Planes<T>& lam, const Planes<T>& s, const Planes<T>& u) {
  return each<T>([&](int i) { return lru_state(at(lam, i), at(s, i), at(u, i)); });
}
template <class T>
__device__ __forceinline__ Planes<T> adjoint(const Planes<T>& lam, const Planes<T>& a, const Planes<T>& g) {
  return each<T>([&](int i) { return lru_adjoint(at(lam, i), at(a, i), at(g, i)); });
}
template <class T>
__device__ __forceinline__ Planes<T> sum(const Planes<T>& a, const Planes<T>& b) {
  return each<T>([&](int i) { return Complex<T>{a.re.v[i] + b.re.v[i], a.im.v[i] + b.im.v[i]}; });
}
// lambda to the power of `steps`, a power of two.
template <class T>
__device__ __forceinline__ Planes<T> power(Planes<T> lam, int64_t steps) {
  for (; steps > 1; steps /= 2) lam = state(lam, lam, nothing<T>());
  return lam;
}

// Where a thread's four units lie: two places in rows of 2 n numbers, of the real and of the imaginary parts.
struct Spot {
  Place re, im;
  int64_t row, n, chunk, begin, end, count;  // chunk and its steps; number of chunks
  bool vec;

  __device__ __forceinline__ Spot(const LruShape& s, int64_t i, Chunks c, int64_t first_chunk, bool whole)
      : n(s.n), vec(whole) {
    const int64_t quads = (n + kColumns - 1) / kColumns, rows = s.L * s.B;
    const int j = static_cast<int>(i % quads) * kColumns;
    const LeakyShape wide{s.L, s.T, s.B, 2 * n, Form::Rate, Activation::Identity, false, s.lengths, 0, s.T, false};
    row = i / quads % rows;
    re = Place(wide, row, j, vec);
    im = Place(wide, row, static_cast<int>(n) + j, vec);
    re.count = im.count = static_cast<int>(n - j < kColumns ? n - j : kColumns);
    count = c.count;
    chunk = first_chunk + i / quads / rows;
    begin = chunk * c.steps;
    end = begin + c.steps < s.T ? begin + c.steps : s.T;
  }
  template <class T>
  __device__ __forceinline__ Planes<T> get(const In<T>& x, int64_t t) const {
    return {re.get(x, t), im.get(x, t)};
  }
  template <class T>
  __device__ __forceinline__ Planes<T> batch(const In<T>& x) const {
    return {re.batch(x), im.batch(x)};
  }
  template <class T>
  __device__ __forceinline__ Planes<T> unit(const In<T>& x) const {
    return {re.unit(x, 2 * n), im.unit(x, 2 * n)};
  }
  template <class T>
  __device__ __forceinline__ void put(T* x, int64_t t, const Planes<T>& z) const {
    re.put(x, t, z.re);
    im.put(x, t, z.im);
  }
  template <class T>
  __device__ __forceinline__ void put_batch(T* x, const Planes<T>& z) const {
    re.put_batch(x, z.re);
    im.put_batch(x, z.im);
  }
  // x (L * B, chunks, 2, n).
  template <class T>
  __device__ __forceinline__ Planes<T> get_chunk(const T* x, int64_t c) const {
    const T* p = x + (row * count + c) * 2 * n + re.j;
    return {load_quad(p, re.count, vec), load_quad(p + n, re.count, vec)};
  }
  template <class T>
  __device__ __forceinline__ void put_chunk(T* x, int64_t c, const Planes<T>& z) const {
    T* p = x + (row * count + c) * 2 * n + re.j;
    store_quad(p, z.re, re.count, vec);
    store_quad(p + n, z.im, re.count, vec);
  }
};

__device__ __forceinline__ int64_t thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

// What the chunks but the last leave when they start from nothing.
template <class T>
__global__ void __launch_bounds__(kThreads) scan_alone(LruScan<T> p, Chunks c, T* between, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  const Spot at(p.s, i, c, 0, vec);
  const Planes<T> lam = at.unit(p.lam);
  Planes<T> s = nothing<T>();
  for (int64_t t = at.begin; t < at.end; ++t) s = state(lam, s, at.get(p.u, t));
  at.put_chunk(between, at.chunk, s);
}

// The states at the ends of the chunks but the last.
template <class T>
__global__ void __launch_bounds__(kThreads) scan_carry(LruScan<T> p, Chunks c, T* between, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  const Spot at(p.s, i, c, 0, vec);
  const Planes<T> lam = power(at.unit(p.lam), c.steps);
  Planes<T> s = at.batch(p.s0);
  for (int64_t k = 0; k + 1 < c.count; ++k) {
    s = state(lam, s, at.get_chunk(between, k));
    at.put_chunk(between, k, s);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) scan_chunks(LruScan<T> p, Chunks c, const T* between, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  const Spot at(p.s, i, c, 0, vec);
  const Planes<T> lam = at.unit(p.lam);
  Planes<T> s = at.chunk == 0 ? at.batch(p.s0) : at.get_chunk(between, at.chunk - 1), u = at.get(p.u, at.begin);
  for (int64_t t = at.begin; t < at.end; ++t) {
    const Planes<T> next = t + 1 < at.end ? at.get(p.u, t + 1) : u;  // asked for before the store
    s = state(lam, s, u);
    at.put(p.states, t, t < at.re.length ? s : nothing<T>());
    if (t == at.re.length - 1) at.put_batch(p.s_n, s);
    u = next;
  }
}

// a_t from a_{t+1}.
template <class T>
__device__ __forceinline__ Planes<T> back(const LruBackward<T>& p, const Spot& at, int64_t t, const Planes<T>& lam,
                                          const Planes<T>& later, const Planes<T>& gs) {
  const int64_t left = at.re.length - t - 1;  // steps after this one
  if (left < 0) return nothing<T>();
  if (left == 0) return sum(gs, at.batch(p.gs_n));
  return p.window > 0 && left % p.window == 0 ? gs : adjoint(lam, later, gs);
}

// What the chunks but the first hand to the one before when nothing comes from the one after.
template <class T>
__global__ void __launch_bounds__(kThreads) back_alone(LruBackward<T> p, Chunks c, T* between, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  const Spot at(p.s, i, c, 1, vec);
  const Planes<T> lam = at.unit(p.lam);
  Planes<T> a = nothing<T>();
  for (int64_t t = at.end - 1; t >= at.begin; --t) a = back(p, at, t, lam, a, at.get(p.gs, t));
  at.put_chunk(between, at.chunk - 1, a);
}

// a at the first steps of the chunks but the first.
template <class T>
__global__ void __launch_bounds__(kThreads) back_carry(LruBackward<T> p, Chunks c, T* between, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  const Spot at(p.s, i, c, 0, vec);
  const Planes<T> lam = power(at.unit(p.lam), c.steps);
  Planes<T> a = nothing<T>();
  for (int64_t k = c.count - 1; k > 0; --k) {
    // steps of the row after the chunk's last one and after its first: a window that ends between them lets nothing through
    // (after a row's own end there is nothing)
    const int64_t after = at.re.length - (k + 1) * c.steps, most = after + c.steps - 1;
    const bool ends = p.window > 0 && most / p.window * p.window >= after;
    const Planes<T> own = at.get_chunk(between, k - 1);
    a = ends ? own : adjoint(lam, a, own);
    at.put_chunk(between, k - 1, a);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    back_chunks(LruBackward<T> p, Chunks c, const T* between, T* sums, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  const Spot at(p.s, i, c, 0, vec);
  const Planes<T> lam = at.unit(p.lam);
  Planes<T> a = at.chunk + 1 < c.count ? at.get_chunk(between, at.chunk) : nothing<T>();
  Planes<T> total = nothing<T>(), gs = at.get(p.gs, at.end - 1);
  for (int64_t t = at.end - 1; t >= at.begin; --t) {
    const Planes<T> next = t > at.begin ? at.get(p.gs, t - 1) : gs;
    Planes<T> before = nothing<T>();
    if (sums) before = t > 0 ? at.get(p.states, t - 1) : at.batch(p.s0);
    a = back(p, at, t, lam, a, gs);
    at.put(p.a, t, a);
    total = each<T>([&](int k) { return lru_rate(cuda::at(a, k), cuda::at(before, k), cuda::at(total, k)); });
    gs = next;
  }
  if (sums) at.put_chunk(sums, at.chunk, total);
  if (at.chunk == 0) at.put_batch(p.gs0, adjoint(lam, a, nothing<T>()));
}

// Each row's sums over chunks, left in its first one.
template <class T>
__global__ void __launch_bounds__(kThreads) sum_chunks(LruBackward<T> p, Chunks c, T* sums, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  const Spot at(p.s, i, c, 0, vec);
  Planes<T> total = at.get_chunk(sums, 0);
  for (int64_t k = 1; k < c.count; ++k) total = sum(total, at.get_chunk(sums, k));
  at.put_chunk(sums, 0, total);
}

// And over the rows under each of L.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_rows(LruBackward<T> p, Chunks c, const T* sums, T* glam, int64_t threads, bool vec) {
  const int64_t i = thread();
  if (i >= threads) return;
  LruShape one = p.s;
  one.B = 1;
  one.lengths = nullptr;
  Spot at(one, i, c, 0, vec);
  const int64_t l = at.row;
  Planes<T> total = nothing<T>();
  for (int64_t b = 0; b < p.s.B; ++b) {
    at.row = l * p.s.B + b;
    total = sum(total, at.get_chunk(sums, 0));
  }
  at.put_batch(glam, total);
}

// Threads and blocks for every row, quad and `chunks` of them.
struct Size {
  int64_t threads;
  dim3 grid;
  bool fits;
  Size(int64_t rows, int64_t n, int64_t chunks) : threads(rows * ((n + kColumns - 1) / kColumns) * chunks), grid(1) {
    const int64_t blocks = (threads + kThreads - 1) / kThreads;
    fits = blocks <= 0x7fffffff;
    grid = dim3(static_cast<unsigned>(blocks));
  }
};

}  // namespace

template <class T>
const char* lru_scan(const LruScan<T>& p, T* between, void* stream) {
  const char* name = "lru_scan";
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  const Chunks c = lru_chunks(p.s);
  const bool vec = whole_words(p.s.n, p.lam.p, p.u.p, p.s0.p, p.states, p.s_n, between);
  const Size each(p.s.L * p.s.B, p.s.n, c.count), row(p.s.L * p.s.B, p.s.n, 1), most(p.s.L * p.s.B, p.s.n, c.count - 1);
  if (!each.fits) return error_of(name, "more blocks than a grid can have");
  if (c.count > 1) {
    RX_LAUNCH((scan_alone<T>), most.grid, dim3(kThreads), 0, stream, p, c, between, most.threads, vec);
    RX_LAUNCH((scan_carry<T>), row.grid, dim3(kThreads), 0, stream, p, c, between, row.threads, vec);
  }
  RX_LAUNCH((scan_chunks<T>), each.grid, dim3(kThreads), 0, stream, p, c, between, each.threads, vec);
  return error_of(name, last_error());
}

template <class T>
const char* lru_backward(const LruBackward<T>& p, T* between, T* sums, T* glam, void* stream) {
  const char* name = "lru_backward";
  if (const char* error = last_error()) return error_of("a CUDA call before this one", error);
  const Chunks c = lru_chunks(p.s);
  const bool vec = whole_words(p.s.n, p.lam.p, p.gs.p, p.gs_n.p, p.states.p, p.s0.p, p.a, p.gs0, between, sums, glam);
  const Size each(p.s.L * p.s.B, p.s.n, c.count), row(p.s.L * p.s.B, p.s.n, 1), most(p.s.L * p.s.B, p.s.n, c.count - 1);
  if (!each.fits) return error_of(name, "more blocks than a grid can have");
  if (c.count > 1) {
    RX_LAUNCH((back_alone<T>), most.grid, dim3(kThreads), 0, stream, p, c, between, most.threads, vec);
    RX_LAUNCH((back_carry<T>), row.grid, dim3(kThreads), 0, stream, p, c, between, row.threads, vec);
  }
  RX_LAUNCH((back_chunks<T>), each.grid, dim3(kThreads), 0, stream, p, c, between, sums, each.threads, vec);
  if (sums) {
    const Size lead(p.s.L, p.s.n, 1);
    RX_LAUNCH((sum_chunks<T>), row.grid, dim3(kThreads), 0, stream, p, c, sums, row.threads, vec);
    RX_LAUNCH((sum_rows<T>), lead.grid, dim3(kThreads), 0, stream, p, c, sums, glam, lead.threads, vec);
  }
  return error_of(name, last_error());
}

template const char* lru_scan(const LruScan<float>&, float*, void*);
template const char* lru_scan(const LruScan<double>&, double*, void*);
template const char* lru_backward(const LruBackward<float>&, float*, float*, float*, void*);
template const char* lru_backward(const LruBackward<double>&, double*, double*, double*, void*);

}  // namespace cuda
}  // namespace rx
