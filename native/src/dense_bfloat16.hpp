// What a step of the dense tile takes: two inputs of each pixel, rounded to bfloat16, as the halves of a lane. Sums are float32.
// AVX-512 BF16, as processors have it since 2020.

constexpr int TOGETHER = 2;
KERNEL V together(V a, V b) {
  const __m512i in_turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18,
                                            2, 17, 1, 16, 0);
  return (V)_mm512_permutexvar_epi16(in_turns, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}
KERNEL V multiply(V weights, V pixels, V sum) { return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)pixels); }
