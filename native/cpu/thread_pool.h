// Threads that share the iterations of a loop. The calling thread works too; a pool of one thread starts none.
//
// Which thread runs which iteration is not defined, so an iteration must write only what no other iteration touches:
// then results do not depend on the number of threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace desap {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // throws std::system_error or std::bad_alloc
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(index, thread) for every index in [0, count) and returns when all are done; 0 <= thread < threads().
  // One loop at a time; loops do not nest.
  template <class Body>
  void parallel_for(int64_t count, const Body& body) {
    run(count, [](const void* b, int64_t index, int thread) { (*static_cast<const Body*>(b))(index, thread); }, &body);
  }

 private:
  using Call = void (*)(const void* body, int64_t index, int thread);

  void run(int64_t count, Call, const void* body);
  bool run_one(int thread);
  void work(int thread);
  void stop();

  // Written while no iteration is unclaimed or unfinished; read only by a thread that holds an unfinished iteration.
  Call call_ = nullptr;
  const void* body_ = nullptr;
  int64_t count_ = 0;

  alignas(64) std::atomic<int64_t> unclaimed_{0};
  alignas(64) std::atomic<int64_t> unfinished_{0};
  alignas(64) std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
};

}  // namespace desap
