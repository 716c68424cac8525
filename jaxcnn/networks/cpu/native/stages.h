// A stage of a slice of images, row by row: a row passes through all layers while it lies in the
// caches. What the backward pass needs of the layers before the convolution, it computes again.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "filtering.h"
#include "vectors.h"

namespace jaxcnn {

inline thread_local Memory memory_of_rows;

// An array of images, in slices or as float[B, H, W, C].
struct Images {
  float* data;
  int64_t height, width, channels;
  bool sliced;

  // Where a row of a slice lies if it is sliced.
  float* Row(int64_t first, int64_t images, int64_t channel, int64_t row) const {
    return data + first * height * width * channels + (row * channels + channel) * width * images;
  }
  float* Pixels(int64_t image, int64_t row) const {
    return data + (image * height + row) * width * channels;
  }
  // Copies a row of all channels, float[C, W, N], from float[B, H, W, C].
  void Gather(int64_t first, int64_t images, int64_t row, float* to) const {
    const int64_t image = height * width * channels;
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t column = 0; column < width; ++column) {
        const float* from = Pixels(first, row) + column * channels + channel;
        for (int64_t n = 0; n < images; ++n) *to++ = from[n * image];
      }
    }
  }
  // The other way; the rows of the channels are `next` values apart.
  void Scatter(int64_t first, int64_t images, int64_t row, const float* from, int64_t next) const {
    for (int64_t n = 0; n < images; ++n) {
      float* to = Pixels(first + n, row);
      for (int64_t column = 0; column < width; ++column) {
        for (int64_t channel = 0; channel < channels; ++channel) {
          *to++ = from[channel * next + column * images + n];
        }
      }
    }
  }
  // The row of a channel: where it lies, or in `gathered`.
  const float* Read(int64_t first, int64_t images, int64_t channel, int64_t row,
                    const float* gathered) const {
    return sliced ? Row(first, images, channel, row) : gathered + channel * width * images;
  }
};

// What is around the convolution, and how images come and go; the attributes of `Stage` in Python.
struct Layers {
  bool relu_before, average_before, relu_after, max_after, sliced_in, sliced_out;
};

struct Stage : Layers {
  int64_t taps;
  Images x, y, out;  // y before pooling
  const float *kernel, *bias, *scale, *shift, *sign;
  bool kept;  // y is written

  int64_t height() const { return y.height; }
  int64_t width() const { return y.width; }
  bool filtered() const { return IsFiltered(taps, y.width, x.channels, y.channels); }
};

// The layers before the convolution: row(s) of x to a row of what is convolved.
inline void Prepare(const Stage& s, int64_t first, int64_t images, int64_t row, float* gathered,
             const Rows& to_rows) {
  const int64_t size = s.width() * images, width = s.width();
  const int64_t sources = s.average_before ? 2 : 1;
  const bool relu = s.relu_before;
  for (int64_t i = 0; i < sources; ++i) {
    if (!s.x.sliced) {
      s.x.Gather(first, images, sources * row + i, gathered + i * s.x.channels * s.x.width * images);
    }
  }
  for (int64_t channel = 0; channel < s.x.channels; ++channel) {
    const float scale = s.scale ? s.scale[channel] : 1.0f;
    const float shift = s.scale ? s.shift[channel] : 0.0f;
    auto layers = [=](auto v) {
      v = v * scale + shift;
      return relu ? Relu(v) : v;
    };
    float* to = to_rows.Row(channel, row);
    const float* top = s.x.Read(first, images, channel, sources * row, gathered);
    if (!s.average_before) {
      ForVectors(size, [&](int64_t i, auto lanes) { Store(to + i, layers(Load(top + i, lanes))); });
      continue;
    }
    const float* bottom = s.x.Read(first, images, channel, 2 * row + 1,
                                   gathered + s.x.channels * s.x.width * images);
    for (int64_t column = 0; column < width; ++column) {
      const int64_t left = 2 * column * images, right = left + images;
      ForVectors(images, [&](int64_t i, auto lanes) {
        const auto sum = layers(Load(top + left + i, lanes)) + layers(Load(top + right + i, lanes)) +
                        layers(Load(bottom + left + i, lanes)) + layers(Load(bottom + right + i, lanes));
        Store(to + column * images + i, 0.25f * sum);
      });
    }
  }
  to_rows.Finish(row);
}

