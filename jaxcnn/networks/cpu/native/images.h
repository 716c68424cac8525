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
        [&](int64_t place, const int64_t* to, int64_t image) {
          Vec square[kLanes];
          for (int i = 0; i < kLanes; ++i) square[i] = Load(from + (image + i) * size() + place);
          Transpose(square);
          for (int i = 0; i < kLanes; ++i) {
            Store(buffer + to[i] * slice.images + image, square[i]);
          }
        },
        [&](int64_t place, int64_t to, int64_t image) {
          buffer[to * slice.images + image] = from[image * size() + place];
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
        [&](int64_t place, const int64_t* at, int64_t image) {
          Vec square[kLanes];
          for (int i = 0; i < kLanes; ++i) {
            square[i] = Load(from + at[i] * slice.images + image);
          }
          Transpose(square);
          for (int i = 0; i < kLanes; ++i) Store(to + (image + i) * size() + place, square[i]);
        },
        [&](int64_t place, int64_t at, int64_t image) {
          to[image * size() + place] = from[at * slice.images + image];
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

  // Calls square(place, places, image) for squares of kLanes values of a row and as many images, and
  // one(place, place, image) for what is left: the place in float[W, C], and in float[C, W].
  template <typename Square, typename One>
  void EachSquare(int64_t images, Square square, One one) const {
    const int64_t values = width * channels, whole = images / kLanes * kLanes;
    int64_t place = 0, channel = 0, column = 0;
    auto next = [&] {  // counted, as divisions would take longer than all else
      const int64_t at = channel * width + column;
      if (++channel == channels) channel = 0, ++column;
      return at;
    };
    for (; place + kLanes <= values; place += kLanes) {
      int64_t at[kLanes];
      for (int64_t& to : at) to = next();
      for (int64_t image = 0; image < whole; image += kLanes) square(place, at, image);
      for (int64_t image = whole; image < images; ++image) {
        for (int i = 0; i < kLanes; ++i) one(place + i, at[i], image);
      }
    }
    for (; place < values; ++place) {
      const int64_t at = next();
      for (int64_t image = 0; image < images; ++image) one(place, at, image);
    }
  }
};

}  // namespace jaxcnn
