#include "arena.h"

#include "memory.h"

namespace desap {

// Blocks form a stack. Normally there is one; a call that outgrows it adds another, and when everything has been given
// back the stack is replaced by one block that is large enough for all of it.
struct Arena::Block {
  Block* below;
  size_t size, used;  // bytes after the header
};

namespace {

constexpr size_t alignment = 64;
constexpr size_t header = alignment;
constexpr size_t smallest_block = size_t{1} << 20;

size_t aligned(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

}  // namespace

Arena::~Arena() { release_all(); }

void Arena::release_all() {
  while (top_) {
    Block* below = top_->below;
    free_memory(top_);
    top_ = below;
  }
}

void* Arena::allocate(size_t bytes) {
  bytes = aligned(bytes);
  if (!top_ || top_->size - top_->used < bytes) {
    size_t size = top_ ? smallest_block : reserve_;
    if (size < bytes) size = bytes;
    if (size < smallest_block) size = smallest_block;
    Block* block = static_cast<Block*>(allocate_memory(header + size));
    if (!block) return nullptr;
    *block = {top_, size, 0};
    top_ = block;
  }
  void* result = reinterpret_cast<char*>(top_) + header + top_->used;
  top_->used += bytes;
  size_t in_use = 0;
  for (const Block* block = top_; block; block = block->below) in_use += block->used;
  if (reserve_ < in_use) reserve_ = in_use;
  return result;
}

Scratch::Scratch(Arena& arena) : arena_(arena), block_(arena.top_), used_(arena.top_ ? arena.top_->used : 0) {}

Scratch::~Scratch() {
  while (arena_.top_ && arena_.top_ != block_) {
    Arena::Block* block = arena_.top_;
    if (!block->below && block->size >= arena_.reserve_) {  // the only block, and large enough for the next call
      block->used = 0;
      return;
    }
    arena_.top_ = block->below;
    free_memory(block);
  }
  if (!arena_.top_) return;
  arena_.top_->used = used_;
  if (used_ == 0 && !arena_.top_->below && arena_.top_->size < arena_.reserve_) arena_.release_all();
}

void* Scratch::take(int64_t count, size_t size) {
  void* result = nullptr;
  if (count >= 0 && static_cast<uint64_t>(count) <= SIZE_MAX / 2 / size) result = arena_.allocate(static_cast<size_t>(count) * size);
  if (!result) failed_ = true;
  return result;
}

}  // namespace desap
