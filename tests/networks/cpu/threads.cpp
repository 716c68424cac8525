// Many calls of the kernels at once, by threads of the very pool that they hand work to: each has to
// end, and to do every task once. Built with ThreadSanitizer by test_sanitizers.py.

#include "threads.h"

#include <cstdio>
#include <deque>
#include <thread>
#include <vector>

// As XLA's: a fixed number of threads and one queue.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int64_t num_threads() const { return threads_.size(); }
  void Schedule(std::function<void()> work) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(work));
    }
    changed_.notify_one();
  }

 private:
  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
      if (queue_.empty()) return;
      std::function<void()> work = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      work();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool closed_ = false;
};

int main() {
  constexpr int kCalls = 4000, kTasksEach = 7;
  std::vector<std::vector<int>> counts(kCalls, std::vector<int>(kTasksEach));
  std::vector<int> totals(kCalls);
  {
    Pool pool(3);
    for (int call = 0; call < kCalls; ++call) {
      pool.Schedule([&, call] {
        std::vector<float> values(kTasksEach);
        jaxcnn::ForEach(pool, kTasksEach, [&](int64_t task) {
          ++counts[call][task];
          values[task] = task;
        });
        for (float value : values) totals[call] += value;
      });
    }
  }
  for (int call = 0; call < kCalls; ++call) {
    for (int count : counts[call]) {
      if (count != 1) return std::puts("a task ran another number of times than once"), 1;
    }
    if (totals[call] != 21) return std::puts("a call ended before its tasks"), 1;
  }
  return 0;
}
