#include "plan.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#endif

#include "network.hpp"

namespace espy {

// ---- Memory

namespace {

constexpr size_t PAGE = 2 << 20;

size_t floats_of_this_machine() {
#if defined(_SC_PHYS_PAGES)
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE)) / sizeof(float);
#else
  return SIZE_MAX / sizeof(float) / 2;
#endif
}

}  // namespace

Memory::Memory(size_t floats) : floats_(std::max<size_t>(floats, 16)) {
  const size_t page = floats_ * sizeof(float) >= 2 * PAGE ? PAGE : 64;
  const size_t bytes = (floats_ * sizeof(float) + page - 1) / page * page;
  at_ = static_cast<float*>(std::aligned_alloc(page, bytes));
  if (!at_) throw std::bad_alloc();
#if defined(__linux__)
  if (page == PAGE) madvise(at_, bytes, MADV_HUGEPAGE);
#endif
  std::memset(at_, 0, bytes);
}

Memory::~Memory() { std::free(at_); }

// ---- Plans

Plan::Plan(const Network& network, int h, int w, int t) : height(h), width(w), threads(t), kernels(network.kernels), numbers_(MAPS, -1), joined_floats_(static_cast<long>(network.steps) * STRIP) {
  for (; unit_ < static_cast<int>(network.units.size()); unit_++) network.units[unit_]->add(*this);
  lay_out();
}

int Plan::make(int number, int channels, int h, int w, int gap) {
  Place p{};
  p.channels = channels, p.height = h, p.width = w, p.gap = gap;
  p.plane = up16(w) + gap, p.row = p.plane * channels;
  p.floats = static_cast<size_t>(gap) + static_cast<size_t>(p.row) * h + 2 * STRIP + gap;
  fits(p.floats);
  p.first = p.last = static_cast<int>(stages.size());
  places_.push_back(p);
  const int found = static_cast<int>(places_.size()) - 1;
  if (number >= 0) numbers_[number] = found;
  return found;
}

void Plan::ring(Map& map, int channels, int h, int w, int gap, int kept) {
  map.channels = channels, map.height = h, map.width = w, map.kept = kept;
  map.plane = up16(w) + gap, map.row = map.plane * channels;
  rings_.emplace_back(&map, static_cast<int>(stages.size()));
}

int Plan::slot(int number) const { return numbers_[number]; }

Plan::Size Plan::size(int slot) const { return {places_[slot].channels, places_[slot].height, places_[slot].width}; }

void Plan::use(Map& map, int slot) {
  Place& p = places_[slot];
  map.channels = p.channels, map.height = p.height, map.width = p.width, map.plane = p.plane, map.row = p.row;
  p.last = std::max(p.last, static_cast<int>(stages.size()));
  users_.emplace_back(&map, slot);
}

float* Plan::sums(int slot) {
  Place& p = places_[slot];
  if (p.sums) return p.sums;
  const size_t floats = static_cast<size_t>(p.height) * p.channels;
  reserve(floats);
  return p.sums = const_cast<float*>(keep(std::vector<float>(floats, 0.0f)));
}

const float* Plan::keep(std::vector<float> values) {
  auto kept = std::make_shared<std::vector<float>>(std::move(values));
  kept_.push_back(kept);
  return kept->data();
}

const int* Plan::keep(std::vector<int> values) {
  auto kept = std::make_shared<std::vector<int>>(std::move(values));
  kept_.push_back(kept);
  return kept->data();
}

// Vectors of more than four lanes take both neighbours from one load.
Lerp Plan::lerp(int inputs, int outputs, bool align) {
  const int lanes = kernels.lanes, all = up16(outputs);
  std::vector<int> at(all), first(all / lanes), steps(all);
  std::vector<float> part(all);
  for (int i = 0; i < all; i++) {
    const int o = std::min(i, outputs - 1);
    const double x = align ? (outputs > 1 ? static_cast<double>(o) * (inputs - 1) / (outputs - 1) : 0.0)
                           : std::max(0.0, (o + 0.5) * inputs / outputs - 0.5);
    at[i] = std::min(static_cast<int>(x), inputs - 1);
    part[i] = at[i] + 1 < inputs ? static_cast<float>(x - at[i]) : 0.0f;
    if (i % lanes == 0) first[i / lanes] = at[i];
    steps[i] = at[i] - first[i / lanes];
    if (lanes > 4 && steps[i] > lanes - 2 && !(steps[i] == lanes - 1 && part[i] == 0))
      throw Error("a resize from " + std::to_string(inputs) + " to " + std::to_string(outputs) + " pixels shrinks more than this engine can");
  }
  return {keep(at), keep(part), keep(first), keep(steps), inputs, outputs};
}

