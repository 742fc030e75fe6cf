#include "workers.hpp"

#include <chrono>

#if defined(__linux__)
#include <climits>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
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

// Nobody sleeps on: who sleeps said so before looking at the round, and who comes last changed the round before looking for
// sleepers, so one of them sees the other. A round cannot pass while somebody has not left the one before.
void Meeting::wait(int as_many) {
  if (size_ == 1) return;
  const int round = round_.load();
  if (here_.fetch_add(as_many) == size_ - as_many) {
    here_.store(0);
    round_.fetch_add(1);
    if (asleep_.load() > 0) wake();
    return;
  }
  const auto end = std::chrono::steady_clock::now() + SPIN;
  do {
    for (int i = 0; i < 64; i++) {
      if (round_.load() != round) return;
      rest();
    }
  } while (std::chrono::steady_clock::now() < end);
  asleep_.fetch_add(1);
  sleep(round);
  asleep_.fetch_sub(1);
}

#if defined(__linux__)
// Linux sleeps only where the round is still the same. Condition variables of glibc 2.27 to 2.40 lose a wake-up once in a great
// while (its bug 25847).
void Meeting::sleep(int round) {
  static_assert(sizeof round_ == 4, "what Linux looks at");
  while (round_.load() == round) syscall(SYS_futex, &round_, FUTEX_WAIT_PRIVATE, round, nullptr, nullptr, 0);
}

void Meeting::wake() { syscall(SYS_futex, &round_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
#else
void Meeting::sleep(int round) {
  std::unique_lock<std::mutex> lock(mutex_);
  woken_.wait(lock, [&] { return round_.load() != round; });
}

void Meeting::wake() {
  std::lock_guard<std::mutex> lock(mutex_);  // not between a sleeper's look at the round and its sleep
  woken_.notify_all();
}
#endif

Workers::Workers(int size, std::function<void()> begin) : size_(size), start_(size), within_(size) {
  threads_.reserve(size - 1);
  try {
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
  } catch (...) {  // the system has no more: those that were started go home
    start_.wait(size - static_cast<int>(threads_.size()));
    for (auto& thread : threads_) thread.join();
    throw;
  }
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
