// Direct convolution of a slice of images, float[C, H, W, N], and its gradient for the kernel.
//
// The W N values of a row are one run of memory: shifted by one pixel, it begins N values later.
// Vectors therefore run over pixels and images alike, and no patches are written. A block of vectors
// and features stays in registers while the products of all channels and taps are added up.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace jaxcnn {

#if defined(__AVX512F__)  // with 32 registers of 16 lanes
constexpr int kVectors = 4, kGradients = 8;
#elif defined(__AVX__)  // with 16 of 8
constexpr int kVectors = 3, kGradients = 4;
#else
constexpr int kVectors = 4, kGradients = 4;
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

 private:
  std::vector<Vec> vectors_;  // aligned, unlike floats
};

inline thread_local Memory memory_of_x, memory_of_dy, memory_of_rows;

// Rows of a slice with zeros around them: float[C, H + 2 border, W + 2 border, N].
class Padded {
 public:
  Padded(Memory& memory, int64_t channels, int64_t height, int64_t width, int64_t border)
      : memory_(memory), channels_(channels), height_(height), width_(width), border_(border) {}

  // Prepares for slices of so many images. All between rows is zero, a vector at least.
  void Resize(int64_t images) {
    if (images == images_) return;
    images_ = images;
    const int64_t size = width_ * images, left = border_ * images;
    const int64_t gap = std::max<int64_t>(2 * left, kLanes);
    stride_ = (size + gap + kLanes - 1) / kLanes * kLanes;
    const int64_t rows = height_ + 2 * border_, end = channels_ * rows * stride_;
    data_ = memory_.Get(end + 2 * stride_ + 2 * kVectors * kLanes);
    for (int64_t i = 0; i < channels_ * rows; ++i) {
      float* row = data_ + i * stride_;
      const int64_t place = i % rows - border_;
      const bool inside = 0 <= place && place < height_;
      std::fill(row, row + (inside ? left : stride_), 0.0f);
      if (inside) std::fill(row + left + size, row + stride_, 0.0f);
    }
    std::fill(data_ + end, data_ + end + stride_, 0.0f);
  }
  float* Row(int64_t channel, int64_t row) const {
    return data_ + (channel * (height_ + 2 * border_) + row + border_) * stride_ + border_ * images_;
  }
  // Where the window of a row's first output begins, at that row of the window.
  const float* Window(int64_t channel, int64_t row) const {
    return Row(channel, row) - border_ * images_;
  }
  int64_t images() const { return images_; }
  int64_t channels() const { return channels_; }

 private:
  Memory& memory_;
  int64_t channels_, height_, width_, border_;
  int64_t images_ = 0, stride_ = 0;
  float* data_ = nullptr;
};

// A kernel in blocks of features, float[Cout / 4, Cin, K, K, 4], the last block shorter.
class Packed {
 public:
  // From float[K, K, Cin, Cout]; transposed: turned, with inputs and outputs exchanged.
  Packed(const float* kernel, int64_t size, int64_t in, int64_t out, bool transposed)
      : size_(size), in_(transposed ? out : in), out_(transposed ? in : out) {
    for (int64_t first = 0; first < out_; first += kFeatures) {
      const int64_t last = std::min<int64_t>(first + kFeatures, out_);
      for (int64_t i = 0; i < in_; ++i) {
        for (int64_t tap = 0; tap < size * size; ++tap) {
          for (int64_t o = first; o < last; ++o) {
            data_.push_back(transposed ? kernel[((size * size - 1 - tap) * in + o) * out + i]
                                       : kernel[(tap * in + i) * out + o]);
          }
        }
      }
    }
  }
  const float* Block(int64_t first) const { return data_.data() + first * in_ * size_ * size_; }
  int64_t size() const { return size_; }
  int64_t in() const { return in_; }
  int64_t out() const { return out_; }

 private:
  int64_t size_, in_, out_;
  std::vector<float> data_;
};

