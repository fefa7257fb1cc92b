// The peaks of a processor, GFLOP/s on `threads` threads at once:
// - float32(isa, threads): { registers, loaded } of float32 multiply-adds;
// - bfloat16(threads): { registers, loaded } of products of bfloat16 pairs, which the processor must have.
// `registers` is of nothing but the products, `loaded` of the loop with loads (loops.h).
#include <napi.h>

#include <string>

#include "../../native/test/peak.h"
#include "loops.h"

namespace {

using namespace desap;

// An instruction set by its name; what has no loop of its own has the baseline's.
Isa isa_of(const std::string& name) {
  if (name == "avx512bf16") return Isa::avx512bf16;
  if (name == "avx512") return Isa::avx512;
  return name == "avx2" ? Isa::avx2 : Isa::scalar;
}

bench::Loop loaded_loop(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512 || isa == Isa::avx512bf16) return bench::loaded_avx512;
  if (isa == Isa::avx2) return bench::loaded_avx2;
#endif
  (void)isa;
  return bench::loaded_scalar;
}

Napi::Value peaks(Napi::Env env, double registers, double loaded) {
  Napi::Object result = Napi::Object::New(env);
  result.Set("registers", registers);
  result.Set("loaded", loaded);
  return result;
}

Napi::Value float32(const Napi::CallbackInfo& info) {
  const Isa isa = isa_of(info[0].As<Napi::String>());
  const int threads = info[1].As<Napi::Number>();
  const double registers = test::multiply_add_peak(isa, threads);
  return peaks(info.Env(), registers, bench::on_threads(threads, loaded_loop(isa)));
}

Napi::Value bfloat16(const Napi::CallbackInfo& info) {
  const int threads = info[0].As<Napi::Number>();
  const double registers = bench::on_threads(threads, bench::in_registers_bfloat16);
  return peaks(info.Env(), registers, bench::on_threads(threads, bench::loaded_bfloat16));
}

Napi::Object load(Napi::Env env, Napi::Object exports) {
  exports.Set("float32", Napi::Function::New(env, float32));
  exports.Set("bfloat16", Napi::Function::New(env, bfloat16));
  return exports;
}

}  // namespace

NODE_API_MODULE(peak, load)
