// The peaks of a processor, GFLOP/s on `threads` threads at once, as { registers, loaded } (loops.h):
// - float32(isa, threads): of float32 multiply-adds by an instruction set that the processor has;
// - bfloat16(threads): of products of bfloat16 pairs, which the processor must have.
#include <napi.h>

#include <string>

#include "loops.h"

namespace {

using namespace desap::bench;

struct Loops {
  double (*registers)();
  double (*loaded)();
};

// What has no loops of its own has the baseline's.
Loops float32_loops(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512" || isa == "avx512bf16") return {in_registers_avx512, loaded_avx512};
  if (isa == "avx2") return {in_registers_avx2, loaded_avx2};
#endif
  (void)isa;
  return {in_registers_baseline, loaded_baseline};
}

Napi::Value measure(Napi::Env env, Loops loops, int threads) {
  Napi::Object peaks = Napi::Object::New(env);
  peaks.Set("registers", on_threads(threads, loops.registers));
  peaks.Set("loaded", on_threads(threads, loops.loaded));
  return peaks;
}

Napi::Value float32(const Napi::CallbackInfo& info) {
  return measure(info.Env(), float32_loops(info[0].As<Napi::String>()), info[1].As<Napi::Number>());
}

Napi::Value bfloat16(const Napi::CallbackInfo& info) {
  return measure(info.Env(), {in_registers_bfloat16, loaded_bfloat16}, info[0].As<Napi::Number>());
}

Napi::Object load(Napi::Env env, Napi::Object exports) {
  exports.Set("float32", Napi::Function::New(env, float32));
  exports.Set("bfloat16", Napi::Function::New(env, bfloat16));
  return exports;
}

}  // namespace

NODE_API_MODULE(peak, load)
