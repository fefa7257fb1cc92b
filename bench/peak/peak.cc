// multiplyAddPeak(isa, threads): GFLOP/s that the processor reaches with nothing but float32 multiply-adds in registers.
#include <napi.h>

#include <string>

#include "../../native/test/peak.h"

namespace {

// An instruction set by its name; what has no loop of its own has the baseline's.
desap::Isa isa_of(const std::string& name) {
  if (name == "avx512bf16") return desap::Isa::avx512bf16;
  if (name == "avx512") return desap::Isa::avx512;
  return name == "avx2" ? desap::Isa::avx2 : desap::Isa::scalar;
}

Napi::Value multiply_add_peak(const Napi::CallbackInfo& info) {
  const std::string isa = info[0].As<Napi::String>();
  const int threads = info[1].As<Napi::Number>();
  return Napi::Number::New(info.Env(), desap::test::multiply_add_peak(isa_of(isa), threads));
}

Napi::Object load(Napi::Env env, Napi::Object exports) {
  exports.Set("multiplyAddPeak", Napi::Function::New(env, multiply_add_peak));
  return exports;
}

}  // namespace

NODE_API_MODULE(peak, load)