void Plan::stage(int rows, long scratch, std::function<void(const Slab&)> run) {
  stages.push_back({unit_, rows, std::move(run)});
  scratch_floats_ = std::max(scratch_floats_, joined_floats_ + aligned(scratch + 64));
}

Slab Plan::slab(const Stage& stage, int thread) const {
  auto share = [&](int t) { return static_cast<int>(static_cast<int64_t>(stage.rows) * t / threads); };
  float* own = scratch_->at() + thread * scratch_floats_;
  return {share(thread), share(thread + 1), own + joined_floats_, own};
}

void Plan::fits(size_t floats) const {
  static const size_t machine = floats_of_this_machine();
  if (reserved_ > machine || floats > machine - reserved_)
    throw Error("a picture of " + std::to_string(height) + " x " + std::to_string(width) + " pixels needs more memory than this machine has");
}

void Plan::reserve(size_t floats) {
  fits(floats);
  reserved_ += floats;
}

// Each map lies where no other is that lives at the same time: the first such place, maps by their first use.
void Plan::lay_out() {
  size_t end = 0;
  long row = 0;
  std::vector<Place*> placed;
  for (Place& p : places_) {
    p.floats = (p.floats + 15) / 16 * 16;
    row = std::max(row, p.row + 2L * p.gap + 2 * STRIP);
    std::vector<Place*> at_once;
    for (Place* q : placed)
      if (q->first <= p.last && p.first <= q->last) at_once.push_back(q);
    std::sort(at_once.begin(), at_once.end(), [](const Place* a, const Place* b) { return a->offset < b->offset; });
    p.offset = 0;
    for (const Place* q : at_once) {
      if (p.offset + p.floats <= q->offset) break;
      p.offset = std::max(p.offset, q->offset + q->floats);
    }
    end = std::max(end, p.offset + p.floats);
    placed.push_back(&p);
  }
  for (const auto& [ring, stage] : rings_) row = std::max(row, ring->row + 2 * (ring->plane - up16(ring->width)) + 2 * STRIP);
  reserve(end);
  reserve(row + 64);
  reserve(static_cast<size_t>(scratch_floats_) * threads);
  arena_ = std::make_unique<Memory>(end);
  zeros_ = std::make_unique<Memory>(row + 64);
  scratch_ = std::make_unique<Memory>(static_cast<size_t>(scratch_floats_) * threads);
  for (auto& [map, slot] : users_) {
    const Place& p = places_[slot];
    map->at = arena_->at() + p.offset + p.gap;
    map->zeros = zeros_->at() + up16(p.gap);
  }
  for (auto& [ring, stage] : rings_) ring->zeros = zeros_->at() + (ring->plane - up16(ring->width));
}

void Plan::check(int stage) const {
  auto zero = [](const float* from, const float* to) { return std::all_of(from, to, [](float value) { return value == 0; }); };
  auto around = [&](const Map& map, const float* first, long gap, int rows) {
    bool fine = zero(first - gap, first);
    for (long i = 0; i < static_cast<long>(rows) * map.channels; i++) fine = fine && zero(first + i * map.plane + map.width, first + (i + 1) * map.plane);
    if (fine) return;
    std::fprintf(stderr, "unit %d: what lies around a map of %d x %d x %d is not zero\n", stages[stage].unit, map.channels, map.height, map.width);
    std::abort();
  };
  auto unit = [&](int at) { return at < static_cast<int>(stages.size()) ? stages[at].unit : -1; };
  for (const Place& p : places_) {
    if (stage < p.first || stage > p.last) continue;
    if (stage != p.last && unit(p.first) == unit(stage + 1)) continue;  // further stages of the unit may make the rest of it
    Map map;
    map.channels = p.channels, map.height = p.height, map.width = p.width, map.plane = p.plane;
    around(map, arena_->at() + p.offset + p.gap, p.gap, p.height);
  }
  for (const auto& [ring, made] : rings_)
    for (int t = 0; t < threads && made == stage; t++) {
      const Slab own = slab(stages[stage], t);
      const long gap = ring->plane - up16(ring->width);
      if (own.from < own.to) around(*ring, own.scratch + gap, gap, ring->kept);
    }
}

}  // namespace espy
