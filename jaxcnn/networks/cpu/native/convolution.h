// Convolution of rows of a slice of images, float[C, H, W, N], and its gradient for the kernel.
//
// The W N values of a row are one run of memory: shifted by one pixel, it begins N values later.
// Vectors therefore run over pixels and images alike, and no patches are written. A block of vectors
// and features stays in registers while the products of all channels and taps are added up.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "vectors.h"

namespace jaxcnn {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32, kVectors = 4, kGradients = 8;
#else
constexpr int kRegisters = 16, kVectors = 3, kGradients = 4;
#endif
constexpr int kFeatures = 4;     // of a block
constexpr int64_t kBand = 1024;  // values of a feature whose products are added up in registers

// Memory of a thread, kept from call to call: fresh memory costs more than some layers do.
class Memory {
 public:
  float* Get(int64_t size) {
    if (static_cast<int64_t>(vectors_.size()) * kLanes < size) {
      vectors_.assign((size + kLanes - 1) / kLanes, Vec{});
    }
    return reinterpret_cast<float*>(vectors_.data());
  }
  // Whether it was last used with the same layout, so that the zeros of `Padded` are still there.
  bool Keeps(const std::array<int64_t, 6>& layout) {
    return std::exchange(layout_, layout) == layout;
  }

 private:
  std::vector<Vec> vectors_;  // aligned, unlike floats
  std::array<int64_t, 6> layout_{};
};

// Rows of a slice with zeros around them: float[C, H + 2 rows, W + 2 columns, N]. A window begins
// `above` an output's row and to the `left` of its column.
class Padded {
 public:
  Padded(Memory& memory, int64_t channels, int64_t height, int64_t width, int64_t rows,
         int64_t columns, int64_t above, int64_t left)
      : memory_(memory), channels_(channels), height_(height), width_(width), rows_(rows),
        columns_(columns), above_(above), left_(left) {}
  // Windows that zeros surround evenly.
  Padded(Memory& memory, int64_t channels, int64_t height, int64_t width, int64_t rows,
         int64_t columns)
      : Padded(memory, channels, height, width, rows, columns, rows, columns) {}
  // The same rows with other windows.
  Padded From(int64_t above, int64_t left) const {
    Padded other = *this;
    other.above_ = above;
    other.left_ = left;
    return other;
  }

  // Prepares for slices of so many images. All between rows is zero, a vector at least, so that
  // vectors may reach past a row.
  void Resize(int64_t images) {
    if (images == images_) return;
    images_ = images;
    const int64_t size = width_ * images, left = columns_ * images;
    const int64_t gap = std::max<int64_t>(2 * left, kLanes);
    stride_ = (size + gap + kLanes - 1) / kLanes * kLanes;
    const int64_t rows = height_ + 2 * rows_, end = channels_ * rows * stride_;
    data_ = memory_.Get(end + stride_);
    if (memory_.Keeps({channels_, height_, width_, rows_, columns_, images})) return;
    for (int64_t i = 0; i < channels_ * rows; ++i) {
      float* row = data_ + i * stride_;
      const int64_t place = i % rows - rows_;
      const bool inside = 0 <= place && place < height_;
      std::fill(row, row + (inside ? left : stride_), 0.0f);
      if (inside) std::fill(row + left + size, row + stride_, 0.0f);
    }
    std::fill(data_ + end, data_ + end + stride_, 0.0f);
  }
  float* Row(int64_t channel, int64_t row) const {
    return data_ + (channel * (height_ + 2 * rows_) + row + rows_) * stride_ + columns_ * images_;
  }
  // Where the window of a row's first output begins.
  const float* Window(int64_t channel, int64_t row) const {
    return Row(channel, row - above_) - left_ * images_;
  }
  int64_t images() const { return images_; }
  int64_t channels() const { return channels_; }
  int64_t size() const { return width_ * images_; }  // of a row
  int64_t stride() const { return stride_; }         // from row to row

