// What the ops on whole LeakyRNN layers share: pieces of the time axis, checks, views.
#pragma once
#include "ops/blas.h"
#include "ops/leaky_run.h"

namespace rx {

// Which gradients to make; the others come back empty.
enum Need : int64_t { kNeedX = 1, kNeedInputWeight = 2, kNeedWeight = 4, kNeedBias = 8, kNeedDelta = 16, kNeedInitial = 32 };

constexpr int64_t kPieceBytes = 1024 * 1024;  // a core's share of a piece, to stay in its L2 cache

// Steps per piece, for `width` numbers per row and step.
inline int64_t piece_steps(int64_t B, int64_t width, size_t element) {
  const int64_t bytes = kPieceBytes * std::max<int64_t>(1, torch::stable::get_num_threads());
  return std::max<int64_t>(8, bytes / std::max<int64_t>(1, B * width * static_cast<int64_t>(element)));
}

inline Tensor zeros_like_size(const Tensor& like, std::initializer_list<int64_t> sizes) {
  Tensor x = make(like, sizes);
  torch::stable::zero_(x);
  return x;
}

// An output that may not be asked for: then empty, and still a tensor of its own, since an operation's results never alias.
inline Tensor make_if(bool wanted, const Tensor& like, std::initializer_list<int64_t> sizes) {
  return wanted ? make(like, sizes) : make(like, {0});
}

inline Tensor dense(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// Shapes are checked by the caller in Python, where the messages are; here only what memory safety asks for.
inline void expect(bool good, const char* what) {
  STD_TORCH_CHECK(good, std::string("leaky_layer: ") + what);
}

inline void check_layer(const Tensor& x, const Tensor& w, const Tensor& leak, const OptionalTensor& lengths) {
  expect(x.dim() == 3 && w.dim() == 2 && leak.dim() == 1, "x must be (T, B, m), w (n, n), leak (n,)");
  expect(w.size(0) == w.size(1) && leak.size(0) == w.size(0), "w must be square and leak of its size");
  expect(!lengths || (lengths->scalar_type() == ScalarType::Long && lengths->dim() == 1 && lengths->size(0) == x.size(1)),
         "lengths must be int64 (B,)");
}
inline void check_like(const OptionalTensor& x, const char* name, ScalarType dtype, std::initializer_list<int64_t> sizes) {
  if (!x) return;
  bool good = x->scalar_type() == dtype && x->dim() == static_cast<int64_t>(sizes.size());
  int64_t i = 0;
  for (int64_t size : sizes) good = good && x->size(i++) == size;
  expect(good, (std::string(name) + " has the wrong shape or dtype").c_str());
}

template <class T>
In<T> whole(const OptionalTensor& x) {
  return x ? In<T>{static_cast<const T*>(x->const_data_ptr()), false} : In<T>{};
}
inline OptionalTensor dense(const OptionalTensor& x) {
  return x ? OptionalTensor(dense(*x)) : x;
}

}  // namespace rx
