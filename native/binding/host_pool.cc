#include "host_pool.h"

#include <stdlib.h>

#include <iterator>
#include <new>

namespace desap {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPage = 4096;
constexpr size_t kPoolBytes = size_t{256} << 20;  // free blocks beyond this go back to the system, the oldest first

}  // namespace

HostBlock::~HostBlock() { pool_->give_back(*this); }

HostPool::~HostPool() {
  for (const Free& block : free_) free(block.data);
}

std::shared_ptr<HostBlock> HostPool::allocate(size_t bytes) {
  const size_t capacity = (bytes + kPage - 1) / kPage * kPage;
  void* data = take(capacity);
  if (!data && posix_memalign(&data, kAlignment, capacity) != 0) throw std::bad_alloc();
  std::unique_ptr<void, decltype(&free)> memory(data, free);
  auto block = std::make_shared<HostBlock>(shared_from_this(), data, capacity);
  memory.release();
  std::lock_guard<std::mutex> lock(mutex_);
  used_.emplace(reinterpret_cast<uintptr_t>(data), block.get());
  return block;
}

std::shared_ptr<const HostBlock> HostPool::find(const void* data, size_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  std::lock_guard<std::mutex> lock(mutex_);
  auto after = used_.upper_bound(begin);
  if (after == used_.begin()) return nullptr;
  const HostBlock& block = *std::prev(after)->second;
  if (begin + bytes > reinterpret_cast<uintptr_t>(block.data()) + block.capacity()) return nullptr;
  return block.weak_from_this().lock();
}

HostPool::Statistics HostPool::statistics() {
  std::lock_guard<std::mutex> lock(mutex_);
  size_t used_bytes = 0;
  for (const auto& entry : used_) used_bytes += entry.second->capacity();
  return {used_.size(), used_bytes, free_.size(), free_bytes_};
}

void* HostPool::take(size_t capacity) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = free_.size(); i-- > 0;) {
    if (free_[i].capacity != capacity) continue;
    void* data = free_[i].data;
    free_bytes_ -= capacity;
    free_.erase(free_.begin() + static_cast<ptrdiff_t>(i));
    return data;
  }
  return nullptr;
}

void HostPool::give_back(const HostBlock& block) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  used_.erase(reinterpret_cast<uintptr_t>(block.data()));
  try {
    free_.push_back({block.data(), block.capacity()});
  } catch (const std::bad_alloc&) {
    free(block.data());
    return;
  }
  free_bytes_ += block.capacity();
  size_t dropped = 0;
  for (; free_bytes_ > kPoolBytes; dropped++) {
    free(free_[dropped].data);
    free_bytes_ -= free_[dropped].capacity;
  }
  free_.erase(free_.begin(), free_.begin() + static_cast<ptrdiff_t>(dropped));
}

}  // namespace desap
