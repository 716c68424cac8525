// Stages of convolutional layers for CPU, as handlers of XLA's foreign function interface.
//
// A stage is a convolution of stride 1 that keeps the size, and the layers around it: scale and
// shift, relu, average pooling; the convolution, bias, relu; sums for BatchNorm; max pooling.
// `jaxcnn/networks/cpu/stages.py` declares the same handlers and says what each argument is.
//
// Three things make it fast:
//
// * Images are the last axis of a slice, float[C, H, W, N], and a row of W N values is one run of
//   memory: shifted by one pixel, it begins N values later. Vectors therefore run over pixels and
//   images alike, and no patches are written.
// * A block of four vectors of four features stays in registers while all inputs are added up.
// * Rows pass through all layers of the stage while they lie in the caches; what the backward pass
//   needs of the layers before the convolution, it computes again.
//
// The slices of a batch are shared among XLA's threads. A task writes sums of its own, and these are
// added in the order of the tasks, so that the result does not depend on the number of threads.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

#if defined(__AVX512F__)
constexpr int kLanes = 16, kVectors = 4, kGradients = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kVectors = 3, kGradients = 4;
#else
constexpr int kLanes = 4, kVectors = 4, kGradients = 4;
#endif
constexpr int kFeatures = 4;    // of a block
constexpr int64_t kSlice = 16;  // images of a slice
constexpr int64_t kTasks = 64;  // at most, for each call
constexpr int64_t kBand = 1024; // values of a feature whose products are added up in registers

// Vectors of L values; of kLanes, wherever as many are left.
template <int L>
struct Lanes {
  typedef float Vector __attribute__((vector_size(4 * L)));
};
template <int L>
using Vector = typename Lanes<L>::Vector;
using Vec = Vector<kLanes>;

