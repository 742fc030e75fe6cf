/* The CPU engine of espy: from a uint8 picture to a mask, classes or boxes, without a graph runtime.
 *
 * A network is a list of units, as integers, and the weights that they name, as floats; `espy.run.lowering` makes both from a
 * model file. Nothing here reads files. All functions may be called from any thread; runs of one engine queue up.
 *
 * The integers: FORMAT, precision, number of units, then each unit: its kind, how many integers follow, and those. The floats stand in
 * the order in which the units below name them; each unit's counts follow from its integers and its inputs' channels. A map is called
 * by a number from 0 to 255 and holds [channels, height, width]; a unit writes a map before another reads it. PReLU is
 * max(x, 0) + slope * min(x, 0): slope 0 is ReLU, slope 1 leaves x as it is. Batch norms are folded into what stands before them.
 *
 * FIRST      out pooled co sums             3x3 of stride 2 on the picture x * factor + shift, then PReLU; `pooled` (-1: none) is
 *                                           the picture after POOL. factor[3] shift[3] w[co][3][3][3] (o, c, y, x) bias[co] slope[co]
 * POOL       in out                         mean of 3x3 at stride 2, zeros around the map count
 * CONV       n in*n out co k d stride g     k x k of the joined inputs, dilation d, stride 1 or 2, g groups, zeros around, then PReLU.
 *                                           w[co][ci/g][k][k] bias[co] slope[co]
 * EESP       in out n K k d*K hff residual sums
 *                                           r = PReLU(1x1 in K groups, ci to n); branch j = depth-wise k x k of r, dilation d[j];
 *                                           with hff each branch adds the one before it; u = PReLU(scale * branch + shift);
 *                                           y = 1x1 in K groups, K n to co = K n; out = PReLU(y + residual * in); out may be in.
 *                                           w[n][ci/K] bias[n] slope[n]; w[K][n][k][k]; scale[Kn] shift[Kn] slope[Kn];
 *                                           w[Kn][n] bias[Kn] slope[Kn]
 * DOWN       in picture out n K k d*K hff sums
 *                                           out = PReLU(joined POOL(in) and the EESP above with branches of stride 2, + 1x1 of
 *                                           `picture`), co = ci + K n; picture -1: none. As EESP up to scale, shift, slope; then
 *                                           w[Kn][n]; w[co][3] where there is a picture; bias[co] slope[co]
 * ESP        n in*n out w w1 K k hff residual stride kr primary
 *                                           r = kr x kr of the joined inputs at the stride, to w channels; where `primary`, p = the same
 *                                           kind of convolution to w1 channels, else p = r; branch 0 = k x k of p, to w1 channels;
 *                                           branch j = k x k of r with dilation 2^j, to w channels; each t = PReLU(branch + bias);
 *                                           from branch `hff` on (counted from 1; 0: never) each adds the one before it;
 *                                           out = PReLU(scale * (joined t + residual * in) + shift), co = w1 + (K-1) w.
 *                                           w[w][ci][kr][kr]; primary: w[w1][ci][kr][kr]; w[w1][w or w1][k][k]; (K-1) times w[w][w][k][k];
 *                                           bias[co] slope[co]; scale[co] shift[co] slope[co]
 * AFFINE     n in*n out                     PReLU(scale * joined + shift). scale[c] shift[c] slope[c]
 * RESIZE     in like out                    bilinear to the size of `like`, corners aligned
 * UP2        in like out co                 transposed 2x2 of stride 2, then cut to the size of `like`, then PReLU.
 *                                           w[ci][co][2][2] bias[co] slope[co]
 * MERGE      skip coarse out co g p         e = PReLU(3x3 in g groups of skip, to co) * sigmoid(gate . mean of skip) + coarse resized to
 *                                           skip's size; out = PReLU(1x1, to p, of PReLU(scale * e + shift)). `skip` was made with sums.
 *                                           w[co][ci/g][3][3] bias[co] slope[co]; gate[co][ci]; scale[co] shift[co] slope[co];
 *                                           w[p][co] bias[p] slope[p]
 * PYRAMID    in out co m (a b)*m            every channel seen at m scales a/b: resized to max(5, ceil(n a / b)) a side (averaged over
 *                                           windows where a < b), depth-wise 3x3, and back (averaged where a > b);
 *                                           then PReLU(scale * x + shift); then 3x3 over the m of a channel, PReLU; then 1x1 to co, PReLU.
 *                                           w[m][p][3][3]; scale[mp] shift[mp] slope[mp] (scale by scale);
 *                                           w[p][m][3][3] bias[p] slope[p]; w[co][p] bias[co] slope[co]
 * SEGMENT    in align                       the mask: arg-max of `in`, bilinear to the picture's size (corners aligned or not)
 * SEGMENT2   in co                          the mask: arg-max of the transposed 2x2 of stride 2 of `in`, cut to the picture's size.
 *                                           w[ci][co][2][2]
 * MEAN       in out                         the mean of each channel: [channels, 1, 1]
 * SCORES     n in*n                         the scores: the inputs, of any sizes, one after the other, each [height][width][channels]
 *
 * FIRST stands first and nowhere else, SEGMENT, SEGMENT2 or SCORES last and nowhere else.
 */
#ifndef ESPY_ENGINE_H
#define ESPY_ENGINE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define ESPY_API __declspec(dllexport)
#else
#define ESPY_API __attribute__((visibility("default")))
#endif

enum { ESPY_FORMAT = 3 };

/* In bfloat16 the inputs and the weights of these are rounded to it, the nearest and of two the even one; their sums are float32, as
 * all else is: FIRST, CONV, both 1x1 of EESP and DOWN and what DOWN's picture adds to the second, ESP, UP2, SEGMENT2, the last 1x1 of
 * MERGE and of PYRAMID. */
enum espy_precision { ESPY_FLOAT32 = 0, ESPY_BFLOAT16 = 1 };

enum espy_kind {
  ESPY_FIRST = 1, ESPY_POOL, ESPY_CONV, ESPY_EESP, ESPY_DOWN, ESPY_ESP, ESPY_AFFINE, ESPY_RESIZE, ESPY_UP2, ESPY_MERGE,
  ESPY_PYRAMID, ESPY_SEGMENT, ESPY_SEGMENT2, ESPY_MEAN, ESPY_SCORES
};

typedef struct espy_engine espy_engine;

/* An engine of so many threads, or null; then espy_last_error says why. */
ESPY_API espy_engine* espy_create(const int64_t* units, int64_t count, const float* weights, int64_t floats, int32_t threads);

/* One picture, [height][width][3] RGB. A network that ends with SCORES writes `scores`, and `mask` is null. Any other writes `mask`,
 * [height][width], and to `scores`, where they are not null, the logits [classes][height][width]. `room`: of how many floats the
 * scores are, which must be as many as there are. `seconds`: null, or for each unit how long it took. Returns 0, or -1; then
 * espy_last_error says why. */
ESPY_API int32_t espy_run(espy_engine* engine, const uint8_t* picture, int64_t height, int64_t width, uint8_t* mask, float* scores,
                          int64_t room, double* seconds);

/* Gives back the threads and the memory. Null is nothing. */
ESPY_API void espy_destroy(espy_engine* engine);

/* Why this thread's last call failed: one line. */
ESPY_API const char* espy_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
