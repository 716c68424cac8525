// Images of a batch, and how those of a slice are read and written row by row.

#pragma once

#include <cstdint>

#include "vectors.h"

namespace jaxcnn {

// Consecutive images of a batch.
struct Slice {
  int64_t first, images;
};

// An array of images: float[B, H, W, C], or sliced, where each slice is float[H, C, W, N]. The rows
// of all channels lie together: far apart, they would share few places of the caches.
struct Images {
  float* data;
  int64_t height, width, channels;
  bool sliced;

  // Where a row of all channels, float[C, W, N], is read: in place, or in `buffer`.
  const float* Read(Slice slice, int64_t row, float* buffer) const {
    if (sliced) return Row(slice, row);
    const float* from = Pixels(slice.first, row);
    EachSquare(
        slice.images,
        [&](int64_t place, int64_t image) {
          Vec square[kLanes];
          for (int i = 0; i < kLanes; ++i) square[i] = Load(from + (image + i) * size() + place);
          Transpose(square);
          for (int i = 0; i < kLanes; ++i) {
            Store(buffer + To(place + i) * slice.images + image, square[i]);
          }
        },
        [&](int64_t place, int64_t image) {
          buffer[To(place) * slice.images + image] = from[image * size() + place];
        });
    return buffer;
  }
  // Where it is to be written: in place, or in `buffer`. Then `Finish` is to be called.
  float* Target(Slice slice, int64_t row, float* buffer) const {
    return sliced ? Row(slice, row) : buffer;
  }
  void Finish(Slice slice, int64_t row, const float* from) const {
    if (sliced) return;
    float* to = Pixels(slice.first, row);
    EachSquare(
        slice.images,
        [&](int64_t place, int64_t image) {
          Vec square[kLanes];
          for (int i = 0; i < kLanes; ++i) {
            square[i] = Load(from + To(place + i) * slice.images + image);
          }
          Transpose(square);
          for (int i = 0; i < kLanes; ++i) Store(to + (image + i) * size() + place, square[i]);
        },
        [&](int64_t place, int64_t image) {
          to[image * size() + place] = from[To(place) * slice.images + image];
        });
  }
  float* Row(Slice slice, int64_t row) const {
    return data + (slice.first * height + row * slice.images) * width * channels;
  }

 private:
  float* Pixels(int64_t image, int64_t row) const {
    return data + image * size() + row * width * channels;
  }
  int64_t size() const { return height * width * channels; }  // of an image
  // Where a value of a row, float[W, C], comes to lie in float[C, W].
  int64_t To(int64_t place) const { return place % channels * width + place / channels; }

  // Calls square(place, image) for squares of kLanes values of a row and as many images, and
  // one(place, image) for what is left.
  template <typename Square, typename One>
  void EachSquare(int64_t images, Square square, One one) const {
    const int64_t values = width * channels, whole = images / kLanes * kLanes;
    int64_t place = 0;
    for (; place + kLanes <= values; place += kLanes) {
      for (int64_t image = 0; image < whole; image += kLanes) square(place, image);
      for (int64_t image = whole; image < images; ++image) {
        for (int i = 0; i < kLanes; ++i) one(place + i, image);
      }
    }
    for (; place < values; ++place) {
      for (int64_t image = 0; image < images; ++image) one(place, image);
    }
  }
};

}  // namespace jaxcnn
