#include "network.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "espy_engine.h"

namespace espy {
namespace {

constexpr int64_t MOST_CHANNELS = 1 << 16;
constexpr int SMALLEST = 5;    // least side of a scaled map
constexpr int KEPT = 9;        // rows of a pyramid's output where the mask follows: a block, and one before
constexpr int MOST_REACH = 2;  // of a band: more no size and no scale gives

int half(int n) { return (n + 1) / 2; }

// ---- Reading a description

class Integers {
 public:
  Integers(const int64_t* at, int64_t count) : at_(at), end_(at + count) {}
  int next(const char* what, int64_t least, int64_t most) {
    if (at_ == end_) throw Error(std::string("the description ends before ") + what);
    const int64_t value = *at_++;
    if (value < least || value > most)
      throw Error(std::string(what) + " is " + std::to_string(value) + ", not " + std::to_string(least) + " to " + std::to_string(most));
    return static_cast<int>(value);
  }
  Integers part(int64_t count) {
    if (count > end_ - at_) throw Error("the description ends within a unit");
    Integers found(at_, count);
    at_ += count;
    return found;
  }
  bool done() const { return at_ == end_; }

 private:
  const int64_t *at_, *end_;
};

class Floats {
 public:
  Floats(const float* at, int64_t count) : at_(at), left_(count) {}
  const float* next(std::initializer_list<int64_t> shape) {
    int64_t count = 1;
    for (int64_t n : shape) {
      count *= n;  // each below 2^17, and the product checked at each step
      if (count > left_) throw Error("the weights end before those of the last unit");
    }
    const float* found = at_;
    at_ += count;
    left_ -= count;
    return found;
  }
  bool done() const { return left_ == 0; }

 private:
  const float* at_;
  int64_t left_;
};

// What units share while they are read: the weights, and the channels of the maps made so far.
struct Reader {
  Floats floats;
  const Kernels& kernels;
  int steps = 0;
  std::vector<int> channels = std::vector<int>(MAPS, 0);
  std::vector<char> summed = std::vector<char>(MAPS, 0);

