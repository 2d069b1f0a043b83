#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "server/config_values.h"

namespace t6::server {
namespace {

using testing::HasSubstr;

StatusOr<ServerConfig> Parse(std::vector<std::string> args) { return ParseConfig(args); }

std::string ErrorOf(std::vector<std::string> args) {
  const auto config = Parse(std::move(args));
  return config.ok() ? "no error" : std::string(MessageOf(config.status()));
}

// A config file that goes away with the test.
class ConfigFile {
 public:
  // A file of this process's own: ctest runs several tests at once, each as a process.
  explicit ConfigFile(const std::string& text)
      : path_(testing::TempDir() + "/t6d-config-test-" + std::to_string(getpid()) + ".json") {
    std::ofstream(path_) << text;
  }
  ~ConfigFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

TEST(Config, DefaultsAreTheDocumentedOnes) {
  const ServerConfig c = Parse({"--model", "models/t6-docqa-14m/"}).value();
  EXPECT_EQ(c.http.address.ToString(), "127.0.0.1:8000");
  EXPECT_EQ(c.grpc.address.ToString(), "127.0.0.1:50051");
  EXPECT_EQ(c.served_model_name, "t6-docqa-14m");
  EXPECT_EQ(c.drain_grace, absl::Seconds(5));
  EXPECT_EQ(c.drain_deadline, absl::Seconds(45));
  EXPECT_EQ(c.action, Action::kServe);
}

TEST(Config, EveryFlagArrives) {
  const ServerConfig c = Parse({"--model=m",
                                "--http",
                                "0.0.0.0:0",
                                "--grpc=[::1]:7",
                                "--admin",
                                "127.0.0.1:9",
                                "--api-key-file",
                                "k",
                                "--cors-origin",
                                "https://A.Example",
                                "--cors-origin",
                                "*",
                                "--allowed-host",
                                "LLM.example",
                                "--max-queued-per-tenant",
                                "5",
                                "--device",
                                "cpu",
                                "--dtype",
                                "f32",
                                "--cache-dtype",
                                "bf16",
                                "--cache-bytes",
                                "1.5GiB",
                                "--threads",
                                "3",
                                "--max-context",
                                "4096",
                                "--max-num-seqs",
                                "8",
                                "--max-step-rows",
                                "1024",
                                "--max-step-ms",
                                "12.5",
                                "--max-queued-requests",
                                "9",
                                "--variant",
                                "T6",
                                "--model-override",
                                "rank=1",
                                "--model-override",
                                "name=a=b",
                                "--tokenizer",
                                "t",
                                "--chat-template",
                                "c",
                                "--eos-id",
                                "4",
                                "--eos-id",
                                "0",
                                "--served-model-name",
                                "docqa",
                                "--drain-grace",
                                "1m30s",
                                "--drain-deadline",
                                "500ms",
                                "--log-level",
                                "debug",
                                "--log-format",
                                "json",
                                "--port-file",
                                "p",
                                "--plan"})
                             .value();
  EXPECT_EQ(c.engine.model_directory, "m");
  EXPECT_EQ(c.http.address.ToString(), "0.0.0.0:0");
  EXPECT_EQ(c.grpc.address.ToString(), "[::1]:7");
  EXPECT_EQ(c.admin.value().ToString(), "127.0.0.1:9");
  EXPECT_EQ(c.api_key_file, "k");
  EXPECT_EQ(c.http.cors_origins, (std::vector<std::string>{"https://a.example", "*"}));
  EXPECT_EQ(c.http.allowed_hosts, std::vector<std::string>{"llm.example"});
  EXPECT_EQ(c.engine.max_queued_per_tenant, 5);
  EXPECT_EQ(c.grpc.max_concurrent_streams, 8 + 9);
  EXPECT_EQ(c.engine.device, "cpu");
  EXPECT_EQ(c.engine.dtype, "f32");
  EXPECT_EQ(c.engine.cache_dtype, "bf16");
  EXPECT_EQ(c.engine.cache_bytes, size_t{3} << 29);
  EXPECT_EQ(c.engine.threads, 3);
  EXPECT_EQ(c.engine.max_context, 4096);
  EXPECT_EQ(c.engine.max_num_seqs, 8);
  EXPECT_EQ(c.engine.max_step_rows, 1024);
  EXPECT_EQ(c.engine.max_step_ms, 12.5);
  EXPECT_EQ(c.engine.max_queued_requests, 9);
  EXPECT_EQ(c.engine.variant, "T6");
  EXPECT_EQ(c.engine.model_overrides, (std::map<std::string, std::string>{{"rank", "1"}, {"name", "a=b"}}));
  EXPECT_EQ(c.tokenizer_directory, "t");
  EXPECT_EQ(c.chat_template_file, "c");
  EXPECT_EQ(c.eos_ids, (std::vector<int32_t>{4, 0}));
  EXPECT_EQ(c.served_model_name, "docqa");
  EXPECT_EQ(c.drain_grace, absl::Seconds(90));
  EXPECT_EQ(c.drain_deadline, absl::Milliseconds(500));
  EXPECT_EQ(c.log_level, "debug");
  EXPECT_EQ(c.log_format, LogFormat::kJson);
  EXPECT_EQ(c.port_file, "p");
  EXPECT_EQ(c.action, Action::kPlan);
}

TEST(Config, ErrorsNameTheFlagAndQuoteTheValue) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{}, "--model is missing"},
      {{"--model"}, "--model needs a value"},
      {{"--model", ""}, "--model: \"\" is empty"},
      {{"model"}, "\"model\" is not a flag"},
      {{"--modell", "x"}, "--modell is unknown"},
      {{"--model", "a", "--model", "b"}, "--model is given twice"},
      {{"--model", "a", "--cors-origin", "a.example"}, "\"a.example\" is neither * nor an origin"},
      {{"--model", "a", "--cors-origin", "https://a.example/"}, "is neither * nor an origin"},
      {{"--model", "a", "--allowed-host", "https://a.example"}, "is neither * nor a name"},
      {{"--model", "a", "--allowed-host", "a.example:80"}, "\"a.example:80\" is neither * nor a name"},
      {{"--model", "a", "--admin", "127.0.0.1:50051"}, "--grpc and --admin are both 127.0.0.1:50051"},
      {{"--model", "a", "--plan=yes"}, "--plan takes no value, but has \"yes\""},
      {{"--model", "a", "--threads", "two"}, "--threads: \"two\" is not a whole number"},
      {{"--model", "a", "--threads", "-1"}, "--threads: -1 is not from 0 to 1024"},
      {{"--model", "a", "--threads", "99999999999999999999"}, "is not a whole number"},
      {{"--model", "a", "--max-step-rows", "8"}, "--max-step-rows: 8 is not from"},
      {{"--model", "a", "--max-step-ms", "nan"}, "--max-step-ms: nan is not from"},
      {{"--model", "a", "--cache-bytes", "4Gib"}, "--cache-bytes: \"Gib\" is no unit of size"},
      {{"--model", "a", "--cache-bytes", "lots"}, "\"lots\" is not a size"},
      {{"--model", "a", "--cache-bytes", "-1"}, "\"-1\" is not a size"},
      {{"--model", "a", "--cache-bytes", "0"}, "leaves no cache"},
      {{"--model", "a", "--cache-bytes", "9999999TiB"}, "more than any machine has"},
      {{"--model", "a", "--cache-dtype", "int8"}, "--cache-dtype: \"int8\" is none of auto, bf16, f32, fp8"},
      {{"--model", "a", "--drain-grace", "inf"}, "--drain-grace: inf is not from 0s to 24h"},
      {{"--model", "a", "--drain-grace", "-5s"}, "-5s is not from"},
      {{"--model", "a", "--drain-grace", "soon"}, "\"soon\" is not a duration"},
      {{"--model", "a", "--http", "8000"}, "\"8000\" is not ADDRESS:PORT"},
      {{"--model", "a", "--http", "127.0.0.1:65536"}, "\"65536\" in \"127.0.0.1:65536\" is not a port"},
      {{"--model", "a", "--http", "::1:80"}, "is not a numeric address"},
      {{"--model", "a", "--http", "example.com:80"}, "\"example.com\""},
      {{"--model", "a", "--http", "127.0.0.1:7", "--grpc", "127.0.0.1:7"},
       "--http and --grpc are both 127.0.0.1:7"},
      {{"--model", "a", "--model-override", "=x"}, "\"=x\" is not KEY=VALUE"},
      {{"--model", "a", "--model-override", "k=1", "--model-override", "k=2"}, "\"k\" is overridden twice"},
      {{"--model", "a", "--eos-id", "-1"}, "--eos-id: -1 is not from 0"},
      {{"--model", "a", "--served-model-name", "two words"}, "\"two words\" contains a space"},
      {{"--model", "/"}, "gives no name to serve"},
      {{"--model", "a", "--log-format", "xml"}, "\"xml\" is none of text, json"},
      {{"--model", "a", "--config", "/nowhere.json"}, "--config: /nowhere.json: no such file"},
  };
  for (const auto& [args, message] : cases) EXPECT_THAT(ErrorOf(args), HasSubstr(message));
}

