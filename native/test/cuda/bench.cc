// desap-cuda-bench [results.json]: the time of every kernel and of the whole head on the first GPU that can be used,
// medians with the 10th and 90th percentile. Exit status 77, with the reason, where there is no GPU. --smoke: tiny
// shapes, few runs.
//
// Device times are those of replayed graphs, between two events. Several sets of buffers take turns, more in all than
// the L2 cache holds, so that a kernel finds its input where it would in use. Times from host to host go through head.h
// and hold everything that a caller waits for.
//
// Where a rate is given, the work is what the mathematics needs at least, not what the kernels do: q, v and one D x D
// product behind the attention (6 N D^2), the attention (4 N^2 D; without a class token 2 N^2 D more for the saliency),
// m (2 P T E) and the merge (2 P K D).
#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <ctime>
#include <thread>

#include "../../cuda/weights.h"
#include "../random_head.h"
#include "machine_cuda.h"

namespace desap::test {
namespace {

using Clock = std::chrono::steady_clock;
using cuda::Stream;

constexpr int64_t rotated_bytes = int64_t{160} << 20;  // above every GPU's L2 cache
bool smoke = false;

void require(const Status& status, const char* what) {
  if (status.good()) return;
  std::fprintf(stderr, "%s failed: %s\n", what, status.what ? status.what : "");
  std::exit(1);
}
void require(cudaError_t error, const char* what) {
  require({error == cudaSuccess ? Code::ok : Code::device_failed, cudaGetErrorString(error)}, what);
}

// --------------------------------------------------------------------------------------------------------- results

struct Row {
  std::string name, shape, precision, from;
  int64_t batch = 1;
  std::vector<double> microseconds;  // sorted
  double tflops = 0, gigabytes = 0;  // rates, per second; 0: none

  double quantile(double q) const {
    return microseconds[static_cast<size_t>(q * static_cast<double>(microseconds.size() - 1) + 0.5)];
  }
};

class Results {
 public:
  void add(Row row, double flops = 0, double bytes = 0) {
    std::sort(row.microseconds.begin(), row.microseconds.end());
    const double median = row.quantile(0.5);
    row.tflops = flops / median / 1e6;
    row.gigabytes = bytes / median / 1e3;
    std::printf("%-18s %-12s b%-3lld %-7s %-9s %10.1f us  (%.1f .. %.1f)", row.name.c_str(), row.shape.c_str(),
                static_cast<long long>(row.batch), row.precision.c_str(), row.from.c_str(), median, row.quantile(0.1),
                row.quantile(0.9));
    if (flops > 0) std::printf("  %.1f TFLOP/s", row.tflops);
    if (bytes > 0) std::printf("  %.2f GB/s", row.gigabytes);
    std::printf("\n");
    std::fflush(stdout);
    rows_.push_back(std::move(row));
  }

  const Row* find(const std::string& name, const std::string& precision) const {
    for (const Row& row : rows_) {
      if (row.name == name && row.precision == precision) return &row;
    }
    return nullptr;
  }
  const std::vector<Row>& rows() const { return rows_; }

