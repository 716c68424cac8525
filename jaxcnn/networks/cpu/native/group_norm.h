// Group normalization (arXiv 1803.08494): image after image, of which each stays in the cache.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace jaxcnn {

struct GroupNorm {
  int64_t pixels, channels, groups;
  float epsilon;

  int64_t size() const { return pixels * channels; }  // values of an image
  int64_t width() const { return channels / groups; }
  float count() const { return static_cast<float>(pixels * width()); }  // values of a group
};

// Calls add(offset, lanes, a, b) for all pixels of an image, which adds to two vectors of sums, and
// then writes them: two sums over the pixels for each channel.
template <typename F>
void SumPixels(const GroupNorm& n, float* first, float* second, F add) {
  ForVectors(n.channels, [&](int64_t channel, auto lanes) {
    decltype(Load(first, lanes)) a{}, b{};
    for (int64_t i = channel; i < n.size(); i += n.channels) add(i, channel, lanes, a, b);
    Store(first + channel, a);
    Store(second + channel, b);
  });
}

// Calls f(offset, channel, lanes) for all vectors of an image.
template <typename F>
void EachVector(const GroupNorm& n, F f) {
  for (int64_t pixel = 0; pixel < n.size(); pixel += n.channels) {
    ForVectors(n.channels, [&](int64_t channel, auto lanes) { f(pixel + channel, channel, lanes); });
  }
}

// Means and reciprocal standard deviations of an image, once for each channel.
class Statistics {
 public:
  explicit Statistics(const GroupNorm& n) : mean(n.channels), inverse(n.channels) {}

  void Compute(const GroupNorm& n, const float* x) {
    SumPixels(n, mean.data(), inverse.data(),
              [&](int64_t i, int64_t, auto lanes, auto& sum, auto& squares) {
                const auto v = Load(x + i, lanes);
                sum += v;
                squares += v * v;
              });
    for (int64_t begin = 0; begin < n.channels; begin += n.width()) {
      float sum = 0, squares = 0;
      for (int64_t c = begin; c < begin + n.width(); ++c) {
        sum += mean[c];
        squares += inverse[c];
      }
      const float m = sum / n.count(), rest = squares / n.count() - m * m;
      const float variance = rest < 0 ? 0.0f : rest;  // NaN stays NaN
      std::fill_n(&mean[begin], n.width(), m);
      std::fill_n(&inverse[begin], n.width(), 1 / std::sqrt(variance + n.epsilon));
    }
  }

  std::vector<float> mean, inverse;
};

inline void NormalizeImage(const GroupNorm& n, const float* x, const float* scale,
                           const float* bias, Statistics& of, float* out) {
  of.Compute(n, x);
  std::vector<float> factor(n.channels);
  for (int64_t c = 0; c < n.channels; ++c) factor[c] = of.inverse[c] * scale[c];
  EachVector(n, [&](int64_t i, int64_t c, auto lanes) {
    const auto centred = Load(x + i, lanes) - Load(&of.mean[c], lanes);
    Store(out + i, centred * Load(&factor[c], lanes) + Load(bias + c, lanes));
  });
}

// Writes the gradient of an image and adds to those of scale and bias. The statistics are computed
// again: the image has to be read in any case.
inline void NormalizeImageBackward(const GroupNorm& n, const float* x, const float* scale,
                                   const float* dy, Statistics& of, float* dx, float* d_scale,
                                   float* d_bias) {
  of.Compute(n, x);
  std::vector<float> sums(n.channels), products(n.channels), factor(n.channels);
  SumPixels(n, sums.data(), products.data(),
            [&](int64_t i, int64_t c, auto lanes, auto& sum, auto& product) {
              const auto g = Load(dy + i, lanes);
              sum += g;
              product += g * (Load(x + i, lanes) - Load(&of.mean[c], lanes));
            });
  for (int64_t c = 0; c < n.channels; ++c) {
    d_bias[c] += sums[c];
    d_scale[c] += products[c] * of.inverse[c];
    factor[c] = of.inverse[c] * scale[c];
  }
  // dx = factor dy - (the mean of factor dy) - (x - mean) (the mean of factor dy (x - mean)) /
  // variance, with means over a group.
  for (int64_t begin = 0; begin < n.channels; begin += n.width()) {
    float sum = 0, product = 0;
    for (int64_t c = begin; c < begin + n.width(); ++c) {
      sum += factor[c] * sums[c];
      product += factor[c] * products[c];
    }
    const float inverse = of.inverse[begin];
    std::fill_n(&sums[begin], n.width(), sum / n.count());
    std::fill_n(&products[begin], n.width(), product / n.count() * inverse * inverse);
  }
  EachVector(n, [&](int64_t i, int64_t c, auto lanes) {
    const auto centred = Load(x + i, lanes) - Load(&of.mean[c], lanes);
    Store(dx + i, Load(dy + i, lanes) * Load(&factor[c], lanes) - Load(&sums[c], lanes) -
                      centred * Load(&products[c], lanes));
  });
}

}  // namespace jaxcnn
