// Reads binary STL files, samples points on their surfaces as `pointdistill sample` does with the same seed, runs an
// encoder that `pointdistill export --format onnx` wrote, and prints which file is nearest to which.
//
// Run: encode MODEL.onnx POINTS SEED A.stl B.stl ...
// With - in place of the model, the sampled points are printed: x y z, one point a line.
// With --features before the model, the features are printed: 2 D numbers (D without a CLS token), one file a line.
// Sizes: N points, F triangles, D the encoder's width.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace {

using Word = std::uint32_t;
using Wide = unsigned __int128;

// SHA-256 of a file's name: every file has random numbers of its own, whatever is sampled beside it. The constants
// are the fractions of the cube and square roots of the first primes, as FIPS 180-4 defines them.
std::array<Word, 8> sha256(const std::string& text) {
  std::vector<int> primes;
  for (int n = 2; primes.size() < 64; ++n) {
    if (std::all_of(primes.begin(), primes.end(), [n](int p) { return n % p != 0; })) primes.push_back(n);
  }
  const auto fraction = [](long double root) {
    return static_cast<Word>((root - std::floor(root)) * 4294967296.0L);
  };
  std::array<Word, 8> hash{};
  for (int k = 0; k < 8; ++k) hash[k] = fraction(std::sqrt(static_cast<long double>(primes[k])));
  std::string padded = text + '\x80';
  while (padded.size() % 64 != 56) padded += '\0';
  for (int k = 7; k >= 0; --k) padded += static_cast<char>((std::uint64_t{text.size()} * 8) >> (8 * k));
  const auto turn = [](Word x, int by) { return (x >> by) | (x << (32 - by)); };
  for (std::size_t block = 0; block < padded.size(); block += 64) {
    std::array<Word, 64> w{};
    for (int k = 0; k < 64; ++k) w[k / 4] |= Word{static_cast<unsigned char>(padded[block + k])} << (24 - 8 * (k % 4));
    for (int k = 16; k < 64; ++k) {
      const Word small = turn(w[k - 15], 7) ^ turn(w[k - 15], 18) ^ (w[k - 15] >> 3);
      const Word large = turn(w[k - 2], 17) ^ turn(w[k - 2], 19) ^ (w[k - 2] >> 10);
      w[k] = w[k - 16] + small + w[k - 7] + large;
    }
    auto [a, b, c, d, e, f, g, h] = hash;
    for (int k = 0; k < 64; ++k) {
      const Word constant = fraction(std::cbrt(static_cast<long double>(primes[k])));
      const Word first = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + constant + w[k];
      const Word second = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g; g = f; f = e; e = d + first; d = c; c = b; b = a; a = first + second;
    }
    const std::array<Word, 8> mixed{a, b, c, d, e, f, g, h};
    for (int k = 0; k < 8; ++k) hash[k] += mixed[k];
  }
  return hash;
}

// Uniform numbers in [0, 1): those of numpy.random.default_rng, a PCG64 generator that SeedSequence fills.
class Uniform {
 public:
  explicit Uniform(const std::vector<Word>& entropy) {
    Word constant = 0x43b0d7e5U;
    const auto scramble = [&constant](Word value) {
      value ^= constant;
      constant *= 0x931e8875U;
      value *= constant;
      return value ^ (value >> 16);
    };
    const auto mix = [](Word x, Word y) {
      const Word mixed = 0xca01f9ddU * x - 0x4973f715U * y;
      return mixed ^ (mixed >> 16);
    };
    std::array<Word, 4> pool{};
    for (std::size_t k = 0; k < 4; ++k) pool[k] = scramble(k < entropy.size() ? entropy[k] : 0);
    for (std::size_t from = 0; from < 4; ++from) {
      for (std::size_t to = 0; to < 4; ++to) {
        if (from != to) pool[to] = mix(pool[to], scramble(pool[from]));
      }
    }
    for (std::size_t from = 4; from < entropy.size(); ++from) {
      for (Word& to : pool) to = mix(to, scramble(entropy[from]));
    }
    constant = 0x8b51f9ddU;
    std::array<std::uint64_t, 4> words{};
    for (int k = 0; k < 8; ++k) {
      Word value = pool[k % 4] ^ constant;
      constant *= 0x58f38dedU;
      value *= constant;
      value ^= value >> 16;
      words[k / 2] |= std::uint64_t{value} << (32 * (k % 2));
    }
    increment_ = (((Wide{words[2]} << 64) | words[3]) << 1) | 1;
    state_ = increment_ + ((Wide{words[0]} << 64) | words[1]);
    advance();
  }

