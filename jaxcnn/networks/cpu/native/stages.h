// A stage of a slice of images, row by row: a row passes through all layers while it lies in the
// caches. What the backward pass needs of the layers before the convolution, it computes again.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "images.h"
#include "rows.h"
#include "vectors.h"

namespace jaxcnn {

// What is around the convolution, and how images come and go; the attributes of `Stage` in Python.
struct Layers {
  bool relu_before, average_before, relu_after, max_after, sliced_in, sliced_out;
  int64_t stride, padding;
};

struct Stage : Layers {
  Convolution convolution;
  Images x, y, out;  // y before pooling
  const float *kernel, *bias, *scale, *shift, *sign;
  bool kept;  // y is written

  int64_t height() const { return y.height; }
  int64_t width() const { return y.width; }
  // Of the convolution's input.
  int64_t input_height() const { return convolution.stride() * y.height; }
  int64_t input_width() const { return convolution.stride() * y.width; }
};

inline thread_local Memory memory_of_rows;

// The layers before the convolution: row(s) of x to a row of its input.
inline void Prepare(const Stage& s, Slice slice, int64_t row, float* buffer, Rows& input) {
  const int64_t images = slice.images, width = s.input_width(), size = width * images;
  const bool average = s.average_before, relu = s.relu_before;
  const int64_t source_size = s.x.width * images;
  const float *top, *bottom = nullptr;
  top = s.x.Read(slice, average ? 2 * row : row, buffer);
  if (average) bottom = s.x.Read(slice, 2 * row + 1, buffer + s.x.channels * source_size);
  for (int64_t channel = 0; channel < s.x.channels; ++channel) {
    const float scale = s.scale ? s.scale[channel] : 1.0f;
    const float shift = s.scale ? s.shift[channel] : 0.0f;
    auto layers = [=](auto v) {
      v = v * scale + shift;
      return relu ? Relu(v) : v;
    };
    float* to = input.Target(channel, row);
    const float* a = top + channel * source_size;
    if (average) {
      const float* b = bottom + channel * source_size;
      for (int64_t column = 0; column < width; ++column) {
        const int64_t left = 2 * column * images, right = left + images;
        ForVectors(images, [&](int64_t i, auto lanes) {
          const auto sum =
              layers(Load(a + left + i, lanes)) + layers(Load(a + right + i, lanes)) +
              layers(Load(b + left + i, lanes)) + layers(Load(b + right + i, lanes));
          Store(to + column * images + i, 0.25f * sum);
        });
      }
    } else {
      ForVectors(size, [&](int64_t i, auto lanes) { Store(to + i, layers(Load(a + i, lanes))); });
    }
    input.Finish(channel, row);
  }
}

// The transpose of `Prepare`: adds to d_scale and d_shift, and writes rows of dx.
inline void PrepareTranspose(const Stage& s, Slice slice, int64_t row, const float* gradient,
                             float* buffer, const Images& dx, Sums& d_scale, Sums& d_shift) {
  const int64_t images = slice.images, width = s.input_width(), size = width * images;
  const int64_t sources = s.average_before ? 2 : 1, source_size = s.x.width * images;
  const bool relu = s.relu_before;
  for (int64_t k = 0; k < sources; ++k) {
    const float* x = s.x.Read(slice, sources * row + k, buffer);
    float* to = dx.Target(slice, sources * row + k, buffer);
    for (int64_t channel = 0; channel < s.x.channels; ++channel) {
      const float scale = s.scale ? s.scale[channel] : 1.0f;
      const float shift = s.scale ? s.shift[channel] : 0.0f;
      const float* g = gradient + channel * size;
      const int64_t first = channel * source_size;
      Sum<kLanes> scale_sum, shift_sum;
      auto layers = [&](int64_t i, auto d, auto lanes) {
        const auto v = Load(x + first + i, lanes);
        if (relu) d = v * scale + shift > 0 ? d : decltype(d){};
        scale_sum.Add(d * v);
        shift_sum.Add(d);
        Store(to + first + i, d * scale);
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
    dx.Finish(slice, sources * row + k, to);
  }
}

// The four corners of a square, times the sign of their channel.
template <typename V>
struct Corners {
  V at[4], largest;
};

template <typename L>
inline auto LoadCorners(const float* top, const float* bottom, int64_t images, float sign,
                        L lanes) {
  const auto a = Load(top, lanes) * sign, b = Load(top + images, lanes) * sign;
  const auto c = Load(bottom, lanes) * sign, d = Load(bottom + images, lanes) * sign;
  return Corners<typename L::Vector>{{a, b, c, d}, Largest(Largest(a, b), Largest(c, d))};
}

inline void ForwardSlice(const Stage& s, Slice slice, const std::vector<Packed>& kernel,
                         Rows& input, Sums* sums) {
  const int64_t images = slice.images, features = s.y.channels, size = s.width() * images;
  input.Resize(images);
  const int64_t input_size = 2 * s.x.channels * s.x.width * images;
  float* buffer = memory_of_rows.Get(input_size + 3 * features * size);
  float* rows = buffer + input_size;
  float* pooled = rows + 2 * features * size;
  int64_t prepared = 0;
  for (int64_t row = 0; row < s.height(); ++row) {
    const int64_t last = s.convolution.stride() * row + s.convolution.below();
    for (; prepared < std::min(s.input_height(), last + 1); ++prepared) {
      Prepare(s, slice, prepared, buffer, input);
    }
    auto at = [&](int64_t row) {
      return s.kept ? s.y.Row(slice, row) : rows + row % 2 * features * size;
    };
    float* y = at(row);
    Convolve(input, kernel, row, [&, relu = s.relu_after](int64_t f, auto each) {
      const float bias = s.bias[f];
      float* to = y + f * size;
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
      s.out.Finish(slice, row, y);
      continue;
    }
    if (row % 2 == 0) continue;
    float* out = s.out.Target(slice, row / 2, pooled);
    for (int64_t f = 0; f < features; ++f) {
      const float sign = s.sign ? s.sign[f] : 1.0f;
      float* to = out + f * s.out.width * images;
      const float *top = at(row - 1) + f * size, *bottom = y + f * size;
      for (int64_t column = 0, columns = s.out.width; column < columns; ++column) {
        ForVectors(images, [&](int64_t i, auto lanes) {
          const int64_t left = 2 * column * images + i;
          const auto c = LoadCorners(top + left, bottom + left, images, sign, lanes);
          Store(to + column * images + i, c.largest * sign);
        });
      }
    }
    s.out.Finish(slice, row / 2, out);
  }
}

// What the backward pass of a stage takes and gives beside the stage itself.
struct Gradients {
  Images d_out, dx;  // dx.data is null if nobody wants it
  const float* d_sums;
};

// The layers after the convolution, backwards: a row of d_out to row(s) of dy.
inline void AfterTranspose(const Stage& s, const Gradients& g, Slice slice, int64_t row,
                           float* buffer, float* y_buffer, Rows& dy, Sums& d_bias) {
  const int64_t images = slice.images, features = s.y.channels, size = s.width() * images;
  const int64_t width = s.out.width;
  const bool summed = g.d_sums, relu = s.relu_after;
  const float* d_out = g.d_out.Read(slice, s.max_after ? row / 2 : row, buffer);
  const float* kept = s.kept && !s.max_after ? s.y.Read(slice, row, y_buffer) : nullptr;
  for (int64_t f = 0; f < features; ++f) {
    const float d_sum = summed ? g.d_sums[f] : 0.0f;
    const float d_square = summed ? 2 * g.d_sums[features + f] : 0.0f;
    const float sign = s.sign ? s.sign[f] : 1.0f;
    const float* d = d_out + f * width * images;
    Sum<kLanes> bias;
    auto finish = [&](float* to, auto v, auto y) {
      if (summed) v += d_sum + y * d_square;
      if (relu) v = y > 0 ? v : decltype(v){};
      Store(to, v);
      bias.Add(v);
    };
    if (s.max_after) {
      const float *top = s.y.Row(slice, row) + f * size, *bottom = top + features * size;
      float* const to[2] = {dy.Target(f, row), dy.Target(f, row + 1)};
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
      dy.Finish(f, row);
      dy.Finish(f, row + 1);
    } else {
      const float* y = s.kept ? kept + f * size : d;
      float* to = dy.Target(f, row);
      ForVectors(size, [&](int64_t i, auto lanes) {
        finish(to + i, Load(d + i, lanes), Load(y + i, lanes));
      });
      dy.Finish(f, row);
    }
    d_bias.Add(f, bias);
  }
}

struct TaskGradients {
  std::vector<float> kernel;
  Sums bias, scale, shift;
};

inline void BackwardSlice(const Stage& s, const Gradients& g, Slice slice,
                          const std::vector<Packed>& transposed, Rows& input, Rows& dy,
                          TaskGradients& sums) {
  const int64_t size = s.width() * slice.images, height = s.height();
  const int64_t stride = s.convolution.stride();
  input.Resize(slice.images);
  dy.Resize(slice.images);
  const int64_t input_size = 2 * s.x.channels * s.x.width * slice.images;
  float* buffer = memory_of_rows.Get(input_size + (stride * s.x.channels + 2 * s.y.channels) * size);
  float* row_gradient = buffer + input_size;
  float* buffer_out = row_gradient + stride * s.x.channels * size;
  float* buffer_y = buffer_out + s.y.channels * size;
  const int64_t band = std::max<int64_t>(1, kBand / input.size()), step = s.max_after ? 2 : 1;
  int64_t prepared = 0, carried = 0;
  for (int64_t begin = 0; begin < height; begin += band) {
    const int64_t end = std::min(height, begin + band);
    const int64_t last = stride * (end - 1) + s.convolution.below();
    for (; prepared < std::min(s.input_height(), last + 1); ++prepared) {
      Prepare(s, slice, prepared, buffer, input);
    }
    for (; carried < std::min(height, end + s.convolution.reach()); carried += step) {
      AfterTranspose(s, g, slice, carried, buffer_out, buffer_y, dy, sums.bias);
    }
    AddKernelGradient(s.convolution, input, dy, begin, end, sums.kernel.data());
    if (!g.dx.data) continue;
    for (int64_t row = stride * begin; row < stride * end; ++row) {
      ConvolveTransposed(s.convolution, dy, transposed, row, row_gradient);
      PrepareTranspose(s, slice, row, row_gradient, buffer, g.dx, sums.scale, sums.shift);
    }
  }
}

}  // namespace jaxcnn
