#include "executor.h"

#include <new>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "errors.h"

namespace desap {
namespace {

Status run_once(Job& job, Context& context) {
  try {
    return job.run(context);
  } catch (const std::bad_alloc&) {
    return {Code::out_of_memory, "job"};
  } catch (const std::length_error&) {
    return {Code::out_of_memory, "job"};
  } catch (const std::exception&) {
    return {Code::internal, "job"};
  }
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Status Executor::run_job(Job& job) const {
  const Status status = run_once(job, *context_);
  return status.code == Code::out_of_memory && pool_->trim() ? run_once(job, *context_) : status;
}

void Executor::check_open() const {
  if (closed_) throw disposed("device");
}

Napi::Value Executor::run(Napi::Env env, Prepared prepared) {
  check_open();
  const auto called = std::chrono::steady_clock::now();
  std::unique_lock<std::mutex> lock(mutex_);
  sync_waits_ = true;
  change_.wait(lock, [this] { return busy_ < streams_; });
  sync_waits_ = false;
  prepared.job->waited = milliseconds_since(called);
  busy_++;
  lock.unlock();
  const Status status = run_job(*prepared.job);
  lock.lock();
  busy_--;
  lock.unlock();
  change_.notify_all();
  if (!status.good()) throw from_status(status);
  return prepared.job->finish(env, prepared.result);
}

Napi::Value Executor::submit(Napi::Env env, Prepared prepared) {
  check_open();
  if (!signal_) start(env);
  std::list<Task> task;
  task.emplace_back(env, std::move(prepared));
  const Napi::Value promise = task.front().deferred.Promise();
  if (pending_++ == 0) napi_ref_threadsafe_function(env, signal_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.splice(queue_.end(), task);
  }
  change_.notify_all();
  return promise;
}

void Executor::start(Napi::Env env) {
  threads_.reserve(static_cast<size_t>(streams_));
  auto holder = std::make_unique<std::shared_ptr<Executor>>(shared_from_this());
  napi_threadsafe_function signal;
  check(env, napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "desap"), 0, streams_, holder.get(),
                                             on_signal_closed, this, on_signal, &signal));
  const auto closed = holder.release();  // the signal's own from here on
  napi_unref_threadsafe_function(env, signal);
  signal_ = signal;  // before a thread can look
  for (int i = 0; i < streams_; i++) {
    try {
      std::lock_guard<std::mutex> lock(mutex_);
      threads_.emplace_back([this] { work(); });
      working_++;
    } catch (const std::exception&) {  // std::system_error: no more threads; std::bad_alloc
      napi_release_threadsafe_function(signal, napi_tsfn_release);
    }
  }
  if (!threads_.empty()) return;
  // This signal ends when the event loop turns. By then another one may have threads, which are not this one's to wait for.
  signal_ = nullptr;
  closed->reset();
  throw Fault{"ERR_OUT_OF_MEMORY", "the system starts no more threads", ""};
}

void Executor::work() {
  bool signalling = true;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    change_.wait(lock, [this] {
      return stopping_ || (queue_.empty() ? closed_ : busy_ < streams_ && !sync_waits_);
    });
    if (stopping_ || queue_.empty()) break;
    std::list<Task> task;
    task.splice(task.end(), queue_, queue_.begin());
    busy_++;
    lock.unlock();
    task.front().job->waited = milliseconds_since(task.front().submitted);
    task.front().status = run_job(*task.front().job);
    lock.lock();
    done_.splice(done_.end(), task);
    busy_--;
    lock.unlock();
    change_.notify_all();
    // An environment that ends closes the signal first; after that answer it must not be touched again.
    if (signalling) signalling = napi_call_threadsafe_function(signal_, nullptr, napi_tsfn_nonblocking) != napi_closing;
    lock.lock();
  }
  const bool last = --working_ == 0;
  lock.unlock();
  if (last) context_.reset();
  if (signalling) napi_release_threadsafe_function(signal_, napi_tsfn_release);
}

void Executor::on_signal(napi_env env, napi_value, void* executor, void*) {
  if (env) static_cast<Executor*>(executor)->deliver(env);
}

void Executor::deliver(Napi::Env env) {
  std::list<Task> done;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    done.splice(done.end(), done_);
  }
  for (Task& task : done) {
    Napi::HandleScope scope(env);
    try {
      try {
        if (!task.status.good()) throw from_status(task.status);
        task.deferred.Resolve(task.job->finish(env, task.result.Value()));
      } catch (...) {
        task.deferred.Reject(caught(env).Value());
      }
    } catch (const Napi::Error&) {
      // The environment is being terminated and takes no more values.
    }
  }
  settled(env, done.size());
}

void Executor::settled(Napi::Env env, size_t tasks) {
  pending_ -= tasks;
  if (pending_ == 0 && tasks > 0) napi_unref_threadsafe_function(env, signal_);
}

bool Executor::cancel(Napi::Env env, const Napi::Value& promise) {
  std::list<Task> found;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto task = queue_.begin(); task != queue_.end() && found.empty(); ++task) {
      if (task->promise.Value().StrictEquals(promise)) {
        found.splice(found.end(), queue_, task);
        break;
      }
    }
  }
  if (found.empty()) return false;
  settled(env, 1);
  const Fault fault{"ERR_ABORTED", "taken out of the queue before it began", ""};
  found.front().deferred.Reject(error_of(env, fault).Value());
  return true;
}

void Executor::on_signal_closed(napi_env, void* holder, void*) {
  const std::unique_ptr<std::shared_ptr<Executor>> executor(static_cast<std::shared_ptr<Executor>*>(holder));
  if (*executor) (*executor)->join();
}

void Executor::join() {
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void Executor::close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  if (threads_.empty()) {
    context_.reset();
  } else {
    change_.notify_all();  // they free the context after the last job
  }
}

void Executor::shut_down() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = stopping_ = true;
  }
  change_.notify_all();
  join();
  context_.reset();
  queue_.clear();
  done_.clear();
}

}  // namespace desap
