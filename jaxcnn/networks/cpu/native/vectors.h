// Vectors of the processor's width, by the vector extensions of GCC and Clang.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace jaxcnn {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

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

// A vector that stays in a register. GCC would rather read it from memory for each of its products,
// and the processor reads fewer vectors in a cycle than it multiplies.
inline Vec LoadOnce(const float* from) {
  Vec v = Load(from);
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

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
    if (begin < size) ForVectors<L / 2>(size, f, begin);
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
  bool shorter = false;  // whether there are vectors of fewer values

  void Add(Vector<L> v) { total += v; }
  template <typename V>
  void Add(V v) {
    shorter = true;
    Sum<L / 2>::Add(v);
  }
  void AddTo(float* lanes) const {
    Store(lanes, Load(lanes, Lanes<L>()) + total);
    if (shorter) Sum<L / 2>::AddTo(lanes);
  }
};
template <>
struct Sum<0> {
  void AddTo(float*) const {}
};

// The lanes of two vectors at the given places, of those of a and then b.
#if defined(__clang__)
#define JAXCNN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // __builtin_shufflevector came with GCC 12
typedef int Places __attribute__((vector_size(4 * kLanes)));
#define JAXCNN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

using EachLane = std::make_integer_sequence<int, kLanes>;

// Sums of neighbours: the first half of the result is of a, the second of b.
template <int... I>
inline Vec AddNeighbours(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return JAXCNN_SHUFFLE(a, b, (2 * I)...) + JAXCNN_SHUFFLE(a, b, (2 * I + 1)...);
}
inline Vec AddNeighbours(Vec a, Vec b) { return AddNeighbours(a, b, EachLane()); }

// Exchanges lanes `D` apart between vectors `D` apart: of each square of two blocks by two, those
// beside the diagonal.
template <int D, int... I>
inline void Exchange(Vec& a, Vec& b, std::integer_sequence<int, I...>) {
  const Vec first = JAXCNN_SHUFFLE(a, b, (I & D ? kLanes + I - D : I)...);
  b = JAXCNN_SHUFFLE(a, b, (I & D ? kLanes + I : I + D)...);
  a = first;
}

// Transposes a square: lane j of vector i becomes lane i of vector j.
template <int D = kLanes / 2>
inline void Transpose(Vec (&vectors)[kLanes]) {
  if constexpr (D > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if ((i & D) == 0) Exchange<D>(vectors[i], vectors[i + D], EachLane());
    }
    Transpose<D / 2>(vectors);
  }
}

// The largest power of two that is neither more than n nor than the number of lanes.
constexpr int LargestPower(int n) {
  int power = 1;
  while (2 * power <= n && 2 * power <= kLanes) power *= 2;
  return power;
}

// Adds the sum of the lanes of each of N vectors to one of N values.
template <int N>
inline void AddLanes(const Vec* vectors, float* values) {
  if constexpr (N > 0) {
    constexpr int kPower = LargestPower(N);
    Vec v[kPower];
    for (int i = 0; i < kPower; ++i) v[i] = vectors[i];
    for (int left = kPower / 2; left > 0; left /= 2) {
      for (int i = 0; i < left; ++i) v[i] = AddNeighbours(v[2 * i], v[2 * i + 1]);
    }
    for (int lanes = kPower; lanes < kLanes; lanes *= 2) v[0] = AddNeighbours(v[0], v[0]);
    constexpr Lanes<kPower> kAll{};
    Store(values, Load(values, kAll) + Load(reinterpret_cast<const float*>(v), kAll));
    AddLanes<N - kPower>(vectors + kPower, values + kPower);
  }
}

// A vector of sums for each of several channels.
class Sums {
 public:
  explicit Sums(int64_t channels = 0) : lanes_(channels * kLanes) {}
  void Add(int64_t channel, const Sum<kLanes>& sum) { sum.AddTo(&lanes_[channel * kLanes]); }
  void AddTo(float* totals) const {
    for (size_t i = 0; i < lanes_.size(); ++i) totals[i / kLanes] += lanes_[i];
  }

 private:
  std::vector<float> lanes_;
};

}  // namespace jaxcnn
