// The kernels, written over the vector of a target: this file is included after one of the vector_*.hpp and one of the dense_*.hpp, in an
// unnamed namespace, and uses nothing that is not in there, so that no code of one target can end up in another's place.
//
// A strip is STRIP pixels of a row. Vectors of the last strip may hold pixels behind the row's end; their sums are stored too, into
// the zeros between two planes, and `finish` makes them zero again.

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

// Whether narrow rows beside each other end before the next channel's, by `pyramid_strip`, which takes more than two vectors by fours.
constexpr bool narrow_rows_fit() {
  for (int width = 1; abreast(width) > 1; width++) {
    const int vectors = (width + L - 1) / L;
    if ((abreast(width) - 1) * width + (vectors > 2 ? (vectors + 3) / 4 * 4 : vectors) * L > PITCH) return false;
  }
  return true;
}
// The even and the odd pixels of a strip fill whole vectors; `each_tile` and `merge` have cases for so much.
static_assert(STRIP % (2 * L) == 0 && WIDE * L <= STRIP && WIDE % 2 == 0 && TILE <= 6 && narrow_rows_fit(), "kernels cannot work on so much at a time");

KERNEL int least(int a, int b) { return a < b ? a : b; }
KERNEL int most(int a, int b) { return a > b ? a : b; }
KERNEL int vectors_of(int x, int width) { return (least(STRIP, width - x) + L - 1) / L; }
KERNEL void clear(float* p, long n) { for (long i = 0; i < n; i++) p[i] = 0; }
KERNEL void fetch(const float* p) { __builtin_prefetch(p); }
KERNEL V prelu(V x, V slope) { return fma(slope, min(x, zero()), max(x, zero())); }

KERNEL float* scratch_after(float*& free, long floats) {
  float* p = free;
  free += (floats + 15) / 16 * 16;
  return p;
}

// Make what lies behind a row's planes zero again, and what lies before the first row.
static void finish(const Map& m, int y, int from, int to) {
  float* p = m.line_to(y);
  if (y == 0 && from == 0) clear(p - (m.plane - up16(m.width)), m.plane - up16(m.width));
  for (int c = from; c < to; c++) clear(p + c * m.plane + m.width, m.plane - m.width);
}
static void finish(const Map& m, int y) { finish(m, y, 0, m.channels); }

static void sum_row(const Map& m, int y, float* sums) {
  for (int c = 0; c < m.channels; c++) {
    const float* p = m.line(y) + c * m.plane;
    V s = zero();
    for (int x = 0; x < m.width; x += L) s = add(s, load(p + x));
    sums[(long)y * m.channels + c] = sum(s);
  }
}

// ---- The dense tile: sum[o][v] += w[k][o] * row[k][x + v L], for up to TILE outputs and WIDE vectors of pixels. Where a step takes several
// inputs together (dense_*.hpp), the first tile of outputs leaves them so for the others.

struct Strip {
  const float* const* rows;
  int inputs;
  long x;
  float* joined;
};

KERNEL int steps_of(int inputs) { return (inputs + TOGETHER - 1) / TOGETHER; }

// Pixels of a step's inputs; behind the last of them it stands again, with a weight of 0.
template <bool FIRST>
KERNEL V pixels_of(const Strip& s, int k, int v) {
  const long x = s.x + v * L;
  if (TOGETHER == 1) return load(s.rows[k] + x);
  float* joined = s.joined + k * STRIP + v * L;
  if (!FIRST) return load(joined);
  const V found = together(load(s.rows[TOGETHER * k] + x), load(s.rows[least(TOGETHER * k + 1, s.inputs - 1)] + x));
  store(joined, found);
  return found;
}

template <bool FIRST, int O, int N>
KERNEL void sum_up(const Strip& strip, const float* w, int v0, V (&sums)[O][N]) {
  for (int k = 0; k < steps_of(strip.inputs); k++, w += O) {
    V pixels[N];
    UNROLL for (int v = 0; v < N; v++) pixels[v] = pixels_of<FIRST>(strip, k, v0 + v);
    UNROLL for (int o = 0; o < O; o++) {
      const V weight = set(w[o]);
      UNROLL for (int v = 0; v < N; v++) sums[o][v] = multiply(weight, pixels[v], sums[o][v]);
    }
  }
}

template <int O, int N, class Then>
KERNEL void tile(const Strip& strip, const float* w, int o0, int v0, Then& then) {
  V sums[O][N];
  UNROLL for (int o = 0; o < O; o++) UNROLL for (int v = 0; v < N; v++) sums[o][v] = zero();
  if (TOGETHER > 1 && o0 == 0) sum_up<true>(strip, w, v0, sums);
  else sum_up<false>(strip, w, v0, sums);
  UNROLL for (int o = 0; o < O; o++) UNROLL for (int v = 0; v < N; v++) then(o0 + o, v0 + v, sums[o][v]);
}

template <int O, class Then>
KERNEL void tiles(const Strip& strip, const float* w, int vectors, int o0, Then& then) {
  int v = 0;
  for (; v + WIDE <= vectors; v += WIDE) tile<O, WIDE>(strip, w, o0, v, then);
  for (; v < vectors; v++) tile<O, 1>(strip, w, o0, v, then);
}

template <int N>
struct Number {
  static constexpr int is = N;
};

// each(Number of outputs, the first of them) for every tile.
template <class Each>
KERNEL void each_tile(int outputs, Each each) {
  const int number = (outputs + TILE - 1) / TILE;
  for (int i = 0; i < number; i++) {
    const int o = outputs * i / number;
    switch (outputs * (i + 1) / number - o) {
      case 1: each(Number<1>(), o); break;
      case 2: each(Number<2>(), o); break;
      case 3: each(Number<3>(), o); break;
      case 4: each(Number<4>(), o); break;
      case 5: if (TILE >= 5) each(Number<TILE >= 5 ? 5 : 1>(), o); break;
      default: if (TILE >= 6) each(Number<TILE >= 6 ? 6 : 1>(), o);
    }
  }
}

// All outputs for a strip: then(output, vector of the strip, sum).
template <class Then>
KERNEL void dense(const Slab& slab, const Packed& p, const float* const* rows, long x, int vectors, Then then) {
  const Strip strip{rows, p.inputs, x, slab.joined};
  each_tile(p.outputs, [&](auto number, int o) { tiles<number.is>(strip, p.weights + (long)o * steps_of(p.inputs), vectors, o, then); });
}

// ---- 3 x 3 of four rows at once: Winograd's F(4, 3) down each column of taps. Six blends of the six rows that the four read, each
// times its own weights: 18 products for an input, an output and four pixels instead of 36.

KERNEL void blends(V (&r)[6]) {
  const V a = fma(set(-4), r[2], r[4]), b = fma(set(-4), r[1], r[3]), c = sub(r[4], r[2]), d = mul(set(2), sub(r[3], r[1]));
  r[0] = fma(set(4), sub(r[0], r[2]), sub(r[4], r[2]));
  r[5] = fma(set(4), sub(r[1], r[3]), sub(r[5], r[3]));
  r[1] = add(a, b);
  r[2] = sub(a, b);
  r[3] = add(c, d);
  r[4] = sub(c, d);
}

