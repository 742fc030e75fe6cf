// The four functions of the C interface: what goes wrong behind them becomes a line of text.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>

#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "espy_engine.h"
#include "network.hpp"
#include "target.hpp"
#include "workers.hpp"

namespace espy {
namespace {

thread_local char last_error[512] = "";

void tell(const char* what) {
  std::strncpy(last_error, what, sizeof last_error - 1);
  last_error[sizeof last_error - 1] = 0;
}

int process() {
#if defined(_WIN32)
  return 0;
#else
  return static_cast<int>(getpid());
#endif
}

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

// The best target that this processor has for a precision; ESPY_ENGINE_TARGET names another, for tests and measurements.
const Kernels& best_target(int precision) {
  const char* asked = std::getenv("ESPY_ENGINE_TARGET");
  auto wanted = [&](const char* name) { return !asked || !*asked || !std::strcmp(asked, name); };
  if (precision == ESPY_BFLOAT16) {
#if defined(ESPY_AVX512BF16)
    if (wanted("avx512bf16") && has_avx512() && __builtin_cpu_supports("avx512bf16")) return kernels_avx512bf16();
#endif
    throw Error("bfloat16 needs a processor with AVX-512 BF16: take float32");
  }
#if defined(__x86_64__)
#if defined(ESPY_AVX512)
  if (wanted("avx512") && has_avx512()) return kernels_avx512();
#endif
#if defined(ESPY_AVX2)
  if (wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kernels_avx2();
#endif
#elif defined(__aarch64__) && defined(ESPY_NEON)
  if (wanted("neon")) return kernels_neon();
#endif
  if (!wanted("scalar")) throw Error("ESPY_ENGINE_TARGET names no target that this processor has");
  return kernels_scalar();
}

constexpr int MOST_THREADS = 1024, MOST_SIDE = 65536;

}  // namespace
}  // namespace espy

namespace espy {

// What a run needs beside the network. A forked child has none of the threads, and what was locked stays so: it gets a team of its
// own and leaves the parent's as it is.
struct Team {
  const int process = espy::process();
  std::mutex turn;
  std::unique_ptr<Plan> plan;
  std::unique_ptr<Workers> workers;
};

}  // namespace espy

struct espy_engine {
  const espy::Network network;
  const int threads;
  std::atomic<espy::Team*> team{new espy::Team};

  espy_engine(const int64_t* units, int64_t count, const float* weights, int64_t floats, int t)
      : network(units, count, weights, floats, espy::best_target), threads(t) {}
  ~espy_engine() {
    if (team.load()->process == espy::process()) delete team.load();
  }
  espy::Team& here() {
    espy::Team* found = team.load();
    while (found->process != espy::process()) {
      auto own = std::make_unique<espy::Team>();
      if (team.compare_exchange_strong(found, own.get())) return *own.release();
    }
    return *found;
  }
  void run(espy::Team& own, double* seconds) const {
    const espy::Kernels& k = network.kernels;
    if (!own.workers) own.workers = std::make_unique<espy::Workers>(threads, [&k] { k.flush(0, false); });
    const unsigned was = k.flush(0, false);
    if (seconds) std::fill(seconds, seconds + network.units.size(), 0.0);
    const espy::Plan* plan = own.plan.get();
    own.workers->run([&](int t, espy::Meeting& meeting) {
      auto before = std::chrono::steady_clock::now();
      for (const auto& stage : plan->stages) {
        const espy::Slab slab = plan->slab(stage, t);
        if (slab.from < slab.to) stage.run(slab);
        meeting.wait();
#if defined(ESPY_CHECK)
        if (t == 0) plan->check(static_cast<int>(&stage - plan->stages.data()));
        meeting.wait();
#endif
        if (seconds && t == 0) {
          const auto now = std::chrono::steady_clock::now();
          seconds[stage.unit] += std::chrono::duration<double>(now - before).count();
          before = now;
        }
      }
    });
    k.flush(was, true);
  }
};

extern "C" {

espy_engine* espy_create(const int64_t* units, int64_t count, const float* weights, int64_t floats, int32_t threads) {
  try {
    if (!units || count < 0 || (!weights && floats) || floats < 0) throw espy::Error("no description");
    if (threads < 1 || threads > espy::MOST_THREADS) throw espy::Error("threads must be 1 to " + std::to_string(espy::MOST_THREADS));
    return new espy_engine(units, count, weights, floats, threads);
  } catch (const std::bad_alloc&) {
    espy::tell("out of memory");
  } catch (const std::exception& error) {
    espy::tell(error.what());
  }
  return nullptr;
}

int32_t espy_run(espy_engine* engine, const uint8_t* picture, int64_t height, int64_t width, uint8_t* mask, float* scores,
                 int64_t room, double* seconds) {
  try {
    if (!engine || !picture) throw espy::Error("no engine or no picture");
    if (!mask == engine->network.masks) throw espy::Error(mask ? "this network gives no mask" : "no mask to write to");
    if (!mask && !scores) throw espy::Error("no scores to write to");
    if (height < 1 || width < 1 || height > espy::MOST_SIDE || width > espy::MOST_SIDE)
      throw espy::Error("sides must be 1 to " + std::to_string(espy::MOST_SIDE));
    espy::Team& own = engine->here();
    std::lock_guard<std::mutex> lock(own.turn);
    if (!own.plan || own.plan->height != height || own.plan->width != width) {
      own.plan.reset();  // its memory goes before another's comes
      own.plan = std::make_unique<espy::Plan>(engine->network, static_cast<int>(height), static_cast<int>(width), engine->threads);
    }
    if (scores && room != own.plan->given)
      throw espy::Error("there are " + std::to_string(own.plan->given) + " scores, and room for " + std::to_string(room));
    own.plan->picture = picture;
    own.plan->mask = mask;
    own.plan->scores = scores;
    engine->run(own, seconds);
    return 0;
  } catch (const std::bad_alloc&) {
    espy::tell("out of memory for a picture of this size");
  } catch (const std::exception& error) {
    espy::tell(error.what());
  }
  return -1;
}

void espy_destroy(espy_engine* engine) { delete engine; }

const char* espy_last_error(void) { return espy::last_error; }

}  // extern "C"
