// Small helpers between torch's stable tensors and the kernels' raw parameters.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/leaky.h"

namespace rx {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// `x` must have the given sizes after a leading dimension of 1 or L (L is checked by the caller's `leads`).
inline void check_shape(const Tensor& x, const char* name, std::initializer_list<int64_t> tail) {
  bool good = x.dim() == static_cast<int64_t>(tail.size()) + 1;
  int64_t i = 1;
  for (int64_t size : tail) {
    good = good && x.size(i) == size;
    ++i;
  }
  if (good) return;
  std::string message = std::string(name) + " has the wrong shape: expected (L or 1";
  for (int64_t size : tail) message += ", " + std::to_string(size);
  message += "), got (";
  for (int64_t d = 0; d < x.dim(); ++d) message += (d ? ", " : "") + std::to_string(x.size(d));
  STD_TORCH_CHECK(false, message + ")");
}

// The dtype in which tensors of `dtype` are computed.
inline ScalarType computed(ScalarType dtype) {
  return dtype == ScalarType::Half || dtype == ScalarType::BFloat16 ? ScalarType::Float : dtype;
}

// Collects the arguments of one call: checks dtype, device and leading sizes, keeps contiguous copies alive.
class Arguments {
 public:
  explicit Arguments(const Tensor& like) : dtype_(like.scalar_type()), device_(like.device()) {}

  void add(const Tensor& x, const char* name, std::initializer_list<int64_t> tail) {
    STD_TORCH_CHECK(x.scalar_type() == dtype_, std::string(name) + " has another dtype than the first argument");
    add_any(x, name, tail);
  }
  void add(const OptionalTensor& x, const char* name, std::initializer_list<int64_t> tail) {
    if (x) add(*x, name, tail);
  }
  // Of the dtype of computation.
  void add_computed(const Tensor& x, const char* name, std::initializer_list<int64_t> tail) {
    STD_TORCH_CHECK(
        x.scalar_type() == computed(dtype_),
        std::string(name) + (computed(dtype_) == dtype_ ? " has another dtype than the first argument"
                                                        : " must be float32 where the first argument is half precision"));
    add_any(x, name, tail);
  }
  void add_computed(const OptionalTensor& x, const char* name, std::initializer_list<int64_t> tail) {
    if (x) add_computed(*x, name, tail);
  }
  int64_t L() const { return L_; }

  template <class T>
  In<T> in(const Tensor& x) {
    kept_.push_back(x.is_contiguous() ? x : torch::stable::contiguous(x));
    return {static_cast<const T*>(kept_.back().const_data_ptr()), x.size(0) != 1};
  }
  template <class T>
  In<T> in(const OptionalTensor& x) {
    return x ? in<T>(*x) : In<T>{};
  }
  const int64_t* lengths(const OptionalTensor& x, int64_t batch) {
    if (!x) return nullptr;
    STD_TORCH_CHECK(x->scalar_type() == ScalarType::Long && x->dim() == 1 && x->size(0) == batch && x->device() == device_,
                    "lengths must be an int64 tensor of shape (" + std::to_string(batch) + ",) on the device of the rest");
    kept_.push_back(x->is_contiguous() ? *x : torch::stable::contiguous(*x));
    return static_cast<const int64_t*>(kept_.back().const_data_ptr());
  }

 private:
  void add_any(const Tensor& x, const char* name, std::initializer_list<int64_t> tail) {
    STD_TORCH_CHECK(x.device() == device_, std::string(name) + " is on another device than the first argument");
    check_shape(x, name, tail);
    const int64_t lead = x.size(0);
    STD_TORCH_CHECK(lead == 1 || L_ == 1 || lead == L_,
                    std::string(name) + " has leading size " + std::to_string(lead) + ", expected 1 or " + std::to_string(L_));
    if (lead != 1) L_ = lead;  // 0 as well: nothing to do
  }

  ScalarType dtype_;
  torch::stable::Device device_;
  int64_t L_ = 1;
  std::vector<Tensor> kept_;
};

inline Tensor make(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()));
}
// An empty tensor in the dtype of computation.
inline Tensor make_computed(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()),
                                  computed(like.scalar_type()));
}
template <class T>
T* out(const Tensor& x) {
  return x.numel() ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

// 64-byte aligned numbers, freed at the end of scope.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 64) / 64 * 64;
    p_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    STD_TORCH_CHECK(p_ != nullptr, "out of memory: " + std::to_string(bytes) + " bytes of scratch");
  }
  T* get() const { return p_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> p_;
};

template <class F>
void with_dtype(ScalarType dtype, F&& f) {
  if (dtype == ScalarType::Float) return f(float{});
  if (dtype == ScalarType::Double) return f(double{});
  STD_TORCH_CHECK(false, "the kernels take float32 or float64");
}

inline LeakyShape leaky_shape(int64_t L, int64_t T, int64_t B, int64_t n, int64_t form, int64_t act, bool unit_leak) {
  STD_TORCH_CHECK(form == 0 || form == 1, "form must be 0 (rate) or 1 (voltage)");
  STD_TORCH_CHECK(act >= 0 && act <= 3, "act must be 0 to 3");
  STD_TORCH_CHECK(!(unit_leak && form == 1), "unit_leak is for the rate form");
  return {L, T, B, n, static_cast<Form>(form), static_cast<Activation>(act), unit_leak, nullptr, 0, T, false};
}

}  // namespace rx
