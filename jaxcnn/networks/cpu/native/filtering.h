// Convolution of a slice of images, directly or, with windows of three columns, by fewer products.
//
// By Winograd's minimal filtering F(2, 3) (https://arxiv.org/abs/1509.09308) two neighbouring
// outputs take four products instead of six. Of the inputs d and a row of the kernel g:
//
//   m0 = (d0 - d2) g0                       y0 = m0 + m1 + m2
//   m1 = (d1 + d2) (g0 + g1 + g2) / 2       y1 = m1 - m2 + m3
//   m2 = (d2 - d1) (g0 - g1 + g2) / 2
//   m3 = (d3 - d1) g2
//
// Each m is a part of its own: a convolution with a window of one column and rows of half the width.
// The convolution is symmetric in x and dy, if its kernel is turned. So the gradient of the kernel
// takes the windows of dy, which that of x needs anyway, and the pairs of x:
//
//   d(g0 + g1 + g2) / 2 = sum of (dy1 + dy2) (x0 + x1), and so on.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "convolution.h"
#include "vectors.h"

namespace jaxcnn {

constexpr int kParts = 4;

enum class Form {
  kPlain,    // one part, the padded rows
  kWindows,  // the four sums of each window of four columns: d0 - d2, d1 + d2, d2 - d1, d3 - d1
  kPairs     // the four sums of each pair of columns: x0, x0 + x1, x0 - x1, x1
};

// Whether filtering pays: the sums cost something, too.
inline bool IsFiltered(int64_t taps, int64_t width, int64_t in, int64_t out) {
  return taps == 3 && width % 2 == 0 && in >= 8 && out >= 8;
}

// Rows of a slice, in the form in which they are multiplied.
class Rows {
 public:
  // With the memory of each part, and of the rows that are being prepared.
  using Memories = Memory[kParts + 1];

  Rows(Form form, Memories& memories, int64_t channels, int64_t height, int64_t width,
       int64_t border)
      : form_(form), width_(width), channels_(channels),
        line_(memories[kParts], channels, 2, width, 0, 1) {
    const bool plain = form == Form::kPlain;
    for (int i = 0; i < (plain ? 1 : kParts); ++i) {
      parts_.emplace_back(memories[i], channels, height, plain ? width : width / 2, border,
                          plain ? border : 0);
    }
  }
  void Resize(int64_t images) {
    for (Padded& part : parts_) part.Resize(images);
    if (form_ != Form::kPlain) line_.Resize(images);
  }
  // Where a row is to be written. Two neighbouring rows may be, before they are finished.
  float* Row(int64_t channel, int64_t row) const {
    return form_ == Form::kPlain ? parts_[0].Row(channel, row) : line_.Row(channel, row % 2);
  }
  // To be called when all channels of a row are written.
  void Finish(int64_t row) const {
    if (form_ == Form::kPlain) return;
    const int64_t images = line_.images();
    for (int64_t channel = 0; channel < channels_; ++channel) {
      float* to[kParts];
      for (int i = 0; i < kParts; ++i) to[i] = parts_[i].Row(channel, row);
      if (form_ == Form::kPairs) {
        const float* from = line_.Row(channel, row % 2);
        ForPairs(images, [&](int64_t at, int64_t first, auto lanes) {
          const auto x0 = Load(from + first, lanes), x1 = Load(from + first + images, lanes);
          Store(to[0] + at, x0);
          Store(to[1] + at, x0 + x1);
          Store(to[2] + at, x0 - x1);
          Store(to[3] + at, x1);
        });
      } else {
        const float* from = line_.Window(channel, row % 2);
        ForPairs(images, [&](int64_t at, int64_t first, auto lanes) {
          const float* window = from + first;
          const auto d0 = Load(window, lanes), d1 = Load(window + images, lanes);
          const auto d2 = Load(window + 2 * images, lanes), d3 = Load(window + 3 * images, lanes);
          Store(to[0] + at, d0 - d2);
          Store(to[1] + at, d1 + d2);
          Store(to[2] + at, d2 - d1);
          Store(to[3] + at, d3 - d1);
        });
      }
    }
  }
  const Padded& part(int i) const { return parts_[i]; }
  int64_t channels() const { return channels_; }

 private:
  // Calls f(place among the pairs, place of the first of the pair, lanes).
  template <typename F>
  void ForPairs(int64_t images, F f) const {
    for (int64_t column = 0; column < width_; column += 2) {
      ForVectors(images, [&](int64_t i, auto lanes) {
        f(column / 2 * images + i, column * images + i, lanes);
      });
    }
  }

