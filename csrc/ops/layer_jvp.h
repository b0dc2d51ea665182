// What the tangents of whole layers share: k directions in groups that fill one tile of rows, time in pieces that stay in L2.
#pragma once
#include "ops/layer.h"

namespace rx {

constexpr int64_t kPieceBytes = 1024 * 1024;  // a core's share of a piece, to stay in its L2 cache

// Steps per piece, for `width` numbers per row and step.
inline int64_t piece_steps(int64_t B, int64_t width, size_t element) {
  const int64_t bytes = kPieceBytes * std::max<int64_t>(1, torch::stable::get_num_threads());
  return std::max<int64_t>(8, bytes / std::max<int64_t>(1, B * width * static_cast<int64_t>(element)));
}

// out += or = a b: the first product of a sum overwrites.
class Sum {
 public:
  explicit Sum(const Tensor& out) : out_(out) {}
  Sum(const Tensor& out, const Tensor& base) : out_(out), base_(base) {}
  void add(const Tensor& a, const Tensor& b) {
    if (started_) {
      addmm_out(out_, out_, a, b);
    } else if (base_) {
      addmm_out(out_, *base_, a, b);
    } else {
      mm_out(out_, a, b);
    }
    started_ = true;
  }
  void finish() {
    Tensor out = out_;
    if (started_) return;
    if (base_) {
      torch::stable::copy_(out, *base_);
    } else {
      torch::stable::zero_(out);
    }
  }

 private:
  Tensor out_;
  OptionalTensor base_;
  bool started_ = false;
};

template <class T>
In<T> directions(const OptionalTensor& x) {
  return x ? In<T>{static_cast<const T*>(x->const_data_ptr()), true} : In<T>{};
}

// Directions worked on together: enough rows to fill a tile of the recurrence, few enough to stay in the L2 cache.
// A divisor of k, so that all groups are alike.
inline int64_t group_size(int64_t k, int64_t B) {
  int64_t group = std::min(k, std::max<int64_t>(1, kTileRowsMax / std::max<int64_t>(1, B)));
  while (k % group) --group;
  return group;
}
template <class T>
In<T> from_direction(In<T> x, int64_t offset) {
  return {x.p ? x.p + offset : nullptr, x.lead};
}
template <class T>
T* from_direction(T* x, int64_t offset) {
  return x ? x + offset : nullptr;
}

}  // namespace rx
