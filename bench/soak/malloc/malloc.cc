// inUse(): bytes that malloc has given out and that nobody has freed, of all threads. The resident memory says less: freed bytes stay in
// malloc's arenas. glibc 2.33 or later.
#include <malloc.h>
#include <napi.h>

namespace {

Napi::Value in_use(const Napi::CallbackInfo& info) {
  const struct mallinfo2 state = mallinfo2();
  return Napi::Number::New(info.Env(), static_cast<double>(state.uordblks + state.hblkhd));
}

Napi::Object load(Napi::Env env, Napi::Object exports) {
  exports.Set("inUse", Napi::Function::New(env, in_use));
  return exports;
}

}  // namespace

NODE_API_MODULE(malloc, load)
