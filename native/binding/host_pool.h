// Memory of HostBuffers: 64-byte aligned blocks, pinned where the device pins memory, kept for reuse when they are
// given back, until memory is short. Fresh pages cost more than the copy that they save (25 ms against 3 ms for 47 MB), and
// inference asks for the same few sizes again and again. What is smaller than a page is not kept.
//
// Blocks hold their pool, so either may go first. Any thread may give a block back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace desap {

class HostPool;

struct HostMemory {
  void* data;
  size_t capacity;
  bool pinned;  // page-locked, for the device to read in place
};

class HostBlock : public std::enable_shared_from_this<HostBlock> {
 public:
  HostBlock(std::shared_ptr<HostPool> pool, HostMemory memory) : pool_(std::move(pool)), memory_(memory) {}
  ~HostBlock();
  HostBlock(const HostBlock&) = delete;
  HostBlock& operator=(const HostBlock&) = delete;

  void* data() const { return memory_.data; }
  size_t capacity() const { return memory_.capacity; }
  bool pinned() const { return memory_.pinned; }
  // Bytes that it takes, with what keeps account of it.
  size_t cost() const;

 private:
  friend class HostPool;
  const std::shared_ptr<HostPool> pool_;
  const HostMemory memory_;
};

class HostPool : public std::enable_shared_from_this<HostPool> {
 public:
  struct Statistics {
    size_t blocks, bytes, pooled_blocks, pooled_bytes;
  };

  HostPool() = default;
  ~HostPool();
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;

  // At least `bytes` of memory with undefined content. Throws std::bad_alloc.
  std::shared_ptr<HostBlock> allocate(size_t bytes);
  // The block that holds these bytes, or null.
  std::shared_ptr<const HostBlock> find(const void* data, size_t bytes);
  Statistics statistics();
  // Gives the idle blocks back to the system. Whether there were any.
  bool trim() noexcept;
  // What `allocate` returns; asked once more, without idle blocks, where it throws std::bad_alloc.
  template <class Allocate>
  auto or_trimmed(const Allocate& allocate) {
    try {
      return allocate();
    } catch (const std::bad_alloc&) {
      if (!trim()) throw;
    }
    return allocate();
  }

 private:
  friend class HostBlock;

  HostMemory take(size_t capacity);
  void give_back(const HostBlock&) noexcept;

  std::mutex mutex_;
  std::map<uintptr_t, HostBlock*> used_;  // by address
  std::vector<HostMemory> free_;          // oldest first
  size_t free_bytes_ = 0;
};

}  // namespace desap
