// What a step of the dense tile takes: one input of each pixel.

constexpr int TOGETHER = 1;
KERNEL V together(V a, V) { return a; }
KERNEL V multiply(V weight, V pixels, V sum) { return fma(weight, pixels, sum); }