KERNEL void rows_of(const V (&m)[6], V (&out)[4]) {
  const V a = add(m[1], m[2]), b = sub(m[1], m[2]), c = add(m[3], m[4]), d = sub(m[3], m[4]);
  out[0] = add(add(m[0], a), c);
  out[1] = fma(set(2), d, b);
  out[2] = fma(set(4), c, a);
  out[3] = add(fma(set(8), d, b), m[5]);
}

template <int O, int N, class Then>
KERNEL void four_tile(const Fours& f, const float* const* rows, int inputs, long x, int o0, float* made, Then& then) {
  for (int k = 0; k < 6; k++) {
    auto keep = [&](int o, int v, V s) { store(made + ((k * O + o) * N + v) * L, s); };
    tile<O, N>({rows + (long)k * inputs, inputs, x, nullptr}, f.weights[k].weights + (long)o0 * inputs, 0, 0, keep);
  }
  for (int o = 0; o < O; o++)
    for (int v = 0; v < N; v++) {
      V m[6], out[4];
      UNROLL for (int k = 0; k < 6; k++) m[k] = load(made + ((k * O + o) * N + v) * L);
      rows_of(m, out);
      then(o0 + o, x + v * L, out);
    }
}

// then(output, pixel, sums of the four rows from y on), those of rows outside of the map among them.
template <class Then>
static void four_rows(const Fours& f, const Joined& in, int y, float* free, Then then) {
  const int ci = in.channels, width = in.maps[0].width, d = f.dilation, pad = up16(d);
  const long pitch = least(FOURS_WIDTH, up16(width)) + 2 * pad;
  float* made = scratch_after(free, 6L * TILE * WIDE * L);
  const float** rows = reinterpret_cast<const float**>(scratch_after(free, 2L * 18 * ci));  // [blend](channel, x)
  float* blended = scratch_after(free, 6 * ci * pitch);                                     // [blend][channel]
  for (int k = 0; k < 6; k++)
    for (int c = 0; c < ci; c++)
      for (int s = 0; s < 3; s++) rows[(k * ci + c) * 3 + s] = blended + (k * ci + c) * pitch + pad + (s - 1) * d;
  for (int x0 = 0; x0 < width; x0 += FOURS_WIDTH) {
    const int vectors = (least(FOURS_WIDTH, width - x0) + L - 1) / L, last = up16(least(FOURS_WIDTH, width - x0)) + 2 * pad;
    float* to = blended;
    for (int m = 0; m < in.count; m++)
      for (int c = 0; c < in.maps[m].channels; c++, to += pitch) {
        const float* from[6];
        for (int k = 0; k < 6; k++) from[k] = in.maps[m].line(y + (k - 1) * d) + c * in.maps[m].plane + x0 - pad;
        for (int x = 0; x < last; x += L) {
          V r[6];
          UNROLL for (int k = 0; k < 6; k++) r[k] = load(from[k] + x);
          blends(r);
          UNROLL for (int k = 0; k < 6; k++) store(to + k * ci * pitch + x, r[k]);
        }
      }
    auto at = [&](int o, long x, const V(&out)[4]) { then(o, x0 + x, out); };
    for (int x = 0; x < vectors * L; x += STRIP) {
      const int end = least(x + STRIP, vectors * L);
      each_tile(f.weights[0].outputs, [&](auto number, int o) {
        int v = x;
        for (; v + WIDE * L <= end; v += WIDE * L) four_tile<number.is, WIDE>(f, rows, 3 * ci, v, o, made, at);
        for (; v < end; v += L) four_tile<number.is, 1>(f, rows, 3 * ci, v, o, made, at);
      });
    }
  }
}

// Groups of four rows, of which at least three are in the map; the others row by row.
template <class Four, class One>
KERNEL void by_fours(const Fours& f, int height, const Slab& slab, Four four, One one) {
  for (int i = slab.from; i < slab.to; i++) {
    const int y = f.first(i, height), many = f.rows(y, height);
    if (many > 2) four(y, many);
    else for (int r = 0; r < many; r++) one(y + r * f.dilation);
  }
}

// ---- Narrow maps: as many rows as fit lie side by side in a strip, so that a vector holds pixels of several. What a row's last vector
// holds too much is overwritten by the next row.

KERNEL void lay_beside(const float* row, int width, float* strip) {
  for (int x = 0; x < width; x += L) store(strip + x, load(row + x));
}

// A 1 x 1 of `many` rows from y on: its inputs as strips, its outputs as the channels of `out` from c on.
static void dense_abreast(const Slab& slab, const Packed& p, const float* const* strips, int many, int y, const End& end, float* made,
                          const Map& out, int c) {
  const int width = out.width;
  dense(slab, p, strips, 0, (many * width + L - 1) / L, [&](int o, int v, V s) {
    store(made + o * PITCH + v * L, prelu(add(s, set(end.bias[c + o])), set(end.slope[c + o])));
  });
  for (int r = 0; r < many; r++) {
    float* to = out.line_to(y + r) + c * out.plane;
    for (int o = 0; o < p.outputs; o++, to += out.plane) lay_beside(made + o * PITCH + r * width, width, to);
  }
}

// ---- Even and odd pixels

// A row's even and odd pixels, as many vectors as hold half of them.
KERNEL void split(const float* row, float* evens, float* odds, int width) {
  for (int x = 0; x < width; x += 2 * L) {
    const V a = load(row + x), b = load(row + x + L);
    store(evens + x / 2, even(a, b));
    store(odds + x / 2, odd(a, b));
  }
}

// Where pixel 2 x + s of such a row is, from the even pixel x on.
KERNEL long split_at(int s, long half) { return s & 1 ? half + ((s - 1) >> 1) : s >> 1; }

// Mean of 3 x 3 at stride 2 of pixels x .. x + L - 1 of the output, from the three rows of the input.
KERNEL V mean_at(const float* const* rows, long x, long ahead = 0) {
  V a = zero(), b = zero(), before_a = zero(), before_b = zero();
  UNROLL for (int k = 0; k < 3; k++) {
    const float* p = rows[k] + 2 * x;
    a = add(a, load(p));
    b = add(b, load(p + L));
    before_a = add(before_a, load(p - 2));
    before_b = add(before_b, load(p + L - 2));
    if (k) fetch(p + ahead), fetch(p + ahead + L);
  }
  return mul(add(add(even(a, b), odd(a, b)), odd(before_a, before_b)), set(1 / 9.0f));
}

// ---- Units

