// A team of threads that do the same work on parts of their own and meet between its steps.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#if !defined(__linux__)
#include <condition_variable>
#include <mutex>
#endif

namespace espy {

// Where so many threads wait for each other: spinning for microseconds, then asleep.
class Meeting {
 public:
  explicit Meeting(int size) : size_(size) {}
  void wait(int as_many = 1);  // in place of so many that are not there

 private:
  const int size_;
  void sleep(int round);
  void wake();
  std::atomic<int> here_{0}, round_{0}, asleep_{0};
#if !defined(__linux__)
  std::mutex mutex_;
  std::condition_variable woken_;
#endif
};

class Workers {
 public:
  // Work of thread t of `size`, the caller's being the first.
  using Work = std::function<void(int t, Meeting& meeting)>;

  Workers(int size, std::function<void()> begin);  // `begin`: what each new thread does first
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  void run(const Work& work);
  int size() const { return size_; }

 private:
  const int size_;
  Meeting start_, within_;
  const Work* work_ = nullptr;
  std::vector<std::thread> threads_;
};

}  // namespace espy