 private:
  std::vector<Row> rows_;
};

// What a command prints, its first line; empty where it does not run.
std::string first_line(const char* command) {
  char line[512] = "";
  if (FILE* pipe = popen(command, "r")) {
    if (!std::fgets(line, sizeof line, pipe)) line[0] = 0;
    pclose(pipe);
  }
  return std::string(line).substr(0, std::strcspn(line, "\n"));
}

std::string clocks() {
  return first_line(
      "nvidia-smi --query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu "
      "--format=csv,noheader 2> /dev/null");
}

void write(const char* path, const cuda::DeviceInfo& device, const std::string& before, const Results& results) {
  FILE* file = std::fopen(path, "w");
  if (!file) {
    std::fprintf(stderr, "cannot write %s\n", path);
    std::exit(1);
  }
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  std::fprintf(file, "{\n  \"gpu\": \"%s\",\n  \"capability\": \"%d.%d\",\n  \"memory\": %lld,\n", device.name.c_str(),
               device.major, device.minor, static_cast<long long>(device.memory_bytes));
  std::fprintf(file, "  \"driver_cuda\": \"%d.%d\",\n  \"runtime_cuda\": \"%d.%d\",\n", driver / 1000,
               driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  std::fprintf(file,
               "  \"state_columns\": \"driver, SM clock, largest SM clock, memory clock, power, temperature\",\n");
  std::fprintf(file, "  \"state_before\": \"%s\",\n  \"state_after\": \"%s\",\n  \"date\": \"%s\",\n  \"results\": [\n",
               before.c_str(), clocks().c_str(), date);
  for (size_t i = 0; i < results.rows().size(); i++) {
    const Row& row = results.rows()[i];
    std::fprintf(file,
                 "    {\"name\": \"%s\", \"shape\": \"%s\", \"batch\": %lld, \"precision\": \"%s\", \"from\": \"%s\", "
                 "\"median_us\": %.3f, \"p10_us\": %.3f, \"p90_us\": %.3f, \"runs\": %zu",
                 row.name.c_str(), row.shape.c_str(), static_cast<long long>(row.batch), row.precision.c_str(),
                 row.from.c_str(), row.quantile(0.5), row.quantile(0.1), row.quantile(0.9), row.microseconds.size());
    if (row.tflops > 0) std::fprintf(file, ", \"tflops\": %.3f", row.tflops);
    if (row.gigabytes > 0) std::fprintf(file, ", \"gb_per_s\": %.3f", row.gigabytes);
    std::fprintf(file, "}%s\n", i + 1 < results.rows().size() ? "," : "");
  }
  std::fprintf(file, "  ]\n}\n");
  std::fclose(file);
}

// ---------------------------------------------------------------------------------------------------------- timing

int runs() { return smoke ? 2 : 60; }

// Device memory, released together.
class Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    for (void* block : blocks_) cudaFree(block);
  }
  // Zeros.
  template <class T>
  T* take(int64_t count) {
    void* block = nullptr;
    const size_t bytes = static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T);
    require(cudaMalloc(&block, bytes), "cudaMalloc");
    require(cudaMemset(block, 0, bytes), "cudaMemset");
    blocks_.push_back(block);
    return static_cast<T*>(block);
  }
  template <class T>
  T* copy_of(const std::vector<T>& values) {
    T* block = take<T>(static_cast<int64_t>(values.size()));
    require(cudaMemcpy(block, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
    return block;
  }

 private:
  std::vector<void*> blocks_;
};

// A captured sequence of launches.
class Graph {
 public:
  template <class Body>
  Graph(Stream& stream, const Body& body) : stream_(stream.queue.stream) {
    cudaGraph_t graph = nullptr;
    require(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "capture");
    stream.queue.follows_kernel = false;
    body();
    require(stream.queue.error, "launch");
    require(cudaStreamEndCapture(stream_, &graph), "capture");
    require(cudaGraphInstantiate(&executable_, graph, 0), "graph");
    cudaGraphDestroy(graph);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(executable_); }
  void replay() const { require(cudaGraphLaunch(executable_, stream_), "replay"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

// Microseconds of one pass; the graphs take turns and hold `passes` of them in all.
std::vector<double> time_graphs(Stream& stream, const std::vector<std::unique_ptr<Graph>>& graphs, int64_t passes) {
  cudaEvent_t begin = nullptr, end = nullptr;
  require(cudaEventCreateWithFlags(&begin, 0), "event");
  require(cudaEventCreateWithFlags(&end, 0), "event");
  const auto once = [&](int64_t rounds) {
    require(cudaEventRecord(begin, stream.queue.stream), "event");
    for (int64_t round = 0; round < rounds; round++) {
      for (const auto& graph : graphs) graph->replay();
    }
    require(cudaEventRecord(end, stream.queue.stream), "event");
    require(cudaEventSynchronize(end), "run");
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, begin, end), "event");
    return static_cast<double>(milliseconds) * 1e3 / static_cast<double>(rounds * passes);
  };
  once(1);
  // Long enough that the start of the first graph does not show.
  const double pass = std::max(once(1), 1.0);
  const int64_t rounds = smoke ? 1 : std::clamp<int64_t>(static_cast<int64_t>(5000 / pass) / passes, 1, 64);
  if (!smoke) once(rounds);
  std::vector<double> samples;
  for (int i = 0; i < runs(); i++) samples.push_back(once(rounds));
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return samples;
}

template <class Body>
std::vector<double> time_host(const Body& body) {
  for (int i = 0; i < (smoke ? 1 : 5); i++) body();
  std::vector<double> samples;
  for (int i = 0; i < runs(); i++) {
    const auto start = Clock::now();
    body();
    samples.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  return samples;
}

// -------------------------------------------------------------------------------------------------------- pipeline

double work_of(const HeadShape& s) {
  const double n = static_cast<double>(s.rows), d = static_cast<double>(s.width),
               p = static_cast<double>(s.patches());
  return 6 * n * d * d + (s.class_token ? 4 : 6) * n * n * d + 2 * p * static_cast<double>(s.text_tokens * s.projection_dim) +
         2 * p * static_cast<double>(s.keep) * d;
}

std::string text_of(const HeadShape& s) { return std::to_string(s.rows) + "x" + std::to_string(s.width); }

// The head's kernels in their order (cuda/head_run.cc), without the copies in and out, on several sets of buffers.
class Pipeline {
 public:
  struct Set {
    const cuda::Image* images;
    cuda::Operand normal, projected, context;
    float *squares, *read_out, *read_out_scratch, *saliency_scratch, *features, *inverse_norm, *embeddings, *global,
        *saliency;
    float *text, *unit_text, *align_scratch, *task, *tokens;
    uint8_t *merge_scratch, *source;
    int *indices, *assignment, *counts, *fault;
  };

  Pipeline(Stream& stream, Precision precision, const HeadShape& shape, int64_t batch)
      : stream_(stream), precision_(precision), s_(shape), batch_(batch) {
    const RandomWeights random(shape);
    require(weights_.pack(stream, precision, random.config, random.weights()), "weights");
    const int64_t rows = batch * shape.rows, patches = batch * shape.patches();
    extent_.images = static_cast<int>(batch);
    extent_.rows = rows;
    extent_.patches = patches;
    extent_.kept = batch * shape.keep;
    extent_.max_rows = static_cast<int>(shape.rows);
    extent_.max_patches = static_cast<int>(shape.patches());
    extent_.max_text_tokens = static_cast<int>(shape.text_tokens);
    extent_.max_keep = static_cast<int>(shape.keep);
    lambda_ = pool_.copy_of(Floats{0.1f});
    const int64_t bytes = rows * (shape.width * 4 + (weights_.inner * 4 + shape.width) * 2 * planes());
    const int64_t sets = smoke ? 2 : std::clamp<int64_t>(rotated_bytes / bytes + 1, 1, 16);
    const RandomImages images(shape, batch);
    for (int64_t i = 0; i < sets; i++) sets_.push_back(make(images));
  }

  const std::vector<Set>& sets() const { return sets_; }

  void text(const Set& set) { text(stream_.queue, set); }
  void normalize(const Set& set) {
    cuda::Normalize normalize{};
    normalize.images = set.images;
    normalize.extent = extent_;
    normalize.width = width();
    normalize.class_token = s_.class_token;
    normalize.epsilon = 1e-5f;
    normalize.normal = set.normal;
    normalize.features = set.features;
    normalize.inverse_norm = set.inverse_norm;
    normalize.fault = set.fault;
    cuda::normalize(stream_.queue, precision_, normalize);
  }
  void project(const Set& set) {
    cuda::linear(stream_.queue, precision_, set.normal, extent_.rows, weights_.projection.rows(0, columns()),
                 set.projected, nullptr);
  }
  void attention(const Set& set) {
    cuda::Attention attention{};
    attention.images = set.images;
    attention.extent = extent_;
    attention.heads = heads();
    attention.padded_size = weights_.padded_size;
    attention.q = attention.k = block(set, PackedHead::q);
    attention.v = block(set, PackedHead::v);
    attention.scale = weights_.score_scale(PackedHead::q, PackedHead::q);
    attention.y = set.context;
    cuda::attention(stream_.queue, precision_, attention);
  }
  void saliency(const Set& set) { saliency(stream_.queue, set); }
  void read_out(const Set& set) {
    cuda::linear_squares(stream_.queue, precision_, set.context, extent_.rows, weights_.read_out.all(), weights_.squared,
                         set.squares, {set.read_out, extent_.rows, s_.projection_dim, s_.projection_dim}, nullptr);
  }
  void folded_read_out(const Set& set) {
    cuda::FoldedReadOut read{};
    read.images = set.images;
    read.extent = extent_;
    read.width = width();
    read.projection_dim = projection_dim();
    read.class_token = s_.class_token;
    read.epsilon = 1e-5f;
    read.squares = set.squares;
    read.slices = weights_.squared / 64;
    read.projected = {set.read_out, extent_.rows, s_.projection_dim, s_.projection_dim};
    read.shift = weights_.shift();
    read.scratch = set.read_out_scratch;
    read.embeddings = set.embeddings;
    read.global = set.global;
    read.fault = set.fault;
    cuda::folded_read_out(stream_.queue, read);
  }
  void align(const Set& set) {
    cuda::Align align{};
    align.images = set.images;
    align.extent = extent_;
    align.projection_dim = projection_dim();
    align.class_token = s_.class_token;
    align.visual = set.embeddings;
    align.global = set.global;
    align.text = set.unit_text;
    align.alignment = Alignment::fcma;
    align.lambda = lambda_;
    align.scratch = set.align_scratch;
    align.task = set.task;
    cuda::align(stream_.queue, align);
  }
  void select(const Set& set) {
    cuda::Select select{};
    select.images = set.images;
    select.extent = extent_;
    select.task = set.task;
    select.saliency = set.saliency;
    select.indices = set.indices;
    select.source = set.source;
    select.task_fault = select.saliency_fault = set.fault;
    cuda::select(stream_.queue, select);
  }
  void merge(const Set& set) {
    cuda::Merge merge{};
    merge.images = set.images;
    merge.extent = extent_;
    merge.width = width();
    merge.merge = true;
    merge.features = set.features;
    merge.inverse_norm = set.inverse_norm;
    merge.indices = set.indices;
    merge.tokens = set.tokens;
    merge.assignment = set.assignment;
    merge.counts = set.counts;
    merge.scratch = set.merge_scratch;
    cuda::merge(stream_.queue, merge);
  }
  void all(const Set& set) {
    stream_.fork();
    text(stream_.branch, set);
    normalize(set);
    project(set);
    stream_.fork();
    saliency(stream_.branch, set);
    attention(set);
    read_out(set);
    folded_read_out(set);
    stream_.join();
    align(set);
    select(set);
    merge(set);
  }

 private:
  using PackedHead = cuda::PackedHead;

  int width() const { return static_cast<int>(s_.width); }
  int heads() const { return static_cast<int>(s_.heads); }
  int projection_dim() const { return static_cast<int>(s_.projection_dim); }
  int planes() const { return precision_ == Precision::fp32 ? 2 : 1; }
  int64_t columns() const {
    return (s_.class_token ? 2 : 3) * weights_.inner;
  }  // of the projection: q, v and, where there is no class token, k
  cuda::Operand block(const Set& set, PackedHead::Block which) const {
    const int64_t first = which * weights_.inner;
    return {set.projected.hi + first, set.projected.lo ? set.projected.lo + first : nullptr, set.projected.ld};
  }
  cuda::Operand operand(int64_t ld) {
    uint16_t* hi = pool_.take<uint16_t>(extent_.rows * ld * planes());
    return {hi, planes() == 2 ? hi + extent_.rows * ld : nullptr, ld};
  }
  void text(cuda::Queue& queue, const Set& set) {
    const int64_t rows = batch_ * s_.text_tokens;
    cuda::unit_rows(queue, {set.text, rows, s_.projection_dim, s_.projection_dim},
                    {set.unit_text, rows, s_.projection_dim, s_.projection_dim}, set.fault);
  }
  void saliency(cuda::Queue& queue, const Set& set) {
    const auto fill = [&](auto& saliency) {
      saliency.images = set.images;
      saliency.extent = extent_;
      saliency.heads = heads();
      saliency.padded_size = weights_.padded_size;
      saliency.q = block(set, PackedHead::q);
      saliency.scale = weights_.score_scale(PackedHead::q, PackedHead::k);
      saliency.scratch = set.saliency_scratch;
      saliency.saliency = set.saliency;
    };
    if (s_.class_token) {
      cuda::FoldedSaliency folded{};
      fill(folded);
      folded.normal = set.normal;
      folded.key = weights_.block(PackedHead::k);
      cuda::folded_saliency(queue, precision_, folded);
    } else {
      cuda::Saliency of_keys{};
      fill(of_keys);
      of_keys.k = block(set, PackedHead::k);
      cuda::saliency(queue, precision_, of_keys);
    }
  }

  Set make(const RandomImages& images) {
    const float* hidden = pool_.copy_of(images.hidden);
    std::vector<cuda::Image> records;
    for (int64_t i = 0; i < batch_; i++) {
      const auto at = [i](int64_t size) { return static_cast<int>(i * size); };
      cuda::Image image{};
      image.row = at(s_.rows);
      image.rows = static_cast<int>(s_.rows);
      image.patch = at(s_.patches());
      image.patches = static_cast<int>(s_.patches());
      image.text = at(s_.text_tokens);
      image.text_tokens = static_cast<int>(s_.text_tokens);
      image.end_of_text = image.text + image.text_tokens - 1;
      image.keep = static_cast<int>(s_.keep);
      image.task_keep = static_cast<int>(s_.keep / 2);
      image.kept = at(s_.keep);
      image.hidden = hidden + i * s_.rows * s_.width;
      records.push_back(image);
    }
    const int64_t rows = extent_.rows, patches = extent_.patches, kept = extent_.kept;
    Set set{};
    set.images = pool_.copy_of(records);
    set.normal = operand(cuda::padded_width(s_.width));
    set.projected = operand(columns());
    set.context = operand(cuda::padded_width(weights_.inner));
    set.squares = pool_.take<float>(rows * (weights_.squared / 64));
    set.read_out = pool_.take<float>(rows * s_.projection_dim);
    set.read_out_scratch = pool_.take<float>(cuda::folded_read_out_scratch(extent_, projection_dim(), s_.class_token));
    set.saliency_scratch =
        pool_.take<float>(s_.class_token ? cuda::folded_saliency_scratch(extent_, heads(), weights_.projection.all().in)
                                         : cuda::saliency_scratch(extent_, heads(), false));
    set.features = pool_.take<float>(patches * s_.width);
    set.inverse_norm = pool_.take<float>(patches);
    set.embeddings = pool_.take<float>(rows * s_.projection_dim);
    set.global = pool_.take<float>(batch_ * s_.projection_dim);
    set.saliency = pool_.take<float>(patches);
    set.text = pool_.copy_of(images.text);
    set.unit_text = pool_.take<float>(batch_ * s_.text_tokens * s_.projection_dim);
    set.align_scratch = pool_.take<float>(cuda::align_scratch(extent_));
    set.task = pool_.take<float>(patches);
    set.tokens = pool_.take<float>(kept * s_.width);
    set.merge_scratch = pool_.take<uint8_t>(cuda::merge_scratch(extent_));
    set.source = pool_.take<uint8_t>(kept);
    set.indices = pool_.take<int>(kept);
    set.assignment = pool_.take<int>(patches);
    set.counts = pool_.take<int>(kept);
    set.fault = pool_.copy_of(Ints{INT_MAX});
    return set;
  }

  Stream& stream_;
  const Precision precision_;
  const HeadShape s_;
  const int64_t batch_;
  PackedHead weights_;
  cuda::Extent extent_{};
  Pool pool_;
  float* lambda_;
  std::vector<Set> sets_;
};

// ------------------------------------------------------------------------------------------------------------ cases

// A context of its own for each measurement; what it needs is gone with it.
class Opened {
 public:
  Opened(const cuda::DeviceInfo& device, Precision precision, int streams) {
    require(cuda::context_create({device.index, precision, streams}, &context_), "context");
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  ~Opened() { cuda::context_destroy(context_); }
  Context& operator*() const { return *context_; }

 private:
  Context* context_ = nullptr;
};

void bench_device(Results& results, const cuda::DeviceInfo& device, Precision precision, const HeadShape& shape,
                  int64_t batch, bool kernels) {
  const Opened context(device, precision, 1);
  cuda::StreamLock stream(*(*context).engine);
  require(stream.take(), "stream");
  Pipeline pipeline(*stream, precision, shape, batch);
  const std::string text = text_of(shape);
  const int64_t count = static_cast<int64_t>(pipeline.sets().size());

  std::vector<std::unique_ptr<Graph>> graphs;
  for (const Pipeline::Set& set : pipeline.sets())
    graphs.push_back(std::make_unique<Graph>(*stream, [&] { pipeline.all(set); }));
  Row row{"head", text, name_of(precision), "device", batch, time_graphs(*stream, graphs, count)};
  results.add(row, work_of(shape) * static_cast<double>(batch));
  if (!kernels) return;

  const double n = static_cast<double>(shape.rows * batch), d = static_cast<double>(shape.width),
               e = static_cast<double>(shape.projection_dim);
  const double inner = 2 * n * static_cast<double>(shape.rows) * d;
  const struct {
    const char* name;
    void (Pipeline::*stage)(const Pipeline::Set&);
    double flops;  // multiply-adds of the tensor cores times 2, as the kernel does them; fp32 does each three times
  } stages[] = {{"unit_rows of text", &Pipeline::text, 0},
                {"normalize", &Pipeline::normalize, 0},
                {"linear q, v", &Pipeline::project, (shape.class_token ? 4 : 6) * n * d * d},
                {"attention", &Pipeline::attention, 2 * inner},
                {shape.class_token ? "folded_saliency" : "saliency", &Pipeline::saliency, shape.class_token ? 0 : 2 * inner},
                {"linear_squares", &Pipeline::read_out, 2 * n * d * (d + e)},
                {"folded_read_out", &Pipeline::folded_read_out, 0},
                {"align", &Pipeline::align, 0},
                {"select", &Pipeline::select, 0},
                {"merge", &Pipeline::merge, 2 * n * static_cast<double>(shape.keep) * d}};
  for (const auto& stage : stages) {
    graphs.clear();
    graphs.push_back(std::make_unique<Graph>(*stream, [&] {
      for (const Pipeline::Set& set : pipeline.sets()) (pipeline.*stage.stage)(set);
    }));
    row = {stage.name, text, name_of(precision), "device", batch, time_graphs(*stream, graphs, count)};
    results.add(row, stage.flops);
  }
}

// The GPU's rate at a plain large product, by our kernel.
void bench_product(Results& results, const cuda::DeviceInfo& device, Precision precision) {
  const Opened context(device, precision, 1);
  cuda::StreamLock stream(*(*context).engine);
  require(stream.take(), "stream");
  const int64_t size = smoke ? 128 : 8192;
  const int planes = precision == Precision::fp32 ? 2 : 1;
  Pool pool;
  const float* x = pool.copy_of(Random(1).floats(size * size));
  const int* no_exponent = nullptr;
  const auto operand = [&] {
    uint16_t* hi = pool.take<uint16_t>(size * size * planes);
    return cuda::Operand{hi, planes == 2 ? hi + size * size : nullptr, size};
  };
  const cuda::Operand a = operand(), b = operand(), y = operand();
  for (const cuda::Operand& to : {a, b}) {
    cuda::to_operand(stream->queue, precision, {x, size, size, size}, 1, static_cast<int>(size), no_exponent, to);
  }
  const float* scale = pool.copy_of(Floats(static_cast<size_t>(size), 0x1p-7f));
  const cuda::Weights weights{b, scale, nullptr, static_cast<int>(size), static_cast<int>(size)};
  std::vector<std::unique_ptr<Graph>> graphs;
  graphs.push_back(
      std::make_unique<Graph>(*stream, [&] { cuda::linear(stream->queue, precision, a, size, weights, y, nullptr); }));
  results.add({"matrix", std::to_string(size), name_of(precision), "device", 1, time_graphs(*stream, graphs, 1)},
              2 * std::pow(static_cast<double>(size), 3));
}

// Page-locked memory to the GPU, one large copy at a time.
void bench_copy(Results& results) {
  const size_t bytes = smoke ? 1 << 16 : size_t{256} << 20;
  void* host = cuda::host_allocate(bytes);
  if (!host) require({Code::out_of_memory, "page-locked memory"}, "copy");
  std::memset(host, 1, bytes);
  Pool pool;
  char* to = pool.take<char>(static_cast<int64_t>(bytes));
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  Row row{"pinned copy", std::to_string(bytes >> 20) + " MiB", "", "host", 1, time_host([&] {
            require(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream), "copy");
            require(cudaStreamSynchronize(stream), "copy");
          })};
  results.add(row, 0, static_cast<double>(bytes));
  cudaStreamDestroy(stream);
  cuda::host_free(host);
}

// Hidden states of several batches in one kind of host memory.
class HostImages {
 public:
  HostImages(Context& context, const RandomImages& images, int64_t copies, bool pinned, bool half)
      : images_(images), half_(half) {
    const size_t element = half ? 2 : 4, bytes = images.hidden.size() * element;
    for (int64_t i = 0; i < copies; i++) {
      char* block = static_cast<char*>(pinned ? cuda::host_allocate(bytes) : std::malloc(bytes));
      if (!block) require({Code::out_of_memory, "host memory"}, "images");
      blocks_.emplace_back(block, [pinned](char* p) { pinned ? cuda::host_free(p) : std::free(p); });
      if (half) {
        require(convert_to_half(context, images.hidden.data(), static_cast<int64_t>(images.hidden.size()),
                                reinterpret_cast<uint16_t*>(block)),
                "convert");
      } else {
        std::memcpy(block, images.hidden.data(), bytes);
      }
    }
  }
  std::vector<HiddenStates> states(size_t which) const {
    const HeadShape& s = images_.shape;
    std::vector<HiddenStates> list;
    for (int64_t i = 0; i < images_.count; i++) {
      list.push_back(
          {blocks_[which % blocks_.size()].get() + i * s.rows * s.width * (half_ ? 2 : 4), half_, s.rows, nullptr});
    }
    return list;
  }
  size_t size() const { return blocks_.size(); }
  double bytes() const { return static_cast<double>(images_.hidden.size()) * (half_ ? 2 : 4); }

 private:
  const RandomImages& images_;
  const bool half_;
  std::vector<std::shared_ptr<char>> blocks_;
};

// Host to host through head.h; `streams` callers at once.
void bench_host(Results& results, const cuda::DeviceInfo& device, Precision precision, const HeadShape& shape,
                int64_t batch, bool pinned, bool half, int streams) {
  const Opened context(device, precision, streams);
  const RandomWeights weights(shape);
  const RandomImages images(shape, batch);
  std::shared_ptr<Head> head;
  require(Head::create(*context, weights.config, weights.weights(), &head), "head");
  const int64_t copies = std::clamp<int64_t>(rotated_bytes / (batch * shape.rows * shape.width * 4) + 1, streams, 16);
  const HostImages hidden(*context, images, smoke ? streams : copies, pinned, half);
  const std::vector<PruneRequest> requests = images.requests();

  // Each caller with answers of its own; the callers share the calls of a sample.
  std::vector<Answers> answers(static_cast<size_t>(streams), Answers(shape, batch));
  std::atomic<size_t> turn{0};
  const auto call = [&](int caller) {
    const std::vector<PruneOutput> outputs = answers[static_cast<size_t>(caller)].outputs();
    const std::vector<HiddenStates> states = hidden.states(turn++);
    require(
        head->prune(*context, states.data(), batch, Encoding::qq, requests.data(), outputs.data(), nullptr, nullptr),
        "prune");
  };
  Row row{streams > 1 ? "stream" : "head",
          text_of(shape),
          name_of(precision),
          std::string(pinned ? "pinned" : "pageable") + (half ? " half" : ""),
          batch,
          {}};
  if (streams == 1) {
    row.microseconds = time_host([&] { call(0); });
  } else {
    const int64_t each = smoke ? 1 : 8;
    row.microseconds = time_host([&] {
      std::vector<std::thread> callers;
      for (int caller = 0; caller < streams; caller++) {
        callers.emplace_back([&, caller] {
          for (int64_t i = 0; i < each; i++) call(caller);
        });
      }
      for (std::thread& caller : callers) caller.join();
    });
    for (double& sample : row.microseconds) sample /= static_cast<double>(each * streams);
  }
  results.add(row, 0, hidden.bytes());
}

void run(Results& results, const cuda::DeviceInfo& device) {
  const HeadShape tiny{33, 128, 2, 64, true, 7, 9}, tiny_without{33, 160, 2, 64, false, 7, 9};
  HeadShape video = llava, qwen{4096, 1280, 16, 768, false, 30, 455}, qwen_large = qwen;
  video.rows = 257;
  qwen_large.rows = 16384, qwen_large.keep = 1820;
  if (smoke) {
    bench_product(results, device, Precision::fp16);
    bench_device(results, device, Precision::fp32, tiny, 2, true);
    bench_device(results, device, Precision::fp16, tiny_without, 1, true);
    bench_copy(results);
    bench_host(results, device, Precision::fp16, tiny, 1, true, false, 1);
    bench_host(results, device, Precision::bf16, tiny, 2, false, true, 1);
    bench_host(results, device, Precision::fp16, tiny, 2, true, false, 2);
    return;
  }
  for (Precision precision : precisions) bench_product(results, device, precision);
  for (Precision precision : precisions) {
    for (int64_t batch : {1, 5, 8, 64})
      bench_device(results, device, precision, llava, batch, batch == 1 || batch == 64);
    bench_device(results, device, precision, video, 8, false);
    bench_device(results, device, precision, qwen, 1, true);
    bench_device(results, device, precision, qwen_large, 1, true);
  }
  bench_copy(results);
  for (Precision precision : precisions) {
    bench_host(results, device, precision, llava, 1, true, false, 1);
    if (precision != Precision::fp16) continue;
    bench_host(results, device, precision, llava, 1, false, false, 1);
    bench_host(results, device, precision, llava, 1, true, true, 1);
    bench_host(results, device, precision, llava, 5, true, false, 1);
    bench_host(results, device, precision, video, 8, true, false, 1);
    bench_host(results, device, precision, qwen, 1, true, false, 1);
    for (bool half : {false, true}) {
      bench_host(results, device, precision, llava, 64, true, half, 1);
      bench_host(results, device, precision, llava, 64, true, half, 2);
    }
    bench_host(results, device, precision, llava, 64, false, false, 2);
  }
  bench_copy(results);
}

}  // namespace
}  // namespace desap::test

int main(int argc, char** argv) {
  using namespace desap;
  using namespace desap::test;
  const char* path = nullptr;
  for (int i = 1; i < argc; i++) {
    if (std::strcmp(argv[i], "--smoke") == 0) {
      smoke = true;
    } else {
      path = argv[i];
    }
  }
  const cuda::Availability availability = cuda::availability();
  if (!availability.available) {
    std::printf("skipped: %s\n", availability.reason.c_str());
    return 77;
  }
  const cuda::DeviceInfo& device = availability.devices[0];
  require(cudaSetDevice(device.index), "cudaSetDevice");
  std::printf("%s\n", device.name.c_str());
  const std::string before = clocks();
  if (!before.empty())
    std::printf("driver, SM clock, largest SM clock, memory clock, power, temperature: %s\n", before.c_str());
  Results results;
  run(results, device);

  if (const Row* matrix = results.find("matrix", "fp16")) {
    for (const Row& row : results.rows()) {
      if (row.name == "head" && row.from == "device" && row.precision == "fp16") {
        std::printf("head %s b%lld: %.2f of the rate of the large product\n", row.shape.c_str(),
                    static_cast<long long>(row.batch), row.tflops / matrix->tflops);
      }
    }
  }
  if (const Row* copy = results.find("pinned copy", "")) {
    for (const Row& row : results.rows()) {
      if (row.name == "stream")
        std::printf("stream %s, %s: %.2f of the pinned copy's rate\n", row.shape.c_str(), row.from.c_str(),
                    row.gigabytes / copy->gigabytes);
    }
  }
  if (path) write(path, device, before, results);
  return 0;
}
