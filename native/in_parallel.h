// Threads for work that is done once: they start with it and end with it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace desap {

// body(i) for every i < count, each once and in any order, on up to `threads` threads.
template <class Body>
void in_parallel(int64_t count, int64_t threads, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    for (int64_t i; (i = next++) < count;) body(i);
  };
  std::vector<std::thread> helpers;
  const int64_t wanted = std::min(threads, count) - 1;
  helpers.reserve(static_cast<size_t>(std::max<int64_t>(wanted, 0)));
  try {
    while (static_cast<int64_t>(helpers.size()) < wanted) helpers.emplace_back(run);
  } catch (const std::exception&) {  // the system starts no more
  }
  run();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace desap