  double operator()() {
    advance();
    const auto folded = static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
    const int turn = static_cast<int>(state_ >> 122);
    const std::uint64_t bits = (folded >> turn) | (folded << ((64 - turn) % 64));
    return static_cast<double>(bits >> 11) / 9007199254740992.0;
  }

 private:
  void advance() {
    state_ = state_ * ((Wide{0x2360ed051fc65da4ULL} << 64) | 0x4385df649fccf645ULL) + increment_;
  }

  Wide state_ = 0;
  Wide increment_ = 0;
};

using Triangle = std::array<double, 9>;

// The corners of the triangles of a binary STL file.
std::vector<Triangle> read_stl(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be read; check its name");
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  Word count = 0;
  if (bytes.size() >= 84) std::memcpy(&count, bytes.data() + 80, 4);
  if (count == 0 || (bytes.size() - 84) / 50 < count) {
    throw std::runtime_error(path + ": not a binary STL file; convert it, for example with MeshLab");
  }
  std::vector<Triangle> triangles(count);
  for (Word face = 0; face < count; ++face) {
    std::array<float, 9> corners{};
    std::memcpy(corners.data(), bytes.data() + 96 + std::size_t{50} * face, 36);
    std::copy(corners.begin(), corners.end(), triangles[face].begin());
  }
  return triangles;
}

// (3 N) points on the triangles, uniform by area.
std::vector<float> sample(const std::vector<Triangle>& triangles, std::size_t count, Uniform& random) {
  std::vector<double> reached;
  double total = 0.0;
  for (const auto& [ax, ay, az, bx, by, bz, cx, cy, cz] : triangles) {
    const double ux = bx - ax, uy = by - ay, uz = bz - az, vx = cx - ax, vy = cy - ay, vz = cz - az;
    const double x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
    reached.push_back(total += std::sqrt(x * x + y * y + z * z) / 2);
  }
  if (!(total > 0.0)) throw std::runtime_error("no triangle has an area");
  std::vector<double> targets(count);
  for (double& target : targets) target = std::min(random() * total, std::nextafter(total, 0.0));
  std::vector<float> points;
  for (const double target : targets) {
    const auto face = std::upper_bound(reached.begin(), reached.end(), target) - reached.begin();
    double u = random(), v = random();
    if (u + v > 1.0) u = 1.0 - u, v = 1.0 - v;
    const Triangle& t = triangles[static_cast<std::size_t>(face)];
    for (int axis = 0; axis < 3; ++axis) {
      const double a = t[axis], b = t[axis + 3], c = t[axis + 6];
      points.push_back(static_cast<float>((b - a) * u + a + (c - a) * v));
    }
  }
  return points;
}

std::vector<float> sample_file(const std::string& path, std::size_t count, Word seed) {
  std::vector<Word> entropy{seed};
  // The digest's bytes are read as little-endian words.
  for (const Word word : sha256(path.substr(path.find_last_of('/') + 1))) entropy.push_back(__builtin_bswap32(word));
  Uniform random(entropy);
  return sample(read_stl(path), count, random);
}