static void first(const First& u, const Slab& slab) {
  const int h = u.height, w = u.width, wo = u.out.width;
  const long half = up16(wo) + GAP, line = 6 * half;
  float* free = slab.scratch;
  float* ring = scratch_after(free, 4 * line + GAP) + GAP;  // four rows of [colour][even, odd]
  float* nothing = scratch_after(free, line + 2 * GAP) + GAP;
  clear(slab.scratch, free - slab.scratch);
  auto slot = [&](int y) { return y < 0 || y >= h ? nothing : ring + (y & 3) * line; };
  int next = most(0, 2 * slab.from - 1);
  const float* rows[27];
  for (int y = slab.from; y < slab.to; y++) {
    for (; next <= least(h - 1, 2 * y + 1); next++) {
      const uint8_t* p = u.picture + (long)next * w * 3;
      float* to = slot(next);
      for (int x = 0; x < w; x += 2 * L) {
        uint8_t end[6 * L] = {};
        const uint8_t* at = p + 3L * x;
        if (x + 2 * L > w) {
          for (int i = 0; i < 3 * (w - x); i++) end[i] = at[i];
          at = end;
        }
        V a[3], b[3];
        planes(at, a);
        planes(at + 3 * L, b);
        UNROLL for (int c = 0; c < 3; c++) {
          a[c] = fma(a[c], set(u.factor[c]), set(u.shift[c]));
          b[c] = fma(b[c], set(u.factor[c]), set(u.shift[c]));
          store(to + 2 * c * half + x / 2, even(a[c], b[c]));
          store(to + (2 * c + 1) * half + x / 2, odd(a[c], b[c]));
        }
      }
      for (int c = 0; c < 3; c++) {
        clear(to + 2 * c * half + wo, half - wo);
        clear(to + (2 * c + 1) * half + w / 2, half - w / 2);
      }
    }
    for (int k = 0; k < 27; k++) rows[k] = slot(2 * y + k / 9 - 1) + 2 * (k % 3) * half + split_at(k / 3 % 3 - 1, half);
    float* out = u.out.line_to(y);
    for (int x = 0; x < wo; x += STRIP)
      dense(slab, u.weights, rows, x, vectors_of(x, wo), [&](int o, int v, V s) {
        store(out + o * u.out.plane + x + v * L, prelu(add(s, set(u.end.bias[o])), set(u.end.slope[o])));
      });
    finish(u.out, y);
    if (u.sums) sum_row(u.out, y, u.sums);
    if (!u.pooled.at) continue;
    for (int c = 0; c < 3; c++)
      for (int x = 0; x < wo; x += L) {
        V s = zero();
        for (int k = 0; k < 3; k++) {
          const float* p = slot(2 * y + k - 1) + 2 * c * half + x;
          s = add(s, add(add(load(p), load(p + half)), load(p + half - 1)));
        }
        store(u.pooled.line_to(y) + c * u.pooled.plane + x, mul(s, set(1 / 9.0f)));
      }
    finish(u.pooled, y);
  }
}

static void pool(const Pool& u, const Slab& slab) {
  for (int y = slab.from; y < slab.to; y++) {
    for (int c = 0; c < u.in.channels; c++) {
      const float* rows[3];
      for (int k = 0; k < 3; k++) rows[k] = u.in.line(2 * y + k - 1) + c * u.in.plane;
      float* out = u.out.line_to(y) + c * u.out.plane;
      for (int x = 0; x < u.out.width; x += L) store(out + x, mean_at(rows, x));
    }
    finish(u.out, y);
  }
}

static void narrow_conv(const Conv& u, const Slab& slab) {
  const int ci = u.in.channels, inputs = ci / u.groups, outputs = u.weights[0].outputs, width = u.out.width;
  float* free = slab.scratch;
  float* strips = scratch_after(free, (long)ci * PITCH);
  float* made = scratch_after(free, (long)outputs * PITCH);
  const float** rows = reinterpret_cast<const float**>(scratch_after(free, 2L * ci));
  for (int c = 0; c < ci; c++) rows[c] = strips + (long)c * PITCH;
  for (int y = slab.from, many; y < slab.to; y += many) {
    many = least(abreast(width), slab.to - y);
    for (int r = 0; r < many; r++) {
      float* to = strips + r * width;
      for (int m = 0; m < u.in.count; m++)
        for (int c = 0; c < u.in.maps[m].channels; c++, to += PITCH) lay_beside(u.in.maps[m].line(y + r) + c * u.in.maps[m].plane, width, to);
    }
    for (int g = 0; g < u.groups; g++) dense_abreast(slab, u.weights[g], rows + g * inputs, many, y, u.end, made, u.out, g * outputs);
    for (int r = 0; r < many; r++) finish(u.out, y + r);
  }
}

static void conv_rows(const Conv& u, const Slab& slab) {
  const int ci = u.in.channels, k = u.kernel, inputs = ci / u.groups, outputs = u.weights[0].outputs;
  const int height = u.in.maps[0].height, width = u.in.maps[0].width, wo = u.split ? width : u.out.width;
  const int reach = u.dilation * (k - 1) / 2, kept = u.stride == 1 ? 0 : 2 * reach + 2;
  const long half = up16(u.out.width) + GAP, line = 2L * ci * half;
  float* free = slab.scratch;
  const float** base = reinterpret_cast<const float**>(scratch_after(free, 2L * k * ci));         // [y tap][channel]
  const float** rows = reinterpret_cast<const float**>(scratch_after(free, 2L * inputs * k * k));  // (channel, y, x)
  float* strip = scratch_after(free, u.split ? (long)outputs * STRIP : 0);
  float* ring = scratch_after(free, kept * line + GAP) + GAP;
  float* nothing = scratch_after(free, u.stride == 1 ? 0 : line + 2 * GAP) + GAP;
  if (kept) clear(ring - GAP, free - (ring - GAP));
  int next = most(0, 2 * slab.from - reach);
  for (int y = slab.from; y < slab.to; y++) {
    if (u.stride == 2)
      for (; next <= least(height - 1, 2 * y + reach); next++) {
        float* to = ring + next % kept * line;
        for (int m = 0; m < u.in.count; m++)
          for (int c = 0; c < u.in.maps[m].channels; c++, to += 2 * half)
            split(u.in.maps[m].line(next) + c * u.in.maps[m].plane, to, to + half, width);
      }
    for (int t = 0; t < k; t++) {
      const float** to = base + t * ci;
      if (u.stride == 1) {
        for (int m = 0; m < u.in.count; m++) {
          const float* p = u.in.maps[m].line(y + t * u.dilation - reach);
          for (int c = 0; c < u.in.maps[m].channels; c++, p += u.in.maps[m].plane) *to++ = p;
        }
      } else {
        const int q = 2 * y + t * u.dilation - reach;
        const float* p = q < 0 || q >= height ? nothing : ring + q % kept * line;
        for (int c = 0; c < ci; c++, p += 2 * half) *to++ = p;
      }
    }
    float* out = u.out.line_to(y);
    for (int g = 0; g < u.groups; g++) {
      for (int i = 0, j = 0; i < inputs; i++)
        for (int t = 0; t < k; t++)
          for (int s = 0; s < k; s++, j++) {
            const int at = s * u.dilation - reach;
            rows[j] = base[t * ci + g * inputs + i] + (u.stride == 1 ? at : split_at(at, half));
          }
      const float *bias = u.end.bias + g * outputs, *slope = u.end.slope + g * outputs;
      if (!u.split) {
        float* to = out + g * outputs * u.out.plane;
        for (int x = 0; x < wo; x += STRIP)
          dense(slab, u.weights[g], rows, x, vectors_of(x, wo), [&](int o, int v, V s) {
            store(to + o * u.out.plane + x + v * L, prelu(add(s, set(bias[o])), set(slope[o])));
          });
      } else {
        float* to = out + 2 * g * outputs * u.out.plane;
        for (int x = 0; x < wo; x += STRIP) {
          const int vectors = vectors_of(x, wo);
          dense(slab, u.weights[g], rows, x, vectors, [&](int o, int v, V s) {
            store(strip + o * STRIP + v * L, prelu(add(s, set(bias[o])), set(slope[o])));
          });
          for (int o = 0; o < outputs; o++) {
            if (vectors % 2) store(strip + o * STRIP + vectors * L, zero());
            float* evens = to + 2 * o * u.out.plane + x / 2;
            for (int v = 0; v < vectors; v += 2) {
              const V a = load(strip + o * STRIP + v * L), b = load(strip + o * STRIP + v * L + L);
              store(evens + v / 2 * L, even(a, b));
              store(evens + u.out.plane + v / 2 * L, odd(a, b));
            }
          }
        }
      }
    }
    finish(u.out, y);
    if (u.split && width % 2)  // there is one odd pixel less
      for (int c = 1; c < u.out.channels; c += 2) out[c * u.out.plane + width / 2] = 0;
  }
}