TEST(Config, TheFileHasTheFlagsNamesAndFlagsWin) {
  const ConfigFile file(R"({"model": "from-file", "threads": 4, "cache-bytes": "1MiB", "eos-id": [1, 2],
                            "model-override": {"rank": 3}, "drain-grace": 2.5, "http": "127.0.0.1:81"})");
  const ServerConfig c = Parse({"--config", file.path(), "--threads", "2", "--eos-id", "9"}).value();
  EXPECT_EQ(c.engine.model_directory, "from-file");
  EXPECT_EQ(c.engine.threads, 2);
  EXPECT_EQ(c.engine.cache_bytes, size_t{1} << 20);
  EXPECT_EQ(c.eos_ids, (std::vector<int32_t>{9}));
  EXPECT_EQ(c.engine.model_overrides.at("rank"), "3");
  EXPECT_EQ(c.drain_grace, absl::Milliseconds(2500));
  EXPECT_EQ(c.http.address.port, 81);
}

TEST(Config, ErrorsOfTheFileNameItAndTheKey) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "is not JSON"},
      {"[1]", "is not a JSON object"},
      {"{\"model\": \"a\"", "is not JSON: parse error at line 1, column 14"},
      {R"({"modell": "a"})", "\"modell\" is unknown"},
      {R"({"plan": true})", "\"plan\" works as a flag only"},
      {R"({"config": "x"})", "\"config\" works as a flag only"},
      {R"({"threads": true})", "threads: true is neither a string nor a number"},
      {R"({"threads": null})", "threads: null"},
      {R"({"threads": [1]})", "threads: [1]"},
      {R"({"threads": 1.5})", "threads: \"1.5\" is not a whole number"},
      {R"({"threads": 1, "threads": 2})", "\"threads\" stands there twice"},
      {R"({"model": "a\u0000b"})", "contains a zero byte"},
      {std::string(100000, '['), "is not JSON"},
  };
  for (const auto& [text, message] : cases) {
    const ConfigFile file(text);
    EXPECT_THAT(ErrorOf({"--config", file.path()}),
                testing::AllOf(HasSubstr(file.path()), HasSubstr(message)));
  }
}

TEST(Config, HelpAndVersionNeedNothingElse) {
  EXPECT_EQ(Parse({"--help"}).value().action, Action::kHelp);
  EXPECT_EQ(Parse({"--version", "--threads", "bad"}).value().action, Action::kVersion);
  EXPECT_THAT(HelpText(), HasSubstr("--cache-bytes auto|SIZE"));
}

TEST(ConfigValues, Sizes) {
  EXPECT_EQ(ParseSize("4GiB").value(), size_t{4} << 30);
  EXPECT_EQ(ParseSize("4GB").value(), 4000000000u);
  EXPECT_EQ(ParseSize("17").value(), 17u);
  EXPECT_FALSE(ParseSize("").ok());
  EXPECT_FALSE(ParseSize("1..5GiB").ok());
  EXPECT_FALSE(ParseSize("1e300").ok());
}

}  // namespace
}  // namespace t6::server