// Computes G blocks of F features of V vectors of a row, which begin at `start`.
template <int G, int F, int V, typename Out>
inline void ConvolveBlock(const Padded& x, const Packed& kernel, int64_t first, int64_t row,
                          int64_t start, Out out) {
  const int64_t taps = kernel.size(), images = x.images(), block = kernel.in() * taps * taps * F;
  const float* weights = kernel.Block(first);
  Vec sums[G][F][V];
  for (auto& group : sums) for (auto& feature : group) for (Vec& sum : feature) sum = Vec{};
  for (int64_t channel = 0; channel < kernel.in(); ++channel) {
    for (int64_t i = 0; i < taps; ++i) {
      const float* from = x.Window(channel, row + i - taps / 2) + start;
      for (int64_t j = 0; j < taps; ++j, from += images, weights += F) {
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
    for (int f = 0; f < F; ++f) out(first + g * F + f, start, sums[g][f]);
  }
}

// Computes all features of V vectors. The fewer vectors, the more features keep the processor busy.
template <int V, typename Out>
inline void ConvolveColumns(const Padded& x, const Packed& kernel, int64_t row, int64_t start,
                            Out out) {
  constexpr int kGroups = V == 1 ? 4 : V == 2 ? 2 : 1;
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

// Convolves a row of `size` values: calls out(feature, start, vectors) for its blocks.
template <typename Out>
void ConvolveRow(const Padded& x, const Packed& kernel, int64_t row, int64_t size, Out out) {
  int64_t left = (size + kLanes - 1) / kLanes;
  for (int64_t start = 0; left > 0;) {
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

// The gradient of a kernel is added up in blocks of features, float[blocks, Cin, K, K, features].
// Calls f(first feature, number of features) for each.
template <typename F>
inline void ForGradients(int64_t features, int64_t taps, F f) {
  for (int64_t first = 0, count = 0; first < features; first += count) {
    const int64_t left = features - first;
    count = left >= kGradients && taps < 5 ? kGradients : left >= 4 ? 4 : 1;
    f(first, count);
  }
}

// Adds the gradient of F features and T taps of a row of the kernel, from rows begin .. end - 1.
template <int F, int T>
inline void GradientBlock(const Padded& x, const Padded& dy, int64_t taps, int64_t feature,
                          int64_t channel, int64_t i, int64_t j, int64_t begin, int64_t end,
                          int64_t size, float* d_kernel) {
  const int64_t images = x.images(), next = dy.Row(1, 0) - dy.Row(0, 0);
  Vec sums[T * F];
  for (Vec& sum : sums) sum = Vec{};
  for (int64_t row = begin; row < end; ++row) {
    const float* from = x.Window(channel, row + i - taps / 2) + j * images;
    const float* gradient = dy.Row(feature, row);
    for (int64_t start = 0; start < size; start += kLanes) {
      Vec values[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) values[t] = LoadOnce(from + start + t * images);
#pragma GCC unroll 8
      for (int f = 0; f < F; ++f) {
        const Vec g = LoadOnce(gradient + f * next + start);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sums[t * F + f] += g * values[t];
      }
    }
  }
  AddLanes<T * F>(sums, d_kernel + feature * x.channels() * taps * taps +
                            ((channel * taps + i) * taps + j) * F);
}

template <int F>
inline void GradientRows(const Padded& x, const Padded& dy, int64_t taps, int64_t feature,
                         int64_t begin, int64_t end, int64_t size, float* d_kernel) {
  for (int64_t channel = 0; channel < x.channels(); ++channel) {
    for (int64_t i = 0; i < taps; ++i) {
      auto add = [&](auto block, int64_t j) {
        block(x, dy, taps, feature, channel, i, j, begin, end, size, d_kernel);
      };
      int64_t j = 0;
      if constexpr (F <= 4) {
        for (; taps - j >= 5; j += 5) add(GradientBlock<F, 5>, j);
      }
      for (; taps - j >= 3; j += 3) add(GradientBlock<F, 3>, j);
      for (; taps - j >= 1; j += 1) add(GradientBlock<F, 1>, j);
    }
  }
}

// Adds the gradient of a kernel, in blocks, from rows begin .. end - 1.
inline void AddKernelGradient(const Padded& x, const Padded& dy, int64_t taps, int64_t begin,
                              int64_t end, int64_t size, float* d_kernel) {
  ForGradients(dy.channels(), taps, [&](int64_t first, int64_t count) {
    switch (count) {
      case 1: return GradientRows<1>(x, dy, taps, first, begin, end, size, d_kernel);
      case 4: return GradientRows<4>(x, dy, taps, first, begin, end, size, d_kernel);
      default: return GradientRows<kGradients>(x, dy, taps, first, begin, end, size, d_kernel);
    }
  });
}

// Adds blocks to float[K, K, Cin, Cout].
inline void AddBlocks(const float* blocks, int64_t taps, int64_t channels, int64_t features,
                      float* d_kernel) {
  ForGradients(features, taps, [&](int64_t first, int64_t count) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t tap = 0; tap < taps * taps; ++tap) {
        float* to = d_kernel + (tap * channels + channel) * features + first;
        for (int64_t f = 0; f < count; ++f) to[f] += *blocks++;
      }
    }
  });
}

}  // namespace jaxcnn
