// Runs the engine where Python does not: under sanitizers and qemu-user. Answers programs, one after the other, until there are none.
//   stdin:  int64 units, floats, height, width, threads, masks (0 or 1), room;
//           int64 units[], float weights[], uint8 picture[height][width][3]
//   stdout: int64 n; char why[n] it was refused; where n is 0, uint8 mask[height][width] (if any), float scores[room]
// Of a picture with a side that is not 1 to 65536 nothing is sent or answered. Each runs in two threads at once; where they find
// different things, or take too long, the process ends.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "espy_engine.h"

template <typename T>
static bool read(std::vector<T>& into, size_t count) {
  into.assign(count, T());
  into.shrink_to_fit();  // what is read behind the end is behind the memory
  return std::fread(into.data(), sizeof(T), count, stdin) == count;
}

template <typename T>
static void write(const std::vector<T>& from) {
  std::fwrite(from.data(), sizeof(T), from.size(), stdout);
}

int main(int count, char** arguments) {
  const int seconds = count > 1 ? std::stoi(arguments[1]) : 60;
  std::vector<int64_t> head, units;
  std::vector<float> weights;
  std::vector<uint8_t> picture;
  while (read(head, 7)) {
    const int64_t height = head[2], width = head[3];
    const bool sized = height >= 1 && width >= 1 && height <= 65536 && width <= 65536;
    const size_t pixels = sized ? static_cast<size_t>(height * width) : 0;
    if (!read(units, head[0]) || !read(weights, head[1]) || !read(picture, 3 * pixels)) return 2;
    const bool masked = head[5];
    std::vector<uint8_t> masks[2];
    std::vector<float> scores[2];
    for (auto& mask : masks) mask.resize(masked ? pixels : 0);
    for (auto& score : scores) score.resize(head[6]);
    bool done[2] = {false, false};
    std::string why;
    uint8_t none = 0;

    alarm(seconds);
    espy_engine* engine = espy_create(units.data(), head[0], weights.data(), head[1], static_cast<int32_t>(head[4]));
    if (engine) {
      auto run = [&](int which) {
        uint8_t* mask = !masked ? nullptr : sized ? masks[which].data() : &none;
        done[which] = espy_run(engine, sized ? picture.data() : &none, height, width, mask, scores[which].data(), head[6], nullptr) == 0;
      };
      std::thread other(run, 1);
      run(0);
      other.join();
    }
    if (!done[0]) why = espy_last_error();
    espy_destroy(engine);
    alarm(0);

    if (done[0] != done[1] || masks[0] != masks[1] || std::memcmp(scores[0].data(), scores[1].data(), scores[0].size() * sizeof(float))) {
      std::fprintf(stderr, "two threads found different things\n");
      return 3;
    }
    write(std::vector<int64_t>{static_cast<int64_t>(why.size())});
    write(std::vector<char>(why.begin(), why.end()));
    if (done[0]) write(masks[0]), write(scores[0]);
    std::fflush(stdout);
  }
  return 0;
}
