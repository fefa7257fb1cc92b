#include "errors.h"

#include <new>
#include <stdexcept>

namespace desap {
namespace {

Napi::Error error_of(Napi::Env env, const char* code, const char* message) {
  const Napi::Error error = Napi::Error::New(env, message);
  put(error.Value(), "code", code);
  return error;
}

}  // namespace

Napi::Error error_of(Napi::Env env, const Fault& fault) {
  const Napi::Error error = error_of(env, fault.code, fault.message.c_str());
  const Napi::Object object = error.Value();
  if (!fault.argument.empty()) put(object, "argument", fault.argument.c_str());
  if (fault.row >= 0) put(object, "row", static_cast<double>(fault.row));
  if (fault.image >= 0) put(object, "image", static_cast<double>(fault.image));
  return error;
}

Fault invalid(const char* code, const std::string& argument, const std::string& got, const std::string& wanted) {
  return {code, "got " + got + ", wanted " + wanted, argument};
}

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

Napi::Error caught(Napi::Env env) {
  try {
    throw;
  } catch (const Napi::Error& error) {
    return error;
  } catch (const Fault& fault) {
    return error_of(env, fault);
  } catch (const std::bad_alloc&) {
    return error_of(env, "ERR_OUT_OF_MEMORY", "an allocation failed");
  } catch (const std::length_error&) {
    return error_of(env, "ERR_OUT_OF_MEMORY", "an allocation failed");
  } catch (const std::exception& error) {
    return error_of(env, "ERR_INTERNAL", error.what());
  }
}

}  // namespace desap
