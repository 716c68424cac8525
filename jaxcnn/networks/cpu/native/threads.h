// How the images of a batch are shared among threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace jaxcnn {

constexpr int64_t kSlice = 16;  // images of a slice
constexpr int64_t kTasks = 64;  // at most, for each call

// Runs tasks 0 .. tasks - 1 on the threads of a pool. It may be called by a thread of that very
// pool: whoever calls does all that no other thread has begun, and waits for nothing else.
template <typename Pool>
void ForEach(Pool& pool, int64_t tasks, const std::function<void(int64_t)>& task) {
  struct Job {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable finished;
  };
  // A thread may start after the call has returned; it then finds no task left.
  auto job = std::make_shared<Job>();
  auto work = [job, tasks, &task] {
    int64_t done = 0;
    for (int64_t i; (i = job->next++) < tasks; ++done) task(i);
    if (done == 0) return;
    std::lock_guard<std::mutex> lock(job->mutex);
    if ((job->done += done) == tasks) job->finished.notify_one();
  };
  const int64_t threads = std::min<int64_t>(tasks, std::max<int64_t>(1, pool.num_threads()));
  for (int64_t i = 1; i < threads; ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(job->mutex);
  job->finished.wait(lock, [&] { return job->done == tasks; });
}

// The images of a batch in slices, and the slices in tasks: by the size of the batch alone.
struct Slices {
  int64_t batch, size, count, tasks;

  explicit Slices(int64_t images)
      : batch(images),
        size(std::min(kSlice, std::max<int64_t>(1, images / 2))),
        count((images + size - 1) / size),
        tasks(std::min(count, kTasks)) {}

  // Calls f(first image, number of images) for each slice of a task.
  template <typename F>
  void Each(int64_t task, F f) const {
    for (int64_t i = task * count / tasks; i < (task + 1) * count / tasks; ++i) {
      f(i * size, std::min(size, batch - i * size));
    }
  }
};

}  // namespace jaxcnn
