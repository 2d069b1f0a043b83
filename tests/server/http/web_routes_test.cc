// The page's files over a real socket: types, caching, and the headers that lock the page in.
#include "server/http/web_routes.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "server/web/web_files.h"
#include "tests/server/http/api_fixture.h"

namespace t6::server {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

class WebRoutesTest : public ApiTest {
 protected:
  RawResponse Get(std::string_view path, std::string_view more_headers = "",
                  std::string_view method = "GET") {
    return Ask(Request(method, path, "", more_headers), /*head=*/method == "HEAD");
  }
};

TEST_F(WebRoutesTest, EveryFileIsServedWholeWithItsType) {
  std::set<std::string_view> types;
  for (const WebFile& file : WebFiles()) {
    const RawResponse response = Get(file.path);
    EXPECT_EQ(response.status, 200) << file.path;
    EXPECT_EQ(response.body, file.body) << file.path;
    EXPECT_EQ(response.Header("Content-Type"), file.content_type);
    types.insert(file.content_type);
  }
  EXPECT_THAT(types, testing::UnorderedElementsAre("text/html; charset=utf-8", "text/css; charset=utf-8",
                                                   "text/javascript; charset=utf-8", "image/svg+xml"));
  EXPECT_EQ(Get("/web/nothing.js").status, 404);
  EXPECT_EQ(Get("/web/").status, 404);
  EXPECT_EQ(Get("/web/../etc/passwd").status, 404);
  const RawResponse post = Get("/", "", "POST");
  EXPECT_EQ(post.status, 405);
  EXPECT_EQ(post.Header("Allow"), "GET, HEAD");
}

TEST_F(WebRoutesTest, HeadHasTheLengthAndNoBody) {
  const RawResponse head = Get("/", "", "HEAD");
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.Header("Content-Length"), std::to_string(Get("/").body.size()));
  EXPECT_EQ(head.body, "");
}

TEST_F(WebRoutesTest, WhatTheClientHasIsNotSentAgain) {
  const std::string etag = Get("/web/app.js").Header("ETag");
  ASSERT_THAT(etag, testing::MatchesRegex("\"[0-9a-f]{16}\""));
  RawClient client(server_->port());
  for (const std::string& header :
       {fmt::format("If-None-Match: {}\r\n", etag), fmt::format("If-None-Match: \"x\", W/{}\r\n", etag)}) {
    ASSERT_TRUE(client.Send(Request("GET", "/web/app.js", "", header)));
    // Read as a HEAD's answer: without a body, and the connection goes on.
    const auto response = client.Read(true);
    ASSERT_TRUE(response.has_value());
    EXPECT_EQ(response->status, 304);
    EXPECT_EQ(response->Header("ETag"), etag);
    EXPECT_EQ(response->headers.count("Content-Length"), 0);
    EXPECT_EQ(response->headers.count("Content-Type"), 0);
    EXPECT_THAT(response->Header("Content-Security-Policy"), HasSubstr("default-src 'none'"));
  }
  EXPECT_EQ(Get("/web/app.js", "If-None-Match: \"other\"\r\n").status, 200);
}

TEST_F(WebRoutesTest, NothingRunsOrLoadsFromElsewhere) {
  const RawResponse page = Get("/");
  const std::string policy = page.Header("Content-Security-Policy");
  for (const char* part : {"default-src 'none'", "script-src 'self'", "style-src 'self'",
                           "connect-src 'self'", "img-src 'self' data:", "frame-ancestors 'none'",
                           "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'"})
    EXPECT_THAT(policy, HasSubstr(part));
  EXPECT_THAT(policy, Not(HasSubstr("unsafe")));
  EXPECT_EQ(page.Header("X-Content-Type-Options"), "nosniff");
  EXPECT_EQ(page.Header("Referrer-Policy"), "no-referrer");
  // Nothing inline, which the policy would refuse: no script or style text, no handlers, no style attributes.
  EXPECT_FALSE(std::regex_search(page.body, std::regex("<style|<script[^>]*>[^<]|\\son\\w+=|\\sstyle=")));
  for (const WebFile& file : WebFiles()) {
    for (const char* unsafe : {"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                               "srcdoc", "DOMParser", "new Function"})
      EXPECT_THAT(std::string(file.body), Not(HasSubstr(unsafe))) << file.path;
  }
}

TEST_F(WebRoutesTest, ThePageNamesOnlyFilesThatExist) {
  std::set<std::string> paths;
  for (const WebFile& file : WebFiles()) paths.emplace(file.path);
  const std::regex reference("(?:src|href)=\"(web/[^\"]+)\"|from \"\\./([^\"]+)\"");
  int found = 0;
  for (const WebFile& file : WebFiles()) {
    const std::string body(file.body);
    for (std::sregex_iterator it(body.begin(), body.end(), reference), end; it != end; ++it, ++found)
      EXPECT_TRUE(paths.contains((*it)[1].matched ? "/" + (*it)[1].str() : "/web/" + (*it)[2].str()))
          << it->str();
  }
  EXPECT_GE(found, 8);
}

TEST_F(WebRoutesTest, ThePageComesAlsoWhileTheModelLoads) {
  admin_.now = ServingState::kStarting;
  EXPECT_EQ(Get("/").status, 200);
}

TEST(NamesEtagTest, Lists) {
  EXPECT_TRUE(NamesEtag("\"a\"", "\"a\""));
  EXPECT_TRUE(NamesEtag(" \"b\" ,W/\"a\"", "\"a\""));
  EXPECT_TRUE(NamesEtag("*", "\"a\""));
  EXPECT_FALSE(NamesEtag("", "\"a\""));
  EXPECT_FALSE(NamesEtag("\"ab\", a, ,", "\"a\""));
}

}  // namespace
}  // namespace t6::server
