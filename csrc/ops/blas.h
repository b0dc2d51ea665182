// The vendor's matrix products through torch, into memory that is already there. The C shims are used because the boxed
// dispatcher of the stable interface can't pass the Scalar arguments of addmm.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "ops/tensors.h"

namespace rx {

// out = a b, all 2-D.
inline void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out = base + a b; `out` may be `base`.
inline void addmm_out(const Tensor& out, const Tensor& base, const Tensor& a, const Tensor& b) {
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), base.get(), a.get(), b.get(), 1.0, 1.0));
}

// out += a b.
inline void add_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  addmm_out(out, out, a, b);
}

// A view from `offset` numbers past the first of `x` on; the shim counts from where `x` starts in its storage.
inline Tensor strided(const Tensor& x, int64_t offset, int64_t rows, int64_t columns, int64_t row, int64_t column) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row, column};
  AtenTensorHandle view = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(x.get(), 2, sizes, strides, offset, &view));
  return Tensor(view);
}

// A dense tensor seen as rows of `columns` numbers: `rows` of them from row `first` on, as they are or transposed. One view,
// where narrow, select and transpose would each be a call of the dispatcher.
class Rows {
 public:
  Rows(const Tensor& x, int64_t columns) : x_(x), columns_(columns) {}
  Tensor operator()(int64_t first, int64_t rows) const { return strided(x_, first * columns_, rows, columns_, columns_, 1); }
  Tensor transposed(int64_t first, int64_t rows) const { return strided(x_, first * columns_, columns_, rows, 1, columns_); }

 private:
  Tensor x_;
  int64_t columns_;
};

// The same for some of the columns: `count` of them from `column` on, in rows of `row` numbers.
class Block {
 public:
  Block(const Tensor& x, int64_t row) : x_(x), row_(row) {}
  Tensor operator()(int64_t first, int64_t rows, int64_t column, int64_t count) const {
    return strided(x_, first * row_ + column, rows, count, row_, 1);
  }
  Tensor transposed(int64_t first, int64_t rows, int64_t column, int64_t count) const {
    return strided(x_, first * row_ + column, count, rows, 1, row_);
  }

 private:
  Tensor x_;
  int64_t row_;
};

}  // namespace rx
