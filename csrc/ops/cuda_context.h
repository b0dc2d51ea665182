// The device and stream of an operation on CUDA, errors of launchers, and where operations are registered. The same sources
// make the emulated operations of the tests (RX_CUDA_ON_CPU), which take CPU tensors under a namespace of their own.
#pragma once
#include <torch/csrc/stable/accelerator.h>

#include <string>

#include "ops/tensors.h"

#ifdef RX_CUDA_ON_CPU
#define RX_LIBRARY rtrl_ext_emulated
#define RX_KEY CPU
#else
#define RX_LIBRARY rtrl_ext
#define RX_KEY CUDA
#endif

namespace rx {

inline void check(const char* error) {
  STD_TORCH_CHECK(error == nullptr, std::string("rtrl_ext, CUDA: ") + error);
}

#ifdef RX_CUDA_ON_CPU
struct Context {
  explicit Context(const Tensor&) {}
  void* stream() const { return nullptr; }
};
#else
// The tensor's device and the caller's stream on it.
class Context {
 public:
  explicit Context(const Tensor& x)
      : guard_(x.get_device_index()), stream_(torch::stable::accelerator::getCurrentStream(x.get_device_index())) {}
  void* stream() const { return stream_.nativeHandle(); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  torch::stable::accelerator::Stream stream_;
};
#endif

}  // namespace rx
