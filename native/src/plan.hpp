// What a network does for one size of picture.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "maps.hpp"

namespace espy {

constexpr int MAPS = 256;  // numbers of maps

inline long aligned(long floats) { return (floats + 15) / 16 * 16; }

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Memory that starts on a page and is given back: zeros at first.
class Memory {
 public:
  explicit Memory(size_t floats);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  float* at() const { return at_; }
  size_t floats() const { return floats_; }

 private:
  float* at_;
  size_t floats_;
};

class Network;

// What is done for a picture of (height, width), stage by stage.
class Plan {
 public:
  Plan(const Network& network, int height, int width, int threads);
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  struct Stage {
    int unit, rows;
    std::function<void(const Slab&)> run;
  };
  const int height, width, threads;
  const Kernels& kernels;
  std::vector<Stage> stages;
  void check(int stage) const;  // ends the process where what lies around a map is not zero
  Slab slab(const Stage& stage, int thread) const;
  // Where the picture is, and where the results go: set before each run.
  const uint8_t* picture = nullptr;
  uint8_t* mask = nullptr;
  float* scores = nullptr;
  int64_t given = 0;  // floats that are written to the scores

  // For units
  struct Size {
    int channels, height, width;
  };
  int make(int number, int channels, int height, int width, int gap = GAP);  // a map by its number; -1: one without
  int slot(int number) const;                                                // of a map that was made
  Size size(int slot) const;
  void use(Map& map, int slot);  // the map's memory is told when all are known; it is kept from its first use to its last
  // a map of which `kept` rows are kept, where the next stage's scratch begins
  void ring(Map& map, int channels, int height, int width, int gap, int kept);
  float* sums(int slot);  // [height][channels] beside a map
  const float* keep(std::vector<float> values);
  const int* keep(std::vector<int> values);
  Lerp lerp(int inputs, int outputs, bool align);
  template <class Args>
  Args& args() {
    auto made = std::make_shared<Args>();
    kept_.push_back(made);
    return *made;
  }
  void stage(int rows, long scratch, std::function<void(const Slab&)> run);
  void reserve(size_t floats);  // refuses what this machine has no memory for, before the system ends the process for it

 private:
  struct Place {
    int channels, height, width, gap;
    long plane, row;
    size_t floats, offset;
    int first, last;
    float* sums;
  };
  void fits(size_t floats) const;
  void lay_out();
  std::vector<Place> places_;
  std::vector<int> numbers_;
  std::vector<std::pair<Map*, int>> users_;
  std::vector<std::pair<Map*, int>> rings_;  // and the stage
  std::vector<std::shared_ptr<void>> kept_;
  const long joined_floats_;
  int unit_ = 0;  // that is adding its stages
  long scratch_floats_ = 0;
  size_t reserved_ = 0;
  std::unique_ptr<Memory> arena_, scratch_, zeros_;
};

}  // namespace espy
