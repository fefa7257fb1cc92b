// What a kernel says when it returns. Kernels never throw, never print and never exit.
#pragma once

#include <cstdint>

namespace desap {

enum class Code : int {
  ok = 0,
  not_finite,     // an input holds NaN or Inf (or a magnitude whose square leaves float32); `where` is its first row
  out_of_memory,  // an allocation failed; nothing was kept
  cancelled,      // the context is shutting down
  unsupported,    // the device cannot do this shape (`what` says which); nothing was computed
  device_failed,  // the device refused (`what` is the driver's word for it); the context works on
  device_lost,    // the device, or its context, is dead: every later call says so too
  internal,       // a broken invariant: a bug in this library
};

struct Status {
  Code code = Code::ok;
  const char* what = nullptr;  // the kernel's name for the input at fault, a static string ("x", "text", "scores", ...)
  int64_t where = -1;          // row (or element) of that input, where it is known
  int64_t image = -1;          // which image of a batch, where there are several

  bool good() const { return code == Code::ok; }
};

#define DESAP_TRY(expression)                      \
  do {                                             \
    const ::desap::Status status_ = (expression);  \
    if (!status_.good()) return status_;           \
  } while (0)

}  // namespace desap
