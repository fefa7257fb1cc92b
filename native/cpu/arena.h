// Scratch memory of a context. It grows to what the largest call needed and is kept for the next one, so that a second
// image pays neither the allocator nor page faults.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../status.h"

namespace desap {

class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  size_t most() const { return reserve_; }  // bytes that were ever in use at once

 private:
  friend class Scratch;
  struct Block;

  void* allocate(size_t bytes);
  void release_all();

  Block* top_ = nullptr;
  size_t reserve_ = 0;  // the most that was ever in use at once
};

// What one call takes from the arena; given back when it ends. Scratches nest like the calls do.
class Scratch {
 public:
  explicit Scratch(Arena&);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // 64-byte aligned, not initialised. Null when memory is short; ask `failed` once, after the last of a group.
  float* floats(int64_t count) { return static_cast<float*>(take(count, sizeof(float))); }
  int32_t* ints(int64_t count) { return static_cast<int32_t*>(take(count, sizeof(int32_t))); }
  uint64_t* words(int64_t count) { return static_cast<uint64_t*>(take(count, sizeof(uint64_t))); }
  uint8_t* bytes(int64_t count) { return static_cast<uint8_t*>(take(count, 1)); }

  bool failed() const { return failed_; }

 private:
  void* take(int64_t count, size_t size);

  Arena& arena_;
  Arena::Block* block_;
  size_t used_;
  bool failed_ = false;
};

inline Status out_of_memory(const char* what) { return {Code::out_of_memory, what, -1}; }

}  // namespace desap
