// Runs jobs on a context, as many at a time as it has streams (the CPU has one): synchronous calls on the JavaScript
// thread, the others on threads of its own, one a stream, where they start in order of arrival. libuv's four threads
// are left to those who need them: file access, image decoding.
//
// Every method is called on the JavaScript thread of the environment that made the executor.
#pragma once

#include <chrono>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "../kernels.h"
#include "device.h"
#include "host_pool.h"
#include "js.h"

namespace desap {

// Made and destroyed on the JavaScript thread.
class Job {
 public:
  virtual ~Job() = default;
  // On any thread; touches no JavaScript. Can be run again after Code::out_of_memory.
  virtual Status run(Context&) = 0;
  // On the JavaScript thread, after a good status: what the caller receives.
  virtual Napi::Value finish(Napi::Env, Napi::Object result) { return result; }

  double waited = 0;  // milliseconds from the call to the first run
};

// A job and the JavaScript value that its results are written into. Nobody else sees the value before the job is done,
// so kernels write into its memory directly.
struct Prepared {
  std::unique_ptr<Job> job;
  Napi::Object result;
};

class Executor : public std::enable_shared_from_this<Executor> {
 public:
  // A job that memory is short for runs again once the pool has given its idle blocks back.
  Executor(device::ContextPointer context, int streams, std::shared_ptr<HostPool> pool)
      : context_(std::move(context)), streams_(streams), pool_(std::move(pool)) {}

  // Throws Fault.
  Napi::Value run(Napi::Env, Prepared);
  Napi::Value submit(Napi::Env, Prepared);
  Napi::Value execute(Napi::Env env, Prepared prepared, bool sync) {
    return sync ? run(env, std::move(prepared)) : submit(env, std::move(prepared));
  }

  // Takes a job out that was submitted and has not begun: its promise is rejected with ERR_ABORTED, and what it holds is let go. False
  // where `promise` is no such job's.
  bool cancel(Napi::Env, const Napi::Value& promise);

  // Refuses further jobs. Those that were submitted still run; then threads and memory are freed.
  void close();
  // The environment ends: lets the running jobs finish, drops the others, and joins the threads.
  void shut_down();
  void check_open() const;

 private:
  struct Task {
    Task(Napi::Env env, Prepared prepared)
        : job(std::move(prepared.job)),
          result(Napi::Persistent(prepared.result)),
          deferred(Napi::Promise::Deferred::New(env)),
          promise(Napi::Persistent(deferred.Promise().As<Napi::Object>())) {}
    std::unique_ptr<Job> job;
    Napi::ObjectReference result;
    Napi::Promise::Deferred deferred;
    Napi::ObjectReference promise;
    std::chrono::steady_clock::time_point submitted = std::chrono::steady_clock::now();
    Status status;
  };

  void start(Napi::Env);
  Status run_job(Job&) const;
  void work();
  void join();
  void deliver(Napi::Env);
  void settled(Napi::Env, size_t tasks);
  static void on_signal(napi_env, napi_value, void* executor, void*);
  static void on_signal_closed(napi_env, void* holder, void*);

  device::ContextPointer context_;
  const int streams_;
  const std::shared_ptr<HostPool> pool_;
  std::vector<std::thread> threads_;           // started by the first asynchronous call
  napi_threadsafe_function signal_ = nullptr;  // says that `done_` has tasks; holds the process while some are pending
  size_t pending_ = 0;
  bool closed_ = false;

  std::mutex mutex_;  // guards what follows, and `closed_` for the threads
  std::condition_variable change_;
  std::list<Task> queue_, done_;
  int working_ = 0;          // threads that have not ended: the last one frees the context
  int busy_ = 0;             // jobs that run
  bool sync_waits_ = false;  // a synchronous call goes before the next queued job
  bool stopping_ = false;
};

}  // namespace desap
