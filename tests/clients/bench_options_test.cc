// What may be typed after `t6 bench`, and what is said of the rest.
#include "clients/cli/bench/bench_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "clients/cli/bench/http_target.h"

namespace t6::cli {
namespace {

using testing::HasSubstr;

TEST(BenchOptionsTest, Defaults) {
  const auto [options, error] = ParseBench({});
  EXPECT_EQ(error, "");
  EXPECT_EQ(options.requests, 100);
  EXPECT_EQ(options.concurrency, 8);
  EXPECT_FALSE(options.rate.has_value());
}

TEST(BenchOptionsTest, ADurationAloneIsBoundedInCountToo) {
  const auto [options, error] = ParseBench({"--duration", "2m"});
  EXPECT_EQ(error, "");
  EXPECT_EQ(options.duration, 120);
  EXPECT_EQ(options.requests, 1'000'000);
}

TEST(BenchOptionsTest, Times) {
  EXPECT_EQ(ParseBench({"--timeout=500ms"}).options.timeout, 0.5);
  EXPECT_EQ(ParseBench({"--timeout=7"}).options.timeout, 7);
  EXPECT_EQ(ParseBench({"--duration=1.5s"}).options.duration, 1.5);
}

TEST(BenchOptionsTest, WrongOnesAreQuoted) {
  struct Case {
    std::vector<std::string> typed;
    std::string said;
  };
  for (const Case& c : {Case{{"go"}, "'go'"},
                        {{"--speed", "9"}, "--speed"},
                        {{"--concurrency", "0"}, "'0'"},
                        {{"--concurrency", "10001"}, "10001"},
                        {{"--concurrency", "2", "--rate", "3"}, "exclude"},
                        {{"--http", "http://a", "--grpc", "a:1"}, "exclude"},
                        {{"--prompts", "f", "--documents", "3"}, "exclude"},
                        {{"--rate", "nan"}, "nan"},
                        {{"--rate", "inf"}, "inf"},
                        {{"--duration", "5h"}, "5h"},
                        {{"--duration", "nan"}, "nan"},
                        {{"--duration", "-1s"}, "-1s"},
                        {{"--max-in-flight", "5"}, "--rate"},
                        {{"--requests"}, "needs a value"},
                        {{"--quiet=1"}, "takes no value"},
                        {{"--api-key", "a b"}, "without spaces"},
                        {{"--api-key", "@/no/such/file"}, "/no/such/file"},
                        {{"--service-config", "[]"}, "JSON object"},
                        {{"--grpc", "host"}, "HOST:PORT"},
                        {{"--system", "\xFF"}, "UTF-8"}}) {
    EXPECT_THAT(ParseBench(c.typed).error, HasSubstr(c.said)) << testing::PrintToString(c.typed);
  }
}

TEST(BenchOptionsTest, TheHelpNamesEveryFlag) {
  const std::string help = BenchHelp();
  for (const char* flag : {"--grpc",       "--http",        "--service-config", "--api-key",
                           "--model",      "--concurrency", "--rate",           "--max-in-flight",
                           "--requests",   "--duration",    "--timeout",        "--warmup",
                           "--prompts",    "--documents",   "--document-words", "--document-tokens",
                           "--questions",  "--system",      "--affinity",       "--max-tokens",
                           "--ignore-eos", "--temperature", "--seed",           "--json",
                           "--svg",        "--samples",     "--quiet"})
    EXPECT_THAT(help, HasSubstr(std::string("  ") + flag));
}

TEST(HttpAddressTest, Urls) {
  HttpAddress address;
  ASSERT_EQ(ParseHttpAddress("http://127.0.0.1:8000", address), "");
  EXPECT_EQ(address.host + " " + address.port + " " + address.base, "127.0.0.1 8000 ");
  ASSERT_EQ(ParseHttpAddress("http://[::1]:81/t6/", address), "");
  EXPECT_EQ(address.host + " " + address.port + " " + address.base, "::1 81 /t6");
  ASSERT_EQ(ParseHttpAddress("example.org", address), "");
  EXPECT_EQ(address.host + " " + address.port, "example.org 80");
  for (const char* wrong : {"https://a", "http://", "http://a:", "http://a:x", "http://a b",
                            "http://a:123456", "http://u@a", "http://a/\r\nx", "http://a/?q"})
    EXPECT_NE(ParseHttpAddress(wrong, address), "") << wrong;
}

}  // namespace
}  // namespace t6::cli