static void conv(const Conv& u, const Slab& slab) {
  if (u.narrow) return narrow_conv(u, slab);
  if (!u.fours.weights) return conv_rows(u, slab);
  const long plane = u.out.plane;
  by_fours(
      u.fours, u.out.height, slab,
      [&](int y, int many) {
        four_rows(u.fours, u.in, y, slab.scratch, [&](int o, long x, const V(&sums)[4]) {
          const V bias = set(u.end.bias[o]), slope = set(u.end.slope[o]);
          for (int r = 0; r < many; r++) store(u.out.line_to(y + r * u.fours.dilation) + o * plane + x, prelu(add(sums[r], bias), slope));
        });
        for (int r = 0; r < many; r++) finish(u.out, y + r * u.fours.dilation);
      },
      [&](int y) { conv_rows(u, {y, y + 1, slab.scratch, slab.joined}); });
}

// The pyramid of depth-wise branches on one strip: to[(branch n + c) pitch + ...]. Branch k adds its taps to what branch k-1 left.
template <int KERNEL_SIZE, int N>
KERNEL void pyramid_vectors(const Branches& u, const float* const* lines, int x, int vectors, float* to, long pitch) {
  const int size = KERNEL_SIZE ? KERNEL_SIZE : u.kernel, n = u.n;
  const long plane = u.reduced.plane, step = u.stride == 1 ? plane : 2 * plane;
  const float* lowest = lines[u.branches * size - 1];
  for (int c = 0; c < n; c++)
    for (int v = 0; v < vectors; v += N) {
      V s[N];
      UNROLL for (int i = 0; i < N; i++) s[i] = zero();
      for (int r = 1; r <= u.stride; r++)  // of the rows that the next row's lowest taps read
        for (int i = 0; i < N; i++)
          for (int e = 0; e < u.stride; e++) fetch(lowest + r * u.reduced.row + c * step + e * plane + x + (v + i) * L);
      const float* w = u.depthwise + (long)c * u.branches * size * size;
      for (int j = 0; j < u.branches; j++) {
        if (!u.hff) UNROLL for (int i = 0; i < N; i++) s[i] = zero();
        const int d = u.dilations[j];
        for (int ky = 0; ky < size; ky++) {
          const float* p = lines[j * size + ky] + c * step + x + v * L;
          for (int kx = 0; kx < size; kx++) {
            const int at = (kx - size / 2) * d;
            const float* q = p + (u.stride == 1 ? at : split_at(at, plane));
            const V weight = set(*w++);
            UNROLL for (int i = 0; i < N; i++) s[i] = fma(weight, load(q + i * L), s[i]);
          }
        }
        const int m = j * n + c;
        const V scale = set(u.fuse.scale[m]), shift = set(u.fuse.shift[m]), slope = set(u.fuse.slope[m]);
        float* at = to + m * pitch + v * L;
        UNROLL for (int i = 0; i < N; i++) store(at + i * L, prelu(fma(s[i], scale, shift), slope));
      }
    }
}

template <int KERNEL_SIZE>
KERNEL void pyramid_strip(const Branches& u, const float* const* lines, int x, int vectors, float* to, long pitch) {
  if (vectors == 1) pyramid_vectors<KERNEL_SIZE, 1>(u, lines, x, vectors, to, pitch);
  else if (vectors == 2) pyramid_vectors<KERNEL_SIZE, 2>(u, lines, x, vectors, to, pitch);
  else pyramid_vectors<KERNEL_SIZE, 4>(u, lines, x, vectors, to, pitch);
}

// DOWN's first channels: the input's mean and the picture's projection.
KERNEL void pooled_row(const Branches& u, int y) {
  const int width = u.out.width;
  for (int c = 0; c < u.in.channels; c++) {
    const float* in[3];
    for (int t = 0; t < 3; t++) in[t] = u.in.line(2 * y + t - 1) + c * u.in.plane;
    const V bias = set(u.end.bias[c]), slope = set(u.end.slope[c]);
    float* to = u.out.line_to(y) + c * u.out.plane;
    if (u.picture.at) {
      const float* p = u.picture.line(y);
      const V w0 = set(u.reinforce[3 * c]), w1 = set(u.reinforce[3 * c + 1]), w2 = set(u.reinforce[3 * c + 2]);
      for (int x = 0; x < width; x += L) {
        V s = add(mean_at(in, x, 2 * u.in.row), bias);
        s = fma(w0, load(p + x), s);
        s = fma(w1, load(p + u.picture.plane + x), s);
        s = fma(w2, load(p + 2 * u.picture.plane + x), s);
        store(to + x, prelu(s, slope));
      }
    } else {
      for (int x = 0; x < width; x += L) store(to + x, prelu(add(mean_at(in, x, 2 * u.in.row), bias), slope));
    }
  }
}

