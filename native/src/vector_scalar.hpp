// Four floats as plain C++: what every processor runs, and what the other targets are tested against.

#define KERNEL static inline __attribute__((always_inline))

struct V {
  float at[4];
};
constexpr int L = 4;
constexpr int TILE = 4;
constexpr int WIDE = 2;

template <class F>
KERNEL V each(F f) {
  V r;
  for (int i = 0; i < L; i++) r.at[i] = f(i);
  return r;
}
KERNEL V load(const float* p) { return each([&](int i) { return p[i]; }); }
KERNEL void store(float* p, V a) { for (int i = 0; i < L; i++) p[i] = a.at[i]; }
KERNEL V set(float a) { return each([&](int) { return a; }); }
KERNEL V zero() { return set(0); }
KERNEL V add(V a, V b) { return each([&](int i) { return a.at[i] + b.at[i]; }); }
KERNEL V sub(V a, V b) { return each([&](int i) { return a.at[i] - b.at[i]; }); }
KERNEL V mul(V a, V b) { return each([&](int i) { return a.at[i] * b.at[i]; }); }
KERNEL V fma(V a, V b, V c) { return each([&](int i) { return a.at[i] * b.at[i] + c.at[i]; }); }
KERNEL V max(V a, V b) { return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; }); }
KERNEL V min(V a, V b) { return each([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; }); }
KERNEL float sum(V a) { return (a.at[0] + a.at[2]) + (a.at[1] + a.at[3]); }
KERNEL V choose(V a, V b, V x, V y) { return each([&](int i) { return a.at[i] > b.at[i] ? x.at[i] : y.at[i]; }); }
KERNEL float of(V a, V b, int i) { return i < L ? a.at[i] : b.at[i - L]; }
KERNEL V even(V a, V b) { return each([&](int i) { return of(a, b, 2 * i); }); }
KERNEL V odd(V a, V b) { return each([&](int i) { return of(a, b, 2 * i + 1); }); }
KERNEL V turns_first(V a, V b) { return each([&](int i) { return i % 2 ? b.at[i / 2] : a.at[i / 2]; }); }
KERNEL V turns_second(V a, V b) { return each([&](int i) { return i % 2 ? b.at[L / 2 + i / 2] : a.at[L / 2 + i / 2]; }); }
template <int K>
KERNEL V from(V a, V b) { return each([&](int i) { return of(a, b, K + i); }); }
KERNEL V between(const float* p, const int* steps, V part) {
  return each([&](int i) { return p[steps[i]] + part.at[i] * (p[steps[i] + 1] - p[steps[i]]); });
}
KERNEL void bytes(uint8_t* p, V a) { for (int i = 0; i < L; i++) p[i] = static_cast<uint8_t>(a.at[i]); }
KERNEL void planes(const uint8_t* p, V (&out)[3]) {
  for (int c = 0; c < 3; c++) out[c] = each([&](int i) { return static_cast<float>(p[3 * i + c]); });
}
static unsigned flush(unsigned, bool) { return 0; }
