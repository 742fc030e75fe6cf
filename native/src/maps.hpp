// Maps and weights as the kernels see them: plain structs, which every target compiles alike.
#pragma once
#include <cstdint>

namespace espy {

constexpr int GAP = 16;    // zeros between the planes of a row: the padding of both neighbours
constexpr int STRIP = 64;  // pixels that a kernel works on at a time
constexpr int PITCH = STRIP + 16;  // from one channel's strip of several narrow rows to the next's
constexpr int FOURS_WIDTH = 256;  // pixels of four rows that are worked on at a time
constexpr int MOST_INPUTS = 64;  // maps that are joined to one

constexpr int up16(int n) { return (n + 15) / 16 * 16; }

// How many rows of a map lie side by side in a strip.
constexpr int abreast(int width) { return width > STRIP / 2 ? 1 : STRIP / width; }

// [height][channels][width + zeros]: row by row, within a row plane by plane. A plane is a multiple of 16 floats and starts on a
// vector; what lies between two planes is zero, and so is all of a row outside of the map.
struct Map {
  float* at = nullptr;
  const float* zeros = nullptr;
  long plane = 0, row = 0;
  int channels = 0, height = 0, width = 0;
  int kept = 0;  // of a ring: row y lies where row y - kept lay

  const float* line(int y) const { return y < 0 || y >= height ? zeros : line_to(y); }
  float* line_to(int y) const { return at + (kept ? y % kept : y) * row; }
};

// Several maps of one size as one: the rows of their channels, in order.
struct Joined {
  Map maps[MOST_INPUTS];
  int count = 0, channels = 0;

  const float* plane(int y, int c) const {
    int m = 0;
    while (c >= maps[m].channels) c -= maps[m++].channels;
    return maps[m].line(y) + c * maps[m].plane;
  }
};

// Weights [inputs][outputs] in tiles of nearly equal numbers of outputs, each [steps][outputs of the tile]. A step is one input, or two in
// bfloat16 as the halves of a float.
struct Packed {
  const float* weights = nullptr;
  int inputs = 0, outputs = 0;
};

// What follows a sum: PReLU(sum + bias), PReLU(x) = max(x, 0) + slope * min(x, 0).
struct End {
  const float* bias = nullptr;
  const float* slope = nullptr;
};

// PReLU(scale * x + shift).
struct Norm {
  const float* scale = nullptr;
  const float* shift = nullptr;
  const float* slope = nullptr;
};

// One dimension of a bilinear resize: output i lies between inputs at[i] and at[i] + 1, `part` of the way. For vectors: the
// inputs of outputs 16 v .. 16 v + 15 from first[v] on, each so many `steps` further.
struct Lerp {
  const int* at = nullptr;
  const float* part = nullptr;
  const int* first = nullptr;  // by target: one for each vector of its lanes
  const int* steps = nullptr;
  int inputs = 0, outputs = 0;
};

// The rows that a call is to make, and memory of its own.
struct Slab {
  int from, to;
  float* scratch;
  float* joined;  // [steps][STRIP], where a step takes several inputs
};

// Units, as kernels see them

struct First {
  const uint8_t* picture;
  int height, width;
  Map out, pooled;  // pooled.at may be null
  float factor[3], shift[3];
  Packed weights;  // inputs (y, x, channel)
  End end;
  float* sums;  // [out.height][out.channels], or null
};

struct Pool {
  Map in, out;
};

// Of a 3 x 3 of stride 1: rows y, y + d, y + 2 d and y + 3 d at once, d the dilation (kernels.hpp: `four_rows`).
struct Fours {
  const Packed* weights = nullptr;  // six, inputs (channel, x); null: row by row
  int dilation = 1;

  // Such rows start at first(i, height) for i from 0 to number(height) - 1.
  int number(int height) const { return (height + 4 * dilation - 1) / (4 * dilation) * apart(height); }
  int first(int i, int height) const { return i / apart(height) * 4 * dilation + i % apart(height); }
  int rows(int y, int height) const { return y >= height ? 0 : y + 3 * dilation < height ? 4 : (height - 1 - y) / dilation + 1; }

