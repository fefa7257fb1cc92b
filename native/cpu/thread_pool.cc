#include "thread_pool.h"

#include <chrono>

namespace desap {
namespace {

// Stages of the head follow each other within microseconds: a thread that slept in between would pay a futex wake-up
// (about 50 us) per stage. Longer spinning would only take the processor from others.
constexpr std::chrono::microseconds spin_time{30};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

template <class Ready>
bool spin_until(const Ready& ready) {
  const auto deadline = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < 64; i++) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  try {
    workers_.reserve(static_cast<size_t>(threads - 1));
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, Call call, const void* body) {
  if (workers_.empty() || count <= 1) {
    for (int64_t i = 0; i < count; i++) call(body, i, 0);
    return;
  }
  call_ = call;
  body_ = body;
  count_ = count;
  unfinished_.store(count, std::memory_order_relaxed);
  // Sequentially consistent with `sleeping_`: either a worker that is about to sleep sees the loop, or we see the sleeper.
  unclaimed_.store(count);
  if (sleeping_.load() > 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    wake_.notify_all();
  }

  while (run_one(0)) {
  }
  const auto finished = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
  if (spin_until(finished)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, finished);
}

// Claims one iteration and runs it. Counting down, a claim that succeeds always belongs to the loop whose body the
// fields describe: that loop cannot end before this iteration has.
bool ThreadPool::run_one(int thread) {
  int64_t left = unclaimed_.load(std::memory_order_acquire);
  do {
    if (left == 0) return false;
  } while (!unclaimed_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_acquire));

  call_(body_, count_ - left, thread);
  if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1 && thread != 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    done_.notify_one();
  }
  return true;
}

void ThreadPool::work(int thread) {
  const auto ready = [this] { return unclaimed_.load() > 0 || stopping_.load(); };
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (run_one(thread) || spin_until(ready)) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    sleeping_++;
    wake_.wait(lock, ready);
    sleeping_--;
  }
}

}  // namespace desap
