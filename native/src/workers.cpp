#include "workers.hpp"

#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace espy {
namespace {

constexpr auto SPIN = std::chrono::microseconds(20);

void rest() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

void Meeting::wait() {
  if (size_ == 1) return;
  const int round = round_.load();
  if (here_.fetch_add(1) == size_ - 1) {
    here_.store(0);
    round_.fetch_add(1);
    if (asleep_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      woken_.notify_all();
    }
    return;
  }
  const auto end = std::chrono::steady_clock::now() + SPIN;
  do {
    for (int i = 0; i < 64; i++) {
      if (round_.load() != round) return;
      rest();
    }
  } while (std::chrono::steady_clock::now() < end);
  std::unique_lock<std::mutex> lock(mutex_);
  asleep_.fetch_add(1);
  woken_.wait(lock, [&] { return round_.load() != round; });
  asleep_.fetch_sub(1);
}

Workers::Workers(int size, std::function<void()> begin) : size_(size), start_(size), within_(size) {
  for (int t = 1; t < size; t++)
    threads_.emplace_back([this, t, begin] {
      begin();
      for (;;) {
        start_.wait();
        if (!work_) return;
        (*work_)(t, within_);
        start_.wait();
      }
    });
}

Workers::~Workers() {
  work_ = nullptr;
  start_.wait();
  for (auto& thread : threads_) thread.join();
}

void Workers::run(const Work& work) {
  work_ = &work;
  start_.wait();
  work(0, within_);
  start_.wait();
  work_ = nullptr;
}

}  // namespace espy
