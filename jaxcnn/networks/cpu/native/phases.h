// A convolution of stride 2 as a sum of convolutions of stride 1, one for each phase of its input.
//
// A phase is the pixels of even or of odd rows and columns. Output r takes its tap i from row
// 2 r + i - padding, which is row r + offset of that row's phase.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "convolution.h"
#include "vectors.h"

namespace jaxcnn {

// The taps of a phase along an axis: first, first + 2, ...
struct Taps {
  int64_t first, count, offset;

  Taps(int64_t size, int64_t padding, int64_t parity)
      : first((parity + padding) % 2), count(size > first ? (size - first + 1) / 2 : 0),
        offset((first - padding - parity) / 2) {}
  // Rows that the window reaches above the output's and below.
  int64_t before() const { return -offset; }
  int64_t after() const { return offset + count - 1; }
  int64_t reach() const { return std::max(before(), after()); }
};

struct Phase {
  int64_t row, column;  // 0: even, 1: odd
  Taps rows, columns;

  int64_t taps() const { return rows.count * columns.count; }
  // Calls f(tap of the phase, tap of the whole kernel).
  template <typename F>
  void EachTap(int64_t kernel_size, F f) const {
    for (int64_t i = 0; i < rows.count; ++i) {
      for (int64_t j = 0; j < columns.count; ++j) {
        f(i * columns.count + j,
          (rows.first + 2 * i) * kernel_size + columns.first + 2 * j);
      }
    }
  }
};

// The phases that have taps.
inline std::vector<Phase> PhasesOf(int64_t kernel_size, int64_t padding) {
  std::vector<Phase> phases;
  for (int64_t row : {0, 1}) {
    for (int64_t column : {0, 1}) {
      const Phase phase{row, column, Taps(kernel_size, padding, row),
                        Taps(kernel_size, padding, column)};
      if (phase.taps()) phases.push_back(phase);
    }
  }
  return phases;
}

// How far any phase reaches.
inline int64_t Reach(const std::vector<Phase>& phases) {
  int64_t reach = 0;
  for (const Phase& phase : phases) reach = std::max(reach, phase.rows.reach());
  return reach;
}

// Copies those columns of a row, float[W, N], that a phase has.
inline void TakeColumns(const Phase& phase, const float* row, int64_t columns, int64_t images,
                        float* to) {
  for (int64_t column = 0; column < columns; ++column) {
    const float* from = row + (2 * column + phase.column) * images;
    ForVectors(images, [&](int64_t i, auto lanes) {
      Store(to + column * images + i, Load(from + i, lanes));
    });
  }
}

// Its transpose.
inline void PutColumns(const Phase& phase, const float* from, int64_t columns, int64_t images,
                       float* row) {
  for (int64_t column = 0; column < columns; ++column) {
    float* to = row + (2 * column + phase.column) * images;
    ForVectors(images, [&](int64_t i, auto lanes) {
      Store(to + i, Load(from + column * images + i, lanes));
    });
  }
}

// The part of a kernel, float[K, K, Cin, Cout], that a phase has.
inline Packed PackPhase(const Phase& phase, const float* kernel, int64_t kernel_size, int64_t in,
                        int64_t out, bool transposed) {
  std::vector<float> taps(phase.taps() * in * out);
  phase.EachTap(kernel_size, [&](int64_t tap, int64_t whole) {
    std::copy_n(kernel + whole * in * out, in * out, taps.data() + tap * in * out);
  });
  return Packed(taps.data(), phase.rows.count, phase.columns.count, in, out, transposed);
}

}  // namespace jaxcnn
