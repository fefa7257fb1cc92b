#include "dispatch.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "linear_layout.h"
#include "memory.h"
#if defined(__x86_64__)
#include "x86_features.h"
#endif

namespace desap {

// ------------------------------------------------------------------------------------------------- instruction sets

namespace {

struct Entry {
  Isa isa;
  const Kernels* kernels;
  bool (*supported)();  // by this processor and its operating system
};

bool always() { return true; }
#if defined(__x86_64__)
bool has_avx2() { return x86_features().avx2; }
bool has_avx512() { return x86_features().avx512; }
#if defined(DESAP_LANES16)  // a test: native/test/lanes16.cc stands in for the instructions
bool has_avx512bf16() { return has_avx2(); }
#else
bool has_avx512bf16() { return x86_features().avx512bf16; }
#endif
#endif

#if defined(__aarch64__)
bool has_neonbf16() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}
#endif

const Entry table[] = {
#if defined(__x86_64__)
    {Isa::avx512bf16, &avx512bf16_kernels, has_avx512bf16},
    {Isa::avx512, &avx512_kernels, has_avx512},
    {Isa::avx2, &avx2_kernels, has_avx2},
#elif defined(__aarch64__)
    {Isa::neonbf16, &neonbf16_kernels, has_neonbf16},
    {Isa::neon, &neon_kernels, always},
#endif
    {Isa::scalar, &scalar_kernels, always},
};

// Whether bfloat16 operands pay. Zen 4 does two multiplications with VDPBF16PS in the time of one, so they take half of
// float32's; Intel's cores with AVX-512 take four times as long for the instruction, so they take twice as long. Either is far
// from the bound: what else the machine does cannot change the answer.
bool bfloat16_pays(const Kernels& kernels) {
#if defined(DESAP_LANES16)  // whose speed says nothing
  (void)kernels;
  return true;
#else
  // The shortest of many, in turn: wide units take some 20 us to wake up.
  using Clock = std::chrono::steady_clock;
  Clock::duration bfloat16 = std::chrono::seconds(1), float32 = bfloat16;
  const auto time = [](float (*multiply)(int64_t), Clock::duration& shortest) {
    const auto start = Clock::now();
    [[maybe_unused]] const volatile float kept = multiply(100);
    shortest = std::min(shortest, Clock::now() - start);
  };
  for (int i = 0; i < 100; i++) time(kernels.multiply_float32, float32), time(kernels.multiply_bfloat16, bfloat16);
  return 5 * bfloat16 < 8 * float32;  // a step has twice the products
#endif
}

// Best first. Where bfloat16 operands do not pay, the set without them comes before the one with them; float32 is the same in both.
std::vector<const Entry*> order() {
  std::vector<const Entry*> entries;
  for (const Entry& entry : table) {
    if (entry.supported()) entries.push_back(&entry);
  }
  if (entries.size() > 1 && entries[0]->kernels->multiply_bfloat16 && !bfloat16_pays(*entries[0]->kernels)) {
    std::swap(entries[0], entries[1]);
  }
  return entries;
}

}  // namespace

int supported_isas(Isa out[isa_count]) {
  static const std::vector<const Entry*> entries = order();
  int count = 0;
  for (const Entry* entry : entries) out[count++] = entry->isa;
  return count;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::neon: return "neon";
    case Isa::neonbf16: return "neonbf16";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512bf16: return "avx512bf16";
  }
  return "unknown";
}

bool has_bfloat16(Isa isa) {
  for (const Entry& entry : table) {
    if (entry.isa == isa) return entry.kernels->multiply_bfloat16 != nullptr;
  }
  return false;
}

// ---------------------------------------------------------------------------------------------------------- context

Status context_create(const ContextOptions& options, Context** context) {
  for (const Entry& entry : table) {
    if (entry.isa != options.isa || !entry.supported()) continue;
    try {
      *context = new Context(*entry.kernels, options.threads, options.bfloat16 && entry.kernels->multiply_bfloat16);
      return {};
    } catch (const std::bad_alloc&) {
      return out_of_memory("context");
    } catch (const std::system_error&) {  // the system starts no more threads
      return out_of_memory("threads");
    }
  }
  return {Code::internal, "isa", -1};
}

void context_destroy(Context* context) { delete context; }

void FirstRow::report(int64_t row) {
  int64_t first = row_.load(std::memory_order_relaxed);
  while (row < first && !row_.compare_exchange_weak(first, row, std::memory_order_relaxed)) {
  }
}

Status FirstRow::status(const char* input) const {
  const int64_t row = row_.load(std::memory_order_relaxed);
  if (row == INT64_MAX) return {};
  return {Code::not_finite, input, row};
}

int64_t padded_ld(int64_t columns) {
  const int64_t line = 16;
  const int64_t ld = (columns + line - 1) / line * line;
  return ld % 256 == 0 ? ld + line : ld;
}

// ---------------------------------------------------------------------------------------------------------- kernels

Status convert_half(Context& context, const uint16_t* x, int64_t size, float* y) {
  return context.kernels->convert_half(context, x, size, y);
}

Status convert_to_half(Context& context, const float* x, int64_t size, uint16_t* y) {
  return context.kernels->convert_to_half(context, x, size, y);
}

Status layer_norm(Context& context, ConstMatrix x, const float* weight, const float* bias, float epsilon, Matrix y) {
  return context.kernels->layer_norm(context, x, weight, bias, epsilon, y);
}

Status rms_norm(Context& context, ConstMatrix x, const float* weight, float epsilon, Matrix y) {
  return context.kernels->rms_norm(context, x, weight, epsilon, y);
}

Status linear_pack(Context& context, ConstMatrix weight, const float* bias, Linear** linear) {
  return context.kernels->linear_pack(context, weight, bias, context.bfloat16, linear);
}

Status linear_pack_float32(Context& context, ConstMatrix weight, const float* bias, Linear** linear) {
  return context.kernels->linear_pack(context, weight, bias, false, linear);
}

void linear_free(Linear* linear) {
  if (!linear) return;
  free_memory(linear->data);
  delete linear;
}

Status linear(Context& context, ConstMatrix x, const Linear& weight, Matrix y) {
  return context.kernels->linear(context, x, weight, y);
}

Status attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Matrix y) {
  return context.kernels->attention(context, q, k, v, heads, y, {});
}

Status saliency(Context& context, ConstMatrix q, ConstMatrix k, int64_t heads, bool class_token, Rotary rotary, float* saliency) {
  return context.kernels->saliency(context, q, k, heads, class_token, rotary, saliency);
}

Status self_attention(Context& context, ConstMatrix q, ConstMatrix k, ConstMatrix v, int64_t heads, Rotary rotary, Matrix y,
                      float* saliency) {
  return context.kernels->self_attention(context, q, k, v, heads, rotary, y, saliency);
}

Status unit_rows(Context& context, ConstMatrix x, Matrix y) { return context.kernels->unit_rows(context, x, y); }

Status align(Context& context, ConstMatrix visual, ConstMatrix text, const float* end_of_text, const float* global,
             Alignment alignment, float lambda, float* task, AlignmentMatrices matrices) {
  return context.kernels->align(context, visual, text, end_of_text, global, alignment, lambda, task, matrices);
}

Status merge(Context& context, ConstMatrix features, const int32_t* kept, int64_t k, Matrix tokens, int32_t* assignment,
             int32_t* counts) {
  return context.kernels->merge(context, features, nullptr, kept, k, tokens, assignment, counts);
}

}  // namespace desap