 private:
  Memory& memory_;
  int64_t channels_, height_, width_, rows_, columns_, above_, left_;
  int64_t images_ = 0, stride_ = 0;
  float* data_ = nullptr;
};

// A kernel in blocks of features, float[Cout / 4, Cin, KH, KW, 4], the last block shorter.
class Packed {
 public:
  // From float[KH, KW, Cin, Cout]; transposed: flipped, with inputs and outputs exchanged.
  Packed(const float* kernel, int64_t rows, int64_t columns, int64_t in, int64_t out,
         bool transposed)
      : rows_(rows), columns_(columns), in_(transposed ? out : in), out_(transposed ? in : out) {
    const int64_t taps = rows * columns;
    const int64_t next_o = transposed ? out : 1, next_i = transposed ? 1 : out;
    data_.resize(in * out * taps);
    float* to = data_.data();
    for (int64_t first = 0; first < out_; first += kFeatures) {
      const int64_t last = std::min<int64_t>(first + kFeatures, out_);
      for (int64_t i = 0; i < in_; ++i) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const float* from = kernel + (transposed ? taps - 1 - tap : tap) * in * out + i * next_i;
          for (int64_t o = first; o < last; ++o) *to++ = from[o * next_o];
        }
      }
    }
  }
  const float* Block(int64_t first) const { return data_.data() + first * in_ * rows_ * columns_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t in() const { return in_; }
  int64_t out() const { return out_; }

 private:
  int64_t rows_, columns_, in_, out_;
  std::vector<float> data_;
};

// Computes G blocks of F features of V vectors of a row, which begin at `start`.
template <int G, int F, int V, typename Out>
inline void ConvolveBlock(const Padded& x, const Packed& kernel, int64_t first, int64_t row,
                          int64_t start, Out out) {
  const int64_t rows = kernel.rows(), columns = kernel.columns(), images = x.images();
  const int64_t block = kernel.in() * rows * columns * F;
  const float* weights = kernel.Block(first);
  Vec sums[G][F][V];
  for (auto& group : sums) for (auto& feature : group) for (Vec& sum : feature) sum = Vec{};
  for (int64_t channel = 0; channel < kernel.in(); ++channel) {
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = x.Window(channel, row + i) + start;
      for (int64_t j = 0; j < columns; ++j, from += images, weights += F) {
        Vec values[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) values[v] = LoadOnce(from + v * kLanes);
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) {
#pragma GCC unroll 8
          for (int f = 0; f < F; ++f) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sums[g][f][v] += weights[g * block + f] * values[v];
          }
        }
      }
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int f = 0; f < F; ++f) {
      // A copy: sums whose address is taken would be stored after each product.
      Vec values[V];
      std::copy_n(sums[g][f], V, values);
      out(first + g * F + f, start, values);
    }
  }
}

// Computes all features of V vectors. The fewer vectors, the more features keep the processor busy.
template <int V, typename Out>
inline void ConvolveColumns(const Padded& x, const Packed& kernel, int64_t row, int64_t start,
                            Out out) {
  constexpr int kGroups = kVectors / V;
  int64_t first = 0;
  for (; first + kGroups * kFeatures <= kernel.out(); first += kGroups * kFeatures) {
    ConvolveBlock<kGroups, kFeatures, V>(x, kernel, first, row, start, out);
  }
  for (; kGroups > 1 && first + kFeatures <= kernel.out(); first += kFeatures) {
    ConvolveBlock<1, kFeatures, V>(x, kernel, first, row, start, out);
  }
  switch (kernel.out() - first) {
    case 1: return ConvolveBlock<1, 1, V>(x, kernel, first, row, start, out);
    case 2: return ConvolveBlock<1, 2, V>(x, kernel, first, row, start, out);
    case 3: return ConvolveBlock<1, 3, V>(x, kernel, first, row, start, out);
  }
}

// Convolves values begin .. end - 1 of a row: calls out(feature, start, vectors) for its blocks.
template <typename Out>
void ConvolveRow(const Padded& x, const Packed& kernel, int64_t row, int64_t begin, int64_t end,
                 Out out) {
  int64_t left = (end - begin + kLanes - 1) / kLanes;
  for (int64_t start = begin; left > 0;) {
    const int64_t blocks = (left + kVectors - 1) / kVectors, vectors = (left + blocks - 1) / blocks;
    switch (vectors) {
      case 1: ConvolveColumns<1>(x, kernel, row, start, out); break;
      case 2: ConvolveColumns<2>(x, kernel, row, start, out); break;
      case 3: ConvolveColumns<3>(x, kernel, row, start, out); break;
      default: ConvolveColumns<kVectors>(x, kernel, row, start, out);
    }
    start += vectors * kLanes;
    left -= vectors;
  }
}

