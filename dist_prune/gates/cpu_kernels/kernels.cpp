// The CPU kernels of gates, compiled on request (build.py).
#include <torch/extension.h>

#include "gating.h"
#include "maps.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("pixel_mean", &pixel_mean);
  module.def("fan_out", &fan_out);
  module.def("add_gated", &add_gated);
  module.def("decide", &decide);
  module.def("scale_forward", &scale_forward);
  module.def("scale_backward", &scale_backward);
}