static void branches(const Branches& all, const Slab& slab) {
  Branches u = all;
  const int n = u.n, k = u.branches, width = u.out.width, size = u.kernel, pooled = u.stride == 2 ? u.in.channels : 0;
  const int fed = u.picture.at ? 3 : 0;
  const bool narrow = abreast(width) > 1;
  const long pitch = narrow ? PITCH : STRIP;
  float* free = slab.scratch;
  float* ring = scratch_after(free, u.stride == 2 ? u.reduced.kept * u.reduced.row + u.reduced.plane : 0);
  float* strip = scratch_after(free, (long)k * n * PITCH + 3 * 16);
  float* picture = scratch_after(free, 3 * PITCH);
  float* made = scratch_after(free, (long)n * PITCH);
  const float** lines = reinterpret_cast<const float**>(scratch_after(free, 2L * k * size));
  const float** rows = reinterpret_cast<const float**>(scratch_after(free, 2L * (n + 3)));
  // Of stride 2: the rows of `reduced` that are read at once. What a map is made of and what it is averaged to are read while they are near.
  Conv reduce;
  int next = 0, reach = 0;
  if (u.stride == 2) {
    clear(ring, strip - ring);
    u.reduced.at = ring + (u.reduced.plane - up16(u.reduced.width));
    reduce = *u.reduce;
    reduce.out = u.reduced;
    for (int j = 0; j < k; j++) reach = most(reach, u.dilations[j] * (size - 1) / 2);
    next = most(0, 2 * slab.from - reach);
  }
  for (int y = slab.from, many; y < slab.to; y += many) {
    many = least(abreast(width), slab.to - y);
    for (; u.stride == 2 && next < least(u.reduced.height, 2 * (y + many - 1) + reach + 1); next++) conv(reduce, {next, next + 1, free, slab.joined});
    for (int r = 0; r < many && u.stride == 2; r++) pooled_row(u, y + r);
    for (int x = 0; x < width; x += STRIP) {
      const int vectors = narrow ? (many * width + L - 1) / L : vectors_of(x, width);
      for (int r = 0; r < many; r++) {
        for (int j = 0; j < k; j++)
          for (int t = 0; t < size; t++) lines[j * size + t] = u.reduced.line(u.stride * (y + r) + (t - size / 2) * u.dilations[j]);
        if (size == 3) pyramid_strip<3>(u, lines, x, vectors_of(x, width), strip + r * width, pitch);
        else pyramid_strip<0>(u, lines, x, vectors_of(x, width), strip + r * width, pitch);
        for (int i = 0; i < fed && narrow; i++) lay_beside(u.picture.line(y + r) + i * u.picture.plane, width, picture + i * PITCH + r * width);
      }
      for (int g = 0; g < k; g++) {
        for (int i = 0; i < n; i++) rows[i] = strip + (g * n + i) * pitch;
        for (int i = 0; i < fed; i++) rows[n + i] = narrow ? picture + i * PITCH : u.picture.line(y) + i * u.picture.plane + x;
        const int c = pooled + g * n;
        const float *bias = u.end.bias + c, *slope = u.end.slope + c;
        float* to = narrow ? made : u.out.line_to(y) + c * u.out.plane + x;
        const long step = narrow ? PITCH : u.out.plane;
        if (u.residual) {
          const float* from = narrow ? made : u.in.line(y) + c * u.in.plane + x;
          for (int r = 0; r < many && narrow; r++)
            for (int o = 0; o < n; o++) lay_beside(u.in.line(y + r) + (c + o) * u.in.plane, width, made + o * PITCH + r * width);
          const long from_step = narrow ? PITCH : u.in.plane, ahead = narrow ? 0 : u.in.row;
          dense(slab, u.expand[g], rows, 0, vectors, [&](int o, int v, V s) {
            fetch(from + ahead + o * from_step + v * L);
            s = add(add(s, set(bias[o])), load(from + o * from_step + v * L));
            store(to + o * step + v * L, prelu(s, set(slope[o])));
          });
        } else {
          dense(slab, u.expand[g], rows, 0, vectors, [&](int o, int v, V s) {
            store(to + o * step + v * L, prelu(add(s, set(bias[o])), set(slope[o])));
          });
        }
        for (int r = 0; r < many && narrow; r++)
          for (int o = 0; o < n; o++) lay_beside(made + o * PITCH + r * width, width, u.out.line_to(y + r) + (c + o) * u.out.plane);
      }
    }
    for (int r = 0; r < many; r++) {
      finish(u.out, y + r);
      if (u.sums) sum_row(u.out, y + r, u.sums);
    }
  }
}

// What follows a branch's sum at row y, output o of the branch, pixel x.
KERNEL void leave(const Esp& u, int y, int o, long x, V s) {
  const int m = u.first + o;
  s = prelu(add(s, set(u.end.bias[m])), set(u.end.slope[m]));
  float* sums = u.added || u.adds ? u.sums.line_to(y) + o * u.sums.plane + x : nullptr;
  if (u.adds) s = add(s, load(sums));
  if (u.added) store(sums, s);
  if (u.residual) s = add(s, load(u.in.plane(y, m) + x));
  store(u.out.line_to(y) + m * u.out.plane + x, prelu(fma(s, set(u.last.scale[m]), set(u.last.shift[m])), set(u.last.slope[m])));
}

static void finish_branch(const Esp& u, int y) {
  finish(u.out, y, u.first, u.first + u.weights.outputs);
  if (u.added) finish(u.sums, y);
}

static void esp_rows(const Esp& u, const Slab& slab) {
  const Map& from = u.reduced.maps[0];
  const int size = u.kernel, width = u.out.width;
  float* free = slab.scratch;
  const float** rows = reinterpret_cast<const float**>(scratch_after(free, 2L * size * size * from.channels));
  for (int y = slab.from; y < slab.to; y++) {
    const float** to = rows;
    for (int t = 0; t < size * size; t++) {
      const float* p = from.line(y + (t / size - size / 2) * u.dilation) + (t % size - size / 2) * u.dilation;
      for (int i = 0; i < from.channels; i++, p += from.plane) *to++ = p;
    }
    for (int x = 0; x < width; x += STRIP)
      dense(slab, u.weights, rows, x, vectors_of(x, width), [&](int o, int v, V s) { leave(u, y, o, x + v * L, s); });
    finish_branch(u, y);
  }
}

static void esp(const Esp& u, const Slab& slab) {
  if (!u.fours.weights) return esp_rows(u, slab);
  by_fours(
      u.fours, u.out.height, slab,
      [&](int y, int many) {
        four_rows(u.fours, u.reduced, y, slab.scratch, [&](int o, long x, const V(&sums)[4]) {
          for (int r = 0; r < many; r++) leave(u, y + r * u.dilation, o, x, sums[r]);
        });
        for (int r = 0; r < many; r++) finish_branch(u, y + r * u.dilation);
      },
      [&](int y) { esp_rows(u, {y, y + 1, slab.scratch, slab.joined}); });
}

static void affine(const Affine& u, const Slab& slab) {
  for (int y = slab.from; y < slab.to; y++) {
    float* out = u.out.line_to(y);
    for (int m = 0, k = 0; m < u.in.count; m++)
      for (int c = 0; c < u.in.maps[m].channels; c++, k++, out += u.out.plane) {
        const float* p = u.in.maps[m].line(y) + c * u.in.maps[m].plane;
        const V scale = set(u.norm.scale[k]), shift = set(u.norm.shift[k]), slope = set(u.norm.slope[k]);
        for (int x = 0; x < u.out.width; x += L) store(out + x, prelu(fma(load(p + x), scale, shift), slope));
      }
    finish(u.out, y);
  }
}

// ---- Bilinear

// a row between two of the input, a vector of zeros behind it
KERNEL void between_rows(const float* a, const float* b, float part, int width, float* to) {
  const V f = set(part);
  int x = 0;
  for (; x < width; x += L) {
    const V l = load(a + x);
    store(to + x, fma(f, sub(load(b + x), l), l));
  }
  store(to + x, zero());
}

KERNEL V between_columns(const float* row, const Lerp& c, int v) { return between(row + c.first[v], c.steps + v * L, load(c.part + v * L)); }

static void resize(const Resize& u, const Slab& slab) {
  float* free = slab.scratch;
  float* row = scratch_after(free, u.in.plane + 2 * GAP);
  clear(row, free - row);
  for (int y = slab.from; y < slab.to; y++) {
    const int i = u.rows.at[y], j = least(i + 1, u.in.height - 1);
    for (int c = 0; c < u.in.channels; c++) {
      between_rows(u.in.line(i) + c * u.in.plane, u.in.line(j) + c * u.in.plane, u.rows.part[y], u.in.width, row);
      float* out = u.out.line_to(y) + c * u.out.plane;
      for (int v = 0; v * L < u.out.width; v++) store(out + v * L, between_columns(row, u.columns, v));
    }
    finish(u.out, y);
  }
}