// The gradient of a kernel is added up in blocks of features, float[blocks, Cin, taps, features].
// Calls f(first feature, number of features) for each.
template <typename F>
inline void ForGradients(int64_t features, int64_t taps, F f) {
  for (int64_t first = 0, count = 0; first < features; first += count) {
    const int64_t left = features - first;
    // With five taps in a row, as many features would not fit the registers.
    count = left >= kGradients && taps < 25 ? kGradients : left >= 4 ? 4 : 1;
    f(first, count);
  }
}

// Adds the gradient of F features and T taps, from rows begin .. end - 1 of dy. The values of the
// first tap begin at `from`, those of the others `step` further each. The last vector may reach past
// a row: there dy is zero.
template <int F, int T>
inline void GradientBlock(const float* from, int64_t step, int64_t stride, const Padded& dy,
                          int64_t feature, int64_t begin, int64_t end, float* d_kernel) {
  const int64_t size = dy.size(), next = dy.Row(1, 0) - dy.Row(0, 0);
  Vec sums[T * F];
  for (Vec& sum : sums) sum = Vec{};
  for (int64_t row = begin; row < end; ++row, from += stride) {
    const float* gradient = dy.Row(feature, row);
    for (int64_t start = 0; start < size; start += kLanes) {
      Vec values[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) values[t] = LoadOnce(from + start + t * step);
#pragma GCC unroll 8
      for (int f = 0; f < F; ++f) {
        const Vec g = LoadOnce(gradient + f * next + start);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sums[t * F + f] += g * values[t];
      }
    }
  }
  AddLanes<T * F>(sums, d_kernel);
}

// Adds the gradient of F features for all channels and taps.
template <int F>
inline void GradientBlocks(const Padded& x, const Padded& dy, int64_t rows, int64_t columns,
                           int64_t feature, int64_t begin, int64_t end, float* d_kernel) {
  // The taps of a block are those of a row of the kernel, or of its only column.
  const bool wide = columns > 1;
  const int64_t lines = wide ? rows : 1, taps = wide ? columns : rows;
  const int64_t step = wide ? x.images() : x.stride();
  for (int64_t channel = 0; channel < x.channels(); ++channel) {
    for (int64_t line = 0; line < lines; ++line) {
      const float* from = x.Window(channel, begin + line);
      auto add = [&](auto block, int64_t count) {
        block(from, step, x.stride(), dy, feature, begin, end, d_kernel);
        from += count * step;
        d_kernel += count * F;
      };
      int64_t left = taps;
      if constexpr (5 * F + 5 + 1 <= kRegisters) {  // sums, values and one of dy
        for (; left >= 5; left -= 5) add(GradientBlock<F, 5>, 5);
      }
      for (; left >= 3; left -= 3) add(GradientBlock<F, 3>, 3);
      for (; left >= 2; left -= 2) add(GradientBlock<F, 2>, 2);
      for (; left >= 1; left -= 1) add(GradientBlock<F, 1>, 1);
    }
  }
}

// Adds the gradient of a kernel, in blocks, from rows begin .. end - 1.
inline void AddKernelGradient(const Padded& x, const Padded& dy, int64_t rows, int64_t columns,
                              int64_t begin, int64_t end, float* d_kernel) {
  ForGradients(dy.channels(), rows * columns, [&](int64_t first, int64_t count) {
    float* to = d_kernel + first * x.channels() * rows * columns;
    switch (count) {
      case 1: return GradientBlocks<1>(x, dy, rows, columns, first, begin, end, to);
      case 4: return GradientBlocks<4>(x, dy, rows, columns, first, begin, end, to);
      default: return GradientBlocks<kGradients>(x, dy, rows, columns, first, begin, end, to);
    }
  });
}

// Copies blocks to float[taps, Cin, Cout].
inline void CopyBlocks(const float* blocks, int64_t taps, int64_t channels, int64_t features,
                       float* d_kernel) {
  ForGradients(features, taps, [&](int64_t first, int64_t count) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t tap = 0; tap < taps; ++tap, blocks += count) {
        std::copy_n(blocks, count, d_kernel + (tap * channels + channel) * features + first);
      }
    }
  });
}

}  // namespace jaxcnn
