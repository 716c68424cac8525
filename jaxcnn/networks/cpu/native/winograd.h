// Convolution of rows by fewer products, for windows of three columns.
//
// By Winograd's F(4, 3) (https://arxiv.org/abs/1509.09308) four neighbouring outputs of a row take
// six products instead of twelve. Of a window of six inputs d and a row of the kernel g:
//
//   m0 = (4 d0 - 5 d2 + d4) g0 / 4                          y0 = m0 + m1 + m2 + m3 + m4
//   m1 = (d3 + d4 - 4 d1 - 4 d2) (-g0 - g1 - g2) / 6        y1 = m1 - m2 + 2 m3 - 2 m4
//   m2 = (4 d1 - 4 d2 - d3 + d4) (-g0 + g1 - g2) / 6        y2 = m1 + m2 + 4 m3 + 4 m4
//   m3 = (2 d3 + d4 - 2 d1 - d2) (g0 + 2 g1 + 4 g2) / 24    y3 = m1 - m2 + 8 m3 - 8 m4 + m5
//   m4 = (2 d1 - d2 - 2 d3 + d4) (g0 - 2 g1 + 4 g2) / 24
//   m5 = (4 d1 - 5 d3 + d5) g2
//
// Each m is a part of its own: a convolution with a window of one column and rows of a quarter of the
// width.
//
// The sum of y dy is also the sum of x times the convolution of dy with the flipped kernel. So the
// gradient for the kernel needs the windows of dy, which the gradient for x needs anyway, and sums of
// fours of x, as they stand above for m: that for m1's factor is the sum over all windows of the
// second sum of dy times x0 + x1 + x2 + x3, and so on.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "convolution.h"
#include "vectors.h"