static void up2(const Up2& u, const Slab& slab) {
  const int ci = u.in.channels, co = u.weights[0].outputs;
  float* free = slab.scratch;
  float* strips = scratch_after(free, 2L * co * STRIP);
  const float** rows = reinterpret_cast<const float**>(scratch_after(free, 2L * ci));
  for (int y = slab.from; y < slab.to; y++) {
    for (int c = 0; c < ci; c++) rows[c] = u.in.line(y) + c * u.in.plane;
    for (int a = 0; a < 2 && 2 * y + a < u.out.height; a++) {
      float* out = u.out.line_to(2 * y + a);
      for (int x = 0; x < u.in.width; x += STRIP) {
        const int vectors = vectors_of(x, u.in.width);
        for (int b = 0; b < 2; b++)
          dense(slab, u.weights[2 * a + b], rows, x, vectors, [&](int o, int v, V s) {
            store(strips + (b * co + o) * STRIP + v * L, prelu(add(s, set(u.end.bias[o])), set(u.end.slope[o])));
          });
        for (int o = 0; o < co; o++)
          for (int v = 0; v < vectors; v++) {
            const V l = load(strips + o * STRIP + v * L), r = load(strips + (co + o) * STRIP + v * L);
            float* to = out + o * u.out.plane + 2 * (x + v * L);
            store(to, turns_first(l, r));
            store(to + L, turns_second(l, r));
          }
      }
      finish(u.out, 2 * y + a);
    }
  }
}

// ---- 3 x 3 with few outputs: three sums an output, one for each column of the kernel, all of aligned loads; then the sums are shifted,
// not the inputs. rows[i]: as many as inputs times three; weights [row][column][output]. then(output, vector, sum)

template <int O, int N, class Then>
KERNEL void shifted_sums(const float* const* rows, int number, long ahead, const float* weights, int width, Then then) {
  V left[O], middle[O], right[O];  // of the vector before: its sums of the first column, what still lacks the third's, those
  UNROLL for (int o = 0; o < O; o++) left[o] = middle[o] = right[o] = zero();
  const int vectors = (width + L - 1) / L;
  for (int v0 = 0; v0 < vectors; v0 += N) {
    V s[3][O][N];
    UNROLL for (int k = 0; k < 3; k++) UNROLL for (int o = 0; o < O; o++) UNROLL for (int v = 0; v < N; v++) s[k][o][v] = zero();
    const float* w = weights;
    for (int i = 0; i < number; i++, w += 3 * O) {
      V pixels[N];
      UNROLL for (int v = 0; v < N; v++) pixels[v] = load(rows[i] + (v0 + v) * L), fetch(rows[i] + ahead + (v0 + v) * L);
      UNROLL for (int k = 0; k < 3; k++) UNROLL for (int o = 0; o < O; o++) {
        const V weight = set(w[k * O + o]);
        UNROLL for (int v = 0; v < N; v++) s[k][o][v] = fma(weight, pixels[v], s[k][o][v]);
      }
    }
    UNROLL for (int o = 0; o < O; o++) {
      UNROLL for (int v = 0; v < N; v++) {
        const V third = s[2][o][v];
        if (v0 + v > 0 && v0 + v <= vectors) then(o, v0 + v - 1, add(middle[o], from<1>(right[o], third)));
        middle[o] = add(s[1][o][v], from<L - 1>(left[o], s[0][o][v]));
        left[o] = s[0][o][v];
        right[o] = third;
      }
    }
  }
  if (vectors % N == 0) UNROLL for (int o = 0; o < O; o++) then(o, vectors - 1, add(middle[o], from<1>(right[o], zero())));
}

static void merge(const Merge& u, const Slab& slab) {
  const int ci = u.skip.channels, co = u.outputs, width = u.skip.width, inputs = ci / u.groups, outputs = co / u.groups;
  const long plane = u.skip.plane, coarse = u.coarse.plane;
  float* free = slab.scratch;
  float* joined = scratch_after(free, co * plane);
  float* lifted = scratch_after(free, co * coarse + GAP);
  float* gate = scratch_after(free, co);
  float* means = scratch_after(free, ci);
  const float** rows = reinterpret_cast<const float**>(scratch_after(free, 2L * (3 * inputs + co)));
  for (int c = 0; c < ci; c++) {
    double s = 0;
    for (int y = 0; y < u.skip.height; y++) s += u.sums[(long)y * ci + c];
    means[c] = (float)(s / ((double)u.skip.height * width));
  }
  for (int o = 0; o < co; o++) {
    double s = 0;
    for (int c = 0; c < ci; c++) s += (double)u.gate[(long)o * ci + c] * means[c];
    gate[o] = (float)(1 / (1 + __builtin_exp(-s)));
  }
  for (int y = slab.from; y < slab.to; y++) {
    const int i = u.rows.at[y], j = least(i + 1, u.coarse.height - 1);
    for (int o = 0; o < co; o++)
      between_rows(u.coarse.line(i) + o * coarse, u.coarse.line(j) + o * coarse, u.rows.part[y], u.coarse.width, lifted + o * coarse);
    const float* w = u.weights;
    for (int g = 0; g < u.groups; g++) {
      for (int c = 0; c < inputs; c++)
        for (int t = 0; t < 3; t++) rows[3 * c + t] = u.skip.line(y + t - 1) + (g * inputs + c) * plane;
      for (int o0 = 0; o0 < outputs; o0 += 3) {
        auto then = [&](int o, int v, V s) {
          const int m = g * outputs + o0 + o;
          const V e = fma(prelu(add(s, set(u.end.bias[m])), set(u.end.slope[m])), set(gate[m]), between_columns(lifted + m * coarse, u.columns, v));
          store(joined + m * plane + v * L, prelu(fma(e, set(u.join.scale[m]), set(u.join.shift[m])), set(u.join.slope[m])));
        };
        const int n = least(3, outputs - o0);
        if (n == 1) shifted_sums<1, WIDE>(rows, 3 * inputs, u.skip.row, w, width, then);
        else if (n == 2) shifted_sums<2, WIDE / 2>(rows, 3 * inputs, u.skip.row, w, width, then);
        else shifted_sums<3, WIDE / 2>(rows, 3 * inputs, u.skip.row, w, width, then);
        w += 9L * inputs * n;
      }
    }
    for (int o = 0; o < co; o++) rows[o] = joined + o * plane;
    float* out = u.out.line_to(y);
    for (int x = 0; x < width; x += STRIP)
      dense(slab, u.project, rows, x, vectors_of(x, width), [&](int o, int v, V s) {
        store(out + o * u.out.plane + x + v * L, prelu(add(s, set(u.projected.bias[o])), set(u.projected.slope[o])));
      });
    finish(u.out, y);
  }
}

// ---- The decoder's pyramid

