// The Python module rtrl_ext._C: importing it registers the ops; it tells how it was built.
#include <pybind11/pybind11.h>

#include "kernels/leaky.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of rtrl_ext; importing this module registers torch.ops.rtrl_ext.*";
  m.def(
      "build_info",
      []() {
        py::dict info;
        info["version"] = RX_VERSION;
        info["compiler"] = RX_COMPILER;
        info["torch_target"] = RX_TORCH_TARGET;
        info["isa_compiled"] = std::string(rx::isa_compiled());
        info["isa"] = std::string(rx::isa_name());
        info["cuda_architectures"] = RX_CUDA_ARCHITECTURES;
        return info;
      },
      "How the kernels were built and which instruction set this process uses.");
}
