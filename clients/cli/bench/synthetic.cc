#include "clients/cli/bench/synthetic.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <random>
#include <string_view>

namespace t6::cli {
namespace {

constexpr std::array<std::string_view, 20> kSyllables = {"ba",  "den", "kor", "li",  "mar", "no", "pel",
                                                         "ri",  "sto", "ta",  "ul",  "ven", "wa", "xi",
                                                         "yor", "zan", "gre", "hol", "fi",  "du"};
constexpr std::array<std::string_view, 10> kThings = {"telescope", "drill",  "stove", "lamp",  "bicycle",
                                                      "camera",    "engine", "clock", "piano", "kettle"};
constexpr std::array<std::string_view, 8> kColours = {"yellow", "grey",  "red",   "blue",
                                                      "green",  "black", "white", "brown"};
constexpr std::array<std::string_view, 4> kFillers = {
    "The weather was mild that week.", "The road was repaired in spring.", "Most people agree about this.",
    "The old records were lost in a fire."};

class Writer {
 public:
  explicit Writer(uint64_t seed) : random_(seed) {}

  template <typename List>
  std::string_view One(const List& list) {
    return list[random_() % list.size()];
  }
  uint64_t Number(uint64_t below) { return random_() % below; }
  std::string Name() {
    std::string name;
    for (int i = 0; i < 3; ++i) name += One(kSyllables);
    name[0] = static_cast<char>(name[0] - 'a' + 'A');
    return name;
  }

 private:
  std::mt19937_64 random_;
};

// One fact about a new thing: the sentence and its question.
std::pair<std::string, std::string> Fact(Writer& write) {
  const std::string name = write.Name();
  const std::string_view thing = write.One(kThings);
  switch (write.Number(5)) {
    case 0:
      return {fmt::format("The {} {} comes in {}.", name, thing, write.One(kColours)),
              fmt::format("What colour is the {} {}?", name, thing)};
    case 1:
      return {fmt::format("Every {} {} is built in {}.", name, thing, write.Name()),
              fmt::format("Where is the {} {} made?", name, thing)};
    case 2:
      return {fmt::format("The price of the {} {} is {} dollars.", name, thing, 2 + write.Number(900)),
              fmt::format("How much is the {} {}?", name, thing)};
    case 3:
      return {fmt::format("The battery of the {} {} lasts {} hours.", name, thing, 2 + write.Number(500)),
              fmt::format("How long does the battery of the {} {} last?", name, thing)};
    default:
      return {fmt::format("The {} {} was invented by {} {}.", name, thing, write.Name(), write.Name()),
              fmt::format("Who invented the {} {}?", name, thing)};
  }
}

int64_t Words(std::string_view text) { return std::count(text.begin(), text.end(), ' ') + 1; }

}  // namespace

SyntheticDocument MakeDocument(uint64_t seed, int number, int words, int questions) {
  Writer write(seed * 1'000'003 + static_cast<uint64_t>(number));
  SyntheticDocument made;
  std::vector<std::string> about;  // the facts' questions
  for (int64_t have = 0; have < words;) {
    std::string sentence;
    if (!about.empty() && write.Number(5) == 0) {
      sentence = write.One(kFillers);
    } else {
      auto [fact, question] = Fact(write);
      sentence = std::move(fact);
      about.push_back(std::move(question));
    }
    have += Words(sentence);
    if (!made.text.empty()) made.text += ' ';
    made.text += sentence;
  }
  // A short document has fewer facts than questions: the others ask for what it does not say.
  while (about.size() < static_cast<size_t>(questions)) about.push_back(Fact(write).second);
  // Spread over the document.
  for (int i = 0; i < questions; ++i)
    made.questions.push_back(about[static_cast<size_t>(i) * about.size() / static_cast<size_t>(questions)]);
  return made;
}

}  // namespace t6::cli
