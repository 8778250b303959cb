// A test program in a few lines: TEST-like functions registered by name, checks that count, exit
// status.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "chipmunk_kernels/error.h"
#include "chipmunk_kernels/info.h"

namespace testing {

class Tests {
 public:
  void add(std::string name, std::function<void()> body) {
    tests_.emplace_back(std::move(name), std::move(body));
  }

  void check(bool ok, const std::string& what) {
    ++checks_;
    if (ok) return;
    ++failures_;
    std::printf("  FAILED: %s\n", what.c_str());
  }

  // Runs everything; the exit status: 0, 1 on a failure, 77 where the machine lacks the instruction
  // set.
  int run() {
    try {
      chipmunk::build_info();
    } catch (const chipmunk::Unsupported& e) {
      std::printf("skipped: %s\n", e.what());
      return 77;
    }
    for (const auto& [name, body] : tests_) {
      const int before = failures_;
      const int checks_before = checks_;
      try {
        body();
      } catch (const std::exception& e) {
        check(false, name + " threw " + e.what());
      }
      if (checks_ == checks_before) check(false, name + " checked nothing");
      std::printf("%s %s\n", failures_ == before ? "ok    " : "FAILED", name.c_str());
    }
    std::printf("%d checks, %d failures\n", checks_, failures_);
    return failures_ == 0 ? 0 : 1;
  }

 private:
  std::vector<std::pair<std::string, std::function<void()>>> tests_;
  int checks_ = 0, failures_ = 0;
};

// The text of the exception of type Error that `body` throws; "" where it throws none.
template <class Error, class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace testing
