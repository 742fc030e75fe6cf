// Runs the engine where Python does not: under qemu-user.
//   runner UNITS WEIGHTS PICTURE HEIGHT WIDTH THREADS MASK
// The first three are files of int64, float32 and uint8; the mask is written to the last. Why it failed is said on stderr.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "espy_engine.h"

template <typename T>
static std::vector<T> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const T* first = reinterpret_cast<const T*>(bytes.data());
  return std::vector<T>(first, first + bytes.size() / sizeof(T));
}

int main(int count, char** arguments) {
  if (count != 8) return 2;
  const auto units = read<int64_t>(arguments[1]);
  const auto weights = read<float>(arguments[2]);
  const auto picture = read<uint8_t>(arguments[3]);
  const int64_t height = std::atoll(arguments[4]), width = std::atoll(arguments[5]);
  std::vector<uint8_t> mask(static_cast<size_t>(height * width));

  espy_engine* engine = espy_create(units.data(), static_cast<int64_t>(units.size()), weights.data(),
                                    static_cast<int64_t>(weights.size()), std::atoi(arguments[6]));
  const bool done = engine && espy_run(engine, picture.data(), height, width, mask.data(), nullptr, nullptr) == 0;
  if (!done) std::fprintf(stderr, "%s\n", espy_last_error());
  espy_destroy(engine);
  if (!done) return 1;
  std::ofstream(arguments[7], std::ios::binary).write(reinterpret_cast<const char*>(mask.data()),
                                                      static_cast<std::streamsize>(mask.size()));
  return 0;
}
