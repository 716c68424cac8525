// Stages of convolutional layers for CPU, as handlers of XLA's foreign function interface.
//
// A stage is a convolution that keeps the size or halves it, and the layers around it: scale and
// shift, relu, average pooling; the convolution, bias, relu; sums for BatchNorm; max pooling.
// `jaxcnn/networks/cpu/stages.py` declares the same handlers and says what each argument is. Beside
// them stands group normalization, see `jaxcnn/networks/cpu/group_norm.py`.
//
// The slices of a batch are shared among XLA's threads. A task writes sums of its own, and these are
// added in the order of the tasks, so that the result does not depend on the number of threads.

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "group_norm.h"
#include "stages.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(jaxcnn::Layers,
                                      xla::ffi::StructMember<bool>("relu_before"),
                                      xla::ffi::StructMember<bool>("average_before"),
                                      xla::ffi::StructMember<bool>("relu_after"),
                                      xla::ffi::StructMember<bool>("max_after"),
                                      xla::ffi::StructMember<bool>("sliced_in"),
                                      xla::ffi::StructMember<bool>("sliced_out"),
                                      xla::ffi::StructMember<int64_t>("stride"),
                                      xla::ffi::StructMember<int64_t>("padding"));

namespace jaxcnn {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

ffi::Error Wrong(const std::string& what) {
  return ffi::Error::InvalidArgument("jaxcnn's kernels: " + what);
}

constexpr int64_t kPart = 8192;  // values of a kernel's gradient that a task adds up

using Shape = ffi::Span<const int64_t>;

bool Same(Shape a, Shape b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

bool Is(Shape shape, std::initializer_list<int64_t> expected) {
  return Same(shape, Shape(expected.begin(), expected.size()));
}

Images MakeImages(float* data, Shape shape, bool sliced) {
  return {data, shape[1], shape[2], shape[3], sliced};
}

// Fills in a stage from its arguments, or says what is wrong with them.
ffi::Error MakeStage(Stage& s, Buffer x, Buffer kernel, Buffer scale, Buffer shift, Buffer sign,
                     Shape out) {
  const auto in = x.dimensions(), window = kernel.dimensions();
  if (in.size() != 4 || window.size() != 4) return Wrong("images and kernel have four axes");
  if (s.stride != 1 && s.stride != 2) return Wrong("the stride is 1 or 2");
  const int64_t shrink = s.average_before ? 2 * s.stride : s.stride, pool = s.max_after ? 2 : 1;
  const int64_t height = in[1] / shrink, width = in[2] / shrink, features = window[3];
  const int64_t size = window[0];
  if (window[1] != size) return Wrong("the kernel is square");
  if (s.padding < 0 || s.padding >= size) return Wrong("padding");
  if (s.stride == 1 && 2 * s.padding + 1 != size) return Wrong("the kernel is odd");
  if (window[2] != in[3]) return Wrong("the kernel has as many channels as the images");
  if (in[1] % (shrink * pool) || in[2] % (shrink * pool)) return Wrong("pooling divides the size");
  if (!Is(out, {in[0], height / pool, width / pool, features})) return Wrong("shape of the output");
  for (int64_t axis : in) if (axis < 1) return Wrong("empty images");
  if (features < 1) return Wrong("no features");
  for (const Buffer& affine : {scale, shift}) {
    if (!Is(affine.dimensions(), {0}) && !Is(affine.dimensions(), {in[3]})) return Wrong("scale");
  }
  if (scale.element_count() != shift.element_count()) return Wrong("scale and shift");
  if (!Is(sign.dimensions(), {0}) && !Is(sign.dimensions(), {features})) return Wrong("sign");
  const bool winograd = WinogradPays(size, width, Slices(in[0]).size, in[3], features);
  const auto method = s.stride == 2 ? Method::kPhases
                      : winograd    ? Method::kWinograd
                                    : Method::kDirect;
  s.convolution = {method, size, s.padding, in[3], features, height, width};
  s.x = MakeImages(x.typed_data(), in, s.sliced_in);
  s.out = {nullptr, height / pool, width / pool, features, s.sliced_out};
  s.y = {nullptr, height, width, features, s.max_after || s.sliced_out};
  s.kernel = kernel.typed_data();
  s.scale = scale.element_count() ? scale.typed_data() : nullptr;
  s.shift = shift.typed_data();
  s.sign = sign.element_count() ? sign.typed_data() : nullptr;
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool pool, Buffer x, Buffer kernel, Buffer bias, Buffer scale,
                   Buffer shift, Buffer sign, Result out, Result y, Result sums, Layers layers) {
  Stage s{layers};
  if (auto error = MakeStage(s, x, kernel, scale, shift, sign, out->dimensions());
      error.failure()) {
    return error;
  }
  const int64_t batch = x.dimensions()[0], features = s.y.channels;
  if (!Is(bias.dimensions(), {features})) return Wrong("bias");
  const bool kept =
      s.max_after && Is(y->dimensions(), {batch, s.height(), s.width(), features});
  if (!kept && !Is(y->dimensions(), {0})) return Wrong("shape of what is kept");
  const bool summed = Is(sums->dimensions(), {2, features});
  if (!summed && !Is(sums->dimensions(), {0})) return Wrong("shape of the sums");
  s.bias = bias.typed_data();
  s.out.data = out->typed_data();
  // Without pooling, what comes out is what is kept.
  s.y.data = s.max_after ? y->typed_data() : s.out.data;
  s.kept = s.max_after ? kept : s.sliced_out;
  const Slices slices(batch);
  const Convolution& of = s.convolution;
  const std::vector<Packed> packed = PackKernel(of, s.kernel, false);
  std::vector<Sums> partial(summed ? 2 * slices.tasks : 0, Sums(features));
  ForEach(pool, slices.tasks, [&](int64_t task) {
    Rows input(of, of.forward(), memory_of_x, false);
    slices.Each(task, [&](int64_t first, int64_t images) {
      ForwardSlice(s, {first, images}, packed, input, summed ? &partial[2 * task] : nullptr);
    });
  });
  if (summed) {
    std::fill_n(sums->typed_data(), 2 * features, 0.0f);
    for (size_t i = 0; i < partial.size(); ++i) {
      partial[i].AddTo(sums->typed_data() + i % 2 * features);
    }
  }
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, Buffer x, Buffer kernel, Buffer scale, Buffer shift,
                    Buffer sign, Buffer y, Buffer d_out, Buffer d_sums, Result dx, Result d_kernel,
                    Result d_bias, Result d_scale, Result d_shift, Layers layers) {
  Stage s{layers};
  if (auto error = MakeStage(s, x, kernel, scale, shift, sign, d_out.dimensions());
      error.failure()) {
    return error;
  }
  const int64_t batch = x.dimensions()[0], features = s.y.channels, channels = s.x.channels;
  s.kept = Is(y.dimensions(), {batch, s.height(), s.width(), features});
  const bool summed = Is(d_sums.dimensions(), {2, features});
  if (!s.kept && (s.relu_after || s.max_after || summed)) return Wrong("shape of what was kept");
  if (!summed && !Is(d_sums.dimensions(), {0})) return Wrong("shape of the sums");
  const bool wanted = Same(dx->dimensions(), x.dimensions());
  if (!wanted && !Is(dx->dimensions(), {0})) return Wrong("gradient of the images");
  if (!Same(d_kernel->dimensions(), kernel.dimensions())) return Wrong("gradient of the kernel");
  if (!Is(d_bias->dimensions(), {features})) return Wrong("gradient of the bias");
  if (!Same(d_scale->dimensions(), scale.dimensions())) return Wrong("gradient of the scale");
  if (!Same(d_shift->dimensions(), shift.dimensions())) return Wrong("gradient of the shift");
  s.y.data = y.typed_data();
  const Gradients g{MakeImages(d_out.typed_data(), d_out.dimensions(), s.sliced_out),
                    {wanted ? dx->typed_data() : nullptr, s.x.height, s.x.width, channels,
                     s.sliced_in},
                    summed ? d_sums.typed_data() : nullptr};
  const Slices slices(batch);
  const Convolution& of = s.convolution;
  const std::vector<Packed> transposed = PackKernel(of, s.kernel, true);
  const int64_t size = GradientSize(of);
  std::vector<TaskGradients> partial(slices.tasks);
  ForEach(pool, slices.tasks, [&](int64_t task) {
    partial[task] = {std::vector<float>(size), Sums(features), Sums(channels), Sums(channels)};
    Rows input(of, of.input(), memory_of_x, false), dy(of, of.output(), memory_of_dy, true);
    slices.Each(task, [&](int64_t first, int64_t images) {
      BackwardSlice(s, g, {first, images}, transposed, input, dy, partial[task]);
    });
  });
  std::vector<float> d_blocks(size);
  for (Result result : {d_bias, d_scale, d_shift}) {
    std::fill_n(result->typed_data(), result->element_count(), 0.0f);
  }
  const int64_t parts = std::min(size / kPart + 1, kTasks);
  ForEach(pool, parts, [&](int64_t part) {
    for (const TaskGradients& sums : partial) {
      for (int64_t i = part * size / parts; i < (part + 1) * size / parts; ++i) {
        d_blocks[i] += sums.kernel[i];
      }
    }
  });
  for (const TaskGradients& sums : partial) {
    sums.bias.AddTo(d_bias->typed_data());
    if (s.scale) {
      sums.scale.AddTo(d_scale->typed_data());
      sums.shift.AddTo(d_shift->typed_data());
    }
  }
  FinishKernelGradient(of, d_blocks.data(), d_kernel->typed_data());
  return ffi::Error::Success();
}

// Fills in a normalization from its arguments, or says what is wrong with them.
ffi::Error MakeGroupNorm(GroupNorm& n, Buffer x, Shape affine, Shape other) {
  const auto shape = x.dimensions();
  if (shape.size() != 3) return Wrong("images are of pixels and channels");
  n.pixels = shape[1];
  n.channels = shape[2];
  for (int64_t axis : shape) if (axis < 1) return Wrong("empty images");
  if (n.groups < 1 || n.channels % n.groups) return Wrong("groups divide the channels");
  if (!Is(affine, {n.channels})) return Wrong("scale and bias");
  if (!Same(other, shape)) return Wrong("shape of the other images");
  return ffi::Error::Success();
}

// Calls f(task, offset of the image, statistics to be computed) for all images.
template <typename F>
void EachImage(ffi::ThreadPool& pool, const Slices& slices, const GroupNorm& n, F f) {
  ForEach(pool, slices.tasks, [&](int64_t task) {
    Statistics of(n);
    slices.Each(task, [&](int64_t first, int64_t images) {
      for (int64_t image = first; image < first + images; ++image) f(task, image * n.size(), of);
    });
  });
}

ffi::Error GroupNormForward(ffi::ThreadPool pool, Buffer x, Buffer scale, Buffer bias, Result out,
                            int64_t groups, float epsilon) {
  GroupNorm n{0, 0, groups, epsilon};
  if (auto error = MakeGroupNorm(n, x, scale.dimensions(), out->dimensions()); error.failure()) {
    return error;
  }
  if (!Is(bias.dimensions(), {n.channels})) return Wrong("bias");
  EachImage(pool, Slices(x.dimensions()[0]), n, [&](int64_t, int64_t at, Statistics& of) {
    NormalizeImage(n, x.typed_data() + at, scale.typed_data(), bias.typed_data(), of,
                   out->typed_data() + at);
  });
  return ffi::Error::Success();
}

ffi::Error GroupNormBackward(ffi::ThreadPool pool, Buffer x, Buffer scale, Buffer dy, Result dx,
                             Result d_scale, Result d_bias, int64_t groups, float epsilon) {
  GroupNorm n{0, 0, groups, epsilon};
  if (auto error = MakeGroupNorm(n, x, scale.dimensions(), dy.dimensions()); error.failure()) {
    return error;
  }
  if (!Same(dx->dimensions(), x.dimensions())) return Wrong("gradient of the images");
  for (Result result : {d_scale, d_bias}) {
    if (!Is(result->dimensions(), {n.channels})) return Wrong("gradients of scale and bias");
    std::fill_n(result->typed_data(), n.channels, 0.0f);
  }
  const Slices slices(x.dimensions()[0]);
  std::vector<std::vector<float>> partial(slices.tasks, std::vector<float>(2 * n.channels));
  EachImage(pool, slices, n, [&](int64_t task, int64_t at, Statistics& of) {
    float* sums = partial[task].data();
    NormalizeImageBackward(n, x.typed_data() + at, scale.typed_data(), dy.typed_data() + at, of,
                           dx->typed_data() + at, sums, sums + n.channels);
  });
  for (const std::vector<float>& sums : partial) {
    for (int64_t c = 0; c < n.channels; ++c) {
      d_scale->typed_data()[c] += sums[c];
      d_bias->typed_data()[c] += sums[n.channels + c];
    }
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnForward, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()  // x
                                  .Arg<Buffer>()  // kernel
                                  .Arg<Buffer>()  // bias
                                  .Arg<Buffer>()  // scale
                                  .Arg<Buffer>()  // shift
                                  .Arg<Buffer>()  // sign
                                  .Ret<Buffer>()  // out
                                  .Ret<Buffer>()  // y
                                  .Ret<Buffer>()  // sums
                                  .Attrs<jaxcnn::Layers>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnBackward, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()  // x
                                  .Arg<Buffer>()  // kernel
                                  .Arg<Buffer>()  // scale
                                  .Arg<Buffer>()  // shift
                                  .Arg<Buffer>()  // sign
                                  .Arg<Buffer>()  // y
                                  .Arg<Buffer>()  // d_out
                                  .Arg<Buffer>()  // d_sums
                                  .Ret<Buffer>()  // dx
                                  .Ret<Buffer>()  // d_kernel
                                  .Ret<Buffer>()  // d_bias
                                  .Ret<Buffer>()  // d_scale
                                  .Ret<Buffer>()  // d_shift
                                  .Attrs<jaxcnn::Layers>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnGroupNormForward, GroupNormForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()  // x
                                  .Arg<Buffer>()  // scale
                                  .Arg<Buffer>()  // bias
                                  .Ret<Buffer>()  // out
                                  .Attr<int64_t>("groups")
                                  .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(JaxcnnGroupNormBackward, GroupNormBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()  // x
                                  .Arg<Buffer>()  // scale
                                  .Arg<Buffer>()  // dy
                                  .Ret<Buffer>()  // dx
                                  .Ret<Buffer>()  // d_scale
                                  .Ret<Buffer>()  // d_bias
                                  .Attr<int64_t>("groups")
                                  .Attr<float>("epsilon"));

}  // namespace jaxcnn
