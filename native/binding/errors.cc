#include "errors.h"

namespace desap {

Fault invalid(const char* code, const std::string& argument, const std::string& got, const std::string& wanted) {
  return {code, "got " + got + ", wanted " + wanted, argument};
}

Fault out_of_memory() { return {"ERR_OUT_OF_MEMORY", "an allocation failed", ""}; }

Fault disposed(const char* what) { return {"ERR_DISPOSED", std::string(what) + ": used after dispose()", ""}; }

Fault from_status(const Status& status) {
  const std::string what = status.what ? status.what : "";
  switch (status.code) {
    case Code::not_finite: {
      Fault fault =
          invalid("ERR_NOT_FINITE", what,
                  "NaN, Inf or a magnitude beyond float32 in row " + std::to_string(status.where), "finite values");
      fault.row = status.where;
      fault.image = status.image;
      return fault;
    }
    case Code::out_of_memory: return {"ERR_OUT_OF_MEMORY", "an allocation failed (" + what + ")", ""};
    case Code::cancelled: return {"ERR_DISPOSED", "the context is shutting down", ""};
    case Code::unsupported:
      return {"ERR_VALUE", "got a shape that this device does not take (" + what + "), wanted one that it does", ""};
    case Code::device_failed: return {"ERR_DEVICE_FAILED", "the device failed: " + what, ""};
    case Code::device_lost: return {"ERR_DEVICE_LOST", "the device is lost: " + what, ""};
    default: return {"ERR_INTERNAL", "a broken invariant (" + what + ")", ""};
  }
}

Napi::Error to_error(Napi::Env env, const Fault& fault) {
  Napi::Error error = Napi::Error::New(env, fault.message);
  error.Set("code", fault.code);
  if (!fault.argument.empty()) error.Set("argument", fault.argument);
  if (fault.row >= 0) error.Set("row", static_cast<double>(fault.row));
  if (fault.image >= 0) error.Set("image", static_cast<double>(fault.image));
  return error;
}

}  // namespace desap
