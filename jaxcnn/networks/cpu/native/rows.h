// Convolution of rows of a slice: directly, by Winograd's fewer products, or phase by phase.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "convolution.h"
#include "phases.h"
#include "vectors.h"
#include "winograd.h"

namespace jaxcnn {

enum class Method { kDirect, kWinograd, kPhases };

// A form in which rows are multiplied.
enum class Form {
  kPlain,    // one part: rows with zeros around them
  kWindows,  // sums of each window, see winograd.h
  kTiles,    // sums of each tile
  kPhases    // see phases.h
};

// What is convolved with what, float[K, K, Cin, Cout], and how.
struct Convolution {
  Method method;
  int64_t kernel_size, padding, in, out;  // padding: zeros before the first row and column
  int64_t height, width;                  // of the output

  int64_t stride() const { return method == Method::kPhases ? 2 : 1; }
  std::vector<Phase> phases() const { return PhasesOf(kernel_size, padding); }
  // Rows of the input below an output's own, and of the output's gradient below an input's own.
  int64_t below() const { return kernel_size - 1 - padding; }
  int64_t reach() const { return method == Method::kPhases ? Reach(phases()) : padding; }
  // Of the input of the forward pass, and of input and output for the gradients.
  Form forward() const { return Either(Form::kWindows, Form::kPhases); }
  Form input() const { return Either(Form::kTiles, Form::kPhases); }
  Form output() const { return Either(Form::kWindows, Form::kPlain); }

 private:
  Form Either(Form winograd, Form by_phases) const {
    return method == Method::kDirect ? Form::kPlain
           : method == Method::kWinograd ? winograd
                                         : by_phases;
  }
};

// Rows of a slice, in the form in which they are multiplied.
class Rows {
 public:
  // Of the parts, and of the rows before they are transformed.
  using Memories = Memory[kParts + 1];