 private:
  int apart(int height) const { return dilation < height ? dilation : height; }
};

struct Conv {
  Joined in;
  Map out;
  int kernel, dilation, stride, groups;
  const Packed* weights;  // a group each, inputs (channel, y, x)
  End end;
  Fours fours;
  bool narrow;  // 1 x 1 of stride 1, and rows of `out` lie abreast
  bool split;  // `out` has the even and the odd pixels of each channel as two planes of half the width
};

struct Branches {
  Map reduced;  // split where stride is 2, and then a ring, in the memory of each call
  const Conv* reduce;  // that makes it, of stride 2
  Map in;       // of the residual, or what is averaged
  Map picture;  // of stride 2, picture.at may be null
  Map out;
  int n, branches, kernel, stride;
  int dilations[8];
  bool hff, residual;
  const float* depthwise;  // [n][branch][kernel * kernel]
  Norm fuse;
  const Packed* expand;  // a branch each
  const float* reinforce;  // [averaged channels][3]
  End end;
  float* sums;
};

// A branch of ESP.
struct Esp {
  Joined reduced;  // one map
  Joined in;       // of the residual
  Map sums;        // what a branch leaves for the next to add
  Map out;
  int kernel, dilation;
  int first;  // of the outputs
  bool adds, added, residual;  // the sums; to the next branch
  Packed weights;  // inputs (y, x, channel)
  Fours fours;
  End end;
  Norm last;
};

struct Affine {
  Joined in;
  Map out;
  Norm norm;
};

struct Resize {
  Map in, out;
  Lerp rows, columns;
};

struct Up2 {
  Map in, out;
  const Packed* weights;  // four: for each place of a 2x2
  End end;
};

struct Merge {
  Map skip, coarse, out;
  const float* sums;  // of skip
  int groups, outputs;
  const float* weights;  // by group and chunk of at most 3 outputs: [inputs][y][x][outputs]
  End end;
  const float* gate;  // [outputs][skip channels]
  Lerp rows, columns;
  Norm join;
  Packed project;
  End projected;
};

// One side of resize by a / b > 1, depth-wise 3, average back: output i is the sum over the 3 taps k and j = -reach .. reach of
// band[(3 i + k) (2 reach + 1) + j + reach] * input[i + j].
struct Band {
  const float* values = nullptr;
  int reach = 0;
};

struct Segment {
  Map in;
  Lerp rows, columns;
  uint8_t* mask;
  float* scores;  // [classes][height][width], or null
  int height, width;
};

constexpr int MOST_SCALES = 8;

struct Scale {
  int kind;       // 0: as it is; 1: larger, by bands; -1: smaller
  Band rows;
  const float* columns;  // [plane][vector][y tap][2 reach + 1][lanes]: columns' band times the weights, for the pixels that give
  const float* kernel;   // [plane][9]
  Map small, seen;       // of a smaller one: averaged, and seen by its 3x3
  Lerp up_rows, up_columns;
};

struct Pyramid {
  Map in, out;
  int scales;
  Scale scale[MOST_SCALES];
  Norm join;             // scale by scale
  const float* merge;    // [plane][scale][y][x]
  End merged;
  Packed last;
  End end;
  const Segment* segment = nullptr;  // where the mask follows: then `out` is a ring, in the memory of each call
};

struct Small {  // averaging and seeing one smaller scale
  const Pyramid* pyramid;
  int which;
};

struct Segment2 {
  Map in;
  const Packed* weights;  // four
  int classes;
  uint8_t* mask;
  float* scores;
  int height, width;
};

struct Mean {
  Map in, out;
};

// What a target compiles. Each makes the rows slab.from .. slab.to - 1 of its output.
struct Kernels {
  int lanes, tile, together;  // floats of a vector; of the dense tile, outputs, and inputs that it takes in a step
  void (*first)(const First&, const Slab&);
  void (*pool)(const Pool&, const Slab&);
  void (*conv)(const Conv&, const Slab&);  // where rows are made by fours, a slab is one of fours
  void (*branches)(const Branches&, const Slab&);
  void (*esp)(const Esp&, const Slab&);    // as conv
  void (*affine)(const Affine&, const Slab&);
  void (*resize)(const Resize&, const Slab&);
  void (*up2)(const Up2&, const Slab&);       // rows of the input
  void (*merge)(const Merge&, const Slab&);
  void (*average)(const Small&, const Slab&);
  void (*see)(const Small&, const Slab&);
  void (*pyramid)(const Pyramid&, const Slab&);
  void (*segment)(const Segment&, const Slab&);
  void (*segment2)(const Segment2&, const Slab&);  // rows of the input
  void (*mean)(const Mean&, const Slab&);
  unsigned (*flush)(unsigned set, bool give_back);  // returns what it was
};

}  // namespace espy
