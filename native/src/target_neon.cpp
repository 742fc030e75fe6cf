#include "maps.hpp"
#include "target.hpp"

#include <arm_neon.h>
#include <cstdint>

namespace espy {
namespace {
#include "vector_neon.hpp"
#include "dense_float32.hpp"
#include "kernels.hpp"
}  // namespace

const Kernels& kernels_neon() { return KERNELS; }
}  // namespace espy
