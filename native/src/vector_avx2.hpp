// Eight floats in a register: AVX2 and FMA, as processors have them since 2013.

#define KERNEL static inline __attribute__((always_inline))

using V = __m256;
constexpr int L = 8;
constexpr int TILE = 6;
constexpr int WIDE = 2;

KERNEL V load(const float* p) { return _mm256_loadu_ps(p); }
KERNEL void store(float* p, V a) { _mm256_storeu_ps(p, a); }
KERNEL V set(float a) { return _mm256_set1_ps(a); }
KERNEL V zero() { return _mm256_setzero_ps(); }
KERNEL V add(V a, V b) { return _mm256_add_ps(a, b); }
KERNEL V sub(V a, V b) { return _mm256_sub_ps(a, b); }
KERNEL V mul(V a, V b) { return _mm256_mul_ps(a, b); }
KERNEL V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
KERNEL V max(V a, V b) { return _mm256_max_ps(a, b); }
KERNEL V min(V a, V b) { return _mm256_min_ps(a, b); }
KERNEL float sum(V a) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
// a > b ? x : y
KERNEL V choose(V a, V b, V x, V y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ)); }

// quarters of two floats in the order 0 2 1 3
KERNEL V mended(V a) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xD8)); }
// the even and the odd ones of a then b
KERNEL V even(V a, V b) { return mended(_mm256_shuffle_ps(a, b, 0x88)); }
KERNEL V odd(V a, V b) { return mended(_mm256_shuffle_ps(a, b, 0xDD)); }
// a and b in turns: the first and the second half
KERNEL V turns_first(V a, V b) { return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20); }
KERNEL V turns_second(V a, V b) { return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31); }
// of a then b the lanes from K on
template <int K>
KERNEL V from(V a, V b) {
  const __m256i x = _mm256_castps_si256(a), y = _mm256_castps_si256(b), middle = _mm256_permute2x128_si256(x, y, 0x21);
  return _mm256_castsi256_ps(K < 4 ? _mm256_alignr_epi8(middle, x, 4 * K % 16) : _mm256_alignr_epi8(y, middle, 4 * K % 16));
}
// p[steps] + part * (p[steps + 1] - p[steps]), steps below 7 (or 7 where part is 0)
KERNEL V between(const float* p, const int* steps, V part) {
  const __m256i left = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(steps)), right = _mm256_add_epi32(left, _mm256_set1_epi32(1));
  const V a = load(p), l = _mm256_permutevar8x32_ps(a, left), r = _mm256_permutevar8x32_ps(a, right);
  return fma(part, sub(r, l), l);
}
// whole numbers 0 to 255 as bytes
KERNEL void bytes(uint8_t* p, V a) {
  const __m256i whole = _mm256_cvtps_epi32(a);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
// eight pixels of three bytes as three vectors
KERNEL void planes(const uint8_t* p, V (&out)[3]) {
  const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 16));
  const __m128i red = _mm_or_si128(_mm_shuffle_epi8(a, _mm_setr_epi8(0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)),
                                   _mm_shuffle_epi8(b, _mm_setr_epi8(-1, -1, -1, -1, -1, -1, 2, 5, -1, -1, -1, -1, -1, -1, -1, -1)));
  const __m128i green = _mm_or_si128(_mm_shuffle_epi8(a, _mm_setr_epi8(1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)),
                                     _mm_shuffle_epi8(b, _mm_setr_epi8(-1, -1, -1, -1, -1, 0, 3, 6, -1, -1, -1, -1, -1, -1, -1, -1)));
  const __m128i blue = _mm_or_si128(_mm_shuffle_epi8(a, _mm_setr_epi8(2, 5, 8, 11, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1)),
                                    _mm_shuffle_epi8(b, _mm_setr_epi8(-1, -1, -1, -1, -1, 1, 4, 7, -1, -1, -1, -1, -1, -1, -1, -1)));
  out[0] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(red));
  out[1] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(green));
  out[2] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(blue));
}

// Flush to zero, and take subnormal numbers as zero; `was` is what to give back.
static unsigned flush(unsigned set, bool give_back) {
  const unsigned was = _mm_getcsr();
  _mm_setcsr(give_back ? set : was | 0x8040);
  return was;
}