// The transpose of `Prepare`: adds to d_scale and d_shift, and writes rows of dx.
inline void PrepareTranspose(const Stage& s, int64_t first, int64_t images, int64_t row,
                      const float* gradient, float* gathered, const Images& dx, Sums& d_scale,
                      Sums& d_shift) {
  const int64_t size = s.width() * images;
  const int64_t width = s.width(), sources = s.average_before ? 2 : 1;
  const bool relu = s.relu_before;
  for (int64_t k = 0; k < sources; ++k) {
    if (!s.x.sliced) s.x.Gather(first, images, sources * row + k, gathered);
    for (int64_t channel = 0; channel < s.x.channels; ++channel) {
      const float scale = s.scale ? s.scale[channel] : 1.0f;
      const float shift = s.scale ? s.shift[channel] : 0.0f;
      const float* x = s.x.Read(first, images, channel, sources * row + k, gathered);
      const float* g = gradient + channel * size;
      float* to = dx.sliced ? dx.Row(first, images, channel, sources * row + k)
                            : gathered + channel * s.x.width * images;
      Sum<kLanes> scale_sum, shift_sum;
      auto layers = [&](int64_t at, auto d, auto lanes) {
        const auto v = Load(x + at, lanes);
        if (relu) d = v * scale + shift > 0 ? d : decltype(d){};
        scale_sum.Add(d * v);
        shift_sum.Add(d);
        Store(to + at, d * scale);
      };
      if (sources == 1) {
        ForVectors(size, [&](int64_t i, auto lanes) { layers(i, Load(g + i, lanes), lanes); });
      } else {
        for (int64_t column = 0; column < width; ++column) {
          ForVectors(images, [&](int64_t i, auto lanes) {
            const auto d = 0.25f * Load(g + column * images + i, lanes);
            layers(2 * column * images + i, d, lanes);
            layers((2 * column + 1) * images + i, d, lanes);
          });
        }
      }
      if (s.scale) {
        d_scale.Add(channel, scale_sum);
        d_shift.Add(channel, shift_sum);
      }
    }
    if (!dx.sliced) dx.Scatter(first, images, sources * row + k, gathered, s.x.width * images);
  }
}

// The four corners of a square, times the sign of their channel.
template <typename V>
struct Corners {
  V at[4], largest;
};

template <typename L>
inline auto LoadCorners(const float* top, const float* bottom, int64_t images, float sign, L lanes) {
  const auto a = Load(top, lanes) * sign, b = Load(top + images, lanes) * sign;
  const auto c = Load(bottom, lanes) * sign, d = Load(bottom + images, lanes) * sign;
  return Corners<typename L::Vector>{{a, b, c, d}, Largest(Largest(a, b), Largest(c, d))};
}

inline void ForwardSlice(const Stage& s, int64_t first, int64_t images, const Kernel& kernel,
                  Rows& input, Sums* sums) {
  const int64_t features = s.y.channels, size = s.width() * images, border = s.taps / 2;
  input.Resize(images);
  const int64_t input_row = 2 * s.x.channels * s.x.width * images;
  float* gathered = memory_of_rows.Get(input_row + 3 * features * size);
  float* rows = gathered + input_row;
  float* pooled = rows + 2 * features * size;
  int64_t prepared = 0;
  for (int64_t row = 0; row < s.height(); ++row) {
    for (; prepared < std::min(s.height(), row + border + 1); ++prepared) {
      Prepare(s, first, images, prepared, gathered, input);
    }
    auto at = [&](int64_t feature, int64_t row) {
      return s.kept ? s.y.Row(first, images, feature, row)
                    : rows + ((row % 2) * features + feature) * size;
    };
    Convolve(input, kernel, row, [&, relu = s.relu_after](int64_t f, auto each) {
      const float bias = s.bias[f];
      float* to = at(f, row);
      Sum<kLanes> sum, squares;
      each([&](int64_t i, auto v) {
        v += bias;
        if (relu) v = Relu(v);
        Store(to + i, v);
        sum.Add(v);
        squares.Add(v * v);
      });
      if (!sums) return;
      sums[0].Add(f, sum);
      sums[1].Add(f, squares);
    });
    if (!s.max_after) {
      if (!s.out.sliced) s.out.Scatter(first, images, row, at(0, row), at(1, row) - at(0, row));
      continue;
    }
    if (row % 2 == 0) continue;
    for (int64_t f = 0; f < features; ++f) {
      const float sign = s.sign ? s.sign[f] : 1.0f;
      float* to = s.out.sliced ? s.out.Row(first, images, f, row / 2)
                               : pooled + f * s.out.width * images;
      const float *top = at(f, row - 1), *bottom = at(f, row);
      for (int64_t column = 0, columns = s.out.width; column < columns; ++column) {
        ForVectors(images, [&](int64_t i, auto lanes) {
          const int64_t left = 2 * column * images + i;
          const auto c = LoadCorners(top + left, bottom + left, images, sign, lanes);
          Store(to + column * images + i, c.largest * sign);
        });
      }
    }
    if (!s.out.sliced) s.out.Scatter(first, images, row / 2, pooled, s.out.width * images);
  }
}

