// The CPU as a device: its instruction sets and threads. Options: { threads, isa, precision }.
#include <utility>
#include <vector>

#include "../cpu/context.h"
#include "arguments.h"
#include "device.h"
#include "errors.h"

namespace desap::device {
namespace {

constexpr int64_t kMaximumThreads = 256;

// Best first.
std::vector<Isa> isas() {
  Isa supported[isa_count];
  const int count = supported_isas(supported);
  return {supported, supported + count};
}

Isa isa_of(const Napi::Value& value) {
  const std::string given = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  std::string supported;
  for (const Isa isa : isas()) {
    if (given == isa_name(isa)) return isa;
    supported += (supported.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw invalid("ERR_DEVICE_UNAVAILABLE", "isa", given, "one that this machine runs: " + supported);
}

}  // namespace

const char* const kind = "cpu";

void add_exports(Napi::Env env, Napi::Object exports) {
  const Napi::Array names = Napi::Array::New(env), bfloat16 = Napi::Array::New(env);
  for (const Isa isa : isas()) {
    put(names, names.Length(), isa_name(isa));
    if (has_bfloat16(isa)) put(bfloat16, bfloat16.Length(), isa_name(isa));
  }
  put(exports, "isas", names);
  put(exports, "bfloat16Isas", bfloat16);
}

Opened open(const Napi::Value& options) {
  const Arguments arguments(options, "options");
  const int threads = static_cast<int>(arguments.integer("threads", 1, kMaximumThreads));
  const Isa isa = isa_of(options.As<Napi::Object>().Get("isa"));
  const bool bfloat16 = arguments.choice("precision", {"fp32", "bf16"}) == 1 && has_bfloat16(isa);
  Opened opened;
  opened.device = kind;
  opened.description = std::string("CPU, ") + isa_name(isa) + ", " + std::to_string(threads) +
                       (threads == 1 ? " thread" : " threads");
  opened.precision = bfloat16 ? "bf16" : "fp32";
  Context* context = nullptr;
  const Status status = context_create({threads, isa, bfloat16}, &context);
  if (!status.good()) throw from_status(status);
  opened.context.reset(context);
  return opened;
}

void close(Context* context) { context_destroy(context); }

void* allocate_pinned(size_t) { return nullptr; }
void free_pinned(void*) {}

}  // namespace desap::device
