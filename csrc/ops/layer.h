// What the ops on whole layers share: which gradients to make, checks, outputs that may not be asked for.
#pragma once
#include "ops/blas.h"
#include "ops/leaky_run.h"

namespace rx {

// Which gradients to make; the others come back empty.
enum Need : int64_t {
  kNeedX = 1,
  kNeedInputWeight = 2,
  kNeedWeight = 4,
  kNeedBias = 8,
  kNeedDelta = 16,
  kNeedInitial = 32,
  kNeedUnits = 64
};

inline Tensor zeros_like_size(const Tensor& like, std::initializer_list<int64_t> sizes) {
  Tensor x = make(like, sizes);
  torch::stable::zero_(x);
  return x;
}

// An output that may not be asked for: then empty, and still a tensor of its own, since an operation's results never alias.
inline Tensor make_if(bool wanted, const Tensor& like, std::initializer_list<int64_t> sizes) {
  return wanted ? make(like, sizes) : make(like, {0});
}
inline Tensor zeros_if(bool wanted, const Tensor& like, std::initializer_list<int64_t> sizes) {
  return wanted ? zeros_like_size(like, sizes) : make(like, {0});
}

inline Tensor dense(const Tensor& x) {
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}
inline OptionalTensor dense(const OptionalTensor& x) {
  return x ? OptionalTensor(dense(*x)) : x;
}

// Shapes are checked by the caller in Python, where the messages are; here only what memory safety asks for.
inline void expect(bool good, const char* what) {
  STD_TORCH_CHECK(good, std::string("layer: ") + what);
}
inline void check_like(const OptionalTensor& x, const char* name, ScalarType dtype, std::initializer_list<int64_t> sizes) {
  if (!x) return;
  bool good = x->scalar_type() == dtype && x->dim() == static_cast<int64_t>(sizes.size());
  int64_t i = 0;
  for (int64_t size : sizes) good = good && x->size(i++) == size;
  expect(good, (std::string(name) + " has the wrong shape or dtype").c_str());
}
inline void check_lengths(const OptionalTensor& lengths, int64_t B) {
  expect(!lengths || (lengths->scalar_type() == ScalarType::Long && lengths->dim() == 1 && lengths->size(0) == B),
         "lengths must be int64 (B,)");
}

template <class T>
In<T> whole(const OptionalTensor& x) {
  return x ? In<T>{static_cast<const T*>(x->const_data_ptr()), false} : In<T>{};
}
inline const int64_t* pointer(const OptionalTensor& lengths) {
  return lengths ? static_cast<const int64_t*>(lengths->const_data_ptr()) : nullptr;
}

}  // namespace rx
