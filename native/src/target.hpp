// The targets that this library was built for, the best first.
#pragma once
#include "maps.hpp"

namespace espy {

const Kernels& kernels_avx512();
const Kernels& kernels_avx512bf16();  // chosen only when asked for
const Kernels& kernels_avx2();
const Kernels& kernels_neon();
const Kernels& kernels_scalar();

}  // namespace espy
