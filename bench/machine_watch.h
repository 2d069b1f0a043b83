// What else the machine did while a figure was taken. Whoever shares its cores, and a host that moves them
// between caches, change a figure more than most changes of the code do, so it is told beside it.
#pragma once

#include <fmt/format.h>
#include <sys/resource.h>

#include <cstdio>
#include <string>
#include <vector>

#include "bench/ceiling.h"

namespace t6::bench {

// Seconds that all cores spent for anybody, for the host's other machines instead, and for this process.
struct CpuSeconds {
  double busy = 0, stolen = 0, own = 0, at = 0;

  static CpuSeconds Now() {
    CpuSeconds now;
    now.at = Seconds();
    unsigned long long user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0, steal = 0;
    if (FILE* file = std::fopen("/proc/stat", "r")) {
      if (std::fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle,
                      &wait, &irq, &soft, &steal) == 8) {
        constexpr double kTick = 0.01;  // USER_HZ
        now.busy = kTick * static_cast<double>(user + nice + system + irq + soft);
        now.stolen = kTick * static_cast<double>(steal);
      }
      std::fclose(file);
    }
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    for (const timeval& t : {usage.ru_utime, usage.ru_stime})
      now.own += static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
    return now;
  }
};

class MachineWatch {
 public:
  explicit MachineWatch(int threads) : threads_(threads) {}

  // Once a repeat: whether two threads' cores lie under different caches now.
  bool CoresApart() {
    ++n_repeats_;
    constexpr double kFar = 300e-9;  // together 80 to 160 ns, apart 450 to 580
    const bool apart = threads_ > 1 && RoundTripSeconds() > kFar;
    n_apart_ += apart ? 1 : 0;
    return apart;
  }

  // "; cores apart in 4 of 9; others took 12 % of a core", or nothing.
  std::string Report() const {
    std::string report;
    if (n_apart_ > 0) report += fmt::format("; cores apart in {} of {}", n_apart_, n_repeats_);
    const CpuSeconds now = CpuSeconds::Now();
    const double wall = now.at - start_.at;
    const double others = (now.busy - start_.busy - (now.own - start_.own)) / wall,
                 stolen = (now.stolen - start_.stolen) / wall;
    constexpr double kNotable = 0.03;
    if (others > kNotable) report += fmt::format("; others took {:.0f} % of a core", 100 * others);
    if (stolen > kNotable) report += fmt::format("; the host took {:.0f} % of a core", 100 * stolen);
    return report;
  }

 private:
  int threads_;
  CpuSeconds start_ = CpuSeconds::Now();
  int n_repeats_ = 0, n_apart_ = 0;
};

}  // namespace t6::bench
