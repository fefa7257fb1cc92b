// The pruner of OpenVINO GenAI, as its library ships it, as a contestant of `npm run bench:greedy -- --python`, which builds and starts
// this where that Python has openvino_genai.
//
//   openvino_cdpruner FOLDER PATCHES WIDTH PERCENT SPLIT
//
// FOLDER has rows.f32 [PATCHES, WIDTH] and text.f32 [1, WIDTH]; PERCENT of the patches are removed; SPLIT is 1 for the library's default of
// two halves, 0 for the whole. Writes a line of JSON once it has run, and one for every line that it reads, as numpy_greedy.py does. One
// processor is all that it may use: the library starts its own threads.
//
// The wheel has no header of the pruner; its symbols are exported. Config is that of 2026.4. Nothing is said of the class beyond its
// functions: it gets more room than it takes, and is never destroyed.
#include <sched.h>
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "openvino/runtime/tensor.hpp"

namespace ov::genai::cdpruner {

struct Config {
  size_t pruning_ratio = 0;
  float relevance_weight = 0.5f;
  std::string device = "CPU";
  float numerical_threshold = 1e-6f;
  bool use_negative_relevance = false;
  bool use_cl_kernel = true;
  size_t split_threshold = 1;
  bool enable_frame_chunking = true;
};

class CDPruner {
 public:
  explicit CDPruner(const Config&);
  std::vector<std::vector<size_t>> select_tokens(const ov::Tensor& visual, const ov::Tensor& text, bool silent);

 private:
  alignas(64) char room_[65536];
};

}  // namespace ov::genai::cdpruner

namespace {

ov::Tensor read(const std::string& path, const ov::Shape& shape) {
  ov::Tensor tensor(ov::element::f32, shape);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(static_cast<char*>(tensor.data()), static_cast<std::streamsize>(tensor.get_byte_size()))) {
    std::fprintf(stderr, "%s: wanted %zu bytes\n", path.c_str(), tensor.get_byte_size());
    std::exit(1);
  }
  return tensor;
}

// MB of memory, as Linux counts it.
double resident(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field, 0) == 0) return std::atof(line.c_str() + field.size() + 1) / 1024;
  }
  return 0;
}

double processor_time() {
  rusage use;
  getrusage(RUSAGE_SELF, &use);
  const auto ms = [](timeval t) { return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_usec) / 1e3; };
  return ms(use.ru_utime) + ms(use.ru_stime);
}

}  // namespace

int main(int count, char** values) {
  if (count != 6) return 2;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  sched_setaffinity(0, sizeof one, &one);

  const std::string folder = values[1];
  const size_t patches = std::strtoul(values[2], nullptr, 10), width = std::strtoul(values[3], nullptr, 10);
  const ov::Tensor rows = read(folder + "/rows.f32", {1, patches, width}), text = read(folder + "/text.f32", {1, width});
  ov::genai::cdpruner::Config config;
  config.pruning_ratio = std::strtoul(values[4], nullptr, 10);
  config.split_threshold = std::strtoul(values[5], nullptr, 10);
  auto* pruner = new ov::genai::cdpruner::CDPruner(config);

  const double before = resident("VmRSS");
  std::ofstream("/proc/self/clear_refs") << "5";
  pruner->select_tokens(rows, text, true);
  std::printf("{\"memory_mb\": %g, \"cpu_ms\": %g}\n", resident("VmHWM") - before, processor_time());
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    const auto start = std::chrono::steady_clock::now();
    const auto picks = pruner->select_tokens(rows, text, true);
    const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;
    std::printf("{\"ms\": %g, \"picks\": [", taken.count());
    for (size_t k = 0; k < picks[0].size(); k++) std::printf("%s%zu", k ? "," : "", picks[0][k]);
    std::printf("], \"cpu_ms\": %g}\n", processor_time());
    std::fflush(stdout);
  }
  std::_Exit(0);
}
