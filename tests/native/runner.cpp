// Runs the engine where Python does not: under qemu-user.
//   runner UNITS WEIGHTS PICTURE HEIGHT WIDTH THREADS OUT [SCORES]
// The first three are files of int64, float32 and uint8; the mask is written to OUT, or so many scores. Why it failed is said on stderr.
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
  if (count != 8 && count != 9) return 2;
  const auto units = read<int64_t>(arguments[1]);
  const auto weights = read<float>(arguments[2]);
  const auto picture = read<uint8_t>(arguments[3]);
  const int64_t height = std::atoll(arguments[4]), width = std::atoll(arguments[5]);
  std::vector<float> scores(count == 9 ? std::strtoul(arguments[8], nullptr, 10) : 0);
  std::vector<uint8_t> mask(count == 9 ? 0 : static_cast<size_t>(height * width));

  espy_engine* engine = espy_create(units.data(), static_cast<int64_t>(units.size()), weights.data(),
                                    static_cast<int64_t>(weights.size()), std::atoi(arguments[6]));
  const bool done = engine && espy_run(engine, picture.data(), height, width, count == 9 ? nullptr : mask.data(),
                                       count == 9 ? scores.data() : nullptr, static_cast<int64_t>(scores.size()), nullptr) == 0;
  if (!done) std::fprintf(stderr, "%s\n", espy_last_error());
  espy_destroy(engine);
  if (!done) return 1;
  const char* out = count == 9 ? reinterpret_cast<const char*>(scores.data()) : reinterpret_cast<const char*>(mask.data());
  std::ofstream(arguments[7], std::ios::binary).write(out, static_cast<std::streamsize>(mask.size() + 4 * scores.size()));
  return 0;
}