template <int L>
inline Vector<L> Load(const float* from, Lanes<L>) {
  Vector<L> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
inline Vec Load(const float* from) { return Load(from, Lanes<kLanes>()); }

template <typename V>
inline void Store(float* to, V v) {
  std::memcpy(to, &v, sizeof(v));
}

// NaN stays NaN, as in jax.
template <typename V>
inline V Relu(V v) {
  return v < 0 ? V{} : v;
}
template <typename V>
inline V Largest(V a, V b) {
  return (a > b) | (a != a) ? a : b;
}

// Calls f(position, lanes) for vectors that together have `size` values: whole ones, then for the
// rest a half, a quarter and so on.
template <int L = kLanes, typename F>
inline void ForVectors(int64_t size, F f, int64_t begin = 0) {
  if constexpr (L > 0) {
    for (; begin + L <= size; begin += L) f(begin, Lanes<L>());
    ForVectors<L / 2>(size, f, begin);
  }
}

// Calls f(position, vector) for the first `size` values of some vectors.
template <int V, typename F>
inline void ForValues(const Vec (&vectors)[V], int64_t size, F f) {
  if (size >= V * kLanes) {
    for (int v = 0; v < V; ++v) f(v * kLanes, vectors[v]);
  } else {
    const float* values = reinterpret_cast<const float*>(vectors);
    ForVectors(size, [&](int64_t i, auto lanes) { f(i, Load(values + i, lanes)); });
  }
}

// The sum of vectors of L values, of L / 2 and so on.
template <int L>
struct Sum : Sum<L / 2> {
  Vector<L> total{};

  using Sum<L / 2>::Add;
  void Add(Vector<L> v) { total += v; }
  void AddTo(float* lanes) const {
    Store(lanes, Load(lanes, Lanes<L>()) + total);
    Sum<L / 2>::AddTo(lanes);
  }
};
template <>
struct Sum<0> {
  void Add() {}
  void AddTo(float*) const {}
};

// Sums of neighbours: the first half of the result is of a, the second of b.
inline Vec AddNeighbours(Vec a, Vec b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// Lane i of the result is the sum of all lanes of v[i].
inline Vec SumLanes(Vec (&v)[kLanes]) {
  for (int left = kLanes / 2; left > 0; left /= 2) {
    for (int i = 0; i < left; ++i) v[i] = AddNeighbours(v[2 * i], v[2 * i + 1]);
  }
  return v[0];
}

// A vector of sums for each of several channels.
class Sums {
 public:
  explicit Sums(int64_t channels) : lanes_(channels * kLanes) {}
  void Add(int64_t channel, const Sum<kLanes>& sum) { sum.AddTo(&lanes_[channel * kLanes]); }
  void AddTo(float* totals) const {
    for (size_t i = 0; i < lanes_.size(); ++i) totals[i / kLanes] += lanes_[i];
  }

 private:
  std::vector<float> lanes_;
};

// Runs tasks 0 .. tasks - 1 on the threads of a pool. It may be called by a thread of that very
// pool: whoever calls does all that no other thread has begun, and waits for nothing else.
template <typename Pool>
void ForEach(Pool& pool, int64_t tasks, const std::function<void(int64_t)>& task) {
  struct Job {
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable finished;
  };
  // A thread may start after the call has returned; it then finds no task left.
  auto job = std::make_shared<Job>();
  auto work = [job, tasks, &task] {
    int64_t done = 0;
    for (int64_t i; (i = job->next++) < tasks; ++done) task(i);
    if (done == 0) return;
    std::lock_guard<std::mutex> lock(job->mutex);
    if ((job->done += done) == tasks) job->finished.notify_one();
  };
  const int64_t threads = std::min<int64_t>(tasks, std::max<int64_t>(1, pool.num_threads()));
  for (int64_t i = 1; i < threads; ++i) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(job->mutex);
  job->finished.wait(lock, [&] { return job->done == tasks; });
}

// The images of a batch in slices, and the slices in tasks: by the size of the batch alone.
struct Slices {
  int64_t batch, size, count, tasks;

  explicit Slices(int64_t images)
      : batch(images),
        size(std::min(kSlice, std::max<int64_t>(1, images / 2))),
        count((images + size - 1) / size),
        tasks(std::min(count, kTasks)) {}

  // Calls f(first image, number of images) for each slice of a task.
  template <typename F>
  void Each(int64_t task, F f) const {
    for (int64_t i = task * count / tasks; i < (task + 1) * count / tasks; ++i) {
      f(i * size, std::min(size, batch - i * size));
    }
  }
};

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

thread_local Memory memory_of_x, memory_of_dy, memory_of_rows;

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
        for (int v = 0; v < V; ++v) values[v] = Load(from + v * kLanes);
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

// Adds the gradient of F features and T taps of a row of the kernel, from rows begin .. end - 1.
template <int F, int T>
inline void GradientBlock(Padded& x, Padded& dy, int64_t taps, int64_t feature, int64_t channel,
                          int64_t i, int64_t j, int64_t begin, int64_t end, int64_t size,
                          float* d_kernel) {
  const int64_t images = x.images();
  Vec sums[T][F];
  for (auto& tap : sums) for (Vec& sum : tap) sum = Vec{};
  const int64_t next = dy.Row(1, 0) - dy.Row(0, 0);
  for (int64_t row = begin; row < end; ++row) {
    const float* from = x.Window(channel, row + i - taps / 2) + j * images;
    const float* gradient = dy.Row(feature, row);
    for (int64_t start = 0; start < size; start += kLanes) {
      Vec values[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) values[t] = Load(from + start + t * images);
#pragma GCC unroll 8
      for (int f = 0; f < F; ++f) {
        const Vec g = Load(gradient + f * next + start);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sums[t][f] += g * values[t];
      }
    }
  }
  for (int first = 0; first < T * F; first += kLanes) {
    const int count = std::min(kLanes, T * F - first);
    Vec group[kLanes] = {};
    for (int k = 0; k < count; ++k) group[k] = (&sums[0][0])[first + k];
    const Vec totals = SumLanes(group);
    for (int k = 0; k < count; ++k) {
      const int t = (first + k) / F, f = (first + k) % F;
      d_kernel[((i * taps + j + t) * x.channels() + channel) * dy.channels() + feature + f] +=
          totals[k];
    }
  }
}

template <int F>
inline void GradientRows(Padded& x, Padded& dy, int64_t taps, int64_t feature, int64_t begin,
                         int64_t end, int64_t size, float* d_kernel) {
  for (int64_t channel = 0; channel < x.channels(); ++channel) {
    for (int64_t i = 0; i < taps; ++i) {
      int64_t j = 0;
      for (; taps - j >= 5; j += 5) {
        GradientBlock<std::min(F, 4), 5>(x, dy, taps, feature, channel, i, j, begin, end, size,
                                         d_kernel);
        if (F > 4) {
          GradientBlock<std::min(F, 4), 5>(x, dy, taps, feature + 4, channel, i, j, begin, end,
                                           size, d_kernel);
        }
      }
      for (; taps - j >= 3; j += 3) {
        GradientBlock<F, 3>(x, dy, taps, feature, channel, i, j, begin, end, size, d_kernel);
      }
      for (; taps - j >= 1; j += 1) {
        GradientBlock<F, 1>(x, dy, taps, feature, channel, i, j, begin, end, size, d_kernel);
      }
    }
  }
}

// Adds the gradient of the kernel, float[K, K, Cin, Cout], from rows begin .. end - 1.
void AddKernelGradient(Padded& x, Padded& dy, int64_t taps, int64_t begin, int64_t end,
                       int64_t size, float* d_kernel) {
  int64_t feature = 0;
  for (; feature + kGradients <= dy.channels(); feature += kGradients) {
    GradientRows<kGradients>(x, dy, taps, feature, begin, end, size, d_kernel);
  }
  for (; feature + 4 <= dy.channels(); feature += 4) {
    GradientRows<4>(x, dy, taps, feature, begin, end, size, d_kernel);
  }
  for (; feature < dy.channels(); ++feature) {
    GradientRows<1>(x, dy, taps, feature, begin, end, size, d_kernel);
  }
}

// An array of images, in slices or as float[B, H, W, C].
struct Images {
  float* data;
  int64_t height, width, channels;
  bool sliced;

  // Where a row of a slice lies if it is sliced.
  float* Row(int64_t first, int64_t images, int64_t channel, int64_t row) const {
    return data + first * height * width * channels + (channel * height + row) * width * images;
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

struct Stage {
  bool relu_before, average_before, relu_after, max_after;
  int64_t taps;
  Images x, y, out;  // y before pooling
  const float *kernel, *bias, *scale, *shift, *sign;
  bool kept;  // y is written

  int64_t height() const { return y.height; }
  int64_t width() const { return y.width; }
};

// The layers before the convolution: rows of x to rows of `padded`.
void Prepare(const Stage& s, int64_t first, int64_t images, int64_t row, float* gathered,
             Padded& padded) {
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
    float* to = padded.Row(channel, row);
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
}

// The transpose of `Prepare`: adds to d_scale and d_shift, and writes rows of dx.
void PrepareTranspose(const Stage& s, int64_t first, int64_t images, int64_t row,
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

void ForwardSlice(const Stage& s, int64_t first, int64_t images, const Packed& kernel,
                  Padded& padded, Sums* sums) {
  const int64_t features = s.y.channels, size = s.width() * images, border = s.taps / 2;
  padded.Resize(images);
  const int64_t input_row = 2 * s.x.channels * s.x.width * images;
  float* gathered = memory_of_rows.Get(input_row + 3 * features * size);
  float* rows = gathered + input_row;
  float* pooled = rows + 2 * features * size;
  int64_t prepared = 0;
  for (int64_t row = 0; row < s.height(); ++row) {
    for (; prepared < std::min(s.height(), row + border + 1); ++prepared) {
      Prepare(s, first, images, prepared, gathered, padded);
    }
    auto at = [&](int64_t feature, int64_t row) {
      return s.kept ? s.y.Row(first, images, feature, row)
                    : rows + ((row % 2) * features + feature) * size;
    };
    ConvolveRow(padded, kernel, row, size, [&, relu = s.relu_after](
                                               int64_t f, int64_t start, auto& values) {
      const float bias = s.bias[f];
      float* to = at(f, row) + start;
      Sum<kLanes> sum, squares;
      ForValues(values, size - start, [&](int64_t i, auto v) {
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
void AfterTranspose(const Stage& s, const Gradients& g, int64_t first, int64_t images, int64_t row,
                    float* gathered, Padded& dy, Sums& d_bias) {
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
      const float *top = s.y.Row(first, images, f, row), *bottom = top + size;
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
}

struct TaskGradients {
  std::vector<float> kernel;
  Sums bias, scale, shift;
};

void BackwardSlice(const Stage& s, const Gradients& g, int64_t first, int64_t images,
                   const Packed& transposed, Padded& padded, Padded& dy,
                   TaskGradients& sums) {
  const int64_t size = s.width() * images, border = s.taps / 2, height = s.height();
  padded.Resize(images);
  dy.Resize(images);
  const int64_t input_row = 2 * s.x.channels * s.x.width * images;
  float* gathered = memory_of_rows.Get(input_row + (s.x.channels + s.y.channels) * size);
  float* row_gradient = gathered + input_row;
  float* gathered_out = row_gradient + s.x.channels * size;
  const int64_t step = s.max_after ? 2 : 1;
  int64_t band = std::max<int64_t>(1, kBand / size), prepared = 0, carried = 0;
  for (int64_t begin = 0; begin < height; begin += band) {
    const int64_t end = std::min(height, begin + band);
    for (; prepared < std::min(height, end + border); ++prepared) {
      Prepare(s, first, images, prepared, gathered, padded);
    }
    for (; carried < std::min(height, end + border); carried += step) {
      AfterTranspose(s, g, first, images, carried, gathered_out, dy, sums.bias);
    }
    AddKernelGradient(padded, dy, s.taps, begin, end, size, sums.kernel.data());
    if (!g.dx.data) continue;
    for (int64_t row = begin; row < end; ++row) {
      ConvolveRow(dy, transposed, row, size, [&](int64_t channel, int64_t start, auto& values) {
        float* to = row_gradient + channel * size + start;
        ForValues(values, size - start, [&](int64_t i, auto v) { Store(to + i, v); });
      });
      PrepareTranspose(s, first, images, row, row_gradient, gathered, g.dx, sums.scale, sums.shift);
    }
  }
}

ffi::Error Wrong(const std::string& what) {
  return ffi::Error::InvalidArgument("jaxcnn's kernels: " + what);
}

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
                     Shape out, bool sliced_in, bool sliced_out) {
  const auto in = x.dimensions(), window = kernel.dimensions();
  if (in.size() != 4 || window.size() != 4) return Wrong("images and kernel have four axes");
  const int64_t shrink = s.average_before ? 2 : 1, pool = s.max_after ? 2 : 1;
  const int64_t height = in[1] / shrink, width = in[2] / shrink, features = window[3];
  if (window[0] != window[1] || window[0] % 2 == 0) return Wrong("the kernel is odd and square");
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
  s.taps = window[0];
  s.x = MakeImages(x.typed_data(), in, sliced_in);
  s.out = {nullptr, height / pool, width / pool, features, sliced_out};
  s.y = {nullptr, height, width, features, true};
  s.kernel = kernel.typed_data();
  s.scale = scale.element_count() ? scale.typed_data() : nullptr;
  s.shift = shift.typed_data();
  s.sign = sign.element_count() ? sign.typed_data() : nullptr;
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool pool, Buffer x, Buffer kernel, Buffer bias, Buffer scale,
                   Buffer shift, Buffer sign, Result out, Result y, Result sums, bool relu_before,
                   bool average_before, bool relu_after, bool max_after, bool sliced_in,
                   bool sliced_out) {
  Stage s{relu_before, average_before, relu_after, max_after};
  if (auto error = MakeStage(s, x, kernel, scale, shift, sign, out->dimensions(), sliced_in,
                             sliced_out); error.failure()) return error;
  const int64_t batch = x.dimensions()[0], features = s.y.channels;
  if (!Is(bias.dimensions(), {features})) return Wrong("bias");
  const bool whole = Is(y->dimensions(), {batch, s.height(), s.width(), features});
  if (!whole && !Is(y->dimensions(), {0})) return Wrong("shape of what is kept");
  const bool summed = Is(sums->dimensions(), {2, features});
  if (!summed && !Is(sums->dimensions(), {0})) return Wrong("shape of the sums");
  s.bias = bias.typed_data();
  s.out.data = out->typed_data();
  s.y.data = y->typed_data();
  s.kept = whole;
  if (!max_after && sliced_out) {  // what comes out is what would be kept
    s.y.data = s.out.data;
    s.kept = true;
  }
  const Slices slices(batch);
  const Packed packed(s.kernel, s.taps, s.x.channels, features, false);
  std::vector<Sums> partial(summed ? 2 * slices.tasks : 0, Sums(features));
  ForEach(pool, slices.tasks, [&](int64_t task) {
    Padded padded(memory_of_x, s.x.channels, s.height(), s.width(), s.taps / 2);
    slices.Each(task, [&](int64_t first, int64_t images) {
      ForwardSlice(s, first, images, packed, padded,
                   summed ? &partial[2 * task] : nullptr);
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
                    Result d_bias, Result d_scale, Result d_shift, bool relu_before,
                    bool average_before, bool relu_after, bool max_after, bool sliced_in,
                    bool sliced_out) {
  Stage s{relu_before, average_before, relu_after, max_after};
  if (auto error = MakeStage(s, x, kernel, scale, shift, sign, d_out.dimensions(), sliced_in,
                             sliced_out); error.failure()) return error;
  const int64_t batch = x.dimensions()[0], features = s.y.channels, channels = s.x.channels;
  s.kept = Is(y.dimensions(), {batch, s.height(), s.width(), features});
  const bool summed = Is(d_sums.dimensions(), {2, features});
  if (!s.kept && (relu_after || max_after || summed)) return Wrong("shape of what was kept");
  if (!summed && !Is(d_sums.dimensions(), {0})) return Wrong("shape of the sums");
  const bool wanted = Same(dx->dimensions(), x.dimensions());
  if (!wanted && !Is(dx->dimensions(), {0})) return Wrong("gradient of the images");
  if (!Same(d_kernel->dimensions(), kernel.dimensions())) return Wrong("gradient of the kernel");
  if (!Is(d_bias->dimensions(), {features})) return Wrong("gradient of the bias");
  if (!Same(d_scale->dimensions(), scale.dimensions())) return Wrong("gradient of the scale");
  if (!Same(d_shift->dimensions(), shift.dimensions())) return Wrong("gradient of the shift");
  s.y.data = y.typed_data();
  const Gradients g{MakeImages(d_out.typed_data(), d_out.dimensions(), sliced_out),
                    {wanted ? dx->typed_data() : nullptr, s.x.height, s.x.width, channels,
                     sliced_in},
                    summed ? d_sums.typed_data() : nullptr};
  const Slices slices(batch);
  const Packed transposed(s.kernel, s.taps, channels, features, true);
  std::vector<TaskGradients> partial(
      slices.tasks, {std::vector<float>(kernel.element_count()), Sums(features), Sums(channels),
                     Sums(channels)});
  ForEach(pool, slices.tasks, [&](int64_t task) {
    Padded padded(memory_of_x, channels, s.height(), s.width(), s.taps / 2);
    Padded dy(memory_of_dy, features, s.height(), s.width(), s.taps / 2);
    slices.Each(task, [&](int64_t first, int64_t images) {
      BackwardSlice(s, g, first, images, transposed, padded, dy, partial[task]);
    });
  });
  for (Result result : {d_kernel, d_bias, d_scale, d_shift}) {
    std::fill_n(result->typed_data(), result->element_count(), 0.0f);
  }
  for (const TaskGradients& sums : partial) {
    for (size_t i = 0; i < sums.kernel.size(); ++i) d_kernel->typed_data()[i] += sums.kernel[i];
    sums.bias.AddTo(d_bias->typed_data());
    if (s.scale) {
      sums.scale.AddTo(d_scale->typed_data());
      sums.shift.AddTo(d_shift->typed_data());
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
                                  .Attr<bool>("relu_before")
                                  .Attr<bool>("average_before")
                                  .Attr<bool>("relu_after")
                                  .Attr<bool>("max_after")
                                  .Attr<bool>("sliced_in")
                                  .Attr<bool>("sliced_out"));

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
                                  .Attr<bool>("relu_before")
                                  .Attr<bool>("average_before")
                                  .Attr<bool>("relu_after")
                                  .Attr<bool>("max_after")
                                  .Attr<bool>("sliced_in")
                                  .Attr<bool>("sliced_out"));
