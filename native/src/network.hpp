// A network as it was described.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "plan.hpp"

namespace espy {

// One unit of the description: its weights packed, and how it adds its stages to a plan.
class Unit {
 public:
  virtual ~Unit() = default;
  virtual void add(Plan& plan) const = 0;
};

class Network {
 public:
  // `target`: the kernels for a precision
  Network(const int64_t* units, int64_t count, const float* weights, int64_t floats, const Kernels& (*target)(int precision));
  const Kernels& kernels;
  int steps = 0;  // the most of a dense product
  std::vector<std::unique_ptr<Unit>> units;
  bool masks = false;  // it ends with a mask
};

}  // namespace espy
