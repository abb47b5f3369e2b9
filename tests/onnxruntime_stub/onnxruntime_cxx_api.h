// The part of ONNX Runtime's C++ interface that examples/cpp/encode.cpp uses, to compile it where the real headers
// are not installed. Nothing here computes: a model cannot be opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

namespace Ort {

struct Env {
  Env(OrtLoggingLevel, const char*) {}
};
struct SessionOptions {};
struct RunOptions {
  explicit RunOptions(std::nullptr_t) {}
};
struct AllocatorWithDefaultOptions {};
using AllocatedStringPtr = std::unique_ptr<char[]>;
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType) { return {}; }
};
struct TensorTypeAndShapeInfo {
  std::vector<std::int64_t> GetShape() const { return {}; }
};
struct Value {
  template <typename T>
  static Value CreateTensor(const MemoryInfo&, T*, std::size_t, const std::int64_t*, std::size_t) {
    return {};
  }
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const { return {}; }
  template <typename T>
  const T* GetTensorData() const {
    return nullptr;
  }
};
struct Session {
  Session(const Env&, const char*, const SessionOptions&) {
    throw std::runtime_error("compiled without ONNX Runtime");
  }
  std::size_t GetOutputCount() const { return 0; }
  AllocatedStringPtr GetOutputNameAllocated(std::size_t, AllocatorWithDefaultOptions&) const { return {}; }
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, std::size_t, const char* const*,
                         std::size_t) {
    return {};
  }
};

}  // namespace Ort
