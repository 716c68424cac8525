// Convolution of rows of a slice, directly or, with windows of three columns, by fewer products.
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

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "convolution.h"
#include "vectors.h"

namespace jaxcnn {

constexpr int kTile = 4;   // outputs of a window
constexpr int kParts = 6;  // products of a window

enum class Form {
  kPlain,    // one part: rows with zeros around them
  kWindows,  // sums of each window, as above
  kTiles     // of each tile of four columns, what its outputs' gradients add to each product's
};

// Whether it pays: the sums cost something, and want whole vectors of images.
inline bool UsesWinograd(int64_t kernel_size, int64_t width, int64_t images, int64_t in,
                         int64_t out) {
  return kernel_size == 3 && width % kTile == 0 && images >= 4 && in >= 8 && out >= 8;
}

// Rows of a slice, in the form in which they are multiplied.
class Rows {
 public:
  // Of the parts, and of the rows before they are transformed.
  using Memories = Memory[kParts + 1];

  Rows(Form form, Memories& memories, int64_t channels, int64_t height, int64_t width,
       int64_t border)
      : form_(form), width_(width), channels_(channels),
        untransformed_(memories[kParts], 1, 2, width, 0, 1) {
    if (form == Form::kPlain) {
      parts_.emplace_back(memories[0], channels, height, width, border, border);
      return;
    }
    parts_.reserve(kParts);
    for (int i = 0; i < kParts; ++i) {
      parts_.emplace_back(memories[i], channels, height, width / kTile,
                          form == Form::kWindows ? border : 0, 0);
    }
  }
  void Resize(int64_t images) {
    for (Padded& part : parts_) part.Resize(images);
    if (form_ != Form::kPlain) untransformed_.Resize(images);
  }
  // Where a row of a channel is to be written; two neighbouring rows may be. Then `Finish` is to be
  // called for each.
  float* Target(int64_t channel, int64_t row) const {
    return form_ == Form::kPlain ? parts_[0].Row(channel, row) : untransformed_.Row(0, row % 2);
  }
  void Finish(int64_t channel, int64_t row) {
    if (form_ == Form::kPlain) return;
    float* to[kParts];
    for (int i = 0; i < kParts; ++i) to[i] = parts_[i].Row(channel, row);
    const int64_t images = untransformed_.images();
    if (form_ == Form::kTiles) {
      const float* from = untransformed_.Row(0, row % 2);
      ForTiles(images, [&](int64_t at, int64_t first, auto lanes) {
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
    } else {
      const float* from = untransformed_.Window(0, row % 2);
      ForTiles(images, [&](int64_t at, int64_t first, auto lanes) {
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
  }
  Form form() const { return form_; }
  const Padded& part(int i) const { return parts_[i]; }
  int64_t channels() const { return channels_; }
  int64_t images() const { return parts_[0].images(); }
  int64_t size() const { return parts_[0].size(); }  // of a row of a part

 private:
  // Calls f(place among the tiles, place of the first of the tile, lanes).
  template <typename F>
  void ForTiles(int64_t images, F f) const {
    for (int64_t column = 0; column < width_; column += kTile) {
      ForVectors(images, [&](int64_t i, auto lanes) {
        f(column / kTile * images + i, column * images + i, lanes);
      });
    }
  }

  Form form_;
  int64_t width_, channels_;
  Padded untransformed_;
  std::vector<Padded> parts_;
};

inline thread_local Rows::Memories memory_of_x, memory_of_dy;
inline thread_local Memory memory_of_products;

// A kernel, packed for each part of its input.
class Kernel {
 public:
  // From float[K, K, Cin, Cout]; transposed: flipped, with inputs and outputs exchanged.
  Kernel(const float* kernel, int64_t kernel_size, int64_t in, int64_t out, bool transposed,
         bool winograd) {
    if (!winograd) {
      parts_.emplace_back(kernel, kernel_size, kernel_size, in, out, transposed);
      return;
    }
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
    parts_.reserve(kParts);
    for (int part = 0; part < kParts; ++part) {
      parts_.emplace_back(weights.data() + part * 3 * size, 3, 1, in, out, transposed);
    }
  }
  const Packed& part(int i) const { return parts_[i]; }

 private:
  std::vector<Packed> parts_;
};

// Writes the products of all parts of values begin .. end - 1 of a row, float[Cout, parts, next].
inline void MultiplyParts(const Rows& x, const Kernel& kernel, int64_t row, int64_t begin,
                          int64_t end, int64_t next, float* products) {
  for (int part = 0; part < kParts; ++part) {
    ConvolveRow(x.part(part), kernel.part(part), row, begin, end,
                [&](int64_t f, int64_t start, auto& values) {
                  float* to = products + (f * kParts + part) * next + start - begin;
                  ForValues(values, end - start, [&](int64_t i, auto v) { Store(to + i, v); });
                });
  }
}

// Convolves a row. Calls out(feature, each) for blocks of values, where each(f) calls
// f(position, vector).
template <typename Out>
void Convolve(const Rows& x, const Kernel& kernel, int64_t row, Out out) {
  const int64_t size = x.size(), images = x.images();
  if (x.form() == Form::kPlain) {
    auto block = [&](int64_t f, int64_t start, auto& values) {
      out(f, [&](auto each) {
        ForValues(values, size - start, [&](int64_t i, auto v) { each(start + i, v); });
      });
    };
    ConvolveRow(x.part(0), kernel.part(0), row, 0, size, block);
    return;
  }
  // As many tiles at once as fill whole blocks of vectors, so that the products stay in the cache.
  const int64_t features = kernel.part(0).out();
  const int64_t chunk = std::min<int64_t>(size, std::lcm(images, kVectors * kLanes));
  float* products = memory_of_products.Get(kParts * features * chunk);
  for (int64_t begin = 0; begin < size; begin += chunk) {
    const int64_t end = std::min(size, begin + chunk);
    MultiplyParts(x, kernel, row, begin, end, chunk, products);
    for (int64_t f = 0; f < features; ++f) {
      const float* from = products + f * kParts * chunk;
      out(f, [&](auto each) {
        for (int64_t tile = 0; tile < end - begin; tile += images) {
          ForVectors(images, [&](int64_t i, auto lanes) {
            auto m = [&](int64_t part) { return Load(from + part * chunk + tile + i, lanes); };
            const int64_t to = kTile * (begin + tile) + i;
            const auto m1 = m(1), m2 = m(2), m3 = m(3), m4 = m(4);
            const auto sum = m1 + m2, difference = m1 - m2, sum_2 = m3 + m4, difference_2 = m3 - m4;
            each(to, m(0) + sum + sum_2);
            each(to + images, difference + 2 * difference_2);
            each(to + 2 * images, sum + 4 * sum_2);
            each(to + 3 * images, difference + 8 * difference_2 + m(5));
          });
        }
      });
    }
  }
}

// Number of values in which the gradient of a kernel, float[K, K, Cin, Cout], is added up.
inline int64_t GradientSize(int64_t kernel_size, int64_t in, int64_t out, bool winograd) {
  return (winograd ? 3 * kParts : kernel_size * kernel_size) * in * out;
}

// Adds the gradient of a kernel from rows begin .. end - 1, of x as tiles and dy as windows if they
// are transformed.
inline void AddKernelGradient(const Rows& x, const Rows& dy, int64_t kernel_size, int64_t begin,
                              int64_t end, float* d_kernel) {
  if (x.form() == Form::kPlain) {
    AddKernelGradient(x.part(0), dy.part(0), kernel_size, kernel_size, begin, end, d_kernel);
    return;
  }
  for (int part = 0; part < kParts; ++part, d_kernel += 3 * x.channels() * dy.channels()) {
    AddKernelGradient(dy.part(part), x.part(part), 3, 1, begin, end, d_kernel);
  }
}

// Writes float[K, K, Cin, Cout] from what was added up.
inline void FinishKernelGradient(const float* sums, int64_t kernel_size, int64_t in, int64_t out,
                                 bool winograd, float* d_kernel) {
  if (!winograd) {
    CopyBlocks(sums, kernel_size * kernel_size, in, out, d_kernel);
    return;
  }
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