// One vector for a cloud: the CLS token, if there is one, and the mean over the patches.
std::vector<double> encode(Ort::Session& session, std::vector<float>& points) {
  const std::array<std::int64_t, 3> shape{1, static_cast<std::int64_t>(points.size() / 3), 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto input =
      Ort::Value::CreateTensor<float>(memory, points.data(), points.size(), shape.data(), shape.size());
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<double> features;
  std::vector<double> mean;
  for (std::size_t k = 0; k < session.GetOutputCount(); ++k) {
    const auto name = session.GetOutputNameAllocated(k, allocator);
    const char* inputs[] = {"points"};
    const char* outputs[] = {name.get()};
    const std::string which = name.get();
    if (which != "cls" && which != "patches") continue;
    auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);
    const auto sizes = results[0].GetTensorTypeAndShapeInfo().GetShape();
    const float* values = results[0].GetTensorData<float>();
    const auto width = static_cast<std::size_t>(sizes.back());
    if (which == "cls") {
      features.assign(values, values + width);
    } else {
      const auto patches = static_cast<std::size_t>(sizes[1]);
      mean.assign(width, 0.0);
      for (std::size_t n = 0; n < patches * width; ++n) mean[n % width] += values[n] / static_cast<double>(patches);
    }
  }
  features.insert(features.end(), mean.begin(), mean.end());
  return features;
}

// A vector for each file.
std::vector<std::vector<double>> encode_files(const char* model, std::size_t count, Word seed,
                                              const std::vector<std::string>& files) {
  const Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "encode");
  const Ort::SessionOptions options;
  Ort::Session session(env, model, options);
  std::vector<std::vector<double>> all;
  for (const auto& file : files) {
    auto points = sample_file(file, count, seed);
    all.push_back(encode(session, points));
  }
  return all;
}

void print_features(const std::vector<std::vector<double>>& all) {
  for (const auto& features : all) {
    for (std::size_t k = 0; k < features.size(); ++k) std::printf(k == 0 ? "%.9g" : " %.9g", features[k]);
    std::printf("\n");
  }
}

// Prints which file is nearest to which, by the cosine of their vectors.
void compare(std::vector<std::vector<double>> all, const std::vector<std::string>& files) {
  for (auto& features : all) {
    double length = 0.0;
    for (const double value : features) length += value * value;
    for (double& value : features) value /= std::sqrt(length);
  }
  for (std::size_t k = 0; k < files.size(); ++k) {
    std::size_t nearest = k;
    double best = -2.0;
    for (std::size_t other = 0; other < files.size(); ++other) {
      double cosine = 0.0;
      for (std::size_t n = 0; n < all[k].size(); ++n) cosine += all[k][n] * all[other][n];
      if (other != k && cosine > best) best = cosine, nearest = other;
    }
    std::printf("%s: nearest is %s (cosine %.3f)\n", files[k].c_str(), files[nearest].c_str(), best);
  }
}

// A whole number from ``least`` to ``most``, of a word of the command line.
std::uint64_t number(const char* word, const char* what, std::uint64_t least, std::uint64_t most) {
  std::uint64_t value = 0;
  const char* end = word + std::strlen(word);
  const auto read = std::from_chars(word, end, value);
  if (read.ec != std::errc{} || read.ptr != end || value < least || value > most) {
    throw std::runtime_error(std::string(what) + " must be a whole number from " + std::to_string(least) + " to " +
                             std::to_string(most) + ", not '" + word + "'");
  }
  return value;
}

}  // namespace

int main(int count, char** words) {
  const bool print = count > 1 && std::strcmp(words[1], "--features") == 0;
  if (print) --count, ++words;
  if (count < 5) {
    std::fprintf(stderr, "encode [--features] MODEL.onnx POINTS SEED FILE.stl...\n");
    return 2;
  }
  try {
    const std::vector<std::string> files(words + 4, words + count);
    const auto points = static_cast<std::size_t>(number(words[2], "POINTS", 1, 10'000'000));
    const auto seed = static_cast<Word>(number(words[3], "SEED", 0, 0xffffffffU));
    if (std::strcmp(words[1], "-") != 0) {
      const auto all = encode_files(words[1], points, seed, files);
      print ? print_features(all) : compare(all, files);
      return 0;
    }
    for (const auto& file : files) {
      const auto found = sample_file(file, points, seed);
      for (std::size_t k = 0; k + 2 < found.size(); k += 3) {
        std::printf("%.9g %.9g %.9g\n", found[k], found[k + 1], found[k + 2]);
      }
    }
  } catch (const std::exception& error) {
    // ONNX Runtime explains itself in several lines.
    std::string line = error.what();
    std::replace(line.begin(), line.end(), '\n', ' ');
    std::fprintf(stderr, "error: %s\n", line.c_str());
    return 2;
  }
  return 0;
}