// What the backward pass of a stage takes and gives beside the stage itself.
struct Gradients {
  Images d_out, dx;  // dx.data is null if nobody wants it
  const float* d_sums;
};

// The layers after the convolution, backwards: row(s) of d_out to row(s) of dy.
inline void AfterTranspose(const Stage& s, const Gradients& g, int64_t first, int64_t images, int64_t row,
                    float* gathered, const Rows& dy, Sums& d_bias) {
  const int64_t size = s.width() * images, features = s.y.channels;
  const int64_t out_row = s.max_after ? row / 2 : row;
  if (!g.d_out.sliced) g.d_out.Gather(first, images, out_row, gathered);
  for (int64_t f = 0; f < features; ++f) {
    const float* d = g.d_out.Read(first, images, f, out_row, gathered);
    const float d_sum = g.d_sums ? g.d_sums[f] : 0.0f;
    const float d_square = g.d_sums ? 2 * g.d_sums[features + f] : 0.0f;
    const float sign = s.sign ? s.sign[f] : 1.0f;
    const bool summed = g.d_sums, relu = s.relu_after;
    const int64_t width = s.out.width;
    Sum<kLanes> bias;
    auto finish = [&](float* to, auto v, auto y) {
      if (summed) v += d_sum + y * d_square;
      if (relu) v = y > 0 ? v : decltype(v){};
      Store(to, v);
      bias.Add(v);
    };
    if (!s.max_after) {
      const float* y = s.kept ? s.y.Row(first, images, f, row) : d;
      ForVectors(size, [&](int64_t i, auto lanes) {
        finish(dy.Row(f, row) + i, Load(d + i, lanes), Load(y + i, lanes));
      });
    } else {
      const float *top = s.y.Row(first, images, f, row), *bottom = s.y.Row(first, images, f, row + 1);
      float* const to[2] = {dy.Row(f, row), dy.Row(f, row + 1)};
      for (int64_t column = 0; column < width; ++column) {
        ForVectors(images, [&](int64_t i, auto lanes) {
          const int64_t left = 2 * column * images + i;
          const auto c = LoadCorners(top + left, bottom + left, images, sign, lanes);
          auto rest = Load(d + column * images + i, lanes);  // for the first of the largest
          for (int k = 0; k < 4; ++k) {
            const auto largest = c.at[k] == c.largest;
            const auto none = decltype(rest){};
            finish(to[k / 2] + left + k % 2 * images, largest ? rest : none, c.at[k] * sign);
            rest = largest ? none : rest;
          }
        });
      }
    }
    d_bias.Add(f, bias);
  }
  for (int64_t i = 0; i < (s.max_after ? 2 : 1); ++i) dy.Finish(row + i);
}

struct TaskGradients {
  std::vector<float> kernel;
  Sums bias, scale, shift;
};

inline void BackwardSlice(const Stage& s, const Gradients& g, int64_t first, int64_t images,
                   const Kernel& transposed, Rows& input, Rows& dy, TaskGradients& sums) {
  const int64_t size = s.width() * images, border = s.taps / 2, height = s.height();
  const bool filtered = transposed.filtered();
  input.Resize(images);
  dy.Resize(images);
  const int64_t input_row = 2 * s.x.channels * s.x.width * images;
  float* gathered = memory_of_rows.Get(input_row + (s.x.channels + s.y.channels) * size);
  float* row_gradient = gathered + input_row;
  float* gathered_out = row_gradient + s.x.channels * size;
  const int64_t step = s.max_after ? 2 : 1;
  int64_t band = std::max<int64_t>(1, kBand / input.part(0).size()), prepared = 0, carried = 0;
  for (int64_t begin = 0; begin < height; begin += band) {
    const int64_t end = std::min(height, begin + band);
    for (; prepared < std::min(height, end + border); ++prepared) {
      Prepare(s, first, images, prepared, gathered, input);
    }
    for (; carried < std::min(height, end + border); carried += step) {
      AfterTranspose(s, g, first, images, carried, gathered_out, dy, sums.bias);
    }
    AddKernelGradient(input, dy, s.taps, filtered, begin, end, sums.kernel.data());
    if (!g.dx.data) continue;
    for (int64_t row = begin; row < end; ++row) {
      Convolve(dy, transposed, row, [&](int64_t channel, auto each) {
        float* to = row_gradient + channel * size;
        each([&](int64_t i, auto v) { Store(to + i, v); });
      });
      PrepareTranspose(s, first, images, row, row_gradient, gathered, g.dx, sums.scale, sums.shift);
    }
  }
}

}  // namespace jaxcnn
