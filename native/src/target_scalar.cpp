#include "maps.hpp"
#include "target.hpp"

#include <cstdint>

namespace espy {
namespace {
#include "vector_scalar.hpp"
#include "dense_float32.hpp"
#include "kernels.hpp"
}  // namespace

const Kernels& kernels_scalar() { return KERNELS; }
}  // namespace espy