  Form form_;
  int64_t width_, channels_;
  Padded line_;
  std::vector<Padded> parts_;
};

inline thread_local Rows::Memories memory_of_x, memory_of_dy;
inline thread_local Memory memory_of_products;

// A kernel, packed for the parts of its input.
class Kernel {
 public:
  // From float[K, K, Cin, Cout]; transposed: turned, with inputs and outputs exchanged.
  Kernel(const float* kernel, int64_t taps, int64_t in, int64_t out, bool transposed,
         bool filtered) {
    if (!filtered) {
      parts_.emplace_back(kernel, taps, taps, in, out, transposed);
      return;
    }
    const int64_t size = in * out;
    parts_.reserve(kParts);
    std::vector<float> weights(kParts * 3 * size);  // float[parts, 3, 1, Cin, Cout]
    for (int64_t row = 0; row < 3; ++row) {
      const float *g0 = kernel + row * 3 * size, *g1 = g0 + size, *g2 = g1 + size;
      if (transposed) std::swap(g0, g2);
      float* to = weights.data() + row * size;
      for (int64_t i = 0; i < size; ++i) {
        const float outer = (g0[i] + g2[i]) / 2, middle = g1[i] / 2;
        to[i] = g0[i];
        to[3 * size + i] = outer + middle;
        to[6 * size + i] = outer - middle;
        to[9 * size + i] = g2[i];
      }
    }
    for (int part = 0; part < kParts; ++part) {
      parts_.emplace_back(weights.data() + part * 3 * size, 3, 1, in, out, transposed);
    }
  }
  const Packed& part(int i) const { return parts_[i]; }
  bool filtered() const { return parts_.size() > 1; }

 private:
  std::vector<Packed> parts_;
};

// Convolves a row, of windows if the kernel is filtered. Calls out(feature, each) for blocks of
// values, where each(f) calls f(position, vector).
template <typename Out>
void Convolve(const Rows& x, const Kernel& kernel, int64_t row, Out out) {
  const int64_t size = x.part(0).size(), images = x.part(0).images();
  if (!kernel.filtered()) {
    ConvolveRow(x.part(0), kernel.part(0), row, 0, size, [&](int64_t f, int64_t start, auto& values) {
      out(f, [&](auto each) {
        ForValues(values, size - start, [&](int64_t i, auto v) { each(start + i, v); });
      });
    });
    return;
  }
  // As many pairs at once as fill whole blocks of vectors, so that the products stay in the cache.
  const int64_t features = kernel.part(0).out();
  const int64_t chunk = std::min<int64_t>(size, std::lcm(images, kVectors * kLanes));
  float* products = memory_of_products.Get(kParts * features * chunk);
  for (int64_t begin = 0; begin < size; begin += chunk) {
    const int64_t end = std::min(size, begin + chunk);
    for (int part = 0; part < kParts; ++part) {
      ConvolveRow(x.part(part), kernel.part(part), row, begin, end,
                  [&](int64_t f, int64_t start, auto& values) {
                    float* to = products + (f * kParts + part) * chunk + start - begin;
                    ForValues(values, end - start, [&](int64_t i, auto v) { Store(to + i, v); });
                  });
    }
    for (int64_t f = 0; f < features; ++f) {
      const float* m = products + f * kParts * chunk;
      out(f, [&](auto each) {
        for (int64_t pair = begin; pair < end; pair += images) {
          ForVectors(images, [&](int64_t i, auto lanes) {
            const float* from = m + pair - begin + i;
            const auto m1 = Load(from + chunk, lanes), m2 = Load(from + 2 * chunk, lanes);
            each(2 * pair + i, Load(from, lanes) + m1 + m2);
            each(2 * pair + images + i, m1 - m2 + Load(from + 3 * chunk, lanes));
          });
        }
      });
    }
  }
}

// Number of values in which the gradient of a kernel, float[K, K, Cin, Cout], is added up.
inline int64_t GradientSize(int64_t taps, int64_t in, int64_t out, bool filtered) {
  return (filtered ? 3 * kParts : taps * taps) * in * out;
}

// Adds the gradient of a kernel from rows begin .. end - 1: of padded rows, or of pairs of x and
// windows of dy.
inline void AddKernelGradient(const Rows& x, const Rows& dy, int64_t taps, bool filtered,
                              int64_t begin, int64_t end, float* d_kernel) {
  if (!filtered) {
    AddKernelGradient(x.part(0), dy.part(0), taps, taps, begin, end, d_kernel);
    return;
  }
  for (int part = 0; part < kParts; ++part, d_kernel += 3 * x.channels() * dy.channels()) {
    AddKernelGradient(dy.part(part), x.part(part), 3, 1, begin, end, d_kernel);
  }
}

// Writes float[K, K, Cin, Cout] from what was added up.
inline void FinishKernelGradient(const float* sums, int64_t taps, int64_t in, int64_t out,
                                 bool filtered, float* d_kernel) {
  if (!filtered) {
    CopyBlocks(sums, taps * taps, in, out, d_kernel);
    return;
  }
  const int64_t size = in * out;
  std::vector<float> parts(3 * kParts * size);  // float[parts, 3, Cout, Cin], of the turned kernel
  for (int part = 0; part < kParts; ++part) {
    CopyBlocks(sums + part * 3 * size, 3, out, in, parts.data() + part * 3 * size);
  }
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t o = 0; o < out; ++o) {
        const float* m = parts.data() + (row * out + o) * in + i;
        const float m1 = m[3 * size] / 2, m2 = m[6 * size] / 2;
        float* to = d_kernel + (2 - row) * 3 * size + i * out + o;
        to[2 * size] = m[0] + m1 + m2;
        to[size] = m1 - m2;
        to[0] = m1 + m2 + m[9 * size];
      }
    }
  }
}

}  // namespace jaxcnn
