#include "host_pool.h"

#include <iterator>
#include <new>

#include "device.h"

namespace desap {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kPage = 4096;
constexpr size_t kPoolBytes = size_t{256} << 20;  // free blocks beyond this go back to the system, the oldest first

// Of a block: its entries here, its ArrayBuffer and what the engine has beside that.
constexpr size_t kAccount = 512;

size_t capacity_of(size_t bytes) {
  const size_t unit = bytes < kPage ? static_cast<size_t>(kAlignment) : kPage;
  return (bytes + unit - 1) / unit * unit;
}

HostMemory obtain(size_t capacity) {
  if (void* data = device::allocate_pinned(capacity)) return {data, capacity, true};
  return {::operator new(capacity, kAlignment), capacity, false};
}

void release(const HostMemory& memory) noexcept {
  if (memory.pinned) {
    device::free_pinned(memory.data);
  } else {
    ::operator delete(memory.data, kAlignment);
  }
}

}  // namespace

HostBlock::~HostBlock() { pool_->give_back(*this); }

size_t HostBlock::cost() const { return kAccount + (pinned() && capacity() < kPage ? kPage : capacity()); }

HostPool::~HostPool() { trim(); }

std::shared_ptr<HostBlock> HostPool::allocate(size_t bytes) {
  const size_t capacity = capacity_of(bytes);
  HostMemory memory = take(capacity);
  if (!memory.data) memory = or_trimmed([capacity] { return obtain(capacity); });
  std::shared_ptr<HostBlock> block;
  try {
    block = std::make_shared<HostBlock>(shared_from_this(), memory);
  } catch (const std::bad_alloc&) {
    release(memory);
    throw;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  used_.emplace(reinterpret_cast<uintptr_t>(memory.data), block.get());
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

bool HostPool::trim() noexcept {
  std::vector<HostMemory> idle;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    idle.swap(free_);
    free_bytes_ = 0;
  }
  for (const HostMemory& memory : idle) release(memory);
  return !idle.empty();
}

HostMemory HostPool::take(size_t capacity) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = free_.size(); i-- > 0;) {
    if (free_[i].capacity != capacity) continue;
    const HostMemory memory = free_[i];
    free_bytes_ -= capacity;
    free_.erase(free_.begin() + static_cast<ptrdiff_t>(i));
    return memory;
  }
  return {};
}

void HostPool::give_back(const HostBlock& block) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  used_.erase(reinterpret_cast<uintptr_t>(block.data()));
  if (block.capacity() < kPage) {
    release(block.memory_);
    return;
  }
  try {
    free_.push_back(block.memory_);
  } catch (const std::bad_alloc&) {
    release(block.memory_);
    return;
  }
  free_bytes_ += block.capacity();
  size_t dropped = 0;
  for (; free_bytes_ > kPoolBytes; dropped++) {
    release(free_[dropped]);
    free_bytes_ -= free_[dropped].capacity;
  }
  free_.erase(free_.begin(), free_.begin() + static_cast<ptrdiff_t>(dropped));
}

}  // namespace desap