  int map(Integers& in, const char* what) {
    const int number = in.next(what, 0, MAPS - 1);
    if (!channels[number]) throw Error(std::string(what) + " is map " + std::to_string(number) + ", which no unit before makes");
    return number;
  }
  int made(Integers& in, const char* what) { return in.next(what, 0, MAPS - 1); }
  std::vector<int> maps(Integers& in) {
    const int count = in.next("the number of inputs", 1, MOST_INPUTS);
    std::vector<int> found;
    for (int i = 0; i < count; i++) found.push_back(map(in, "an input"));
    return found;
  }
  int channels_of(const std::vector<int>& maps) const {
    int64_t sum = 0;
    for (int m : maps) sum += channels[m];
    if (sum > MOST_CHANNELS) throw Error("the inputs have too many channels");
    return static_cast<int>(sum);
  }
  std::vector<float> values(std::initializer_list<int64_t> shape) {
    int64_t count = 1;
    for (int64_t n : shape) count *= n;
    const float* at = floats.next(shape);
    return std::vector<float>(at, at + count);
  }
};

void divides(int part, int whole, const char* what) {
  if (whole % part) throw Error(std::string(what) + ": " + std::to_string(whole) + " channels do not divide into " + std::to_string(part) + " groups");
}

// The nearest bfloat16, of two the even one.
uint32_t bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

float halves(float low, float high) {
  const uint32_t bits = bfloat16(low) | bfloat16(high) << 16;
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

// Weights in the order of the dense tile.
struct Pack {
  std::vector<float> memory;
  int inputs = 0, outputs = 0;

  template <class At>
  static Pack of(Reader& r, int outputs, int inputs, At at) {
    Pack p;
    p.inputs = inputs, p.outputs = outputs;
    const int together = r.kernels.together, steps = (inputs + together - 1) / together;
    r.steps = std::max(r.steps, steps);
    p.memory.reserve(static_cast<size_t>(outputs) * steps);
    const int number = (outputs + r.kernels.tile - 1) / r.kernels.tile;
    for (int i = 0, o = 0; i < number; i++) {
      const int n = outputs * (i + 1) / number - outputs * i / number;
      for (int j = 0; j < inputs; j += together)
        for (int t = o; t < o + n; t++) p.memory.push_back(together == 1 ? at(t, j) : halves(at(t, j), j + 1 < inputs ? at(t, j + 1) : 0.0f));
      o += n;
    }
    return p;
  }
  Packed packed() const { return {memory.data(), inputs, outputs}; }
};

struct Packs {
  std::vector<Pack> each;
  std::vector<Packed> list;
  void add(Pack pack) {
    each.push_back(std::move(pack));
    list.push_back(each.back().packed());
  }
  const Packed* packed() const { return list.data(); }
};

// A 3 x 3, w(output, input)[y][x], as Winograd's F(4, 3) has it: `four_rows` of kernels.hpp. None in bfloat16, whose rounding the blends
// would enlarge.
Packs six_packs(Reader& r, int outputs, int inputs, const std::function<const float*(int, int)>& w) {
  static constexpr double BLEND[6][3] = {{1 / 4.0, 0, 0},           {-1 / 6.0, -1 / 6.0, -1 / 6.0}, {-1 / 6.0, 1 / 6.0, -1 / 6.0},
                                         {1 / 24.0, 1 / 12.0, 1 / 6.0}, {1 / 24.0, -1 / 12.0, 1 / 6.0}, {0, 0, 1}};
  Packs packs;
  if (r.kernels.together > 1) return packs;
  for (const auto& part : BLEND)
    packs.add(Pack::of(r, outputs, 3 * inputs, [&](int o, int i) {
      const float* taps = w(o, i / 3) + i % 3;
      return static_cast<float>(part[0] * taps[0] + part[1] * taps[3] + part[2] * taps[6]);
    }));
  return packs;
}

long fours_scratch(const Fours& f, const Kernels& k, int inputs, int width) {
  const long pitch = std::min(FOURS_WIDTH, up16(width)) + 2 * up16(f.dilation);
  return aligned(6L * k.tile * STRIP) + aligned(36L * inputs) + aligned(6 * inputs * pitch);
}

struct Ends {
  std::vector<float> bias, slope;
  void read(Reader& r, int channels) {
    bias = r.values({channels});
    slope = r.values({channels});
  }
  End end() const { return {bias.data(), slope.data()}; }
};

struct Norms {
  std::vector<float> scale, shift, slope;
  void read(Reader& r, int channels) {
    scale = r.values({channels});
    shift = r.values({channels});
    slope = r.values({channels});
  }
  Norm norm() const { return {scale.data(), shift.data(), slope.data()}; }
};

void join(Plan& plan, Joined& joined, const std::vector<int>& numbers) {
  joined.count = static_cast<int>(numbers.size());
  joined.channels = 0;
  const auto one = plan.size(plan.slot(numbers[0]));
  for (size_t i = 0; i < numbers.size(); i++) {
    const int slot = plan.slot(numbers[i]);
    const auto size = plan.size(slot);
    if (size.height != one.height || size.width != one.width) throw Error("maps of different sizes are joined");
    plan.use(joined.maps[i], slot);
    joined.channels += size.channels;
  }
}

// ---- Units

struct FirstUnit : Unit {
  int out, pooled, co, sums;
  float factor[3], shift[3];
  Pack weights;
  Ends end;
  FirstUnit(Integers& in, Reader& r) {
    out = r.made(in, "FIRST's output");
    pooled = in.next("FIRST's pooled picture", -1, MAPS - 1);
    co = in.next("FIRST's channels", 1, MOST_CHANNELS);
    sums = in.next("FIRST's sums", 0, 1);
    if (pooled == out) throw Error("FIRST makes one map twice");
    const float* f = r.floats.next({3});
    const float* s = r.floats.next({3});
    for (int c = 0; c < 3; c++) factor[c] = f[c], shift[c] = s[c];
    const float* w = r.floats.next({co, 27});
    weights = Pack::of(r, co, 27, [&](int o, int k) { return w[o * 27 + k % 3 * 9 + k / 3]; });
    end.read(r, co);
    r.channels[out] = co, r.summed[out] = sums;
    if (pooled >= 0) r.channels[pooled] = 3, r.summed[pooled] = 0;
  }
  void add(Plan& plan) const override {
    auto& u = plan.args<First>();
    const int h = half(plan.height), w = half(plan.width);
    const int slot = plan.make(out, co, h, w);
    plan.use(u.out, slot);
    if (pooled >= 0) plan.use(u.pooled, plan.make(pooled, 3, h, w));
    u.height = plan.height, u.width = plan.width;
    std::copy(factor, factor + 3, u.factor);
    std::copy(shift, shift + 3, u.shift);
    u.weights = weights.packed(), u.end = end.end();
    u.sums = sums ? plan.sums(slot) : nullptr;
    const long line = 6L * (up16(w) + GAP);
    plan.stage(h, aligned(4 * line + GAP) + aligned(line + 2 * GAP), [&u, &plan](const Slab& s) {
      First mine = u;
      mine.picture = plan.picture;
      plan.kernels.first(mine, s);
    });
  }
};

struct PoolUnit : Unit {
  int in, out;
  PoolUnit(Integers& i, Reader& r) {
    in = r.map(i, "POOL's input");
    out = r.made(i, "POOL's output");
    if (in == out) throw Error("POOL cannot work in place");
    r.channels[out] = r.channels[in], r.summed[out] = 0;
  }
  void add(Plan& plan) const override {
    auto& u = plan.args<Pool>();
    const int from = plan.slot(in);
    const auto size = plan.size(from);
    plan.use(u.in, from);
    plan.use(u.out, plan.make(out, size.channels, half(size.height), half(size.width)));
    plan.stage(half(size.height), 0, [&u, &plan](const Slab& s) { plan.kernels.pool(u, s); });
  }
};

// A convolution: what CONV, and the reductions of EESP, DOWN and ESP, come down to.
struct Convolution {
  int co, kernel, dilation, stride, groups;
  bool split = false;
  Packs weights, fours;
  Ends end;

  void read_weights(Reader& r, int ci) {
    divides(groups, ci, "a convolution's inputs");
    divides(groups, co, "a convolution's outputs");
    const int inputs = ci / groups * kernel * kernel, outputs = co / groups;
    const float* w = r.floats.next({co, ci / groups, kernel, kernel});
    for (int g = 0; g < groups; g++)
      weights.add(
          Pack::of(r, outputs, inputs, [&](int o, int i) { return w[(static_cast<int64_t>(g) * outputs + o) * inputs + i]; }));
    if (kernel == 3 && stride == 1 && groups == 1)
      fours = six_packs(r, co, ci, [&](int o, int i) { return w + (static_cast<int64_t>(o) * ci + i) * 9; });
  }
  // `gap`: zeros between the planes of the output
  int add(Plan& plan, const std::vector<int>& in, int out, int gap = GAP) const {
    auto& u = plan.args<Conv>();
    const auto size = plan.size(plan.slot(in[0]));
    const int h = stride == 1 ? size.height : half(size.height), w = stride == 1 ? size.width : half(size.width);
    const int slot = plan.make(out, co, h, w, gap);
    const long scratch = fill(plan, u, in);
    plan.use(u.out, slot);
    plan.stage(u.fours.weights ? u.fours.number(h) : h, scratch, [&u, &plan](const Slab& s) { plan.kernels.conv(u, s); });
    return slot;
  }
  // Everything but the output; returns the scratch it takes.
  long fill(Plan& plan, Conv& u, const std::vector<int>& in) const {
    join(plan, u.in, in);
    const auto size = plan.size(plan.slot(in[0]));
    const int w = stride == 1 ? size.width : half(size.width);
    u.kernel = kernel, u.dilation = dilation, u.stride = stride, u.groups = groups, u.split = split;
    u.weights = weights.packed(), u.end = end.end();
    u.narrow = kernel == 1 && stride == 1 && !split && abreast(w) > 1;
    const long ci = u.in.channels, reach = dilation * (kernel - 1) / 2, line = 2 * ci * (up16(w) + GAP);
    long scratch = aligned(2 * kernel * ci) + aligned(2 * (ci / groups) * kernel * kernel) + (split ? aligned(co / groups * STRIP) : 0) + 2 * aligned(3 * GAP);
    if (u.narrow) scratch += aligned((ci + co / groups) * PITCH + 16);
    u.fours = {fours.packed(), dilation};
    if (u.fours.weights) scratch = std::max(scratch, fours_scratch(u.fours, plan.kernels, u.in.channels, w));
    if (stride == 2) scratch += aligned((2 * reach + 2) * line + GAP) + aligned(line + 2 * GAP);
    return scratch;
  }
};

struct ConvUnit : Unit {
  std::vector<int> in;
  int out;
  Convolution conv;
  ConvUnit(Integers& i, Reader& r) {
    in = r.maps(i);
    out = r.made(i, "CONV's output");
    conv.co = i.next("CONV's channels", 1, MOST_CHANNELS);
    conv.kernel = i.next("CONV's kernel", 1, 31);
    conv.dilation = i.next("CONV's dilation", 1, GAP);
    conv.stride = i.next("CONV's stride", 1, 2);
    conv.groups = i.next("CONV's groups", 1, MOST_CHANNELS);
    if (conv.kernel % 2 == 0) throw Error("CONV's kernel is even");
    if (conv.dilation * (conv.kernel - 1) / 2 > GAP) throw Error("CONV reaches further than the zeros between planes");
    for (int m : in)
      if (m == out) throw Error("CONV cannot work in place");
    conv.read_weights(r, r.channels_of(in));
    conv.end.read(r, conv.co);
    r.channels[out] = conv.co, r.summed[out] = 0;
  }
  void add(Plan& plan) const override { conv.add(plan, in, out); }
};

// EESP and DOWN.
struct BranchesUnit : Unit {
  int in, picture = -1, out, n, branches, kernel, stride, ci, pooled;
  std::vector<int> dilations;
  bool hff, residual = false, sums;
  Convolution reduce;
  std::vector<float> depthwise, reinforce;
  Norms fuse;
  Packs expand;
  Ends end;

  BranchesUnit(Integers& i, Reader& r, bool down) : stride(down ? 2 : 1) {
    in = r.map(i, "the input of a pyramid of branches");
    if (down) {
      picture = i.next("DOWN's picture", -1, MAPS - 1);
      if (picture >= 0 && r.channels[picture] != 3) throw Error("DOWN's picture is no map of three channels");
    }
    out = r.made(i, "the output of a pyramid of branches");
    n = i.next("the width of a branch", 1, MOST_CHANNELS);
    branches = i.next("the number of branches", 1, 8);
    kernel = i.next("the kernel of the branches", 1, 31);
    if (kernel % 2 == 0) throw Error("the kernel of the branches is even");
    for (int k = 0; k < branches; k++) dilations.push_back(i.next("a dilation", 1, 64));
    hff = i.next("hff", 0, 1);
    if (!down) residual = i.next("residual", 0, 1);
    sums = i.next("sums", 0, 1);
    ci = r.channels[in], pooled = down ? ci : 0;
    const int added = branches * n, co = pooled + added;
    if (down && (out == in || out == picture)) throw Error("DOWN cannot work in place");
    if (residual && ci != co) throw Error("a residual needs as many outputs as inputs");
    if (out == in && ci != co) throw Error("EESP works in place where it has as many outputs as inputs");
    reduce.co = n, reduce.kernel = reduce.dilation = reduce.stride = 1, reduce.groups = branches, reduce.split = down;
    reduce.read_weights(r, ci);
    reduce.end.read(r, n);
    const float* w = r.floats.next({branches, n, kernel, kernel});
    const int taps = kernel * kernel;
    for (int c = 0; c < n; c++)
      for (int k = 0; k < branches; k++) depthwise.insert(depthwise.end(), w + (static_cast<int64_t>(k) * n + c) * taps, w + (static_cast<int64_t>(k) * n + c + 1) * taps);
    fuse.read(r, added);
    const float* e = r.floats.next({added, n});
    const float* p = picture >= 0 ? r.floats.next({co, 3}) : nullptr;
    for (int g = 0; g < branches; g++)
      expand.add(Pack::of(r, n, n + (p ? 3 : 0), [&](int o, int k) {
        return k < n ? e[(static_cast<int64_t>(g) * n + o) * n + k] : p[(static_cast<int64_t>(pooled) + g * n + o) * 3 + k - n];
      }));
    if (p) reinforce.assign(p, p + 3L * pooled);
    end.read(r, co);
    r.channels[out] = co, r.summed[out] = sums;
  }
  void add(Plan& plan) const override {
    const int reach = *std::max_element(dilations.begin(), dilations.end()) * (kernel - 1) / 2;
    const int from = plan.slot(in), gap = std::max(GAP, up16(reach));
    const auto size = plan.size(from);
    auto& u = plan.args<Branches>();
    long scratch = 0;
    if (stride == 1) {
      plan.use(u.reduced, reduce.add(plan, {in}, -1, gap));
    } else {
      auto& r = plan.args<Conv>();
      scratch = reduce.fill(plan, r, {in});
      u.reduce = &r;
      const int kept = std::min(2 * reach + 2 * abreast(half(size.width)), size.height);
      plan.ring(u.reduced, 2 * n, size.height, half(size.width), gap, kept);
      scratch += aligned(kept * u.reduced.row + u.reduced.plane);
    }
    plan.use(u.in, from);
    const int h = stride == 1 ? size.height : half(size.height), w = stride == 1 ? size.width : half(size.width);
    if (picture >= 0) {
      const int p = plan.slot(picture);
      if (plan.size(p).height != h || plan.size(p).width != w) throw Error("DOWN's picture is of another size than its output");
      plan.use(u.picture, p);
    }
    const int slot = out == in ? from : plan.make(out, pooled + branches * n, h, w);
    plan.use(u.out, slot);
    u.n = n, u.branches = branches, u.kernel = kernel, u.stride = stride;
    std::copy(dilations.begin(), dilations.end(), u.dilations);
    u.hff = hff, u.residual = residual;
    u.depthwise = depthwise.data(), u.fuse = fuse.norm(), u.expand = expand.packed(), u.end = end.end();
    u.reinforce = reinforce.data();
    u.sums = sums ? plan.sums(slot) : nullptr;
    plan.stage(h, scratch + aligned(static_cast<long>(branches) * n * PITCH + 48) + aligned((n + 3L) * PITCH) + aligned(2L * branches * kernel) + aligned(2L * (n + 3)),
               [&u, &plan](const Slab& s) { plan.kernels.branches(u, s); });
  }
};

struct EspUnit : Unit {
  std::vector<int> in;
  int out, n, n1, branches, kernel, hff, stride, size;
  bool residual, primary;
  Convolution reduce, alone;
  Packs weights;
  std::vector<Packs> fours;
  Ends end;
  Norms last;
  EspUnit(Integers& i, Reader& r) {
    in = r.maps(i);
    out = r.made(i, "ESP's output");
    n = i.next("the width of ESP's branches", 1, MOST_CHANNELS);
    n1 = i.next("the width of ESP's first branch", 1, MOST_CHANNELS);
    branches = i.next("the number of ESP's branches", 1, 8);
    kernel = i.next("the kernel of ESP's branches", 1, 31);
    hff = i.next("hff", 0, 8);
    residual = i.next("residual", 0, 1);
    stride = i.next("ESP's stride", 1, 2);
    size = i.next("the kernel of ESP's reduction", 1, 3);
    primary = i.next("primary", 0, 1);
    if (kernel % 2 == 0 || size % 2 == 0) throw Error("a kernel of ESP is even");
    const int ci = r.channels_of(in), co = n1 + (branches - 1) * n;
    if (residual && (ci != co || stride != 1)) throw Error("a residual needs as many outputs as inputs, and stride 1");
    if (hff && (hff < 2 || (hff == 2 && n1 != n))) throw Error("ESP's sums start at a branch whose width is not that before it");
    if (co > MOST_CHANNELS) throw Error("ESP has too many channels");
    const bool in_place = in.size() == 1 && in[0] == out;
    for (int m : in)
      if (m == out && !(in_place && residual)) throw Error("ESP cannot work in place");
    auto reduction = [&](Convolution& c, int width) {
      c.co = width, c.kernel = size, c.dilation = 1, c.stride = stride, c.groups = 1;
      c.read_weights(r, ci);
      c.end.bias.assign(width, 0.0f);
      c.end.slope.assign(width, 1.0f);
    };
    reduction(reduce, n);
    if (primary) reduction(alone, n1);
    const int taps = kernel * kernel;
    for (int j = 0; j < branches; j++) {
      const int o = j ? n : n1, inputs = j || !primary ? n : n1;
      const float* w = r.floats.next({o, inputs, kernel, kernel});
      weights.add(Pack::of(r, o, inputs * taps, [&](int a, int k) { return w[(static_cast<int64_t>(a) * inputs + k % inputs) * taps + k / inputs]; }));
      if (kernel == 3) fours.push_back(six_packs(r, o, inputs, [&](int a, int i) { return w + (static_cast<int64_t>(a) * inputs + i) * 9; }));
    }
    end.read(r, co);
    last.read(r, co);
    r.channels[out] = co, r.summed[out] = 0;
  }
  void add(Plan& plan) const override {
    const int gap = std::max(GAP, up16((1 << (branches - 1)) * (kernel - 1) / 2));
    const int reduced = reduce.add(plan, in, -1, gap), first = primary ? alone.add(plan, in, -1, gap) : reduced;
    const auto found = plan.size(reduced);
    const int co = n1 + (branches - 1) * n;
    const int slot = in.size() == 1 && in[0] == out ? plan.slot(out) : plan.make(out, co, found.height, found.width);
    int sums = -1;
    for (int j = 0; j < branches; j++) {
      auto& u = plan.args<Esp>();
      const Packed* straight = weights.packed() + j;
      u.reduced.count = 1, u.reduced.channels = j || !primary ? n : n1;
      plan.use(u.reduced.maps[0], j ? reduced : first);
      join(plan, u.in, in);
      plan.use(u.out, slot);
      u.kernel = kernel, u.dilation = 1 << j, u.first = j ? n1 + (j - 1) * n : 0;
      u.adds = hff && j + 1 >= hff, u.added = hff && j + 2 >= hff && j + 1 < branches, u.residual = residual;
      if (u.added && sums < 0) sums = plan.make(-1, n, found.height, found.width);
      if (u.added || u.adds) plan.use(u.sums, sums);
      u.weights = *straight, u.end = end.end(), u.last = last.norm();
      if (kernel == 3) u.fours = {fours[j].packed(), u.dilation};
      const long scratch = std::max(aligned(2L * straight->inputs), u.fours.weights ? fours_scratch(u.fours, plan.kernels, u.reduced.channels, found.width) : 0);
      plan.stage(u.fours.weights ? u.fours.number(found.height) : found.height, scratch, [&u, &plan](const Slab& s) { plan.kernels.esp(u, s); });
    }
  }
};

struct AffineUnit : Unit {
  std::vector<int> in;
  int out, channels;
  Norms norm;
  AffineUnit(Integers& i, Reader& r) {
    in = r.maps(i);
    out = r.made(i, "AFFINE's output");
    for (int m : in)
      if (m == out) throw Error("AFFINE cannot work in place");
    channels = r.channels_of(in);
    norm.read(r, channels);
    r.channels[out] = channels, r.summed[out] = 0;
  }
  void add(Plan& plan) const override {
    auto& u = plan.args<Affine>();
    join(plan, u.in, in);
    const auto size = plan.size(plan.slot(in[0]));
    plan.use(u.out, plan.make(out, channels, size.height, size.width));
    u.norm = norm.norm();
    plan.stage(size.height, 0, [&u, &plan](const Slab& s) { plan.kernels.affine(u, s); });
  }
};

struct ResizeUnit : Unit {
  int in, like, out;
  ResizeUnit(Integers& i, Reader& r) {
    in = r.map(i, "RESIZE's input");
    like = r.map(i, "the size of RESIZE");
    out = r.made(i, "RESIZE's output");
    if (in == out || like == out) throw Error("RESIZE cannot work in place");
    r.channels[out] = r.channels[in], r.summed[out] = 0;
  }
  void add(Plan& plan) const override {
    auto& u = plan.args<Resize>();
    const int from = plan.slot(in);
    const auto a = plan.size(from), b = plan.size(plan.slot(like));
    plan.use(u.in, from);
    plan.use(u.out, plan.make(out, a.channels, b.height, b.width));
    u.rows = plan.lerp(a.height, b.height, true), u.columns = plan.lerp(a.width, b.width, true);
    plan.stage(b.height, up16(a.width) + 4 * GAP, [&u, &plan](const Slab& s) { plan.kernels.resize(u, s); });
  }
};

// The four 1 x 1 of a transposed 2 x 2 of stride 2.
Packs transposed(Reader& r, int ci, int co) {
  Packs found;
  const float* w = r.floats.next({ci, co, 4});
  for (int place = 0; place < 4; place++)
    found.add(Pack::of(r, co, ci, [&](int o, int i) { return w[(static_cast<int64_t>(i) * co + o) * 4 + place]; }));
  return found;
}

void check_doubled(int n, int like) {
  if (like != 2 * n && like != 2 * n - 1) throw Error("a doubled map is cut to a size that is not half its input's double");
}

struct Up2Unit : Unit {
  int in, like, out, co;
  Packs weights;
  Ends end;
  Up2Unit(Integers& i, Reader& r) {
    in = r.map(i, "UP2's input");
    like = r.map(i, "the size of UP2");
    out = r.made(i, "UP2's output");
    co = i.next("UP2's channels", 1, MOST_CHANNELS);
    if (in == out || like == out) throw Error("UP2 cannot work in place");
    weights = transposed(r, r.channels[in], co);
    end.read(r, co);
    r.channels[out] = co, r.summed[out] = 0;
  }
  void add(Plan& plan) const override {
    auto& u = plan.args<Up2>();
    const int from = plan.slot(in);
    const auto a = plan.size(from), b = plan.size(plan.slot(like));
    check_doubled(a.height, b.height);
    check_doubled(a.width, b.width);
    plan.use(u.in, from);
    plan.use(u.out, plan.make(out, co, b.height, b.width));
    u.weights = weights.packed(), u.end = end.end();
    plan.stage(a.height, aligned(2L * co * STRIP) + aligned(2L * a.channels), [&u, &plan](const Slab& s) { plan.kernels.up2(u, s); });
  }
};

struct MergeUnit : Unit {
  int skip, coarse, out, co, groups, p;
  std::vector<float> weights, gate;
  Ends end, projected;
  Norms join_norm;
  Pack project;
  MergeUnit(Integers& i, Reader& r) {
    skip = r.map(i, "MERGE's skip");
    coarse = r.map(i, "MERGE's coarse map");
    out = r.made(i, "MERGE's output");
    co = i.next("MERGE's channels", 1, MOST_CHANNELS);
    groups = i.next("MERGE's groups", 1, MOST_CHANNELS);
    p = i.next("MERGE's projection", 1, MOST_CHANNELS);
    if (out == skip || out == coarse) throw Error("MERGE cannot work in place");
    if (!r.summed[skip]) throw Error("MERGE's skip was made without sums");
    if (r.channels[coarse] != co) throw Error("MERGE's coarse map has other channels than it");
    const int ci = r.channels[skip];
    divides(groups, ci, "MERGE's inputs");
    divides(groups, co, "MERGE's outputs");
    const int inputs = ci / groups, outputs = co / groups;
    const float* w = r.floats.next({co, inputs, 9});
    for (int g = 0; g < groups; g++)
      for (int o0 = 0; o0 < outputs; o0 += 3)
        for (int c = 0; c < inputs; c++)
          for (int t = 0; t < 9; t++)
            for (int o = o0; o < std::min(o0 + 3, outputs); o++) weights.push_back(w[((static_cast<int64_t>(g) * outputs + o) * inputs + c) * 9 + t]);
    end.read(r, co);
    gate = r.values({co, ci});
    join_norm.read(r, co);
    const float* v = r.floats.next({p, co});
    project = Pack::of(r, p, co, [&](int o, int k) { return v[static_cast<int64_t>(o) * co + k]; });
    projected.read(r, p);
    r.channels[out] = p, r.summed[out] = 0;
  }
  void add(Plan& plan) const override {
    auto& u = plan.args<Merge>();
    const int from = plan.slot(skip), low = plan.slot(coarse);
    const auto a = plan.size(from), b = plan.size(low);
    plan.use(u.skip, from);
    plan.use(u.coarse, low);
    plan.use(u.out, plan.make(out, p, a.height, a.width));
    u.sums = plan.sums(from);
    u.groups = groups, u.outputs = co;
    u.weights = weights.data(), u.end = end.end(), u.gate = gate.data(), u.join = join_norm.norm();
    u.project = project.packed(), u.projected = projected.end();
    u.rows = plan.lerp(b.height, a.height, true), u.columns = plan.lerp(b.width, a.width, true);
    const long plane = up16(a.width) + GAP, low_plane = up16(b.width) + GAP;
    plan.stage(a.height, aligned(co * plane) + aligned(co * low_plane + GAP) + aligned(co) + aligned(a.channels) + aligned(2L * (3 * (a.channels / groups) + co)) + 64,
               [&u, &plan](const Slab& s) { plan.kernels.merge(u, s); });
  }
};

// One side of a resize to `large`, a depth-wise 3 and the average back: [n][3][2 reach + 1].
std::vector<float> band(int n, int large, int* reach) {
  constexpr int MOST = 2 * MOST_REACH + 1;
  std::vector<double> rows(3L * n * MOST, 0.0);  // by how far they are
  *reach = 1;
  for (int i = 0; i < n; i++) {
    const int from = static_cast<int>(static_cast<int64_t>(i) * large / n), to = static_cast<int>((static_cast<int64_t>(i + 1) * large + n - 1) / n);
    for (int k = 0; k < 3; k++)
      for (int r = from; r < to; r++) {
        const int q = r + k - 1;
        if (q < 0 || q >= large) continue;
        const double at = static_cast<double>(q) * (n - 1) / (large - 1);
        const int j = std::min(static_cast<int>(at), n - 1);
        const double part = j + 1 < n ? at - j : 0.0;
        auto give = [&](int to_j, double value) {
          if (value == 0) return;
          *reach = std::max(*reach, std::abs(to_j - i));
          if (*reach > MOST_REACH) throw Error("a pyramid's scale reaches further than " + std::to_string(MOST_REACH) + " pixels");
          rows[(3L * i + k) * MOST + to_j - i + MOST_REACH] += value / (to - from);
        };
        give(j, 1 - part);
        if (j + 1 < n) give(j + 1, part);
      }
  }
  const int taps = 2 * *reach + 1;
  std::vector<float> found(3L * n * taps);
  for (long i = 0; i < 3L * n; i++)
    for (int j = 0; j < taps; j++) found[i * taps + j] = static_cast<float>(rows[i * MOST + j - *reach + MOST_REACH]);
  return found;
}

// Bands that reach further, zeros at their ends.
std::vector<float> widened(const std::vector<float>& values, int reach, int wanted) {
  const long taps = 2L * reach + 1, wide = 2L * wanted + 1, rows = static_cast<long>(values.size()) / taps;
  std::vector<float> found(rows * wide, 0.0f);
  for (long i = 0; i < rows; i++) std::copy_n(values.begin() + i * taps, taps, found.begin() + i * wide + wanted - reach);
  return found;
}

struct SegmentUnit : Unit {
  int in;
  bool align, within = false;  // the PYRAMID before it
  SegmentUnit(Integers& i, Reader& r) {
    in = r.map(i, "SEGMENT's input");
    align = i.next("align", 0, 1);
    if (r.channels[in] > 256) throw Error("a mask holds at most 256 classes");
  }
  Segment& fill(Plan& plan, Plan::Size size) const {
    auto& u = plan.args<Segment>();
    u.rows = plan.lerp(size.height, plan.height, align), u.columns = plan.lerp(size.width, plan.width, align);
    u.height = plan.height, u.width = plan.width;
    plan.given = static_cast<int64_t>(size.channels) * plan.height * plan.width;
    return u;
  }
  void add(Plan& plan) const override {
    if (within) return;
    const int from = plan.slot(in);
    const auto size = plan.size(from);
    auto& u = fill(plan, size);
    plan.use(u.in, from);
    plan.stage(plan.height, size.channels * (up16(size.width) + GAP) + 4L * GAP, [&u, &plan](const Slab& s) {
      Segment mine = u;
      mine.mask = plan.mask, mine.scores = plan.scores;
      plan.kernels.segment(mine, s);
    });
  }
};

struct PyramidUnit : Unit {
  int in, out, co, p;
  std::vector<std::pair<int, int>> scales;
  std::vector<float> kernels, merge;
  Norms join_norm;
  Ends merged, end;
  Pack last;
  const SegmentUnit* segment = nullptr;
  PyramidUnit(Integers& i, Reader& r) {
    in = r.map(i, "PYRAMID's input");
    out = r.made(i, "PYRAMID's output");
    co = i.next("PYRAMID's channels", 1, MOST_CHANNELS);
    const int count = i.next("PYRAMID's scales", 1, MOST_SCALES);
    for (int k = 0; k < count; k++) {
      const int a = i.next("a scale", 1, 64), b = i.next("a scale", 1, 64);
      scales.emplace_back(a, b);
    }
    if (in == out) throw Error("PYRAMID cannot work in place");
    p = r.channels[in];
    kernels = r.values({count, p, 9});
    join_norm.read(r, count * p);
    const float* w = r.floats.next({p, count, 9});
    merge.assign(w, w + 9L * p * count);
    merged.read(r, p);
    const float* v = r.floats.next({co, p});
    last = Pack::of(r, co, p, [&](int o, int k) { return v[static_cast<int64_t>(o) * p + k]; });
    end.read(r, co);
    r.channels[out] = co, r.summed[out] = 0;
  }
  void add(Plan& plan) const override {
    auto& u = plan.args<Pyramid>();
    const int from = plan.slot(in);
    const auto size = plan.size(from);
    const int h = size.height, w = size.width;
    const long all = up16(w), plane = all + GAP;
    u.scales = static_cast<int>(scales.size());
    u.join = join_norm.norm(), u.merge = merge.data(), u.merged = merged.end(), u.last = last.packed(), u.end = end.end();
    plan.use(u.in, from);
    auto scaled = [](int n, std::pair<int, int> s) { return std::max<int64_t>(SMALLEST, (static_cast<int64_t>(n) * s.first + s.second - 1) / s.second); };
    std::vector<std::pair<int, int>> small;  // which scale, and the map that its 3 x 3 gives
    for (int k = 0; k < u.scales; k++) {
      Scale& s = u.scale[k];
      const auto [a, b] = scales[k];
      s.kind = a > b ? 1 : a < b ? -1 : 0;
      s.kernel = kernels.data() + 9L * k * p;
      const int sh = static_cast<int>(scaled(h, scales[k])), sw = static_cast<int>(scaled(w, scales[k]));
      if (s.kind > 0) {
        int across = 0;
        const std::vector<float> down = band(h, sh, &s.rows.reach), columns = band(w, sw, &across);
        const int reach = std::max(s.rows.reach, across), taps = 2 * reach + 1;
        s.rows.values = plan.keep(widened(down, s.rows.reach, reach));
        s.rows.reach = reach;
        const std::vector<float> wide = widened(columns, across, reach);
        // by vectors of the pixel that gives, not of the one that takes
        const int lanes = plan.kernels.lanes;
        plan.reserve(3L * p * taps * all);
        std::vector<float> with(3L * p * taps * all, 0.0f);
        for (int c = 0; c < p; c++)
          for (int ky = 0; ky < 3; ky++)
            for (int j = 0; j < taps; j++)
              for (int x = std::max(0, reach - j); x < std::min(w, w + reach - j); x++) {
                float sum = 0;
                for (int kx = 0; kx < 3; kx++) sum += s.kernel[9 * c + 3 * ky + kx] * wide[(3L * x + kx) * taps + j];
                const int from = x + j - reach;
                with[3L * c * taps * all + ((from / lanes * 3L + ky) * taps + j) * lanes + from % lanes] = sum;
              }
        s.columns = plan.keep(std::move(with));
      } else if (s.kind < 0) {
        const int made = plan.make(-1, p, sh, sw);
        plan.use(s.small, made);
        s.up_rows = plan.lerp(sh, h, true), s.up_columns = plan.lerp(sw, w, true);
        auto& call = plan.args<Small>();
        call.pyramid = &u, call.which = k;
        plan.stage(sh, plane + 4 * GAP, [&call, &plan](const Slab& slab) { plan.kernels.average(call, slab); });
        plan.use(s.small, made);
        const int seen = plan.make(-1, p, sh, sw);
        plan.use(s.seen, seen);
        small.emplace_back(k, seen);
        plan.stage(sh, 0, [&call, &plan](const Slab& slab) { plan.kernels.see(call, slab); });
      }
    }
    plan.use(u.in, from);
    for (const auto& [k, seen] : small) plan.use(u.scale[k].seen, seen);
    long tail = 0;
    if (segment) {
      plan.ring(u.out, co, h, w, GAP, KEPT);
      u.segment = &segment->fill(plan, {co, h, w});
      tail = aligned(u.out.row + 4 * GAP) + aligned(KEPT * u.out.row + GAP);
    } else {
      plan.use(u.out, plan.make(out, co, h, w));
    }
    const long line = u.scales * plane;
    plan.stage(h, tail + aligned(10L * p * line + GAP) + aligned(line + 2 * GAP) + aligned(8L * p * plane) + aligned(plane + 2 * GAP) + aligned(2L * p) + aligned(static_cast<long>(co) * PITCH) + 64,
               [&u, &plan](const Slab& s) {
                 if (!u.segment) return plan.kernels.pyramid(u, s);
                 Segment mask = *u.segment;
                 mask.mask = plan.mask, mask.scores = plan.scores;
                 Pyramid mine = u;
                 mine.segment = &mask;
                 plan.kernels.pyramid(mine, s);
               });
  }
};

struct Segment2Unit : Unit {
  int in, classes;
  Packs weights;
  Segment2Unit(Integers& i, Reader& r) {
    in = r.map(i, "SEGMENT2's input");
    classes = i.next("SEGMENT2's classes", 1, 256);
    weights = transposed(r, r.channels[in], classes);
  }
  void add(Plan& plan) const override {
    auto& u = plan.args<Segment2>();
    const int from = plan.slot(in);
    const auto size = plan.size(from);
    check_doubled(size.height, plan.height);
    check_doubled(size.width, plan.width);
    plan.use(u.in, from);
    u.weights = weights.packed(), u.classes = classes;
    u.height = plan.height, u.width = plan.width;
    plan.given = static_cast<int64_t>(classes) * plan.height * plan.width;
    plan.stage(size.height, aligned(2L * size.channels) + 2 * STRIP, [&u, &plan](const Slab& s) {
      Segment2 mine = u;
      mine.mask = plan.mask, mine.scores = plan.scores;
      plan.kernels.segment2(mine, s);
    });
  }
};

struct MeanUnit : Unit {
  int in, out;
  MeanUnit(Integers& i, Reader& r) {
    in = r.map(i, "MEAN's input");
    out = r.made(i, "MEAN's output");
    if (in == out) throw Error("MEAN cannot work in place");
    r.channels[out] = r.channels[in], r.summed[out] = 0;
  }
  void add(Plan& plan) const override {
    auto& u = plan.args<Mean>();
    const int from = plan.slot(in);
    plan.use(u.in, from);
    plan.use(u.out, plan.make(out, plan.size(from).channels, 1, 1));
    plan.stage(1, 0, [&u, &plan](const Slab& s) { plan.kernels.mean(u, s); });
  }
};

struct ScoresUnit : Unit {
  std::vector<int> in;
  ScoresUnit(Integers& i, Reader& r) { in = r.maps(i); }
  void add(Plan& plan) const override {
    for (int number : in) {
      auto& map = plan.args<Map>();
      plan.use(map, plan.slot(number));
      const int64_t at = plan.given;
      plan.given += static_cast<int64_t>(map.channels) * map.height * map.width;
      plan.stage(map.height, 0, [&map, &plan, at](const Slab& s) {
        float* to = plan.scores + at + static_cast<int64_t>(s.from) * map.width * map.channels;
        for (int y = s.from; y < s.to; y++)
          for (int x = 0; x < map.width; x++)
            for (int c = 0; c < map.channels; c++) *to++ = map.line(y)[c * map.plane + x];
      });
    }
  }
};

std::unique_ptr<Unit> read_unit(int kind, Integers& in, Reader& r) {
  switch (kind) {
    case ESPY_FIRST: return std::make_unique<FirstUnit>(in, r);
    case ESPY_POOL: return std::make_unique<PoolUnit>(in, r);
    case ESPY_CONV: return std::make_unique<ConvUnit>(in, r);
    case ESPY_EESP: return std::make_unique<BranchesUnit>(in, r, false);
    case ESPY_DOWN: return std::make_unique<BranchesUnit>(in, r, true);
    case ESPY_ESP: return std::make_unique<EspUnit>(in, r);
    case ESPY_AFFINE: return std::make_unique<AffineUnit>(in, r);
    case ESPY_RESIZE: return std::make_unique<ResizeUnit>(in, r);
    case ESPY_UP2: return std::make_unique<Up2Unit>(in, r);
    case ESPY_MERGE: return std::make_unique<MergeUnit>(in, r);
    case ESPY_PYRAMID: return std::make_unique<PyramidUnit>(in, r);
    case ESPY_SEGMENT: return std::make_unique<SegmentUnit>(in, r);
    case ESPY_SEGMENT2: return std::make_unique<Segment2Unit>(in, r);
    case ESPY_MEAN: return std::make_unique<MeanUnit>(in, r);
    default: return std::make_unique<ScoresUnit>(in, r);
  }
}

constexpr int64_t HEAD = 2;  // integers before the units

int precision_of(Integers in) {
  if (in.next("the format", 0, INT32_MAX) != ESPY_FORMAT) throw Error("the description is of another format than " + std::to_string(ESPY_FORMAT));
  return in.next("the precision", ESPY_FLOAT32, ESPY_BFLOAT16);
}

}  // namespace

Network::Network(const int64_t* list, int64_t count, const float* weights, int64_t floats, const Kernels& (*target)(int))
    : kernels(target(precision_of(Integers(list, count)))) {
  Integers in(list + HEAD, count - HEAD);
  const int number = in.next("the number of units", 1, 4096);
  Reader reader{Floats(weights, floats), kernels};
  for (int i = 0; i < number; i++) {
    const int kind = in.next("a unit's kind", ESPY_FIRST, ESPY_SCORES);
    Integers own = in.part(in.next("a unit's length", 0, 4096));
    if ((kind == ESPY_FIRST) != (i == 0)) throw Error("a network begins with FIRST, which stands nowhere else");
    masks = kind == ESPY_SEGMENT || kind == ESPY_SEGMENT2;
    if ((masks || kind == ESPY_SCORES) != (i == number - 1)) throw Error("a network ends with its mask or its scores");
    units.push_back(read_unit(kind, own, reader));
    if (!own.done()) throw Error("a unit has more integers than it should");
  }
  auto* segment = dynamic_cast<SegmentUnit*>(units.back().get());
  auto* pyramid = number > 1 ? dynamic_cast<PyramidUnit*>(units[number - 2].get()) : nullptr;
  if (segment && pyramid && segment->in == pyramid->out) pyramid->segment = segment, segment->within = true;
  if (!in.done()) throw Error("the description goes on behind its last unit");
  if (!reader.floats.done()) throw Error("there are more weights than the units have");
  steps = kernels.together > 1 ? reader.steps : 0;
}

}  // namespace espy
