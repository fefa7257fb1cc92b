#include "executor.h"

#include <new>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "errors.h"

namespace desap {
namespace {

Outcome run_job(Job& job, Context& context) {
  try {
    return job.run(context);
  } catch (const std::bad_alloc&) {
    return {{Code::out_of_memory, "job", -1}};
  } catch (const std::length_error&) {
    return {{Code::out_of_memory, "job", -1}};
  }
}

}  // namespace

void Executor::check_open() const {
  if (closed_) throw disposed("context");
}

Napi::Value Executor::run(Napi::Env env, Call call) {
  check_open();
  std::unique_lock<std::mutex> lock(mutex_);
  sync_waits_ = true;
  change_.wait(lock, [this] { return !busy_; });
  sync_waits_ = false;
  busy_ = true;
  lock.unlock();
  const Outcome outcome = run_job(*call.job, *context_);
  lock.lock();
  busy_ = false;
  lock.unlock();
  change_.notify_all();
  if (!outcome.status.good()) throw from_status(outcome.status, outcome.image);
  return call.job->finish(env, call.prepared);
}

Napi::Value Executor::submit(Napi::Env env, Call call) {
  check_open();
  if (!signal_) start(env);
  std::list<Task> task;
  task.push_back({std::move(call.job), Napi::Persistent(call.prepared), Napi::Promise::Deferred::New(env), {}});
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
  auto holder = std::make_unique<std::shared_ptr<Executor>>(shared_from_this());
  const napi_status status =
      napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "desap"), 0, 1, holder.get(),
                                      on_signal_closed, this, on_signal, &signal_);
  if (status != napi_ok) throw Napi::Error::New(env);
  holder.release();
  napi_unref_threadsafe_function(env, signal_);
  try {
    coordinator_ = std::thread([this] { coordinate(); });
  } catch (const std::system_error&) {
    napi_release_threadsafe_function(std::exchange(signal_, nullptr), napi_tsfn_release);
    throw Fault{"ERR_OUT_OF_MEMORY", "the system starts no more threads", ""};
  }
}

void Executor::coordinate() {
  bool signalling = true;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    change_.wait(lock, [this] { return stopping_ || (!busy_ && !sync_waits_ && (closed_ || !queue_.empty())); });
    if (stopping_ || queue_.empty()) break;
    std::list<Task> task;
    task.splice(task.end(), queue_, queue_.begin());
    busy_ = true;
    lock.unlock();
    task.front().outcome = run_job(*task.front().job, *context_);
    lock.lock();
    done_.splice(done_.end(), task);
    busy_ = false;
    lock.unlock();
    change_.notify_all();
    // An environment that ends closes the signal first; after that answer it must not be touched again.
    if (signalling) signalling = napi_call_threadsafe_function(signal_, nullptr, napi_tsfn_nonblocking) != napi_closing;
    lock.lock();
  }
  lock.unlock();
  context_.reset();
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
        const Outcome& outcome = task.outcome;
        guarded(env, [&] {
          if (!outcome.status.good()) throw from_status(outcome.status, outcome.image);
          task.deferred.Resolve(task.job->finish(env, task.prepared.Value()));
        });
      } catch (const Napi::Error& error) {
        task.deferred.Reject(error.Value());
      }
    } catch (const Napi::Error&) {
      // The environment is being terminated and takes no more values.
    }
  }
  pending_ -= done.size();
  if (pending_ == 0) napi_unref_threadsafe_function(env, signal_);
}

void Executor::on_signal_closed(napi_env, void* holder, void*) {
  const std::unique_ptr<std::shared_ptr<Executor>> executor(static_cast<std::shared_ptr<Executor>*>(holder));
  if ((*executor)->coordinator_.joinable()) (*executor)->coordinator_.join();
}

void Executor::close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  if (coordinator_.joinable()) {
    change_.notify_all();  // it frees the context after the last job
  } else {
    context_.reset();
  }
}

void Executor::shut_down() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = stopping_ = true;
  }
  change_.notify_all();
  if (coordinator_.joinable()) coordinator_.join();
  context_.reset();
  queue_.clear();
  done_.clear();
}

}  // namespace desap