namespace jaxcnn {

constexpr int kTile = 4;   // outputs of a window
constexpr int kParts = 6;  // products of a window

// Whether it pays: the sums cost something, and want whole vectors of images.
inline bool WinogradPays(int64_t kernel_size, int64_t width, int64_t images, int64_t in,
                         int64_t out) {
  return kernel_size == 3 && width % kTile == 0 && images >= 4 && in >= 8 && out >= 8;
}

// Calls f(place among the tiles, place of the first of the tile, lanes) for a row, float[W, N].
template <typename F>
void ForTiles(int64_t width, int64_t images, F f) {
  for (int64_t column = 0; column < width; column += kTile) {
    ForVectors(images, [&](int64_t i, auto lanes) {
      f(column / kTile * images + i, column * images + i, lanes);
    });
  }
}

// The sums of each window of a row, as above. The first window begins at `from`.
inline void SumWindows(const float* from, int64_t width, int64_t images, float* const* to) {
  ForTiles(width, images, [&](int64_t at, int64_t first, auto lanes) {
    auto d = [&](int64_t i) { return Load(from + first + i * images, lanes); };
    const auto d0 = d(0), d1 = d(1), d2 = d(2), d3 = d(3), d4 = d(4), d5 = d(5);
    const auto even = d4 - 4 * d2, odd = d3 - 4 * d1, even_2 = d4 - d2, odd_2 = 2 * (d3 - d1);
    Store(to[0] + at, 4 * d0 - 5 * d2 + d4);
    Store(to[1] + at, even + odd);
    Store(to[2] + at, even - odd);
    Store(to[3] + at, even_2 + odd_2);
    Store(to[4] + at, even_2 - odd_2);
    Store(to[5] + at, 4 * d1 - 5 * d3 + d5);
  });
}

// Of each tile of four columns, what its outputs' gradients add to each product's.
inline void SumTiles(const float* from, int64_t width, int64_t images, float* const* to) {
  ForTiles(width, images, [&](int64_t at, int64_t first, auto lanes) {
    auto x = [&](int64_t i) { return Load(from + first + i * images, lanes); };
    const auto x0 = x(0), x1 = x(1), x2 = x(2), x3 = x(3);
    const auto even = x0 + x2, odd = x1 + x3, even_2 = x0 + 4 * x2, odd_2 = 2 * x1 + 8 * x3;
    Store(to[0] + at, x0);
    Store(to[1] + at, even + odd);
    Store(to[2] + at, even - odd);
    Store(to[3] + at, even_2 + odd_2);
    Store(to[4] + at, even_2 - odd_2);
    Store(to[5] + at, x3);
  });
}

// The outputs of a chunk of tiles from their products, float[parts, next]. Calls f(position,
// vector); the positions begin at `first`.
template <typename F>
void SumProducts(const float* products, int64_t next, int64_t size, int64_t images, int64_t first,
                 F f) {
  for (int64_t tile = 0; tile < size; tile += images) {
    ForVectors(images, [&](int64_t i, auto lanes) {
      auto m = [&](int64_t part) { return Load(products + part * next + tile + i, lanes); };
      const int64_t to = first + kTile * tile + i;
      const auto m1 = m(1), m2 = m(2), m3 = m(3), m4 = m(4);
      const auto sum = m1 + m2, difference = m1 - m2, sum_2 = m3 + m4, difference_2 = m3 - m4;
      f(to, m(0) + sum + sum_2);
      f(to + images, difference + 2 * difference_2);
      f(to + 2 * images, sum + 4 * sum_2);
      f(to + 3 * images, difference + 8 * difference_2 + m(5));
    });
  }
}

// The factors of a kernel, float[3, 3, Cin, Cout], packed for each part.
inline std::vector<Packed> PackWinograd(const float* kernel, int64_t in, int64_t out,
                                        bool transposed) {
  const int64_t size = in * out;
  std::vector<float> weights(kParts * 3 * size);  // float[parts, 3, 1, Cin, Cout]
  for (int64_t row = 0; row < 3; ++row) {
    const float *g0 = kernel + row * 3 * size, *g1 = g0 + size, *g2 = g1 + size;
    if (transposed) std::swap(g0, g2);
    float* to = weights.data() + row * size;
    for (int64_t i = 0; i < size; ++i) {
      const float outer = g0[i] + g2[i], far = g0[i] + 4 * g2[i];
      const float weight[kParts] = {g0[i] / 4,
                                    (-outer - g1[i]) / 6,
                                    (-outer + g1[i]) / 6,
                                    (far + 2 * g1[i]) / 24,
                                    (far - 2 * g1[i]) / 24,
                                    g2[i]};
      for (int part = 0; part < kParts; ++part) to[part * 3 * size + i] = weight[part];
    }
  }
  std::vector<Packed> parts;
  parts.reserve(kParts);
  for (int part = 0; part < kParts; ++part) {
    parts.emplace_back(weights.data() + part * 3 * size, 3, 1, in, out, transposed);
  }
  return parts;
}

// Writes float[3, 3, Cin, Cout] from the sums of the parts, in blocks.
inline void FinishWinograd(const float* sums, int64_t in, int64_t out, float* d_kernel) {
  const int64_t size = in * out;
  std::vector<float> parts(3 * kParts * size);  // float[parts, 3, Cout, Cin], of the flipped kernel
  for (int part = 0; part < kParts; ++part) {
    CopyBlocks(sums + part * 3 * size, 3, out, in, parts.data() + part * 3 * size);
  }
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t o = 0; o < out; ++o) {
        const float* m = parts.data() + (row * out + o) * in + i;
        auto of = [&](int part) { return m[part * 3 * size]; };
        const float sum = of(1) + of(2), difference = of(2) - of(1);
        const float sum_2 = of(3) + of(4), difference_2 = of(3) - of(4);
        float* to = d_kernel + (2 - row) * 3 * size + i * out + o;
        to[2 * size] = (6 * of(0) - 4 * sum + sum_2) / 24;
        to[size] = (2 * difference + difference_2) / 12;
        to[0] = (sum_2 - sum + 6 * of(5)) / 6;
      }
    }
  }
}

}  // namespace jaxcnn
