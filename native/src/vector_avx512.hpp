// Sixteen floats in a register: AVX-512 F, BW, DQ and VL, as processors have them since 2017.

#define KERNEL static inline __attribute__((always_inline))

using V = __m512;
constexpr int L = 16;     // floats
constexpr int TILE = 6;   // outputs of a dense tile
constexpr int WIDE = 4;   // vectors of pixels of a dense tile

KERNEL V load(const float* p) { return _mm512_loadu_ps(p); }
KERNEL void store(float* p, V a) { _mm512_storeu_ps(p, a); }
KERNEL V set(float a) { return _mm512_set1_ps(a); }
KERNEL V zero() { return _mm512_setzero_ps(); }
KERNEL V add(V a, V b) { return _mm512_add_ps(a, b); }
KERNEL V sub(V a, V b) { return _mm512_sub_ps(a, b); }
KERNEL V mul(V a, V b) { return _mm512_mul_ps(a, b); }
KERNEL V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
KERNEL V max(V a, V b) { return _mm512_max_ps(a, b); }
KERNEL V min(V a, V b) { return _mm512_min_ps(a, b); }
KERNEL float sum(V a) { return _mm512_reduce_add_ps(a); }

// a > b ? x : y
KERNEL V choose(V a, V b, V x, V y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x); }

// the even and the odd ones of a then b
KERNEL V even(V a, V b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
}
KERNEL V odd(V a, V b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
}
// a and b in turns: the first and the second half
KERNEL V turns_first(V a, V b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
}
KERNEL V turns_second(V a, V b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
}
// of a then b the lanes from K on
template <int K>
KERNEL V from(V a, V b) { return _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(b), _mm512_castps_si512(a), K)); }

// p[steps] + part * (p[steps + 1] - p[steps]), steps below 15 (or 15 where part is 0)
KERNEL V between(const float* p, const int* steps, V part) {
  const __m512i left = _mm512_loadu_si512(steps), right = _mm512_add_epi32(left, _mm512_set1_epi32(1));
  const V a = load(p), l = _mm512_permutexvar_ps(left, a), r = _mm512_permutexvar_ps(right, a);
  return fma(part, sub(r, l), l);
}

// whole numbers 0 to 255 as bytes
KERNEL void bytes(uint8_t* p, V a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a))); }

// sixteen pixels of three bytes as three vectors
KERNEL void planes(const uint8_t* p, V (&out)[3]) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)),
                c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 32));
  const __m128i red = _mm_or_si128(
      _mm_or_si128(_mm_shuffle_epi8(a, _mm_setr_epi8(0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)),
                   _mm_shuffle_epi8(b, _mm_setr_epi8(-1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14, -1, -1, -1, -1, -1))),
      _mm_shuffle_epi8(c, _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 1, 4, 7, 10, 13)));
  const __m128i green = _mm_or_si128(
      _mm_or_si128(_mm_shuffle_epi8(a, _mm_setr_epi8(1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)),
                   _mm_shuffle_epi8(b, _mm_setr_epi8(-1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1))),
      _mm_shuffle_epi8(c, _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14)));
  const __m128i blue = _mm_or_si128(
      _mm_or_si128(_mm_shuffle_epi8(a, _mm_setr_epi8(2, 5, 8, 11, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)),
                   _mm_shuffle_epi8(b, _mm_setr_epi8(-1, -1, -1, -1, -1, 1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1))),
      _mm_shuffle_epi8(c, _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15)));
  out[0] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(red));
  out[1] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(green));
  out[2] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(blue));
}

// Flush to zero, and take subnormal numbers as zero; `was` is what to give back.
static unsigned flush(unsigned set, bool give_back) {
  const unsigned was = _mm_getcsr();
  _mm_setcsr(give_back ? set : was | 0x8040);
  return was;
}