  // Rows of so many channels, of the convolution's input or (`of_output`) its output.
  Rows(const Convolution& of, Form form, Memories& memories, bool of_output)
      : form_(form), channels_(of_output ? of.out : of.in),
        width_(of_output ? of.width : of.stride() * of.width),
        untransformed_(memories[kParts], 1, 2, width_, 0, 1) {
    const int64_t reach = of.reach();
    parts_.reserve(kParts);  // they are referred to
    if (form == Form::kPlain) {
      parts_.emplace_back(memories[0], channels_, of.height, width_, reach, reach);
    } else if (form == Form::kPhases) {
      phases_ = of.phases();
      for (const Phase& phase : phases_) {
        parts_.emplace_back(memories[parts_.size()], channels_, of.height, of.width, reach, reach,
                            phase.rows.before(), phase.columns.before());
      }
    } else {
      for (int i = 0; i < kParts; ++i) {
        parts_.emplace_back(memories[i], channels_, of.height, width_ / kTile,
                            form == Form::kWindows ? reach : 0, 0);
      }
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
    const int64_t images = untransformed_.images();
    if (form_ == Form::kPhases) {
      for (size_t i = 0; i < phases_.size(); ++i) {
        if (phases_[i].row != row % 2) continue;
        TakeColumns(phases_[i], Target(channel, row), width_ / 2, images,
                    parts_[i].Row(channel, row / 2));
      }
      return;
    }
    float* to[kParts];
    for (int i = 0; i < kParts; ++i) to[i] = parts_[i].Row(channel, row);
    if (form_ == Form::kTiles) {
      SumTiles(untransformed_.Row(0, row % 2), width_, images, to);
    } else {
      SumWindows(untransformed_.Window(0, row % 2), width_, images, to);
    }
  }
  Form form() const { return form_; }
  const std::vector<Padded>& parts() const { return parts_; }
  const std::vector<Phase>& phases() const { return phases_; }
  int64_t channels() const { return channels_; }
  int64_t images() const { return parts_[0].images(); }
  int64_t size() const { return parts_[0].size(); }  // of a row of a part

 private:
  Form form_;
  int64_t channels_, width_;
  std::vector<Phase> phases_;
  Padded untransformed_;
  std::vector<Padded> parts_;
};

inline thread_local Rows::Memories memory_of_x, memory_of_dy;
inline thread_local Memory memory_of_products;

// A kernel, packed for each part of its input; transposed: flipped, with inputs and outputs
// exchanged.
inline std::vector<Packed> PackKernel(const Convolution& of, const float* kernel,
                                      bool transposed) {
  if (of.method == Method::kWinograd) return PackWinograd(kernel, of.in, of.out, transposed);
  if (of.method == Method::kDirect) {
    return {Packed(kernel, of.kernel_size, of.kernel_size, of.in, of.out, transposed)};
  }
  std::vector<Packed> parts;
  for (const Phase& phase : of.phases()) {
    parts.push_back(PackPhase(phase, kernel, of.kernel_size, of.in, of.out, transposed));
  }
  return parts;
}

// Writes the products of all parts of values begin .. end - 1 of a row, float[Cout, parts, next].
inline void MultiplyParts(const Rows& x, const std::vector<Packed>& kernel, int64_t row,
                          int64_t begin, int64_t end, int64_t next, float* products) {
  for (int part = 0; part < kParts; ++part) {
    ConvolveRow(x.parts()[part], kernel[part], row, begin, end,
                [&](int64_t f, int64_t start, auto& values) {
                  float* to = products + (f * kParts + part) * next + start - begin;
                  ForValues(values, end - start, [&](int64_t i, auto v) { Store(to + i, v); });
                });
  }
}

// Convolves a row. Calls out(feature, each) for blocks of values, where each(f) calls
// f(position, vector).
template <typename Out>
void Convolve(const Rows& x, const std::vector<Packed>& kernel, int64_t row, Out out) {
  const int64_t size = x.size(), images = x.images(), features = kernel[0].out();
  if (x.form() == Form::kPlain) {
    auto block = [&](int64_t f, int64_t start, auto& values) {
      out(f, [&](auto each) {
        ForValues(values, size - start, [&](int64_t i, auto v) { each(start + i, v); });
      });
    };
    ConvolveRow(x.parts()[0], kernel[0], row, 0, size, block);
    return;
  }
  if (x.form() == Form::kPhases) {
    float* sums = memory_of_products.Get(features * size);
    std::fill_n(sums, features * size, 0.0f);
    for (size_t part = 0; part < kernel.size(); ++part) {
      ConvolveRow(x.parts()[part], kernel[part], row, 0, size,
                  [&](int64_t f, int64_t start, auto& values) {
                    float* to = sums + f * size + start;
                    ForValues(values, size - start, [&](int64_t i, auto v) {
                      Store(to + i, Load(to + i, Lanes<sizeof(v) / sizeof(float)>()) + v);
                    });
                  });
    }
    for (int64_t f = 0; f < features; ++f) {
      const float* from = sums + f * size;
      out(f, [&](auto each) {
        ForVectors(size, [&](int64_t i, auto lanes) { each(i, Load(from + i, lanes)); });
      });
    }
    return;
  }
  // As many tiles at once as fill whole blocks of vectors, so that the products stay in the cache.
  const int64_t chunk = std::min<int64_t>(size, std::lcm(images, kVectors * kLanes));
  float* products = memory_of_products.Get(kParts * features * chunk);
  for (int64_t begin = 0; begin < size; begin += chunk) {
    const int64_t end = std::min(size, begin + chunk);
    MultiplyParts(x, kernel, row, begin, end, chunk, products);
    for (int64_t f = 0; f < features; ++f) {
      out(f, [&](auto each) {
        SumProducts(products + f * kParts * chunk, chunk, end - begin, images, kTile * begin, each);
      });
    }
  }
}

// The gradient for a row of the input, float[Cin, W, N], from that of the output and the transposed
// kernel.
inline void ConvolveTransposed(const Convolution& of, const Rows& dy,
                               const std::vector<Packed>& kernel, int64_t row, float* gradient) {
  const int64_t images = dy.images(), columns = of.stride() * of.width, size = columns * images;
  if (of.method != Method::kPhases) {
    Convolve(dy, kernel, row, [&](int64_t channel, auto each) {
      float* to = gradient + channel * size;
      each([&](int64_t i, auto v) { Store(to + i, v); });
    });
    return;
  }
  const std::vector<Phase> phases = of.phases();
  if (phases.size() < 4) std::fill_n(gradient, of.in * size, 0.0f);
  float* half = memory_of_products.Get(of.in * size / 2);
  for (size_t part = 0; part < phases.size(); ++part) {
    const Phase& phase = phases[part];
    if (phase.row != row % 2) continue;
    const Padded from = dy.parts()[0].From(phase.rows.after(), phase.columns.after());
    ConvolveRow(from, kernel[part], row / 2, 0, size / 2,
                [&](int64_t channel, int64_t start, auto& values) {
                  float* to = half + channel * size / 2 + start;
                  ForValues(values, size / 2 - start,
                            [&](int64_t i, auto v) { Store(to + i, v); });
                });
    for (int64_t channel = 0; channel < of.in; ++channel) {
      PutColumns(phase, half + channel * size / 2, columns / 2, images, gradient + channel * size);
    }
  }
}

// Number of values in which the gradient of a kernel, float[K, K, Cin, Cout], is added up.
inline int64_t GradientSize(const Convolution& of) {
  const bool winograd = of.method == Method::kWinograd;
  return (winograd ? 3 * kParts : of.kernel_size * of.kernel_size) * of.in * of.out;
}

// Adds the gradient of a kernel from rows begin .. end - 1 of the output; with Winograd, of x as
// tiles and dy as windows.
inline void AddKernelGradient(const Convolution& of, const Rows& x, const Rows& dy, int64_t begin,
                              int64_t end, float* d_kernel) {
  const int64_t size = of.in * of.out;
  switch (of.method) {
    case Method::kDirect:
      AddKernelGradient(x.parts()[0], dy.parts()[0], of.kernel_size, of.kernel_size, begin, end,
                        d_kernel);
      break;
    case Method::kWinograd:
      for (int part = 0; part < kParts; ++part, d_kernel += 3 * size) {
        AddKernelGradient(dy.parts()[part], x.parts()[part], 3, 1, begin, end, d_kernel);
      }
      break;
    case Method::kPhases:
      for (size_t part = 0; part < x.phases().size(); ++part) {
        const Phase& phase = x.phases()[part];
        AddKernelGradient(x.parts()[part], dy.parts()[0], phase.rows.count, phase.columns.count,
                          begin, end, d_kernel);
        d_kernel += phase.taps() * size;
      }
  }
}

// Writes float[K, K, Cin, Cout] from what was added up.
inline void FinishKernelGradient(const Convolution& of, const float* sums, float* d_kernel) {
  const int64_t size = of.in * of.out;
  if (of.method == Method::kWinograd) return FinishWinograd(sums, of.in, of.out, d_kernel);
  if (of.method == Method::kDirect) {
    return CopyBlocks(sums, of.kernel_size * of.kernel_size, of.in, of.out, d_kernel);
  }
  for (const Phase& phase : of.phases()) {
    std::vector<float> taps(phase.taps() * size);
    CopyBlocks(sums, phase.taps(), of.in, of.out, taps.data());
    phase.EachTap(of.kernel_size, [&](int64_t tap, int64_t whole) {
      std::copy_n(taps.data() + tap * size, size, d_kernel + whole * size);
    });
    sums += phase.taps() * size;
  }
}

}  // namespace jaxcnn