// Means of windows from floor(i in / out) to ceil((i + 1) in / out), as adaptive pooling has them.
static void average(const Small& small, const Slab& slab) {
  const Map &in = small.pyramid->in, &out = small.pyramid->scale[small.which].small;
  float* row = slab.scratch;
  for (int y = slab.from; y < slab.to; y++) {
    const int top = (int)((long)y * in.height / out.height), bottom = (int)(((long)(y + 1) * in.height + out.height - 1) / out.height);
    for (int c = 0; c < in.channels; c++) {
      for (int x = 0; x < in.width; x += L) {
        V s = zero();
        for (int i = top; i < bottom; i++) s = add(s, load(in.line(i) + c * in.plane + x));
        store(row + x, s);
      }
      float* to = out.line_to(y) + c * out.plane;
      if (2 * out.width == in.width) {
        const V part = set(0.5f / (float)(bottom - top));
        if (in.width % (2 * L)) clear(row + up16(in.width), 2 * L);
        for (int x = 0; x < out.width; x += L) {
          const V a = load(row + 2 * x), b = load(row + 2 * x + L);
          store(to + x, mul(add(even(a, b), odd(a, b)), part));
        }
        continue;
      }
      for (int x = 0; x < out.width; x++) {
        const int left = (int)((long)x * in.width / out.width), right = (int)(((long)(x + 1) * in.width + out.width - 1) / out.width);
        float s = 0;
        for (int i = left; i < right; i++) s += row[i];
        to[x] = s / (float)((bottom - top) * (right - left));
      }
    }
    finish(out, y);
  }
}

static void see(const Small& small, const Slab& slab) {
  const Scale& s = small.pyramid->scale[small.which];
  for (int y = slab.from; y < slab.to; y++) {
    for (int c = 0; c < s.small.channels; c++) {
      const float *w = s.kernel + 9 * c, *in[3];
      for (int t = 0; t < 3; t++) in[t] = s.small.line(y + t - 1) + c * s.small.plane;
      float* to = s.seen.line_to(y) + c * s.seen.plane;
      for (int x = 0; x < s.seen.width; x += L) {
        V sum3 = zero();
        for (int t = 0; t < 9; t++) sum3 = fma(set(w[t]), load(in[t / 3] + x + t % 3 - 1), sum3);
        store(to + x, sum3);
      }
    }
    finish(s.seen, y);
  }
}

// N rows of a plane seen larger, by bands (maps.hpp) that reach R pixels to either side: then(row, vector, sum). As in `shifted_sums` the
// sums are shifted, not the pixels: part[i] is what a pixel gives to the one i - R before it.
template <int R, int N, class Then>
KERNEL void larger_rows(const float* const* rows, const float* band, const float* columns, int width, Then then) {
  constexpr int T = 2 * R + 1;
  const int vectors = (width + L - 1) / L;
  V middle[N], before[N][T];
  UNROLL for (int n = 0; n < N; n++) {
    middle[n] = zero();
    UNROLL for (int i = 0; i < T; i++) before[n][i] = zero();
  }
  for (int v = 0; v <= vectors; v++) {
    V part[N][T], blend[N][3];
    UNROLL for (int n = 0; n < N; n++) {
      UNROLL for (int i = 0; i < T; i++) part[n][i] = zero();
      UNROLL for (int t = 0; t < 3; t++) blend[n][t] = zero();
    }
    if (v < vectors) {
      UNROLL for (int i = 0; i < T + N - 1; i++) {
        const V pixels = load(rows[i] + v * L);
        UNROLL for (int n = 0; n < N; n++)
          if (i >= n && i < n + T) UNROLL for (int t = 0; t < 3; t++) blend[n][t] = fma(set(band[(3 * n + t) * T + i - n]), pixels, blend[n][t]);
      }
      UNROLL for (int t = 0; t < 3; t++) UNROLL for (int i = 0; i < T; i++, columns += L) {
        const V column = load(columns);
        UNROLL for (int n = 0; n < N; n++) part[n][i] = fma(column, blend[n][t], part[n][i]);
      }
    }
    UNROLL for (int n = 0; n < N; n++) {
      V sum = add(middle[n], from<1>(before[n][R + 1], part[n][R + 1]));
      if (R > 1) sum = add(sum, from<R>(before[n][2 * R], part[n][2 * R]));
      if (v) then(n, v - 1, sum);
      middle[n] = add(part[n][R], from<L - 1>(before[n][R - 1], part[n][R - 1]));
      if (R > 1) middle[n] = add(middle[n], from<L - R>(before[n][0], part[n][0]));
      UNROLL for (int i = 0; i < T; i++) before[n][i] = part[n][i];
    }
  }
}

// N rows of a plane from y on as every scale has them, normed: to[n][scale plane + x].
template <int N>
static void scales_rows(const Pyramid& u, int c, int y, float* const (&to)[2], float* scratch) {
  const int width = u.in.width;
  const long plane = u.in.plane;
  const float* rows[5 + N - 1];
  for (int k = 0; k < u.scales; k++) {
    const Scale& s = u.scale[k];
    const int m = k * u.in.channels + c;
    const V scale = set(u.join.scale[m]), shift = set(u.join.shift[m]), slope = set(u.join.slope[m]);
    auto then = [&](int n, int v, V sum) { store(to[n] + k * plane + v * L, prelu(fma(sum, scale, shift), slope)); };
    const int reach = s.kind > 0 ? s.rows.reach : 1, taps = 2 * reach + 1;
    if (s.kind >= 0)
      for (int i = 0; i < taps + N - 1; i++) rows[i] = u.in.line(y + i - reach) + c * plane;
    const float *band = s.rows.values + 3L * y * taps, *columns = s.columns + 3L * c * taps * up16(width);
    if (s.kind > 0) {
      if (reach == 1) larger_rows<1, N>(rows, band, columns, width, then);
      else larger_rows<2, N>(rows, band, columns, width, then);
    } else {
      for (int n = 0; n < N; n++) {
        if (s.kind == 0) {
          shifted_sums<1, WIDE>(rows + n, 3, 0, s.kernel + 9 * c, width, [&](int, int v, V sum) { then(n, v, sum); });
          continue;
        }
        float* row = scratch + GAP;
        const int i = s.up_rows.at[y + n], j = least(i + 1, s.seen.height - 1);
        between_rows(s.seen.line(i) + c * s.seen.plane, s.seen.line(j) + c * s.seen.plane, s.up_rows.part[y + n], s.seen.width, row);
        for (int v = 0; v * L < width; v++) then(n, v, between_columns(row, s.up_columns, v));
      }
    }
    for (int n = 0; n < N; n++) clear(to[n] + k * plane + width, up16(width) - width);
  }
}

// ---- Masks

KERNEL void store_part(float* to, V a, int n) {
  float whole[L];
  store(whole, a);
  for (int i = 0; i < n; i++) to[i] = whole[i];
}

template <bool SCORES>
KERNEL void segment_row(const Segment& u, const float* row, int y) {
  constexpr int N = 2;  // vectors at a time: each comparison waits for the one before
  const int classes = u.in.channels, vectors = (u.width + L - 1) / L;
  const long plane = u.in.plane;
  for (int v0 = 0; v0 < vectors; v0 += N) {
    V best[N], which[N];
    UNROLL for (int i = 0; i < N; i++) best[i] = which[i] = zero();
    for (int c = 0; c < classes; c++) {
      const V number = set((float)c);
      UNROLL for (int i = 0; i < N; i++) {
        const int v = least(v0 + i, vectors - 1);
        const V s = between_columns(row + c * plane, u.columns, v);
        if (SCORES) store_part(u.scores + ((long)c * u.height + y) * u.width + v * L, s, least(L, u.width - v * L));
        which[i] = c ? choose(s, best[i], number, which[i]) : zero();
        best[i] = c ? max(s, best[i]) : s;
      }
    }
    for (int i = 0; i < N && v0 + i < vectors; i++) {
      uint8_t whole[16], *to = u.mask + (long)y * u.width + (v0 + i) * L;
      const int n = least(L, u.width - (v0 + i) * L);
      bytes(n == L ? to : whole, which[i]);
      if (n < L) for (int k = 0; k < n; k++) to[k] = whole[k];
    }
  }
}

