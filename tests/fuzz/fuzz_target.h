// What a fuzz target defines: the function that libFuzzer calls, and, for fuzz_driver.cc where libFuzzer is
// not there, a good input to damage (an empty JSON object where a target has none).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

// Parses `size` hostile bytes; returns 0 whatever they are.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

std::string FuzzSeed();
