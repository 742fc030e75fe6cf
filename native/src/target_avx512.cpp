#include "maps.hpp"
#include "target.hpp"

#include <cstdint>
#include <immintrin.h>

namespace espy {
namespace {
#include "vector_avx512.hpp"
#include "dense_float32.hpp"
#include "kernels.hpp"
}  // namespace

const Kernels& kernels_avx512() { return KERNELS; }
}  // namespace espy