static void segment_line(const Segment& u, int y, float* row) {
  const long plane = u.in.plane;
  const int i = u.rows.at[y], j = least(i + 1, u.in.height - 1);
  for (int c = 0; c < u.in.channels; c++) between_rows(u.in.line(i) + c * plane, u.in.line(j) + c * plane, u.rows.part[y], u.in.width, row + c * plane);
  if (u.scores) segment_row<true>(u, row, y);
  else segment_row<false>(u, row, y);
}

static void segment(const Segment& u, const Slab& slab) {
  for (int y = slab.from; y < slab.to; y++) segment_line(u, y, slab.scratch);
}

// Blocks of rows, and in them plane by plane: each keeps a ring of the rows that its 3 x 3 reads. Where the mask follows, of `out` no more
// rows are kept than it reads: it lies between two of them, the last of which may be the next slab's.
static void pyramid(const Pyramid& all, const Slab& slab) {
  constexpr int BLOCK = 8, RING = BLOCK + 2;
  Pyramid u = all;
  const int p = u.in.channels, width = u.in.width, height = u.in.height, m = u.scales;
  const long plane = u.in.plane, line = m * plane;
  const int narrow = abreast(width);
  const long pitch = narrow > 1 ? PITCH : plane;
  float* free = slab.scratch;
  if (u.segment) u.out.at = scratch_after(free, u.out.kept * u.out.row + GAP) + GAP;
  float* rings = scratch_after(free, (long)p * RING * line + GAP) + GAP;
  float* nothing = scratch_after(free, line + 2 * GAP) + GAP;
  float* merged = scratch_after(free, (long)BLOCK * p * plane);
  float* made = scratch_after(free, narrow > 1 ? (long)u.out.channels * PITCH : 0);
  float* scratch = scratch_after(free, plane + 2 * GAP);
  float* between = scratch_after(free, u.segment ? u.out.row + 4 * GAP : 0);
  clear(slab.scratch, free - slab.scratch);
  const float* rows[3 * MOST_SCALES];
  const float** planes_of = reinterpret_cast<const float**>(scratch_after(free, 2L * p));
  Segment segment;
  int line_of_mask = 0;
  if (u.segment) {
    segment = *u.segment;
    segment.in = u.out;
    while (line_of_mask < segment.height && segment.rows.at[line_of_mask] < slab.from) line_of_mask++;
  }
  const int end = u.segment ? least(slab.to + 1, height) : slab.to;
  for (int from = slab.from; from < end; from += BLOCK) {
    const int to = least(from + BLOCK, end);
    for (int c = 0; c < p; c++) {
      float* ring = rings + (long)c * RING * line;
      auto slot = [&](int y) { return ring + (y + RING) % RING * line; };
      const int last = least(to, height - 1);
      for (int y = most(0, from == slab.from ? from - 1 : from + 1); y <= last;) {
        if (y < last) scales_rows<2>(u, c, y, {slot(y), slot(y + 1)}, scratch), y += 2;
        else scales_rows<1>(u, c, y, {slot(y), nullptr}, scratch), y++;
      }
      for (int y = from; y < to; y++) {
        for (int k = 0; k < m; k++)
          for (int t = 0; t < 3; t++) rows[3 * k + t] = (y + t - 1 < 0 || y + t - 1 >= height ? nothing : slot(y + t - 1)) + k * plane;
        float* row = merged + ((y - from) / narrow * p + c) * pitch + (y - from) % narrow * width;
        const V bias = set(u.merged.bias[c]), slope = set(u.merged.slope[c]);
        shifted_sums<1, WIDE>(rows, 3 * m, 0, u.merge + 9L * m * c, width, [&](int, int v, V s) { store(row + v * L, prelu(add(s, bias), slope)); });
      }
    }
    for (int y = from, many; y < to; y += many) {
      many = least(narrow, to - y);
      for (int c = 0; c < p; c++) planes_of[c] = merged + ((y - from) / narrow * p + c) * pitch;
      if (narrow > 1) {
        dense_abreast(slab, u.last, planes_of, many, y, u.end, made, u.out, 0);
        for (int r = 0; r < many; r++) finish(u.out, y + r);
        continue;
      }
      float* out = u.out.line_to(y);
      for (int x = 0; x < width; x += STRIP)
        dense(slab, u.last, planes_of, x, vectors_of(x, width), [&](int o, int v, V s) {
          store(out + o * u.out.plane + x + v * L, prelu(add(s, set(u.end.bias[o])), set(u.end.slope[o])));
        });
      finish(u.out, y);
    }
    if (u.segment)
      for (const int made = to == height ? slab.to : least(slab.to, to - 1); line_of_mask < segment.height && segment.rows.at[line_of_mask] < made; line_of_mask++)
        segment_line(segment, line_of_mask, between);
  }
}

// ---- Masks of transposed 2 x 2, means

static void segment2(const Segment2& u, const Slab& slab) {
  const int ci = u.in.channels;
  float* free = slab.scratch;
  const float** rows = reinterpret_cast<const float**>(scratch_after(free, 2L * ci));
  float* best = scratch_after(free, STRIP);
  float* which = scratch_after(free, STRIP);
  for (int y = slab.from; y < slab.to; y++) {
    for (int c = 0; c < ci; c++) rows[c] = u.in.line(y) + c * u.in.plane;
    for (int a = 0; a < 2 && 2 * y + a < u.height; a++)
      for (int x = 0; x < u.in.width; x += STRIP)
        for (int b = 0; b < 2; b++) {
          const int vectors = vectors_of(x, u.in.width), n = least(STRIP, (u.width - b + 1) / 2 - x);
          dense(slab, u.weights[2 * a + b], rows, x, vectors, [&](int o, int v, V s) {
            if (u.scores) {
              float whole[L];
              store(whole, s);
              float* to = u.scores + ((long)o * u.height + 2 * y + a) * u.width + 2 * x + b;
              for (int k = 0; k < L && v * L + k < n; k++) to[2 * (v * L + k)] = whole[k];
            }
            float *b0 = best + v * L, *w0 = which + v * L;
            store(w0, o ? choose(s, load(b0), set((float)o), load(w0)) : zero());
            store(b0, o ? max(s, load(b0)) : s);
          });
          uint8_t* to = u.mask + (long)(2 * y + a) * u.width + 2 * x + b;
          for (int k = 0; k < n; k++) to[2 * k] = (uint8_t)which[k];
        }
  }
}

static void mean(const Mean& u, const Slab&) {
  float* out = u.out.line_to(0);
  for (int c = 0; c < u.in.channels; c++) {
    V s = zero();
    for (int y = 0; y < u.in.height; y++)
      for (int x = 0; x < u.in.width; x += L) s = add(s, load(u.in.line(y) + c * u.in.plane + x));
    out[c * u.out.plane] = sum(s) / ((float)u.in.height * (float)u.in.width);
  }
  finish(u.out, 0);
}

static const Kernels KERNELS = {L,      TILE, TOGETHER, first,   pool, conv,    branches, esp,      affine,
                                resize, up2,  merge,    average, see,  pyramid, segment,  segment2, mean,   flush};
