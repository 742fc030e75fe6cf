// Four floats in a register: NEON, as every 64-bit ARM processor has it.

#define KERNEL static inline __attribute__((always_inline))

using V = float32x4_t;
constexpr int L = 4;
constexpr int TILE = 6;
constexpr int WIDE = 4;

KERNEL V load(const float* p) { return vld1q_f32(p); }
KERNEL void store(float* p, V a) { vst1q_f32(p, a); }
KERNEL V set(float a) { return vdupq_n_f32(a); }
KERNEL V zero() { return vdupq_n_f32(0); }
KERNEL V add(V a, V b) { return vaddq_f32(a, b); }
KERNEL V sub(V a, V b) { return vsubq_f32(a, b); }
KERNEL V mul(V a, V b) { return vmulq_f32(a, b); }
KERNEL V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
KERNEL V max(V a, V b) { return vmaxq_f32(a, b); }
KERNEL V min(V a, V b) { return vminq_f32(a, b); }
KERNEL float sum(V a) { return vaddvq_f32(a); }
// a > b ? x : y
KERNEL V choose(V a, V b, V x, V y) { return vbslq_f32(vcgtq_f32(a, b), x, y); }
// the even and the odd ones of a then b
KERNEL V even(V a, V b) { return vuzp1q_f32(a, b); }
KERNEL V odd(V a, V b) { return vuzp2q_f32(a, b); }
// a and b in turns: the first and the second half
KERNEL V turns_first(V a, V b) { return vzip1q_f32(a, b); }
KERNEL V turns_second(V a, V b) { return vzip2q_f32(a, b); }
// of a then b the lanes from K on
template <int K>
KERNEL V from(V a, V b) { return vextq_f32(a, b, K); }
// p[steps] + part * (p[steps + 1] - p[steps])
KERNEL V between(const float* p, const int* steps, V part) {
  const float32x2_t a = vld1_f32(p + steps[0]), b = vld1_f32(p + steps[1]), c = vld1_f32(p + steps[2]), d = vld1_f32(p + steps[3]);
  const V x = vcombine_f32(a, b), y = vcombine_f32(c, d), l = vuzp1q_f32(x, y), r = vuzp2q_f32(x, y);
  return fma(part, sub(r, l), l);
}
// whole numbers 0 to 255 as bytes
KERNEL void bytes(uint8_t* p, V a) {
  const uint16x4_t words = vmovn_u32(vcvtq_u32_f32(a));
  const uint8x8_t whole = vmovn_u16(vcombine_u16(words, words));
  vst1_lane_u32(reinterpret_cast<uint32_t*>(p), vreinterpret_u32_u8(whole), 0);
}
// four pixels of three bytes as three vectors
KERNEL void planes(const uint8_t* p, V (&out)[3]) {
  for (int c = 0; c < 3; c++) {
    const uint32_t values[4] = {p[c], p[3 + c], p[6 + c], p[9 + c]};
    out[c] = vcvtq_f32_u32(vld1q_u32(values));
  }
}

// Flush to zero; what it was is to be given back.
static unsigned flush(unsigned set, bool give_back) {
  uint64_t was;
  asm volatile("mrs %0, fpcr" : "=r"(was));
  const uint64_t now = give_back ? set : was | (1u << 24);
  asm volatile("msr fpcr, %0" : : "r"(now));
  return static_cast<unsigned>(was);
}
